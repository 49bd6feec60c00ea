//! A server under test: its own runtime, port, tiny model and scripted backend.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_model::facts::ModelFacts;
use bitnet_model::gguf::Gguf;
use bitnet_model::protocol::Overrides;
use bitnet_model::synth::{self, Shape, Vocabulary};
use bitnet_model::tokenizer::Tokenizer;
use bitnet_server::backend::Tenure;
use bitnet_server::{App, ModelCard, ServerConfig, serve};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::backend::{Script, ScriptedBackend};
use crate::client::{self, Reply};

pub(crate) const SLOTS: usize = 2;
pub(crate) const SLOT_CONTEXT: usize = 1024;

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) app: Arc<App>,
    pub(crate) backend: Arc<ScriptedBackend>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) runtime: Runtime,
    pub(crate) serving: Option<JoinHandle<std::io::Result<()>>>,
}

impl Server {
    pub(crate) fn start() -> Server {
        Server::with(ServerConfig::default())
    }

    pub(crate) fn with(config: ServerConfig) -> Server {
        let server = Server::loading(config);
        let card = card();
        server.app.set_model(card).expect("a template");
        server
    }

    /// Without a model.
    pub(crate) fn loading(config: ServerConfig) -> Server {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let backend = ScriptedBackend::new(SLOTS, 8);
        let app = App::new(config, Arc::clone(&backend) as _);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = runtime.spawn(serve(listener, Arc::clone(&app)));
        Server {
            address,
            app,
            backend,
            tokenizer: card().tokenizer,
            runtime,
            serving: Some(serving),
        }
    }

    /// Every job answers `text`, a byte per token, then an end-of-generation token.
    pub(crate) fn says(&self, text: &str) {
        let mut tokens = self.byte_tokens(text.as_bytes());
        tokens.push(self.tokenizer.eog()[0]);
        self.plays(Script {
            tokens,
            ..Script::default()
        });
    }

    pub(crate) fn plays(&self, script: Script) {
        *self.backend.script.lock().unwrap() = script;
    }

    /// One token per byte, whatever the merges.
    pub(crate) fn byte_tokens(&self, bytes: &[u8]) -> Vec<u32> {
        let token_of = |byte: &u8| {
            let is_it = |id: &u32| self.tokenizer.piece(*id)[..] == [*byte];
            (0..self.tokenizer.n_vocab() as u32)
                .find(is_it)
                .unwrap_or_else(|| panic!("a token for byte {byte}"))
        };
        bytes.iter().map(token_of).collect()
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        client::request(self.address, "GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: Value) -> Reply {
        self.post_text(path, &body.to_string())
    }

    pub(crate) fn post_text(&self, path: &str, body: &str) -> Reply {
        client::request(self.address, "POST", path, &[], body.as_bytes())
    }

    /// Polls until `condition`, for at most two seconds.
    pub(crate) fn until(&self, what: &str, condition: impl Fn(&Server) -> bool) {
        let patience = Instant::now() + Duration::from_secs(2);
        while !condition(self) {
            assert!(Instant::now() < patience, "waited for: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.app.drain(Duration::ZERO);
    }
}

/// A model of two layers with a byte-level vocabulary.
pub(crate) fn card() -> ModelCard {
    card_of(&Shape::preset("tiny").expect("a preset"))
}

/// A tiny model whose header has what Microsoft's file has, and lacks what it lacks.
pub(crate) fn published_card() -> ModelCard {
    let tiny = Shape::preset("tiny").expect("a preset");
    card_of(&Shape {
        vocabulary: Vocabulary::Published,
        n_vocab: 1024,
        ..tiny
    })
}

fn card_of(shape: &Shape) -> ModelCard {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    synth::write(shape, 1, &path, &mut |_, _| {}).expect("written");
    let gguf = Gguf::open(&path).expect("readable");
    ModelCard {
        facts: ModelFacts::read(&gguf, &Overrides::default()).expect("facts"),
        tokenizer: Arc::new(
            Tokenizer::from_gguf(&gguf, &Overrides::default()).expect("a tokenizer"),
        ),
        path: "models/tiny.gguf".into(),
        created_unix_s: 1_700_000_000,
        slots: SLOTS,
        slot_context: SLOT_CONTEXT,
        prefill_batch: 64,
        draft_max: 5,
        kernel: "i2_s/scalar".into(),
        threads: 1,
        tenure: Arc::new(Tenure::new(0, || {})),
    }
}

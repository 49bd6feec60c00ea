//! A request to the whole HTTP stack, over a Unix socket. The first byte chooses the route, the rest is the body; beyond
//! the last route the input is the request itself.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_model::facts::ModelFacts;
use bitnet_model::gguf::Gguf;
use bitnet_model::protocol::{Draft, Finish, Overrides, SlotAction, SlotFault, SlotReport};
use bitnet_model::synth::{self, Shape};
use bitnet_model::tokenizer::Tokenizer;
use bitnet_server::backend::{
    Backend, BackendCounters, BackendState, CancelOnDrop, EmbedJob, EnergyMoment, Job, JobEvent,
    JobHandle, Refused, SlotView, Tenure,
};
use bitnet_server::{App, ModelCard, ServerConfig, serve};
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

const ROUTES: &[&str] = &[
    "/completion",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/chat/completions/input_tokens",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/embedding",
    "/apply-template",
    "/tokenize",
    "/detokenize",
    "/api/chat",
    "/api/generate",
    "/slots/0?action=save",
    "/lora-adapters",
];
const SLOTS: usize = 2;
const SLOT_CONTEXT: usize = 512;
/// An answer takes microseconds; grammars have their own bounds.
const PATIENCE: Duration = Duration::from_secs(15);

/// Says two tokens to everything.
struct Parrot;

impl Parrot {
    fn play(events: impl IntoIterator<Item = JobEvent>) -> JobHandle {
        let (sender, receiver) = mpsc::unbounded_channel();
        for event in events {
            let _ = sender.send(event);
        }
        JobHandle {
            id: 1,
            events: receiver,
            cancel: CancelOnDrop::new(|| {}),
        }
    }
}

fn done(finish: Finish) -> JobEvent {
    JobEvent::Done {
        finish,
        shifted: false,
    }
}

impl Backend for Parrot {
    fn state(&self) -> BackendState {
        BackendState::Ready
    }

    fn submit(&self, job: Job) -> Result<JobHandle, Refused> {
        let token = |token| JobEvent::Token {
            token,
            probs: None,
            at: Instant::now(),
            draft: Draft::default(),
            cpu_ms: None,
        };
        let prefill = JobEvent::Prefill {
            slot: 0,
            total: job.prompt.len(),
            cached: 0,
            processed: job.prompt.len(),
            ms: 1.0,
            cpu_ms: None,
        };
        Ok(Self::play([prefill, token(40), token(41), done(Finish::Limit)]))
    }

    fn embed(&self, job: EmbedJob) -> Result<JobHandle, Refused> {
        let vectors = vec![vec![0.5; 4]; if job.pooling.is_some() { 1 } else { job.tokens.len() }];
        Ok(Self::play([JobEvent::Embedding { vectors }, done(Finish::Limit)]))
    }

    fn slot_action(
        &self,
        _: usize,
        _: SlotAction,
    ) -> Result<oneshot::Receiver<Result<SlotReport, SlotFault>>, Refused> {
        Err(Refused::QueueFull(0))
    }

    fn slots(&self) -> Vec<SlotView> {
        vec![SlotView::default(); SLOTS]
    }

    fn counters(&self) -> BackendCounters {
        BackendCounters::default()
    }

    fn energy(&self) -> Option<EnergyMoment> {
        None
    }
}

fn card(folder: &std::path::Path) -> ModelCard {
    let path = folder.join("tiny.gguf");
    let shape = Shape::preset("tiny").expect("a preset");
    synth::write(&shape, 1, &path, &mut |_, _| {}).expect("written");
    let gguf = Gguf::open(&path).expect("readable");
    let overrides = Overrides::default();
    ModelCard {
        facts: ModelFacts::read(&gguf, &overrides).expect("facts"),
        tokenizer: Arc::new(Tokenizer::from_gguf(&gguf, &overrides).expect("a tokenizer")),
        path: "tiny.gguf".into(),
        created_unix_s: 0,
        slots: SLOTS,
        slot_context: SLOT_CONTEXT,
        prefill_batch: 64,
        draft_max: 0,
        kernel: "i2_s/scalar".into(),
        threads: 1,
        tenure: Arc::new(Tenure::new(0, || {})),
    }
}

struct Served {
    runtime: Runtime,
    socket: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Served {
        let folder = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let app = App::new(ServerConfig::default(), Arc::new(Parrot));
        app.set_model(card(folder.path())).expect("a template");
        let socket = folder.path().join("http.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        runtime.spawn(serve(listener, app));
        Served {
            runtime,
            socket,
            _folder: folder,
        }
    }

    /// Everything the server answers to `request`, until it closes. With `hang_up`, no more than the request will come;
    /// a server may take that for a client that has left.
    fn answer(&self, request: &[u8], hang_up: bool) -> Vec<u8> {
        self.runtime.block_on(async {
            let mut stream = UnixStream::connect(&self.socket).await.expect("a connection");
            // Refused requests may be answered before they are read.
            let _ = stream.write_all(request).await;
            if hang_up {
                let _ = stream.shutdown().await;
            }
            let mut answer = Vec::new();
            let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "no end of the answer in time");
            answer
        })
    }
}

thread_local! {
    static SERVED: RefCell<Option<Served>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, body)) = data.split_first() else {
        return;
    };
    let route = ROUTES.get(usize::from(choice) % (ROUTES.len() + 1));
    let request = match route {
        Some(route) => {
            let head = format!(
                "POST {route} HTTP/1.1\r\nHost: f\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), body].concat()
        }
        None => body.to_vec(),
    };
    SERVED.with_borrow_mut(|served| {
        let served = served.get_or_insert_with(Served::start);
        let answer = served.answer(&request, route.is_none());
        if let Some(route) = route {
            let status = answer.get(9..12).unwrap_or_default();
            let allowed: [&[u8]; 10] = [
                b"200", b"400", b"401", b"403", b"404", b"405", b"408", b"413", b"429", b"501",
            ];
            assert!(
                allowed.contains(&status),
                "{route}: {}",
                String::from_utf8_lossy(&answer)
            );
        }
    });
});

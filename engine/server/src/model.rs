//! The model as the HTTP side knows it: facts, tokenizer, chat template, name.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use bitnet_model::facts::ModelFacts;
use bitnet_model::grammar::{GrammarError, Vocabulary};
use bitnet_model::tokenizer::{Detokenizer, Tokenizer};

use crate::backend::Tenure;
use crate::config::ServerConfig;
use crate::template::{ChatTemplate, TemplateError, TemplateFacts};

/// What the launcher tells about a model once its header is read and the plan is made.
pub struct ModelCard {
    /// The header's facts.
    pub facts: ModelFacts,
    /// The vocabulary; its chat template is the model's.
    pub tokenizer: Arc<Tokenizer>,
    /// Path as given, or a name for an embedded model.
    pub path: String,
    /// Seconds since 1970 at which the file was last changed; for `/v1/models`.
    pub created_unix_s: u64,
    /// Sequences at the same time.
    pub slots: usize,
    /// Tokens each sequence can hold.
    pub slot_context: usize,
    /// Most prompt tokens evaluated in one step.
    pub prefill_batch: usize,
    /// Most tokens guessed ahead in a step; 0: none.
    pub draft_max: usize,
    /// Kernel by name, `i2_s/avx2`.
    pub kernel: String,
    /// Decode threads.
    pub threads: usize,
    /// Jobs for this model carry its number.
    pub tenure: Arc<Tenure>,
}

/// A model that can be put in the place of another at once, see [`crate::App::install`].
pub struct Staged(pub(crate) Arc<Model>);

/// A card, ready for use.
pub(crate) struct Model {
    pub(crate) card: ModelCard,
    /// What requests for it leave out.
    pub(crate) config: ServerConfig,
    /// The name in replies: the alphabetically first alias, else the path's file name.
    pub(crate) id: String,
    pub(crate) template: ChatTemplate,
    /// Empty where the vocabulary has no such token.
    pub(crate) bos_text: String,
    /// Empty where the vocabulary has no such token.
    pub(crate) eos_text: String,
    show_control: bool,
    /// For grammars that may name tokens.
    vocabulary: OnceLock<Result<Arc<Vocabulary>, GrammarError>>,
}

impl Model {
    pub(crate) fn new(card: ModelCard, config: &ServerConfig) -> Result<Self, TemplateError> {
        let tokenizer = &card.tokenizer;
        let facts = TemplateFacts {
            architecture: card.facts.architecture.name(),
            model_template: tokenizer.chat_template(),
            has_eot_id: tokenizer.token_id("<|eot_id|>").is_some(),
        };
        let template = ChatTemplate::choose(config.chat_template.as_deref(), facts)?;
        tracing::info!("chat template: {}", template.source());
        let id = config
            .aliases
            .iter()
            .min()
            .cloned()
            .unwrap_or_else(|| file_name(&card.path));
        let text_of = |token: Option<u32>| match token {
            Some(token) => String::from_utf8_lossy(tokenizer.piece(token)).into_owned(),
            None => String::new(),
        };
        let (bos_text, eos_text) = (text_of(tokenizer.bos()), text_of(tokenizer.eos()));
        Ok(Model {
            id,
            template,
            bos_text,
            eos_text,
            show_control: config.special,
            vocabulary: OnceLock::new(),
            config: config.clone(),
            card,
        })
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.card.tokenizer
    }

    /// The vocabulary as grammars see it; made when it is first asked for.
    pub(crate) fn vocabulary(&self) -> Result<Arc<Vocabulary>, GrammarError> {
        let made = || Vocabulary::new(self.tokenizer()).map(Arc::new);
        self.vocabulary.get_or_init(made).clone()
    }

    /// Turns generated tokens into text.
    pub(crate) fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.card.tokenizer)).render_special(self.show_control)
    }

    /// Text of a prompt, control tokens included.
    pub(crate) fn text_with_specials(&self, tokens: &[u32]) -> String {
        String::from_utf8_lossy(&self.card.tokenizer.decode(tokens)).into_owned()
    }

    /// Text of a prompt as it was given.
    pub(crate) fn text_without_bos(&self, tokens: &[u32]) -> String {
        match (self.card.tokenizer.bos(), tokens) {
            (Some(bos), [first, rest @ ..]) if *first == bos => self.text_with_specials(rest),
            _ => self.text_with_specials(tokens),
        }
    }

    /// llama.cpp's number: 1 SentencePiece, 2 byte-level BPE.
    pub(crate) fn vocab_type(&self) -> u32 {
        if self.card.tokenizer.pre() == "spm" {
            1
        } else {
            2
        }
    }

    /// Storage of the weights, `I2_S`.
    pub(crate) fn file_type(&self) -> String {
        self.card.facts.ternary_type.to_string()
    }
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(
        || path.to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

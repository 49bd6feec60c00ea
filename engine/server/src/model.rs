//! The model as the HTTP side knows it: facts, tokenizer, chat template, name.

use std::path::Path;

use bitnet_model::facts::ModelFacts;

use crate::config::ServerConfig;
use crate::template::{ChatTemplate, TemplateError, TemplateFacts};

/// What the launcher tells about a model once its header is read and the plan is made.
pub struct ModelCard {
    /// The header's facts.
    pub facts: ModelFacts,
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
    /// Kernel by name, `i2_s/avx2`.
    pub kernel: String,
    /// Decode threads.
    pub threads: usize,
}

/// A card, ready for use.
pub(crate) struct Model {
    pub(crate) card: ModelCard,
    /// The name in replies: the alphabetically first alias, else the path's file name.
    pub(crate) id: String,
    pub(crate) template: ChatTemplate,
}

impl Model {
    pub(crate) fn new(card: ModelCard, config: &ServerConfig) -> Result<Self, TemplateError> {
        let facts = TemplateFacts {
            architecture: card.facts.architecture.name(),
            model_template: None,
            has_eot_id: true,
        };
        let template = ChatTemplate::choose(config.chat_template.as_deref(), facts)?;
        tracing::info!("chat template: {}", template.source());
        let id = config
            .aliases
            .iter()
            .min()
            .cloned()
            .unwrap_or_else(|| file_name(&card.path));
        Ok(Model { card, id, template })
    }
}

fn file_name(path: &str) -> String {
    Path::new(path).file_name().map_or_else(
        || path.to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

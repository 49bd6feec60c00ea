//! What the user says about another engine, and everything that is passed on to it as it was said.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::asked::LIST_SEPARATOR;
use super::{Setting, Source};

/// Which program runs the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EngineChoice {
    /// This one.
    BuiltIn,
    /// The first llama-server in the usual places.
    Auto,
    /// This llama-server.
    At(PathBuf),
}

/// Another program as engine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct External {
    /// Which.
    pub engine: Setting<EngineChoice>,
    /// Further arguments for it.
    pub args: Setting<Vec<String>>,
    /// Look into it before the start.
    pub check: Setting<bool>,
    /// Become it.
    pub exec: Setting<bool>,
    /// What was said, by key; empty for the built-in engine. Never a key of clients.
    pub(super) said: BTreeMap<&'static str, Said>,
}

impl External {
    /// Another program is wanted.
    pub(crate) fn is_wanted(&self) -> bool {
        self.engine.value != EngineChoice::BuiltIn
    }

    /// What was said about a setting.
    pub(crate) fn said(&self, name: &str) -> Option<&Said> {
        self.said.get(name)
    }
}

/// A setting's text as it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    text: String,
    /// By whom.
    pub source: Source,
}

impl Said {
    /// The text.
    pub(crate) fn text(&self) -> &str {
        self.text.trim()
    }

    /// The items of a list; a repeated flag is one.
    pub(crate) fn items(&self) -> impl Iterator<Item = &str> {
        let repeated = self.text.contains(LIST_SEPARATOR);
        let between =
            move |c: char| c == LIST_SEPARATOR || (!repeated && self.is_bias() && c == ',');
        self.text
            .split(between)
            .map(str::trim)
            .filter(|item| !item.is_empty())
    }

    /// `15043+1,15043-1`: texts may hold commas, these can't.
    fn is_bias(&self) -> bool {
        self.text
            .chars()
            .all(|c| c.is_ascii_digit() || "+-.,e ".contains(c))
    }

    /// A switch that is on.
    pub(crate) fn is_on(&self) -> bool {
        super::values::switch(self.text()).unwrap_or(false)
    }
}

impl From<&Setting<String>> for Said {
    fn from(asked: &Setting<String>) -> Said {
        Said {
            text: asked.value.clone(),
            source: asked.source.clone(),
        }
    }
}

//! Token ids into text, one at a time, without ever splitting a character.

use std::sync::Arc;

use super::Tokenizer;

/// Collects the bytes of tokens and hands out whole characters. Bytes that can't become a character turn into U+FFFD as
/// soon as that is certain. The concatenation of all pieces is what [`String::from_utf8_lossy`] makes of all bytes.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    renders_special: bool,
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// For text that continues a prompt: control tokens are silent, a first blank stays.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Detokenizer {
        Detokenizer {
            tokenizer,
            renders_special: false,
            pending: Vec::new(),
        }
    }

    /// Write control tokens by their name.
    pub fn render_special(mut self, renders: bool) -> Detokenizer {
        self.renders_special = renders;
        self
    }

    /// The whole characters known after this token; often empty inside a character of several tokens.
    pub fn push(&mut self, id: u32) -> String {
        if self.renders_special || !self.tokenizer.is_control(id) {
            self.pending.extend_from_slice(self.tokenizer.piece(id));
        }
        self.take_certain()
    }

    /// What is left at the end: U+FFFD for the beginning of a character, or nothing.
    pub fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }

    /// Bytes held back, the beginning of a character.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    fn take_certain(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            let could_continue =
                used + invalid.len() == self.pending.len() && is_start_of_character(invalid);
            if invalid.is_empty() || could_continue {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            used += invalid.len();
        }
        self.pending.drain(..used);
        text
    }
}

fn is_start_of_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

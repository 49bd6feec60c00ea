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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Detokenizer;
    use crate::synth::random::Rng;
    use crate::tokenizer::tests::tokenizer;

    fn pieces(ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(Arc::new(tokenizer("tiny")));
        let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
        pieces.push(detokenizer.finish());
        pieces
    }

    /// The tiny vocabulary's token of one byte.
    fn byte(byte: u8) -> u32 {
        let tokenizer = tokenizer("tiny");
        (0..256).find(|&id| tokenizer.piece(id) == [byte]).unwrap()
    }

    #[test]
    fn characters_come_whole() {
        let ids: Vec<u32> = "aé€😀".bytes().map(byte).collect();
        assert_eq!(
            pieces(&ids),
            ["a", "", "é", "", "", "€", "", "", "", "😀", ""]
        );
    }

    #[test]
    fn certain_errors_show_at_once() {
        let ids = [
            byte(0xff),
            byte(0xf0),
            byte(0x9f),
            byte(b'x'),
            byte(0xe2),
            byte(0x82),
        ];
        assert_eq!(
            pieces(&ids),
            ["\u{fffd}", "", "", "\u{fffd}x", "", "", "\u{fffd}"]
        );
    }

    #[test]
    fn any_bytes_become_what_lossy_conversion_makes_of_them() {
        let tokenizer = Arc::new(tokenizer("tiny"));
        let mut rng = Rng::new(3, 0);
        for _ in 0..300 {
            let ids: Vec<u32> = (0..40).map(|_| (rng.u64() % 256) as u32).collect();
            let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer));
            let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
            text += &detokenizer.finish();
            assert_eq!(
                text,
                String::from_utf8_lossy(&tokenizer.decode(&ids)),
                "{ids:?}"
            );
        }
    }

    #[test]
    fn control_tokens_are_silent_unless_asked_for() {
        let tokenizer = Arc::new(tokenizer("tiny"));
        let eot = tokenizer.token_id("<|eot_id|>").unwrap();
        assert_eq!(Detokenizer::new(Arc::clone(&tokenizer)).push(eot), "");
        let mut named = Detokenizer::new(tokenizer).render_special(true);
        assert_eq!(named.push(eot), "<|eot_id|>");
        assert_eq!(named.push(9_999_999), "");
    }
}

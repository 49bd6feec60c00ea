//! Logits as samplers see them: of the whole vocabulary, or of the tokens that can matter.

use super::SampleError;

/// Logits to choose from.
#[derive(Debug)]
pub enum Logits<'a> {
    /// `[n_vocab]`
    All(&'a mut [f32]),
    /// Those of some tokens: at least the ones that a [`Want::Best`] names.
    Best {
        /// Ascending.
        tokens: &'a [u32],
        /// One for each of them.
        logits: &'a mut [f32],
    },
}

/// The logits that choosing a token takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want<'a> {
    /// Of the whole vocabulary.
    All,
    /// Of these tokens, and of the `k` best of all others: higher logit first, lower id among equals.
    Best {
        /// At least 1.
        k: usize,
        /// In any order, with repetitions and ids beyond the vocabulary, which don't count.
        also: &'a [u32],
    },
}

impl Logits<'_> {
    /// In the order of their tokens.
    pub(super) fn values(&self) -> &[f32] {
        match self {
            Logits::All(logits) => logits,
            Logits::Best { logits, .. } => logits,
        }
    }

    pub(super) fn get_mut(&mut self, token: u32) -> Option<&mut f32> {
        match self {
            Logits::All(logits) => logits.get_mut(token as usize),
            Logits::Best { tokens, logits } => {
                let place = tokens.binary_search(&token).ok()?;
                logits.get_mut(place)
            }
        }
    }

    /// The token of the `place`-th value.
    pub(super) fn token(&self, place: usize) -> u32 {
        match self {
            Logits::All(_) => place as u32,
            Logits::Best { tokens, .. } => tokens[place],
        }
    }

    /// Excludes all tokens that `allowed` doesn't name.
    pub(super) fn keep_only(&mut self, allowed: &TokenSet) {
        match self {
            Logits::All(logits) => {
                for (token, logit) in (0..).zip(logits.iter_mut()) {
                    if !allowed.contains(token) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
            Logits::Best { tokens, logits } => {
                for (&token, logit) in tokens.iter().zip(logits.iter_mut()) {
                    if !allowed.contains(token) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }

    pub(super) fn check_finite(&self) -> Result<(), SampleError> {
        // Exponent bits all ones: infinity or NaN. A maximum of integers, because that is one instruction per vector.
        let values = self.values();
        let largest = values
            .iter()
            .fold(0, |max: u32, logit| max.max(logit.to_bits() & 0x7fff_ffff));
        if largest < f32::INFINITY.to_bits() {
            return Ok(());
        }
        let place = values
            .iter()
            .position(|logit| !logit.is_finite())
            .unwrap_or(0);
        Err(SampleError::NotFinite {
            token: self.token(place),
        })
    }
}

/// Some tokens of a vocabulary: one bit each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u32>,
}

impl TokenSet {
    /// No token; room for `n_vocab`.
    pub fn none(n_vocab: usize) -> Self {
        TokenSet {
            words: vec![0; n_vocab.div_ceil(32)],
        }
    }

    /// Bits, 32 tokens to a word, the lowest bit first.
    pub fn from_words(words: Vec<u32>) -> Self {
        TokenSet { words }
    }

    /// Whether it names the token.
    pub fn contains(&self, token: u32) -> bool {
        let word = self.words.get(token as usize / 32);
        word.is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Adds or removes a token; ids beyond the room don't count.
    pub fn set(&mut self, token: u32, is_in: bool) {
        if let Some(word) = self.words.get_mut(token as usize / 32) {
            let bit = 1 << (token % 32);
            *word = if is_in { *word | bit } else { *word & !bit };
        }
    }

    /// How many tokens it names.
    pub fn count(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Its tokens, ascending.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.words).flat_map(|(place, &word)| {
            let bits = (0..32).filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| 32 * place + bit)
        })
    }
}

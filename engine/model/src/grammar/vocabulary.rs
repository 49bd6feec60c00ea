//! A vocabulary as grammars see it: a trie of what tokens add to text. Control tokens are in it under names that no text has.

use std::sync::{Arc, OnceLock};

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use super::GrammarError;
use super::gbnf::TokenName;
use crate::sampler::TokenSet;
use crate::tokenizer::Tokenizer;

/// States of a schema's or Lark grammar's lexer, at most: 1 to 2 KB each.
const MAX_LEXER_STATES: usize = 20_000;

/// The vocabulary of a model; share it with `Arc`.
pub struct Vocabulary {
    env: TokEnv,
    factory: ParserFactory,
    eog: Vec<u32>,
    /// Tokens that add the same as another one, which is in the trie for both: (the other one, token).
    twins: Vec<(u32, u32)>,
    n_vocab: usize,
    /// Tokens of single bytes, most of which a grammar that leaves a choice allows two of.
    probes: Vec<u32>,
}

/// Bytes of which two may follow wherever texts, numbers or lists go on.
const PROBED: &[u8] = b" a\"0,-1}]tn\n";

impl Vocabulary {
    /// Builds the trie: about 0.1 s for 128,256 tokens.
    ///
    /// # Errors
    /// When llguidance doesn't take it.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, GrammarError> {
        let n_vocab = tokenizer.n_vocab();
        let eog = tokenizer.eog().to_vec();
        let pieces: Vec<Vec<u8>> = (0..n_vocab as u32)
            .map(|token| {
                let piece = tokenizer.piece(token);
                match tokenizer.is_control(token) || eog.contains(&token) {
                    true => [&[TokTrie::SPECIAL_TOKEN_MARKER], piece].concat(),
                    false => piece.to_vec(),
                }
            })
            .collect();
        let end = eog.first().copied().or(tokenizer.eos());
        let end = end.unwrap_or(n_vocab.saturating_sub(1) as u32);
        let info = TokRxInfo::new(n_vocab as u32, end);
        let trie = TokTrie::from(&info, &pieces);
        let twins = (0..).zip(&pieces).filter_map(|(token, piece)| {
            let first = trie.token_id_at_bytes(piece)?;
            (first != token).then_some((first, token))
        });
        let twins = twins.collect();
        Self::of(Arc::new(ApproximateTokEnv::new(trie)), eog, twins)
    }

    fn of(env: TokEnv, eog: Vec<u32>, twins: Vec<(u32, u32)>) -> Result<Self, GrammarError> {
        let failed = |error| GrammarError::Vocabulary(format!("{error:#}"));
        let mut factory = ParserFactory::new_simple(&env).map_err(failed)?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: MAX_LEXER_STATES,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        let trie = env.tok_trie();
        let probes = PROBED
            .iter()
            .filter_map(|&byte| trie.token_id_at_bytes(&[byte]));
        let probes = probes.collect();
        Ok(Vocabulary {
            probes,
            n_vocab: env.tok_trie().vocab_size(),
            env,
            factory,
            eog,
            twins,
        })
    }

    pub(super) fn factory(&self) -> &ParserFactory {
        &self.factory
    }

    pub(super) fn trie(&self) -> &TokTrie {
        self.env.tok_trie()
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    pub(super) fn eog(&self) -> &[u32] {
        &self.eog
    }

    pub(super) fn probes(&self) -> &[u32] {
        &self.probes
    }

    /// The token that a grammar names.
    pub(super) fn find(&self, name: TokenName<'_>) -> Option<u32> {
        match name {
            TokenName::Number(number) => Some(number).filter(|it| (*it as usize) < self.n_vocab),
            TokenName::Text(text) => {
                let marked = [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat();
                let trie = self.trie();
                let control = trie.token_id_at_bytes(&marked);
                control.or_else(|| trie.token_id_at_bytes(text.as_bytes()))
            }
        }
    }

    pub(super) fn is_eog(&self, token: u32) -> bool {
        self.eog.contains(&token)
    }

    /// What a token adds to text, as bytes; a control token's begin with one that no text has.
    pub(super) fn text(&self, token: u32) -> &[u8] {
        match (token as usize) < self.n_vocab {
            true => self.trie().token(token),
            false => &[],
        }
    }

    /// The tokens of the trie that were found, and their twins.
    pub(super) fn set_of(&self, found: &SimpleVob) -> TokenSet {
        let n_words = self.n_vocab.div_ceil(32);
        let mut words = found.as_slice().to_vec();
        words.resize(n_words, 0);
        let mut set = TokenSet::from_words(words);
        for &(first, token) in &self.twins {
            set.set(token, set.contains(first));
        }
        set
    }
}

/// One token for each byte: enough to see whether a schema can be followed.
pub(super) fn bytes_only() -> Result<&'static Arc<Vocabulary>, GrammarError> {
    static BYTES: OnceLock<Result<Arc<Vocabulary>, GrammarError>> = OnceLock::new();
    let made = BYTES.get_or_init(|| {
        Vocabulary::of(ApproximateTokEnv::single_byte_env(), vec![], vec![]).map(Arc::new)
    });
    made.as_ref().map_err(Clone::clone)
}

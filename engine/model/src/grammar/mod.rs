//! Binds answers to a grammar: llama.cpp's GBNF, JSON schemas, and llguidance's Lark.
//!
//! A [`Constraint`] follows one answer token by token: which tokens may come next is a set over the vocabulary, found by
//! walking the trie of its pieces. GBNF runs on a pushdown automaton of our own (`pushdown`), because it has no lexer:
//! `[a-z]* "b"` matches `ab`, which a lexer that takes the longest match can't see. Schemas and Lark run on llguidance.
//!
//! End-of-generation tokens are allowed exactly where the grammar may end. Work is bounded: a grammar that is too much of it
//! fails its own generation, with [`GrammarError::TooMuch`].

mod gbnf;
mod guidance;
mod pushdown;
mod schema;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::sync::Arc;

use crate::protocol::{Grammar, GrammarText, Triggers};
use crate::sampler::TokenSet;
use gbnf::TokenName;
use guidance::Guided;
use pushdown::Pushdown;
pub use vocabulary::Vocabulary;

/// Longest text of a grammar, in bytes.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;
/// Longest texts of triggers, in bytes.
const MAX_TRIGGER_BYTES: usize = 4 << 10;

/// Why an answer can't be bound to a grammar, or can't go on in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The text is longer than is read.
    #[error("the grammar has {found} bytes, at most {MAX_GRAMMAR_BYTES} are read")]
    TooLong {
        /// Its bytes.
        found: usize,
    },
    /// The text is not GBNF.
    #[error("line {line}, column {column}: {problem}")]
    Gbnf {
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// Found and expected.
        problem: String,
    },
    /// The text is GBNF, but no answer can follow it.
    #[error("rule `{rule}` {problem}")]
    Rule {
        /// Which one.
        rule: String,
        /// What about it.
        problem: &'static str,
    },
    /// The schema, or the Lark text.
    #[error("{0}")]
    Refused(String),
    /// It has no end, or too many ways.
    #[error("the grammar is too much work: {0}")]
    TooMuch(String),
    /// A trigger that can't come up.
    #[error("triggers must not be empty, nor longer than {MAX_TRIGGER_BYTES} bytes in all")]
    Triggers,
    /// The tokenizer can't be read again.
    #[error("the vocabulary can't be read: {0}")]
    Vocabulary(String),
}

impl GrammarError {
    /// Whether it was known before the first token: the request is wrong, rather than the answer stuck.
    pub fn is_of_the_text(&self) -> bool {
        !matches!(self, GrammarError::TooMuch(_) | GrammarError::Vocabulary(_))
    }
}

/// Reads a grammar to see whether it can be followed; cheap but for those that name tokens of the vocabulary.
///
/// # Errors
/// What is wrong with it.
pub fn check(
    grammar: &Grammar,
    vocabulary: impl FnOnce() -> Result<Arc<Vocabulary>, GrammarError>,
) -> Result<(), GrammarError> {
    check_size(grammar)?;
    match &grammar.text {
        GrammarText::Gbnf(text) => {
            let mut vocabulary = Some(vocabulary);
            let mut made: Option<Arc<Vocabulary>> = None;
            let mut find = |name: TokenName<'_>| {
                if let Some(make) = vocabulary.take() {
                    made = Some(make()?);
                }
                Ok(made.as_ref().and_then(|it| it.find(name)))
            };
            gbnf::parse(text, &mut find).map(drop)
        }
        GrammarText::JsonSchema(_) => {
            Guided::new(&grammar.text, vocabulary::bytes_only()?.factory()).map(drop)
        }
        // Its own vocabulary only for those that name tokens of it.
        GrammarText::Lark(_) => {
            let plain = Guided::new(&grammar.text, vocabulary::bytes_only()?.factory());
            plain
                .or_else(|_| Guided::new(&grammar.text, vocabulary()?.factory()))
                .map(drop)
        }
    }
}

fn check_size(grammar: &Grammar) -> Result<(), GrammarError> {
    let (GrammarText::Gbnf(text) | GrammarText::JsonSchema(text) | GrammarText::Lark(text)) =
        &grammar.text;
    if text.len() > MAX_GRAMMAR_BYTES {
        return Err(GrammarError::TooLong { found: text.len() });
    }
    let Some(triggers) = &grammar.triggers else {
        return Ok(());
    };
    let bytes: usize = triggers.words.iter().map(String::len).sum();
    let is_nothing = triggers.words.is_empty() && triggers.tokens.is_empty();
    match is_nothing || triggers.words.iter().any(String::is_empty) || bytes > MAX_TRIGGER_BYTES {
        true => Err(GrammarError::Triggers),
        false => Ok(()),
    }
}

/// Whether an answer may be exactly `text`, whatever the vocabulary.
///
/// # Errors
/// When the grammar can't be followed.
pub fn matches(grammar: &Grammar, text: &str) -> Result<bool, GrammarError> {
    let mut constraint = Constraint::new(grammar, vocabulary::bytes_only()?, &[])?;
    for byte in text.bytes() {
        let token = u32::from(byte);
        if !constraint.allows(token)? {
            return Ok(false);
        }
        constraint.accept(token)?;
    }
    match constraint.waiting {
        Some(_) => Ok(true),
        None => constraint.machine.may_end(),
    }
}

/// A JSON schema as the right side of a Lark rule, with the choices that schemas get here.
pub fn json_rule(schema: &serde_json::Value) -> String {
    let schema = match schema {
        serde_json::Value::Object(schema) => schema.clone(),
        _ => serde_json::Map::new(),
    };
    format!("%json {}", guidance::with_choices(schema))
}

/// What an answer may become, after the tokens it has.
pub struct Constraint {
    vocabulary: Arc<Vocabulary>,
    machine: Machine,
    /// While the answer is still free.
    waiting: Option<Waiting>,
    /// The tokens allowed next, once they have been asked for.
    allowed: TokenSet,
    is_known: bool,
}

#[derive(Clone)]
enum Machine {
    Pushdown(Box<Pushdown>),
    Guided(Box<Guided>),
}

/// A lazy grammar before its trigger.
struct Waiting {
    triggers: Triggers,
    /// The end of the text so far: what may be the beginning of a trigger.
    tail: Vec<u8>,
}

impl Constraint {
    /// The constraint of an answer that begins with the tokens `answer`.
    ///
    /// # Errors
    /// What is wrong with the grammar, or that the answer doesn't follow it.
    pub fn new(
        grammar: &Grammar,
        vocabulary: &Arc<Vocabulary>,
        answer: &[u32],
    ) -> Result<Self, GrammarError> {
        check_size(grammar)?;
        let machine = match &grammar.text {
            GrammarText::Gbnf(text) => {
                let rules = gbnf::parse(text, &mut |name| Ok(vocabulary.find(name)))?;
                Machine::Pushdown(Box::new(Pushdown::new(rules)?))
            }
            GrammarText::JsonSchema(_) | GrammarText::Lark(_) => {
                Machine::Guided(Box::new(Guided::new(&grammar.text, vocabulary.factory())?))
            }
        };
        let waiting = grammar.triggers.clone().map(|triggers| Waiting {
            triggers,
            tail: Vec::new(),
        });
        let mut constraint = Constraint {
            vocabulary: Arc::clone(vocabulary),
            machine,
            waiting,
            allowed: TokenSet::default(),
            is_known: false,
        };
        for &token in answer {
            constraint.accept(token)?;
        }
        Ok(constraint)
    }

    /// Whether the token may come next.
    ///
    /// # Errors
    /// When finding out is too much work.
    pub fn allows(&mut self, token: u32) -> Result<bool, GrammarError> {
        if self.is_known {
            return Ok(self.allowed.contains(token));
        }
        if let Some(waiting) = &self.waiting {
            let Some(start) = waiting.start(token, &self.vocabulary) else {
                return Ok(true);
            };
            return self.machine.clone().begin(&start, &self.vocabulary);
        }
        if self.vocabulary.is_eog(token) {
            return self.machine.may_end();
        }
        self.machine.allows(token, &self.vocabulary)
    }

    /// Goes on by a token that is allowed.
    ///
    /// # Errors
    /// When it is not, or is too much work.
    pub fn accept(&mut self, token: u32) -> Result<(), GrammarError> {
        self.is_known = false;
        let is_eog = self.vocabulary.is_eog(token);
        if let Some(waiting) = &mut self.waiting {
            if let Some(start) = waiting.start(token, &self.vocabulary) {
                self.waiting = None;
                return match self.machine.begin(&start, &self.vocabulary)? {
                    true => Ok(()),
                    false => Err(not_allowed(token)),
                };
            }
            if !is_eog {
                waiting.read(self.vocabulary.text(token));
            }
            return Ok(());
        }
        // Nothing follows the end.
        if is_eog {
            return Ok(());
        }
        match self.machine.accept(token, &self.vocabulary)? {
            true => Ok(()),
            false => Err(not_allowed(token)),
        }
    }

    /// All tokens that may come next.
    ///
    /// # Errors
    /// When finding out is too much work.
    pub fn allowed(&mut self) -> Result<&TokenSet, GrammarError> {
        if !self.is_known {
            self.allowed = match &self.waiting {
                Some(waiting) => waiting.allowed(&self.machine, &self.vocabulary)?,
                None => self.find_allowed()?,
            };
            self.is_known = true;
        }
        Ok(&self.allowed)
    }

    /// The token that comes next, where the grammar leaves no choice. A few looks at single bytes tell most states that leave some.
    ///
    /// # Errors
    /// When finding out is too much work.
    pub fn forced(&mut self) -> Result<Option<u32>, GrammarError> {
        if self.waiting.is_some() || self.machine.may_end()? {
            return Ok(None);
        }
        let mut n_found = 0;
        for &token in self.vocabulary.probes() {
            n_found += usize::from(self.machine.allows(token, &self.vocabulary)?);
            if n_found > 1 {
                return Ok(None);
            }
        }
        let allowed = self.allowed()?;
        let only = (allowed.count() == 1).then(|| allowed.tokens().next());
        Ok(only.flatten())
    }

    fn find_allowed(&mut self) -> Result<TokenSet, GrammarError> {
        let may_end = self.machine.may_end()?;
        let mut allowed = self.machine.allowed(&self.vocabulary)?;
        for &token in self.vocabulary.eog() {
            allowed.set(token, may_end);
        }
        Ok(allowed)
    }
}

fn not_allowed(token: u32) -> GrammarError {
    GrammarError::Refused(format!("token {token} does not follow the grammar"))
}

/// How a grammar begins: by its trigger.
enum Start {
    Token(u32),
    Bytes(Vec<u8>),
}

impl Waiting {
    /// What the grammar begins with, if `token` completes a trigger.
    fn start(&self, token: u32, vocabulary: &Vocabulary) -> Option<Start> {
        if self.triggers.tokens.contains(&token) {
            return Some(Start::Token(token));
        }
        let text = [&self.tail, vocabulary.text(token)].concat();
        let first = |word: &String| {
            let mut places = text.windows(word.len());
            places.position(|part| part == word.as_bytes())
        };
        let place = self.triggers.words.iter().filter_map(first).min()?;
        Some(Start::Bytes(text[place..].to_vec()))
    }

    fn read(&mut self, text: &[u8]) {
        self.tail.extend_from_slice(text);
        let longest = self.triggers.words.iter().map(String::len).max();
        let kept = longest.unwrap_or(0).saturating_sub(1);
        self.tail.drain(..self.tail.len().saturating_sub(kept));
    }

    /// Everything but what completes a trigger and goes on wrongly.
    fn allowed(
        &self,
        machine: &Machine,
        vocabulary: &Vocabulary,
    ) -> Result<TokenSet, GrammarError> {
        let mut allowed = TokenSet::none(vocabulary.n_vocab());
        for token in 0..vocabulary.n_vocab() as u32 {
            let is_allowed = match self.start(token, vocabulary) {
                Some(start) => machine.clone().begin(&start, vocabulary)?,
                None => true,
            };
            allowed.set(token, is_allowed);
        }
        Ok(allowed)
    }
}

impl Machine {
    /// Takes the first bytes or the first token; false when they are wrong.
    fn begin(&mut self, start: &Start, vocabulary: &Vocabulary) -> Result<bool, GrammarError> {
        match (self, start) {
            (machine, Start::Token(token)) => machine.accept(*token, vocabulary),
            (Machine::Pushdown(it), Start::Bytes(bytes)) => it.accept(bytes),
            (Machine::Guided(it), Start::Bytes(bytes)) => {
                it.accept(&vocabulary.trie().greedy_tokenize(bytes))
            }
        }
    }

    fn may_end(&mut self) -> Result<bool, GrammarError> {
        match self {
            Machine::Pushdown(it) => Ok(it.may_end()),
            Machine::Guided(it) => it.may_end(),
        }
    }

    fn allows(&mut self, token: u32, vocabulary: &Vocabulary) -> Result<bool, GrammarError> {
        match self {
            Machine::Pushdown(it) => it.allows_token(token, vocabulary.text(token)),
            Machine::Guided(it) => it.allows(token, vocabulary),
        }
    }

    /// False when the token is not allowed; then the machine must not be used any more.
    fn accept(&mut self, token: u32, vocabulary: &Vocabulary) -> Result<bool, GrammarError> {
        match self {
            Machine::Pushdown(it) => it.accept_token(token, vocabulary.text(token)),
            Machine::Guided(it) => it.accept(&[token]),
        }
    }

    fn allowed(&mut self, vocabulary: &Vocabulary) -> Result<TokenSet, GrammarError> {
        match self {
            Machine::Pushdown(it) => it.allowed(vocabulary),
            Machine::Guided(it) => it.allowed(vocabulary),
        }
    }
}

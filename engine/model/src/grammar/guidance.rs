//! JSON schemas and Lark, followed by llguidance.

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use super::{GrammarError, Vocabulary};
use crate::protocol::GrammarText;
use crate::sampler::TokenSet;

/// White space between two parts of a JSON text: enough to be laid out, and an end for models that would go on for ever.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,20}";

/// An answer's way through a grammar.
#[derive(Clone)]
pub(super) struct Guided {
    matcher: Matcher,
    /// White space behind the end serves nobody.
    is_json: bool,
}

impl Guided {
    pub(super) fn new(text: &GrammarText, factory: &ParserFactory) -> Result<Self, GrammarError> {
        let (grammar, is_json) = match text {
            GrammarText::JsonSchema(text) => {
                (TopLevelGrammar::from_json_schema(schema(text)?), true)
            }
            GrammarText::Lark(text) | GrammarText::Gbnf(text) => {
                (TopLevelGrammar::from_lark(text.clone()), false)
            }
        };
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Refused(one_line(&error)));
        }
        for warning in matcher.grammar_warnings() {
            tracing::debug!("grammar: {}", one_line(&warning));
        }
        Ok(Guided { matcher, is_json })
    }

    pub(super) fn may_end(&mut self) -> Result<bool, GrammarError> {
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return Ok(true);
        }
        self.matcher.is_accepting().map_err(too_much)
    }

    pub(super) fn allows(
        &mut self,
        token: u32,
        vocabulary: &Vocabulary,
    ) -> Result<bool, GrammarError> {
        if self.has_ended()? || vocabulary.text(token).is_empty() {
            return Ok(false);
        }
        if self.is_json && is_blank(vocabulary.text(token)) && self.may_end()? {
            return Ok(false);
        }
        let valid = self.matcher.validate_tokens(&[token]);
        Ok(valid.map_err(too_much)? == 1)
    }

    pub(super) fn accept(&mut self, tokens: &[u32]) -> Result<bool, GrammarError> {
        if self.has_ended()? {
            return Ok(tokens.is_empty());
        }
        let taken = self.matcher.try_consume_tokens(tokens).map_err(too_much)?;
        Ok(taken == tokens.len())
    }

    pub(super) fn allowed(&mut self, vocabulary: &Vocabulary) -> Result<TokenSet, GrammarError> {
        if self.has_ended()? {
            return Ok(TokenSet::none(vocabulary.n_vocab()));
        }
        let mut allowed = vocabulary.set_of(&self.matcher.compute_mask_or_eos().map_err(too_much)?);
        if self.is_json && self.may_end()? {
            let blank: Vec<u32> = allowed
                .tokens()
                .filter(|&token| is_blank(vocabulary.text(token)))
                .collect();
            for token in blank {
                allowed.set(token, false);
            }
        }
        Ok(allowed)
    }

    fn has_ended(&self) -> Result<bool, GrammarError> {
        match self.matcher.get_error() {
            Some(error) => Err(GrammarError::TooMuch(one_line(&error))),
            None => Ok(self.matcher.is_stopped()),
        }
    }
}

fn is_blank(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_whitespace)
}

/// The schema with our choices where JSON Schema leaves some.
fn schema(text: &str) -> Result<Value, GrammarError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(schema)) => Ok(with_choices(schema)),
        Ok(Value::Bool(true)) => Ok(with_choices(Map::new())),
        Ok(other) => Err(GrammarError::Refused(format!(
            "a schema is an object, found `{other}`"
        ))),
        Err(error) => Err(GrammarError::Refused(format!("not JSON: {error}"))),
    }
}

pub(super) fn with_choices(mut schema: Map<String, Value>) -> Value {
    let choices = json!({
        "whitespace_pattern": WHITE_SPACE,
        "coerce_one_of": true,
        "lenient": true,
    });
    schema.insert("x-guidance".to_owned(), choices);
    Value::Object(schema)
}

fn too_much(error: impl std::fmt::Display) -> GrammarError {
    GrammarError::TooMuch(one_line(&format!("{error:#}")))
}

/// llguidance shows where it stands in several lines.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 400;
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
    }
    line
}

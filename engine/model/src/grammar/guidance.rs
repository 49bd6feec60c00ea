//! JSON schemas and Lark, followed by llguidance.

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Map, Value, json};

use super::schema::{check, normalized, object_at_least};
use super::{GrammarError, Vocabulary};
use crate::protocol::GrammarText;
use crate::sampler::TokenSet;

/// Between two items of a JSON text: white space nowhere else, and never two in a row, since small models go on with blanks
/// wherever they may.
const ITEM_SEPARATOR: &str = r",\x20?";
/// Between a key and its value.
const KEY_SEPARATOR: &str = r":\x20?";

/// An answer's way through a grammar.
#[derive(Clone)]
pub(super) struct Guided {
    matcher: Matcher,
}

impl Guided {
    pub(super) fn new(text: &GrammarText, factory: &ParserFactory) -> Result<Self, GrammarError> {
        let grammar = match text {
            GrammarText::JsonSchema(text) => TopLevelGrammar::from_json_schema(schema(text)?),
            GrammarText::Lark(text) | GrammarText::Gbnf(text) => {
                TopLevelGrammar::from_lark(text.clone())
            }
        };
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(GrammarError::Refused(one_line(&error)));
        }
        for warning in matcher.grammar_warnings() {
            tracing::debug!("grammar: {}", one_line(&warning));
        }
        Ok(Guided { matcher })
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
        Ok(vocabulary.set_of(&self.matcher.compute_mask_or_eos().map_err(too_much)?))
    }

    fn has_ended(&self) -> Result<bool, GrammarError> {
        match self.matcher.get_error() {
            Some(error) => Err(GrammarError::TooMuch(one_line(&error))),
            None => Ok(self.matcher.is_stopped()),
        }
    }
}

/// The schema with our choices where JSON Schema leaves some.
fn schema(text: &str) -> Result<Value, GrammarError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(schema)) => {
            check(&schema)?;
            Ok(with_choices(object_at_least(schema)))
        }
        Ok(Value::Bool(true)) => Ok(with_choices(Map::new())),
        Ok(other) => Err(GrammarError::Refused(format!(
            "a schema is an object, found `{other}`"
        ))),
        Err(error) => Err(GrammarError::Refused(format!("not JSON: {error}"))),
    }
}

pub(super) fn with_choices(schema: Map<String, Value>) -> Value {
    let mut schema = normalized(schema);
    let choices = json!({
        "whitespace_flexible": false,
        "item_separator": ITEM_SEPARATOR,
        "key_separator": KEY_SEPARATOR,
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

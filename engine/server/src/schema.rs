//! What requests and replies are made of: tables of fields that check what comes in and describe it in `/openapi.json`.
//!
//! The same table does both, so the description can't say what is not enforced; and a field that is read without standing in
//! a table fails a debug assertion.

pub(crate) mod replies;
pub(crate) mod requests;

use std::fmt;

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::request::expected;

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    Any,
    Bool,
    /// At least and at most; `5.0` is one.
    Integer(i64, i64),
    Number,
    Text,
    /// One of these strings.
    Word(&'static [&'static str]),
    List(&'static Kind),
    /// With at least one.
    Filled(&'static Kind),
    /// With these fields, and perhaps others.
    Object(&'static [Field]),
    /// With any fields.
    Map,
    /// Any of these.
    Either(&'static [Kind]),
    Null,
}

/// Any integer.
pub(crate) const INTEGER: Kind = Kind::Integer(i64::MIN, i64::MAX);
/// An integer that is not negative.
pub(crate) const COUNT: Kind = Kind::Integer(0, i64::MAX);

/// A field of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field {
    /// The first one that is there counts.
    pub(crate) names: &'static [&'static str],
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    /// One line.
    pub(crate) help: &'static str,
}

/// An optional field; `null` counts as absent.
pub(crate) const fn field(names: &'static [&'static str], kind: Kind, help: &'static str) -> Field {
    Field {
        names,
        kind,
        required: false,
        help,
    }
}

/// A field that must be there.
pub(crate) const fn required(
    names: &'static [&'static str],
    kind: Kind,
    help: &'static str,
) -> Field {
    Field {
        required: true,
        ..field(names, kind, help)
    }
}

/// Checks a request body.
///
/// # Errors
/// 400 naming the first field that is missing or wrong.
pub(crate) fn check(body: &Map<String, Value>, fields: &[Field]) -> Result<(), ApiError> {
    check_fields(&Place::Body, body, fields)
}

/// Where in the body a value stands; written out only for an error.
enum Place<'a> {
    Body,
    Field(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Body => Ok(()),
            Place::Field(Place::Body, name) => f.write_str(name),
            Place::Field(outer, name) => write!(f, "{outer}.{name}"),
            Place::Item(outer, i) => write!(f, "{outer}[{i}]"),
        }
    }
}

impl Place<'_> {
    fn error(&self, problem: impl fmt::Display) -> ApiError {
        ApiError::field(&self.to_string(), problem)
    }
}

fn check_fields(
    at: &Place<'_>,
    map: &Map<String, Value>,
    fields: &[Field],
) -> Result<(), ApiError> {
    for field in fields {
        let mut there = false;
        for name in field.names {
            if let Some(value) = map.get(*name).filter(|value| !value.is_null()) {
                there = true;
                check_value(&Place::Field(at, name), value, &field.kind)?;
            }
        }
        if field.required && !there {
            let name = field.names[0];
            return Err(match at {
                Place::Body => ApiError::field(name, "is missing"),
                at => at.error(format!("`{name}` is missing")),
            });
        }
    }
    Ok(())
}

fn check_value(at: &Place<'_>, value: &Value, kind: &Kind) -> Result<(), ApiError> {
    match (kind, value) {
        (Kind::Filled(_), Value::Array(items)) if items.is_empty() => {
            Err(at.error("must not be empty"))
        }
        (Kind::List(kind) | Kind::Filled(kind), Value::Array(items)) => items
            .iter()
            .enumerate()
            .try_for_each(|(i, item)| check_value(&Place::Item(at, i), item, kind)),
        (Kind::Object(fields), Value::Object(map)) => check_fields(at, map, fields),
        (Kind::Either(kinds), value) => check_either(at, value, kinds),
        (Kind::Word(words), Value::String(word)) if !words.contains(&word.as_str()) => {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            Err(at.error(format!("found `{word}`, expected {}", words.join(" or "))))
        }
        (Kind::Integer(low, high), Value::Number(_)) if is_whole(value) => {
            let number = value.as_f64().unwrap_or(0.0);
            let bound = match number {
                n if n < *low as f64 && *low != i64::MIN => format!("at least {low}"),
                n if n > *high as f64 && *high != i64::MAX => format!("at most {high}"),
                _ => return Ok(()),
            };
            Err(at.error(format!("found {value}, expected {bound}")))
        }
        (kind, value) if kind.takes(value) => Ok(()),
        (kind, value) => Err(at.error(expected(&kind.words(), value))),
    }
}

/// The first kind of the value's JSON type tells the problem, if no other takes the value.
fn check_either(at: &Place<'_>, value: &Value, kinds: &[Kind]) -> Result<(), ApiError> {
    let mut problem = None;
    for kind in kinds.iter().filter(|kind| kind.takes(value)) {
        match check_value(at, value, kind) {
            Ok(()) => return Ok(()),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    let words: Vec<String> = kinds.iter().map(Kind::words).collect();
    Err(problem.unwrap_or_else(|| at.error(expected(&words.join(" or "), value))))
}

fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|x| x.fract() == 0.0)
}

impl Kind {
    /// Whether the JSON type is right.
    fn takes(&self, value: &Value) -> bool {
        match self {
            Kind::Any => true,
            Kind::Null => value.is_null(),
            Kind::Bool => value.is_boolean(),
            Kind::Integer(..) => is_whole(value),
            Kind::Number => value.is_number(),
            Kind::Text | Kind::Word(_) => value.is_string(),
            Kind::List(_) | Kind::Filled(_) => value.is_array(),
            Kind::Object(_) | Kind::Map => value.is_object(),
            Kind::Either(kinds) => kinds.iter().any(|kind| kind.takes(value)),
        }
    }

    fn words(&self) -> String {
        match self {
            Kind::Any => "a value".into(),
            Kind::Null => "null".into(),
            Kind::Bool => "a boolean".into(),
            Kind::Integer(..) => "an integer".into(),
            Kind::Number => "a number".into(),
            Kind::Text | Kind::Word(_) => "a string".into(),
            Kind::List(Kind::Text) => "an array of strings".into(),
            Kind::List(_) | Kind::Filled(_) => "an array".into(),
            Kind::Object(_) | Kind::Map => "an object".into(),
            Kind::Either(kinds) => {
                let words: Vec<String> = kinds.iter().map(Kind::words).collect();
                words.join(" or ")
            }
        }
    }

    /// As JSON schema, draft 2020-12.
    pub(crate) fn json_schema(&self) -> Value {
        match self {
            Kind::Any => json!({}),
            Kind::Null => json!({ "type": "null" }),
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Integer(low, high) => {
                let mut out = json!({ "type": "integer" });
                if *low != i64::MIN {
                    out["minimum"] = json!(low);
                }
                if *high != i64::MAX {
                    out["maximum"] = json!(high);
                }
                out
            }
            Kind::Number => json!({ "type": "number" }),
            Kind::Text => json!({ "type": "string" }),
            Kind::Word(words) => json!({ "type": "string", "enum": words }),
            Kind::List(kind) => json!({ "type": "array", "items": kind.json_schema() }),
            Kind::Filled(kind) => {
                json!({ "type": "array", "items": kind.json_schema(), "minItems": 1 })
            }
            Kind::Object(fields) => object_schema(fields),
            Kind::Map => json!({ "type": "object" }),
            Kind::Either(kinds) => {
                json!({ "anyOf": kinds.iter().map(Kind::json_schema).collect::<Vec<_>>() })
            }
        }
    }
}

/// The schema of an object with these fields; each name stands for itself.
pub(crate) fn object_schema(fields: &[Field]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut any_of = Vec::new();
    for field in fields {
        for (i, name) in field.names.iter().enumerate() {
            let mut schema = field.kind.json_schema();
            if !field.required && !matches!(field.kind, Kind::Any) {
                schema = json!({ "anyOf": [schema, { "type": "null" }] });
            }
            let help = match i {
                0 => field.help.to_owned(),
                _ => format!("the same as `{}`", field.names[0]),
            };
            if !help.is_empty() {
                schema["description"] = json!(help);
            }
            properties.insert((*name).into(), schema);
        }
        match field.names {
            [name] if field.required => required.push(json!(name)),
            names if field.required => {
                let either = names.iter().map(|name| json!({ "required": [name] }));
                any_of.push(json!({ "anyOf": either.collect::<Vec<_>>() }));
            }
            _ => {}
        }
    }
    let mut out = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        out["required"] = json!(required);
    }
    if !any_of.is_empty() {
        out["allOf"] = json!(any_of);
    }
    out
}

/// Whether a field of this name stands in a table; for debug assertions.
pub(crate) fn is_known(name: &str) -> bool {
    fn in_fields(fields: &[Field], name: &str) -> bool {
        fields
            .iter()
            .any(|field| field.names.contains(&name) || in_kind(&field.kind, name))
    }
    fn in_kind(kind: &Kind, name: &str) -> bool {
        match kind {
            Kind::List(kind) | Kind::Filled(kind) => in_kind(kind, name),
            Kind::Object(fields) => in_fields(fields, name),
            Kind::Either(kinds) => kinds.iter().any(|kind| in_kind(kind, name)),
            _ => false,
        }
    }
    requests::ALL.iter().any(|fields| in_fields(fields, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INNER: &[Field] = &[
        required(&["role"], Kind::Text, ""),
        field(&["n"], COUNT, ""),
    ];
    const OUTER: &[Field] = &[
        required(&["a", "b"], Kind::List(&Kind::Object(INNER)), "a list"),
        field(
            &["c"],
            Kind::Either(&[Kind::Text, Kind::List(&Kind::Text)]),
            "",
        ),
        field(&["d"], Kind::Word(&["x", "y"]), ""),
    ];

    #[test]
    fn problems_name_the_place() {
        for (body, expected) in [
            (json!({}), "Field 'a': is missing"),
            (
                json!({ "a": 1 }),
                "Field 'a': found a number, expected an array",
            ),
            (json!({ "b": [{}] }), "Field 'b[0]': `role` is missing"),
            (
                json!({ "a": [{ "role": 1 }] }),
                "Field 'a[0].role': found a number, expected a string",
            ),
            (
                json!({ "a": [{ "role": "r", "n": -1 }] }),
                "Field 'a[0].n': found -1, expected at least 0",
            ),
            (
                json!({ "a": [], "c": 5 }),
                "Field 'c': found a number, expected a string or an array of strings",
            ),
            (
                json!({ "a": [], "c": [5] }),
                "Field 'c[0]': found a number, expected a string",
            ),
            (
                json!({ "a": [], "d": "z" }),
                "Field 'd': found `z`, expected `x` or `y`",
            ),
        ] {
            let message = check(body.as_object().unwrap(), OUTER).unwrap_err().message;
            assert_eq!(message, expected, "{body}");
        }
        let fine = json!({ "a": [{ "role": "r", "n": 5.0, "more": 1 }], "c": null, "d": "x" });
        assert!(check(fine.as_object().unwrap(), OUTER).is_ok());
    }

    #[test]
    fn as_json_schema() {
        let schema = object_schema(OUTER);
        assert_eq!(
            schema["properties"]["a"]["items"]["required"],
            json!(["role"])
        );
        assert_eq!(
            schema["allOf"][0]["anyOf"],
            json!([{ "required": ["a"] }, { "required": ["b"] }])
        );
        assert_eq!(
            schema["properties"]["d"]["anyOf"][0]["enum"],
            json!(["x", "y"])
        );
    }
}

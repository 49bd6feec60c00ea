//! JSON schemas as clients write them, brought into the form llguidance reads.
//!
//! Where `type` is missing it follows from the other keywords, as in llama.cpp: an empty schema is an object, `items` speak of an
//! array. A list of `items` is a tuple. Keywords that would exclude answers and can't be followed are refused by name; unknown
//! ones and annotations are ignored.

use serde_json::{Map, Value, json};

use super::GrammarError;

/// A keyword, and whether a value of it excludes nothing.
type NotFollowed = (&'static str, fn(&Value) -> bool);

/// Keywords that exclude answers and are not followed, and the values that exclude none.
const NOT_FOLLOWED: &[NotFollowed] = &[
    ("not", |_| false),
    ("if", |_| false),
    ("contains", |_| false),
    ("uniqueItems", |value| *value == json!(false)),
    ("propertyNames", takes_any_name),
    ("dependentRequired", is_empty),
    ("dependentSchemas", is_empty),
    ("dependencies", is_empty),
    ("unevaluatedProperties", takes_all),
    ("unevaluatedItems", takes_all),
    ("$dynamicRef", |_| false),
    ("$recursiveRef", |_| false),
];

/// Keywords that hold one schema.
const ONE: &[&str] = &["items", "additionalProperties", "additionalItems"];
/// Keywords that hold a list of schemas.
const LISTS: &[&str] = &["prefixItems", "anyOf", "oneOf", "allOf"];
/// Keywords that hold schemas by name.
const BY_NAME: &[&str] = &["properties", "patternProperties", "$defs", "definitions"];
/// Keywords that say what a value may be without `type`.
const INSTEAD_OF_TYPE: &[&str] = &["$ref", "anyOf", "oneOf", "allOf", "enum", "const"];

fn takes_all(schema: &Value) -> bool {
    matches!(schema, Value::Bool(true)) || is_empty(schema)
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty)
}

fn takes_any_name(schema: &Value) -> bool {
    takes_all(schema) || *schema == json!({ "type": "string" })
}

/// The first keyword that can't be followed.
///
/// # Errors
/// [`GrammarError::Refused`] with its name and place.
pub(super) fn check(schema: &Map<String, Value>) -> Result<(), GrammarError> {
    let found = find(schema, &mut |schema, place| {
        let mut all = NOT_FOLLOWED.iter();
        let (name, _) = all.find(|(name, is_neutral)| {
            let value = schema.get(*name);
            value.is_some_and(|value| !is_neutral(value))
        })?;
        Some(format!(
            "the keyword `{name}` at `#{place}` can't be followed; leave it out, and check the answer for it"
        ))
    });
    match found {
        Some(problem) => Err(GrammarError::Refused(problem)),
        None => Ok(()),
    }
}

/// What `look` finds first, in the schema and those inside it.
fn find<T>(
    schema: &Map<String, Value>,
    look: &mut impl FnMut(&Map<String, Value>, &str) -> Option<T>,
) -> Option<T> {
    fn inside<T>(
        schema: &Map<String, Value>,
        place: &str,
        look: &mut impl FnMut(&Map<String, Value>, &str) -> Option<T>,
    ) -> Option<T> {
        if let Some(found) = look(schema, place) {
            return Some(found);
        }
        let mut inner: Vec<(String, &Value)> = Vec::new();
        for &name in ONE.iter().chain(LISTS) {
            match schema.get(name) {
                Some(Value::Array(all)) => {
                    let all = all.iter().enumerate();
                    inner.extend(all.map(|(i, it)| (format!("{name}/{i}"), it)));
                }
                Some(one) => inner.push((name.to_owned(), one)),
                None => {}
            }
        }
        for &name in BY_NAME {
            let all = schema.get(name).and_then(Value::as_object);
            let all = all.into_iter().flatten();
            inner.extend(all.map(|(key, it)| (format!("{name}/{key}"), it)));
        }
        inner.into_iter().find_map(|(name, it)| {
            let it = it.as_object()?;
            inside(it, &format!("{place}/{name}"), look)
        })
    }
    inside(schema, "", look)
}

/// The schema, in the form llguidance reads.
pub(super) fn normalized(mut schema: Map<String, Value>) -> Map<String, Value> {
    if has_tuples(&schema) {
        // Read as the newest draft, which has other names for them.
        schema.remove("$schema");
    }
    normalize(&mut schema);
    schema
}

/// Makes a schema that says nothing an object's: what llama.cpp takes an empty one for.
pub(super) fn object_at_least(mut schema: Map<String, Value>) -> Map<String, Value> {
    infer_type(&mut schema);
    let speaks = |name: &&str| schema.contains_key(*name);
    if !speaks(&"type") && !INSTEAD_OF_TYPE.iter().any(speaks) {
        schema.insert("type".to_owned(), json!("object"));
    }
    schema
}

fn has_tuples(schema: &Map<String, Value>) -> bool {
    let is_tuple = |schema: &Map<String, Value>| schema.get("items").is_some_and(Value::is_array);
    find(schema, &mut |schema, _| is_tuple(schema).then_some(())).is_some()
}

fn normalize(schema: &mut Map<String, Value>) {
    make_tuple(schema);
    infer_type(schema);
    if let Some(Value::String(pattern)) = schema.get_mut("pattern") {
        *pattern = rewritten(pattern);
    }
    if let Some(Value::Object(by_pattern)) = schema.get_mut("patternProperties") {
        let old = std::mem::take(by_pattern);
        by_pattern.extend(old.into_iter().map(|(key, it)| (rewritten(&key), it)));
    }
    let inner = schema.iter_mut().flat_map(|(name, value)| match value {
        one if ONE.contains(&name.as_str()) => vec![one],
        Value::Array(all) if LISTS.contains(&name.as_str()) => all.iter_mut().collect(),
        Value::Object(all) if BY_NAME.contains(&name.as_str()) => {
            all.iter_mut().map(|(_, it)| it).collect()
        }
        _ => Vec::new(),
    });
    for it in inner {
        if let Value::Object(it) = it {
            normalize(it);
        }
    }
}

/// A list of `items` as newer drafts write it: exactly these, unless the schema speaks of more or fewer.
fn make_tuple(schema: &mut Map<String, Value>) {
    let Some(Value::Array(items)) = schema.get("items").cloned() else {
        return;
    };
    let others = schema.remove("additionalItems").unwrap_or(json!(false));
    let least = json!(items.len());
    schema.entry("minItems").or_insert(least);
    schema.insert("prefixItems".to_owned(), Value::Array(items));
    schema.insert("items".to_owned(), others);
}

fn infer_type(schema: &mut Map<String, Value>) {
    let has = |names: &[&str]| names.iter().any(|name| schema.contains_key(*name));
    if has(&["type"]) || has(INSTEAD_OF_TYPE) {
        return;
    }
    let kind = if has(&["properties", "patternProperties", "additionalProperties"]) {
        "object"
    } else if has(&["items", "prefixItems"]) {
        "array"
    } else if has(&["pattern", "format", "minLength", "maxLength"]) {
        "string"
    } else {
        return;
    };
    schema.insert("type".to_owned(), json!(kind));
}

/// JavaScript's `\u0041` as llguidance reads it.
fn rewritten(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let digits = escape.strip_prefix("\\u").and_then(|it| it.get(..4));
        let digits = digits.filter(|it| it.bytes().all(|byte| byte.is_ascii_hexdigit()));
        rest = match digits {
            Some(digits) => {
                out.push_str(&format!("\\x{{{digits}}}"));
                &escape[6..]
            }
            None => {
                let end = escape
                    .char_indices()
                    .nth(2)
                    .map_or(escape.len(), |(end, _)| end);
                out.push_str(&escape[..end]);
                &escape[end..]
            }
        };
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_become_what_is_read() {
        for (pattern, expected) in [
            (r"^[a-z]\u0020?$", r"^[a-z]\x{0020}?$"),
            (r"\\u0020", r"\\u0020"),
            (r"\d\\\u00e9", r"\d\\\x{00e9}"),
            (r"\u12", r"\u12"),
            (r"é\", r"é\"),
            ("", ""),
        ] {
            assert_eq!(rewritten(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn keywords_that_cannot_be_followed_are_named_with_their_place() {
        let refused = |schema: Value| check(schema.as_object().unwrap()).unwrap_err().to_string();
        let nested =
            json!({ "properties": { "a": { "items": { "anyOf": [{}, { "not": {} }] } } } });
        let message = refused(nested);
        assert!(
            message.contains("`not` at `#/properties/a/items/anyOf/1`"),
            "{message}"
        );
        assert!(refused(json!({ "uniqueItems": true })).contains("`uniqueItems` at `#`"));
        let fine = json!({
            "uniqueItems": false, "propertyNames": { "type": "string" }, "unevaluatedItems": true,
            "x-own": 1, "title": "not", "enum": [{ "not": 1 }], "properties": { "not": { "type": "string" } },
        });
        assert!(check(fine.as_object().unwrap()).is_ok());
    }
}

//! Grammars against the languages they describe, over small vocabularies.

use std::collections::BTreeSet;

use bitnet_kernels::SharedBytes;
use serde_json::{Value, json};

use super::gbnf::{Element, Rules};
use super::*;
use crate::gguf::Gguf;
use crate::protocol::Overrides;
use crate::sampler::uniform;
use crate::synth::{self, Shape};
use crate::tokenizer::Tokenizer;

fn tokenizer(shape: &str) -> Tokenizer {
    let bytes = synth::to_bytes(&Shape::preset(shape).unwrap(), 3).unwrap();
    let gguf = Gguf::from_bytes(SharedBytes::new(bytes)).unwrap();
    Tokenizer::from_gguf(&gguf, &Overrides::default()).unwrap()
}

fn vocabulary() -> Arc<Vocabulary> {
    Arc::new(Vocabulary::new(&tokenizer("tiny")).unwrap())
}

fn gbnf(text: &str) -> Grammar {
    Grammar {
        text: GrammarText::Gbnf(text.to_owned()),
        triggers: None,
    }
}

fn schema(schema: &Value) -> Grammar {
    Grammar {
        text: GrammarText::JsonSchema(schema.to_string()),
        triggers: None,
    }
}

fn lark(text: &str) -> Grammar {
    Grammar {
        text: GrammarText::Lark(text.to_owned()),
        triggers: None,
    }
}

fn refusal(grammar: &Grammar) -> String {
    match check(grammar, || Ok(vocabulary())) {
        Ok(()) => panic!("not refused: {grammar:?}"),
        Err(error) => error.to_string(),
    }
}

/// Whether the answer may be `text`: as tokens of one byte each, then the end.
fn accepts(grammar: &Grammar, vocabulary: &Arc<Vocabulary>, text: &str) -> bool {
    let mut constraint = Constraint::new(grammar, vocabulary, &[]).unwrap();
    for byte in text.bytes() {
        let token = vocabulary.trie().token_id(&[byte]).unwrap();
        if !constraint.allows(token).unwrap() {
            return false;
        }
        constraint.accept(token).unwrap();
    }
    constraint.allows(vocabulary.eog()[0]).unwrap()
}

/// Answers until the end by drawing among the allowed tokens; the ends of long ones are forced by preferring the end.
fn answer(grammar: &Grammar, vocabulary: &Arc<Vocabulary>, seed: u32) -> String {
    let mut constraint = Constraint::new(grammar, vocabulary, &[]).unwrap();
    let (mut text, mut tokens) = (Vec::new(), Vec::new());
    for position in 0..3000 {
        let allowed = constraint.allowed().unwrap().clone();
        let choices: Vec<u32> = allowed.tokens().collect();
        assert!(
            !choices.is_empty(),
            "stuck after {}",
            String::from_utf8_lossy(&text)
        );
        let end = choices.iter().find(|&&token| vocabulary.is_eog(token));
        let must_end = choices.iter().all(|&token| vocabulary.is_eog(token));
        if end.is_some() && (position > 30 || must_end) {
            let mut again = Constraint::new(grammar, vocabulary, &tokens).unwrap();
            assert_eq!(*again.allowed().unwrap(), allowed, "replayed");
            return String::from_utf8(text).unwrap();
        }
        // Late, prefer what closes: the shortest, in the order of their bytes reversed.
        let mut inner: Vec<u32> = choices
            .iter()
            .copied()
            .filter(|&token| !vocabulary.is_eog(token))
            .collect();
        if position > 300 {
            let closes = |token: &u32| {
                let text = vocabulary.text(*token);
                !matches!(text, b"\"" | b"}" | b"]" | b")" | b"/")
            };
            inner.sort_by_key(|token| (closes(token), vocabulary.text(*token).len()));
            inner.truncate(1);
        }
        let token = inner[(uniform(seed, position) * inner.len() as f64) as usize];
        assert!(constraint.allows(token).unwrap());
        constraint.accept(token).unwrap();
        tokens.push(token);
        text.extend_from_slice(vocabulary.text(token));
    }
    panic!("no end: {}", String::from_utf8_lossy(&text));
}

const ALPHABET: &str = "ab01,[é";

/// All texts of the grammar over the alphabet with at most `longest` characters.
fn language(rules: &Rules, longest: usize) -> BTreeSet<String> {
    let mut of: Vec<BTreeSet<String>> = vec![BTreeSet::new(); rules.rules.len()];
    loop {
        let mut is_done = true;
        for id in 0..rules.rules.len() {
            for &start in &rules.rules[id] {
                let mut texts = BTreeSet::from([String::new()]);
                for element in rules.elements[start as usize..].iter() {
                    let nexts: Vec<String> = match element {
                        Element::End => break,
                        Element::Token(_) | Element::NotToken(_) => panic!("no text"),
                        Element::Rule(id) => of[*id as usize].iter().cloned().collect(),
                        Element::Class(class) => ALPHABET
                            .chars()
                            .filter(|&c| {
                                let ranges = &rules.classes[*class as usize];
                                ranges.iter().any(|r| (r.0..=r.1).contains(&u32::from(c)))
                            })
                            .map(String::from)
                            .collect(),
                    };
                    texts = texts
                        .iter()
                        .flat_map(|text| nexts.iter().map(move |next| format!("{text}{next}")))
                        .filter(|text| text.chars().count() <= longest)
                        .collect();
                }
                for text in texts {
                    is_done &= !of[id].insert(text);
                }
            }
        }
        if is_done {
            return of[rules.root as usize].clone();
        }
    }
}

#[test]
fn the_automaton_follows_the_language() {
    let vocabulary = vocabulary();
    let grammars = [
        r#"root ::= "a" | "b""#,
        r#"root ::= [a-b]* "b""#,
        r#"root ::= "a"{2,4} "b"?"#,
        r#"root ::= ("a" | "ab" | "abb")+ "0""#,
        "root ::= x \",\" x\nx ::= [01]+ | \"é\"",
        r#"root ::= "[" (root ("," root)*)? | "a""#,
        r#"root ::= "a" root "b" | "a" root "0" | """#,
        r#"root ::= [^a0]{1,3} ."#,
        "root ::= y? z\ny ::= \"a\"*\nz ::= \"a\" \"1\"",
        r#"root ::= "\u00e9" [é]? | [\x61]"#,
        r#"root ::= (("a"?)? "b"?)* "1""#,
        "root ::= a | b # both\n\n# nothing\na ::= (\n  \"a\" # one\n  | \"0\"\n)\nb ::= \"b\"\n  | \"1\" |\n \",\"",
    ];
    for text in grammars {
        let mut none = |_: TokenName<'_>| Ok(None);
        let rules = gbnf::parse(text, &mut none).unwrap_or_else(|error| panic!("{text}: {error}"));
        let language = language(&rules, 11);
        assert!(!language.is_empty(), "{text}");
        let mut texts: BTreeSet<String> = BTreeSet::from([String::new()]);
        for word in language.iter() {
            let ends = word.char_indices().map(|(end, _)| end).chain([word.len()]);
            texts.extend(
                ends.map(|end| word[..end].to_owned())
                    .filter(|it| it.chars().count() <= 3),
            );
        }
        for before in texts {
            let mut constraint = Constraint::new(&gbnf(text), &vocabulary, &[]).unwrap();
            for byte in before.bytes() {
                constraint
                    .accept(vocabulary.trie().token_id(&[byte]).unwrap())
                    .unwrap_or_else(|error| panic!("{text}: {before}: {error}"));
            }
            let judged: Vec<bool> = (0..vocabulary.n_vocab() as u32)
                .map(|token| constraint.allows(token).unwrap())
                .collect();
            let allowed = constraint.allowed().unwrap();
            for token in 0..vocabulary.n_vocab() as u32 {
                let piece = vocabulary.text(token);
                let is_ours = std::str::from_utf8(piece)
                    .is_ok_and(|piece| piece.chars().all(|c| ALPHABET.contains(c)))
                    || ["é".as_bytes()[..1] == *piece, "é".as_bytes()[1..] == *piece]
                        .contains(&true);
                assert_eq!(
                    judged[token as usize],
                    allowed.contains(token),
                    "{text}: {before}"
                );
                if vocabulary.is_eog(token) {
                    assert_eq!(
                        allowed.contains(token),
                        language.contains(&before),
                        "{text}: `{before}` ends"
                    );
                } else if is_ours && !piece.is_empty() && piece.len() <= 2 {
                    let after = [before.as_bytes(), piece].concat();
                    let expected = language
                        .iter()
                        .any(|word| word.as_bytes().starts_with(&after));
                    assert_eq!(
                        allowed.contains(token),
                        expected,
                        "{text}: `{before}` + {piece:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn broken_gbnf_is_refused_where_it_is_broken() {
    for (text, expected) in [
        ("", "line 1, column 1: there is no rule `root`"),
        ("a ::= \"x\"", "there is no rule `root`"),
        (
            "root ::= b \"x\"",
            "line 1, column 10: rule `b` is not defined",
        ),
        (
            "root ::= \"x",
            "line 1, column 10: this `\"` is never closed",
        ),
        ("root ::= [a", "line 1, column 10: this `[` is never closed"),
        ("root ::= [b-a]", "ends before it begins"),
        (
            "root ::= (\"a\"",
            "found the end of the grammar, expected `)`",
        ),
        ("root ::= \"a\")", "found `)`, expected the end of the line"),
        ("root := \"a\"", "found `=`, expected `::=`"),
        (
            "root ::= \"a\"\n\nx ::= \"\\q\"",
            "line 3, column 8: the escape `\\q` is not known",
        ),
        ("root ::= \"\\x4\"", "2 hexadecimal digits"),
        (
            "root ::= \"\\ud800\"",
            "4 hexadecimal digits of a character",
        ),
        ("root ::= \"a\"{3,1}", "at least 3 and at most 1"),
        ("root ::= \"a\"{,1}", "found `,`, expected a number"),
        (
            "root ::= \"a\"{1",
            "found the end of the grammar, expected `}`",
        ),
        ("root ::= \"a\"{99999999999999999999}", "too large"),
        ("root ::= \"a\"{9999999}", "more than 200000 elements"),
        ("root ::= *", "found `*`"),
        (
            "root ::= <[12345678]>",
            "column 10: the vocabulary has no token `<[12345678]>`",
        ),
        (
            "root ::= <nobody>",
            "the vocabulary has no token `<nobody>`",
        ),
        ("root ::= <[12>", "`]>`"),
        ("root ::= <[a]>", "a number"),
        ("root ::= <think", "`>`"),
        ("root ::= !\"a\"", "a token"),
        ("root ::= \"a\" | <[5]> x", "`x` is not defined"),
        (
            "root ::= root \"a\" | \"b\"",
            "rule `root` begins with itself",
        ),
        (
            "root ::= a\na ::= b? c\nb ::= \"x\"\nc ::= a \"y\" | \"z\"",
            "begins with itself",
        ),
        ("root ::= (\"\")* (root)", "begins with itself"),
    ] {
        let found = refusal(&gbnf(text));
        assert!(found.contains(expected), "{text}: {found}");
    }
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000));
    assert!(refusal(&gbnf(&deep)).contains("groups inside each other"));
    let long = format!("root ::= \"{}\"", "a".repeat(MAX_GRAMMAR_BYTES));
    assert!(refusal(&gbnf(&long)).contains("at most 262144 are read"));
}

/// The shape of llama.cpp's own json.gbnf.
const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn a_json_grammar_gives_json() {
    let vocabulary = vocabulary();
    for seed in 0..8 {
        let text = answer(&gbnf(JSON), &vocabulary, seed);
        let value: Result<Value, _> = serde_json::from_str(&text);
        match value {
            Ok(value) => assert!(value.is_object(), "{text}"),
            // Any exponent is JSON.
            Err(error) => assert!(
                error.to_string().contains("out of range"),
                "{error}: {text}"
            ),
        }
    }
    for (text, is_json) in [
        (r#"{"a": [1, -2.5e3, "é\u00e9", {}], "b": null}"#, true),
        (r#"{"a": 01}"#, false),
        (r#"{"a": "\x"}"#, false),
        ("[1]", false),
        (r#"{"a""#, false),
    ] {
        assert_eq!(accepts(&gbnf(JSON), &vocabulary, text), is_json, "{text}");
    }
}

#[test]
fn grammars_with_too_many_readings_end_in_an_error() {
    let vocabulary = vocabulary();
    let doubling = gbnf(r#"root ::= "a" root "b" | "a" root "c" | "d""#);
    let mut constraint = Constraint::new(&doubling, &vocabulary, &[]).unwrap();
    let a = vocabulary.trie().token_id(b"a").unwrap();
    let end = (0..100).find_map(|_| constraint.accept(a).err());
    assert!(matches!(end, Some(GrammarError::TooMuch(_))), "{end:?}");
    // Many rules, one reading: fine.
    let many = gbnf(r#"root ::= ([a-z] | "x" | "y"){0,5000}"#);
    let mut constraint = Constraint::new(&many, &vocabulary, &[]).unwrap();
    for _ in 0..5000 {
        constraint.accept(a).unwrap();
    }
    assert_eq!(
        constraint.allowed().unwrap().count(),
        vocabulary.eog().len()
    );
    assert!(constraint.accept(a).is_err());
}

#[test]
fn states_are_forgotten_and_found_again() {
    let vocabulary = vocabulary();
    let nested = gbnf(r#"root ::= "[" root "]" | [a-z]{0,3}"#);
    let mut constraint = Constraint::new(&nested, &vocabulary, &[]).unwrap();
    let id = |byte: u8| vocabulary.trie().token_id(&[byte]).unwrap();
    for _ in 0..20_000 {
        constraint.accept(id(b'[')).unwrap();
    }
    constraint.accept(id(b'q')).unwrap();
    for _ in 0..20_000 {
        assert!(!constraint.allows(vocabulary.eog()[0]).unwrap());
        constraint.accept(id(b']')).unwrap();
    }
    assert!(constraint.allows(vocabulary.eog()[0]).unwrap());
    assert!(!constraint.allows(id(b']')).unwrap());
}

#[test]
fn schemas_give_what_fits_them() {
    let vocabulary = vocabulary();
    let person = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["cat", "dog"]},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": false,
        "$defs": {"tag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
    });
    let mut kinds = BTreeSet::new();
    for seed in 0..30 {
        let text = answer(&schema(&person), &vocabulary, seed);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        let map = value.as_object().unwrap();
        assert_eq!(map.len(), 4, "{text}");
        assert!(
            value["name"].as_str().unwrap().chars().count() <= 12,
            "{text}"
        );
        assert!(value["age"].as_u64().unwrap() <= 150, "{text}");
        let tags = value["tags"].as_array().unwrap();
        assert!((1..=3).contains(&tags.len()), "{text}");
        assert!(
            tags.iter().all(|tag| tag.is_boolean() || tag.is_null()),
            "{text}"
        );
        kinds.insert(value["kind"].as_str().unwrap().to_owned());
        assert_eq!(text.trim(), text, "no white space around it");
    }
    assert_eq!(Vec::from_iter(kinds), ["cat", "dog"]);
    for seed in 0..5 {
        assert_eq!(
            answer(&schema(&json!({"const": "42"})), &vocabulary, seed),
            "\"42\""
        );
        let object = answer(&schema(&json!({"type": "object"})), &vocabulary, seed);
        assert!(serde_json::from_str::<Value>(&object).unwrap().is_object());
    }
    assert!(accepts(
        &schema(&json!(true)),
        &vocabulary,
        "[1, {\"a\": null}]"
    ));
    assert!(!accepts(
        &schema(&json!({"type": "object"})),
        &vocabulary,
        "{}  "
    ));
}

#[test]
fn json_has_one_blank_between_parts_at_most() {
    let vocabulary = vocabulary();
    let any = schema(&json!(true));
    let rule = lark(&format!(
        "start: \"=\" value\nvalue: {}\n",
        json_rule(&json!({}))
    ));
    for (text, expected) in [
        (r#"[1, {"a": null}, "x"]"#, true),
        (r#"[1,{"a":null},"x"]"#, true),
        (r#"{"a  b": "  c\n   d ", "e": []}"#, true),
        ("[1,  2]", false),
        ("[1 ,2]", false),
        ("[ 1]", false),
        ("[1 ]", false),
        ("[1,\n2]", false),
        ("[1,\t2]", false),
        ("[ ]", false),
        (r#"{ "a": 1}"#, false),
        (r#"{"a" : 1}"#, false),
        (r#"{"a":  1}"#, false),
        (r#"{"a": 1 }"#, false),
        (" 1", false),
        ("{} ", false),
        ("true\n", false),
    ] {
        assert_eq!(accepts(&any, &vocabulary, text), expected, "{text}");
        let in_rule = format!("={text}");
        assert_eq!(accepts(&rule, &vocabulary, &in_rule), expected, "{in_rule}");
    }
}

/// What small models do: a blank wherever one may stand, as many as one token holds.
#[test]
fn a_liking_for_blanks_does_not_keep_json_from_its_end() {
    let vocabulary = vocabulary();
    let form = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "legs": {"type": "integer", "minimum": 4, "maximum": 9},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 3, "maxItems": 3},
        },
        "required": ["name", "legs", "tags"],
        "additionalProperties": false,
    });
    let mut constraint = Constraint::new(&schema(&form), &vocabulary, &[]).unwrap();
    let mut text = Vec::new();
    for _ in 0..200 {
        let allowed = constraint.allowed().unwrap().clone();
        let blanks = |token: u32| {
            let text = vocabulary.text(token);
            text.iter()
                .take_while(|it| it.is_ascii_whitespace())
                .count()
        };
        let token = allowed.tokens().max_by_key(|&token| blanks(token)).unwrap();
        if vocabulary.is_eog(token) {
            break;
        }
        constraint.accept(token).unwrap();
        text.extend_from_slice(vocabulary.text(token));
    }
    let text = String::from_utf8(text).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value["name"].as_str().unwrap().starts_with(' '), "{text}");
    assert!(text.len() <= 64, "{text}");
}

#[test]
fn schemas_mean_what_llama_cpp_makes_of_them() {
    let draft_7 = "http://json-schema.org/draft-07/schema#";
    let tuple = json!({"$schema": draft_7, "items": [{"type": "integer"}, {"const": "x"}]});
    let open_tuple = json!({"items": [{"type": "integer"}], "additionalItems": {"type": "null"}});
    for (of, fits, text) in [
        (json!({}), true, "{\"a\":1}"),
        (json!({"title": "nothing said"}), false, "5"),
        (json!({"items": {"type": "integer"}}), true, "[1,2]"),
        (json!({"items": {"type": "integer"}}), false, "{}"),
        (json!({"items": {"type": "integer"}}), false, "7"),
        (
            json!({"properties": {"a": {"items": {}}}, "required": ["a"]}),
            true,
            "{\"a\":[5]}",
        ),
        (
            json!({"properties": {"a": {"items": {}}}, "required": ["a"]}),
            false,
            "{\"a\":5}",
        ),
        (
            json!({"properties": {"a": {}}, "required": ["a"]}),
            true,
            "{\"a\":5}",
        ),
        (tuple.clone(), true, "[1,\"x\"]"),
        (tuple.clone(), false, "[1]"),
        (tuple, false, "[1,\"x\",2]"),
        (open_tuple.clone(), true, "[1,null,null]"),
        (open_tuple, false, "[1,2]"),
        (json!({"pattern": "^a\\u0020\\u0062$"}), true, "\"a b\""),
        (json!({"pattern": "^a\\u0020\\u0062$"}), false, "\"a c\""),
        (
            json!({"type": "string", "pattern": "^[\\u0041-\\u0043]+$"}),
            true,
            "\"ABC\"",
        ),
        (
            json!({"type": "string", "pattern": "^\\d{2}\\/\\d{2}$"}),
            true,
            "\"12/34\"",
        ),
        (
            json!({"type": "string", "format": "nobody-knows", "x-mine": {"not": 1}}),
            true,
            "\"z\"",
        ),
        (
            json!({"$schema": "https://example.com/schema", "type": "integer"}),
            true,
            "3",
        ),
    ] {
        let found = matches(&schema(&of), text).unwrap_or_else(|e| panic!("{e}: {of}"));
        assert_eq!(found, fits, "{of}: {text}");
    }
}

#[test]
fn broken_schemas_and_lark_are_refused() {
    for (broken, expected) in [
        (
            json!({"type": "array", "uniqueItems": true}),
            "`uniqueItems` at `#`",
        ),
        (
            json!({"properties": {"a": {"if": {"const": 1}, "then": {}}}}),
            "`if` at `#/properties/a`",
        ),
        (json!(123), "a schema is an object"),
        (json!({"type": "hiccup"}), "hiccup"),
        (json!({"$ref": "https://example.com/x.json"}), "ref"),
        (json!({"type": "string", "pattern": "("}), ""),
        (
            json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
            "",
        ),
        (json!({"properties": 5}), ""),
    ] {
        let found = refusal(&schema(&broken));
        assert!(
            found.contains(expected) && !found.contains('\n'),
            "{broken}: {found}"
        );
    }
    let text = |text: &str| Grammar {
        text: GrammarText::JsonSchema(text.to_owned()),
        triggers: None,
    };
    assert!(refusal(&text("{")).contains("not JSON"));
    assert!(!refusal(&lark("start: nothing")).is_empty());
    assert!(!refusal(&lark("start: /(/")).is_empty());
    check(&lark("start: \"a\" | /[bc]+/"), || Ok(vocabulary())).unwrap();
    // Terminals of a product of repetitions that no lexer could hold.
    let huge = r#"start: /((a{1,900}){1,900}){1,900}/"#;
    let began = std::time::Instant::now();
    let _ = check(&lark(huge), || Ok(vocabulary()));
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[test]
fn lark_ends_where_it_may() {
    let vocabulary = vocabulary();
    let grammar = lark("start: \"yes\" | \"no\" rest?\nrest: \" \" /[a-z]{2}/");
    for (text, expected) in [
        ("yes", true),
        ("no", true),
        ("no ab", true),
        ("no a", false),
        ("ye", false),
        ("nox", false),
    ] {
        assert_eq!(accepts(&grammar, &vocabulary, text), expected, "{text}");
    }
}

#[test]
fn both_ways_of_judging_a_token_agree() {
    let vocabulary = vocabulary();
    let grammars = [
        schema(
            &json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}}}),
        ),
        lark("start: word (\" \" word)*\nword: /[a-z]+/"),
        gbnf(JSON),
    ];
    for grammar in &grammars {
        for seed in 0..4 {
            let mut constraint = Constraint::new(grammar, &vocabulary, &[]).unwrap();
            for position in 0..40 {
                let judged: Vec<bool> = (0..vocabulary.n_vocab() as u32)
                    .map(|token| constraint.allows(token).unwrap())
                    .collect();
                let allowed = constraint.allowed().unwrap().clone();
                for (token, &judged) in (0..).zip(&judged) {
                    let text = String::from_utf8_lossy(vocabulary.text(token));
                    assert_eq!(judged, allowed.contains(token), "{grammar:?}: `{text}`");
                }
                let choices: Vec<u32> = allowed
                    .tokens()
                    .filter(|t| !vocabulary.is_eog(*t))
                    .collect();
                let Some(_) = choices.first() else { break };
                let place = (uniform(seed, position) * choices.len() as f64) as usize;
                constraint.accept(choices[place]).unwrap();
            }
        }
    }
}

#[test]
fn grammars_name_tokens() {
    let vocabulary = vocabulary();
    let of = |bytes: &[u8]| vocabulary.trie().token_id(bytes).unwrap();
    let (a, b) = (of(b"a"), of(b"b"));
    let end = vocabulary.eog()[0];
    let end_text = String::from_utf8_lossy(&vocabulary.text(end)[1..]).into_owned();
    let allows = |text: &str, answer: &[u32], token: u32| {
        let grammar = gbnf(text);
        check(&grammar, || Ok(Arc::clone(&vocabulary))).unwrap();
        let mut constraint = Constraint::new(&grammar, &vocabulary, answer).unwrap();
        let one = constraint.allows(token).unwrap();
        let all = constraint.allowed().unwrap().contains(token);
        assert_eq!(one, all, "{text} {answer:?} {token}");
        one
    };
    let number = format!("root ::= <[{a}]> \"b\" | \"c\" !<[{a}]> .");
    assert!(allows(&number, &[], a) && !allows(&number, &[], b));
    assert!(allows(&number, &[a], b) && !allows(&number, &[a], a));
    assert!(allows(&number, &[a, b], end) && !allows(&number, &[a], end));
    let c = of(b"c");
    assert!(allows(&number, &[c], b) && !allows(&number, &[c], a));
    // The same token by its text and as a whole, and repeated.
    let both = format!("root ::= (<[{a}]> | \"ab\")+");
    assert!(allows(&both, &[a], a) && allows(&both, &[a], b) && allows(&both, &[a, b], a));
    assert!(allows(&both, &[a], end) && !allows(&both, &[a, b], b));
    // Control tokens have no text that a literal could have.
    if end_text.starts_with('<') && end_text.ends_with('>') {
        let found = vocabulary.find(TokenName::Text(&end_text));
        assert_eq!(found, Some(end));
    }
    let mut constraint =
        Constraint::new(&gbnf(&format!("root ::= <[{b}]> \"a\"")), &vocabulary, &[]).unwrap();
    assert_eq!(constraint.forced(), Ok(Some(b)));
    constraint.accept(b).unwrap();
    assert_eq!(constraint.forced(), Ok(Some(a)));
    constraint.accept(a).unwrap();
    assert_eq!(constraint.forced(), Ok(None));
}

#[test]
fn a_forced_token_is_the_only_one_allowed() {
    let vocabulary = vocabulary();
    let person = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "quite": {"const": "fixed"}, "n": {"type": "integer", "maximum": 99}},
        "required": ["name", "quite", "n"], "additionalProperties": false,
    });
    let (mut n_forced, mut n_tokens) = (0, 0);
    for grammar in [
        schema(&person),
        gbnf("root ::= \"one \" [a-c]+ (\" two\" | \" three\") \"\\n\""),
        lark("start: \"<go>\" /[0-9]{2}/ \"!\""),
    ] {
        for seed in 0..4 {
            let mut constraint = Constraint::new(&grammar, &vocabulary, &[]).unwrap();
            for position in 0..200 {
                let forced = constraint.forced().unwrap();
                let choices: Vec<u32> = constraint.allowed().unwrap().tokens().collect();
                let may_end = choices.iter().any(|&token| vocabulary.is_eog(token));
                if may_end {
                    assert_eq!(forced, None);
                    break;
                }
                assert_eq!(forced.is_some(), choices.len() == 1, "{choices:?}");
                assert!(forced.is_none_or(|token| choices == [token]));
                let token = choices[(uniform(seed, position) * choices.len() as f64) as usize];
                constraint.accept(token).unwrap();
                n_forced += usize::from(forced.is_some());
                n_tokens += 1;
            }
        }
    }
    assert!(
        n_forced > 0 && n_forced < n_tokens,
        "{n_forced} of {n_tokens}"
    );
}

#[test]
fn a_lazy_grammar_waits_for_its_trigger() {
    let vocabulary = vocabulary();
    let mut grammar = gbnf(r#"root ::= "<go>" [0-9]{2}"#);
    grammar.triggers = Some(Triggers {
        words: vec!["<go>".to_owned()],
        tokens: Vec::new(),
    });
    for (text, expected) in [
        ("", true),
        ("free < text", true),
        ("x<go", true),
        ("x<go>12", true),
        ("<<go>12", true),
        ("x<go>1", false),
        ("x<go>ab", false),
    ] {
        assert_eq!(accepts(&grammar, &vocabulary, text), expected, "{text}");
    }
    let mut constraint = Constraint::new(&grammar, &vocabulary, &[]).unwrap();
    for byte in *b"say <go" {
        constraint
            .accept(vocabulary.trie().token_id(&[byte]).unwrap())
            .unwrap();
    }
    let judged: Vec<bool> = (0..vocabulary.n_vocab() as u32)
        .map(|token| constraint.allows(token).unwrap())
        .collect();
    let allowed = constraint.allowed().unwrap();
    for token in 0..vocabulary.n_vocab() as u32 {
        let text = vocabulary.text(token);
        let is_wrong = text.first() == Some(&b'>') && text != b">" && !text[1].is_ascii_digit();
        assert_eq!(allowed.contains(token), !is_wrong, "{text:?}");
        assert_eq!(allowed.contains(token), judged[token as usize]);
    }
    for triggers in [
        Triggers::default(),
        Triggers {
            words: vec![String::new()],
            tokens: vec![],
        },
    ] {
        let empty = Grammar {
            triggers: Some(triggers),
            ..grammar.clone()
        };
        assert!(refusal(&empty).contains("triggers"));
    }
}

#[test]
fn sentencepiece_vocabularies_have_their_bytes() {
    let vocabulary = Arc::new(Vocabulary::new(&tokenizer("tiny-llama")).unwrap());
    let grammar = gbnf("root ::= \"é \" [a-c]+ \"\\n\"");
    assert!(accepts(&grammar, &vocabulary, "é abc\n"));
    let text = answer(&grammar, &vocabulary, 3);
    assert!(text.starts_with("é ") && text.ends_with('\n'), "{text}");
}

//! A JSON schema, and behind a zero byte a text that may or may not fit it.
#![no_main]

use bitnet_model::grammar;
use bitnet_model::protocol::{Grammar, GrammarText};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (text, answer) = input.split_once('\0').unwrap_or((input, "{\"a\": [1, 2.5]}"));
    let grammar = Grammar {
        text: GrammarText::JsonSchema(text.to_owned()),
        triggers: None,
    };
    let checked = grammar::check(&grammar, || unreachable!("schemas need no vocabulary"));
    if checked.is_ok() {
        let _ = grammar::matches(&grammar, answer);
    }
});

//! A GBNF grammar, and behind a zero byte a text that may or may not follow it.
#![no_main]

use bitnet_model::grammar;
use bitnet_model::protocol::{Grammar, GrammarText};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (text, answer) = input.split_once('\0').unwrap_or((input, "{\"a\": [1, 2.5]}"));
    let grammar = Grammar {
        text: GrammarText::Gbnf(text.to_owned()),
        triggers: None,
    };
    let checked = grammar::check(&grammar, || unreachable!("GBNF needs no vocabulary"));
    let followed = grammar::matches(&grammar, answer);
    assert!(checked.is_ok() || followed.is_err(), "{checked:?} {followed:?}");
});

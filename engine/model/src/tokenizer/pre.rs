//! Pre-tokenizers: how text is cut into words before byte-level BPE merges inside each.
//!
//! The patterns are those of the models' tokenizers (fact sheet 7.2). Each names `\s+(?!\S)|\s+` at its end: a run of
//! blanks leaves its last one to the word behind it. The regex engine here has no look-ahead, so the pattern says `\s+` and
//! [`Stage::end`] shortens the match.
//!
//! - `llama-bpe` (also `llama3`, `llama-v3`) and `falcon3`: Llama 3's pattern, whole words first, BOS by default. llama.cpp
//!   reads `falcon3` the same way; bitnet.cpp's fork uses Falcon's older patterns for it.
//! - `falcon_e`: only bitnet.cpp's fork ever knew it; its patterns: Falcon's, digits one by one.
//! - `default`: what llama.cpp uses when a file doesn't say.

use regex::Regex;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const FALCON_MARKS: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const DEFAULT_MARKS: &str = r"[\p{P}\$\+<=>\^~\|]+";
const NUMBERS: &str = r"\p{N}+";
const ONE_DIGIT: &str = r"[0-9]";
const THREE_DIGITS: &str = r"[0-9][0-9][0-9]";

/// How a model cuts text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// As in `tokenizer.ggml.pre`.
    pub(crate) names: &'static [&'static str],
    /// Applied in sequence, each to the pieces of the one before.
    patterns: &'static [&'static str],
    /// A word that is a token is taken whole, without merging.
    pub(crate) ignore_merges: bool,
    /// Where `tokenizer.ggml.add_bos_token` is missing.
    pub(crate) adds_bos: bool,
}

const RULES: &[Rules] = &[
    rules(&["llama-bpe", "llama3", "llama-v3"], &[LLAMA3], true, true),
    rules(&["falcon3"], &[LLAMA3], true, true),
    rules(&["qwen2"], &[QWEN2], false, false),
    rules(&["gpt-2"], &[GPT2], false, false),
    rules(
        &["falcon"],
        &[FALCON_MARKS, GPT2, THREE_DIGITS],
        false,
        false,
    ),
    rules(
        &["falcon_e"],
        &[FALCON_MARKS, GPT2, ONE_DIGIT],
        false,
        false,
    ),
    rules(
        &["default"],
        &[DEFAULT_MARKS, GPT2, NUMBERS, THREE_DIGITS],
        false,
        false,
    ),
];

const fn rules(
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    ignore_merges: bool,
    adds_bos: bool,
) -> Rules {
    Rules {
        names,
        patterns,
        ignore_merges,
        adds_bos,
    }
}

impl Rules {
    pub(crate) fn by_name(name: &str) -> Option<Rules> {
        RULES
            .iter()
            .find(|rules| rules.names.contains(&name))
            .copied()
    }

    /// Every name, for messages.
    pub(crate) fn known() -> String {
        let names: Vec<String> = RULES
            .iter()
            .flat_map(|rules| rules.names)
            .map(|name| format!("`{name}`"))
            .collect();
        names.join(", ")
    }
}

/// Compiled patterns.
#[derive(Debug, Clone)]
pub(crate) struct PreTokenizer(Vec<Stage>);

#[derive(Debug, Clone)]
struct Stage {
    regex: Regex,
    /// A run of blanks with a word behind it leaves its last blank to that word.
    leaves_blank: bool,
    /// Runs that end in a line break were matched by `\s*[\r\n]+` and stay whole.
    keeps_lines: bool,
}

impl PreTokenizer {
    pub(crate) fn new(rules: Rules) -> PreTokenizer {
        let stage = |pattern: &&str| Stage {
            regex: Regex::new(pattern).expect("the patterns here are sound"),
            leaves_blank: pattern.ends_with(r"\s+"),
            keeps_lines: pattern.contains(r"\s*[\r\n]+"),
        };
        PreTokenizer(rules.patterns.iter().map(stage).collect())
    }

    /// Calls `word` with each piece, in order; together they are `text`.
    pub(crate) fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        split(&self.0, text, word);
    }
}

fn split<'t>(stages: &[Stage], text: &'t str, word: &mut dyn FnMut(&'t str)) {
    let Some((stage, later)) = stages.split_first() else {
        return word(text);
    };
    let mut at = 0;
    while at < text.len() {
        let Some(found) = stage.regex.find_at(text, at) else {
            return split(later, &text[at..], word);
        };
        if at < found.start() {
            split(later, &text[at..found.start()], word);
        }
        let end = stage.end(text, found.start(), found.end());
        split(later, &text[found.start()..end], word);
        at = end;
    }
}

impl Stage {
    /// Where the match from `start` to `end` really ends.
    fn end(&self, text: &str, start: usize, end: usize) -> usize {
        if !self.leaves_blank || end == text.len() {
            return end;
        }
        let mut backwards = text[start..end].char_indices().rev();
        match backwards.next() {
            Some((last, c))
                if last > 0
                    && c.is_whitespace()
                    && !(self.keeps_lines && matches!(c, '\r' | '\n')) =>
            {
                start + last
            }
            _ => end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words<'t>(pre: &str, text: &'t str) -> Vec<&'t str> {
        let mut words = Vec::new();
        PreTokenizer::new(Rules::by_name(pre).unwrap()).split(text, &mut |word| words.push(word));
        assert_eq!(words.concat(), text);
        words
    }

    #[test]
    fn blanks_belong_to_the_word_behind() {
        assert_eq!(words("llama-bpe", "a   b"), ["a", "  ", " b"]);
        assert_eq!(words("llama-bpe", "a   "), ["a", "   "]);
        assert_eq!(words("llama-bpe", "a \n\n  b"), ["a", " \n\n", " ", " b"]);
        assert_eq!(words("llama-bpe", "a \t1"), ["a", " ", "\t", "1"]);
        assert_eq!(words("gpt-2", "a\n\nb"), ["a", "\n", "\n", "b"]);
        assert_eq!(words("gpt-2", " \n"), [" \n"]);
    }

    #[test]
    fn digits_differ_by_model() {
        let text = "n 1234567";
        assert_eq!(words("llama3", text), ["n", " ", "123", "456", "7"]);
        assert_eq!(words("qwen2", "12"), ["1", "2"]);
        assert_eq!(words("gpt-2", text), ["n", " 1234567"]);
        assert_eq!(words("falcon", text), ["n", " ", "123", "456", "7"]);
        assert_eq!(words("falcon_e", "a 12"), ["a", " ", "1", "2"]);
        assert_eq!(words("default", text), ["n", " ", "123", "456", "7"]);
    }

    #[test]
    fn contractions_and_marks() {
        assert_eq!(
            words("llama-bpe", "I'Ll don't!!\r\nx"),
            ["I", "'Ll", " don", "'t", "!!\r\n", "x"]
        );
        assert_eq!(words("gpt-2", "I'Ll"), ["I", "'", "Ll"]);
        assert_eq!(words("falcon", "a `b`"), ["a", " ", "`", "b", "`"]);
        assert_eq!(words("default", "a`b."), ["a", "`", "b", "."]);
    }

    #[test]
    fn unknown_names_are_unknown() {
        assert!(Rules::by_name("viking").is_none());
        assert!(Rules::known().contains("`falcon_e`"));
    }
}

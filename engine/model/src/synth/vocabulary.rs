//! Makes vocabularies of any size: every token longer than a byte has at least one merge that leads to it, and common
//! English words come first, so that real text becomes a plausible number of tokens. Not a trained vocabulary.

use std::collections::HashMap;

use crate::tokenizer::byte_symbols;

/// English words, the commonest first.
const WORDS: &str = "the of and to in is that it was for on are as with his they at be this from have or by one had not \
but what all were when we there can an your which their said if do will each about how up out them then she many some so \
these would other into has more her two like him see time could no make than first been its who now people my made over \
did down only way find use may water long little very after words called just where most know get through back much go \
good new write our me man too any day same right look think also around another came come work three word must because \
does part even place well such here take why help put different away again off went old number great tell men say small \
every found still between name should home big give air line set own under read last never us left end along while might \
next sound below saw something thought both few those always show large often together asked house world going want \
school important until form food keep children feet land side without boy once animal life enough took four head above \
kind began almost live page got earth need far hand high year mother light country father let night picture being study \
second soon story since white ever paper hard near sentence better best across during today however sure knew try told \
young sun thing whole hear example heard several change answer room sea against top turned learn point city play toward \
five himself usually money seen car morning body upon family later turn move face door cut done group true half red fish \
plants model weight kernel server engine thread memory token prompt answer question computer program language number \
function return value string error system network small machine learning data code file test build run start stop";

const ONSETS: &[&str] = &[
    "", "b", "bl", "br", "c", "ch", "cl", "cr", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "h",
    "j", "k", "l", "m", "n", "p", "ph", "pl", "pr", "qu", "r", "s", "sc", "sh", "sk", "sl", "sm",
    "sn", "sp", "st", "str", "t", "th", "tr", "v", "w", "wh", "y", "z",
];
const RIMES: &[&str] = &[
    "a", "e", "i", "o", "u", "y", "ai", "ea", "ee", "ie", "oo", "ou", "ab", "ack", "ad", "age",
    "al", "all", "am", "an", "and", "ap", "ar", "ard", "as", "at", "ate", "ed", "el", "em", "en",
    "ence", "ent", "er", "ers", "es", "est", "et", "ic", "ice", "id", "ight", "il", "im", "in",
    "ine", "ing", "ion", "is", "ish", "it", "ive", "ob", "ock", "om", "on", "ong", "op", "or",
    "ot", "ous", "ow", "ul", "um", "un", "up", "ure", "us", "ut",
];

/// Tokens and merges of byte-level BPE, as bytes: the 256 bytes in GPT-2's order first.
pub(crate) struct BytePairs {
    tokens: Vec<Vec<u8>>,
    ids: HashMap<Vec<u8>, usize>,
}

impl BytePairs {
    /// Exactly `n_tokens`, 256 or more.
    pub(crate) fn new(n_tokens: usize) -> BytePairs {
        let mut pairs = BytePairs {
            tokens: Vec::with_capacity(n_tokens),
            ids: HashMap::with_capacity(n_tokens),
        };
        let mut bytes: Vec<u8> = (0..=255).collect();
        bytes.sort_by_key(|&byte| byte_symbols::symbols()[byte as usize]);
        bytes.into_iter().for_each(|byte| pairs.push(vec![byte]));
        for text in texts() {
            if pairs.tokens.len() >= n_tokens {
                break;
            }
            pairs.add(text.as_bytes(), n_tokens);
        }
        assert_eq!(pairs.tokens.len(), n_tokens, "the word list is too short");
        pairs
    }

    fn push(&mut self, token: Vec<u8>) {
        self.ids.insert(token.clone(), self.tokens.len());
        self.tokens.push(token);
    }

    /// Adds a token and, before it, what its merges need.
    fn add(&mut self, token: &[u8], most: usize) {
        if self.ids.contains_key(token) {
            return;
        }
        if self.splits(token).next().is_none() {
            self.add(&token[..token.len() - 1], most);
        }
        if self.tokens.len() < most {
            self.push(token.to_vec());
        }
    }

    /// Lengths of left parts such that both parts are tokens made before this one, longest first.
    fn splits(&self, token: &[u8]) -> impl Iterator<Item = usize> {
        let id = self.ids.get(token).copied().unwrap_or(self.tokens.len());
        let older = move |part: &[u8]| self.ids.get(part).is_some_and(|&other| other < id);
        (1..token.len())
            .rev()
            .filter(move |&at| older(&token[..at]) && older(&token[at..]))
    }

    /// Tokens as the file spells them.
    pub(crate) fn texts(&self) -> Vec<String> {
        let symbols = byte_symbols::symbols();
        self.tokens
            .iter()
            .map(|token| spell(&symbols, token))
            .collect()
    }

    /// One merge per token and up to `most` in all, in order of the tokens they make.
    pub(crate) fn merges(&self, most: usize) -> Vec<String> {
        let splits: Vec<Vec<usize>> = self
            .tokens
            .iter()
            .map(|token| self.splits(token).collect())
            .collect();
        let mut kept: Vec<usize> = splits.iter().map(|splits| splits.len().min(1)).collect();
        let mut left = most.saturating_sub(kept.iter().sum());
        while left > 0 {
            let before = left;
            for (kept, splits) in kept.iter_mut().zip(&splits) {
                if *kept < splits.len() && left > 0 {
                    *kept += 1;
                    left -= 1;
                }
            }
            if left == before {
                break;
            }
        }
        let symbols = byte_symbols::symbols();
        let mut merges = Vec::with_capacity(most);
        for ((token, splits), kept) in self.tokens.iter().zip(&splits).zip(kept) {
            for &at in &splits[..kept] {
                let (left, right) = token.split_at(at);
                merges.push(format!(
                    "{} {}",
                    spell(&symbols, left),
                    spell(&symbols, right)
                ));
            }
        }
        merges
    }
}

fn spell(symbols: &[char; 256], token: &[u8]) -> String {
    token.iter().map(|&byte| symbols[byte as usize]).collect()
}

/// SentencePiece-style pieces with `▁` for the blank: single characters first, then longer ones, each reachable by
/// joining two others.
pub(crate) fn pieces(n_pieces: usize) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::with_capacity(n_pieces);
    let mut known: HashMap<String, ()> = HashMap::new();
    let mut push = |piece: String, pieces: &mut Vec<String>| {
        if pieces.len() < n_pieces && known.insert(piece.clone(), ()).is_none() {
            pieces.push(piece);
        }
    };
    push("\u{2581}".into(), &mut pieces);
    (' '..='~')
        .skip(1)
        .for_each(|c| push(c.into(), &mut pieces));
    for text in texts().filter(|text| !text.contains(['\n', '\t'])) {
        let text = text.replace(' ', "\u{2581}");
        // Every prefix is a piece, so the whole can be built from the left.
        for (end, c) in text.char_indices() {
            push(text[..end + c.len_utf8()].into(), &mut pieces);
            push(c.into(), &mut pieces);
        }
        if pieces.len() >= n_pieces {
            break;
        }
    }
    pieces
}

/// Texts worth a token, the commonest first; far more than any vocabulary holds.
fn texts() -> impl Iterator<Item = String> {
    let words = || WORDS.split_whitespace().map(str::to_owned);
    let spaced = words().map(|word| format!(" {word}"));
    let capital = words().flat_map(|word| {
        let upper = capitalised(&word);
        [format!(" {upper}"), upper]
    });
    let numbers = (0..10)
        .map(|n| n.to_string())
        .chain((0..100).map(|n| format!("{n:02}")))
        .chain((0..1000).map(|n| format!("{n:03}")));
    let blanks =
        (2..=64).flat_map(|n| [" ".repeat(n), "\n".repeat(n.min(8)), "\t".repeat(n.min(16))]);
    let ascii = |range: std::ops::RangeInclusive<u8>| range.map(|b| (b as char).to_string());
    let marks = [
        ". ", ", ", "\r\n", "...", "==", "!=", "->", "=>", "//", "/*", "*/", "();", "()", "{}",
        "[]", "::", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", ".\n", ",\n", ";\n",
    ];
    let pairs =
        ascii(b'a'..=b'z').flat_map(move |a| ascii(b'a'..=b'z').map(move |b| a.clone() + &b));
    let letters = ascii(b'a'..=b'z')
        .chain(ascii(b'A'..=b'Z'))
        .map(|c| format!(" {c}"));
    let characters = [
        '\u{c0}'..='\u{17f}',
        '\u{391}'..='\u{44f}',
        '\u{3041}'..='\u{30ff}',
        '\u{4e00}'..='\u{55ff}',
        '\u{1f600}'..='\u{1f64f}',
    ]
    .into_iter()
    .flatten()
    .map(String::from);
    spaced
        .chain(words())
        .chain(letters)
        .chain(pairs)
        .chain(marks.into_iter().map(str::to_owned))
        .chain(capital)
        .chain(numbers)
        .chain(blanks)
        .chain(characters)
        .chain(syllables())
}

/// Syllables, then words of two, in groups that share all but the last rime: such words can be split in several places,
/// which gives vocabularies the two merges per token that trained ones have.
fn syllables() -> impl Iterator<Item = String> {
    let one: Vec<String> = ONSETS
        .iter()
        .flat_map(|onset| RIMES.iter().map(move |rime| format!("{onset}{rime}")))
        .collect();
    let stems: Vec<String> = one
        .iter()
        .flat_map(|first| {
            ONSETS[1..]
                .iter()
                .map(move |onset| format!("{first}{onset}"))
        })
        .collect();
    let variants = |text: &String| {
        let capital = capitalised(text);
        [
            text.clone(),
            format!(" {text}"),
            format!(" {capital}"),
            capital,
        ]
    };
    let syllables: Vec<String> = one.iter().flat_map(variants).collect();
    // A step that shares no factor with their number visits every stem once, and mixes them.
    let n = stems.len();
    let step = (1_009..).find(|&step| gcd(step, n) == 1).unwrap_or(1);
    let words = (0..n).flat_map(move |i| {
        let stem = stems[i * step % n].clone();
        std::iter::once("")
            .chain(RIMES.iter().copied())
            .flat_map(move |rime| [format!("{stem}{rime}"), format!(" {stem}{rime}")])
    });
    syllables.into_iter().chain(words)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn capitalised(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars).collect()
    })
}

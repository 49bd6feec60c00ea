//! Text to token ids and back, from the keys of a GGUF: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`).
//!
//! Encoding cuts out special tokens first (longest at each place), then encodes the stretches between them. User-defined
//! tokens are always cut out, control tokens only when asked: text from strangers must not be able to speak as the system.

mod bpe;
pub(crate) mod byte_symbols;
mod detokenizer;
pub(crate) mod pre;
mod spm;
mod table;

use aho_corasick::{AhoCorasick, MatchKind};

pub use detokenizer::Detokenizer;

use crate::gguf::{Array, Element, Gguf, GgufError, grouped};
use crate::protocol::Overrides;
use bpe::Bpe;
use byte_symbols::ByteOf;
use pre::{PreTokenizer, Rules};
use spm::Spm;
use table::Table;

/// Texts that end a generation in the chat formats of the models served here.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "</s>",
];

/// Vocabulary of Llama 3, used by BitNet b1.58 2B-4T.
const LLAMA3_VOCAB: usize = 128_256;

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    fn from_id(id: i32) -> Kind {
        match id {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        }
    }
}

/// A model's tokenizer. Immutable; share it with `Arc`.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// What each token adds to text; from `n_vocab` on, BPE's inner symbols.
    table: Table,
    kinds: Vec<Kind>,
    model: Model,
    pre: &'static str,
    user_defined: Specials,
    all_special: Specials,
    bos: Option<u32>,
    eos: Option<u32>,
    eog: Vec<u32>,
    adds_bos: bool,
    adds_eos: bool,
    chat_template: Option<String>,
}

#[derive(Debug, Clone)]
enum Model {
    BytePairs(Box<PreTokenizer>, Box<Bpe>),
    SentencePiece(Box<Spm>),
}

/// Why a file's tokenizer can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TokenizerError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("key `{key}` is missing")]
    MissingKey { key: &'static str },
    #[error(
        "tokenizer model `{found}` is unknown, known are `gpt2` (byte-level BPE) and `llama` (SentencePiece)"
    )]
    Model { found: String },
    #[error("pre-tokenizer `{found}` is unknown, known are {}", Rules::known())]
    PreTokenizer { found: String },
    #[error("key `{key}` has {} entries, expected {} (one per token)", grouped(*found as u64), grouped(*expected as u64))]
    Length {
        key: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("key `{key}` is {}, expected a token id below {}", grouped(*found), grouped(*n_vocab as u64))]
    TokenId {
        key: &'static str,
        found: u64,
        n_vocab: usize,
    },
    #[error("entry {} of key `{key}` is not UTF-8", grouped(*index as u64))]
    Utf8 { key: &'static str, index: usize },
    #[error("merge {} is `{found}`, expected two parts with a blank between", grouped(*index as u64))]
    Merge { index: usize, found: String },
    #[error("special tokens cannot be searched for: {source}")]
    Specials { source: aho_corasick::BuildError },
}

impl TokenizerError {
    /// What to do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            TokenizerError::Gguf(error) => error.hint(),
            TokenizerError::PreTokenizer { .. } => {
                Some("name a known one that fits the model with the pre-tokenizer override")
            }
            TokenizerError::MissingKey { .. } => Some("convert the model with its tokenizer"),
            _ => None,
        }
    }
}

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";

impl Tokenizer {
    /// Reads the tokenizer of a file.
    ///
    /// # Errors
    /// When keys are missing, contradict each other or name something unknown.
    pub fn from_gguf(gguf: &Gguf, overrides: &Overrides) -> Result<Tokenizer, TokenizerError> {
        let tokens = array(gguf, TOKENS)?;
        let kinds = kinds(gguf, tokens.len())?;
        let ids = SpecialIds::read(gguf, tokens.len())?;
        let name = gguf.str("tokenizer.ggml.model")?;
        let key = "tokenizer.ggml.model";
        match name.ok_or(TokenizerError::MissingKey { key })? {
            "gpt2" => byte_pairs(gguf, overrides, tokens, kinds, ids),
            "llama" => sentence_piece(gguf, tokens, kinds, ids),
            found => Err(TokenizerError::Model {
                found: found.to_owned(),
            }),
        }
    }

    /// Token ids of a text.
    ///
    /// `add_special`: with BOS in front, and EOS behind, as far as the model wants them; one that the text itself brings
    /// along is not doubled. `parse_special`: control tokens in the text are found by name; otherwise they are plain text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        let bos = self.bos.filter(|_| add_special && self.adds_bos);
        ids.extend(bos);
        let specials = if parse_special {
            &self.all_special
        } else {
            &self.user_defined
        };
        specials.split(text, |part| match part {
            Part::Text(text) => self.encode_stretch(text, &mut ids),
            Part::Token(id) => ids.push(id),
        });
        if bos.is_some() && ids.get(1) == bos.as_ref() {
            ids.remove(0);
        }
        let eos = self.eos.filter(|_| add_special && self.adds_eos);
        if ids.last() != eos.as_ref() {
            ids.extend(eos);
        }
        ids
    }

    fn encode_stretch(&self, text: &str, ids: &mut Vec<u32>) {
        match &self.model {
            Model::BytePairs(pre, bpe) => pre.split(text, &mut |word| {
                bpe.encode(&self.table, word.as_bytes(), ids)
            }),
            Model::SentencePiece(spm) => spm.encode(&self.table, text, ids),
        }
    }

    /// What a token adds to text; its name for control tokens; empty for ids outside the vocabulary. May be part of a
    /// character.
    pub fn piece(&self, id: u32) -> &[u8] {
        if (id as usize) < self.n_vocab() {
            self.table.get(id)
        } else {
            &[]
        }
    }

    /// Bytes of a whole text, control tokens by name. Inverse of [`Tokenizer::encode`]: the blank that SentencePiece puts
    /// in front of each stretch of text is dropped.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let drops_blank = matches!(&self.model, Model::SentencePiece(spm) if spm.adds_blank);
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut at_start = true;
        for &id in ids {
            let piece = self.piece(id);
            let piece = if drops_blank && at_start {
                piece.strip_prefix(b" ").unwrap_or(piece)
            } else {
                piece
            };
            bytes.extend_from_slice(piece);
            at_start = self.is_special(id);
        }
        bytes
    }

    /// The token with exactly this text or name.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        let special = self.all_special.id(text);
        special.or_else(|| {
            self.table
                .find(text.as_bytes())
                .filter(|&id| (id as usize) < self.n_vocab())
        })
    }

    /// Control and unknown tokens: silent in generated text.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(
            self.kinds.get(id as usize),
            Some(Kind::Control | Kind::Unknown)
        )
    }

    fn is_special(&self, id: u32) -> bool {
        matches!(
            self.kinds.get(id as usize),
            Some(Kind::Control | Kind::UserDefined)
        )
    }

    /// Begin of sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End of sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// All tokens that end a generation, ascending.
    pub fn eog(&self) -> &[u32] {
        &self.eog
    }

    /// Texts get BOS in front.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Texts get EOS at the end.
    pub fn adds_eos(&self) -> bool {
        self.adds_eos
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.kinds.len()
    }

    /// The pre-tokenizer in use; `spm` for SentencePiece.
    pub fn pre(&self) -> &'static str {
        self.pre
    }

    /// `tokenizer.chat_template`, right or wrong.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }
}

fn array<'g>(gguf: &'g Gguf, key: &'static str) -> Result<&'g Array, TokenizerError> {
    gguf.array(key, Element::String)?
        .ok_or(TokenizerError::MissingKey { key })
}

/// One kind per token; all normal where the file doesn't say.
fn kinds(gguf: &Gguf, n_vocab: usize) -> Result<Vec<Kind>, TokenizerError> {
    let key = "tokenizer.ggml.token_type";
    let Some(types) = gguf.array(key, Element::I32)? else {
        return Ok(vec![Kind::Normal; n_vocab]);
    };
    expect_length(key, types.len(), n_vocab)?;
    Ok(types
        .i32s()
        .into_iter()
        .flatten()
        .map(Kind::from_id)
        .collect())
}

fn expect_length(key: &'static str, found: usize, expected: usize) -> Result<(), TokenizerError> {
    if found == expected {
        return Ok(());
    }
    Err(TokenizerError::Length {
        key,
        found,
        expected,
    })
}

/// Special ids and switches as far as the file has them.
struct SpecialIds {
    bos: Option<u32>,
    eos: Option<u32>,
    ends: Vec<u32>,
    unknown: Option<u32>,
    adds_bos: Option<bool>,
    adds_eos: bool,
}

impl SpecialIds {
    fn read(gguf: &Gguf, n_vocab: usize) -> Result<SpecialIds, TokenizerError> {
        let id = |key: &'static str| match gguf.u64(key)? {
            Some(id) if id < n_vocab as u64 => Ok(Some(id as u32)),
            // Some converters write -1 as u32 for "none".
            Some(id) if id == u64::from(u32::MAX) => Ok(None),
            Some(found) => Err(TokenizerError::TokenId {
                key,
                found,
                n_vocab,
            }),
            None => Ok(None),
        };
        let eos = id("tokenizer.ggml.eos_token_id")?;
        let ends = [
            eos,
            id("tokenizer.ggml.eot_token_id")?,
            id("tokenizer.ggml.eom_token_id")?,
        ];
        Ok(SpecialIds {
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos,
            ends: ends.into_iter().flatten().collect(),
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            adds_bos: gguf.bool("tokenizer.ggml.add_bos_token")?,
            adds_eos: gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
        })
    }
}

fn byte_pairs(
    gguf: &Gguf,
    overrides: &Overrides,
    tokens: &Array,
    kinds: Vec<Kind>,
    ids: SpecialIds,
) -> Result<Tokenizer, TokenizerError> {
    let (name, rules) = pre_tokenizer(gguf, overrides, tokens.len())?;
    let byte_of = ByteOf::new();
    let mut table = Table::with_capacity(tokens.len());
    let mut bytes = Vec::new();
    for (index, (token, &kind)) in tokens.strings().zip(&kinds).enumerate() {
        let text = utf8(TOKENS, index, token)?;
        bytes.clear();
        // Special tokens are written as they are, and never the result of merges.
        let is_plain = matches!(kind, Kind::Normal) && byte_of.decode(text, &mut bytes);
        if is_plain {
            let id = table.push(&bytes);
            table.index(id);
        } else {
            table.push(text.as_bytes());
        }
    }
    let bpe = merges(gguf, &mut table, &byte_of, rules, ids.unknown)?;
    if bpe.missing_bytes() > 0 {
        tracing::warn!(
            "the vocabulary has no token for {} of the 256 bytes",
            bpe.missing_bytes()
        );
    }
    let model = Model::BytePairs(Box::new(PreTokenizer::new(rules)), Box::new(bpe));
    finish(gguf, tokens, table, kinds, model, name, ids, rules.adds_bos)
}

/// The name in the file or in its place, and what it stands for.
fn pre_tokenizer(
    gguf: &Gguf,
    overrides: &Overrides,
    n_vocab: usize,
) -> Result<(&'static str, Rules), TokenizerError> {
    let found = match (&overrides.pre_tokenizer, gguf.str("tokenizer.ggml.pre")?) {
        (Some(name), _) => name,
        (None, Some(name)) => name,
        (None, None) => missing_pre_tokenizer(gguf, n_vocab)?,
    };
    let rules = Rules::by_name(found).ok_or_else(|| TokenizerError::PreTokenizer {
        found: found.to_owned(),
    })?;
    Ok((rules.names[0], rules))
}

/// The official 2B-4T file doesn't name its pre-tokenizer; its vocabulary is Llama 3's.
fn missing_pre_tokenizer(gguf: &Gguf, n_vocab: usize) -> Result<&'static str, TokenizerError> {
    let architecture = gguf.str("general.architecture")?.unwrap_or("");
    if matches!(architecture, "bitnet-b1.58" | "bitnet-25") && n_vocab == LLAMA3_VOCAB {
        tracing::info!(
            "the file names no pre-tokenizer: using `llama-bpe`, which its vocabulary belongs to"
        );
        return Ok("llama-bpe");
    }
    tracing::warn!(
        "the file names no pre-tokenizer: using `default`, which may not be the one the model was trained with"
    );
    Ok("default")
}

fn merges(
    gguf: &Gguf,
    table: &mut Table,
    byte_of: &ByteOf,
    rules: Rules,
    unknown: Option<u32>,
) -> Result<Bpe, TokenizerError> {
    let merges = array(gguf, MERGES)?;
    let mut bpe = Bpe::new(table, merges.len(), rules.ignore_merges, unknown);
    let mut joined = Vec::new();
    for (index, merge) in merges.strings().enumerate() {
        let text = utf8(MERGES, index, merge)?;
        let wrong = || TokenizerError::Merge {
            index,
            found: text.to_owned(),
        };
        let (left, right) = text.split_once(' ').ok_or_else(wrong)?;
        joined.clear();
        if left.is_empty() || right.is_empty() || !byte_of.decode(left, &mut joined) {
            return Err(wrong());
        }
        let at = joined.len();
        if !byte_of.decode(right, &mut joined) {
            return Err(wrong());
        }
        bpe.add_merge(table, &joined, at);
    }
    Ok(bpe)
}

fn sentence_piece(
    gguf: &Gguf,
    tokens: &Array,
    kinds: Vec<Kind>,
    ids: SpecialIds,
) -> Result<Tokenizer, TokenizerError> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf
        .array(key, Element::F32)?
        .ok_or(TokenizerError::MissingKey { key })?;
    expect_length(key, scores.len(), tokens.len())?;
    let mut table = Table::with_capacity(tokens.len());
    let mut byte_tokens = [None; 256];
    let mut longest = 0;
    for (index, (token, kind)) in tokens.strings().zip(&kinds).enumerate() {
        let text = utf8(TOKENS, index, token)?;
        let byte = byte_token(text).filter(|_| *kind == Kind::Byte);
        if let Some(byte) = byte {
            byte_tokens[byte as usize] = Some(table.push(&[byte]));
            continue;
        }
        let piece = text.replace('\u{2581}', " ");
        let id = table.push(piece.as_bytes());
        if *kind == Kind::Normal && !piece.is_empty() {
            longest = longest.max(piece.len());
            table.index(id);
        }
    }
    let scores = scores.f32s().into_iter().flatten().collect();
    let adds_blank = gguf
        .bool("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let unknown = ids
        .unknown
        .or((kinds.first() == Some(&Kind::Unknown)).then_some(0));
    let model = Model::SentencePiece(Box::new(Spm::new(
        scores,
        byte_tokens,
        unknown,
        longest,
        adds_blank,
    )));
    finish(gguf, tokens, table, kinds, model, "spm", ids, true)
}

/// `<0x0A>`
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

fn utf8<'g>(key: &'static str, index: usize, bytes: &'g [u8]) -> Result<&'g str, TokenizerError> {
    std::str::from_utf8(bytes).map_err(|_| TokenizerError::Utf8 { key, index })
}

/// What both kinds have in common.
#[allow(clippy::too_many_arguments)]
fn finish(
    gguf: &Gguf,
    tokens: &Array,
    table: Table,
    kinds: Vec<Kind>,
    model: Model,
    pre: &'static str,
    ids: SpecialIds,
    adds_bos: bool,
) -> Result<Tokenizer, TokenizerError> {
    let special = |wanted: &[Kind]| {
        let named = tokens.strings().zip(&kinds).enumerate();
        let named = named.filter(|(_, (text, kind))| wanted.contains(kind) && !text.is_empty());
        Specials::new(named.map(|(id, (text, _))| (text, id as u32)))
    };
    let all_special = special(&[Kind::Control, Kind::UserDefined])?;
    let mut eog = ids.ends;
    eog.extend(END_TEXTS.iter().filter_map(|text| all_special.id(text)));
    eog.sort_unstable();
    eog.dedup();
    Ok(Tokenizer {
        table,
        model,
        pre,
        user_defined: special(&[Kind::UserDefined])?,
        all_special,
        kinds,
        bos: ids.bos,
        eos: ids.eos,
        eog,
        adds_bos: ids.adds_bos.unwrap_or(adds_bos) && ids.bos.is_some(),
        adds_eos: ids.adds_eos && ids.eos.is_some(),
        chat_template: gguf.str("tokenizer.chat_template")?.map(str::to_owned),
    })
}

/// Tokens found in text by name: leftmost first, the longest of those that begin there.
#[derive(Debug, Clone)]
struct Specials {
    search: Option<AhoCorasick>,
    names: Table,
    ids: Vec<u32>,
}

/// A part of a text.
enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

impl Specials {
    fn new<'g>(named: impl Iterator<Item = (&'g [u8], u32)>) -> Result<Specials, TokenizerError> {
        let mut names = Table::with_capacity(16);
        let mut ids = Vec::new();
        for (name, id) in named {
            let index = names.push(name);
            names.index(index);
            ids.push(id);
        }
        let patterns = (0..ids.len() as u32).map(|index| names.get(index));
        let search = (!ids.is_empty()).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(patterns)
        });
        let search = search
            .transpose()
            .map_err(|source| TokenizerError::Specials { source })?;
        Ok(Specials { search, names, ids })
    }

    fn id(&self, name: &str) -> Option<u32> {
        self.names
            .find(name.as_bytes())
            .map(|index| self.ids[index as usize])
    }

    fn split<'t>(&self, text: &'t str, mut part: impl FnMut(Part<'t>)) {
        let mut at = 0;
        for found in self.search.iter().flat_map(|search| search.find_iter(text)) {
            if at < found.start() {
                part(Part::Text(&text[at..found.start()]));
            }
            part(Part::Token(self.ids[found.pattern().as_usize()]));
            at = found.end();
        }
        if at < text.len() {
            part(Part::Text(&text[at..]));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::synth::header::Header;
    use crate::synth::{self, Shape};
    use bitnet_kernels::SharedBytes;

    pub(super) fn tokenizer(preset: &str) -> Tokenizer {
        let bytes = synth::to_bytes(&Shape::preset(preset).unwrap(), 1).unwrap();
        let gguf = Gguf::from_bytes(SharedBytes::new(bytes)).unwrap();
        Tokenizer::from_gguf(&gguf, &Overrides::default()).unwrap()
    }

    /// A header of tokenizer keys; `edit` adds to them.
    fn read(
        tokens: &[&str],
        types: &[i32],
        overrides: &Overrides,
        edit: impl FnOnce(&mut Header),
    ) -> Result<Tokenizer, TokenizerError> {
        let mut header = Header::default();
        header.strings(TOKENS, tokens);
        header.i32s("tokenizer.ggml.token_type", types);
        edit(&mut header);
        Tokenizer::from_gguf(
            &Gguf::from_bytes(SharedBytes::new(header.bytes())).unwrap(),
            overrides,
        )
    }

    fn gpt2(header: &mut Header) {
        header.str("tokenizer.ggml.model", "gpt2");
        header.str("tokenizer.ggml.pre", "gpt-2");
        header.strings::<&str>(MERGES, &[]);
    }

    #[test]
    fn bos_comes_once() {
        let tokenizer = tokenizer("tiny");
        let bos = tokenizer.bos().unwrap();
        assert_eq!(tokenizer.encode("", true, true), [bos]);
        let ids = tokenizer.encode("the", true, true);
        assert_eq!(ids[0], bos);
        assert_eq!(tokenizer.encode("<|begin_of_text|>the", true, true), ids);
        assert_eq!(tokenizer.encode("the", false, true), ids[1..]);
        assert!(tokenizer.encode("<|begin_of_text|>", true, false).len() > 2);
    }

    #[test]
    fn special_tokens_are_found_only_when_asked_for() {
        let tokens = ["a", "<|x|>", "<|x|>y", "<u>"];
        let tokenizer = read(&tokens, &[1, 3, 3, 4], &Overrides::default(), gpt2).unwrap();
        assert_eq!(
            tokenizer.encode("a<|x|>a<|x|>ya<u>", false, true),
            [0, 1, 0, 2, 0, 3]
        );
        assert_eq!(tokenizer.encode("a<|x|>a<u>a", false, false), [0, 0, 3, 0]);
        assert_eq!(
            (
                tokenizer.token_id("<|x|>"),
                tokenizer.token_id("a"),
                tokenizer.token_id("b")
            ),
            (Some(1), Some(0), None)
        );
        assert!(tokenizer.is_control(1) && !tokenizer.is_control(3) && !tokenizer.is_control(77));
        assert!(!tokenizer.adds_bos() && tokenizer.bos().is_none());
    }

    #[test]
    fn all_ends_of_generation_are_known() {
        let tokens = ["a", "</s>", "<|im_end|>", "<|eot_id|>", "<end>"];
        let tokenizer = read(&tokens, &[1, 1, 4, 3, 3], &Overrides::default(), |header| {
            gpt2(header);
            header.u32("tokenizer.ggml.eos_token_id", 4);
        });
        // `</s>` is an ordinary word of this vocabulary.
        assert_eq!(tokenizer.unwrap().eog(), [2, 3, 4]);
    }

    #[test]
    fn eos_is_added_where_the_model_wants_it() {
        let tokenizer = read(
            &["a", "<b>", "<e>"],
            &[1, 3, 3],
            &Overrides::default(),
            |header| {
                gpt2(header);
                header.u32("tokenizer.ggml.bos_token_id", 1);
                header.u32("tokenizer.ggml.eos_token_id", 2);
                header.bool("tokenizer.ggml.add_eos_token", true);
            },
        )
        .unwrap();
        assert_eq!(tokenizer.encode("aa", true, true), [0, 0, 2]);
        assert_eq!(tokenizer.encode("a<e>", true, true), [0, 2]);
        assert_eq!(tokenizer.encode("a", false, true), [0]);
    }

    #[test]
    fn pre_tokenizers_fall_back_and_give_way() {
        let pre = |name: Option<&str>, overridden: Option<&str>| {
            let overrides = Overrides {
                pre_tokenizer: overridden.map(str::to_owned),
                ..Overrides::default()
            };
            read(&["a"], &[1], &overrides, |header| {
                header.str("general.architecture", "bitnet-b1.58");
                header.str("tokenizer.ggml.model", "gpt2");
                header.strings::<&str>(MERGES, &[]);
                name.into_iter()
                    .for_each(|name| header.str("tokenizer.ggml.pre", name));
            })
        };
        assert_eq!(pre(None, None).unwrap().pre(), "default");
        assert_eq!(pre(Some("llama3"), None).unwrap().pre(), "llama-bpe");
        assert_eq!(pre(Some("odd"), Some("qwen2")).unwrap().pre(), "qwen2");
        let error = pre(Some("odd"), None).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("pre-tokenizer `odd` is unknown, known are `llama-bpe`, `llama3`"),
            "{error}"
        );
        assert!(error.hint().is_some());
    }

    #[test]
    fn broken_vocabularies_are_refused() {
        let none = Overrides::default();
        let message = |result: Result<Tokenizer, TokenizerError>| {
            result.expect_err("a bad vocabulary").to_string()
        };
        assert_eq!(
            message(read(&["a"], &[1, 1], &none, gpt2)),
            "key `tokenizer.ggml.token_type` has 2 entries, expected 1 (one per token)"
        );
        assert_eq!(
            message(read(&["a"], &[1], &none, |_| {})),
            "key `tokenizer.ggml.model` is missing"
        );
        let other = read(&["a"], &[1], &none, |h| {
            h.str("tokenizer.ggml.model", "bert")
        });
        assert!(message(other).starts_with("tokenizer model `bert` is unknown"));
        let no_merges = read(&["a"], &[1], &none, |h| {
            h.str("tokenizer.ggml.model", "gpt2");
            h.str("tokenizer.ggml.pre", "gpt-2");
        });
        assert_eq!(message(no_merges), "key `tokenizer.ggml.merges` is missing");
        let merge = read(&["a"], &[1], &none, |h| {
            h.str("tokenizer.ggml.model", "gpt2");
            h.str("tokenizer.ggml.pre", "gpt-2");
            h.strings(MERGES, &["a a", "aa"]);
        });
        assert_eq!(
            message(merge),
            "merge 1 is `aa`, expected two parts with a blank between"
        );
        let id = read(&["a"], &[1], &none, |h| {
            gpt2(h);
            h.u32("tokenizer.ggml.eos_token_id", 1);
        });
        assert_eq!(
            message(id),
            "key `tokenizer.ggml.eos_token_id` is 1, expected a token id below 1"
        );
        let scores = read(&["a"], &[1], &none, |h| {
            h.str("tokenizer.ggml.model", "llama")
        });
        assert_eq!(message(scores), "key `tokenizer.ggml.scores` is missing");
    }

    /// The official file's twin: no `pre`, no end-of-turn id.
    #[test]
    fn the_published_2b_4t_vocabulary() {
        let shape = Shape {
            n_layer: 1,
            n_embd: 128,
            n_ff: 128,
            n_head: 1,
            n_head_kv: 1,
            ..Shape::preset("2b-4t").unwrap()
        };
        let gguf = Gguf::from_bytes(SharedBytes::new(synth::to_bytes(&shape, 1).unwrap())).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf, &Overrides::default()).unwrap();
        assert_eq!(
            (tokenizer.pre(), tokenizer.n_vocab(), tokenizer.adds_bos()),
            ("llama-bpe", 128_256, true)
        );
        assert_eq!(
            (tokenizer.bos(), tokenizer.eos(), tokenizer.eog()),
            (Some(128_000), Some(128_001), [128_001, 128_009].as_slice())
        );
        assert!(
            tokenizer
                .chat_template()
                .unwrap()
                .contains("BITNETAssistant: ")
        );
        let text = "The people of the world have about 1234567 questions, don't they?\r\n\n  Grüße, 世界! 😀";
        let ids = tokenizer.encode(text, true, true);
        assert_eq!(tokenizer.decode(&ids[1..]), text.as_bytes());
        assert!(
            ids.len() < text.len() * 2 / 3,
            "{} tokens for {} bytes",
            ids.len(),
            text.len()
        );
        let user = tokenizer.encode("User: Hi<|eot_id|>Assistant: ", true, true);
        assert_eq!(user.iter().filter(|&&id| id == 128_009).count(), 1);
    }

    #[test]
    fn spm_drops_the_blank_it_put_in_front() {
        let tokenizer = tokenizer("tiny-silu");
        assert_eq!(
            (tokenizer.pre(), tokenizer.adds_bos(), tokenizer.eog()),
            ("spm", true, [2].as_slice())
        );
        for text in [
            "the people of",
            " two",
            "a</s>b",
            "</s> c",
            "Grüße 世界 😀\n",
        ] {
            let ids = tokenizer.encode(text, false, true);
            assert_eq!(String::from_utf8(tokenizer.decode(&ids)).unwrap(), text);
        }
        assert_eq!(tokenizer.encode("a", true, true)[0], 1);
    }

    /// A megabyte without a blank takes part of a second; in quadratic time it would take an hour.
    #[test]
    fn long_words_take_linear_time() {
        let word: String = "thequickbrownfoxandtheotherone"
            .chars()
            .cycle()
            .take(1 << 20)
            .collect();
        for preset in ["tiny", "tiny-silu"] {
            let tokenizer = tokenizer(preset);
            for text in [
                word.clone(),
                " ".repeat(1 << 20),
                "\n".repeat(1 << 20),
                "é".repeat(1 << 19),
            ] {
                let start = Instant::now();
                let ids = tokenizer.encode(&text, false, true);
                let took = start.elapsed();
                assert!(took < Duration::from_secs(60), "{preset}: {took:?}");
                assert_eq!(tokenizer.decode(&ids), text.as_bytes());
            }
        }
    }
}

//! The tokenizer of a Hugging Face directory as GGUF keys: byte-level BPE out of `tokenizer.json`, SentencePiece BPE out of
//! `tokenizer.model` or `tokenizer.json`, special tokens and the chat template out of the files beside them.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde_json::Value;

use super::error::ConvertError;
use super::json::{Json, short};
use super::sentencepiece;
use crate::gguf::grouped;
use crate::os::require_file;
use crate::synth::header::Header;
use crate::tokenizer::pre::Rules;

/// `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Score of tokens that no merge makes.
const NO_SCORE: f32 = -1e6;

/// Tokens that end a turn in chat formats, where the configuration names only the end of the text.
const END_OF_TURN: &[&str] = &["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"];

/// The chat format of BitNet b1.58 2B-4T, for copies of it that come without one.
pub(crate) const BITNET_TEMPLATE: &str = "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}\
{{ message['role'] | capitalize }}: {{ message['content'] | trim }}<|eot_id|>{% endfor %}\
{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}";

/// Llama 3's, the patterns of `tokenizer.json` by the name that GGUF readers know them under.
const PATTERNS: &[(&str, &str)] = &[
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "gpt-2",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ),
];

/// A tokenizer in GGUF's words.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Vocabulary {
    pub(crate) kind: Kind,
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) eot: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) padding: Option<u32>,
    pub(crate) adds_bos: bool,
    pub(crate) adds_eos: bool,
    pub(crate) chat_template: Option<String>,
    /// What was decided without the files.
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Byte-level BPE.
    BytePairs { pre: String, merges: Vec<String> },
    /// SentencePiece BPE.
    Spm { scores: Vec<f32>, adds_blank: bool },
}

/// What the user said about it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes<'a> {
    pub(crate) pre_tokenizer: Option<&'a str>,
    pub(crate) chat_template: Option<&'a str>,
    /// The model embeds texts: what the tokenizer puts behind them ends them.
    pub(crate) ends_texts: bool,
}

impl Vocabulary {
    /// Reads the tokenizer; `n_vocab` is the number of rows of the embedding.
    ///
    /// # Errors
    /// When the files don't agree with each other or describe a tokenizer that GGUF has no words for.
    pub(crate) fn read(
        directory: &Path,
        n_vocab: usize,
        wishes: &Wishes<'_>,
    ) -> Result<Vocabulary, ConvertError> {
        let files = Files::read(directory)?;
        let json = files.tokenizer.as_ref();
        let byte_level = json.is_some_and(|json| kind_of_json(json) == JsonKind::ByteLevel);
        let piece_file = directory.join("tokenizer.model");
        let read = || require_file(&piece_file).and_then(|()| std::fs::read(&piece_file));
        let pieces = match piece_file.exists() && !byte_level {
            true => read().map_err(ConvertError::read(&piece_file))?,
            false => Vec::new(),
        };
        let mut table = Tokens::new(n_vocab);
        let (kind, specials) = match (json, sentencepiece::parse(&pieces)) {
            (Some(json), _) if byte_level => byte_pairs(json, &mut table, wishes)?,
            (_, Some(model)) => from_pieces(&piece_file, model, &mut table)?,
            (Some(json), None) if kind_of_json(json) == JsonKind::Pieces => {
                pieces_of_json(json, &mut table)?
            }
            (Some(json), None) => {
                let reason = "its model is neither byte-level BPE nor SentencePiece-style BPE";
                return Err(ConvertError::file(json.path(), reason));
            }
            (None, None) if piece_file.exists() => {
                let reason = "it is no SentencePiece model, and there is no tokenizer.json";
                return Err(ConvertError::file(&piece_file, reason));
            }
            (None, None) => {
                let reason = "it holds neither tokenizer.json nor tokenizer.model";
                return Err(ConvertError::file(directory, reason));
            }
        };
        files.add_tokens(&mut table)?;
        files.finish(directory, table, kind, specials, wishes)
    }

    /// The tokenizer's keys, but for `add_bos_token`, in the order of Microsoft's file.
    pub(crate) fn keys(&self, header: &mut Header) {
        match &self.kind {
            Kind::BytePairs { pre, merges } => {
                header.str("tokenizer.ggml.model", "gpt2");
                header.str("tokenizer.ggml.pre", pre);
                header.strings("tokenizer.ggml.tokens", &self.tokens);
                header.f32s("tokenizer.ggml.scores", &vec![0.0; self.tokens.len()]);
                header.i32s("tokenizer.ggml.token_type", &self.types);
                header.strings("tokenizer.ggml.merges", merges);
            }
            Kind::Spm { scores, adds_blank } => {
                header.str("tokenizer.ggml.model", "llama");
                header.str("tokenizer.ggml.pre", "default");
                header.strings("tokenizer.ggml.tokens", &self.tokens);
                header.f32s("tokenizer.ggml.scores", scores);
                header.i32s("tokenizer.ggml.token_type", &self.types);
                header.bool("tokenizer.ggml.add_space_prefix", *adds_blank);
            }
        }
        let mut id = |key: &str, id: Option<u32>| {
            if let Some(id) = id {
                header.u32(&format!("tokenizer.ggml.{key}_token_id"), id);
            }
        };
        id("bos", self.bos);
        id("eos", self.eos);
        id("eot", self.eot);
        id("unknown", self.unknown);
        id("padding", self.padding);
        if self.adds_eos {
            header.bool("tokenizer.ggml.add_eos_token", true);
        }
        if let Some(template) = &self.chat_template {
            header.str("tokenizer.chat_template", template);
        }
    }
}

/// Tokens by id while they are collected.
struct Tokens {
    texts: Vec<Option<String>>,
    types: Vec<i32>,
    ids: HashMap<String, usize>,
    /// Added tokens whose ids the embedding has no rows for.
    beyond: BTreeSet<String>,
}

impl Tokens {
    fn new(n_vocab: usize) -> Tokens {
        Tokens {
            texts: vec![None; n_vocab],
            types: vec![UNUSED; n_vocab],
            ids: HashMap::new(),
            beyond: BTreeSet::new(),
        }
    }

    fn set(&mut self, path: &Path, id: usize, text: &str, kind: i32) -> Result<(), ConvertError> {
        let n_vocab = self.texts.len();
        let Some(slot) = self.texts.get_mut(id) else {
            let reason = format!(
                "token `{text}` has the id {}, the embedding has {} rows",
                grouped(id as u64),
                grouped(n_vocab as u64)
            );
            return Err(ConvertError::file(path, reason));
        };
        if let Some(other) = slot.as_ref().filter(|other| *other != text) {
            let reason = format!("tokens `{other}` and `{text}` have the same id {id}");
            return Err(ConvertError::file(path, reason));
        }
        *slot = Some(text.to_owned());
        self.types[id] = kind;
        self.ids.insert(text.to_owned(), id);
        Ok(())
    }

    fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).map(|&id| id as u32)
    }
}

/// Ids that the tokenizer's own file names.
#[derive(Default)]
struct Specials {
    bos: Option<u32>,
    eos: Option<u32>,
    unknown: Option<u32>,
    padding: Option<u32>,
}

// Byte-level BPE ---------------------------------------------------------------------------------------------------

#[derive(PartialEq)]
enum JsonKind {
    ByteLevel,
    Pieces,
    Other,
}

fn kind_of_json(json: &Json) -> JsonKind {
    if json.text("model.type").is_some_and(|kind| kind != "BPE") {
        return JsonKind::Other;
    }
    let has = |part: &str, kind: &str| json.value(part).is_some_and(|value| mentions(value, kind));
    if has("pre_tokenizer", "ByteLevel") || has("decoder", "ByteLevel") {
        JsonKind::ByteLevel
    } else if json.flag("model.byte_fallback") == Some(true)
        || has("pre_tokenizer", "Metaspace")
        || has("decoder", "Metaspace")
    {
        JsonKind::Pieces
    } else {
        JsonKind::Other
    }
}

/// Whether a part of a pipeline, or a part inside it, is of this type.
fn mentions(value: &Value, kind: &str) -> bool {
    stages(value)
        .iter()
        .any(|stage| stage.get("type").and_then(Value::as_str) == Some(kind))
}

/// The stages of a pipeline, sequences taken apart.
fn stages(value: &Value) -> Vec<&Value> {
    let inner = ["pretokenizers", "normalizers", "decoders", "processors"]
        .iter()
        .find_map(|key| value.get(key).and_then(Value::as_array));
    match inner {
        Some(inner) => inner.iter().flat_map(stages).collect(),
        None => vec![value],
    }
}

fn byte_pairs(
    json: &Json,
    table: &mut Tokens,
    wishes: &Wishes<'_>,
) -> Result<(Kind, Specials), ConvertError> {
    vocabulary(json, table, |_| NORMAL)?;
    let joined = |(index, (a, b)): (usize, (String, String))| {
        let made = format!("{a}{b}");
        match [&a, &b, &made]
            .into_iter()
            .find(|text| table.id(text).is_none())
        {
            None => Ok(format!("{a} {b}")),
            Some(unknown) => {
                let reason = format!("merge {index} names `{unknown}`, which is no token");
                Err(ConvertError::file(json.path(), reason))
            }
        }
    };
    let merges = merges(json)?.into_iter().enumerate().map(joined);
    let merges = merges.collect::<Result<_, _>>()?;
    let pre = match wishes.pre_tokenizer {
        Some(name) => {
            Rules::by_name(name).ok_or_else(|| {
                let known = Rules::known();
                let reason = format!("the pre-tokenizer `{name}` is unknown, known are {known}");
                ConvertError::file(json.path(), reason)
            })?;
            name.to_owned()
        }
        None => pre_tokenizer(json)?.to_owned(),
    };
    Ok((Kind::BytePairs { pre, merges }, Specials::default()))
}

fn vocabulary(
    json: &Json,
    table: &mut Tokens,
    kind: impl Fn(&str) -> i32,
) -> Result<(), ConvertError> {
    let wrong = || json.wrong("model.vocab", "an object of tokens and ids");
    let vocab = json.value("model.vocab").and_then(Value::as_object);
    for (text, id) in vocab.ok_or_else(wrong)? {
        let id = id.as_u64().ok_or_else(wrong)?;
        table.set(json.path(), id as usize, text, kind(text))?;
    }
    Ok(())
}

/// Old files join a pair with a blank, new ones list the two.
fn merges(json: &Json) -> Result<Vec<(String, String)>, ConvertError> {
    let wrong = |index: usize, merge: &Value| {
        let reason = format!(
            "merge {index} is {}, expected two tokens without blanks",
            short(merge)
        );
        ConvertError::file(json.path(), reason)
    };
    let list = json.value("model.merges").and_then(Value::as_array);
    let list = list.ok_or_else(|| json.wrong("model.merges", "a list of pairs"))?;
    let pair = |(index, merge): (usize, &Value)| {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(two) if two.len() == 2 => two[0].as_str().zip(two[1].as_str()),
            _ => None,
        };
        let sound = pair.filter(|(a, b)| {
            !a.is_empty() && !b.is_empty() && !a.contains(' ') && !b.contains(' ')
        });
        let (a, b) = sound.ok_or_else(|| wrong(index, merge))?;
        Ok((a.to_owned(), b.to_owned()))
    };
    list.iter().enumerate().map(pair).collect()
}

/// The name under which GGUF readers know how text is cut.
fn pre_tokenizer(json: &Json) -> Result<&'static str, ConvertError> {
    let value = json.value("pre_tokenizer");
    let stages = value.map(stages).unwrap_or_default();
    let forms: Vec<Stage<'_>> = stages.iter().map(|stage| Stage::of(stage)).collect();
    let known = |pattern: &str| PATTERNS.iter().find(|known| known.1 == pattern);
    let found = match forms[..] {
        [Stage::Split(pattern), Stage::Bytes { regex: false }] => known(pattern).map(|k| k.0),
        [Stage::Bytes { regex: true }] => Some("gpt-2"),
        [Stage::Marks, Stage::Bytes { regex: true }, Stage::Digits] => Some("falcon_e"),
        [
            Stage::Marks,
            Stage::Bytes { regex: true },
            Stage::Split("[0-9]"),
        ] => Some("falcon_e"),
        [
            Stage::Marks,
            Stage::Bytes { regex: true },
            Stage::Split("[0-9][0-9][0-9]"),
        ] => Some("falcon"),
        _ => None,
    };
    found.ok_or_else(|| {
        let shown = value.map_or("missing".to_owned(), short);
        let known = Rules::known();
        let reason = format!("the pre-tokenizer is {shown}, expected what one of {known} does");
        ConvertError::file(json.path(), reason)
    })
}

/// A stage of a pre-tokenizer, as far as it matters here.
enum Stage<'a> {
    Split(&'a str),
    Bytes { regex: bool },
    Marks,
    Digits,
    Other,
}

impl Stage<'_> {
    fn of(value: &Value) -> Stage<'_> {
        let is = |key: &str, wanted: &str| value.get(key).and_then(Value::as_str) == Some(wanted);
        let flag = |key: &str| value.get(key).and_then(Value::as_bool);
        let isolated = is("behavior", "Isolated") && flag("invert") != Some(true);
        let pattern = value
            .get("pattern")
            .and_then(|pattern| pattern.get("Regex"));
        match (pattern.and_then(Value::as_str), isolated) {
            (Some(pattern), true) if is("type", "Split") => return Stage::Split(pattern),
            _ => {}
        }
        if is("type", "ByteLevel") && flag("add_prefix_space") != Some(true) {
            let regex = flag("use_regex").unwrap_or(true);
            Stage::Bytes { regex }
        } else if is("type", "Punctuation") && is("behavior", "Contiguous") {
            Stage::Marks
        } else if is("type", "Digits") && flag("individual_digits") == Some(true) {
            Stage::Digits
        } else {
            Stage::Other
        }
    }
}

// SentencePiece ----------------------------------------------------------------------------------------------------

fn from_pieces(
    path: &Path,
    model: sentencepiece::SentencePiece,
    table: &mut Tokens,
) -> Result<(Kind, Specials), ConvertError> {
    const BPE: u64 = 2;
    if model.kind != BPE {
        let reason = format!(
            "it is a SentencePiece model of kind {}, expected 2 (BPE)",
            model.kind
        );
        return Err(ConvertError::file(path, reason));
    }
    let mut scores = vec![NO_SCORE; table.texts.len()];
    for (id, piece) in model.pieces.iter().enumerate() {
        table.set(path, id, &piece.text, piece.kind)?;
        scores[id] = piece.score;
    }
    let id = |i: usize| u32::try_from(model.specials[i]).ok();
    let specials = Specials {
        unknown: id(0),
        bos: id(1),
        eos: id(2),
        padding: id(3),
    };
    let adds_blank = model.adds_blank;
    Ok((Kind::Spm { scores, adds_blank }, specials))
}

fn pieces_of_json(json: &Json, table: &mut Tokens) -> Result<(Kind, Specials), ConvertError> {
    let unknown = json.text("model.unk_token").map(str::to_owned);
    vocabulary(json, table, |text| match text {
        text if Some(text) == unknown.as_deref() => UNKNOWN,
        text if is_byte(text) => BYTE,
        _ => NORMAL,
    })?;
    // The earlier a merge, the better its score.
    let mut scores = vec![NO_SCORE; table.texts.len()];
    for (rank, (a, b)) in merges(json)?.into_iter().enumerate() {
        if let Some(id) = table.id(&(a + &b)) {
            let score = &mut scores[id as usize];
            *score = score.max(-(rank as f32));
        }
    }
    let prepends = |value: &Value| {
        let kind = |wanted: &str| value.get("type").and_then(Value::as_str) == Some(wanted);
        let scheme = value.get("prepend_scheme").and_then(Value::as_str);
        let prefix = value.get("add_prefix_space").and_then(Value::as_bool);
        kind("Prepend") || kind("Metaspace") && scheme != Some("never") && prefix != Some(false)
    };
    let parts = ["normalizer", "pre_tokenizer"].map(|part| json.value(part));
    let adds_blank = parts.into_iter().flatten().flat_map(stages).any(prepends);
    let specials = Specials {
        unknown: unknown.and_then(|text| table.id(&text)),
        ..Specials::default()
    };
    Ok((Kind::Spm { scores, adds_blank }, specials))
}

/// `<0x0A>`
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

// Both -------------------------------------------------------------------------------------------------------------

/// The JSON files around a tokenizer.
struct Files {
    tokenizer: Option<Json>,
    tokenizer_config: Option<Json>,
    specials: Option<Json>,
    added: Option<Json>,
    config: Option<Json>,
    generation: Option<Json>,
}

impl Files {
    fn read(directory: &Path) -> Result<Files, ConvertError> {
        let find = |name: &str| Json::find(directory, name);
        Ok(Files {
            tokenizer: find("tokenizer.json")?,
            tokenizer_config: find("tokenizer_config.json")?,
            specials: find("special_tokens_map.json")?,
            added: find("added_tokens.json")?,
            config: find("config.json")?,
            generation: find("generation_config.json")?,
        })
    }

    /// Tokens added to the model's own, by any of the three files that may list them.
    fn add_tokens(&self, table: &mut Tokens) -> Result<(), ConvertError> {
        let kind = |token: &Value| match token.get("special").and_then(Value::as_bool) {
            Some(true) => CONTROL,
            _ => USER_DEFINED,
        };
        let listed = |json: &Json, token: &Value, id: Option<u64>, table: &mut Tokens| {
            let content = token.get("content").and_then(Value::as_str);
            let (Some(id), Some(content)) = (id, content) else {
                let reason = format!("the added token {} has no id or content", short(token));
                return Err(ConvertError::file(json.path(), reason));
            };
            if id as usize >= table.texts.len() {
                table.beyond.insert(content.to_owned());
                return Ok(());
            }
            let is_unknown = table.types.get(id as usize) == Some(&UNKNOWN);
            let kind = if is_unknown { UNKNOWN } else { kind(token) };
            table.set(json.path(), id as usize, content, kind)
        };
        if let Some(json) = &self.added {
            let tokens = json.whole().as_object();
            for (text, id) in tokens.into_iter().flatten() {
                let Some(id) = id.as_u64() else { continue };
                table.set(json.path(), id as usize, text, CONTROL)?;
            }
        }
        if let Some(json) = &self.tokenizer_config {
            let tokens = json
                .value("added_tokens_decoder")
                .and_then(Value::as_object);
            for (id, token) in tokens.into_iter().flatten() {
                listed(json, token, id.parse().ok(), table)?;
            }
        }
        if let Some(json) = &self.tokenizer {
            let tokens = match json.value("added_tokens") {
                None => &[][..],
                Some(Value::Array(tokens)) => tokens,
                Some(_) => return Err(json.wrong("added_tokens", "a list of tokens")),
            };
            for token in tokens {
                listed(json, token, token.get("id").and_then(Value::as_u64), table)?;
            }
        }
        Ok(())
    }

    /// A special token by its role, such as `bos_token`: by name, or by the id in the model's configuration.
    fn special(&self, role: &str, table: &Tokens) -> Option<u32> {
        let named = |json: &Option<Json>| {
            let value = json.as_ref()?.value(role)?;
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            table.id(text?)
        };
        let key = format!("{role}_id");
        let numbered = |json: &Option<Json>| {
            let value = json.as_ref()?.value(&key)?;
            let id = value.as_u64().or_else(|| value.get(0)?.as_u64())?;
            ((id as usize) < table.texts.len()).then_some(id as u32)
        };
        named(&self.tokenizer_config)
            .or_else(|| named(&self.specials))
            .or_else(|| numbered(&self.config))
            .or_else(|| numbered(&self.generation))
    }

    /// What ends a turn, when it isn't what ends the text.
    fn end_of_turn(&self, eos: Option<u32>, table: &Tokens) -> Option<u32> {
        let listed = [&self.generation, &self.config].into_iter().flatten();
        let listed = listed.filter_map(|json| json.value("eos_token_id")?.as_array());
        let listed = listed.flatten().filter_map(Value::as_u64);
        let listed = listed.map(|id| id as u32);
        let named = END_OF_TURN.iter().filter_map(|text| table.id(text));
        let is_special = |id: &u32| {
            let kind = table.types.get(*id as usize);
            matches!(kind, Some(&(CONTROL | USER_DEFINED)))
        };
        named
            .chain(listed)
            .find(|id| Some(*id) != eos && is_special(id))
    }

    /// What stands behind every text that is embedded: by the post-processor, or else the end of the text as Qwen has it, which
    /// the models are trained with.
    fn ending(&self, table: &Tokens, notes: &mut Vec<String>) -> Option<u32> {
        const QWEN: &str = "<|endoftext|>";
        let processor = self.tokenizer.as_ref()?.value("post_processor");
        let last = |stage: &Value| {
            let part = stage.get("single")?.as_array()?.last()?;
            table.id(part.get("SpecialToken")?.get("id")?.as_str()?)
        };
        let stages = processor.map(stages).unwrap_or_default();
        if let Some(id) = stages.into_iter().find_map(last) {
            return Some(id);
        }
        let id = table.id(QWEN)?;
        notes.push(format!(
            "tokenizer.json puts nothing behind a text: `{QWEN}` will be, as Microsoft's converter has it"
        ));
        Some(id)
    }

    /// The post-processor puts this token in front (or behind).
    fn processor_adds(&self, id: Option<u32>, table: &Tokens, behind: bool) -> Option<bool> {
        let json = self.tokenizer.as_ref()?;
        let processor = json.value("post_processor")?;
        let text = table.texts.get(id? as usize)?.as_deref()?;
        let adds = |stage: &&Value| {
            let single = stage.get("single").and_then(Value::as_array);
            let edge = single.and_then(|parts| match behind {
                true => parts.last(),
                false => parts.first(),
            });
            edge.and_then(|part| part.get("SpecialToken")?.get("id")?.as_str()) == Some(text)
        };
        Some(stages(processor).iter().any(adds))
    }

    fn finish(
        &self,
        directory: &Path,
        table: Tokens,
        kind: Kind,
        own: Specials,
        wishes: &Wishes<'_>,
    ) -> Result<Vocabulary, ConvertError> {
        let mut notes = Vec::new();
        let bos = self.special("bos_token", &table).or(own.bos);
        let ending = match wishes.ends_texts {
            true => self.ending(&table, &mut notes),
            false => None,
        };
        let eos = ending.or_else(|| self.special("eos_token", &table).or(own.eos));
        let eot = self.end_of_turn(eos, &table);
        let is_spm = matches!(kind, Kind::Spm { .. });
        let said = |key: &str| self.tokenizer_config.as_ref()?.flag(key);
        let adds_bos = said("add_bos_token")
            .or_else(|| self.processor_adds(bos, &table, false))
            .unwrap_or(is_spm);
        let adds_eos = said("add_eos_token")
            .or_else(|| self.processor_adds(eos, &table, true))
            .unwrap_or(false)
            || ending.is_some();
        if let Some(text) = table.beyond.first() {
            notes.push(format!(
                "{} added tokens such as `{text}` are left out: the embedding has no rows for them",
                table.beyond.len()
            ));
        }
        let unused = table.texts.iter().filter(|text| text.is_none()).count();
        if unused > 0 {
            notes.push(format!(
                "{} rows of the embedding belong to no token; they are named `[PAD…]` and marked unused",
                grouped(unused as u64)
            ));
        }
        if let (Kind::BytePairs { pre, .. }, Some(json)) = (&kind, &self.tokenizer) {
            let whole_words = json.flag("model.ignore_merges").unwrap_or(false);
            if Rules::by_name(pre).is_some_and(|rules| rules.ignore_merges != whole_words) {
                notes.push(format!(
                    "`ignore_merges` is {whole_words} in tokenizer.json, readers of `{pre}` take the opposite: words that are tokens but not made by merges may be cut differently"
                ));
            }
        }
        let chat_template = match wishes.chat_template {
            Some(template) => Some(template.to_owned()),
            None => self.chat_template(directory)?,
        };
        let name =
            |(id, text): (usize, Option<String>)| text.unwrap_or_else(|| format!("[PAD{id}]"));
        Ok(Vocabulary {
            kind,
            unknown: self.special("unk_token", &table).or(own.unknown),
            padding: self.special("pad_token", &table).or(own.padding),
            types: table.types,
            tokens: table.texts.into_iter().enumerate().map(name).collect(),
            bos,
            eos,
            eot,
            adds_bos: adds_bos && bos.is_some(),
            adds_eos: adds_eos && eos.is_some(),
            chat_template,
            notes,
        })
    }

    /// From `chat_template.jinja`, `tokenizer_config.json` or `chat_template.json`, in this order; of several the default.
    fn chat_template(&self, directory: &Path) -> Result<Option<String>, ConvertError> {
        let path = directory.join("chat_template.jinja");
        if path.exists() {
            let text = std::fs::read_to_string(&path).map_err(ConvertError::read(&path))?;
            return Ok(Some(text));
        }
        let separate = Json::find(directory, "chat_template.json")?;
        let files = [self.tokenizer_config.as_ref(), separate.as_ref()];
        let values = files.into_iter().flatten();
        let template = values
            .filter_map(|json| json.value("chat_template"))
            .find_map(|value| match value {
                Value::String(text) => Some(text.clone()),
                Value::Array(list) => {
                    let named = |wanted: &str| {
                        let of = |entry: &&Value| entry.get("name")?.as_str().map(|n| n == wanted);
                        list.iter().find(|entry| of(entry) == Some(true))
                    };
                    let entry = named("default").or_else(|| list.first())?;
                    Some(entry.get("template")?.as_str()?.to_owned())
                }
                _ => None,
            });
        Ok(template)
    }
}

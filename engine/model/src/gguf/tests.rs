//! Headers of every kind, sound and broken.

use super::*;
use crate::facts::ModelFacts;
use crate::protocol::Overrides;
use crate::synth::header::Header;
use crate::synth::{self, Shape};
use crate::tokenizer::Tokenizer;

fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::from_bytes(SharedBytes::new(bytes.to_vec()))
}

fn message(bytes: &[u8]) -> String {
    parse(bytes).expect_err("a bad file").to_string()
}

/// A header with one bad thing in it.
fn with(edit: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut header = Header::default();
    edit(&mut header);
    header.bytes()
}

fn small_model() -> Vec<u8> {
    let tiny = Shape::preset("tiny").unwrap();
    let shape = Shape {
        n_layer: 1,
        n_embd: 128,
        n_ff: 128,
        n_head: 2,
        n_head_kv: 1,
        n_vocab: 280,
        ..tiny
    };
    synth::to_bytes(&shape, 5).unwrap()
}

#[test]
fn reads_every_value_type() {
    let gguf = parse(&with(|h| {
        h.value("u8", 0, &[200]);
        h.value("i8", 1, &[0xff]);
        h.value("u16", 2, &500u16.to_le_bytes());
        h.value("i16", 3, &(-5i16).to_le_bytes());
        h.u32("u32", 70_000);
        h.value("i32", 5, &7i32.to_le_bytes());
        h.f32("f32", 0.5);
        h.bool("bool", true);
        h.str("string", "grüße");
        h.strings("strings", &["a", "", "ccc"]);
        h.i32s("i32s", &[1, -2]);
        h.f32s("f32s", &[0.25, 4.0]);
        h.value("u64", 10, &(1u64 << 40).to_le_bytes());
        h.value("i64", 11, &(-9i64).to_le_bytes());
        h.value("f64", 12, &0.125f64.to_le_bytes());
    }))
    .unwrap();
    for (key, expected) in [
        ("u8", Some(200)),
        ("u16", Some(500)),
        ("u32", Some(70_000)),
        ("i32", Some(7)),
        ("u64", Some(1 << 40)),
        ("gone", None),
    ] {
        assert_eq!(gguf.u64(key).unwrap(), expected, "{key}");
    }
    assert_eq!(
        (gguf.f32("f32").unwrap(), gguf.f32("f64").unwrap()),
        (Some(0.5), Some(0.125))
    );
    assert_eq!(
        (gguf.bool("bool").unwrap(), gguf.str("string").unwrap()),
        (Some(true), Some("grüße"))
    );
    let strings = gguf.array("strings", Element::String).unwrap().unwrap();
    assert_eq!(
        strings.strings().collect::<Vec<_>>(),
        [b"a".as_slice(), b"", b"ccc"]
    );
    assert_eq!(
        (strings.string(2), strings.string(3)),
        (Some(b"ccc".as_slice()), None)
    );
    let numbers = gguf.value("i32s").unwrap().as_array().unwrap();
    assert_eq!(numbers.i32s().unwrap().collect::<Vec<_>>(), [1, -2]);
    assert_eq!(
        gguf.value("f32s")
            .unwrap()
            .as_array()
            .unwrap()
            .f32s()
            .unwrap()
            .sum::<f32>(),
        4.25
    );
    assert_eq!(
        gguf.u64("i8").unwrap_err().to_string(),
        "key `i8` is i8, expected an integer that isn't negative"
    );
    assert_eq!(
        gguf.u32("u64").unwrap_err().to_string(),
        "key `u64` is u64, expected an integer of 32 bits that isn't negative"
    );
    assert_eq!(
        gguf.array("i32s", Element::F32).unwrap_err().to_string(),
        "key `i32s` is array of i32, expected an array of f32"
    );
}

#[test]
fn foreign_files_are_named() {
    for (bytes, name) in [
        (
            b"version https://git-lfs.github.com/spec/v1\n".as_slice(),
            "a Git LFS pointer",
        ),
        (b"\n <!DOCTYPE html><html>", "an HTML page"),
        (
            b"PK\x03\x04 and so on",
            "a zip archive (perhaps a PyTorch checkpoint)",
        ),
        (
            b"\x40\0\0\0\0\0\0\0{\"__metadata__\":{}}",
            "a safetensors file",
        ),
        (
            b"tjgg\x03\0\0\0",
            "a model in one of ggml's formats from before GGUF",
        ),
        (b"{\"error\": \"not found\"}", "a JSON text"),
        (b"\x1f\x8b\x08", "a compressed file"),
        (b"\x7fELF\x02", "a file that begins with `\\x7fELF`"),
    ] {
        let error = parse(bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("this is {name}, expected a GGUF file")
        );
        assert!(error.hint().is_some());
    }
    assert_eq!(message(b""), "the file is empty, expected a GGUF file");
    assert_eq!(
        message(b"GG"),
        "the header needs 24 bytes at offset 0, the file ends after 2"
    );
    let version = |v: u32| [b"GGUF".as_slice(), &v.to_le_bytes(), &[0; 16]].concat();
    assert_eq!(
        message(&version(1)),
        "GGUF version 1 is not supported, versions 2 and 3 are"
    );
    assert_eq!(
        message(&version(4)),
        "GGUF version 4 is not supported, versions 2 and 3 are"
    );
    assert_eq!(
        message(&version(3 << 24)),
        "this GGUF is big-endian, only little-endian files are supported"
    );
    assert!(parse(&version(2)).is_ok());
}

#[test]
fn announced_lengths_are_checked_first() {
    let counts = |tensors: u64, values: u64| {
        [
            b"GGUF".as_slice(),
            &3u32.to_le_bytes(),
            &tensors.to_le_bytes(),
            &values.to_le_bytes(),
        ]
        .concat()
    };
    assert!(message(&counts(0, u64::MAX)).starts_with(
        "the table of keys announces 18,446,744,073,709,551,615 entries at offset 24"
    ));
    assert!(
        message(&counts(1 << 40, 0))
            .starts_with("the table of tensors announces 1,099,511,627,776 entries")
    );
    let array =
        |element: u32, n: u64| [element.to_le_bytes().as_slice(), &n.to_le_bytes()].concat();
    for element in [0, 6, 8, 12] {
        let text = message(&with(|h| h.value("k", 9, &array(element, u64::MAX / 2))));
        assert!(text.contains("key `k` announces"), "{text}");
    }
    let text = message(&with(|h| h.value("k", 8, &u64::MAX.to_le_bytes())));
    assert!(
        text.starts_with("key `k` needs 18,446,744,073,709,551,615 bytes at offset"),
        "{text}"
    );
    let one_string = [array(8, 1), u64::MAX.to_le_bytes().to_vec()].concat();
    let text = message(&with(|h| h.value("k", 9, &one_string)));
    assert!(text.starts_with("key `k` needs"), "{text}");
}

#[test]
fn bad_headers_are_refused() {
    type Bad<'a> = (&'a dyn Fn(&mut Header), &'a str);
    let table: &[Bad<'_>] = &[
        (
            &|h| (0..2).for_each(|_| h.u32("twice", 1)),
            "key `twice` is in the file twice",
        ),
        (&|h| h.u32("", 1), "a key at offset 24 is empty"),
        (
            &|h| h.value("k", 13, &[]),
            "key `k` has value type 13, known are 0 to 12",
        ),
        (
            &|h| h.value("k", 7, &[2]),
            "key `k` holds the byte 2 as bool, expected 0 or 1",
        ),
        (
            &|h| h.value("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]),
            "key `k` at offset 45 is not UTF-8",
        ),
        (
            &|h| h.value("k", 9, &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            "key `k` is an array of arrays, which GGUF readers refuse",
        ),
        (
            &|h| h.u32("general.alignment", 0),
            "`general.alignment` is 0, expected a power of two up to 1,048,576",
        ),
        (
            &|h| h.u32("general.alignment", 3),
            "`general.alignment` is 3, expected a power of two up to 1,048,576",
        ),
        (
            &|h| h.str("general.alignment", "x"),
            "key `general.alignment` is string, expected an integer that isn't negative",
        ),
        (
            &|h| (0..2).for_each(|_| h.tensor_at("t", &[8], 0, 0)),
            "tensor `t` is in the file twice",
        ),
        (
            &|h| h.tensor_at("t", &[1; 5], 0, 0),
            "tensor `t` has 5 dimensions, at most 4 are supported",
        ),
        (
            &|h| h.tensor_at("t", &[1 << 40, 1 << 40], 0, 0),
            "tensor `t` has the shape [1099511627776, 1099511627776], which no memory holds",
        ),
        (
            &|h| h.tensor_at("t", &[4, 0], 0, 0),
            "tensor `t` has the shape [4, 0], which no memory holds",
        ),
        (
            &|h| h.tensor_at("t", &[8], 0, 7),
            "tensor `t` begins at 7 in the data, expected a multiple of 32",
        ),
        (
            &|h| h.tensor_at("t", &[33], 8, 0),
            "tensor `t` has rows of 33 weights, Q8_0 needs a multiple of 32",
        ),
        (
            &|h| h.tensor_at("t", &[2, 3], 36, 0),
            "tensor `t` has rows of 2 weights, I2_S needs a multiple of 4",
        ),
        (
            &|h| h.tensor_at("t", &[8], 0, 1 << 62),
            "tensor `t` needs 32 bytes at offset 4,611,686,018,427,387,968, the file ends after 64",
        ),
        (
            &|h| h.tensor_at("t", &[8], 0, u64::MAX - 31),
            "tensor `t` needs 1 bytes at offset 18,446,744,073,709,551,584, the file ends after 64",
        ),
    ];
    for (edit, expected) in table {
        assert_eq!(&message(&with(|h| edit(h))), expected);
    }
}

#[test]
fn tensors_lie_inside_the_file_and_apart() {
    let mut bytes = with(|h| {
        h.tensor_at("blk.3.ffn_down.weight", &[1024, 1024], 1, 0);
    });
    bytes.resize(bytes.len() + 1000, 0);
    let error = parse(&bytes).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `blk.3.ffn_down.weight` needs 2,097,152 bytes at offset 96, the file ends after 1,096"
    );
    assert!(error.hint().unwrap().contains("incomplete"));
    let mut bytes = with(|h| {
        h.tensor_at("a", &[16], 0, 0);
        h.tensor_at("b", &[8], 0, 32);
    });
    bytes.resize(bytes.len() + 64, 0);
    assert_eq!(message(&bytes), "tensors `a` and `b` overlap in the file");
}

#[test]
fn unknown_types_stay_and_short_i2_s_tails_are_accepted() {
    let mut bytes = with(|h| {
        h.tensor_at("mystery", &[100], 143, 0);
        h.tensor_at("short", &[128, 4], 36, 64);
        h.tensor_at("last", &[128, 1], 36, 224);
    });
    bytes.resize(bytes.len() + 224 + 36, 0);
    let gguf = parse(&bytes).unwrap();
    let of = |name: &str| gguf.tensor(name).map(|info| (info.ty, info.bytes)).unwrap();
    assert_eq!(of("mystery"), (TensorType::Unknown(143), 64));
    assert_eq!(of("mystery").0.to_string(), "type 143");
    assert_eq!(of("short"), (TensorType::I2S, 160));
    assert_eq!(of("last"), (TensorType::I2S, 36));
    assert_eq!(gguf.data(gguf.tensor("last").unwrap()).len(), 36);
    bytes.truncate(bytes.len() - 1);
    assert!(message(&bytes).starts_with("tensor `last` needs 64 bytes"));
}

/// Id 39: TL2 where bitnet.cpp wrote the file, MXFP4 elsewhere.
#[test]
fn id_39_is_settled_by_the_file() {
    let read = |arch: &str, file_type: u32, ty: TensorType| {
        let dims = [2560, 640];
        let bytes = ty.data_bytes(&dims).unwrap();
        let mut file = with(|h| {
            h.str("general.architecture", arch);
            h.u32("general.file_type", file_type);
            h.tensor_at("w", &dims, 39, 0);
            h.tensor_at("n", &[8], 0, bytes.next_multiple_of(32));
        });
        file.resize(file.len() + bytes.next_multiple_of(32) as usize + 32, 0);
        parse(&file).unwrap().tensor("w").unwrap().ty
    };
    assert_eq!(read("bitnet-b1.58", 39, TensorType::TL2), TensorType::TL2);
    assert_eq!(read("llama", 39, TensorType::TL2), TensorType::TL2);
    assert_eq!(read("gpt-oss", 38, TensorType::MXFP4), TensorType::MXFP4);
    assert_eq!(read("llama", 39, TensorType::MXFP4), TensorType::MXFP4);
}

#[test]
fn type_ids_come_back() {
    for id in 0..300 {
        assert_eq!(TensorType::from_id(id).id(), id);
    }
    assert_eq!(TensorType::TL2.id(), 39);
}

#[test]
fn keys_take_other_values_of_their_kind() {
    let set = |key: &str, value: KeyValue| KeyOverride {
        key: key.to_owned(),
        value,
    };
    let gguf = || parse(&small_model()).unwrap();
    let changed = gguf()
        .with_keys(&[
            set("bitnet-b1.58.block_count", KeyValue::Int(7)),
            set("bitnet-b1.58.rope.freq_base", KeyValue::Float(1.5)),
            set("general.name", KeyValue::Str("first".into())),
            set("general.name", KeyValue::Str("last".into())),
            set("a.new.key", KeyValue::Bool(true)),
        ])
        .unwrap();
    assert_eq!(changed.u64("bitnet-b1.58.block_count").unwrap(), Some(7));
    assert_eq!(
        changed.f32("bitnet-b1.58.rope.freq_base").unwrap(),
        Some(1.5)
    );
    assert_eq!(changed.str("general.name").unwrap(), Some("last"));
    assert_eq!(changed.bool("a.new.key").unwrap(), Some(true));
    assert_eq!(changed.values().len(), gguf().values().len() + 1);
    for (key, value, found) in [
        ("general.name", KeyValue::Int(1), "string"),
        (
            "tokenizer.ggml.tokens",
            KeyValue::Str("x".into()),
            "array of string",
        ),
        ("bitnet-b1.58.block_count", KeyValue::Float(7.0), "u32"),
    ] {
        let error = gguf()
            .with_keys(&[set(key, value)])
            .unwrap_err()
            .to_string();
        let wanted = format!("key `{key}` is {found} in the file, its override ");
        assert!(error.starts_with(&wanted), "{error}");
    }
    let error = gguf().with_keys(&[set("general.alignment", KeyValue::Int(64))]);
    let text = error.unwrap_err().to_string();
    assert!(
        text.starts_with("key `general.alignment` can't be overridden: "),
        "{text}"
    );
}

#[test]
fn missing_files_and_directories() {
    let directory = tempfile::tempdir().unwrap();
    let gone = directory.path().join("gone.gguf");
    let error = Gguf::open(&gone).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot open `{}`: ", gone.display())),
        "{error}"
    );
    assert!(matches!(
        Gguf::open(directory.path()),
        Err(GgufError::Directory { .. })
    ));
    let empty = directory.path().join("empty.gguf");
    std::fs::write(&empty, b"").unwrap();
    assert!(matches!(Gguf::open(&empty), Err(GgufError::Empty)));
    let model = directory.path().join("model.gguf");
    std::fs::write(&model, small_model()).unwrap();
    assert_eq!(Gguf::open(&model).unwrap().tensors().len(), 13);
    let copy = Gguf::read(&model).unwrap();
    assert_eq!(copy.tensors(), Gguf::open(&model).unwrap().tensors());
    assert!(copy.map().is_none());
    std::fs::remove_file(&model).unwrap();
    assert!(matches!(Gguf::read(&model), Err(GgufError::Open { .. })));
}

#[test]
fn a_model_cut_anywhere_is_an_error() {
    let bytes = small_model();
    let data_start = parse(&bytes).unwrap().data_start() as usize;
    let whole = SharedBytes::new(bytes);
    let data_cuts = (data_start..whole.len()).step_by(997);
    for end in (0..data_start)
        .chain(data_cuts)
        .chain(whole.len() - 40..whole.len())
    {
        assert!(
            Gguf::from_bytes(whole.slice(0..end).unwrap()).is_err(),
            "cut at {end}"
        );
    }
}

#[test]
fn flipped_bits_never_panic() {
    let sound = small_model();
    let header_bytes = parse(&sound).unwrap().data_start();
    let mut rng = synth::random::Rng::new(11, 0);
    for round in 0..4000 {
        let mut bytes = sound.clone();
        let mut flips = Vec::new();
        for _ in 0..1 + rng.u64() % 4 {
            // Mostly the structured beginning, where lengths and counts are.
            let most = if rng.u64().is_multiple_of(2) {
                1200
            } else {
                header_bytes
            };
            let (at, bit) = (rng.u64() % most, rng.u64() % 8);
            bytes[at as usize] ^= 1 << bit;
            flips.push((at, bit));
        }
        let read = std::panic::catch_unwind(|| {
            let Ok(gguf) = Gguf::from_bytes(SharedBytes::new(bytes)) else {
                return;
            };
            let _ =
                ModelFacts::read(&gguf, &Overrides::default()).map_err(|error| error.to_string());
            gguf.tensors().iter().for_each(|info| drop(gguf.data(info)));
            if round % 20 == 0 {
                let tokenizer = Tokenizer::from_gguf(&gguf, &Overrides::default());
                let _ =
                    tokenizer.map(|tokenizer| tokenizer.encode("Hello there\n 123", true, true));
            }
        });
        assert!(read.is_ok(), "(byte, bit) flips: {flips:?}");
    }
}

#[test]
fn numbers_are_grouped() {
    for (n, text) in [
        (0, "0"),
        (999, "999"),
        (1000, "1,000"),
        (1_769_472, "1,769,472"),
    ] {
        assert_eq!(grouped(n), text);
    }
}

//! Packings there and back, and files of others.

use super::*;

#[test]
fn packings_there_and_back_are_equal_bit_for_bit() {
    for preset in ["tiny", "tiny-llama"] {
        let directory = tempfile::tempdir().unwrap();
        let source = tiny(directory.path(), preset);
        let mut checksums = Vec::new();
        let mut at = source.clone();
        let way = [
            TensorType::TQ2_0,
            TensorType::I2S,
            TensorType::TL2,
            TensorType::TL1,
            TensorType::TQ1_0,
            TensorType::I2S,
        ];
        for (step, outtype) in way.into_iter().enumerate() {
            let next = directory.path().join(format!("{step}.gguf"));
            let summary = convert(&at, &next, &to(outtype)).unwrap();
            assert_eq!(summary.before, summary.after);
            checksums.push(summary.after);
            at = next;
        }
        checksums.dedup();
        assert_eq!(checksums.len(), 1);
        assert_eq!(contents(&at), contents(&source), "{preset}");
    }
}

/// Upstream llama.cpp knows the packing and not the graph: whoever makes such a file is told.
#[test]
fn a_file_that_llama_cpp_refuses_says_so() {
    let notes = |source: &Path, outtype| Plan::of(source, &to(outtype)).unwrap().notes;
    let says = |notes: &[String]| {
        notes
            .iter()
            .any(|n| n.contains("no architecture `bitnet-b1.58`"))
    };
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    for outtype in [TensorType::TQ2_0, TensorType::TQ1_0] {
        assert!(says(&notes(&source, outtype)), "{outtype}");
    }
    for outtype in [TensorType::I2S, TensorType::TL2] {
        assert!(!says(&notes(&source, outtype)), "{outtype}");
    }
    let llama = tiny(directory.path(), "tiny-llama");
    assert!(!says(&notes(&llama, TensorType::TQ2_0)));
}

#[test]
fn packed_checkpoints_keep_their_weights_in_every_packing() {
    let directory = tempfile::tempdir().unwrap();
    // d = 128 suits I2_S only.
    let direct = directory.path().join("direct.gguf");
    let summary = convert(&data("packed"), &direct, &to(TensorType::I2S)).unwrap();
    assert_eq!(summary.before, summary.after);
    for outtype in [TensorType::TQ2_0, TensorType::TL2] {
        let target = directory.path().join("no.gguf");
        let error = convert(&data("packed"), &target, &to(outtype)).unwrap_err();
        assert!(error.to_string().contains("model.layers.0."), "{error}");
        assert!(!target.exists());
    }
}

#[test]
fn every_packing_makes_the_same_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    let mut outcomes = Vec::new();
    for outtype in PACKINGS {
        let file = directory.path().join(format!("{outtype}.gguf"));
        convert(&source, &file, &to(outtype)).unwrap();
        let facts = ModelFacts::read(&Gguf::open(&file).unwrap(), &Overrides::default()).unwrap();
        assert_eq!(facts.ternary_type, outtype);
        let mut run = common::Run::new(&common::config(&file));
        outcomes.push(
            run.generate(common::submit(1, &common::prompt(3, 9)))
                .tokens,
        );
    }
    assert!(!outcomes[0].is_empty());
    outcomes.dedup();
    assert_eq!(outcomes.len(), 1);
}

/// A file as bitnet.cpp writes it names no tiles: presets or the user must.
#[test]
fn foreign_lookup_files_need_tiles() {
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    let lookup = directory.path().join("tl2.gguf");
    convert(&source, &lookup, &to(TensorType::TL2)).unwrap();
    let mut bytes = std::fs::read(&lookup).unwrap();
    let key = b"bitnet_launch.lookup_tiles";
    let at = bytes
        .windows(key.len())
        .position(|part| part == key)
        .unwrap();
    bytes[at..at + 3].copy_from_slice(b"xxx");
    let foreign = directory.path().join("foreign.gguf");
    std::fs::write(&foreign, bytes).unwrap();
    let target = directory.path().join("i2_s.gguf");
    let error = convert(&foreign, &target, &Options::default()).unwrap_err();
    assert!(error.to_string().contains("no tile sizes are known"));
    assert!(error.hint().unwrap().contains("--lookup-tiles"));
    let known = Gguf::open(&lookup).unwrap();
    let tiles = known
        .value(bitnet_model::convert::lookup::TILES_KEY)
        .unwrap();
    let tiles = tiles.as_array().unwrap().strings();
    let tiles = tiles.map(|text| std::str::from_utf8(text).unwrap().parse().unwrap());
    let options = Options {
        tiles: tiles.collect(),
        ..Options::default()
    };
    convert(&foreign, &target, &options).unwrap();
    assert_eq!(contents(&target), contents(&source));
    let mut config = common::config(&foreign);
    config.overrides.lookup_tiles = options.tiles;
    let mut run = common::Run::new(&config);
    assert!(
        !run.generate(common::submit(1, &[1, 2, 3]))
            .tokens
            .is_empty()
    );
}

#[test]
fn the_64_layout_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    let gguf = Gguf::open(&source).unwrap();
    let mut bytes = std::fs::read(&source).unwrap();
    for info in gguf
        .tensors()
        .iter()
        .filter(|info| info.ty == TensorType::I2S)
    {
        let at = info.offset as usize;
        let codes = &mut bytes[at..at + info.elements() as usize / 4];
        for block in codes.chunks_exact_mut(32) {
            let code = |j: usize| block[j % 32] >> (6 - 2 * (j / 32)) & 3;
            let mut other = [0u8; 32];
            for j in 0..128 {
                let (half, k) = (j / 64, j % 64);
                other[16 * half + k % 16] |= code(j) << (6 - 2 * (k / 16));
            }
            block.copy_from_slice(&other);
        }
    }
    let arm = directory.path().join("arm.gguf");
    std::fs::write(&arm, bytes).unwrap();
    let fixed = directory.path().join("fixed.gguf");
    let options = Options {
        layout: I2sLayout::Blocks64,
        ..Options::default()
    };
    convert(&arm, &fixed, &options).unwrap();
    assert_eq!(contents(&fixed), contents(&source));
}

#[test]
fn faults_of_published_files_are_corrected() {
    let directory = tempfile::tempdir().unwrap();
    let source = tiny(directory.path(), "tiny");
    let target = directory.path().join("target.gguf");
    let options = Options {
        pre_tokenizer: Some("qwen2".to_owned()),
        chat_template: Some("mine".to_owned()),
        ..Options::default()
    };
    convert(&source, &target, &options).unwrap();
    let gguf = Gguf::open(&target).unwrap();
    assert_eq!(gguf.str("tokenizer.ggml.pre").unwrap(), Some("qwen2"));
    assert_eq!(gguf.str("tokenizer.chat_template").unwrap(), Some("mine"));
    let keys = |path: &Path| Gguf::open(path).unwrap().values().len();
    assert_eq!(keys(&target), keys(&source));
}

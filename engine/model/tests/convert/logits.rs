//! Models that Transformers saved give the logits it makes of them.

use super::*;

#[derive(Deserialize)]
struct Vectors {
    sequences: Vec<Sequence>,
}

#[derive(Deserialize)]
struct Sequence {
    tokens: Vec<u32>,
    argmax: Vec<usize>,
    positions: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

#[test]
fn master_weights_give_transformers_logits() {
    assert_same_logits("masters", "bitnet-b1.58");
}

#[test]
fn packed_weights_times_their_scale_give_transformers_logits() {
    assert_same_logits("packed", "bitnet-b1.58");
}

#[test]
fn packed_weights_over_their_scale_give_transformers_logits() {
    assert_same_logits("packed_llama", "llama");
}

/// Rows of 288 and 352 weights: I2_S can't hold them, TL2 and TL1 can; in memory they are filled up.
#[test]
fn rows_of_no_whole_blocks_give_transformers_logits() {
    let directory = tempfile::tempdir().unwrap();
    let plan = Plan::of(&data("wide"), &Options::default()).unwrap();
    assert_eq!(plan.outtype, TensorType::TL2);
    assert!(
        plan.notes
            .iter()
            .any(|note| note.contains("rows of 288 weights"))
    );
    let mut rows = Vec::new();
    for outtype in [TensorType::TL2, TensorType::TL1] {
        let file = directory.path().join(format!("{outtype}.gguf"));
        convert(&data("wide"), &file, &to(outtype)).unwrap();
        assert_file_gives_logits(&file, "wide", "bitnet");
        for kernel in Kernel::available() {
            let mut config = common::config(&file);
            config.kernel = kernel.to_string();
            rows.push(logits_of_chunks(&config));
        }
    }
    assert!(rows.windows(2).all(|pair| pair[0] == pair[1]));
    // Between the two, and not into I2_S.
    let (tl1, tl2) = (
        directory.path().join("TL1.gguf"),
        directory.path().join("TL2.gguf"),
    );
    let again = directory.path().join("again.gguf");
    convert(&tl2, &again, &to(TensorType::TL1)).unwrap();
    assert_eq!(contents(&again), contents(&tl1));
    let plan = Plan::of(&tl1, &Options::default()).unwrap();
    assert_eq!(plan.outtype, TensorType::TL2);
    for outtype in [TensorType::I2S, TensorType::TQ2_0] {
        let error = Plan::of(&data("wide"), &to(outtype)).unwrap_err();
        assert!(
            error.to_string().contains("needs rows of a multiple of"),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("without `--outtype`"));
    }
}

/// The bits of the logits behind ten tokens, evaluated three at a time.
fn logits_of_chunks(config: &EngineConfig) -> Vec<u32> {
    let mut engine = common::load(config);
    let entry = |(i, &token): (usize, &u32)| Entry {
        slot: 0,
        token,
        wants_logits: i == 9,
    };
    let tokens = common::prompt(4, 10);
    let entries: Vec<Entry> = tokens.iter().enumerate().map(entry).collect();
    let mut bits = Vec::new();
    for chunk in entries.chunks(3) {
        let n_vocab = engine.facts().n_vocab;
        let wanted = chunk.iter().filter(|entry| entry.wants_logits).count();
        let logits = engine.forward(chunk);
        bits.extend(logits[..wanted * n_vocab].iter().map(|x| x.to_bits()));
    }
    bits
}

/// I2_S as bitnet.cpp's quantizer writes it without a thought for rows: blocks run across them.
#[test]
fn blocks_across_rows_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let lookup = directory.path().join("tl1.gguf");
    convert(&data("wide"), &lookup, &to(TensorType::TL1)).unwrap();
    let gguf = Gguf::open(&lookup).unwrap();
    let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
    let matrix = tensors::linear(&gguf, &facts, 0, Linear::Down).unwrap();
    let mut bytes = std::fs::read(&lookup).unwrap();
    for info in gguf
        .tensors()
        .iter()
        .filter(|info| info.ty == TensorType::TL1)
    {
        // The sizes are the same: two bits for each weight and 32 bytes.
        let (rows, cols) = (info.rows() as usize, info.cols() as usize);
        let layer = Linear::ALL
            .into_iter()
            .find(|linear| linear.weight_name(0) == info.name);
        let matrix = tensors::linear(&gguf, &facts, 0, layer.unwrap()).unwrap();
        let mut trits = Vec::new();
        for row in 0..rows {
            let mut padded = vec![0i8; matrix.cols()];
            matrix.ternary_row(row, &mut padded);
            trits.extend_from_slice(&padded[..cols]);
        }
        let at = info.offset as usize;
        for (block, trits) in bytes[at..].chunks_mut(32).zip(trits.chunks_exact(128)) {
            block.fill(0);
            for (j, trit) in trits.iter().enumerate() {
                block[j % 32] |= ((trit + 1) as u8) << (6 - 2 * (j / 32));
            }
        }
        // Behind its name, the dimensions: n, two of eight bytes, then the type.
        let name = info.name.as_bytes();
        let place = bytes
            .windows(name.len())
            .position(|part| part == name)
            .unwrap();
        let ty = place + name.len() + 4 + 16;
        assert_eq!(bytes[ty], 38);
        bytes[ty] = 36;
    }
    let flat = directory.path().join("flat.gguf");
    std::fs::write(&flat, bytes).unwrap();
    assert_eq!(matrix.cols(), 384);
    assert_file_gives_logits(&flat, "wide", "bitnet");
    let seen = inspect(&flat, true, &[]).unwrap();
    assert_eq!(seen.verified.unwrap().faults, Vec::<String>::new());
}

fn assert_same_logits(name: &str, architecture: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("model.gguf");
    convert(&data(name), &file, &Options::default()).unwrap();
    assert_file_gives_logits(&file, name, architecture);
}

fn assert_file_gives_logits(file: &Path, name: &str, architecture: &str) {
    let gguf = Gguf::open(file).unwrap();
    let facts = ModelFacts::read(&gguf, &Overrides::default()).unwrap();
    assert_eq!(facts.architecture.name(), architecture);
    assert_eq!(facts.embedding_type, TensorType::F16);
    let text = std::fs::read_to_string(data(&format!("{name}.json"))).unwrap();
    let vectors: Vectors = serde_json::from_str(&text).unwrap();
    for sequence in vectors.sequences {
        let mut config = common::config(file);
        config.kv_type = KvType::F32;
        let mut engine = common::load(&config);
        let mut found = Vec::new();
        for &token in &sequence.tokens {
            let entry = Entry {
                slot: 0,
                token,
                wants_logits: true,
            };
            found.push(engine.forward(&[entry])[..facts.n_vocab].to_vec());
        }
        let best: Vec<usize> = found.iter().map(|row| argmax(row)).collect();
        assert_eq!(best, sequence.argmax, "{name}");
        for (&position, expected) in sequence.positions.iter().zip(&sequence.logits) {
            let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            let pairs = found[position].iter().zip(expected);
            let worst = pairs.fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
            assert!(worst / largest < TOLERANCE, "{name} {position}: {worst}");
        }
    }
}

fn argmax(row: &[f32]) -> usize {
    let best = row.iter().enumerate();
    let best = best.max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.unwrap().0
}

//! Any text through every tokenizer. The first byte chooses which one, and how control tokens are treated.
#![no_main]

use std::sync::LazyLock;

use bitnet_kernels::SharedBytes;
use bitnet_model::gguf::Gguf;
use bitnet_model::protocol::Overrides;
use bitnet_model::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

static FILES: [&[u8]; 6] = [
    include_bytes!("../../engine/model/tests/data/tokenizer_llama-bpe.gguf"),
    include_bytes!("../../engine/model/tests/data/tokenizer_falcon3.gguf"),
    include_bytes!("../../engine/model/tests/data/tokenizer_qwen2.gguf"),
    include_bytes!("../../engine/model/tests/data/tokenizer_gpt-2.gguf"),
    include_bytes!("../../engine/model/tests/data/tokenizer_spm.gguf"),
    include_bytes!("../../engine/model/tests/data/tokenizer_spm_no_prefix.gguf"),
];
/// How many of them are byte-level: no text can get lost in these.
const BYTE_LEVEL: usize = 4;

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let read = |file: &&'static [u8]| {
        let gguf = Gguf::from_bytes(SharedBytes::new(*file)).expect("a sound file");
        Tokenizer::from_gguf(&gguf, &Overrides::default()).expect("a tokenizer")
    };
    FILES.iter().map(read).collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((&choice, text)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let which = usize::from(choice) % FILES.len();
    let (add_special, parse_special) = (choice & 0x40 != 0, choice & 0x80 != 0);
    let tokenizer = &TOKENIZERS[which];
    let ids = tokenizer.encode(&text, add_special, parse_special);
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.n_vocab()));
    let back = tokenizer.decode(&ids);
    if which < BYTE_LEVEL && !add_special {
        assert_eq!(back, text.as_bytes(), "{ids:?}");
    }
});

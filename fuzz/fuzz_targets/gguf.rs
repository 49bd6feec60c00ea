//! A model file from anywhere: header, tokenizer, facts and weights.
#![no_main]

use bitnet_kernels::SharedBytes;
use bitnet_model::facts::ModelFacts;
use bitnet_model::gguf::Gguf;
use bitnet_model::protocol::Overrides;
use bitnet_model::tokenizer::Tokenizer;
use bitnet_model::weights::Weights;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(SharedBytes::new(data.to_vec())) else {
        return;
    };
    for info in gguf.tensors() {
        let (bytes, wanted) = (gguf.data(info).len() as u64, info.ty.data_bytes(&info.dims));
        assert!(wanted.is_none_or(|wanted| bytes >= wanted), "{info:?} has {bytes} bytes");
    }
    let overrides = Overrides::default();
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf, &overrides) {
        let ids = tokenizer.encode("Grüße, 世界! <|eot_id|></s>", true, true);
        tokenizer.decode(&ids);
    }
    let Ok(facts) = ModelFacts::read(&gguf, &overrides) else {
        return;
    };
    let _ = Weights::load(&gguf, &facts);
});

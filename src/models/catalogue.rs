//! The ternary models this program knows: where they are, how large, what they need. A field that nobody could check is
//! `None`.

use bitnet_model::inspect::BITNET_2B_4T;

/// A published model.
#[derive(Debug)]
pub(crate) struct Model {
    /// What one types.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// A file that can be served as it is.
    pub gguf: Option<Gguf>,
    /// Repositories with safetensors, for `convert`; the first is the one to take.
    pub sources: &'static [&'static str],
    /// Licence, as the model's page names it.
    pub licence: Option<&'static str>,
    /// How a chat is written, and what to know about it.
    pub chat: &'static str,
    /// What its size follows from.
    pub shape: Option<Shape>,
    /// What else to know.
    pub note: Option<&'static str>,
}

/// A file on the hub.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// `ORG/REPO`.
    pub repo: &'static str,
    /// Path in it.
    pub file: &'static str,
    /// Bytes.
    pub size: Option<u64>,
    /// Of the published file.
    pub sha256: Option<&'static str>,
}

/// Hyper-parameters; widths in numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Layers.
    pub n_layer: u64,
    /// Width of the residual stream.
    pub n_embd: u64,
    /// Width of the feed-forward part.
    pub n_ff: u64,
    /// Query heads, key/value heads.
    pub heads: (u64, u64),
    /// Width of a head.
    pub head_dim: u64,
    /// Tokens known.
    pub n_vocab: u64,
    /// Longest context.
    pub context: u64,
    /// Whether the output head is the embedding.
    pub tied: bool,
}

/// Context of the one slot that the least memory is reckoned with.
const LEAST_CONTEXT: u64 = 2048;
const LLAMA3_CHAT: &str =
    "it continues text (made from Llama 3 Instruct, trained on texts); Llama-3 tokenizer";
const FALCON3_CHAT: &str = "`<|role|>`, newline, text, newline; ends with `<|assistant|>`";
const FALCON3_BASE: &str = "a base model: it continues text";
const FALCON_E_CHAT: &str = "the template in the file";
const FALCON_LICENCE: Option<&str> = Some("falcon-llm-license");

const FALCON3_3B: Shape = Shape {
    n_layer: 22,
    n_embd: 3072,
    n_ff: 9216,
    heads: (12, 4),
    head_dim: 256,
    n_vocab: 131_072,
    context: 4096,
    tied: false,
};
const FALCON3_7B: Shape = Shape {
    n_layer: 28,
    n_ff: 23_040,
    context: 8192,
    ..FALCON3_3B
};
const FALCON3_10B: Shape = Shape {
    n_layer: 40,
    n_ff: 23_040,
    context: 32_768,
    ..FALCON3_3B
};

/// All of them, the flagship first.
pub(crate) const MODELS: &[Model] = &[
    Model {
        name: "2b-4t",
        about: "BitNet b1.58 2B-4T, Microsoft's flagship",
        gguf: Some(Gguf {
            repo: BITNET_2B_4T.repo,
            file: BITNET_2B_4T.file,
            size: Some(BITNET_2B_4T.bytes),
            sha256: Some(BITNET_2B_4T.sha256),
        }),
        sources: &[
            "microsoft/bitnet-b1.58-2B-4T",
            "microsoft/bitnet-b1.58-2B-4T-bf16",
        ],
        licence: Some("mit"),
        chat: "`Role: text<|eot_id|>`, ends with `Assistant: `; the template inside the file is wrong and replaced",
        shape: Some(Shape {
            n_layer: 30,
            n_embd: 2560,
            n_ff: 6912,
            heads: (20, 5),
            head_dim: 128,
            n_vocab: 128_256,
            context: 4096,
            tied: true,
        }),
        note: None,
    },
    Model {
        name: "bitnet-large",
        about: "1bitLLM's reproduction, 0.7 billion parameters",
        gguf: None,
        sources: &["1bitLLM/bitnet_b1_58-large"],
        licence: Some("mit"),
        chat: "a base model: it continues text",
        shape: Some(Shape {
            n_layer: 24,
            n_embd: 1536,
            n_ff: 4096,
            heads: (16, 16),
            head_dim: 96,
            n_vocab: 32_002,
            context: 2048,
            tied: true,
        }),
        note: None,
    },
    Model {
        name: "bitnet-3b",
        about: "1bitLLM's reproduction, 3 billion parameters",
        gguf: None,
        sources: &["1bitLLM/bitnet_b1_58-3B"],
        licence: Some("mit"),
        chat: "a base model: it continues text",
        shape: Some(Shape {
            n_layer: 26,
            n_embd: 3200,
            n_ff: 8640,
            heads: (32, 32),
            head_dim: 100,
            n_vocab: 32_002,
            context: 2048,
            tied: true,
        }),
        note: Some("converted to TL2: rows of 8640 are no multiple of 128, which I2_S asks for"),
    },
    Model {
        name: "llama3-8b-1.58",
        about: "Llama 3 8B, fine-tuned to ternary weights on 100 billion tokens",
        gguf: None,
        sources: &["HF1BitLLM/Llama3-8B-1.58-100B-tokens"],
        // Its page names none; Meta's for Llama 3 covers what is made of it.
        licence: None,
        chat: LLAMA3_CHAT,
        shape: Some(Shape {
            n_layer: 32,
            n_embd: 4096,
            n_ff: 14_336,
            heads: (32, 8),
            head_dim: 128,
            n_vocab: 128_256,
            context: 8192,
            tied: false,
        }),
        note: None,
    },
    Model {
        name: "falcon3-1b-instruct",
        about: "Falcon3 1B Instruct in 1.58 bits",
        gguf: None,
        sources: &["tiiuae/Falcon3-1B-Instruct-1.58bit"],
        licence: FALCON_LICENCE,
        chat: FALCON3_CHAT,
        shape: Some(Shape {
            n_layer: 18,
            n_embd: 2048,
            n_ff: 8192,
            heads: (8, 4),
            context: 8192,
            ..FALCON3_3B
        }),
        note: None,
    },
    Model {
        name: "falcon3-3b-instruct",
        about: "Falcon3 3B Instruct in 1.58 bits",
        gguf: None,
        sources: &["tiiuae/Falcon3-3B-Instruct-1.58bit"],
        licence: FALCON_LICENCE,
        chat: FALCON3_CHAT,
        shape: Some(FALCON3_3B),
        note: None,
    },
    Model {
        name: "falcon3-3b",
        about: "Falcon3 3B in 1.58 bits",
        gguf: None,
        sources: &["tiiuae/Falcon3-3B-1.58bit"],
        licence: FALCON_LICENCE,
        chat: FALCON3_BASE,
        shape: Some(FALCON3_3B),
        note: None,
    },
    Model {
        name: "falcon3-7b-instruct",
        about: "Falcon3 7B Instruct in 1.58 bits",
        gguf: None,
        sources: &["tiiuae/Falcon3-7B-Instruct-1.58bit"],
        licence: FALCON_LICENCE,
        chat: FALCON3_CHAT,
        shape: Some(FALCON3_7B),
        note: None,
    },
    Model {
        name: "falcon3-7b",
        about: "Falcon3 7B in 1.58 bits",
        gguf: None,
        sources: &["tiiuae/Falcon3-7B-1.58bit"],
        licence: FALCON_LICENCE,
        chat: FALCON3_BASE,
        shape: Some(FALCON3_7B),
        note: None,
    },
    Model {
        name: "falcon3-10b-instruct",
        about: "Falcon3 10B Instruct in 1.58 bits",
        gguf: None,
        sources: &["tiiuae/Falcon3-10B-Instruct-1.58bit"],
        licence: FALCON_LICENCE,
        chat: FALCON3_CHAT,
        shape: Some(FALCON3_10B),
        note: None,
    },
    Model {
        name: "falcon3-10b",
        about: "Falcon3 10B in 1.58 bits",
        gguf: None,
        sources: &["tiiuae/Falcon3-10B-1.58bit"],
        licence: FALCON_LICENCE,
        chat: FALCON3_BASE,
        shape: Some(FALCON3_10B),
        note: None,
    },
    Model {
        name: "falcon-e-1b-instruct",
        about: "Falcon-E 1B Instruct, trained ternary",
        gguf: None,
        sources: &["tiiuae/Falcon-E-1B-Instruct"],
        licence: FALCON_LICENCE,
        chat: FALCON_E_CHAT,
        shape: None,
        note: None,
    },
    Model {
        name: "falcon-e-1b",
        about: "Falcon-E 1B, trained ternary",
        gguf: None,
        sources: &["tiiuae/Falcon-E-1B-Base"],
        licence: FALCON_LICENCE,
        chat: "a base model: it continues text",
        shape: None,
        note: None,
    },
    Model {
        name: "falcon-e-3b-instruct",
        about: "Falcon-E 3B Instruct, trained ternary",
        gguf: Some(Gguf {
            repo: "tiiuae/Falcon-E-3B-Instruct-GGUF",
            file: "ggml-model-i2_s.gguf",
            size: None,
            sha256: None,
        }),
        sources: &["tiiuae/Falcon-E-3B-Instruct"],
        licence: FALCON_LICENCE,
        chat: FALCON_E_CHAT,
        shape: None,
        note: None,
    },
    Model {
        name: "falcon-e-3b",
        about: "Falcon-E 3B, trained ternary",
        gguf: None,
        sources: &["tiiuae/Falcon-E-3B-Base"],
        licence: FALCON_LICENCE,
        chat: "a base model: it continues text",
        shape: None,
        note: None,
    },
    Model {
        name: "embedding-0.6b",
        about: "BitNet embedding 0.6B (Qwen3), text to vectors",
        gguf: None,
        sources: &["microsoft/bitnet-embedding-0.6b"],
        licence: None,
        chat: "none: queries need an instruction in front, documents none",
        shape: Some(Shape {
            n_layer: 28,
            n_embd: 1024,
            n_ff: 3072,
            heads: (16, 8),
            head_dim: 128,
            n_vocab: 151_936,
            context: 32_768,
            tied: true,
        }),
        note: None,
    },
    Model {
        name: "embedding-270m",
        about: "BitNet embedding 270M (Gemma 3), text to vectors",
        gguf: None,
        sources: &["microsoft/bitnet-embedding-270m"],
        licence: None,
        chat: "none: queries need an instruction in front, documents none",
        shape: Some(Shape {
            n_layer: 18,
            n_embd: 640,
            n_ff: 2048,
            heads: (4, 1),
            head_dim: 256,
            n_vocab: 262_144,
            context: 32_768,
            tied: true,
        }),
        note: None,
    },
];

/// By its name, in any case.
pub(crate) fn find(name: &str) -> Option<&'static Model> {
    MODELS
        .iter()
        .find(|model| model.name.eq_ignore_ascii_case(name))
}

/// By one of its repositories, in any case.
pub(crate) fn by_repo(repo: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| {
        let gguf = model.gguf.iter().map(|gguf| gguf.repo);
        gguf.chain(model.sources.iter().copied())
            .any(|known| known.eq_ignore_ascii_case(repo))
    })
}

impl Model {
    /// The repository to fetch, and the file if one is to be served as it is.
    pub(crate) fn wanted(&self) -> (&'static str, Option<&'static str>) {
        match &self.gguf {
            Some(gguf) => (gguf.repo, Some(gguf.file)),
            None => (self.sources[0], None),
        }
    }

    /// What is known of the file with this path in this repository.
    pub(crate) fn known_file(&self, repo: &str, path: &str) -> Option<&Gguf> {
        let gguf = self.gguf.as_ref()?;
        (gguf.repo.eq_ignore_ascii_case(repo) && gguf.file == path).then_some(gguf)
    }

    /// Bytes of the file in I2_S: known, or reckoned from the shape (without vocabulary and other keys).
    pub(crate) fn file_bytes(&self) -> Option<u64> {
        let known = self.gguf.as_ref().and_then(|gguf| gguf.size);
        known.or_else(|| self.shape.map(|shape| shape.weights_bytes()))
    }

    /// Least memory, in bytes, to serve one request at a time.
    pub(crate) fn least_memory_bytes(&self) -> Option<u64> {
        let shape = self.shape?;
        let context = shape.context.min(LEAST_CONTEXT);
        Some(
            shape.weights_bytes()
                + context * shape.kv_bytes_per_token()
                + crate::plan::program_bytes(shape.n_vocab),
        )
    }
}

impl Shape {
    /// Ternary matrices at two bits with their scales, embedding and head in F16, norms in F32.
    fn weights_bytes(&self) -> u64 {
        let (query, kv) = (self.heads.0 * self.head_dim, self.heads.1 * self.head_dim);
        let matrices = [
            query * self.n_embd,
            kv * self.n_embd,
            kv * self.n_embd,
            self.n_embd * query,
            self.n_ff * self.n_embd,
            self.n_ff * self.n_embd,
            self.n_embd * self.n_ff,
        ];
        let ternary: u64 = matrices.iter().map(|weights| weights / 4 + 32).sum();
        let norms = 4 * (3 * self.n_embd + self.n_ff);
        let dense = self.n_vocab * self.n_embd * 2 * if self.tied { 1 } else { 2 };
        self.n_layer * (ternary + norms) + dense
    }

    /// Keys and values in F16.
    fn kv_bytes_per_token(&self) -> u64 {
        2 * 2 * self.n_layer * self.heads.1 * self.head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::digest::is_sha256;
    use crate::models::reference::Reference;

    #[test]
    fn every_model_can_be_named_and_found() {
        for model in MODELS {
            let (repo, file) = model.wanted();
            let read = Reference::read(model.name).unwrap();
            assert_eq!((read.repo.as_str(), read.file.as_deref()), (repo, file));
            assert_eq!(by_repo(repo).unwrap().name, model.name);
            assert_eq!(find(model.name).unwrap().name, model.name, "twice");
            for source in model.sources {
                assert!(Reference::read(source).is_some(), "{source}");
            }
            let hash = model.gguf.as_ref().and_then(|gguf| gguf.sha256);
            assert!(hash.is_none_or(is_sha256));
        }
    }

    #[test]
    fn reckons_the_official_file_within_a_hundredth() {
        let flagship = find("2b-4t").unwrap();
        let reckoned = flagship.shape.unwrap().weights_bytes() as f64;
        let official = flagship.file_bytes().unwrap() as f64;
        assert!((reckoned / official - 1.0).abs() < 0.01, "{reckoned}");
        let least = flagship.least_memory_bytes().unwrap() as f64;
        assert!((1.2e9..1.6e9).contains(&least), "{least}");
    }
}

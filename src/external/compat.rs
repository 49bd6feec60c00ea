//! Whether a llama-server can run a model file, as far as both can be looked into. Pure.

use bitnet_model::gguf::{Gguf, TensorType};

use super::ExternalError;
use super::probe::Program;
use crate::plan::Warning;
use crate::settings::Setting;

/// What of a model file matters to an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelTypes {
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// Ternary types that occur, without repetition.
    pub ternary: Vec<TensorType>,
}

impl ModelTypes {
    /// Reads the tensor table.
    pub(crate) fn of(gguf: &Gguf) -> ModelTypes {
        let is_ternary = |ty: &TensorType| {
            use TensorType::{I2S, TL1, TL2, TQ1_0, TQ2_0};
            matches!(ty, I2S | TL1 | TL2 | TQ1_0 | TQ2_0)
        };
        let mut ternary: Vec<TensorType> = Vec::new();
        for tensor in gguf.tensors() {
            if is_ternary(&tensor.ty) && !ternary.contains(&tensor.ty) {
                ternary.push(tensor.ty);
            }
        }
        let architecture = gguf.str("general.architecture").ok().flatten();
        ModelTypes {
            architecture: architecture.map(str::to_owned),
            ternary,
        }
    }
}

/// Checks kernel, model and program against each other; what is doubtful comes back as warnings.
///
/// # Errors
/// When the program would refuse the file or compute nonsense.
pub(crate) fn check(
    model: &ModelTypes,
    program: &Program,
    kernel: &Setting<Option<String>>,
    arch: &str,
) -> Result<Vec<Warning>, ExternalError> {
    check_kernel(model, kernel)?;
    let mut warnings = Vec::new();
    for ty in &model.ternary {
        check_type(*ty, program, arch)?;
        warnings.extend(doubt(*ty, program, arch));
    }
    let unknown =
        |words: &super::probe::Words, name: &str| KNOWN.contains(&name) && !words.has(name);
    if let (Some(name), Some(words)) = (&model.architecture, &program.words)
        && unknown(words, name)
    {
        return Err(ExternalError::Architecture {
            path: program.path.clone(),
            name: name.clone(),
            hint: architecture_hint(name),
        });
    }
    Ok(warnings)
}

/// Architectures that programs are searched for.
const KNOWN: &[&str] = &[
    "bitnet",
    "bitnet-25",
    "bitnet-b1.58",
    "llama",
    "qwen3",
    "gemma3",
];

/// A file has its packing: an engine that isn't ours can't make another at load.
fn check_kernel(model: &ModelTypes, kernel: &Setting<Option<String>>) -> Result<(), ExternalError> {
    let Some(asked) = &kernel.value else {
        return Ok(());
    };
    let packing = asked.split('/').next().unwrap_or(asked);
    let is_there = model
        .ternary
        .iter()
        .any(|ty| ty.to_string().eq_ignore_ascii_case(packing));
    match is_there {
        true => Ok(()),
        false => Err(ExternalError::Kernel {
            asked: asked.clone(),
            source_: kernel.source.clone(),
            found: names(&model.ternary),
        }),
    }
}

fn names(types: &[TensorType]) -> String {
    match types {
        [] => "no ternary type".to_owned(),
        types => types
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" and "),
    }
}

fn check_type(ty: TensorType, program: &Program, arch: &str) -> Result<(), ExternalError> {
    let made_for = match ty {
        TensorType::TL1 => Some("aarch64"),
        TensorType::TL2 => Some("x86_64"),
        _ => None,
    };
    if let Some(made_for) = made_for
        && made_for != arch
    {
        return Err(ExternalError::OtherCpu { ty, made_for });
    }
    let Some(words) = &program.words else {
        return Ok(());
    };
    let name = ty.to_string().to_lowercase();
    // ik_llama.cpp has the name of I2_S to convert from it, and no kernel.
    let only_converts = ty == TensorType::I2S && words.has("iq2_bn");
    if words.has(&name) && !only_converts {
        return Ok(());
    }
    Err(ExternalError::Type {
        path: program.path.clone(),
        ty,
        kind: match (words.has("iq2_bn"), words.has("i2_s")) {
            (true, _) => "ik_llama.cpp",
            (false, true) => "bitnet.cpp",
            (false, false) => "llama.cpp",
        },
        hint: type_hint(ty, words.has("iq2_bn")),
    })
}

fn type_hint(ty: TensorType, is_ik: bool) -> String {
    match (ty, is_ik) {
        (TensorType::I2S, true) => "convert the file with ik_llama.cpp's own `llama-quantize --allow-requantize FILE OUT.gguf iq2_bn`, or leave `--engine` out: the built-in engine reads it".to_owned(),
        (TensorType::TQ1_0 | TensorType::TQ2_0, true) => "`bitnet-launch convert FILE -o I2S.gguf`, then ik_llama.cpp's `llama-quantize --allow-requantize I2S.gguf OUT.gguf iq2_bn`; or leave `--engine` out: the built-in engine reads it".to_owned(),
        (TensorType::TQ1_0 | TensorType::TQ2_0, false) => "take a newer llama-server, or `bitnet-launch convert FILE -o OUT.gguf` for bitnet.cpp; or leave `--engine` out: the built-in engine reads it".to_owned(),
        (_, true) => "leave `--engine` out: the built-in engine reads it".to_owned(),
        (_, false) => "`bitnet-launch convert FILE --outtype tq2_0 -o OUT.gguf` makes a file for llama.cpp; or take bitnet.cpp's llama-server, or leave `--engine` out: the built-in engine reads it".to_owned(),
    }
}

fn architecture_hint(name: &str) -> String {
    match name {
        "bitnet-b1.58" | "bitnet-25" => format!(
            "llama.cpp calls this graph `bitnet` since 2025, bitnet.cpp and ik_llama.cpp know `{name}`; take one of theirs, or leave `--engine` out"
        ),
        _ => "take a newer llama-server, or leave `--engine` out".to_owned(),
    }
}

/// What can't be seen from outside and goes wrong now and then.
fn doubt(ty: TensorType, program: &Program, arch: &str) -> Option<Warning> {
    let is_bitnet = program.words.as_ref().is_none_or(|words| words.has("i2_s"));
    match ty {
        TensorType::I2S if arch == "aarch64" && is_bitnet => Some(Warning::new(
            "builds of bitnet.cpp for ARM since January 2026 expect I2_S codes in another order, and nothing in a file or a program tells",
            "if answers are garbage, build bitnet.cpp at commit 404980e, or use the built-in engine",
        )),
        TensorType::TL1 | TensorType::TL2 => Some(Warning::new(
            format!(
                "a {ty} file fits only a bitnet.cpp that was built with the same kernel shapes, and nothing in either tells"
            ),
            "if answers are garbage, use the built-in engine or an I2_S file",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::Words;
    use super::*;
    use crate::settings::Source;

    fn program(words: Option<&[&'static str]>) -> Program {
        Program {
            path: "/opt/llama-server".into(),
            flags: Default::default(),
            unix_sockets: false,
            key_variable: true,
            version: None,
            libraries: Vec::new(),
            words: words.map(|words| words.iter().copied().collect::<Words>()),
        }
    }

    fn kernel(asked: Option<&str>) -> Setting<Option<String>> {
        Setting {
            value: asked.map(str::to_owned),
            source: Source::Environment("BITNET_KERNEL".to_owned()),
        }
    }

    const LLAMA: &[&str] = &["q8_0", "llama", "bitnet", "tq1_0", "tq2_0"];
    const BITNET: &[&str] = &[
        "q8_0",
        "llama",
        "bitnet",
        "bitnet-b1.58",
        "bitnet-25",
        "i2_s",
        "tl1",
        "tl2",
        "tq2_0",
    ];
    const IK: &[&str] = &["q8_0", "llama", "bitnet", "bitnet-b1.58", "i2_s", "iq2_bn"];

    #[test]
    fn files_programs_and_machines() {
        use TensorType::{I2S, TL1, TL2, TQ2_0};
        // Type, program, machine, part of the error or nothing, warnings.
        type Case = (
            TensorType,
            Option<&'static [&'static str]>,
            &'static str,
            &'static str,
            usize,
        );
        let cases: &[Case] = &[
            (I2S, Some(BITNET), "x86_64", "", 0),
            (I2S, Some(BITNET), "aarch64", "", 1),
            (I2S, Some(LLAMA), "x86_64", "llama.cpp has no I2_S", 0),
            (I2S, Some(IK), "x86_64", "ik_llama.cpp has no I2_S", 0),
            (I2S, None, "x86_64", "", 0),
            (TQ2_0, Some(LLAMA), "x86_64", "", 0),
            (TQ2_0, Some(IK), "x86_64", "ik_llama.cpp has no TQ2_0", 0),
            (TL1, Some(BITNET), "aarch64", "", 1),
            (TL2, Some(BITNET), "aarch64", "TL2 is made for x86_64", 0),
            (TL1, None, "x86_64", "TL1 is made for aarch64", 0),
            (TL2, Some(BITNET), "x86_64", "", 1),
            (TL2, Some(LLAMA), "x86_64", "llama.cpp has no TL2", 0),
        ];
        for (ty, words, arch, expected, warnings) in cases {
            let model = ModelTypes {
                architecture: Some("bitnet".to_owned()),
                ternary: vec![*ty],
            };
            let found = check(&model, &program(*words), &kernel(None), arch);
            match found {
                Ok(found) => assert_eq!((found.len(), *expected), (*warnings, ""), "{ty} {arch}"),
                Err(error) => {
                    assert!(!expected.is_empty(), "{ty} {arch}: {error}");
                    assert!(error.to_string().contains(expected), "{error}");
                    assert!(error.hint().is_some(), "{error}");
                }
            }
        }
    }

    #[test]
    fn architectures_and_kernels() {
        let model = ModelTypes {
            architecture: Some("bitnet-b1.58".to_owned()),
            ternary: vec![TensorType::TQ2_0],
        };
        let error = check(&model, &program(Some(LLAMA)), &kernel(None), "x86_64").unwrap_err();
        assert!(error.to_string().contains("`bitnet-b1.58`"), "{error}");
        let error = check(&model, &program(None), &kernel(Some("tl2")), "x86_64").unwrap_err();
        assert!(error.to_string().contains("TQ2_0"), "{error}");
        let model = ModelTypes {
            architecture: Some("something-new".to_owned()),
            ternary: vec![TensorType::I2S],
        };
        let asked = kernel(Some("i2_s/avx2"));
        assert_eq!(
            check(&model, &program(Some(BITNET)), &asked, "x86_64"),
            Ok(vec![])
        );
    }
}

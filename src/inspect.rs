//! `bitnet-launch inspect`: what is in a GGUF file, as a report or as JSON.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use bitnet_model::convert::lookup::Tiles;
use bitnet_model::gguf::grouped;
use bitnet_model::inspect::{Inspection, Token, inspect};

use crate::cli::InspectArgs;

/// Exit code of a verified file with faults.
const FAULTY: u8 = 1;

/// Looks at the file.
///
/// # Errors
/// When it is no GGUF.
pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let tiles = args.lookup_tiles.iter().map(|text| text.parse::<Tiles>());
    let tiles: Vec<Tiles> = tiles
        .collect::<Result<_, _>>()
        .map_err(|wanted| anyhow::anyhow!("--lookup-tiles expects {wanted}"))?;
    let seen = inspect(&args.file, args.verify, &tiles)
        .with_context(|| format!("cannot inspect `{}`", args.file.display()))?;
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string_pretty(&seen)?)?,
        false => report(&mut out, &seen, args.all)?,
    }
    let faulty = seen
        .verified
        .is_some_and(|verified| !verified.faults.is_empty());
    Ok(match faulty {
        true => ExitCode::from(FAULTY),
        false => ExitCode::SUCCESS,
    })
}

fn report(out: &mut dyn Write, seen: &Inspection, all: bool) -> io::Result<()> {
    let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    writeln!(
        out,
        "{}: {} bytes, GGUF version {}, {} keys, {} tensors, data from {} on",
        seen.file,
        grouped(seen.file_bytes),
        seen.gguf_version,
        seen.n_keys,
        seen.n_tensors,
        grouped(seen.header_bytes),
    )?;
    if let Some(model) = &seen.model {
        writeln!(out, "\nmodel")?;
        let name = model.name.as_deref().unwrap_or("without a name");
        writeln!(
            out,
            "  {} {name}, {} parameters",
            model.architecture,
            grouped(model.parameters)
        )?;
        writeln!(
            out,
            "  {} layers of {} and {}, {} heads, {} for keys and values, of {}",
            model.layers,
            model.embedding_length,
            model.feed_forward_length,
            model.heads,
            model.kv_heads,
            model.head_length,
        )?;
        writeln!(
            out,
            "  context {}, vocabulary {}, {}, head {}, RoPE base {}, epsilon {:e}",
            grouped(model.context_length as u64),
            grouped(model.vocabulary as u64),
            model.activation,
            if model.tied_head {
                "tied to the embedding"
            } else {
                "of its own"
            },
            model.rope_freq_base,
            model.norm_epsilon,
        )?;
    }
    if let Some(reason) = &seen.refused {
        writeln!(out, "\nthis program cannot run it: {reason}")?;
    }
    writeln!(out, "\ntensors")?;
    for share in &seen.types {
        writeln!(
            out,
            "  {:<6} {:>5} tensors, {:>15} weights, {:>10}",
            share.ty,
            share.tensors,
            grouped(share.weights),
            mb(share.bytes)
        )?;
    }
    if let Some(ternary) = &seen.ternary {
        if let Some(zeros) = ternary.zeros {
            let how = match ternary.sampled {
                true => " (sampled; `--verify` counts all)",
                false => "",
            };
            writeln!(
                out,
                "  zeros: {:.1} % of the ternary weights{how}",
                zeros * 100.0
            )?;
        } else if ternary.sampled {
            writeln!(out, "  zeros: `--verify` counts them in this packing")?;
        }
        let scales = [
            ternary.smallest_scale,
            ternary.median_scale,
            ternary.largest_scale,
        ];
        if let [Some(smallest), Some(median), Some(largest)] = scales {
            writeln!(out, "  scales: {smallest} to {largest}, median {median}")?;
        }
    }
    if let Some(tokenizer) = &seen.tokenizer {
        writeln!(out, "\ntokenizer")?;
        let said = |text: &Option<String>| text.clone().unwrap_or_else(|| "not said".to_owned());
        let merges = tokenizer
            .merges
            .map(|n| format!(", {} merges", grouped(n as u64)));
        writeln!(
            out,
            "  {}, pre-tokenizer {}, {} tokens{}",
            said(&tokenizer.model),
            said(&tokenizer.pre),
            grouped(tokenizer.tokens as u64),
            merges.unwrap_or_default(),
        )?;
        let token = |token: &Option<Token>| match token {
            None => "not said".to_owned(),
            Some(token) => format!("{} {}", token.id, token.text.as_deref().unwrap_or("?")),
        };
        writeln!(
            out,
            "  begin {} ({}), end {}, end of turn {}",
            token(&tokenizer.bos),
            match tokenizer.adds_bos {
                Some(true) => "added to texts",
                Some(false) => "not added",
                None => "adding not said",
            },
            token(&tokenizer.eos),
            token(&tokenizer.eot),
        )?;
        match &tokenizer.chat_template {
            None => writeln!(out, "  no chat template")?,
            Some(template) if all => {
                writeln!(out, "  chat template:")?;
                for line in template.lines() {
                    writeln!(out, "    {line}")?;
                }
            }
            Some(template) => writeln!(
                out,
                "  chat template of {} characters (`--all` shows it)",
                grouped(template.chars().count() as u64)
            )?,
        }
    }
    if let Some(memory) = &seen.memory {
        writeln!(
            out,
            "\nmemory: {} of weights, and for one slot (keys and values in f16)",
            mb(memory.weights_bytes)
        )?;
        for context in &memory.contexts {
            writeln!(
                out,
                "  {:>9} tokens: {:>10}, {} together",
                grouped(context.context as u64),
                mb(context.kv_bytes),
                mb(context.total_bytes)
            )?;
        }
        writeln!(
            out,
            "  the program itself, its buffers and copies of the head come on top: `bitnet-launch --check -m FILE`"
        )?;
    }
    if all {
        list_all(out, seen)?;
    }
    if let Some(verified) = &seen.verified {
        writeln!(out, "\nverified: all codes, scales and sizes")?;
        writeln!(out, "  sha256 {}", verified.sha256)?;
        if let Some(name) = &verified.published {
            writeln!(out, "  this is {name}")?;
        }
        if let Some(weights) = &verified.weights_sha256 {
            writeln!(out, "  ternary weights: sha256 {weights}")?;
        }
        writeln!(out, "  {} faults", verified.faults.len())?;
    }
    writeln!(out, "\nto know")?;
    for problem in &seen.problems {
        writeln!(out, "  - {}\n    {}", problem.what, problem.action)?;
    }
    if seen.problems.is_empty() {
        writeln!(out, "  nothing known against it")?;
    }
    Ok(())
}

fn list_all(out: &mut dyn Write, seen: &Inspection) -> io::Result<()> {
    writeln!(out, "\nkeys")?;
    for key in &seen.keys {
        writeln!(
            out,
            "  {} ({}) {}",
            key.key,
            key.ty,
            key.value.escape_debug()
        )?;
    }
    writeln!(out, "\ntensors by name")?;
    for tensor in &seen.tensors {
        let scale = tensor.scale.map(|scale| format!(", scale {scale}"));
        let zeros = tensor
            .zeros
            .map(|zeros| format!(", {:.1} % zero", zeros * 100.0));
        writeln!(
            out,
            "  {:<32} {:<5} {:?}, {} bytes at {}{}{}",
            tensor.name,
            tensor.ty,
            tensor.dims,
            grouped(tensor.bytes),
            grouped(tensor.offset),
            scale.unwrap_or_default(),
            zeros.unwrap_or_default(),
        )?;
    }
    Ok(())
}

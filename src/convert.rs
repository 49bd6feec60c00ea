//! `bitnet-launch convert`: makes a GGUF file of a Hugging Face directory or of another GGUF; progress on standard error.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use bitnet_model::convert::lookup::Tiles;
use bitnet_model::convert::packings::I2sLayout;
use bitnet_model::convert::{EMBEDDING_TYPES, OUTTYPES, Options, Phase, Plan, Summary, Watch};
use bitnet_model::gguf::{TensorType, grouped};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::statvfs::statvfs;

use crate::cli::ConvertArgs;
use crate::interrupt::Interrupt;

/// Makes the file.
///
/// # Errors
/// Names the file and the tensor that stand in the way; the target directory is as it was then.
pub(crate) fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::watch().context("cannot listen to signals")?;
    interrupt.patient(true);
    let options = options(args)?;
    let plan = Plan::of(&args.source, &options)
        .with_context(|| format!("cannot convert `{}`", args.source.display()))?;
    for note in &plan.notes {
        eprintln!("note: {note}");
    }
    check_space(&args.output, plan.output_bytes())?;
    let bar = ProgressBar::new(plan.output_bytes()).with_style(style());
    let mut show = |phase, done, all| match phase {
        Phase::Writing => bar.update(|state| {
            state.set_pos(done);
            state.set_len(all);
        }),
        Phase::Comparing => bar.set_message(format!("compared {done} of {all} tensors")),
    };
    let mut watch = Watch {
        progress: &mut show,
        cancelled: &|| interrupt.asked(),
    };
    let start = Instant::now();
    let written = plan.write(&args.output, &mut watch);
    bar.finish_and_clear();
    let summary = written.with_context(|| format!("cannot convert `{}`", args.source.display()))?;
    report(args, &plan, &summary, start.elapsed().as_secs_f64())?;
    Ok(ExitCode::SUCCESS)
}

fn options(args: &ConvertArgs) -> anyhow::Result<Options> {
    let by_name = |table: &[(&str, TensorType)], name: &str| {
        let entry = table.iter().find(|entry| entry.0 == name);
        entry.map(|entry| entry.1)
    };
    let template = args.chat_template.as_ref().map(|path| {
        std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the chat template `{}`", path.display()))
    });
    let tiles = args.lookup_tiles.iter().map(|text| text.parse::<Tiles>());
    let tiles = tiles.collect::<Result<_, _>>();
    Ok(Options {
        outtype: args
            .outtype
            .as_deref()
            .and_then(|name| by_name(OUTTYPES, name)),
        embedding_type: args
            .embedding_type
            .as_deref()
            .and_then(|name| by_name(EMBEDDING_TYPES, name)),
        tiles: tiles.map_err(|wanted| anyhow::anyhow!("--lookup-tiles expects {wanted}"))?,
        pre_tokenizer: args.pre_tokenizer.clone(),
        chat_template: template.transpose()?,
        absmean: args.absmean,
        layout: match args.i2s_layout {
            64 => I2sLayout::Blocks64,
            _ => I2sLayout::Blocks128,
        },
    })
}

fn style() -> ProgressStyle {
    let template = "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {msg}";
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn check_space(output: &Path, needed: u64) -> anyhow::Result<()> {
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let stat = statvfs(directory)
        .with_context(|| format!("cannot write into `{}`", directory.display()))?;
    let free = stat.blocks_available() as u64 * stat.fragment_size() as u64;
    if free < needed {
        anyhow::bail!(
            "`{}` has {} bytes free, the new file needs {}",
            directory.display(),
            grouped(free),
            grouped(needed)
        );
    }
    Ok(())
}

fn report(args: &ConvertArgs, plan: &Plan, done: &Summary, seconds: f64) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "wrote {}: {} bytes, {} tensors, {} of them {}",
        args.output.display(),
        grouped(done.bytes),
        plan.n_tensors(),
        plan.n_ternary(),
        plan.outtype,
    )?;
    writeln!(
        out,
        "ternary weights: {}, {:.1} % zero",
        grouped(done.weights),
        100.0 * done.zeros as f64 / done.weights.max(1) as f64
    )?;
    writeln!(out, "checksum before: sha256 {}", done.before)?;
    writeln!(out, "checksum after:  sha256 {}", done.after)?;
    writeln!(
        out,
        "read {} bytes in {seconds:.2} s, {:.2} GB/s",
        grouped(done.read_bytes),
        done.read_bytes as f64 / seconds.max(1e-9) / 1e9
    )?;
    Ok(())
}

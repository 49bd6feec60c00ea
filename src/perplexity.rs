//! `bitnet-launch perplexity`: how surprised a model is by a text, as llama.cpp measures it; progress on standard error.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bitnet_model::engine::Engine;
use bitnet_model::perplexity::{MIN_CONTEXT, SCORED_BATCH, Scores, n_chunks, score_chunk};
use bitnet_model::protocol::HeadMode;
use bitnet_model::tokenizer::Tokenizer;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::cli::PerplexityArgs;
use crate::settings::{self, Dialect, Flags, Settings};
use crate::{demo, startup};

/// Measures and prints.
///
/// # Errors
/// When model or text can't be read, or the text is too short.
pub(crate) fn run(args: PerplexityArgs) -> anyhow::Result<ExitCode> {
    ensure!(
        args.ctx >= MIN_CONTEXT,
        "`--ctx` is {}, expected {MIN_CONTEXT} or more",
        args.ctx
    );
    let text = read_text(&args.text)?;
    let settings = Settings::read(flags(&args), &settings::environment(), Dialect::Launch)?;
    let prepared = startup::prepare(&settings)?;
    let tokenizer = Tokenizer::from_gguf(&prepared.gguf, &settings.overrides)
        .with_context(|| format!("cannot load {}", startup::described(&settings.model.value)))?;
    let tokens = tokenizer.encode(&text, true, false);
    let wanted = 2 * args.ctx;
    if tokens.len() < wanted {
        let n = tokens.len();
        bail!(
            "the text has {n} tokens, expected {wanted} or more (two chunks); use a longer text or a smaller `--ctx`"
        );
    }
    let mut config = prepared.plan.engine_config(&settings);
    (config.slots, config.slot_context) = (1, args.ctx);
    config.prefill_batch = config.prefill_batch.min(args.ctx);
    // Every logit is needed.
    config.head = HeadMode::Full;
    let mut engine = Engine::load_to_score(&config, || Some(demo::bytes()), SCORED_BATCH)?;

    let most = args.chunks.map_or(usize::MAX, |n| n as usize);
    let n = n_chunks(tokens.len(), args.ctx).min(most);
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let began = Instant::now();
    let scores = measure(&mut engine, &tokens, args.ctx, n, bos)?;
    let report = Report {
        scores,
        args: &args,
        kernel: engine.kernel().to_string(),
        took: began.elapsed(),
    };
    let mut out = std::io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", report.json())?,
        false => writeln!(out, "{}", report.line())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn flags(args: &PerplexityArgs) -> Flags {
    let mut flags = Flags::default();
    let mut say = |key: &'static str, value: String, flag: &str| {
        flags.values.push((key, value, flag.to_owned()));
    };
    say("model", args.model.display().to_string(), "FILE");
    say("ctx-size", args.ctx.to_string(), "--ctx");
    say("parallel", "1".to_owned(), "perplexity");
    if let Some(threads) = &args.threads {
        say("threads", threads.clone(), "--threads");
    }
    if let Some(kernel) = &args.kernel {
        say("kernel", kernel.clone(), "--kernel");
    }
    flags
}

/// The text without its last line break, as llama.cpp reads it; `-` is standard input.
fn read_text(path: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    match path == Path::new("-") {
        true => std::io::stdin().read_to_end(&mut bytes).map(|_| ()),
        false => std::fs::read(path).map(|read| bytes = read),
    }
    .with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        anyhow::anyhow!("`{}` is not UTF-8 text at byte {place}", path.display())
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn measure(
    engine: &mut Engine,
    tokens: &[u32],
    n_ctx: usize,
    n_chunks: usize,
    bos: Option<u32>,
) -> anyhow::Result<Scores> {
    let bar = progress(n_chunks);
    let mut scores = Scores::default();
    for chunk in tokens.chunks_exact(n_ctx).take(n_chunks) {
        score_chunk(engine, chunk, bos, &mut scores)?;
        bar.set_message(format!("{:.4}", scores.perplexity()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(scores)
}

/// A bar on a terminal, nothing elsewhere.
fn progress(n_chunks: usize) -> ProgressBar {
    let bar = ProgressBar::new(n_chunks as u64);
    let style =
        ProgressStyle::with_template("{bar:40} {pos}/{len} chunks, perplexity {msg}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

struct Report<'a> {
    scores: Scores,
    args: &'a PerplexityArgs,
    kernel: String,
    took: Duration,
}

impl Report<'_> {
    fn line(&self) -> String {
        let Scores {
            n_chunks, n_scored, ..
        } = self.scores;
        format!(
            "perplexity {:.4} ± {:.5} ({n_chunks} chunks of {}, {n_scored} predictions scored, {}, {:.1} s)",
            self.scores.perplexity(),
            self.scores.error(),
            self.args.ctx,
            self.kernel,
            self.took.as_secs_f64()
        )
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "model": self.args.model.display().to_string(),
            "text": self.args.text.display().to_string(),
            "n_ctx": self.args.ctx,
            "n_chunks": self.scores.n_chunks,
            "n_scored": self.scores.n_scored,
            "perplexity": self.scores.perplexity(),
            "error": self.scores.error(),
            "kernel": self.kernel,
            "seconds": self.took.as_secs_f64(),
        })
    }
}

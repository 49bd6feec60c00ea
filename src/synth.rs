//! `bitnet-launch synth`: writes a model with random weights, for tests and measurements; progress on standard error.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use bitnet_model::synth::{Shape, write};

use crate::cli::SynthArgs;

/// Writes the file.
///
/// # Errors
/// When the shape is unknown or the file can't be written.
pub(crate) fn run(args: &SynthArgs) -> anyhow::Result<ExitCode> {
    let shape = Shape::preset(&args.shape).with_context(|| {
        format!(
            "no shape `{}`, expected one of {}",
            args.shape,
            Shape::names().join(", ")
        )
    })?;
    let mut progress = Progress::new(std::io::stderr().is_terminal());
    write(&shape, args.seed, &args.output, &mut |done, all| {
        progress.show(done, all)
    })?;
    progress.end();
    eprintln!(
        "wrote {} ({}, seed {}): random weights, the text it makes is noise",
        args.output.display(),
        args.shape,
        args.seed
    );
    Ok(ExitCode::SUCCESS)
}

/// A line that counts up: in place on a terminal, every tenth elsewhere.
struct Progress {
    terminal: bool,
    shown_percent: Option<u64>,
}

impl Progress {
    fn new(terminal: bool) -> Progress {
        Progress {
            terminal,
            shown_percent: None,
        }
    }

    fn show(&mut self, done: u64, all: u64) {
        let step = if self.terminal { 1 } else { 10 };
        let percent = (done.saturating_mul(100) / all.max(1)) / step * step;
        if self.shown_percent == Some(percent) {
            return;
        }
        self.shown_percent = Some(percent);
        let mut stderr = std::io::stderr().lock();
        let end = if self.terminal { "" } else { "\n" };
        let start = if self.terminal { "\r" } else { "" };
        let _ = write!(stderr, "{start}{percent:3} % of {} MB{end}", all >> 20);
    }

    fn end(&self) {
        if self.terminal && self.shown_percent.is_some() {
            eprintln!();
        }
    }
}

//! How a download is shown: a bar on a terminal, a line every tenth elsewhere, on standard error.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::size;

/// Away from a terminal there is a line for each of these parts of a file…
const STEP_PERCENT: u64 = 10;
/// …and at least one in this time.
const QUIET_AT_MOST: Duration = Duration::from_secs(30);

/// The bytes of one file as they come in.
pub(crate) struct Progress {
    shown: Shown,
    name: String,
    all: u64,
}

enum Shown {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
    Nothing,
}

struct Lines {
    done: u64,
    /// Bytes that were there before.
    from: u64,
    percent: u64,
    started: Instant,
    said: Instant,
}

impl Progress {
    /// For a file of `all` bytes.
    pub(crate) fn new(name: &str, all: u64, quiet: bool) -> Progress {
        let shown = if quiet {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template(
                "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            );
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            Shown::Bar(bar)
        } else {
            Shown::Lines(Mutex::new(Lines {
                done: 0,
                from: 0,
                percent: 0,
                started: Instant::now(),
                said: Instant::now(),
            }))
        };
        Progress {
            shown,
            name: name.to_owned(),
            all,
        }
    }

    /// These bytes were there already.
    pub(crate) fn resume(&self, bytes: u64) {
        self.note(&format!("going on after {}", size(bytes)));
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_position(bytes);
                bar.reset_eta();
            }
            Shown::Lines(lines) => {
                if let Ok(mut lines) = lines.lock() {
                    lines.done = bytes;
                    lines.from = bytes;
                    lines.percent = bytes.saturating_mul(100) / self.all.max(1);
                    lines.started = Instant::now();
                }
            }
            Shown::Nothing => {}
        }
    }

    /// From the first byte again.
    pub(crate) fn restart(&self) {
        match &self.shown {
            Shown::Bar(bar) => bar.set_position(0),
            Shown::Lines(lines) => {
                if let Ok(mut lines) = lines.lock() {
                    lines.done = 0;
                    lines.from = 0;
                    lines.percent = 0;
                    lines.started = Instant::now();
                }
            }
            Shown::Nothing => {}
        }
    }

    /// More bytes are there.
    pub(crate) fn add(&self, bytes: u64) {
        match &self.shown {
            Shown::Bar(bar) => bar.inc(bytes),
            Shown::Lines(lines) => {
                let Ok(mut lines) = lines.lock() else { return };
                lines.done += bytes;
                let percent = lines.done.saturating_mul(100) / self.all.max(1);
                let step = percent / STEP_PERCENT > lines.percent / STEP_PERCENT;
                if step || lines.said.elapsed() > QUIET_AT_MOST {
                    lines.percent = percent;
                    lines.said = Instant::now();
                    let seconds = lines.started.elapsed().as_secs_f64().max(1e-3);
                    let rate = (lines.done - lines.from) as f64 / seconds;
                    say(&format!(
                        "{}: {percent:3} % of {}, {}/s",
                        self.name,
                        size(self.all),
                        size(rate as u64)
                    ));
                }
            }
            Shown::Nothing => {}
        }
    }

    /// A remark between.
    pub(crate) fn note(&self, text: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| say(&format!("{}: {text}", self.name))),
            Shown::Lines(_) => say(&format!("{}: {text}", self.name)),
            Shown::Nothing => {}
        }
    }

    /// The end; the bar goes away.
    pub(crate) fn end(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

/// One line on standard error; nobody reading it is no reason to stop.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

//! Log lines: on standard error or appended to a file, as text or as JSON.

use std::fs::{File, OpenOptions};
use std::io::IsTerminal;
use std::sync::Arc;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::settings::{LogFormat, Settings};

/// Level where neither flag nor environment says anything.
const DEFAULT_FILTER: &str = "info";

/// Starts logging; once per process.
///
/// # Errors
/// When the log file can't be opened.
pub(crate) fn init(settings: &Settings) -> anyhow::Result<()> {
    let (writer, ansi) = writer(settings)?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(settings))
        .with_writer(writer)
        .with_ansi(ansi)
        .with_target(false);
    match settings.log_format.value {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// The level asked for, else `RUST_LOG`, else the default.
fn filter(settings: &Settings) -> EnvFilter {
    match settings.log_level.value {
        Some(level) => EnvFilter::new(level.to_string()),
        None => {
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER))
        }
    }
}

fn writer(settings: &Settings) -> anyhow::Result<(BoxMakeWriter, bool)> {
    let Some(path) = &settings.log_file.value else {
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        return Ok((BoxMakeWriter::new(std::io::stderr), colours));
    };
    let file: File = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open log file `{}`", path.display()))?;
    Ok((BoxMakeWriter::new(Arc::new(file)), false))
}

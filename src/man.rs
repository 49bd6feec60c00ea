//! `bitnet-launch man DIR`: manual pages made from the command line's own description.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::Cli;

/// Writes `bitnet-launch.1` and one page per command that the help lists.
///
/// # Errors
/// Those of making the directory and writing into it.
pub(crate) fn run(dir: &Path) -> anyhow::Result<ExitCode> {
    let context = || format!("cannot write manual pages to `{}`", dir.display());
    fs::create_dir_all(dir).with_context(context)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(context)?;
    Ok(ExitCode::SUCCESS)
}

//! `bitnet-launch doctor`: what this machine offers, what would be chosen and why, and what to improve.

use std::process::ExitCode;

use crate::cli::DoctorArgs;

/// Prints the report.
///
/// # Errors
/// When settings can't be read.
pub(crate) fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let _ = args;
    Ok(ExitCode::SUCCESS)
}

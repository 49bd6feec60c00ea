//! The engine process.

use std::process::ExitCode;

/// Runs the engine on its inherited socket until the socket closes.
///
/// # Errors
/// When the model can't be loaded.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    anyhow::bail!("the engine is not built yet")
}

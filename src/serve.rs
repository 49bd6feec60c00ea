//! Serves.

use std::process::ExitCode;

use crate::settings::Settings;

/// Serves until told to stop.
///
/// # Errors
/// When the start fails.
pub(crate) fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let prepared = crate::startup::prepare(&settings)?;
    prepared.log(&settings);
    anyhow::bail!("the server is not built yet")
}

//! `bitnet-launch setup_model REPO DIR KERNEL`: the old script's order of arguments, without Python and without a build.

use std::path::Path;
use std::process::ExitCode;

use super::progress::say;
use super::pull::{self, Wish};
use super::reference::Reference;
use crate::cli::SetupArgs;
use crate::interrupt::Interrupt;
use crate::settings::Environment;

/// Fetches the model into `DIR/NAME` and says how to serve it with the kernel.
///
/// # Errors
/// When it can't be fetched.
pub(crate) fn run(args: &SetupArgs, env: &Environment) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let reference = Reference::parse(&args.repo)?;
    let name = match args.repo.trim_end_matches('/').rsplit_once('/') {
        Some(_) => reference.repo.rsplit('/').next().unwrap_or(&reference.repo),
        None => args.repo.trim(),
    };
    let directory = Path::new(&args.dir).join(name);
    let mut wish = Wish::new(reference.clone());
    wish.directory = Some(directory);
    let pulled = pull::fetch(wish, env, interrupt)?;
    println!("{}", pulled.path.display());
    let kernel = match args.kernel.as_str() {
        "auto" => String::new(),
        kernel => format!(" --kernel {kernel}"),
    };
    say(&format!(
        "{}{}",
        pulled.next_step(),
        if pulled.to_convert { "" } else { &kernel }
    ));
    if pulled.to_convert {
        say(&format!(
            "then serve it: bitnet-launch -m FILE.gguf{kernel}"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

//! A model's name instead of its file, for `serve -m NAME`: what the cache has, and the question whether to fetch it.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::pull::{self, Wish};
use super::reference::Reference;
use super::size;
use crate::interrupt::Interrupt;
use crate::settings::Environment;

/// What is known about a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A file that can be served.
    File(PathBuf),
    /// Safetensors, in this directory.
    ToConvert(PathBuf),
    /// Nothing yet; it can be fetched.
    NotHere,
    /// It names no model on a hub.
    NoName,
}

/// Looks a name up in the cache; reads nothing but directories.
pub(crate) fn locate(name: &str, env: &Environment) -> Found {
    let Some(reference) = Reference::read(name) else {
        return Found::NoName;
    };
    let Some(cache) = Cache::from_env(env) else {
        return Found::NotHere;
    };
    let gguf = reference.known().and_then(|model| model.gguf.as_ref());
    let ready = gguf.map(|gguf| Reference {
        repo: gguf.repo.to_owned(),
        file: Some(gguf.file.to_owned()),
        ..reference.clone()
    });
    let file = cache
        .find(&reference)
        .or_else(|| cache.find(&ready.filter(|_| reference.file.is_none())?));
    if let Some(file) = file {
        return Found::File(file);
    }
    match cache.snapshot(&reference.repo, &reference.revision) {
        Some(snapshot) if reference.file.is_none() && has_safetensors(&snapshot) => {
            Found::ToConvert(snapshot)
        }
        _ => Found::NotHere,
    }
}

/// Whether a directory holds weights to be converted.
pub(super) fn has_safetensors(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_file()).any(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .ends_with(".safetensors")
    })
}

/// Asks on a terminal whether to fetch the model, and fetches it; whether it did. Without a terminal nobody can be asked.
///
/// # Errors
/// When it can't be fetched.
pub(crate) fn offer(name: &str, env: &Environment) -> anyhow::Result<bool> {
    let Some(reference) = Reference::read(name) else {
        return Ok(false);
    };
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Ok(false);
    }
    let known = reference.known().and_then(|model| model.gguf.as_ref());
    let bytes = known.and_then(|gguf| gguf.size);
    let about = bytes.map_or_else(String::new, |bytes| format!(" ({})", size(bytes)));
    eprint!("`{name}` is not on this machine. Download {reference}{about}? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    if std::io::stdin().read_line(&mut answer)? == 0 {
        return Ok(false);
    }
    if !matches!(
        answer.trim().to_ascii_lowercase().as_str(),
        "" | "y" | "yes"
    ) {
        return Ok(false);
    }
    download(reference, env)
}

/// Fetches the model without a question, as llama-server does for `-hf`; whether it did: a name may be none.
///
/// # Errors
/// When it can't be fetched.
pub(crate) fn fetch(name: &str, env: &Environment) -> anyhow::Result<bool> {
    match Reference::read(name) {
        Some(reference) => download(reference, env),
        None => Ok(false),
    }
}

/// Whether the model can be served then. The signals are the caller's again.
fn download(reference: Reference, env: &Environment) -> anyhow::Result<bool> {
    let interrupt = Interrupt::watch()?;
    let pulled = pull::fetch(Wish::new(reference), env, interrupt);
    interrupt.give_back();
    Ok(!pulled?.to_convert)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn finds_what_was_pulled() {
        let home = tempfile::tempdir().unwrap();
        let env: Environment =
            [("HF_HUB_CACHE".to_owned(), home.path().display().to_string())].into();
        assert_eq!(locate("models/x.gguf", &env), Found::NoName);
        assert_eq!(locate("no-such-name", &env), Found::NoName);
        assert_eq!(locate("2b-4t", &env), Found::NotHere);
        let put = |repo: &str, file: &str| {
            let snapshot = home.path().join(repo).join("snapshots/c0ffee");
            fs::create_dir_all(&snapshot).unwrap();
            fs::write(snapshot.join(file), "x").unwrap();
            snapshot
        };
        let source = put("models--microsoft--bitnet-b1.58-2B-4T", "model.safetensors");
        let by_source = "microsoft/bitnet-b1.58-2B-4T";
        assert_eq!(locate(by_source, &env), Found::ToConvert(source));
        let ready = put(
            "models--microsoft--bitnet-b1.58-2B-4T-gguf",
            "ggml-model-i2_s.gguf",
        );
        let file = Found::File(ready.join("ggml-model-i2_s.gguf"));
        for name in ["2b-4t", "microsoft/bitnet-b1.58-2B-4T-gguf", by_source] {
            assert_eq!(locate(name, &env), file, "{name}");
        }
    }
}

//! Where a llama-server may be: at the path the user says, or in the usual places.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::ExternalError;
use crate::settings::{EngineChoice, Environment, Setting};

/// Directories that a build of bitnet.cpp leaves its programs in, after those of PATH.
const DIRECTORIES: &[&str] = &["vendor/BitNet/build/bin", "/app/BitNet/build/bin"];
/// `server` was its name until June 2024; in PATH it may be anything.
const NAMES: &[&str] = &["llama-server", "server"];

/// The program to run; `None` for the built-in engine.
///
/// # Errors
/// When there is none where it should be.
pub(super) fn find(
    choice: &Setting<EngineChoice>,
    env: &Environment,
) -> Result<Option<PathBuf>, ExternalError> {
    match &choice.value {
        EngineChoice::BuiltIn => Ok(None),
        EngineChoice::Auto => match all(env).into_iter().next() {
            Some(path) => Ok(Some(path)),
            None => Err(ExternalError::NotFound {
                source_: choice.source.clone(),
                looked: looked_in(env),
            }),
        },
        EngineChoice::At(named) => {
            let path = in_path(named, env).unwrap_or_else(|| named.clone());
            let path = match path.is_dir() {
                true => NAMES
                    .iter()
                    .map(|name| path.join(name))
                    .find(|path| is_program(path))
                    .unwrap_or(path),
                false => path,
            };
            if !is_program(&path) {
                return Err(ExternalError::NoProgram {
                    source_: choice.source.clone(),
                    why: why_not(&path),
                    path,
                });
            }
            Ok(Some(absolute(&path)))
        }
    }
}

/// Every llama-server in the usual places, the one that `auto` takes first; never this program itself.
pub(crate) fn all(env: &Environment) -> Vec<PathBuf> {
    let ours = std::env::current_exe().and_then(std::fs::canonicalize).ok();
    let mut found: Vec<PathBuf> = Vec::new();
    let of_path = path_directories(env).map(|dir| dir.join(NAMES[0]));
    let of_builds = DIRECTORIES
        .iter()
        .flat_map(|dir| NAMES.iter().map(move |name| Path::new(dir).join(name)));
    for path in of_path.chain(of_builds) {
        let Ok(real) = std::fs::canonicalize(&path) else {
            continue;
        };
        let is_new = |path: &PathBuf| std::fs::canonicalize(path).ok().as_ref() != Some(&real);
        if is_program(&path) && Some(&real) != ours.as_ref() && found.iter().all(is_new) {
            found.push(absolute(&path));
        }
    }
    found
}

fn looked_in(env: &Environment) -> Vec<String> {
    let of_path = path_directories(env).map(|dir| dir.display().to_string());
    let rest = DIRECTORIES.iter().map(|dir| (*dir).to_owned());
    of_path.chain(rest).collect()
}

fn path_directories(env: &Environment) -> impl Iterator<Item = PathBuf> {
    let path = env.get("PATH").cloned().unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .collect();
    directories.into_iter()
}

/// A name without a slash is looked up in PATH, as a shell does.
fn in_path(named: &Path, env: &Environment) -> Option<PathBuf> {
    if named.components().count() != 1 || named.is_absolute() {
        return None;
    }
    path_directories(env)
        .map(|dir| dir.join(named))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn why_not(path: &Path) -> String {
    match std::fs::metadata(path) {
        Err(error) => error.to_string(),
        Ok(file) if file.is_dir() => "a directory without a llama-server in it".to_owned(),
        Ok(_) => "it may not be executed".to_owned(),
    }
}

/// Not resolved: a program looks for its libraries beside the name it was called by.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Source;

    fn at(path: &Path) -> Setting<EngineChoice> {
        Setting {
            value: EngineChoice::At(path.to_owned()),
            source: Source::Flag("--engine".to_owned()),
        }
    }

    fn program(path: &Path) {
        std::fs::write(path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn by_path_by_name_and_by_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("llama-server");
        let text = |path: &Path| path.display().to_string();
        let env: Environment = [("PATH".to_owned(), text(dir.path()))].into();
        let missing = find(&at(&path), &env).unwrap_err();
        assert!(missing.to_string().contains("No such file"), "{missing}");
        std::fs::write(&path, "").unwrap();
        let plain = find(&at(&path), &env).unwrap_err();
        assert!(plain.to_string().contains("may not be executed"), "{plain}");
        assert!(all(&env).is_empty());
        program(&path);
        for named in [&path, dir.path(), Path::new("llama-server")] {
            assert_eq!(find(&at(named), &env).unwrap().as_ref(), Some(&path));
        }
        assert_eq!(all(&env), [path]);
    }
}

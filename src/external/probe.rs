//! What a llama-server is able to do: its flags by `--help`, its version, and the words in its machine code.
//!
//! The program and its own libraries are searched for names: each GGML type and each model architecture that a build knows
//! stands in it as text. A script can't be searched so; then nothing is known, and nothing is refused.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::ExternalError;

/// `--help` and `--version` take longer only where something is badly wrong.
const ASK_TIMEOUT: Duration = Duration::from_secs(20);
const ASK_PAUSE: Duration = Duration::from_millis(5);
/// Largest output read of a question.
const OUTPUT_BYTES: u64 = 1 << 20;
/// Larger files hold GPU code; what is searched for stands in the others.
const SEARCHED_BYTES: u64 = 512 << 20;
/// Where builds of bitnet.cpp and llama.cpp put their libraries, seen from the program's directory.
const LIBRARY_DIRECTORIES: &[&str] = &[
    ".",
    "../lib",
    "../lib64",
    "../3rdparty/llama.cpp/src",
    "../3rdparty/llama.cpp/ggml/src",
    "../src",
    "../ggml/src",
];
/// ELF header: machine at offset 18, little endian.
const MACHINES: &[(u16, &str)] = &[(3, "x86"), (40, "arm"), (62, "x86_64"), (183, "aarch64")];

/// A llama-server that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Absolute.
    pub path: PathBuf,
    /// Every flag its `--help` lists, dashes included.
    pub flags: BTreeSet<String>,
    /// `--host` takes paths that end in `.sock`.
    pub unix_sockets: bool,
    /// A key can be given by LLAMA_API_KEY.
    pub key_variable: bool,
    /// What `--version` says, in one line.
    pub version: Option<String>,
    /// Directories with its libraries.
    pub libraries: Vec<PathBuf>,
    /// Whose build it is and what it knows; `None` for a script.
    pub words: Option<Words>,
}

/// Names found in the program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Words(BTreeSet<&'static str>);

/// Names of types (of `ggml.c`) and architectures (of `llama.cpp`) that are looked for.
const WORDS: &[&str] = &[
    "i2_s",
    "tl1",
    "tl2",
    "tq1_0",
    "tq2_0",
    "iq2_bn",
    "q8_0",
    "bitnet",
    "bitnet-25",
    "bitnet-b1.58",
    "llama",
    "qwen3",
    "gemma3",
];

impl Words {
    /// The build knows this name.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.0.contains(word)
    }

    /// Something that every build has was found: the search reached its libraries.
    pub(crate) fn is_complete(&self) -> bool {
        self.has("q8_0") && self.has("llama")
    }

    /// Adds the names in `bytes`: whole words that end with a zero.
    fn add(&mut self, bytes: &[u8]) {
        let ends = bytes.windows(2).enumerate();
        for (last, _) in ends.filter(|(_, pair)| pair[0] != 0 && pair[1] == 0) {
            let text = &bytes[..=last];
            let found = WORDS.iter().find(|word| is_last_word(text, word));
            self.0.extend(found);
        }
    }
}

impl FromIterator<&'static str> for Words {
    fn from_iter<T: IntoIterator<Item = &'static str>>(words: T) -> Self {
        Words(words.into_iter().collect())
    }
}

fn is_last_word(text: &[u8], word: &str) -> bool {
    let before = text.strip_suffix(word.as_bytes());
    before.is_some_and(|before| before.last().is_none_or(|byte| !is_word(*byte)))
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

impl Program {
    /// Looks at a program; it is run with `--help` and `--version`.
    ///
    /// # Errors
    /// When it can't be run here, or is no llama-server.
    pub(crate) fn probe(path: &Path) -> Result<Program, ExternalError> {
        let is_elf = check_machine(path)?;
        let directories = library_directories(path);
        let help = ask(path, &directories, &["--help"], &[])?;
        let flags = flags_of(&help.text);
        let has = |names: &[&str]| names.iter().any(|name| flags.contains(*name));
        if !has(&["--model", "-m"]) || !has(&["--host"]) || !has(&["--port"]) {
            return Err(no_server(path, &help));
        }
        let version = match has(&["--version"]) {
            true => ask(path, &directories, &["--version"], &[]).ok(),
            false => None,
        };
        let words = match is_elf {
            true => Some(words_of(path, &directories)),
            false => None,
        };
        Ok(Program {
            path: path.to_owned(),
            unix_sockets: help.text.contains(".sock"),
            key_variable: help.text.contains("LLAMA_API_KEY"),
            flags,
            version: version.and_then(|said| version_line(&said.text)),
            libraries: directories,
            words: words.filter(Words::is_complete),
        })
    }

    /// The first of these names that the program has.
    pub(crate) fn flag(&self, names: &[&'static str]) -> Option<&'static str> {
        names
            .iter()
            .find(|name| self.flags.contains(**name))
            .copied()
    }

    /// LD_LIBRARY_PATH for it: what is set, then its own libraries. `None`: as it is.
    pub(crate) fn library_path(&self, set: Option<OsString>) -> Option<OsString> {
        library_path(&self.libraries, set)
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let kind = match &self.words {
            Some(words) if words.has("iq2_bn") => "ik_llama.cpp",
            Some(words) if words.has("i2_s") => "bitnet.cpp",
            Some(_) => "llama.cpp",
            None => "of unknown kind",
        };
        match &self.version {
            Some(version) => format!("{} ({kind}, {version})", self.path.display()),
            None => format!("{} ({kind})", self.path.display()),
        }
    }
}

fn library_path(own: &[PathBuf], set: Option<OsString>) -> Option<OsString> {
    if own.is_empty() {
        return None;
    }
    let set = set.filter(|set| !set.is_empty());
    let before: Vec<PathBuf> = set
        .iter()
        .flat_map(std::env::split_paths)
        .filter(|dir| !dir.as_os_str().is_empty())
        .collect();
    std::env::join_paths(before.iter().chain(own)).ok()
}

/// Directories near the program that hold llama.cpp's libraries.
fn library_directories(path: &Path) -> Vec<PathBuf> {
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut found: Vec<PathBuf> = Vec::new();
    for near in [path, &real] {
        let Some(directory) = near.parent() else {
            continue;
        };
        for relative in LIBRARY_DIRECTORIES {
            let Ok(candidate) = std::fs::canonicalize(directory.join(relative)) else {
                continue;
            };
            if !found.contains(&candidate) && !libraries_in(&candidate).is_empty() {
                found.push(candidate);
            }
        }
    }
    found
}

fn libraries_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|path| is_own_library(path))
        .collect()
}

fn is_own_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (name.starts_with("libggml") || name.starts_with("libllama")) && name.contains(".so")
}

/// Whether it is machine code.
///
/// # Errors
/// When it is for another machine.
fn check_machine(path: &Path) -> Result<bool, ExternalError> {
    let mut head = [0; 20];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head));
    if read.is_err() || !head.starts_with(b"\x7fELF") {
        return Ok(false);
    }
    let id = u16::from_le_bytes([head[18], head[19]]);
    let machine = MACHINES.iter().find(|(known, _)| *known == id);
    match machine {
        Some((_, name)) if *name != std::env::consts::ARCH => Err(ExternalError::Machine {
            path: path.to_owned(),
            found: name,
        }),
        _ => Ok(true),
    }
}

/// What a program said, and how it ended.
struct Said {
    text: String,
    code: Option<i32>,
}

/// Runs the program with a question; both its outputs.
fn ask(
    path: &Path,
    libraries: &[PathBuf],
    args: &[&str],
    env: &[(&str, &str)],
) -> Result<Said, ExternalError> {
    let failed = |why: String| ExternalError::CannotRun {
        path: path.to_owned(),
        why,
    };
    let (mut output, input) = io::pipe().map_err(|error| failed(error.to_string()))?;
    let input_too = input
        .try_clone()
        .map_err(|error| failed(error.to_string()))?;
    let mut command = Command::new(path);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(input)
        .stderr(input_too);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("LLAMA_") || text == "NOTIFY_SOCKET" {
            command.env_remove(&name);
        }
    }
    if let Some(path) = library_path(libraries, std::env::var_os("LD_LIBRARY_PATH")) {
        command.env("LD_LIBRARY_PATH", path);
    }
    command.envs(env.iter().copied());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    drop(command);
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = output.by_ref().take(OUTPUT_BYTES).read_to_end(&mut bytes);
        bytes
    });
    let status = wait(&mut child).map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned();
    if let Some(signal) = status.signal() {
        return Err(match Signal::try_from(signal) {
            Ok(Signal::SIGILL) => ExternalError::Instruction {
                path: path.to_owned(),
            },
            _ => failed(format!("it ended by signal {signal}")),
        });
    }
    let is_loader = status.code() == Some(127) || text.contains("error while loading shared");
    if is_loader && status.code() != Some(0) {
        return Err(ExternalError::Libraries {
            path: path.to_owned(),
            why: last_line(&text),
        });
    }
    Ok(Said {
        text,
        code: status.code(),
    })
}

fn wait(child: &mut Child) -> io::Result<std::process::ExitStatus> {
    let deadline = Instant::now() + ASK_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            let seconds = ASK_TIMEOUT.as_secs();
            return Err(io::Error::other(format!("no answer within {seconds} s")));
        }
        thread::sleep(ASK_PAUSE);
    }
}

fn no_server(path: &Path, help: &Said) -> ExternalError {
    let code = help.code.unwrap_or(-1);
    ExternalError::NoServer {
        path: path.to_owned(),
        why: match last_line(&help.text) {
            line if line.is_empty() => format!("`--help` printed nothing, exit code {code}"),
            line => format!("`--help` lists no --model, --host and --port; its last line: {line}"),
        },
    }
}

fn last_line(text: &str) -> String {
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or_default().trim().chars().take(300).collect()
}

/// The flags at the beginning of lines: `-t,    --threads N   …`. Words further on are texts about flags.
fn flags_of(help: &str) -> BTreeSet<String> {
    let lines = help
        .lines()
        .map(str::trim_start)
        .filter(|line| line.starts_with('-'));
    lines
        .flat_map(|line| line.split([' ', ',', '\t', '|', '/', '[', ']']))
        .filter(|word| is_flag(word))
        .map(str::to_owned)
        .collect()
}

fn is_flag(word: &str) -> bool {
    let bare = word.trim_start_matches('-');
    let dashes = word.len() - bare.len();
    (1..=2).contains(&dashes)
        && bare.starts_with(|c: char| c.is_ascii_alphabetic())
        && bare
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn version_line(text: &str) -> Option<String> {
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| line.to_ascii_lowercase().starts_with("version"))?;
    let bare = line
        .trim_start_matches("version")
        .trim_start_matches([':', ' ']);
    Some(format!("version {bare}"))
}

/// Searches the program, the libraries it is linked with, and those beside it.
fn words_of(path: &Path, directories: &[PathBuf]) -> Words {
    let mut files = vec![path.to_owned()];
    // The dynamic linker lists them and runs nothing; a static program answers `--version`.
    if let Ok(said) = ask(
        path,
        directories,
        &["--version"],
        &[("LD_TRACE_LOADED_OBJECTS", "1")],
    ) {
        let linked = said.text.lines().filter_map(|line| {
            let (_, target) = line.split_once("=> ")?;
            Some(PathBuf::from(target.split(" (").next()?.trim()))
        });
        files.extend(linked.filter(|path| is_own_library(path)));
    }
    files.extend(directories.iter().flat_map(|dir| libraries_in(dir)));
    let mut seen = BTreeSet::new();
    let mut words = Words::default();
    for file in files {
        let Ok(real) = std::fs::canonicalize(&file) else {
            continue;
        };
        let is_small =
            |file: &PathBuf| std::fs::metadata(file).is_ok_and(|file| file.len() <= SEARCHED_BYTES);
        if seen.insert(real.clone())
            && is_small(&real)
            && let Ok(bytes) = std::fs::read(&real)
        {
            words.add(&bytes);
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_stand_at_the_beginning_of_lines() {
        let help = "----- common params -----\n\n\
            -h,    --help, --usage                  print usage and exit\n\
            -t,    --threads N                      number of threads (env: LLAMA_ARG_THREADS)\n\
            \x20                                        see also --no-such-flag\n\
              -c N, --ctx-size N    size of the context\n\
            -fa,   --flash-attn [on|off|auto]       set Flash Attention\n\
            --host HOST                             ip address, or a path that ends with .sock\n";
        let flags = flags_of(help);
        let wanted = [
            "--ctx-size",
            "--flash-attn",
            "--help",
            "--host",
            "--threads",
            "--usage",
            "-c",
            "-fa",
            "-h",
            "-t",
        ];
        assert_eq!(flags.iter().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn words_are_whole() {
        let mut words = Words::default();
        words.add(b"\0q8_0\0xi2_s\0iq2_s\0tl1,\0bitnet-b1.58\0llama\0");
        let expected: Words = ["q8_0", "bitnet-b1.58", "llama"].into_iter().collect();
        assert_eq!(words, expected);
        assert!(words.is_complete() && !words.has("i2_s") && !words.has("bitnet"));
        words.add(b"i2_s\0bitnet\0");
        assert!(words.has("i2_s") && words.has("bitnet"));
        words.add(b"");
        words.add(b"tl1");
        assert!(!words.has("tl1"));
    }

    #[test]
    fn versions_in_one_line() {
        let text = "ggml_init: found 1 device\nversion: 3947 (a8ac7072)\nbuilt with cc\n";
        assert_eq!(
            version_line(text).as_deref(),
            Some("version 3947 (a8ac7072)")
        );
        assert_eq!(version_line("1.0"), None);
    }

    #[test]
    fn other_machines_and_what_is_no_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("llama-server");
        let mut elf = vec![0; 64];
        elf[..4].copy_from_slice(b"\x7fELF");
        elf[18] = 8; // MIPS: not in the list, the system will say so.
        std::fs::write(&path, &elf).unwrap();
        assert!(check_machine(&path).unwrap());
        elf[18] = if cfg!(target_arch = "x86_64") {
            183
        } else {
            62
        };
        std::fs::write(&path, &elf).unwrap();
        let error = check_machine(&path).unwrap_err();
        assert!(matches!(error, ExternalError::Machine { .. }));
        let error = Program::probe(Path::new("/bin/true")).unwrap_err();
        assert!(matches!(error, ExternalError::NoServer { .. }), "{error}");
    }

    #[test]
    fn libraries_beside_a_program_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let build = dir.path().join("build");
        for sub in ["bin", "3rdparty/llama.cpp/src", "lib"] {
            std::fs::create_dir_all(build.join(sub)).unwrap();
        }
        let library = build.join("3rdparty/llama.cpp/src/libllama.so");
        std::fs::write(&library, "").unwrap();
        let found = library_directories(&build.join("bin/llama-server"));
        let wanted = std::fs::canonicalize(library.parent().unwrap()).unwrap();
        assert_eq!(found, std::slice::from_ref(&wanted));
        let path = library_path(&found, Some("/a:/b".into())).unwrap();
        assert_eq!(path, format!("/a:/b:{}", wanted.display()).as_str());
        assert_eq!(library_path(&[], Some("/a".into())), None);
    }
}

//! `bitnet-launch pull`: finds out what is meant and what the hub has, checks the room, brings the files, checks them, and
//! puts them where they are found again.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::{Cache, NoChoice, choose_gguf, files};
use super::catalogue::{self, Model};
use super::digest;
use super::download::Download;
use super::error::PullError;
use super::hub::{Hub, HubFile, Listing, Options, Resolved, is_offline};
use super::locate::has_safetensors;
use super::part::{Lock, Part};
use super::place::{Place, Target, free_bytes};
use super::progress::{Progress, say};
use super::reference::Reference;
use super::size;
use crate::cli::PullArgs;
use crate::interrupt::Interrupt;
use crate::settings::Environment;

/// Room to be left beside what is downloaded.
const SPARE_BYTES: u64 = 16 << 20;
/// Files of a repository that `convert` reads, by their ends.
const SOURCE_ENDS: [&str; 6] = [
    ".safetensors",
    ".safetensors.index.json",
    ".json",
    ".model",
    ".jinja",
    ".txt",
];
/// The only directory of a repository that `convert` looks into.
const POOLING: &str = "1_Pooling/";

/// What is to be fetched and how.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// What.
    pub reference: Reference,
    /// Take safetensors although there is a GGUF file.
    pub safetensors: bool,
    /// Where to; `None`: the cache.
    pub directory: Option<PathBuf>,
    /// Hash what is here already.
    pub verify: bool,
    /// Take a file that isn't the one the catalogue knows.
    pub trust_hub: bool,
    /// Connections at once.
    pub connections: usize,
    /// How to treat the network.
    pub options: Options,
    /// No progress.
    pub quiet: bool,
}

/// What is here now.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// The GGUF file, or the directory with safetensors.
    pub path: PathBuf,
    /// Whether it has to be converted before it can be served.
    pub to_convert: bool,
    /// What it is called from now on.
    pub name: String,
}

/// Fetches and says where it is: the path on standard output, the rest on standard error.
///
/// # Errors
/// When it can't be fetched.
pub(crate) fn run(args: PullArgs, env: &Environment) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::watch()?;
    let wish = args.wish()?;
    let pulled = fetch(wish, env, interrupt)?;
    // The file is here, whether or not somebody reads where.
    let _ = writeln!(std::io::stdout().lock(), "{}", pulled.path.display());
    if !args.quiet {
        say(&pulled.next_step());
    }
    Ok(ExitCode::SUCCESS)
}

impl PullArgs {
    fn wish(&self) -> Result<Wish, PullError> {
        let mut reference = Reference::parse(&self.model)?;
        if let Some(model) = catalogue::find(self.model.trim())
            && self.safetensors
        {
            reference.repo = model.sources[0].to_owned();
            reference.file = None;
        }
        Ok(Wish {
            reference,
            safetensors: self.safetensors,
            directory: self.dir.clone(),
            verify: self.verify,
            trust_hub: self.trust_hub,
            connections: usize::from(self.connections),
            options: Options {
                tries: self.retries,
                stall: self.timeout.map(Duration::from_secs),
            },
            quiet: self.quiet,
        })
    }
}

impl Wish {
    /// As `pull` without flags.
    pub(crate) fn new(reference: Reference) -> Wish {
        Wish {
            reference,
            safetensors: false,
            directory: None,
            verify: false,
            trust_hub: false,
            connections: 4,
            options: Options {
                tries: 8,
                stall: None,
            },
            quiet: false,
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    fn place(&self, env: &Environment) -> Result<Place, PullError> {
        match &self.directory {
            Some(directory) => Ok(Place::Directory(directory.clone())),
            None => Cache::from_env(env)
                .map(Place::Cache)
                .ok_or_else(|| PullError::Variable {
                    name: "HOME",
                    found: String::new(),
                    expected: "a directory to keep models in; or HF_HOME, or `--dir DIR`",
                }),
        }
    }
}

impl Pulled {
    /// What one does with it.
    pub(crate) fn next_step(&self) -> String {
        match self.to_convert {
            false => format!("serve it: bitnet-launch -m {}", self.name),
            true => format!(
                "convert it: bitnet-launch convert {} -o FILE.gguf",
                self.path.display()
            ),
        }
    }
}

/// Fetches what is wished for, unless it is here already.
///
/// # Errors
/// When it can't be fetched.
pub(crate) fn fetch(
    mut wish: Wish,
    env: &Environment,
    interrupt: &'static Interrupt,
) -> Result<Pulled, PullError> {
    prefer_gguf(&mut wish);
    let place = wish.place(env)?;
    if is_offline(env) {
        return offline(&wish, &place);
    }
    let hub = Hub::from_env(env, &wish.options)?;
    let note = |text: &str| wish.say(text);
    let reference = &wish.reference;
    let listing = hub.list(reference, interrupt, &note)?;
    let (files, to_convert) = choose(&wish, &listing)?;
    let mut fetches = Vec::new();
    for file in files {
        let resolved = hub.resolve(
            &reference.repo,
            &listing.commit,
            &file.path,
            interrupt,
            &note,
        )?;
        fetches.push(Fetch::new(&wish, &place, file, resolved)?);
    }
    let mut missing = Vec::new();
    for fetch in &fetches {
        if !fetch.is_here(&wish, interrupt)? {
            missing.push(fetch);
        }
    }
    check_room(&place, &missing)?;
    for fetch in missing {
        fetch.run(&wish, &hub, &place, &listing, interrupt)?;
    }
    let mut paths = Vec::new();
    for fetch in &fetches {
        let path = &fetch.file.path;
        paths.push(place.publish(&fetch.target, &reference.repo, &listing.commit, path)?);
    }
    place.note_commit(reference, &listing.commit)?;
    let path = match (to_convert, &place) {
        (false, _) => paths.swap_remove(0),
        (true, Place::Directory(directory)) => directory.clone(),
        (true, Place::Cache(cache)) => cache
            .repo(&reference.repo)
            .join("snapshots")
            .join(&listing.commit),
    };
    Ok(pulled(&wish, path, to_convert))
}

/// Who names the repository of a model that has a ready GGUF file elsewhere means that file.
fn prefer_gguf(wish: &mut Wish) {
    let reference = &wish.reference;
    if wish.safetensors || reference.file.is_some() {
        return;
    }
    let Some(model) = reference.known() else {
        return;
    };
    let Some(gguf) = &model.gguf else { return };
    let is_first = model
        .sources
        .first()
        .is_some_and(|source| source.eq_ignore_ascii_case(&reference.repo));
    if is_first {
        wish.say(&format!(
            "{}: taking the ready file {} of {} (`--safetensors` takes the other)",
            reference.repo, gguf.file, gguf.repo
        ));
        wish.reference = Reference {
            repo: gguf.repo.to_owned(),
            revision: super::reference::MAIN.to_owned(),
            file: Some(gguf.file.to_owned()),
        };
    }
}

fn pulled(wish: &Wish, path: PathBuf, to_convert: bool) -> Pulled {
    let reference = &wish.reference;
    let is_catalogued = |model: &&Model| {
        model.wanted() == (reference.repo.as_str(), reference.file.as_deref())
            && reference.revision == super::reference::MAIN
    };
    let name = match (&wish.directory, reference.known().filter(is_catalogued)) {
        (Some(_), _) => path.display().to_string(),
        (None, Some(model)) => model.name.to_owned(),
        (None, None) => reference.to_string(),
    };
    Pulled {
        path,
        to_convert,
        name,
    }
}

/// What the cache has.
fn offline(wish: &Wish, place: &Place) -> Result<Pulled, PullError> {
    let reference = &wish.reference;
    let here = match place {
        Place::Directory(_) => None,
        Place::Cache(cache) => match cache.find(reference).filter(|_| !wish.safetensors) {
            Some(file) => Some((file, false)),
            None => cache
                .snapshot(&reference.repo, &reference.revision)
                .filter(|snapshot| reference.file.is_none() && has_safetensors(snapshot))
                .map(|snapshot| (snapshot, true)),
        },
    };
    let (path, to_convert) = here.ok_or_else(|| PullError::Offline {
        what: reference.to_string(),
        place: place.root().to_owned(),
    })?;
    if wish.verify {
        let files = match to_convert {
            false => vec![path.clone()],
            true => files(&path, &path)
                .iter()
                .map(|file| path.join(file))
                .collect(),
        };
        files.iter().try_for_each(|file| verify_by_name(file))?;
    }
    wish.say("HF_HUB_OFFLINE is set: taking what the cache has");
    Ok(pulled(wish, path, to_convert))
}

/// Large files of the cache are named by their hash.
fn verify_by_name(path: &Path) -> Result<(), PullError> {
    let failed = |cause| PullError::file("read", path, cause);
    let blob = fs::canonicalize(path).map_err(failed)?;
    let named = blob.file_name().unwrap_or_default().to_string_lossy();
    if !digest::is_sha256(&named) {
        return Ok(());
    }
    let found = digest::of_file(path, &mut |_| true).map_err(failed)?;
    match found {
        Some(found) if found != *named => Err(PullError::Damaged {
            path: path.to_owned(),
            found,
            expected: named.into_owned(),
        }),
        _ => Ok(()),
    }
}

/// The files that are meant, and whether they have to be converted.
fn choose<'a>(wish: &Wish, listing: &'a Listing) -> Result<(Vec<&'a HubFile>, bool), PullError> {
    let repo = wish.reference.repo.clone();
    let wanted = wish.reference.file.as_deref();
    let paths: Vec<String> = listing.files.iter().map(|file| file.path.clone()).collect();
    let by_path = |path: &str| listing.files.iter().find(|file| file.path == path);
    if !wish.safetensors {
        match choose_gguf(&paths, wanted) {
            Ok(path) => return Ok((by_path(&path).into_iter().collect(), false)),
            Err(NoChoice::Several(found)) => {
                return Err(PullError::SeveralFiles { repo, found });
            }
            Err(NoChoice::None) => {}
        }
    }
    if let Some(wanted) = wanted {
        return Err(PullError::NoFile {
            repo,
            wanted: format!("file `{wanted}`"),
            found: paths,
        });
    }
    let is_source = |file: &&HubFile| {
        let inside = file.path.strip_prefix(POOLING).unwrap_or(&file.path);
        !inside.contains('/') && SOURCE_ENDS.iter().any(|end| inside.ends_with(end))
    };
    let files: Vec<&HubFile> = listing.files.iter().filter(is_source).collect();
    let has_weights = |file: &&HubFile| file.path.ends_with(".safetensors");
    if !files.iter().any(has_weights) {
        return Err(PullError::NoFile {
            repo,
            wanted: match wish.safetensors {
                true => "safetensors".to_owned(),
                false => "GGUF file and no safetensors".to_owned(),
            },
            found: paths,
        });
    }
    Ok((files, true))
}

fn check_room(place: &Place, missing: &[&Fetch<'_>]) -> Result<(), PullError> {
    let there = |fetch: &&&Fetch<'_>| {
        let part = fs::metadata(&fetch.target.part).map_or(0, |metadata| metadata.len());
        fetch.resolved.size.saturating_sub(part)
    };
    let needed: u64 = missing.iter().map(|fetch| there(&fetch)).sum();
    match free_bytes(place.root()) {
        Some(free) if needed > 0 && needed + SPARE_BYTES > free => Err(PullError::Space {
            directory: place.root().to_owned(),
            free,
            needed: needed + SPARE_BYTES,
        }),
        _ => Ok(()),
    }
}

/// One file with all that is known about it.
struct Fetch<'a> {
    file: &'a HubFile,
    resolved: Resolved,
    target: Target,
    /// Hash, and who says so.
    expected: Option<(String, &'static str)>,
}

impl<'a> Fetch<'a> {
    /// Holds list, headers and catalogue against each other.
    fn new(
        wish: &Wish,
        place: &Place,
        file: &'a HubFile,
        resolved: Resolved,
    ) -> Result<Fetch<'a>, PullError> {
        let repo = &wish.reference.repo;
        if let Some(listed) = file.size
            && listed != resolved.size
        {
            return Err(PullError::Size {
                file: file.path.clone(),
                found: resolved.size,
                found_by: "said by the hub for the file".to_owned(),
                expected: listed,
                expected_by: "in the hub's list".to_owned(),
            });
        }
        let known = wish
            .reference
            .known()
            .and_then(|model| model.known_file(repo, &file.path)?.sha256);
        let hub = file.sha256.as_deref().or(resolved.sha256());
        if let (Some(known), Some(hub)) = (known, hub)
            && known != hub
            && !wish.trust_hub
        {
            return Err(PullError::Changed {
                file: format!("{repo}:{}", file.path),
                found: hub.to_owned(),
                expected: known.to_owned(),
            });
        }
        if let (Some(listed), Some(said)) = (file.sha256.as_deref(), resolved.sha256())
            && listed != said
        {
            return Err(PullError::Hash {
                file: file.path.clone(),
                found: said.to_owned(),
                expected: listed.to_owned(),
                by: "the hub's list",
            });
        }
        let expected = match (hub, known) {
            (Some(hash), Some(known)) if hash == known => {
                Some((hash.to_owned(), "the hub and this program's catalogue"))
            }
            (Some(hash), _) => Some((hash.to_owned(), "the hub")),
            (None, Some(hash)) if !wish.trust_hub => {
                Some((hash.to_owned(), "this program's catalogue"))
            }
            (None, _) => None,
        };
        Ok(Fetch {
            target: place.target(repo, &file.path, &resolved.etag),
            file,
            resolved,
            expected,
        })
    }

    /// Whether the file is here and, as far as it can be told, right. Files in the cache are named by their content, so that
    /// their size is believed unless asked to verify; elsewhere the hash is taken.
    fn is_here(&self, wish: &Wish, interrupt: &Interrupt) -> Result<bool, PullError> {
        let path = &self.target.file;
        let Ok(metadata) = fs::metadata(path) else {
            return Ok(false);
        };
        let name = &self.file.path;
        if metadata.len() != self.resolved.size {
            wish.say(&format!(
                "{name}: here with {} bytes, expected {}: downloading it again",
                metadata.len(),
                self.resolved.size
            ));
            return Ok(false);
        }
        let hash = wish.verify || wish.directory.is_some();
        let (true, Some((expected, by))) = (hash, &self.expected) else {
            wish.say(&format!("{name}: already here"));
            return Ok(true);
        };
        let found = hash_shown(path, name, metadata.len(), wish.quiet, interrupt)?;
        if found == *expected {
            wish.say(&format!("{name}: already here, sha256 as {by} says"));
            return Ok(true);
        }
        wish.say(&format!(
            "{name}: here with sha256 {found}, expected {expected} ({by}): downloading it again"
        ));
        Ok(false)
    }

    fn run(
        &self,
        wish: &Wish,
        hub: &Hub,
        place: &Place,
        listing: &Listing,
        interrupt: &'static Interrupt,
    ) -> Result<(), PullError> {
        let repo = &wish.reference.repo;
        let before = fs::metadata(&self.target.file).and_then(|metadata| metadata.modified());
        place.prepare(&self.target, repo, listing)?;
        let progress = Arc::new(Progress::new(
            &self.file.path,
            self.resolved.size,
            wish.quiet,
        ));
        let note = |text: &str| progress.note(text);
        let locks = || -> Result<(Option<Lock>, Part), PullError> {
            let part = &self.target.part;
            let lock = self.target.lock.as_ref();
            let lock = lock.map(|lock| Lock::take(lock, part, interrupt, &note));
            Ok((lock.transpose()?, Part::open(part, interrupt, &note)?))
        };
        let (lock, part) = match locks() {
            Ok(locks) => locks,
            Err(error) => {
                progress.end();
                return Err(error);
            }
        };
        // While this one waited, another process may have finished.
        let after = fs::metadata(&self.target.file).and_then(|metadata| metadata.modified());
        let has_size = fs::metadata(&self.target.file)
            .is_ok_and(|metadata| metadata.len() == self.resolved.size);
        if has_size && before.ok() != after.ok() {
            part.remove_if_empty();
            progress.note("the other process has finished it");
            progress.end();
            return Ok(());
        }
        let done = self.bring(wish, hub, &listing.commit, part, &progress, interrupt);
        progress.end();
        drop(lock);
        if done.is_err() {
            place.tidy(&self.target);
        }
        done
    }

    fn bring(
        &self,
        wish: &Wish,
        hub: &Hub,
        commit: &str,
        mut part: Part,
        progress: &Arc<Progress>,
        interrupt: &'static Interrupt,
    ) -> Result<(), PullError> {
        let mut resumed = part.bytes() > 0;
        let name = &self.file.path;
        loop {
            let started = Instant::now();
            let before = part.bytes();
            let download = self.download(wish, hub, commit);
            let found = match download.run(&mut part, progress, interrupt) {
                Ok(found) => found,
                Err(error) => {
                    part.remove_if_empty();
                    return Err(error);
                }
            };
            let wrong = self.expected.as_ref().filter(|(hash, _)| *hash != found);
            let Some((expected, by)) = wrong else {
                part.finish(&self.target.file)?;
                let seconds = started.elapsed().as_secs_f64().max(1e-3);
                let bytes = self.resolved.size - before.min(self.resolved.size);
                progress.note(&format!(
                    "{} in {seconds:.1} s ({}/s), {}",
                    size(bytes),
                    size((bytes as f64 / seconds) as u64),
                    match &self.expected {
                        Some((_, by)) => format!("sha256 as {by} says"),
                        None => "size as the hub says, which names no sha256".to_owned(),
                    }
                ));
                return Ok(());
            };
            if !resumed {
                part.remove();
                return Err(PullError::Hash {
                    file: name.clone(),
                    found,
                    expected: expected.clone(),
                    by,
                });
            }
            progress.note("what was here before was damaged: downloading all of it");
            progress.restart();
            part.clear()?;
            resumed = false;
        }
    }

    fn download(&self, wish: &Wish, hub: &Hub, commit: &str) -> Download {
        Download {
            hub: hub.clone(),
            repo: wish.reference.repo.clone(),
            commit: commit.to_owned(),
            path: self.file.path.clone(),
            resolved: self.resolved.clone(),
            connections: wish.connections,
        }
    }
}

fn hash_shown(
    path: &Path,
    name: &str,
    bytes: u64,
    quiet: bool,
    interrupt: &Interrupt,
) -> Result<String, PullError> {
    let progress = Progress::new(&format!("{name}: sha256"), bytes, quiet);
    let hash = digest::of_file(path, &mut |n| {
        progress.add(n);
        !interrupt.asked()
    });
    progress.end();
    hash.map_err(|cause| PullError::file("read", path, cause))?
        .ok_or_else(|| PullError::Stopped {
            file: name.to_owned(),
            kept_bytes: bytes,
        })
}

//! Tuned setups on disk: one file for each machine, limits, model and program version they were measured with.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bitnet_model::protocol::{HeadMode, KvType, ModelSource};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::plan::Plan;
use crate::settings::{Affinity, Environment, Setting, Settings, Source};

/// Bytes of a model file that its hash covers, from its beginning: the header, and more.
const HASHED_BYTES: u64 = 1 << 20;

/// What can be tuned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Kernel by name.
    pub kernel: String,
    /// Decode threads.
    pub threads: usize,
    /// Prefill threads.
    pub threads_batch: usize,
    /// Bind threads to CPUs.
    pub pin: bool,
    /// Prompt tokens per step.
    pub batch: usize,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Setup {
            kernel,
            threads,
            threads_batch,
            pin,
            batch,
        } = self;
        let pinned = if *pin { "pinned" } else { "not pinned" };
        write!(
            f,
            "{kernel}, threads {threads}, for prompts {threads_batch}, {pinned}, prompt step {batch}"
        )
    }
}

impl Setup {
    /// What a plan chose.
    pub(crate) fn of(plan: &Plan) -> Setup {
        Setup {
            kernel: plan.kernel.value.to_string(),
            threads: plan.threads(),
            threads_batch: plan.prefill_cpus.value.len(),
            pin: plan.pin.value,
            batch: plan.prefill_batch.value,
        }
    }

    /// The settings with this setup in place of what nobody said.
    pub(crate) fn apply(&self, settings: &Settings, host: &Host) -> Settings {
        let mut tuned = settings.clone();
        set(&mut tuned.kernel, Some(self.kernel.clone()));
        set(&mut tuned.threads, Some(self.threads));
        set(&mut tuned.threads_batch, Some(self.threads_batch));
        set(&mut tuned.batch_size, Some(self.batch));
        let affinity = match (self.pin, host.allowed_cpus()) {
            (true, Some(allowed)) => Affinity::Cpus(allowed),
            (true, None) => Affinity::Auto,
            (false, _) => Affinity::None,
        };
        set(&mut tuned.cpu_affinity, affinity);
        tuned
    }
}

fn set<T>(setting: &mut Setting<T>, value: T) {
    if setting.source == Source::Default {
        *setting = Setting {
            value,
            source: Source::Tuned,
        };
    }
}

/// Everything that has to be the same for a profile to be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    program: String,
    cpu: String,
    microcode: Option<String>,
    os_release: Option<String>,
    allowed_cpus: Option<String>,
    quota_us: Option<(u64, u64)>,
    memory_limit_bytes: Option<u64>,
    model: String,
    /// What would be chosen without a profile: settings that change it have profiles of their own.
    default: Setup,
    head: HeadMode,
    kv_type: KvType,
}

impl Key {
    /// The key of this machine, model and plan; `default` was made without a profile. `None` when the model can't be read.
    pub(crate) fn new(host: &Host, settings: &Settings, default: &Plan) -> Option<Key> {
        let limits = &host.limits;
        Some(Key {
            program: format!("{} {}", crate::VERSION, crate::COMMIT),
            cpu: host.cpu.model.clone().unwrap_or_default(),
            microcode: host.cpu.microcode.clone(),
            os_release: host.os_release.clone(),
            allowed_cpus: host.allowed_cpus().map(|cpus| cpus.to_string()),
            quota_us: limits.quota.as_ref().map(|q| (q.quota_us, q.period_us)),
            memory_limit_bytes: limits.memory.as_ref().map(|limit| limit.bytes),
            model: model_hash(&settings.model.value).ok()?,
            default: Setup::of(default),
            head: default.head.value,
            kv_type: default.kv_type.value,
        })
    }

    fn file_name(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        format!("{:016x}.json", fnv(text.as_bytes()))
    }
}

/// Size, and the hash of its first bytes.
fn model_hash(model: &ModelSource) -> io::Result<String> {
    match model {
        ModelSource::Demo => {
            let bytes = crate::demo::bytes();
            Ok(format!("{}-{:016x}", bytes.len(), fnv(&bytes)))
        }
        ModelSource::File(path) => {
            let mut file = fs::File::open(path)?;
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(&mut file, HASHED_BYTES), &mut bytes)?;
            Ok(format!("{}-{:016x}", file.metadata()?.len(), fnv(&bytes)))
        }
    }
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Medians of one setup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// What was measured.
    pub setup: Setup,
    /// With long prompts and hardly an answer.
    pub prefill_only: bool,
    /// Prompt tokens per second.
    pub prefill_tok_s: f64,
    /// Answer tokens per second.
    pub decode_tok_s: f64,
    /// Looks that these are medians of.
    pub rounds: usize,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    /// What it holds for.
    pub key: Key,
    /// The best setup.
    pub setup: Setup,
    /// Its seconds per request over the default's, at most 1.
    pub ratio: f64,
    /// Everything that was measured.
    pub measured: Vec<Measured>,
}

/// Where profiles lie: `$XDG_STATE_HOME/bitnet-launch/tuned`, by default `~/.local/state/bitnet-launch/tuned`.
pub(crate) fn directory(environment: &Environment) -> Option<PathBuf> {
    let set = |name: &str| environment.get(name).filter(|value| !value.is_empty());
    let state = match (set("XDG_STATE_HOME"), set("HOME")) {
        (Some(state), _) if Path::new(state).is_absolute() => PathBuf::from(state),
        (_, Some(home)) => Path::new(home).join(".local/state"),
        _ => return None,
    };
    Some(state.join("bitnet-launch/tuned"))
}

/// The profile of this key; `None` if there is none that can be read.
pub(crate) fn load(directory: &Path, key: &Key) -> Option<(PathBuf, Profile)> {
    let path = directory.join(key.file_name());
    let text = fs::read_to_string(&path).ok()?;
    let profile: Profile = serde_json::from_str(&text).ok()?;
    (profile.key == *key).then_some((path, profile))
}

/// Writes it, all or nothing; its path.
///
/// # Errors
/// Those of writing files.
pub(crate) fn store(directory: &Path, profile: &Profile) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let path = directory.join(profile.key.file_name());
    let part = path.with_extension(format!("part{}", std::process::id()));
    let written = fs::write(
        &part,
        format!("{}\n", serde_json::to_string_pretty(profile)?),
    )
    .and_then(|()| fs::rename(&part, &path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written.map(|()| path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::host;
    use crate::settings::tests::settings;

    fn planned(settings: &Settings, host: &Host) -> Plan {
        let gguf = bitnet_model::gguf::Gguf::from_bytes(crate::demo::bytes()).unwrap();
        let facts = bitnet_model::facts::ModelFacts::read(&gguf, &Default::default()).unwrap();
        crate::plan::plan(host, &facts, settings).unwrap()
    }

    fn profile(host: &Host, settings: &Settings) -> Profile {
        let plan = planned(settings, host);
        let key = Key::new(host, settings, &plan).unwrap();
        let setup = Setup {
            threads: 3,
            threads_batch: 5,
            batch: 256,
            pin: false,
            kernel: "i2_s/scalar".to_owned(),
        };
        Profile {
            key,
            setup,
            ratio: 0.9,
            measured: Vec::new(),
        }
    }

    #[test]
    fn what_is_stored_is_found_for_its_key_only() {
        let directory = tempfile::tempdir().unwrap();
        let (machine, nothing) = (host("desktop-8c16t"), settings(&[], &[]));
        let profile = profile(&machine, &nothing);
        let path = store(directory.path(), &profile).unwrap();
        assert_eq!(
            load(directory.path(), &profile.key),
            Some((path.clone(), profile.clone()))
        );
        let files = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 1, "no part of a file is left");

        let mut other = machine.clone();
        other.cpu.microcode = Some("0x2".to_owned());
        let plan = planned(&nothing, &other);
        let key = Key::new(&other, &nothing, &plan).unwrap();
        assert_eq!(load(directory.path(), &key), None);
        let fewer = settings(&[("threads", "2")], &[]);
        let key = Key::new(&machine, &fewer, &planned(&fewer, &machine)).unwrap();
        assert_eq!(load(directory.path(), &key), None);

        fs::write(&path, "{").unwrap();
        assert_eq!(load(directory.path(), &profile.key), None);
    }

    #[test]
    fn a_profile_fills_in_what_nobody_said() {
        let machine = host("desktop-8c16t");
        let nothing = settings(&[], &[]);
        let setup = profile(&machine, &nothing).setup;
        let plan = planned(&setup.apply(&nothing, &machine), &machine);
        assert_eq!(Setup::of(&plan), setup);
        let lines = plan.lines();
        assert_eq!(
            lines[0],
            "Auto-selected kernel: i2_s (scalar; tuned on this machine)"
        );
        assert_eq!(
            lines[1],
            "Auto-configured threads: 3 (tuned on this machine)"
        );
        let said = settings(&[("kernel", "i2_s")], &[("OMP_NUM_THREADS", "2")]);
        let tuned = setup.apply(&said, &machine);
        assert_eq!(tuned.kernel, said.kernel);
        assert_eq!(tuned.threads, said.threads);
        assert_eq!(tuned.batch_size.value, Some(256));
    }

    #[test]
    fn profiles_lie_where_state_lies() {
        let environment = |pairs: &[(&str, &str)]| -> Environment {
            let pairs = pairs
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
            pairs.collect()
        };
        let found = |pairs| directory(&environment(pairs)).map(|p| p.display().to_string());
        assert_eq!(
            found(&[("XDG_STATE_HOME", "/s"), ("HOME", "/h")]).as_deref(),
            Some("/s/bitnet-launch/tuned")
        );
        assert_eq!(
            found(&[("XDG_STATE_HOME", ""), ("HOME", "/h")]).as_deref(),
            Some("/h/.local/state/bitnet-launch/tuned")
        );
        assert_eq!(found(&[]), None);
    }
}

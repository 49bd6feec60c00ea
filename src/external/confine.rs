//! What another engine has to do without: new privileges, files to write but where it has business, connections of its own.
//!
//! Less than the built-in engine gives up, since nobody here knows what it needs: its libraries, plug-ins and wrappers may lie
//! anywhere, so it reads what we can read; it starts programs, and threads in its own way. It takes effect between `fork` and
//! the program, as far as the kernel has it; what can't be had is left out and stands in the log.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use landlock::{
    Access, AccessFs, AccessNet, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope, path_beneath_rules,
};
use nix::libc;
use nix::sys::prctl::set_no_new_privs;
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule,
};

use crate::cli::EngineExecArgs;
use crate::sandbox::{self, LANDLOCK, Rules};

/// Flags of llama-servers that are followed by something they write.
const WRITING_FLAGS: &[&str] = &[
    "--slot-save-path",
    "--log-file",
    "--logdir",
    "-ld",
    "--lookup-cache-dynamic",
    "-lcd",
];
/// Terminals, null, shared memory, accelerators.
const DEVICES: &str = "/dev";
/// Ways to other processes and into the kernel that serving a model needs none of.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// What it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Files and folders it may write, make, replace and remove.
    pub writable: Vec<PathBuf>,
    /// It has a Unix socket, and no other kind can be made.
    pub offline: bool,
}

impl Rights {
    /// For a program with these arguments.
    pub(crate) fn needed(args: &[OsString]) -> Rights {
        let pairs = args.iter().zip(args.iter().skip(1));
        let named = pairs.filter(|(flag, _)| WRITING_FLAGS.iter().any(|name| flag == name));
        let named = named.map(|(_, value)| existing(Path::new(value)));
        let usual = [PathBuf::from(DEVICES), std::env::temp_dir()];
        Rights {
            writable: usual.into_iter().chain(named).collect(),
            offline: false,
        }
    }

    /// The same where it listens on a socket in this folder.
    pub(crate) fn with_socket_in(&self, folder: &Path) -> Rights {
        let mut rights = self.clone();
        rights.writable.push(folder.to_owned());
        rights.offline = true;
        rights
    }

    /// For `engine-exec`.
    pub(super) fn flags(&self) -> Vec<OsString> {
        let mut flags: Vec<OsString> = vec!["--confined".into()];
        if self.offline {
            flags.push("--offline".into());
        }
        for path in &self.writable {
            flags.extend(["--writable".into(), path.into()]);
        }
        flags
    }

    /// What the flags say.
    pub(super) fn of(args: &EngineExecArgs) -> Option<Rights> {
        args.confined.then(|| Rights {
            writable: args.writable.clone(),
            offline: args.offline,
        })
    }

    /// Gives the rest up, for ever; what could not be given up, one line each.
    pub(super) fn take_effect(&self) -> Vec<String> {
        if let Err(error) = set_no_new_privs() {
            return vec![format!("the engine is not confined: no_new_privs: {error}")];
        }
        let files = sandbox::enforced(self.restrict_files());
        let files = files
            .err()
            .map(|why| format!("the engine may write anywhere: {why}"));
        let calls = self.filter_calls().err();
        let calls = calls.map(|why| format!("the engine's system calls are not filtered: {why}"));
        files.into_iter().chain(calls).collect()
    }

    fn restrict_files(&self) -> Result<RestrictionStatus, RulesetError> {
        let writing = AccessFs::from_write(LANDLOCK);
        Ruleset::default()
            .handle_access(writing)?
            .handle_access(AccessNet::ConnectTcp)?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?
            .add_rules(path_beneath_rules(&self.writable, writing))?
            .restrict_self()
    }

    fn filter_calls(&self) -> Result<(), String> {
        let rules = self.refused().map_err(|error| error.to_string())?;
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        sandbox::filter(rules, SeccompAction::Allow, refuse)
    }

    fn refused(&self) -> Result<Rules, BackendError> {
        let mut rules: Rules = REFUSED.iter().map(|call| (*call, vec![])).collect();
        if self.offline {
            let unix = libc::AF_UNIX as u64;
            let (width, other) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Ne);
            let condition = SeccompCondition::new(0, width, other, unix)?;
            rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![condition])?]);
        }
        Ok(rules)
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = self.writable.iter().map(|path| path.display().to_string());
        let paths: Vec<String> = paths.collect();
        write!(
            f,
            "no new privileges, writes {} and its socket only",
            paths.join(", ")
        )
    }
}

/// The path, or what it will be made in.
fn existing(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !path.exists() && parent != Path::new("") => parent.to_owned(),
        Some(_) if !path.exists() => PathBuf::from("."),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn rights_travel_as_flags() {
        let args = [
            "-m",
            "a.gguf",
            "--slot-save-path",
            "/",
            "--log-file",
            "no/such/log",
        ];
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let rights = Rights::needed(&args).with_socket_in(Path::new("/run/x"));
        let temporary = std::env::temp_dir();
        let wanted = [
            "/dev".as_ref(),
            &*temporary,
            "/".as_ref(),
            "no/such".as_ref(),
            "/run/x".as_ref(),
        ];
        assert_eq!(rights.writable, wanted);
        let words = ["bitnet-launch", "engine-exec", "--parent", "7"].map(OsString::from);
        let rest = ["--", "/bin/true", "--offline"].map(OsString::from);
        let line = words.into_iter().chain(rights.flags()).chain(rest);
        let cli = crate::cli::Cli::parse_from(line);
        let Some(crate::cli::Task::EngineExec(args)) = cli.command else {
            panic!("another command");
        };
        assert_eq!(Rights::of(&args), Some(rights));
        assert_eq!(Rights::of(&EngineExecArgs::default()), None);
    }
}

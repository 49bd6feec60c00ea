//! What the engine process gives up before it reads a byte of a model: model files come from strangers.
//!
//! Three layers, each as far as the kernel has it. No new privileges: a set-user-id program would run without them.
//! Landlock: of all files only the model can be read, and only the folder of saved slots written; no TCP, no signals to
//! processes outside. Seccomp: only the system calls that computing needs; no sockets, no programs, no processes, no
//! memory that is executable. What can't be had is left out and said.
//!
//! A call that is not listed fails with `ENOSYS`, as on a kernel that lacks it: the C library falls back from `clone3`,
//! whose flags a filter can't see, to `clone`, which is allowed for threads only.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, RestrictionStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use nix::libc;
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::getpid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Newest set of rights that is asked for; older kernels enforce what they know of it.
pub(crate) const LANDLOCK: ABI = ABI::V6;
/// The C library's allocator and thread start look here; numbers about the machine, nothing else.
const SYSTEM_FILES: &[&str] = &[
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu/online",
];

/// What stays allowed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Policy<'a> {
    /// File to be read.
    pub(crate) model: Option<&'a Path>,
    /// Folder in which files are read, made and replaced.
    pub(crate) writable: Option<&'a Path>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Confined {
    /// Landlock's version, or why there is none.
    pub(crate) files: Result<i32, String>,
    /// Whether system calls are filtered, or why not.
    pub(crate) calls: Result<(), String>,
}

impl Confined {
    /// Whether nothing was left out.
    pub(crate) fn is_whole(&self) -> bool {
        self.files.is_ok() && self.calls.is_ok()
    }
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.calls {
            Ok(()) => f.write_str("system calls filtered")?,
            Err(why) => write!(f, "system calls not filtered ({why})")?,
        }
        match &self.files {
            Ok(version) => write!(f, ", files by Landlock (version {version})"),
            Err(why) => write!(f, ", files not restricted ({why})"),
        }
    }
}

/// Confines the calling thread and all that it starts from now on, for ever.
pub(crate) fn confine(policy: Policy<'_>) -> Confined {
    if let Err(error) = set_no_new_privs() {
        let why = format!("no_new_privs: {error}");
        return Confined {
            files: Err(why.clone()),
            calls: Err(why),
        };
    }
    Confined {
        files: restrict_files(policy),
        calls: filter_calls(policy),
    }
}

/// What [`confine`] would come to here, found out on a thread that is given up for it.
pub(crate) fn tried() -> Confined {
    let trial = thread::spawn(|| confine(Policy::default()));
    trial.join().unwrap_or_else(|_| Confined {
        files: Err("trying it failed".to_owned()),
        calls: Err("trying it failed".to_owned()),
    })
}

fn restrict_files(policy: Policy<'_>) -> Result<i32, String> {
    enforced(landlock(policy))
}

/// Landlock's version, or why it isn't enforced.
pub(crate) fn enforced(outcome: Result<RestrictionStatus, RulesetError>) -> Result<i32, String> {
    let status = outcome.map_err(|error| error.to_string())?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            Err("Landlock is not switched on in this kernel".to_owned())
        }
        (RulesetStatus::NotEnforced, _) => {
            Err("this kernel, or the container, has no Landlock".to_owned())
        }
        (
            _,
            LandlockStatus::Available {
                effective_abi,
                kernel_abi,
            },
        ) => Ok(kernel_abi.unwrap_or(effective_abi as i32)),
        _ => Ok(ABI::V1 as i32),
    }
}

fn landlock(policy: Policy<'_>) -> Result<RestrictionStatus, RulesetError> {
    let slots: BitFlags<AccessFs> = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::RemoveFile;
    let readable = SYSTEM_FILES.iter().map(Path::new).chain(policy.model);
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(readable, AccessFs::ReadFile))?
        .add_rules(path_beneath_rules(policy.writable, slots))?
        .restrict_self()
}

fn filter_calls(policy: Policy<'_>) -> Result<(), String> {
    let rules = rules(policy.writable.is_some()).map_err(|error| error.to_string())?;
    filter(
        rules,
        SeccompAction::Errno(libc::ENOSYS as u32),
        SeccompAction::Allow,
    )
}

/// Filters the calls of this thread, and of what it starts, from now on.
///
/// # Errors
/// Why there is no filter.
pub(crate) fn filter(
    rules: Rules,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<(), String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .map_err(|_| format!("no filter for {}", std::env::consts::ARCH))?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch);
    let program: Result<BpfProgram, _> = filter.and_then(TryInto::try_into);
    let program = program.map_err(|error| error.to_string())?;
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())
}

/// Allowed whatever their arguments are.
const FREE: &[libc::c_long] = &[
    // Files that are open, and their ends.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_shutdown,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_ppoll,
    // Memory.
    libc::SYS_brk,
    libc::SYS_get_mempolicy,
    libc::SYS_madvise,
    libc::SYS_mbind,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munmap,
    libc::SYS_set_mempolicy,
    // Threads.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // Signals to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Clocks, random numbers, the machine.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];

/// Saved slots are files that are made, cut, renamed and removed.
const WRITING: &[libc::c_long] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
];

/// Older names for the same, which the C library still uses where there are any.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[libc::SYS_lstat, libc::SYS_poll, libc::SYS_stat];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];
#[cfg(target_arch = "x86_64")]
const OLD_WRITING: &[libc::c_long] = &[libc::SYS_rename, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_WRITING: &[libc::c_long] = &[];

/// System calls, and when they are meant; no condition: always.
pub(crate) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(writes: bool) -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules: Rules = FREE.iter().chain(OLD).map(|call| (*call, vec![])).collect();
    if writes {
        rules.extend(
            WRITING
                .iter()
                .chain(OLD_WRITING)
                .map(|call| (*call, vec![])),
        );
    }
    let mut allow = |call, argument, operator, value| -> Result<(), _> {
        let width = SeccompCmpArgLen::Qword;
        let condition = SeccompCondition::new(argument, width, operator, value)?;
        let rule = SeccompRule::new(vec![condition])?;
        rules.entry(call).or_default().push(rule);
        Ok::<(), seccompiler::BackendError>(())
    };
    let thread = libc::CLONE_THREAD as u64;
    allow(libc::SYS_clone, 0, MaskedEq(thread), thread)?;
    let itself = getpid().as_raw() as u64;
    allow(libc::SYS_tgkill, 0, Eq, itself)?;
    // Limits are read, of this process.
    allow(libc::SYS_prlimit64, 2, Eq, 0)?;
    for name in [libc::PR_SET_NAME, libc::PR_GET_NAME] {
        allow(libc::SYS_prctl, 0, Eq, name as u64)?;
    }
    // Memory holds data or code, and all code is here.
    let code = libc::PROT_EXEC as u64;
    allow(libc::SYS_mmap, 2, MaskedEq(code), 0)?;
    allow(libc::SYS_mprotect, 2, MaskedEq(code), 0)?;
    // On the control socket, which is connected, and to no other address.
    allow(libc::SYS_recvfrom, 4, Eq, 0)?;
    allow(libc::SYS_sendto, 4, Eq, 0)?;
    // Reading is left to Landlock; without a folder for slots nothing is opened for writing.
    let write = match writes {
        true => 0,
        false => (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64,
    };
    allow(libc::SYS_openat, 2, MaskedEq(write), 0)?;
    #[cfg(target_arch = "x86_64")]
    allow(libc::SYS_open, 1, MaskedEq(write), 0)?;
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Instant;

    /// Where the child finds its model and folder.
    const CHILD: &str = "BITNET_TEST_SANDBOX";

    /// Runs [`in_the_sandbox`] in a process of its own: there is no way back from it.
    #[test]
    fn strangers_code_could_do_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model"), "weights").unwrap();
        fs::create_dir(dir.path().join("slots")).unwrap();
        for writes in ["slots", ""] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "sandbox::tests::in_the_sandbox", "--nocapture"])
                .env(CHILD, dir.path())
                .env("BITNET_TEST_WRITES", writes)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && said.contains("nothing got out"),
                "{said}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }

    #[test]
    fn in_the_sandbox() {
        let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else {
            return;
        };
        let writes = std::env::var("BITNET_TEST_WRITES").is_ok_and(|it| !it.is_empty());
        let (model, slots) = (dir.join("model"), dir.join("slots"));
        let began = Instant::now();
        let confined = confine(Policy {
            model: Some(&model),
            writable: Some(&*slots).filter(|_| writes),
        });
        let took = began.elapsed();
        assert_eq!(
            confined.calls,
            Ok(()),
            "every kernel that runs tests has seccomp"
        );

        assert_eq!(fs::read(&model).unwrap(), b"weights");
        let doubled = thread::spawn(|| vec![1u8; 8 << 20].len() * 2).join();
        assert_eq!(doubled.unwrap(), 16 << 20);

        assert!(TcpListener::bind("127.0.0.1:0").is_err());
        assert!(UdpSocket::bind("127.0.0.1:0").is_err());
        assert!(UnixStream::pair().is_err());
        assert!(Command::new("/bin/true").spawn().is_err());
        assert!(nix::sys::signal::kill(nix::unistd::getppid(), None).is_err());
        let outside = dir.join("outside");
        assert!(File::create(&outside).is_err());
        assert!(fs::remove_file(&model).is_err());
        assert!(File::options().write(true).open(&model).is_err());
        let saved = slots.join("1.slot");
        match writes {
            true => {
                fs::write(slots.join("part"), "cache").unwrap();
                fs::rename(slots.join("part"), &saved).unwrap();
                assert_eq!(fs::read(&saved).unwrap(), b"cache");
                fs::remove_file(&saved).unwrap();
            }
            false => assert!(File::create(&saved).is_err()),
        }
        if confined.files.is_ok() {
            assert!(fs::read("/etc/passwd").is_err());
            assert!(fs::read_dir(&dir).is_err());
            assert!(fs::read("/proc/self/environ").is_err());
        } else {
            println!("skipped: files; {confined}");
        }
        println!("nothing got out; {confined}; {} us", took.as_micros());
    }

    #[test]
    fn a_trial_leaves_the_rest_of_the_program_alone() {
        let confined = tried();
        assert!(confined.calls.is_ok(), "{confined}");
        assert!(TcpListener::bind("127.0.0.1:0").is_ok());
        assert!(!confined.to_string().is_empty());
    }
}

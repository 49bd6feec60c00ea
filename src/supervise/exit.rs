//! How a process ended: exit code or signal, what that means, and what can be done. For engines of any kind.

use std::path::Path;

use nix::sys::signal::Signal;

use super::state::Failure;

/// How an engine's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code or signal.
    pub(crate) kind: ExitKind,
    /// The last lines of its log.
    pub(crate) log: Vec<String>,
    /// Processes of its control group that the kernel killed for want of memory while it ran; `None` where it doesn't count.
    pub(crate) oom_kills: Option<u64>,
}

/// Exit code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitKind {
    /// By itself.
    Code(i32),
    /// By a signal of this number.
    Signal(i32),
}

/// What the process worked with, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tools<'a> {
    /// Kernel by name.
    pub(crate) kernel: Option<&'a str>,
    /// Model file, and its length in bytes when the process was started.
    pub(crate) model: Option<(&'a Path, u64)>,
}

impl Exit {
    /// One line for people, and what they can do.
    pub(crate) fn explain(&self, tools: Tools<'_>) -> Failure {
        let ExitKind::Signal(number) = self.kind else {
            return Failure::new(match self.kind {
                ExitKind::Code(0) => "exit code 0 without being asked".to_owned(),
                ExitKind::Code(code) | ExitKind::Signal(code) => {
                    self.with_last_line(format!("exit code {code}"))
                }
            });
        };
        let reason = signal_name(number);
        let (reason, hint) = match Signal::try_from(number).ok() {
            Some(Signal::SIGILL) => (reason, Some(no_such_instruction(tools.kernel))),
            Some(Signal::SIGKILL) => self.killed(reason),
            Some(Signal::SIGBUS) => page_is_gone(reason, tools.model),
            Some(Signal::SIGSEGV | Signal::SIGABRT) => (
                self.with_panic(reason),
                Some(
                    "this is a bug in the engine; please report it with the log lines above"
                        .to_owned(),
                ),
            ),
            _ => (reason, None),
        };
        Failure { reason, hint }
    }

    /// Somebody outside ended it: an operator or the kernel short of memory, not the work it was doing.
    pub(crate) fn is_from_outside(&self) -> bool {
        matches!(self.kind, ExitKind::Signal(n) if n == Signal::SIGKILL as i32 || n == Signal::SIGTERM as i32)
    }

    /// The CPU has no such instruction.
    pub(crate) fn is_illegal_instruction(&self) -> bool {
        self.kind == ExitKind::Signal(Signal::SIGILL as i32)
    }

    /// By SIGKILL: the counter of the control group tells who did it.
    pub(crate) fn killed(&self, reason: String) -> (String, Option<String>) {
        let less = "give it more memory, or use fewer `--parallel`, a smaller `--ctx-size` or `--kv-type q8_0`";
        match self.oom_kills {
            Some(0) => (
                format!("{reason}, sent by somebody"),
                Some("memory was not short, the system counts no process killed for want of it: find out who sends the signal".to_owned()),
            ),
            Some(n) => (
                format!(
                    "{reason}, out of memory: the kernel killed {n} of this control group's processes meanwhile"
                ),
                Some(less.to_owned()),
            ),
            None => (
                reason,
                Some(format!(
                    "if nobody killed it, the system ran out of memory (`dmesg` tells): {less}"
                )),
            ),
        }
    }

    fn with_last_line(&self, text: String) -> String {
        let last = self.log.len().saturating_sub(1);
        match (self.panic(), &self.log[last..]) {
            (Some(said), _) => format!("{text}, it said: {said}"),
            (None, []) => text,
            (None, lines) => format!("{text}, it said: {}", lines.join(" ").trim()),
        }
    }

    fn with_panic(&self, text: String) -> String {
        match self.panic() {
            Some(said) => format!("{text}, it said: {said}"),
            None => text,
        }
    }

    /// Place and message of the last panic: two lines.
    fn panic(&self) -> Option<String> {
        let is_panic = |line: &String| line.contains("panicked at");
        let at = self.log.iter().rposition(is_panic)?;
        let lines = &self.log[at..self.log.len().min(at + 2)];
        Some(lines.join(" ").trim().to_owned())
    }
}

/// `signal SIGSEGV`.
pub(crate) fn signal_name(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => format!("signal {signal}"),
        Err(_) => format!("signal {number}"),
    }
}

fn no_such_instruction(kernel: Option<&str>) -> String {
    let of = kernel.map_or_else(
        || "that the kernel uses".to_owned(),
        |kernel| format!("of kernel `{kernel}`"),
    );
    format!("this CPU lacks an instruction {of}; try `--kernel i2_s/scalar`")
}

/// A mapped page without a file behind it.
pub(crate) fn page_is_gone(
    reason: String,
    model: Option<(&Path, u64)>,
) -> (String, Option<String>) {
    let advice = "replace model files by renaming, not by writing into them";
    let now = model.and_then(|(path, before)| {
        let now = std::fs::metadata(path).ok()?.len();
        (now < before).then_some((path, before, now))
    });
    match now {
        Some((path, before, now)) => (
            format!(
                "{reason}: `{}` was cut from {before} to {now} bytes while it was in use",
                path.display()
            ),
            Some(format!(
                "the model file changed while it was mapped: put the whole one back; {advice}"
            )),
        ),
        None => (
            reason,
            Some(format!(
                "the model file changed while it was mapped, or its disk failed; {advice}"
            )),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(kind: ExitKind, log: &[&str]) -> Exit {
        Exit {
            kind,
            log: log.iter().map(|line| (*line).to_owned()).collect(),
            oom_kills: None,
        }
    }

    #[test]
    fn ends_are_explained() {
        let cases = [
            (
                ExitKind::Signal(4),
                "signal SIGILL",
                Some("of kernel `i2_s/avx2`; try `--kernel i2_s/scalar`"),
            ),
            (ExitKind::Signal(9), "signal SIGKILL", Some("memory")),
            (ExitKind::Signal(7), "signal SIGBUS", Some("changed")),
            (ExitKind::Signal(11), "signal SIGSEGV", Some("bug")),
            (ExitKind::Signal(64), "signal 64", None),
            (ExitKind::Code(0), "exit code 0 without being asked", None),
        ];
        let tools = Tools {
            kernel: Some("i2_s/avx2"),
            model: None,
        };
        for (kind, reason, hint) in cases {
            let found = exit(kind, &["INFO last words"]).explain(tools);
            assert_eq!(found.reason, reason);
            assert_eq!(found.hint.is_some(), hint.is_some(), "{kind:?}");
            assert!(found.hint.unwrap_or_default().contains(hint.unwrap_or("")));
        }
    }

    #[test]
    fn panics_are_told_whatever_ends_the_process() {
        let log = [
            "INFO loading",
            "thread 'x' panicked at a.rs:1:2:",
            "no such row",
            "note: run with",
        ];
        for (kind, name) in [
            (ExitKind::Code(101), "exit code 101"),
            (ExitKind::Signal(6), "signal SIGABRT"),
        ] {
            let found = exit(kind, &log).explain(Tools::default()).reason;
            let wanted = format!("{name}, it said: thread 'x' panicked at a.rs:1:2: no such row");
            assert_eq!(found, wanted);
        }
        let found = exit(ExitKind::Code(1), &["INFO loading", "ERROR no room"]);
        let found = found.explain(Tools::default()).reason;
        assert_eq!(found, "exit code 1, it said: ERROR no room");
        assert_eq!(
            exit(ExitKind::Code(1), &[])
                .explain(Tools::default())
                .reason,
            "exit code 1"
        );
    }

    #[test]
    fn kills_for_want_of_memory_are_told_from_others() {
        let explain = |oom_kills| {
            let exit = Exit {
                oom_kills,
                ..exit(ExitKind::Signal(9), &[])
            };
            exit.explain(Tools::default())
        };
        assert!(explain(Some(1)).reason.contains("out of memory"));
        assert!(explain(Some(1)).hint.unwrap().contains("--ctx-size"));
        let by_hand = explain(Some(0));
        assert!(
            by_hand.reason.contains("sent by somebody") && !by_hand.hint.unwrap().contains("--ctx")
        );
    }

    #[test]
    fn a_cut_model_file_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [0; 100]).unwrap();
        let found = |before| {
            let tools = Tools {
                kernel: None,
                model: Some((file.path(), before)),
            };
            exit(ExitKind::Signal(7), &[]).explain(tools).reason
        };
        let reason = found(4000);
        assert!(reason.contains("from 4000 to 100 bytes"), "{reason}");
        assert_eq!(found(100), "signal SIGBUS");
    }

    #[test]
    fn only_kills_come_from_outside() {
        assert!(exit(ExitKind::Signal(9), &[]).is_from_outside());
        assert!(!exit(ExitKind::Signal(11), &[]).is_from_outside());
        assert!(!exit(ExitKind::Code(101), &[]).is_from_outside());
    }
}

//! The engine's life as a table: `step(state, event, now) -> (state, actions)`. Pure: time and randomness are arguments.
//!
//! ```text
//! Starting ──ready──▶ Ready ──exit, hang, wrong answer──▶ Backoff ──time──▶ Starting
//!     │ bad model, never ready                         │ too many crashes
//!     └──────────────▶ Failed ◀────────────────────────┘
//! Ready ──sleep──▶ Dozing ──exit──▶ Asleep ──wake──▶ Starting
//! any ──drain──▶ Draining ──no jobs, or deadline──▶ Stopping ──exit──▶ Stopped
//! ```

use std::fmt;
use std::time::{Duration, Instant};

/// Pause before the first restart: clients wait for it.
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Pause before the second restart in a row; doubled for each further one.
pub(crate) const BACKOFF_SECOND: Duration = Duration::from_secs(1);
/// Longest pause before a restart.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// An engine that served this long starts again with the first pause.
pub(crate) const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// This many crashes inside [`CRASH_WINDOW`], or starts in a row that never got ready, and we give up.
pub(crate) const CRASH_LIMIT: usize = 5;
/// See [`CRASH_LIMIT`].
pub(crate) const CRASH_WINDOW: Duration = Duration::from_secs(60);
/// How long an engine may take to leave after its control socket was closed.
pub(crate) const END_GRACE: Duration = Duration::from_millis(300);

/// An engine that loads slower than this from a disk is not going to be of use.
const LOAD_BYTES_S: u64 = 20_000_000;
/// Added to the time an engine may load.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long an engine may take to get ready with a model file of this size.
pub(crate) fn start_timeout(file_bytes: u64) -> Duration {
    START_TIMEOUT + Duration::from_secs(file_bytes / LOAD_BYTES_S)
}

/// Why there is no engine, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// One line.
    pub(crate) reason: String,
    /// What the user can do, if there is something.
    pub(crate) hint: Option<String>,
}

impl Failure {
    /// Nothing can be advised.
    pub(crate) fn new(reason: impl Into<String>) -> Failure {
        Failure {
            reason: reason.into(),
            hint: None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Failure {}

/// What the engine is doing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    /// A process was started and loads the model.
    Starting {
        /// Killed when not ready by then.
        deadline: Instant,
        /// What it said before it leaves, when it said that it can't load.
        said: Option<Failure>,
    },
    /// Loaded and serving.
    Ready {
        /// Since when.
        since: Instant,
    },
    /// Killed by us; its end is awaited.
    Killing {
        /// Why we did.
        why: Failure,
    },
    /// Idle for long, and told to leave; its end is awaited.
    Dozing {
        /// Killed when still there by then.
        deadline: Instant,
        /// There is work for another one.
        wanted: bool,
        /// When to stop serving, if a drain was asked for meanwhile.
        drain: Option<Instant>,
    },
    /// No process until there is work.
    Asleep,
    /// No process; the next one starts at `until`.
    Backoff {
        /// When.
        until: Instant,
        /// What ended the last one.
        why: Failure,
    },
    /// Accepted jobs run to their end, or to the deadline.
    Draining {
        /// When.
        deadline: Instant,
    },
    /// The control socket is closed; the process's end is awaited.
    Stopping {
        /// Killed when still there by then.
        deadline: Instant,
    },
    /// Given up.
    Failed(Failure),
    /// Ended on request.
    Stopped,
}

/// Phase and what has to be remembered between engines.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    /// What the engine is doing.
    pub(crate) phase: Phase,
    /// Some engine was ready once.
    pub(crate) ever_ready: bool,
    /// Time a process gets to become ready.
    start_timeout: Duration,
    /// Restarts since the last healthy stretch: the exponent of the pause.
    attempt: u32,
    /// Crashes inside the window, oldest first.
    crashes: Vec<Instant>,
    /// Engines in a row that ended before they were ready.
    failed_starts: usize,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Event {
    /// The engine loaded its model.
    Ready,
    /// The engine says that it can't load its model.
    LoadFailed(Failure),
    /// The engine's process has ended (or could not be started).
    Exited {
        /// How.
        how: Failure,
        /// One job was found guilty and removed: not a reason to give up.
        explained: bool,
        /// In `[0, 1)`; spreads the pause over ±25 %.
        jitter: f64,
    },
    /// The engine produced its first token: it works, so what ends it later is no crash loop, and crashes before it are forgotten.
    Productive,
    /// The engine is busy and does not advance.
    Hung(Failure),
    /// The engine's test answer is not what it has to be.
    Unfit(Failure),
    /// There was no work for long: end the process until there is.
    Sleep,
    /// There is work.
    Wake,
    /// Time passed.
    Tick,
    /// No job is left.
    Idle,
    /// Finish what was accepted, until `deadline`.
    Drain {
        /// When.
        deadline: Instant,
    },
    /// End at once.
    Stop,
}

/// What to do, in order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Start an engine process.
    Spawn,
    /// SIGKILL it.
    Kill,
    /// Close the control socket: the engine leaves by itself.
    Hangup,
    /// Jobs that wait may be given to the engine.
    Dispatch,
    /// All jobs end with this error.
    FailJobs(String),
    /// All jobs end as cancelled: we are leaving.
    CancelJobs,
}

impl State {
    /// The first engine is to be started now.
    pub(crate) fn start(start_timeout: Duration, now: Instant) -> (State, Vec<Action>) {
        let state = State {
            phase: starting(now, start_timeout),
            ever_ready: false,
            start_timeout,
            attempt: 0,
            crashes: Vec::new(),
            failed_starts: 0,
        };
        (state, vec![Action::Spawn])
    }

    /// An engine is to be started by [`Event::Wake`], as if one had served before: it is tried more than once.
    pub(crate) fn asleep(start_timeout: Duration, now: Instant) -> State {
        let (state, _) = State::start(start_timeout, now);
        State {
            phase: Phase::Asleep,
            ever_ready: true,
            ..state
        }
    }

    /// When a [`Event::Tick`] is due at the latest.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Starting { deadline, .. }
            | Phase::Draining { deadline }
            | Phase::Dozing { deadline, .. }
            | Phase::Stopping { deadline } => Some(*deadline),
            Phase::Backoff { until, .. } => Some(*until),
            Phase::Ready { .. }
            | Phase::Killing { .. }
            | Phase::Asleep
            | Phase::Failed(_)
            | Phase::Stopped => None,
        }
    }

    fn with(self, phase: Phase) -> State {
        State { phase, ..self }
    }

    /// The engine served until now: after a healthy stretch the pauses begin anew.
    fn served(mut self, since: Instant, now: Instant) -> State {
        if now.duration_since(since) >= HEALTHY_AFTER {
            self.attempt = 0;
        }
        self
    }

    /// One more crash: a pause and another engine, or the end.
    fn crashed(
        mut self,
        how: Failure,
        explained: bool,
        jitter: f64,
        now: Instant,
    ) -> (State, Vec<Action>) {
        self.crashes
            .retain(|&at| now.duration_since(at) < CRASH_WINDOW);
        if !explained {
            self.crashes.push(now);
        }
        if matches!(self.phase, Phase::Starting { .. }) {
            self.failed_starts += 1;
        }
        if self.crashes.len() >= CRASH_LIMIT || self.failed_starts >= CRASH_LIMIT {
            let reason = format!(
                "the engine ended {CRASH_LIMIT} times in short order, the last time: {}",
                how.reason
            );
            let actions = vec![Action::FailJobs(reason.clone())];
            let failure = Failure {
                reason,
                hint: how.hint,
            };
            return (self.with(Phase::Failed(failure)), actions);
        }
        let until = now + backoff(self.attempt, jitter);
        self.attempt += 1;
        (self.with(Phase::Backoff { until, why: how }), vec![])
    }

    fn awake(self, now: Instant) -> (State, Vec<Action>) {
        let phase = starting(now, self.start_timeout);
        (self.with(phase), vec![Action::Spawn])
    }

    fn leave(self, now: Instant) -> (State, Vec<Action>) {
        let deadline = now + END_GRACE;
        let actions = vec![Action::CancelJobs, Action::Hangup];
        (self.with(Phase::Stopping { deadline }), actions)
    }
}

/// The next state and what to do. Events that mean nothing in a phase change nothing.
pub(crate) fn step(state: State, event: Event, now: Instant) -> (State, Vec<Action>) {
    use Event as E;
    match (state.phase.clone(), event) {
        (Phase::Stopped, _) => (state, vec![]),
        (_, E::Stop) => (
            state.with(Phase::Stopped),
            vec![Action::CancelJobs, Action::Kill],
        ),

        (Phase::Starting { .. }, E::Ready) => {
            let state = State {
                ever_ready: true,
                failed_starts: 0,
                ..state
            };
            (
                state.with(Phase::Ready { since: now }),
                vec![Action::Dispatch],
            )
        }
        (Phase::Starting { .. }, E::LoadFailed(failure)) if !state.ever_ready => {
            let actions = vec![Action::FailJobs(failure.reason.clone()), Action::Hangup];
            (state.with(Phase::Failed(failure)), actions)
        }
        (Phase::Starting { deadline, .. }, E::LoadFailed(failure)) => {
            let said = Some(failure);
            (state.with(Phase::Starting { deadline, said }), vec![])
        }
        (Phase::Starting { deadline, .. }, E::Tick) if now >= deadline => {
            let why = Failure {
                reason: format!(
                    "the engine was not ready after {} s",
                    state.start_timeout.as_secs()
                ),
                hint: Some(
                    "a slow disk or too little memory? look at `bitnet-launch doctor`".into(),
                ),
            };
            (state.with(Phase::Killing { why }), vec![Action::Kill])
        }
        (
            Phase::Starting { said, .. },
            E::Exited {
                how,
                explained,
                jitter,
            },
        ) => state.crashed(said.unwrap_or(how), explained, jitter, now),

        (Phase::Ready { .. }, E::Productive) => {
            let state = State {
                attempt: 0,
                crashes: Vec::new(),
                ..state
            };
            (state, vec![])
        }
        (Phase::Starting { .. }, E::Unfit(why)) => {
            (state.with(Phase::Killing { why }), vec![Action::Kill])
        }
        (Phase::Ready { since }, E::Hung(why) | E::Unfit(why)) => {
            let state = state.served(since, now);
            (state.with(Phase::Killing { why }), vec![Action::Kill])
        }
        (
            Phase::Ready { since },
            E::Exited {
                how,
                explained,
                jitter,
            },
        ) => state
            .served(since, now)
            .crashed(how, explained, jitter, now),
        (
            Phase::Killing { why },
            E::Exited {
                explained, jitter, ..
            },
        ) => state.crashed(why, explained, jitter, now),
        (Phase::Backoff { until, .. }, E::Tick) if now >= until => {
            let phase = starting(now, state.start_timeout);
            (state.with(phase), vec![Action::Spawn])
        }

        (Phase::Ready { since }, E::Sleep) => {
            let phase = Phase::Dozing {
                deadline: now + END_GRACE,
                wanted: false,
                drain: None,
            };
            (state.served(since, now).with(phase), vec![Action::Hangup])
        }
        (
            Phase::Dozing {
                deadline,
                wanted,
                drain,
            },
            E::Tick,
        ) if now >= deadline => {
            let phase = Phase::Dozing {
                deadline: now + END_GRACE,
                wanted,
                drain,
            };
            (state.with(phase), vec![Action::Kill])
        }
        (
            Phase::Dozing {
                deadline, drain, ..
            },
            E::Wake,
        ) => {
            let phase = Phase::Dozing {
                deadline,
                wanted: true,
                drain,
            };
            (state.with(phase), vec![])
        }
        (
            Phase::Dozing {
                deadline,
                wanted: true,
                ..
            },
            E::Drain { deadline: until },
        ) => {
            let phase = Phase::Dozing {
                deadline,
                wanted: true,
                drain: Some(until),
            };
            (state.with(phase), vec![])
        }
        (Phase::Dozing { deadline, .. }, E::Drain { .. }) => (
            state.with(Phase::Stopping { deadline }),
            vec![Action::CancelJobs],
        ),
        (Phase::Dozing { wanted, drain, .. }, E::Exited { .. }) => match (wanted, drain) {
            (false, _) => (state.with(Phase::Asleep), vec![]),
            (true, None) => state.awake(now),
            (true, Some(deadline)) => (
                state.with(Phase::Draining { deadline }),
                vec![Action::Spawn],
            ),
        },
        (Phase::Asleep, E::Wake) => state.awake(now),

        (Phase::Starting { .. } | Phase::Ready { .. }, E::Drain { deadline }) => {
            (state.with(Phase::Draining { deadline }), vec![])
        }
        (Phase::Killing { .. }, E::Drain { .. }) => state.leave(now),
        (Phase::Backoff { .. } | Phase::Asleep | Phase::Failed(_), E::Drain { .. }) => {
            (state.with(Phase::Stopped), vec![Action::CancelJobs])
        }
        (Phase::Draining { .. }, E::Ready) => (state, vec![Action::Dispatch]),
        (Phase::Draining { .. }, E::Idle | E::Hung(_) | E::Unfit(_) | E::LoadFailed(_)) => {
            state.leave(now)
        }
        (Phase::Draining { deadline }, E::Tick) if now >= deadline => state.leave(now),
        (Phase::Draining { .. }, E::Exited { .. }) => {
            (state.with(Phase::Stopped), vec![Action::CancelJobs])
        }
        (Phase::Stopping { .. }, E::Exited { .. }) => (state.with(Phase::Stopped), vec![]),
        (Phase::Stopping { deadline }, E::Tick) if now >= deadline => {
            let deadline = now + END_GRACE;
            (state.with(Phase::Stopping { deadline }), vec![Action::Kill])
        }
        _ => (state, vec![]),
    }
}

fn starting(now: Instant, start_timeout: Duration) -> Phase {
    Phase::Starting {
        deadline: now + start_timeout,
        said: None,
    }
}

/// `BACKOFF_FIRST`, then `BACKOFF_SECOND` doubled per attempt up to `BACKOFF_MAX`, spread over ±25 % by `jitter` in `[0, 1)`.
fn backoff(attempt: u32, jitter: f64) -> Duration {
    let pause = match attempt.checked_sub(1) {
        None => BACKOFF_FIRST,
        Some(more) => BACKOFF_SECOND.saturating_mul(1 << more.min(16)),
    };
    pause.min(BACKOFF_MAX).mul_f64(0.75 + 0.5 * jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reason: &str) -> Failure {
        Failure {
            reason: reason.into(),
            hint: None,
        }
    }

    fn exited(reason: &str) -> Event {
        Event::Exited {
            how: failure(reason),
            explained: false,
            jitter: 0.5,
        }
    }

    fn ready(now: Instant) -> State {
        let (state, _) = State::start(START_TIMEOUT, now);
        step(state, Event::Ready, now).0
    }

    #[test]
    fn the_table() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1000);
        let drain = || Event::Drain {
            deadline: now + Duration::from_secs(4),
        };
        let start = || State::start(START_TIMEOUT, now).0;
        let draining = || step(ready(now), drain(), now).0;
        let backoff = || step(ready(now), exited("SIGKILL"), now).0;
        let stopping = || step(draining(), Event::Idle, now).0;
        let failed = || step(start(), Event::LoadFailed(failure("bad")), now).0;
        use Action as A;
        type Case = (
            &'static str,
            State,
            Event,
            Instant,
            &'static str,
            Vec<Action>,
        );
        let cases: Vec<Case> = vec![
            (
                "ready",
                start(),
                Event::Ready,
                now,
                "Ready",
                vec![A::Dispatch],
            ),
            (
                "bad model",
                start(),
                Event::LoadFailed(failure("bad")),
                now,
                "Failed",
                vec![A::FailJobs("bad".into()), A::Hangup],
            ),
            ("early tick", start(), Event::Tick, now, "Starting", vec![]),
            (
                "slow start",
                start(),
                Event::Tick,
                later,
                "Killing",
                vec![A::Kill],
            ),
            (
                "crash at start",
                start(),
                exited("SIGILL"),
                now,
                "Backoff",
                vec![],
            ),
            (
                "crash",
                ready(now),
                exited("SIGSEGV"),
                now,
                "Backoff",
                vec![],
            ),
            (
                "hang",
                ready(now),
                Event::Hung(failure("stuck")),
                now,
                "Killing",
                vec![A::Kill],
            ),
            ("too early", backoff(), Event::Tick, now, "Backoff", vec![]),
            (
                "again",
                backoff(),
                Event::Tick,
                later,
                "Starting",
                vec![A::Spawn],
            ),
            ("drain", ready(now), drain(), now, "Draining", vec![]),
            (
                "drain while loading",
                start(),
                drain(),
                now,
                "Draining",
                vec![],
            ),
            (
                "drain in a pause",
                backoff(),
                drain(),
                now,
                "Stopped",
                vec![A::CancelJobs],
            ),
            (
                "drain after failure",
                failed(),
                drain(),
                now,
                "Stopped",
                vec![A::CancelJobs],
            ),
            (
                "drained",
                draining(),
                Event::Idle,
                now,
                "Stopping",
                vec![A::CancelJobs, A::Hangup],
            ),
            (
                "ready while draining",
                draining(),
                Event::Ready,
                now,
                "Draining",
                vec![A::Dispatch],
            ),
            (
                "drain deadline",
                draining(),
                Event::Tick,
                later,
                "Stopping",
                vec![A::CancelJobs, A::Hangup],
            ),
            (
                "crash while draining",
                draining(),
                exited("SIGSEGV"),
                now,
                "Stopped",
                vec![A::CancelJobs],
            ),
            ("left", stopping(), exited("0"), now, "Stopped", vec![]),
            (
                "would not leave",
                stopping(),
                Event::Tick,
                later,
                "Stopping",
                vec![A::Kill],
            ),
            (
                "stop",
                ready(now),
                Event::Stop,
                now,
                "Stopped",
                vec![A::CancelJobs, A::Kill],
            ),
            ("idle", ready(now), Event::Idle, now, "Ready", vec![]),
            ("works", ready(now), Event::Productive, now, "Ready", vec![]),
            (
                "after failure",
                failed(),
                exited("1"),
                now,
                "Failed",
                vec![],
            ),
        ];
        for (name, state, event, at, phase, actions) in cases {
            let (next, found) = step(state, event, at);
            assert_eq!(found, actions, "{name}");
            assert!(
                format!("{:?}", next.phase).starts_with(phase),
                "{name}: {next:?}"
            );
        }
    }

    #[test]
    fn sleep_and_waking_lose_nothing() {
        let now = Instant::now();
        let left = || exited("exit code 0");
        let (dozing, actions) = step(ready(now), Event::Sleep, now);
        assert_eq!(actions, [Action::Hangup]);
        let (late, actions) = step(dozing.clone(), Event::Tick, now + END_GRACE);
        assert_eq!(actions, [Action::Kill]);
        assert!(matches!(late.phase, Phase::Dozing { .. }));
        let (asleep, actions) = step(dozing.clone(), left(), now);
        assert_eq!((&asleep.phase, actions), (&Phase::Asleep, vec![]));
        assert_eq!(asleep.deadline(), None);
        let (awake, actions) = step(asleep.clone(), Event::Wake, now);
        assert_eq!(actions, [Action::Spawn]);
        assert!(matches!(awake.phase, Phase::Starting { .. }));
        // Work that comes while it leaves.
        let (wanted, actions) = step(dozing.clone(), Event::Wake, now);
        assert_eq!(actions, []);
        let (awake, actions) = step(wanted.clone(), left(), now);
        assert_eq!(actions, [Action::Spawn]);
        assert!(matches!(awake.phase, Phase::Starting { .. }));
        // Sleeping is no crash.
        let mut again = awake;
        for _ in 0..3 * CRASH_LIMIT {
            again = step(again, Event::Ready, now).0;
            again = step(again, Event::Sleep, now).0;
            again = step(again, left(), now).0;
            again = step(again, Event::Wake, now).0;
        }
        assert!(matches!(again.phase, Phase::Starting { .. }));
        // Whoever waits for the next engine is served before the end.
        let deadline = now + Duration::from_secs(4);
        let drain = || Event::Drain { deadline };
        let (draining, _) = step(wanted, drain(), now);
        let (draining, actions) = step(draining, left(), now);
        assert_eq!(actions, [Action::Spawn]);
        assert_eq!(draining.phase, Phase::Draining { deadline });
        assert_eq!(step(draining, Event::Ready, now).1, [Action::Dispatch]);
        // Nobody waits.
        let (stopped, _) = step(asleep, drain(), now);
        assert_eq!(stopped.phase, Phase::Stopped);
        let (stopping, _) = step(dozing, drain(), now);
        assert_eq!(step(stopping, left(), now).0.phase, Phase::Stopped);
    }

    #[test]
    fn a_wrong_test_answer_counts_as_a_crash() {
        let now = Instant::now();
        let mut state = State::start(START_TIMEOUT, now).0;
        for n in 1..=CRASH_LIMIT {
            let (killing, actions) = step(state, Event::Unfit(failure("it said 7")), now);
            assert_eq!(actions, [Action::Kill]);
            state = step(killing, exited("signal SIGKILL"), now).0;
            match &state.phase {
                Phase::Backoff { why, .. } => assert_eq!(why.reason, "it said 7"),
                Phase::Failed(why) => {
                    assert_eq!(n, CRASH_LIMIT);
                    assert!(why.reason.contains("it said 7"), "{why:?}");
                    break;
                }
                phase => panic!("{phase:?}"),
            }
            let at = state.deadline().expect("a pause");
            state = step(state, Event::Tick, at).0;
        }
        assert!(matches!(state.phase, Phase::Failed(_)));
    }

    #[test]
    fn large_files_may_load_for_longer() {
        assert_eq!(start_timeout(0), Duration::from_secs(120));
        assert_eq!(start_timeout(1_190_000_000), Duration::from_secs(179));
        assert_eq!(start_timeout(8_000_000_000), Duration::from_secs(520));
    }

    #[test]
    fn pauses_double_and_stay_below_the_limit() {
        let seconds: Vec<f64> = (0..9).map(|n| backoff(n, 0.5).as_secs_f64()).collect();
        assert_eq!(seconds, [0.05, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        assert_eq!(backoff(1, 0.0), Duration::from_millis(750));
        assert!(backoff(60, 0.999) < BACKOFF_MAX.mul_f64(1.25));
    }

    #[test]
    fn a_crash_loop_ends() {
        let mut now = Instant::now();
        let mut state = ready(now);
        for n in 1..=CRASH_LIMIT {
            now += Duration::from_secs(2);
            state = step(state, exited("signal SIGSEGV"), now).0;
            if n < CRASH_LIMIT {
                now = state.deadline().unwrap();
                state = step(state, Event::Tick, now).0;
                state = step(state, Event::Ready, now).0;
            }
        }
        let Phase::Failed(failure) = &state.phase else {
            panic!("{state:?}");
        };
        assert!(failure.reason.contains("SIGSEGV"), "{failure:?}");
    }

    #[test]
    fn a_healthy_stretch_resets_the_pause() {
        let mut now = Instant::now();
        let mut state = ready(now);
        for _ in 0..20 {
            now += HEALTHY_AFTER;
            state = step(state, exited("signal SIGSEGV"), now).0;
            assert_eq!(state.deadline(), Some(now + BACKOFF_FIRST));
            now += BACKOFF_FIRST;
            state = step(state, Event::Tick, now).0;
            state = step(state, Event::Ready, now).0;
        }
    }

    #[test]
    fn engines_that_produce_tokens_are_no_loop() {
        let now = Instant::now();
        let mut state = ready(now);
        for _ in 0..20 {
            // One that dies idle, then one that dies at work.
            for productive in [false, true] {
                if productive {
                    state = step(state, Event::Productive, now).0;
                }
                state = step(state, exited("signal SIGKILL"), now).0;
                let pause = state.deadline().expect("a pause");
                if productive {
                    assert_eq!(pause, now + BACKOFF_FIRST);
                }
                state = step(state, Event::Tick, pause).0;
                state = step(state, Event::Ready, now).0;
            }
        }
        for _ in 0..CRASH_LIMIT {
            let pause = state.deadline().unwrap_or(now);
            state = step(state, Event::Tick, pause).0;
            state = step(state, Event::Ready, now).0;
            state = step(state, exited("signal SIGKILL"), now).0;
        }
        assert!(matches!(state.phase, Phase::Failed(_)), "{state:?}");
    }

    #[test]
    fn explained_crashes_are_no_loop() {
        let now = Instant::now();
        let mut state = ready(now);
        for _ in 0..20 {
            let event = Event::Exited {
                how: failure("panic"),
                explained: true,
                jitter: 0.0,
            };
            state = step(state, event, now).0;
            assert!(matches!(state.phase, Phase::Backoff { .. }));
            let later = state.deadline().unwrap();
            state = step(state, Event::Tick, later).0;
            state = step(state, Event::Ready, now).0;
        }
    }

    #[test]
    fn a_model_gone_bad_later_is_tried_again_then_reported() {
        let now = Instant::now();
        let mut state = step(ready(now), exited("signal SIGBUS"), now).0;
        for _ in 1..CRASH_LIMIT {
            let at = state.deadline().unwrap().min(now + CRASH_WINDOW / 2);
            state.phase = starting(at, START_TIMEOUT);
            state = step(
                state,
                Event::LoadFailed(failure("cannot load `m.gguf`")),
                at,
            )
            .0;
            assert!(matches!(state.phase, Phase::Starting { .. }));
            state = step(state, exited("exit code 1"), at).0;
        }
        assert!(
            matches!(&state.phase, Phase::Failed(f) if f.reason.contains("m.gguf")),
            "{state:?}"
        );
    }
}

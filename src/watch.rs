//! While serving: limits and settings files that change, CPU time that is denied for long, heat; and what the engine costs in CPU
//! time and energy.
//!
//! One thread looks every [`LOOK`] seconds, at a dozen small files. It tells once when something changes, with the advice; what
//! may need another plan it tells the desk in [`crate::reload`]. [`Watch`] is pure: what it sees and when are its arguments.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bitnet_server::backend::Usage;

use crate::file_stamp::FileStamp;
use crate::host::{Limits, Meter, Root, Throttle};
use crate::reload::{Cause, Reloader};
use crate::settings::Sources;
use crate::supervise::broker::Broker;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(2);
/// Throttling counts as sustained when it lasted for all of this time.
const SUSTAINED: Duration = Duration::from_secs(30);
/// Share of the periods with throttling that is worth a word, 0 to 1.
const THROTTLED_SHARE: f64 = 0.2;
/// Fewer periods than this (of 0.1 s) in [`SUSTAINED`] tell nothing: the group was mostly idle.
const LEAST_PERIODS: u64 = 50;

/// What deserves a line in the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Finding {
    /// Limits are not what the plan was made for.
    LimitsChanged(String),
    /// The quota stops the engine again and again.
    Throttled(String),
    /// Clocks are being lowered.
    Hot(String),
}

/// What was seen so far.
pub(crate) struct Watch {
    limits: Limits,
    /// Counters of the last [`SUSTAINED`], oldest first.
    seen: VecDeque<(Instant, Throttle)>,
    told_throttled: bool,
    told_hot: bool,
}

impl Watch {
    /// The plan was made for these limits.
    pub(crate) fn new(limits: Limits) -> Watch {
        Watch {
            limits,
            seen: VecDeque::new(),
            told_throttled: false,
            told_hot: false,
        }
    }

    /// One look; what is new.
    pub(crate) fn look(
        &mut self,
        limits: Limits,
        throttle: Throttle,
        now: Instant,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        if limits != self.limits {
            findings.push(Finding::LimitsChanged(change(&self.limits, &limits)));
            self.limits = limits;
            // Other limits count anew.
            self.seen.clear();
            self.told_throttled = false;
        }
        self.seen.push_back((now, throttle));
        while self.seen.len() > 2 && now.duration_since(self.seen[1].0) >= SUSTAINED {
            self.seen.pop_front();
        }
        findings.extend(self.throttled(now));
        findings.extend(self.hot(now));
        findings
    }

    fn throttled(&mut self, now: Instant) -> Option<Finding> {
        let (first_at, first) = self.seen.front()?;
        let (_, last) = self.seen.back()?;
        if now.duration_since(*first_at) < SUSTAINED {
            return None;
        }
        let (before, after) = (first.quota.as_ref()?, last.quota.as_ref()?);
        let share = after.share_since(before, LEAST_PERIODS)?;
        if share < THROTTLED_SHARE / 2.0 {
            self.told_throttled = false;
        }
        if share < THROTTLED_SHARE || self.told_throttled {
            return None;
        }
        self.told_throttled = true;
        let quota = self.limits.quota.as_ref().map(ToString::to_string);
        Some(Finding::Throttled(format!(
            "the CPU quota of {} stopped this program in {:.0} % of the periods of the last {} s: give whole CPUs, lower `--threads`, or move other programs out of its control group",
            quota.unwrap_or_else(|| "unknown size".to_owned()),
            share * 100.0,
            SUSTAINED.as_secs()
        )))
    }

    fn hot(&mut self, now: Instant) -> Option<Finding> {
        let (first_at, first) = self.seen.front()?;
        let (_, last) = self.seen.back()?;
        if now.duration_since(*first_at) < SUSTAINED {
            return None;
        }
        let events = last.thermal_events?.checked_sub(first.thermal_events?)?;
        if events == 0 {
            self.told_hot = false;
        }
        if events == 0 || self.told_hot {
            return None;
        }
        self.told_hot = true;
        Some(Finding::Hot(format!(
            "heat lowered the clocks {events} times in the last {} s: better cooling, or fewer `--threads`",
            SUSTAINED.as_secs()
        )))
    }
}

/// What changed, in words.
fn change(before: &Limits, after: &Limits) -> String {
    let text = |limits: &Limits| {
        let none = || "none".to_owned();
        let quota = limits.quota.as_ref().map_or_else(none, |q| q.to_string());
        let cpuset = limits
            .cpuset
            .as_ref()
            .map_or_else(none, |set| set.to_string());
        let mb = |bytes: u64| format!("{} MB", bytes >> 20);
        let memory = limits
            .memory
            .as_ref()
            .map_or_else(none, |limit| mb(limit.bytes));
        let swap = limits
            .swap
            .as_ref()
            .map_or_else(none, |limit| mb(limit.bytes));
        [
            ("CPU quota", quota),
            ("CPUs", cpuset),
            ("memory limit", memory),
            ("swap limit", swap),
        ]
    };
    let pairs = text(before).into_iter().zip(text(after));
    let changed: Vec<String> = pairs
        .filter(|((_, old), (_, new))| old != new)
        .map(|((name, old), (_, new))| format!("{name} {old} is now {new}"))
        .collect();
    match changed.is_empty() {
        true => "a limit is now set elsewhere in the control groups".to_owned(),
        false => changed.join(", "),
    }
}

/// What the watching thread needs.
pub(crate) struct Watched {
    /// Told about changes.
    pub(crate) reloader: Reloader,
    pub(crate) sources: Sources,
    /// What the plan was made for.
    pub(crate) limits: Limits,
    /// Whose engines' CPU time and energy are measured; where energy is read, or why it can't be.
    pub(crate) metered: Option<(Broker, Result<String, String>)>,
}

/// Starts the thread; it lives as long as the program.
///
/// # Errors
/// Those of starting a thread.
pub(crate) fn start(watched: Watched) -> std::io::Result<()> {
    thread::Builder::new()
        .name("watch".into())
        .spawn(move || watched.live())
        .map(|_| ())
}

impl Watched {
    fn live(self) {
        let root = Root::live();
        let metered = self.metered.clone();
        let mut metering = metered.map(|(broker, energy)| Metering::new(&root, broker, energy));
        let mut watch = Watch::new(self.limits.clone());
        let mut file = FileWatch::new(self.sources.first_file.clone());
        loop {
            let limits = Limits::read(&root);
            let throttle = Throttle::read(&root, &limits);
            if let Some(metering) = &mut metering {
                metering.look(&throttle);
            }
            for finding in watch.look(limits, throttle, Instant::now()) {
                self.tell(finding);
            }
            if file.look(self.sources.file()) {
                self.reloader.wish(Cause::File);
            }
            thread::sleep(LOOK);
        }
    }

    fn tell(&self, finding: Finding) {
        match finding {
            Finding::Throttled(text) | Finding::Hot(text) => tracing::warn!("{text}"),
            Finding::LimitsChanged(text) => self.reloader.wish(Cause::Limits(text)),
        }
    }
}

/// What the engine costs, told to the broker.
struct Metering {
    broker: Broker,
    energy: Result<String, String>,
    meter: Option<Arc<Mutex<Meter>>>,
    idle: IdlePower,
    cpu: EngineCpu,
}

impl Metering {
    fn new(root: &Root, broker: Broker, energy: Result<String, String>) -> Metering {
        let meter = Meter::find(root).ok();
        // Power that is read every moment says little about a short request.
        let is_exact = meter.as_ref().is_some_and(|meter| !meter.is_sampled());
        let meter = meter.map(|meter| Arc::new(Mutex::new(meter)));
        if let Some(meter) = meter.clone().filter(|_| is_exact) {
            let read = move || sample(&meter);
            broker.set_meter(Arc::new(Mutex::new(read)));
        }
        Metering {
            broker,
            energy,
            meter,
            idle: IdlePower::default(),
            cpu: EngineCpu::default(),
        }
    }

    fn look(&mut self, throttle: &Throttle) {
        let energy_j = self.meter.as_deref().map(sample);
        if let Some(joules) = energy_j
            && let Some(watts) = self.idle.look(Instant::now(), joules, self.broker.load())
        {
            self.broker.set_idle_watts(watts);
        }
        self.broker.set_usage(Usage {
            engine_cpu_s: self.cpu.look(self.broker.engine_pid()),
            energy_j,
            energy_source: Some(self.energy.clone()),
            quota_throttled_s: throttle.quota.as_ref().map(|q| q.throttled.as_secs_f64()),
        });
    }
}

/// Notices a changed settings file once it has been the same for two looks: editors write in several steps.
struct FileWatch {
    followed: Option<FileStamp>,
    last: Option<FileStamp>,
}

impl FileWatch {
    fn new(now: Option<FileStamp>) -> FileWatch {
        FileWatch {
            last: now.clone(),
            followed: now,
        }
    }

    /// One look; true when there is something new to follow.
    fn look(&mut self, now: Option<FileStamp>) -> bool {
        let is_settled = now == self.last;
        self.last = now;
        if is_settled && self.last != self.followed {
            self.followed.clone_from(&self.last);
            return true;
        }
        false
    }
}

fn sample(meter: &Mutex<Meter>) -> f64 {
    let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
    meter.sample()
}

/// The least power between two looks without any job; what the engine prepares after its start is no idling.
#[derive(Default)]
struct IdlePower {
    last: Option<(Instant, f64, (usize, u64))>,
    least_w: Option<f64>,
}

impl IdlePower {
    /// `load`: jobs that have not ended, and all that were accepted.
    fn look(&mut self, now: Instant, joules: f64, load: (usize, u64)) -> Option<f64> {
        if let Some((at, joules_then, load_then)) = self.last.replace((now, joules, load))
            && load.0 == 0
            && load == load_then
        {
            let seconds = now.saturating_duration_since(at).as_secs_f64();
            let watts = (joules - joules_then) / seconds.max(1e-3);
            self.least_w = Some(self.least_w.map_or(watts, |least| least.min(watts)));
        }
        self.least_w
    }
}

/// CPU time of one engine after another.
#[derive(Default)]
struct EngineCpu {
    pid: Option<u32>,
    earlier_s: f64,
    last_s: f64,
}

impl EngineCpu {
    fn look(&mut self, pid: Option<u32>) -> Option<f64> {
        if pid != self.pid {
            self.earlier_s += self.last_s;
            self.last_s = 0.0;
            self.pid = pid;
        }
        if let Some(seconds) = pid.and_then(crate::bench::session::cpu_s_by_ticks) {
            self.last_s = seconds;
        }
        Some(self.earlier_s + self.last_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::cgroup::Quota;
    use crate::host::throttle::QuotaCounters;

    fn limits(quota_us: u64) -> Limits {
        Limits {
            version: Some(2),
            quota: Some(Quota {
                quota_us,
                period_us: 100_000,
                at: "/sys/fs/cgroup/cpu.max".into(),
            }),
            ..Limits::default()
        }
    }

    fn counters(periods: u64, throttled_periods: u64, thermal: u64) -> Throttle {
        Throttle {
            quota: Some(QuotaCounters {
                periods,
                throttled_periods,
                throttled: Duration::ZERO,
            }),
            thermal_events: Some(thermal),
        }
    }

    fn after(began: Instant, seconds: u64) -> Instant {
        began + Duration::from_secs(seconds)
    }

    #[test]
    fn changed_limits_are_told_once() {
        let began = Instant::now();
        let mut watch = Watch::new(limits(100_000));
        assert_eq!(watch.look(limits(100_000), Throttle::default(), began), []);
        let changed = watch.look(limits(250_000), Throttle::default(), after(began, 2));
        let text = "CPU quota 1 CPUs is now 2.5 CPUs".to_owned();
        assert_eq!(changed, [Finding::LimitsChanged(text)]);
        assert_eq!(
            watch.look(limits(250_000), Throttle::default(), after(began, 4)),
            []
        );
        let mut smaller = limits(250_000);
        smaller.cpuset = Some("0-3".parse().unwrap());
        smaller.quota = None;
        let changed = watch.look(smaller, Throttle::default(), after(began, 6));
        let text = "CPU quota 2.5 CPUs is now none, CPUs none is now 0-3".to_owned();
        assert_eq!(changed, [Finding::LimitsChanged(text)]);
    }

    #[test]
    fn only_sustained_throttling_is_told_and_once() {
        let began = Instant::now();
        let mut watch = Watch::new(limits(100_000));
        let mut told = Vec::new();
        for look in 0..40 {
            let seconds = look * 2;
            // Ten periods a second, half of them throttled.
            let throttle = counters(seconds * 10, seconds * 5, 0);
            let findings = watch.look(limits(100_000), throttle, after(began, seconds));
            told.extend(findings.into_iter().map(|finding| (seconds, finding)));
        }
        let [(at, Finding::Throttled(text))] = &told[..] else {
            panic!("{told:?}");
        };
        assert_eq!(*at, 30);
        assert!(
            text.contains("of 1 CPUs stopped this program in 50 %"),
            "{text}"
        );
    }

    #[test]
    fn a_moment_of_throttling_is_nothing() {
        let began = Instant::now();
        let mut watch = Watch::new(limits(100_000));
        for look in 0..60u64 {
            let seconds = look * 2;
            let throttle = counters(seconds * 10, (seconds * 10).min(40), 0);
            let findings = watch.look(limits(100_000), throttle, after(began, seconds));
            assert_eq!(findings, [], "at {seconds} s");
        }
    }

    #[test]
    fn heat_is_told_once_while_it_lasts() {
        let began = Instant::now();
        let mut watch = Watch::new(limits(100_000));
        let mut told = 0;
        for look in 0..60u64 {
            let seconds = look * 2;
            let throttle = counters(0, 0, seconds.min(60));
            told += watch
                .look(limits(100_000), throttle, after(began, seconds))
                .len();
        }
        assert_eq!(told, 1);
    }

    #[test]
    fn idle_power_is_the_least_while_nothing_runs() {
        let began = Instant::now();
        let mut idle = IdlePower::default();
        let looks = [
            (0, 0.0, (0, 0), None),
            (2, 60.0, (0, 0), Some(30.0)),
            // A job runs, has run in between, runs on.
            (4, 61.0, (1, 1), Some(30.0)),
            (6, 62.0, (0, 2), Some(30.0)),
            (8, 82.0, (0, 2), Some(10.0)),
            (10, 122.0, (0, 2), Some(10.0)),
            (12, 123.0, (0, 3), Some(10.0)),
        ];
        for (seconds, joules, load, watts) in looks {
            let seen = idle.look(after(began, seconds), joules, load);
            assert_eq!(seen, watts, "at {seconds} s");
        }
    }

    #[test]
    fn a_settings_file_is_followed_when_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bitnet.toml");
        let stamp = |text: &str| {
            std::fs::write(&path, text).unwrap();
            FileStamp::look(&path).ok()
        };
        let (first, half, whole) = (stamp("a"), stamp("a = "), stamp("a = 1"));
        let mut watch = FileWatch::new(None);
        let looks = [
            (None, false),
            (first.clone(), false),
            (first.clone(), true),
            (first, false),
            (half, false),
            (whole.clone(), false),
            (whole.clone(), true),
            (None, false),
            (whole, false),
            (None, false),
            (None, true),
        ];
        for (n, (seen, wanted)) in looks.into_iter().enumerate() {
            assert_eq!(watch.look(seen), wanted, "look {n}");
        }
    }

    #[test]
    fn cpu_time_goes_on_with_the_next_engine() {
        let me = std::process::id();
        let mut cpu = EngineCpu::default();
        let first = cpu.look(Some(me)).unwrap();
        assert_eq!(cpu.look(None), Some(first));
        assert!(cpu.look(Some(me)).unwrap() >= 2.0 * first);
    }
}

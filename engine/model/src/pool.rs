//! A fixed crew of threads that runs one closure at a time on all of them and waits for the slowest.
//!
//! The caller is worker 0. The others wait for work actively for [`SPIN`], because the next step of a forward pass comes
//! after a microsecond or two, and then park, so an idle engine uses no CPU. One thread per CPU of the list, bound to it when asked.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::os::{Lender, Loan, Task, spin_until};

/// How long a worker without work, or a caller that waits for its workers, spins before it parks. Longer than the gaps
/// inside a forward pass (1 to 10 us), shorter than what a wake-up costs twice.
pub const SPIN: Duration = Duration::from_micros(50);

/// Threads, and the one that owns this value.
pub struct Pool {
    lender: Lender,
    workers: Vec<Worker>,
    panic: Arc<Mutex<Option<Box<dyn Any + Send>>>>,
}

struct Worker {
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

/// Holds one job at most. Aligned so that workers don't share cache lines.
#[repr(align(128))]
struct Mailbox {
    state: AtomicU32,
    job: Mutex<Option<Loan>>,
}

const IDLE: u32 = 0;
const ASLEEP: u32 = 1;
const JOB: u32 = 2;
const STOP: u32 = 3;

/// Why a pool can't be made.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// No thread to run on.
    #[error("the list of CPUs is empty")]
    NoCpus,
    /// The CPU does not exist or is outside this process's affinity mask.
    #[error("cpu {cpu} can't be used by this process, it may run on {allowed:?}")]
    NotAllowed {
        /// The CPU wished for.
        cpu: usize,
        /// Those that may be used.
        allowed: Vec<usize>,
    },
    /// The system has no thread left.
    #[error("can't start thread {number} of {wanted}: {source}")]
    Spawn {
        /// Its number, from 1.
        number: usize,
        /// Threads wanted.
        wanted: usize,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Pool {
    /// One worker per entry of `cpus`; the calling thread is the first and must be the one that calls [`Pool::run`].
    /// `pin` binds each, the caller included, to its CPU.
    ///
    /// # Errors
    /// An empty list; a CPU this process may not use; no more threads.
    pub fn new(cpus: &[usize], pin: bool) -> Result<Self, PoolError> {
        let (&first, others) = cpus.split_first().ok_or(PoolError::NoCpus)?;
        if pin {
            check_allowed(cpus)?;
        }
        let mut pool = Pool {
            lender: Lender::new(SPIN),
            workers: Vec::with_capacity(others.len()),
            panic: Arc::default(),
        };
        for (number, &cpu) in (1..).zip(others) {
            let worker = pool.start_worker(number, pin.then_some(cpu));
            pool.workers.push(worker.map_err(|source| PoolError::Spawn {
                number,
                wanted: cpus.len(),
                source,
            })?);
        }
        if pin {
            bind_to(first);
        }
        Ok(pool)
    }

    fn start_worker(&self, number: usize, cpu: Option<usize>) -> std::io::Result<Worker> {
        let mailbox = Arc::new(Mailbox {
            state: AtomicU32::new(IDLE),
            job: Mutex::new(None),
        });
        let (inbox, panic) = (Arc::clone(&mailbox), Arc::clone(&self.panic));
        let thread = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || {
                if let Some(cpu) = cpu {
                    bind_to(cpu);
                }
                while let Some(job) = inbox.wait() {
                    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| job.call(number))) {
                        lock(&panic).get_or_insert(payload);
                    }
                }
            })?;
        Ok(Worker {
            mailbox,
            thread: Some(thread),
        })
    }

    /// Number of workers, the caller included.
    pub fn size(&self) -> usize {
        1 + self.workers.len()
    }

    /// Runs `task(worker)` for the workers `0..n_workers` at the same time and returns when all are done.
    ///
    /// # Panics
    /// When there are fewer workers; and with the first panic of a worker, after all have ended.
    pub fn run(&mut self, n_workers: usize, task: &Task<'_>) {
        assert!(
            (1..=self.size()).contains(&n_workers),
            "{n_workers} workers of {}",
            self.size()
        );
        if n_workers == 1 {
            return task(0);
        }
        let workers = &self.workers;
        self.lender.lend(
            task,
            n_workers - 1,
            |number, loan| workers[number].give(loan),
            || task(0),
        );
        if let Some(payload) = lock(&self.panic).take() {
            resume_unwind(payload);
        }
    }

    /// Runs `work(worker, item)` once for every item; workers take items one by one as they get free.
    ///
    /// # Panics
    /// As [`Pool::run`].
    pub fn for_each<T: Send>(
        &mut self,
        n_workers: usize,
        items: impl Iterator<Item = T> + Send,
        work: impl Fn(usize, T) + Sync,
    ) {
        let items = Mutex::new(items);
        self.run(n_workers, &|worker| {
            loop {
                // A statement of its own: the lock must not be held while working.
                let item = lock(&items).next();
                let Some(item) = item else { return };
                work(worker, item);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.post(STOP);
        }
        for worker in &mut self.workers {
            // A worker catches its panics, so joining can't fail; there would be nothing to do about it anyway.
            worker.thread.take().map(JoinHandle::join);
        }
    }
}

impl Worker {
    fn give(&self, job: Loan) {
        *lock(&self.mailbox.job) = Some(job);
        self.post(JOB);
    }

    fn post(&self, state: u32) {
        if self.mailbox.state.swap(state, Ordering::AcqRel) == ASLEEP
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
    }
}

impl Mailbox {
    /// The next job; `None` when the pool ends.
    fn wait(&self) -> Option<Loan> {
        let is_posted = || self.state.load(Ordering::Acquire) >= JOB;
        if !spin_until(SPIN, is_posted) {
            let _ = self
                .state
                .compare_exchange(IDLE, ASLEEP, Ordering::AcqRel, Ordering::Acquire);
            while !is_posted() {
                thread::park();
            }
        }
        // Nobody posts before the job's loan is given back, so this can't overwrite a newer state.
        let job = lock(&self.job).take();
        if job.is_some() {
            self.state.store(IDLE, Ordering::Release);
        }
        job
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check_allowed(cpus: &[usize]) -> Result<(), PoolError> {
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    let allowed: Vec<usize> = ids.iter().map(|core| core.id).collect();
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(&cpu) => Err(PoolError::NotAllowed { cpu, allowed }),
        None => Ok(()),
    }
}

fn bind_to(cpu: usize) {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        tracing::warn!(cpu, "can't bind a thread to its cpu");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn pool(size: usize) -> Pool {
        Pool::new(&vec![0; size], false).unwrap()
    }

    #[test]
    fn every_worker_runs_once_per_call() {
        let mut pool = pool(4);
        for n_workers in [1, 2, 4, 3, 4] {
            let counts: Vec<AtomicUsize> = (0..4).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..500 {
                pool.run(n_workers, &|worker| {
                    counts[worker].fetch_add(1, Ordering::Relaxed);
                });
            }
            for (worker, count) in counts.iter().enumerate() {
                let expected = if worker < n_workers { 500 } else { 0 };
                assert_eq!(
                    count.load(Ordering::Relaxed),
                    expected,
                    "worker {worker} of {n_workers}"
                );
            }
        }
    }

    #[test]
    fn workers_wake_up_after_parking() {
        let mut pool = pool(3);
        for _ in 0..5 {
            thread::sleep(SPIN * 20);
            let count = AtomicUsize::new(0);
            pool.run(3, &|_| {
                thread::sleep(SPIN * 4);
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn items_are_worked_on_once() {
        let mut pool = pool(3);
        let mut values = vec![0u32; 1000];
        pool.for_each(3, values.iter_mut().enumerate(), |_, (n, value)| {
            *value += n as u32
        });
        assert!(
            values
                .iter()
                .enumerate()
                .all(|(n, &value)| value == n as u32)
        );
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = pool(3);
        for panicking in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(3, &|worker| {
                    assert!(worker != panicking, "worker {worker} gives up")
                });
            }));
            let payload = result.unwrap_err();
            let message = payload.downcast_ref::<String>().unwrap();
            assert_eq!(*message, format!("worker {panicking} gives up"));
        }
        let count = AtomicUsize::new(0);
        pool.run(3, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 3);
    }

    #[test]
    fn cpus_that_may_not_be_used_are_named() {
        let error = Pool::new(&[100_000], true).err().unwrap().to_string();
        assert!(
            error.starts_with("cpu 100000 can't be used by this process, it may run on ["),
            "{error}"
        );
        assert!(matches!(Pool::new(&[], false), Err(PoolError::NoCpus)));
    }
}

//! How fast this machine reads memory with a number of threads: what decoding can reach at most.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use bitnet_kernels::probe::read_all;

use crate::host::CpuSet;

/// More than any cache holds.
const BUFFER_BYTES: usize = 512 << 20;
/// Share of the available memory that measuring may take.
const MEMORY_DIVISOR: u64 = 4;
/// Less tells of caches, not of memory.
const LEAST_BYTES: usize = 64 << 20;

/// A buffer to read.
pub(crate) struct Bandwidth {
    bytes: Vec<u8>,
}

impl Bandwidth {
    /// `None` when there is not enough memory to measure it.
    pub(crate) fn new(available_bytes: Option<u64>) -> Option<Bandwidth> {
        let room = available_bytes.unwrap_or(u64::MAX) / MEMORY_DIVISOR;
        let bytes = BUFFER_BYTES.min(usize::try_from(room).unwrap_or(usize::MAX));
        (bytes >= LEAST_BYTES).then(|| Bandwidth {
            bytes: vec![1; bytes],
        })
    }

    /// GB/s, each thread reading its own part; pinned to `cpus` when `pin`.
    pub(crate) fn measure(&self, cpus: &[usize], pin: bool) -> f64 {
        let share = self.bytes.len().div_ceil(cpus.len().max(1));
        let parts: Vec<&[u8]> = self.bytes.chunks(share).collect();
        let barrier = Barrier::new(parts.len().min(cpus.len()) + 1);
        let seconds = std::thread::scope(|scope| {
            let threads: Vec<_> = parts
                .iter()
                .zip(cpus)
                .map(|(part, cpu)| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        if pin {
                            // Where the system refuses, the thread runs where it is.
                            let _ = CpuSet::from_iter([*cpu]).bind_this_thread();
                        }
                        barrier.wait();
                        black_box(read_all(part));
                    })
                })
                .collect();
            barrier.wait();
            let began = Instant::now();
            for thread in threads {
                let _ = thread.join();
            }
            began.elapsed().as_secs_f64()
        });
        self.bytes.len() as f64 / seconds / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_measured_where_there_is_memory() {
        assert!(Bandwidth::new(Some(LEAST_BYTES as u64)).is_none());
        let bandwidth = Bandwidth {
            bytes: vec![1; 1 << 20],
        };
        assert!(bandwidth.measure(&[0], false) > 0.0);
        assert!(bandwidth.measure(&[0, 0, 0], false) > 0.0);
    }
}

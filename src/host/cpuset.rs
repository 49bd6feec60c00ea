//! A set of logical CPUs in the kernel's list notation: `0-3,6`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use nix::sched::{CpuSet as Mask, sched_setaffinity};
use nix::unistd::Pid;

/// Highest CPU number a list may name: guards against `0-4000000000`.
const MAX_CPU: usize = 65_535;

/// Logical CPUs by number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CpuSet(BTreeSet<usize>);

impl CpuSet {
    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// None at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this one is in it.
    pub(crate) fn contains(&self, cpu: usize) -> bool {
        self.0.contains(&cpu)
    }

    /// In ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }

    /// Those in both.
    pub(crate) fn intersection(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 & &other.0)
    }

    /// Those of this set that are not in the other.
    pub(crate) fn difference(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 - &other.0)
    }

    /// Runs the calling thread on these CPUs only; threads and children that it starts from now on inherit it.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn bind_this_thread(&self) -> nix::Result<()> {
        let mut mask = Mask::new();
        for cpu in self.iter() {
            mask.set(cpu)?;
        }
        sched_setaffinity(Pid::from_raw(0), &mask)
    }
}

impl FromIterator<usize> for CpuSet {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> Self {
        CpuSet(cpus.into_iter().collect())
    }
}

/// The text is not a list of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a list of CPUs such as `0-3,6`")]
pub(crate) struct NotACpuList;

impl FromStr for CpuSet {
    type Err = NotACpuList;

    /// `0-3,6`, or with a stride `0-7:2` (every second one); at least one CPU.
    fn from_str(text: &str) -> Result<Self, NotACpuList> {
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (range, stride) = part.split_once(':').unwrap_or((part, "1"));
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last, stride) = (number(first)?, number(last)?, number(stride)?);
            if first > last || stride == 0 {
                return Err(NotACpuList);
            }
            cpus.extend((first..=last).step_by(stride));
        }
        Ok(CpuSet(cpus))
    }
}

fn number(text: &str) -> Result<usize, NotACpuList> {
    let number = text.trim().parse().map_err(|_| NotACpuList)?;
    match number {
        0..=MAX_CPU => Ok(number),
        _ => Err(NotACpuList),
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_kernels_notation() {
        for (text, written, n) in [
            ("0", "0", 1),
            ("0-3,6", "0-3,6", 5),
            (" 2 , 0-1", "0-2", 3),
            ("0-7:2", "0,2,4,6", 4),
            ("5,4,4", "4-5", 2),
        ] {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!(
                (set.to_string().as_str(), set.len()),
                (written, n),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_list() {
        for text in ["", "a", "3-1", "1-", "-1", "0-4000000000", "0-3:0", "1,,2"] {
            assert_eq!(text.parse::<CpuSet>(), Err(NotACpuList), "{text}");
        }
    }
}

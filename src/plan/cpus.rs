//! Which CPUs the threads run on, and whether they are pinned there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Choice, PlanError, Reason, Warning};
use crate::host::topology::{CoreKind, LogicalCpu, Node};
use crate::host::{CpuSet, Host};
use crate::settings::{Affinity, Numa, Setting, Settings, Source};

/// The allowed CPUs, ranked, and the bound on how many may be kept busy.
pub(super) struct Cpus {
    /// One per physical core, fast cores first; empty if nothing is known.
    performance: Vec<usize>,
    efficiency: Vec<usize>,
    /// Second and further logical CPUs of the cores above.
    siblings: Vec<usize>,
    /// CPUs of other NUMA nodes, when one node is enough.
    elsewhere: Vec<usize>,
    /// That node, and how many there are.
    node: Option<(usize, usize)>,
    quota: Option<(usize, String)>,
    asked: Option<Source>,
}

impl Cpus {
    /// `needed_bytes` is what the model wants to have in one node's memory; `pin` whether threads stay where they are put.
    pub(super) fn new(
        host: &Host,
        settings: &Settings,
        needed_bytes: u64,
        pin: bool,
    ) -> Result<Cpus, PlanError> {
        let allowed = host.allowed_cpus();
        let mut asked = None;
        let set = match (&settings.cpu_affinity.value, allowed) {
            (Affinity::Cpus(wanted), Some(allowed)) => {
                let outside = wanted.difference(&allowed);
                let source_ = settings.cpu_affinity.source.clone();
                if !outside.is_empty() {
                    return Err(PlanError::Cpus {
                        outside,
                        source_,
                        allowed,
                    });
                }
                asked = Some(source_);
                wanted.clone()
            }
            (Affinity::Cpus(wanted), None) => wanted.clone(),
            (_, allowed) => allowed.unwrap_or_default(),
        };
        let quota = host.limits.quota.as_ref();
        let mut cpus = Cpus {
            performance: Vec::new(),
            efficiency: Vec::new(),
            siblings: Vec::new(),
            elsewhere: Vec::new(),
            node: None,
            quota: quota.map(|quota| (quota.threads(), quota.to_string())),
            asked,
        };
        let node = match settings.numa.value {
            None => choose_node(host, &set, needed_bytes).filter(|_| pin),
            Some(Numa::Isolate) => choose_node(host, &set, 0),
            Some(Numa::Distribute | Numa::Numactl) => None,
        };
        match node.filter(|_| cpus.asked.is_none()) {
            Some((node, of)) => {
                let near = set.intersection(&node.cpus);
                cpus.rank(host, &set.difference(&near));
                cpus.elsewhere = cpus.all();
                cpus.node = Some((node.id, of));
                for list in [
                    &mut cpus.performance,
                    &mut cpus.efficiency,
                    &mut cpus.siblings,
                ] {
                    list.clear();
                }
                cpus.rank(host, &near);
            }
            None => cpus.rank(host, &set),
        }
        if settings.numa.value == Some(Numa::Distribute) {
            cpus.spread(host);
        }
        Ok(cpus)
    }

    /// One CPU of each node in turn, so that any number of threads lies evenly over the nodes.
    fn spread(&mut self, host: &Host) {
        let nodes = &host.topology.nodes;
        let node_of = |cpu: usize| nodes.iter().position(|node| node.cpus.contains(cpu));
        for list in [
            &mut self.performance,
            &mut self.efficiency,
            &mut self.siblings,
        ] {
            let mut seen = BTreeMap::new();
            let turns = list.iter().map(|cpu| {
                let turn = seen.entry(node_of(*cpu)).or_insert(0);
                *turn += 1;
                (*turn, *cpu)
            });
            let turns: HashMap<usize, i32> = turns.map(|(turn, cpu)| (cpu, turn)).collect();
            list.sort_by_key(|cpu| turns[cpu]);
        }
    }

    fn rank(&mut self, host: &Host, set: &CpuSet) {
        let known = host.topology.cpus.iter().filter(|cpu| set.contains(cpu.id));
        let mut ranked: Vec<&LogicalCpu> = known.collect();
        ranked.sort_by_key(|cpu| (std::cmp::Reverse(cpu.capacity), cpu.id));
        let mut cores = BTreeSet::new();
        for cpu in &ranked {
            match (cores.insert(cpu.core()), cpu.kind) {
                (false, _) => self.siblings.push(cpu.id),
                (true, CoreKind::Performance) => self.performance.push(cpu.id),
                (true, CoreKind::Efficiency) => self.efficiency.push(cpu.id),
            }
        }
        if ranked.is_empty() {
            self.performance.extend(set.iter());
        }
    }

    fn all(&self) -> Vec<usize> {
        [
            &self.performance[..],
            &self.efficiency,
            &self.siblings,
            &self.elsewhere,
        ]
        .concat()
    }

    /// One thread per fast physical core, within the quota.
    pub(super) fn decode(
        &self,
        asked: &Setting<Option<usize>>,
        warnings: &mut Vec<Warning>,
    ) -> Choice<Vec<usize>> {
        if let Some(threads) = asked.value {
            return self.asked_for(threads, &asked.source, warnings);
        }
        match (self.performance.is_empty(), self.efficiency.is_empty()) {
            (false, false) => self.within_quota(
                self.performance.clone(),
                Reason::PerformanceCores {
                    of_cores: self.performance.len() + self.efficiency.len(),
                },
            ),
            _ => self.within_quota(self.cores(), self.one_per_core()),
        }
    }

    /// One thread per physical core of either kind, within the quota; at least the decode threads.
    pub(super) fn prefill(
        &self,
        asked: &Setting<Option<usize>>,
        decode: &Choice<Vec<usize>>,
        warnings: &mut Vec<Warning>,
    ) -> Choice<Vec<usize>> {
        let least = decode.value.len();
        let mut choice = match asked.value {
            Some(threads) if threads < least => {
                warnings.push(Warning::new(
                    format!(
                        "{threads} threads for prompts ({}) are fewer than the {least} for tokens",
                        asked.source
                    ),
                    format!("{least} are used; lower `--threads` as well"),
                ));
                return decode.clone();
            }
            Some(threads) => self.asked_for(threads, &asked.source, warnings),
            None if matches!(
                decode.because,
                Reason::AskedFor(_) | Reason::AllAllowed { .. }
            ) =>
            {
                return decode.clone();
            }
            None => self.within_quota(self.cores(), self.one_per_core()),
        };
        if choice.value.len() < least {
            return decode.clone();
        }
        let others = choice
            .value
            .iter()
            .filter(|cpu| !decode.value.contains(cpu));
        let room = choice.value.len() - least;
        choice.value = decode
            .value
            .iter()
            .chain(others.take(room))
            .copied()
            .collect();
        choice
    }

    fn cores(&self) -> Vec<usize> {
        [&self.performance[..], &self.efficiency].concat()
    }

    fn one_per_core(&self) -> Reason {
        match (&self.asked, self.cores().is_empty()) {
            (_, true) => Reason::NothingKnown,
            _ if self.node.is_some() => {
                let (node, of) = self.node.unwrap_or_default();
                Reason::OneNode { node, of }
            }
            (asked, false) => Reason::OnePerCore {
                logical: self.all().len(),
                within: asked.clone(),
            },
        }
    }

    fn within_quota(&self, mut cpus: Vec<usize>, because: Reason) -> Choice<Vec<usize>> {
        if cpus.is_empty() {
            return Choice::new(vec![0], Reason::NothingKnown);
        }
        match &self.quota {
            Some((threads, quota)) if *threads < cpus.len() => {
                let cores = cpus.len();
                cpus.truncate(*threads);
                let quota = quota.clone();
                Choice::new(cpus, Reason::QuotaLimits { quota, cores })
            }
            _ => Choice::new(cpus, because),
        }
    }

    /// What was asked for, as far as there are CPUs: two busy threads on one CPU only slow each other down.
    fn asked_for(
        &self,
        threads: usize,
        source: &Source,
        warnings: &mut Vec<Warning>,
    ) -> Choice<Vec<usize>> {
        let mut cpus = self.all();
        if cpus.is_empty() {
            return Choice::new((0..threads).collect(), Reason::asked(source));
        }
        if threads > cpus.len() {
            let count = cpus.len();
            warnings.push(Warning::new(
                format!("{threads} threads ({source}) are more than the {count} CPUs allowed"),
                format!("{count} are used; ask for at most that many, or `auto`"),
            ));
            let asked = threads;
            let source = source.clone();
            return Choice::new(cpus, Reason::AllAllowed { asked, source });
        }
        if let Some((limit, quota)) = &self.quota
            && threads > *limit
        {
            warnings.push(Warning::new(
                format!("{threads} threads ({source}) under a quota of {quota} will be throttled"),
                format!("`auto` takes {limit}"),
            ));
        }
        cpus.truncate(threads);
        Choice::new(cpus, Reason::asked(source))
    }
}

/// The NUMA node with the most fast cores of `set` among those with room for `needed_bytes`, and how many nodes have CPUs of
/// `set`. `None` unless there are several.
fn choose_node<'a>(host: &'a Host, set: &CpuSet, needed_bytes: u64) -> Option<(&'a Node, usize)> {
    let nodes = host.topology.nodes.iter();
    let ours: Vec<&Node> = nodes
        .filter(|node| !node.cpus.intersection(set).is_empty())
        .collect();
    let fast_cores = |node: &Node| {
        let cpus = host.topology.cpus.iter().filter(|cpu| {
            cpu.kind == CoreKind::Performance && set.contains(cpu.id) && node.cpus.contains(cpu.id)
        });
        cpus.map(LogicalCpu::core).collect::<BTreeSet<_>>().len()
    };
    let best = ours
        .iter()
        .filter(|node| {
            node.available_bytes
                .is_some_and(|bytes| bytes >= needed_bytes)
        })
        .max_by_key(|node| (fast_cores(node), std::cmp::Reverse(node.id)))?;
    (ours.len() > 1).then_some((*best, ours.len()))
}

/// Pinning keeps threads off each other's cores, but two programs pinned to the same CPU halve each other: only CPUs
/// that are likely ours alone are pinned to, and never under a quota, where the scheduler needs room to move.
pub(super) fn choose_pin(host: &Host, settings: &Settings) -> Choice<bool> {
    let asked = Reason::asked(&settings.cpu_affinity.source);
    match &settings.cpu_affinity.value {
        Affinity::Cpus(_) => return Choice::new(true, asked),
        Affinity::None => return Choice::new(false, asked),
        Affinity::Auto => {}
    }
    let places = matches!(settings.numa.value, Some(Numa::Isolate | Numa::Distribute));
    if places && host.topology.nodes.len() > 1 {
        return Choice::new(true, Reason::asked(&settings.numa.source));
    }
    if let Some(quota) = &host.limits.quota {
        let quota = quota.to_string();
        return Choice::new(false, Reason::QuotaMoves { quota });
    }
    match (host.allowed_cpus(), host.topology.online()) {
        (Some(allowed), Some(online)) if allowed.len() < online.len() => {
            let allowed = allowed.to_string();
            Choice::new(true, Reason::GivenSet { allowed })
        }
        (Some(_), Some(_)) => match &host.container {
            Some(mark) => Choice::new(false, Reason::SharedWithContainers { mark: mark.clone() }),
            None => Choice::new(true, Reason::WholeMachine),
        },
        _ => Choice::new(false, Reason::NothingKnown),
    }
}

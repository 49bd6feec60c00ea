//! What was measured, as tables, JSON and CSV.

use std::fmt::Write;

use serde_json::{Value, json};

use super::stats::Series;

/// A machine busier than this share of its CPUs by others makes figures doubtful.
const BUSY_LOAD: f64 = 0.5;

/// One kind of measurement of one cell.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// `prefill 128`, `decode at 0`, `decode of 4`.
    pub(super) name: String,
    pub(super) tok_s: Series,
    /// CPU seconds per token.
    pub(super) cpu_s: Series,
    /// Joules per token, idle power taken off.
    pub(super) joules: Series,
}

/// A kernel with a number of threads.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell {
    pub(super) name: String,
    pub(super) kernel: String,
    pub(super) threads: usize,
    pub(super) cpus: Vec<usize>,
    pub(super) pinned: bool,
    pub(super) prefill_batch: usize,
    pub(super) measured: Vec<Measured>,
    pub(super) load_ms: Series,
    pub(super) first_token_ms: Series,
    pub(super) peak_mb: Series,
    /// Of all tokens of a round, one per round.
    pub(super) hashes: Vec<u64>,
}

impl Cell {
    pub(super) fn add(&mut self, name: &str, tok_s: Option<f64>, cost: (Option<f64>, Option<f64>)) {
        let index = match self.measured.iter().position(|m| m.name == name) {
            Some(index) => index,
            None => {
                let name = name.to_owned();
                self.measured.push(Measured {
                    name,
                    ..Measured::default()
                });
                self.measured.len() - 1
            }
        };
        let measured = &mut self.measured[index];
        measured.tok_s.push(tok_s);
        measured.cpu_s.push(cost.0);
        measured.joules.push(cost.1);
    }

    fn hash(&self) -> String {
        let mut all = self.hashes.clone();
        all.dedup();
        let texts: Vec<String> = all.iter().map(|hash| format!("{hash:016x}")).collect();
        texts.join(" != ")
    }
}

/// Everything.
pub(super) struct Report {
    pub(super) version: &'static str,
    pub(super) model: String,
    pub(super) parameters: String,
    pub(super) machine: String,
    pub(super) rounds: usize,
    pub(super) n_tokens: usize,
    /// Source, or why there is none.
    pub(super) energy: Result<String, String>,
    /// GB/s by number of threads.
    pub(super) bandwidth: Vec<(usize, Series)>,
    pub(super) cells: Vec<Cell>,
    /// Before it began.
    pub(super) load_average: Option<f64>,
}

impl Report {
    /// Every cell made the same tokens in every round.
    pub(super) fn all_agree(&self) -> bool {
        let mut hashes = self.cells.iter().flat_map(|cell| &cell.hashes);
        match hashes.next() {
            Some(first) => hashes.all(|hash| hash == first),
            None => true,
        }
    }

    /// On standard error: what makes the figures worthless or doubtful.
    pub(super) fn check_notes(&self) {
        if !self.all_agree() {
            eprintln!("error: not all cells made the same tokens; the hashes below differ");
            eprintln!("hint: please report this with the output of `bitnet-launch doctor --json`");
        }
    }

    /// Tables for people.
    pub(super) fn tables(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "bitnet-launch {} on {}", self.version, self.machine);
        let _ = writeln!(
            out,
            "{}, {} parameters; medians of {} rounds (smallest-largest), answers of {} tokens",
            self.model, self.parameters, self.rounds, self.n_tokens
        );
        for (threads, series) in &self.bandwidth {
            let s = if *threads == 1 { "" } else { "s" };
            let _ = writeln!(out, "read bandwidth, {threads} thread{s}: {series} GB/s");
        }
        match &self.energy {
            Ok(source) => writeln!(out, "energy: {source}"),
            Err(reason) => writeln!(out, "energy: unavailable: {reason}"),
        }
        .ok();
        if let Some(load) = self.load_average.filter(|load| *load > BUSY_LOAD) {
            let _ = writeln!(
                out,
                "others were at work: load average {load} before it began"
            );
        }
        for cell in &self.cells {
            self.cell_table(cell, &mut out);
        }
        if self.cells.len() > 1 {
            self.summary(&mut out);
        }
        out
    }

    fn cell_table(&self, cell: &Cell, out: &mut String) {
        let cpus: crate::host::CpuSet = cell.cpus.iter().copied().collect();
        let pinned = if cell.pinned {
            "pinned to"
        } else {
            "not pinned, planned for"
        };
        let _ = writeln!(out, "\n{} ({pinned} CPUs {cpus})", cell.name);
        let energy = self.energy.is_ok();
        let _ = writeln!(
            out,
            "  {:<16} {:>24} {:>14}{}",
            "",
            "tok/s",
            "CPU s/token",
            if energy { "        J/token" } else { "" }
        );
        for measured in &cell.measured {
            let figure = |series: &Series| {
                series
                    .median()
                    .map_or_else(|| "-".to_owned(), |value| format!("{value:.5}"))
            };
            let joules = match energy {
                true => format!("{:>15}", figure(&measured.joules)),
                false => String::new(),
            };
            let _ = writeln!(
                out,
                "  {:<16} {:>24} {:>14}{joules}",
                measured.name,
                measured.tok_s.to_string(),
                figure(&measured.cpu_s)
            );
        }
        for (name, series, unit) in [
            ("load", &cell.load_ms, "ms"),
            (
                "first token",
                &cell.first_token_ms,
                "ms from the process's start",
            ),
            ("peak memory", &cell.peak_mb, "MB, pages of files included"),
        ] {
            if series.median().is_some() {
                let _ = writeln!(out, "  {name:<16} {:>24} {unit}", series.to_string());
            }
        }
        let _ = writeln!(out, "  {:<16} {:>24}", "tokens", cell.hash());
    }

    /// One line per cell: medians of everything.
    fn summary(&self, out: &mut String) {
        let Some(first) = self.cells.first() else {
            return;
        };
        let widest = self
            .cells
            .iter()
            .map(|cell| cell.name.len())
            .max()
            .unwrap_or(0);
        let _ = write!(out, "\n{:<widest$}", "tok/s, medians");
        for measured in &first.measured {
            let _ = write!(out, "  {:>14}", measured.name);
        }
        let _ = writeln!(out, "  tokens");
        for cell in &self.cells {
            let _ = write!(out, "{:<widest$}", cell.name);
            for measured in &first.measured {
                let same = cell.measured.iter().find(|m| m.name == measured.name);
                let median = same.and_then(|m| m.tok_s.median());
                let text = median.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
                let _ = write!(out, "  {text:>14}");
            }
            let _ = writeln!(out, "  {}", cell.hash());
        }
    }

    /// One object.
    pub(super) fn json(&self) -> Value {
        let series = |series: &Series| json!({"median": series.median(), "min": series.least(), "max": series.most(), "values": series.0});
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|cell| {
                let measured: Vec<Value> = cell
                    .measured
                    .iter()
                    .map(|m| {
                        json!({
                            "name": m.name, "tok_s": series(&m.tok_s),
                            "cpu_seconds_per_token": series(&m.cpu_s), "joules_per_token": series(&m.joules),
                        })
                    })
                    .collect();
                json!({
                    "kernel": cell.kernel, "threads": cell.threads, "cpus": cell.cpus, "pinned": cell.pinned,
                    "prefill_batch": cell.prefill_batch, "measured": measured, "load_ms": series(&cell.load_ms),
                    "first_token_ms": series(&cell.first_token_ms), "peak_memory_mb": series(&cell.peak_mb),
                    "token_hash": cell.hash(),
                })
            })
            .collect();
        let bandwidth: Vec<Value> = self
            .bandwidth
            .iter()
            .map(|(threads, speeds)| json!({"threads": threads, "gb_s": series(speeds)}))
            .collect();
        json!({
            "version": self.version, "model": self.model, "parameters": self.parameters, "machine": self.machine,
            "rounds": self.rounds, "answer_tokens": self.n_tokens, "read_bandwidth": bandwidth,
            "energy": {"source": self.energy.as_ref().ok(), "unavailable": self.energy.as_ref().err()},
            "load_average": self.load_average, "tokens_agree": self.all_agree(), "cells": cells,
        })
    }

    /// A line per cell and measurement.
    pub(super) fn csv(&self) -> String {
        let mut out =
            "kernel,threads,pinned,measurement,unit,median,min,max,rounds,token_hash\n".to_owned();
        for cell in &self.cells {
            let mut line = |name: &str, unit: &str, series: &Series| {
                let (Some(median), Some(least), Some(most)) =
                    (series.median(), series.least(), series.most())
                else {
                    return;
                };
                let _ = writeln!(
                    out,
                    "{},{},{},{name},{unit},{median},{least},{most},{},{}",
                    cell.kernel,
                    cell.threads,
                    cell.pinned,
                    series.0.len(),
                    cell.hash()
                );
            };
            for m in &cell.measured {
                line(&m.name, "tok/s", &m.tok_s);
                line(&m.name, "CPU s/token", &m.cpu_s);
                line(&m.name, "J/token", &m.joules);
            }
            line("load", "ms", &cell.load_ms);
            line("first token", "ms", &cell.first_token_ms);
            line("peak memory", "MB", &cell.peak_mb);
        }
        out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn report(hashes: [u64; 2]) -> Report {
        let cell = |kernel: &str, speed: f64, hash: u64| {
            let mut cell = Cell {
                name: format!("{kernel}, 2 threads"),
                kernel: kernel.to_owned(),
                threads: 2,
                cpus: vec![0, 1],
                hashes: vec![hash, hash],
                ..Cell::default()
            };
            for factor in [1.0, 1.1] {
                cell.add(
                    "prefill 128",
                    Some(speed * 6.0 * factor),
                    (Some(0.01), None),
                );
                cell.add(
                    "prefill 512",
                    Some(speed * 5.0 * factor),
                    (Some(0.01), None),
                );
                cell.add("decode at 0", Some(speed * factor), (Some(0.05), None));
                cell.add(
                    "decode of 4",
                    Some(speed * 3.0 * factor),
                    (Some(0.02), None),
                );
            }
            cell
        };
        Report {
            version: "0",
            model: "a model".to_owned(),
            parameters: "2.4B".to_owned(),
            machine: "a machine".to_owned(),
            rounds: 2,
            n_tokens: 64,
            energy: Err("none here".to_owned()),
            bandwidth: vec![(2, Series(vec![30.0]))],
            cells: vec![
                cell("i2_s/avx2", 40.0, hashes[0]),
                cell("tl2/avx2", 30.0, hashes[1]),
            ],
            load_average: None,
        }
    }

    #[test]
    fn a_wrong_answer_shows() {
        assert!(report([7, 7]).all_agree());
        assert!(!report([7, 8]).all_agree());
        let mut one = report([7, 7]);
        one.cells[1].hashes = vec![7, 9];
        assert!(!one.all_agree());
        assert!(
            one.tables()
                .contains("0000000000000007 != 0000000000000009")
        );
    }

    #[test]
    fn all_shapes_tell_the_same() {
        let report = report([7, 7]);
        let tables = report.tables();
        for part in [
            "read bandwidth, 2 threads: 30.0 GB/s",
            "energy: unavailable: none here",
            "prefill 128",
            "42.0 (40.0-44.0)",
            "tok/s, medians",
        ] {
            assert!(tables.contains(part), "`{part}` is missing in\n{tables}");
        }
        let json = report.json();
        assert_eq!(json["cells"][1]["measured"][2]["tok_s"]["median"], 31.5);
        assert_eq!(json["tokens_agree"], true);
        let csv = report.csv();
        assert!(
            csv.contains("tl2/avx2,2,false,decode at 0,tok/s,31.5,30,33,2,0000000000000007\n"),
            "{csv}"
        );
        let columns = csv.lines().map(|line| line.split(',').count());
        assert!(columns.eq(std::iter::repeat_n(10, csv.lines().count())));
    }
}

//! A histogram in Prometheus' form: counts per bucket, cumulative only when written.

use std::fmt::Write;

#[derive(Clone)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// One per bound and one above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// `bounds`: upper bounds of the buckets, ascending.
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Histogram {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    pub(super) fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
    }

    /// With its head.
    pub(super) fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, help);
        self.write_series(out, name, "");
    }

    /// One series below a head; `labels` as in `route="/health"`, or empty.
    pub(super) fn write_series(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            below += count;
            let _ = writeln!(
                out,
                "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}"
            );
        }
        let all: u64 = self.counts.iter().sum();
        let braces = match labels {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        let _ = writeln!(
            out,
            "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {all}\n{name}_sum{braces} {}\n{name}_count{braces} {all}",
            self.sum
        );
    }
}

pub(super) fn head(out: &mut String, name: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative() {
        let mut h = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 9.0] {
            h.observe(value);
        }
        let mut out = String::new();
        h.write(&mut out, "x", "y");
        assert!(out.contains("x_bucket{le=\"1\"} 2\nx_bucket{le=\"2\"} 3\nx_bucket{le=\"+Inf\"} 4\nx_sum 12\nx_count 4"));
        let mut out = String::new();
        h.write_series(&mut out, "x", "a=\"b\"");
        assert!(out.contains("x_bucket{a=\"b\",le=\"1\"} 2\n"));
        assert!(out.ends_with("x_sum{a=\"b\"} 12\nx_count{a=\"b\"} 4\n"));
    }
}

//! Median and spread of a few measurements.

use std::fmt;

/// Measurements of one thing, in the order they were made.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Series(pub Vec<f64>);

impl Series {
    /// Adds what was measured, if it was.
    pub(crate) fn push(&mut self, value: Option<f64>) {
        self.0.extend(value.filter(|value| value.is_finite()));
    }

    /// The middle one, or the mean of the two in the middle; `None` without measurements.
    pub(crate) fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        match sorted.len() % 2 {
            1 => Some(upper),
            _ => Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0),
        }
    }

    /// The smallest.
    pub(crate) fn least(&self) -> Option<f64> {
        self.0.iter().copied().reduce(f64::min)
    }

    /// The largest.
    pub(crate) fn most(&self) -> Option<f64> {
        self.0.iter().copied().reduce(f64::max)
    }
}

/// `37.1 (36.0-38.2)`, or `-` without measurements.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(median), Some(least), Some(most)) = (self.median(), self.least(), self.most())
        else {
            return f.write_str("-");
        };
        let digits = digits_for(median);
        write!(f, "{median:.digits$}")?;
        if self.0.len() > 1 {
            write!(f, " ({least:.digits$}-{most:.digits$})")?;
        }
        Ok(())
    }
}

/// Three figures that count.
pub(crate) fn digits_for(value: f64) -> usize {
    match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let mut series = Series::default();
        assert_eq!(
            (series.median(), series.to_string()),
            (None, "-".to_owned())
        );
        for (value, median) in [(3.0, 3.0), (1.0, 2.0), (10.0, 3.0)] {
            series.push(Some(value));
            series.push(None);
            series.push(Some(f64::NAN));
            assert_eq!(series.median(), Some(median));
        }
        assert_eq!(series.to_string(), "3.00 (1.00-10.00)");
    }
}

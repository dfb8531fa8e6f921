//! Shares and gains, each with its 95% confidence interval.

use std::fmt;

use serde::{Serialize, Serializer};

/// The standard normal distribution's 97.5% quantile.
const Z: f64 = 1.959_964;

/// The number of `n` answers that pass a measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) passed: usize,
    pub(crate) n: usize,
}

impl Share {
    /// Counts the answers that pass.
    pub(crate) fn of(answers: impl IntoIterator<Item = bool>) -> Share {
        let start = Share { passed: 0, n: 0 };
        answers.into_iter().fold(start, |share, passed| Share {
            passed: share.passed + usize::from(passed),
            n: share.n + 1,
        })
    }

    /// Returns the share itself, between 0 and 1; `None` without answers.
    pub(crate) fn value(self) -> Option<f64> {
        (self.n > 0).then(|| self.passed as f64 / self.n as f64)
    }

    /// Returns Wilson's score interval; `None` without answers.
    pub(crate) fn interval(self) -> Option<(f64, f64)> {
        let share = self.value()?;
        let n = self.n as f64;
        let denominator = 1.0 + Z * Z / n;
        let centre = (share + Z * Z / (2.0 * n)) / denominator;
        let spread = (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
        let half = Z * spread / denominator;
        Some(((centre - half).max(0.0), (centre + half).min(1.0)))
    }
}

/// Formats it in percent, such as `46 (36-56)`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(share), Some((low, high))) = (self.value(), self.interval()) else {
            return f.write_str("–");
        };
        let (share, low, high) = (share * 100.0, low * 100.0, high * 100.0);
        write!(f, "{share:.0} ({low:.0}-{high:.0})")
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Figures {
            passed: usize,
            n: usize,
            share: Option<f64>,
            interval: Option<(f64, f64)>,
        }
        let figures = Figures {
            passed: self.passed,
            n: self.n,
            share: self.value(),
            interval: self.interval(),
        };
        figures.serialize(serializer)
    }
}

/// The mean of the differences between an arm and the baseline on the same questions,
/// with the normal approximation's interval: mean ± 1.96 standard deviations of the
/// differences ÷ √n.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Gain {
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) n: usize,
}

impl Gain {
    /// Compares answers in pairs, the arm's first; `None` for fewer than two.
    pub(crate) fn paired(pairs: impl IntoIterator<Item = (bool, bool)>) -> Option<Gain> {
        let number = |passed: bool| f64::from(u8::from(passed));
        let differences: Vec<f64> = pairs
            .into_iter()
            .map(|(arm, baseline)| number(arm) - number(baseline))
            .collect();
        if differences.len() < 2 {
            return None;
        }
        let n = differences.len() as f64;
        let mean = differences.iter().sum::<f64>() / n;
        let squares: f64 = differences.iter().map(|it| (it - mean).powi(2)).sum();
        let half = Z * (squares / (n - 1.0) / n).sqrt();
        Some(Gain {
            mean,
            low: mean - half,
            high: mean + half,
            n: differences.len(),
        })
    }
}

/// Formats it in percentage points, such as `+5 (-2 to +12)`.
impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Adding zero avoids that a rounded -0.2 is shown as -0.
        let points = |gain: f64| (gain * 100.0).round() + 0.0;
        let (mean, low, high) = (points(self.mean), points(self.low), points(self.high));
        write!(f, "{mean:+.0} ({low:+.0} to {high:+.0})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-5
    }

    #[test]
    fn intervals_are_wilsons() {
        let known = [
            (8, 10, 0.490_162, 0.943_318),
            (0, 10, 0.0, 0.277_533),
            (10, 10, 0.722_467, 1.0),
            (50, 100, 0.403_832, 0.596_168),
        ];
        for (passed, n, low, high) in known {
            let (found_low, found_high) = Share { passed, n }.interval().unwrap();
            assert!(near(found_low, low), "{passed}/{n}: {found_low}");
            assert!(near(found_high, high), "{passed}/{n}: {found_high}");
        }
    }

    #[test]
    fn shares_are_shown_in_percent() {
        let half = Share::of((0..100).map(|it| it % 2 == 0));
        assert_eq!(half.to_string(), "50 (40-60)");
        assert_eq!(Share::of([]).to_string(), "–");
        assert_eq!(Share::of([]).interval(), None);
    }

    #[test]
    fn a_gain_is_the_mean_of_paired_differences() {
        let pairs = [
            (true, false),
            (true, true),
            (false, false),
            (true, false),
            (false, true),
        ];
        let gain = Gain::paired(pairs).unwrap();
        assert!(near(gain.mean, 0.2) && gain.n == 5);
        assert!(near(gain.low, -0.533_352), "{}", gain.low);
        assert!(near(gain.high, 0.933_352), "{}", gain.high);
        assert_eq!(gain.to_string(), "+20 (-53 to +93)");
    }

    #[test]
    fn arms_that_never_differ_have_no_gain() {
        let gain = Gain::paired([(true, true), (false, false)]).unwrap();
        assert_eq!(gain.to_string(), "+0 (+0 to +0)");
        assert_eq!(Gain::paired([(true, false)]), None);
    }
}

//! Flags of the samplers for base models (DRY, XTC and others), shared by all commands that
//! generate answers.

use anyhow::{bail, ensure};
use incant::analyze::Samplers;
use incant::profile::SamplingDefaults;
use incant::runtime::{Arm, breakers};
use incant::sample::SamplingParams;
use incant::server::ranges::{self, Float, Range};

/// Samplers against repetition and for variety.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct SamplerArgs {
    /// DRY: the penalty of a token that would continue a repetition of the allowed length, 0 (off)
    /// to 100
    #[arg(long, value_name = "LOGIT")]
    dry_multiplier: Option<f32>,
    /// DRY: the factor of that penalty for each further token, 0 to 10 [default: 1.75]
    #[arg(long, value_name = "FACTOR")]
    dry_base: Option<f32>,
    /// DRY: repetitions of fewer tokens have no penalty [default: 2]
    #[arg(long, value_name = "N")]
    dry_allowed_length: Option<u32>,
    /// DRY: how many of the last tokens are searched for repetitions; -1 searches all [default: -1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    dry_penalty_last_n: Option<i32>,
    /// DRY: a text that no repetition extends across; repeatable [default: newline, colon, double
    /// quote, asterisk]
    #[arg(long, value_name = "TEXT")]
    dry_sequence_breaker: Vec<String>,
    /// Keep tokens whose logit is at most N standard deviations below the largest
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    top_n_sigma: Option<f32>,
    /// Locally typical sampling: sample among the tokens with this mass whose surprise is nearest
    /// the expected one
    #[arg(long, value_name = "MASS")]
    typical_p: Option<f32>,
    /// XTC: how often the top choices are left out, except the least likely of them, 0 (off) to 1
    #[arg(long, value_name = "SHARE")]
    xtc_probability: Option<f32>,
    /// XTC: the minimum probability of a top choice; above 0.5 is off [default: 0.1]
    #[arg(long, value_name = "SHARE")]
    xtc_threshold: Option<f32>,
}

impl SamplerArgs {
    /// Returns the samplers, if every value is in its range.
    pub(crate) fn samplers(&self) -> anyhow::Result<Samplers> {
        let floats = [
            (
                "--dry-multiplier",
                self.dry_multiplier,
                ranges::DRY_MULTIPLIER,
            ),
            ("--dry-base", self.dry_base, ranges::DRY_BASE),
            ("--top-n-sigma", self.top_n_sigma, ranges::TOP_N_SIGMA),
            ("--typical-p", self.typical_p, ranges::TYPICAL_P),
            (
                "--xtc-probability",
                self.xtc_probability,
                ranges::XTC_PROBABILITY,
            ),
            ("--xtc-threshold", self.xtc_threshold, ranges::XTC_THRESHOLD),
        ];
        for (flag, value, range) in floats {
            if let Some(value) = value {
                check_float(flag, value, range)?;
            }
        }
        if let Some(length) = self.dry_allowed_length {
            check_integer(
                "--dry-allowed-length",
                length.into(),
                ranges::DRY_ALLOWED_LENGTH,
            )?;
        }
        if let Some(last) = self.dry_penalty_last_n {
            check_integer(
                "--dry-penalty-last-n",
                last.into(),
                ranges::DRY_PENALTY_LAST_N,
            )?;
        }
        let texts = &self.dry_sequence_breaker;
        if texts.len() > 16 || texts.iter().any(|text| !(1..=64).contains(&text.len())) {
            bail!("--dry-sequence-breaker takes at most 16 texts of 1 to 64 bytes");
        }
        Ok(Samplers {
            dry_multiplier: self.dry_multiplier,
            dry_base: self.dry_base,
            dry_allowed_length: self.dry_allowed_length,
            dry_penalty_last_n: self.dry_penalty_last_n,
            dry_sequence_breakers: (!texts.is_empty()).then(|| texts.clone()),
            top_n_sigma: self.top_n_sigma,
            typical_p: self.typical_p,
            xtc_probability: self.xtc_probability,
            xtc_threshold: self.xtc_threshold,
        })
    }
}

/// Returns the sampling parameters of an arm: those of `samplers` or, if absent, of `defaults`.
pub(crate) fn sampling(
    samplers: &Samplers,
    defaults: &SamplingDefaults,
    arm: &Arm,
) -> SamplingParams {
    let samplers = samplers.clone();
    let defaults = defaults.clone();
    let asked = SamplingDefaults {
        dry_multiplier: samplers.dry_multiplier.or(defaults.dry_multiplier),
        dry_base: samplers.dry_base.or(defaults.dry_base),
        dry_allowed_length: samplers.dry_allowed_length.or(defaults.dry_allowed_length),
        dry_penalty_last_n: samplers.dry_penalty_last_n.or(defaults.dry_penalty_last_n),
        dry_sequence_breakers: samplers
            .dry_sequence_breakers
            .or(defaults.dry_sequence_breakers),
        top_n_sigma: samplers.top_n_sigma.or(defaults.top_n_sigma),
        typical_p: samplers.typical_p.or(defaults.typical_p),
        xtc_probability: samplers.xtc_probability.or(defaults.xtc_probability),
        xtc_threshold: samplers.xtc_threshold.or(defaults.xtc_threshold),
        ..defaults
    };
    let mut sampling = asked.sampling();
    if sampling.dry.is_on() {
        let texts = asked.dry_sequence_breakers.as_deref();
        sampling.dry.breakers = breakers(arm.tokenizer(), texts);
    }
    sampling
}

/// Refuses a number out of range; NaN is out of any range.
pub(super) fn check_float(flag: &str, value: f32, range: Range<Float>) -> anyhow::Result<()> {
    ensure!(
        range.contains_f32(value),
        "{flag} must be {} to {}",
        range.min,
        range.max
    );
    Ok(())
}

/// Refuses an integer out of range.
pub(super) fn check_integer(flag: &str, value: i64, range: Range<i64>) -> anyhow::Result<()> {
    ensure!(
        range.contains(value),
        "{flag} must be {} to {}",
        range.min,
        range.max
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        samplers: SamplerArgs,
    }

    fn samplers(line: &str) -> anyhow::Result<Samplers> {
        let words = ["incant"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().samplers.samplers()
    }

    #[test]
    fn what_is_not_said_is_not_asked_for() {
        assert_eq!(samplers("").unwrap(), Samplers::default());
        let said = samplers("--dry-penalty-last-n -1 --dry-sequence-breaker x").unwrap();
        let expected = Samplers {
            dry_penalty_last_n: Some(-1),
            dry_sequence_breakers: Some(vec!["x".to_owned()]),
            ..Samplers::default()
        };
        assert_eq!(said, expected);
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_its_flag() {
        let message = |line| samplers(line).unwrap_err().to_string();
        assert_eq!(message("--typical-p 2"), "--typical-p must be 0 to 1");
        assert_eq!(
            message("--top-n-sigma nan"),
            "--top-n-sigma must be -1 to 100"
        );
        assert_eq!(
            message("--dry-penalty-last-n -2"),
            "--dry-penalty-last-n must be -1 to 1000000"
        );
        let long = format!("--dry-sequence-breaker {}", "x".repeat(65));
        assert!(message(&long).starts_with("--dry-sequence-breaker takes"));
    }
}

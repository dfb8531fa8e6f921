//! The flags for sampling and analysis of a comparison, as typed and as settings.

use anyhow::{bail, ensure};
use incant::analyze::Settings;
use incant::sample::fresh_seed;
use incant::server::ranges::{self, Range};

use crate::cli::samplers::{SamplerArgs, check_float, check_integer};

/// The largest seed. Readers of JSON may represent numbers in double precision.
const MAX_SEED: u64 = (1 << 53) - 1;

/// How answers are generated and analysed.
#[derive(clap::Args)]
pub(super) struct Controls {
    /// 0 (always the most likely token) to 2; several, separated by commas, show the variation of
    /// answers. Shift is summed over the answers of temperature 0 if there are any, else over those
    /// of the first
    #[arg(
        long,
        short,
        value_name = "T",
        value_delimiter = ',',
        default_value = "0"
    )]
    temperature: Vec<f32>,
    /// Number of answers of each arm to each prompt at each temperature
    #[arg(short, value_name = "N", default_value_t = 1)]
    n: usize,
    /// The seed of the random numbers; the same one repeats the answers [default: a new one]
    #[arg(long)]
    seed: Option<u64>,
    /// End each answer after this many tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// Sample among the most likely tokens that together hold this mass
    #[arg(long, value_name = "MASS", default_value_t = 1.0)]
    top_p: f32,
    /// Sample among the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Drop tokens less likely than this share of the most likely one
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    min_p: f32,
    /// Subtracted once from each token that was generated before
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtracted for each time a token was generated before
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of generated tokens; 1 is off
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    #[command(flatten)]
    samplers: SamplerArgs,
    /// Do not score the answers
    #[arg(long)]
    no_analysis: bool,
    /// Number of alternatives to keep for each token and arm, 0 to 20: most of a long report is
    /// these
    #[arg(long, value_name = "N", default_value_t = 10)]
    top_logprobs: usize,
}

impl Controls {
    /// Returns the settings, with the first arm as reference, if every value is in its range.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        for (at, &temperature) in self.temperature.iter().enumerate() {
            check_float("--temperature", temperature, ranges::TEMPERATURE)?;
            if self.temperature[..at].contains(&temperature) {
                bail!("--temperature has {temperature} twice");
            }
        }
        check_count("-n", self.n, ranges::ANSWERS)?;
        let max_tokens = Range {
            min: 1,
            ..ranges::TOKENS
        };
        check_count("--max-tokens", self.max_tokens, max_tokens)?;
        check_float("--top-p", self.top_p, ranges::TOP_P)?;
        check_float("--min-p", self.min_p, ranges::MIN_P)?;
        let penalty = ranges::PENALTY;
        check_float("--presence-penalty", self.presence_penalty, penalty)?;
        check_float("--frequency-penalty", self.frequency_penalty, penalty)?;
        let repetition = ranges::REPETITION_PENALTY;
        check_float("--repetition-penalty", self.repetition_penalty, repetition)?;
        check_count("--top-logprobs", self.top_logprobs, ranges::TOP_LOGPROBS)?;
        let seed = self.seed.unwrap_or_else(|| fresh_seed() & MAX_SEED);
        ensure!(seed <= MAX_SEED, "--seed must be 0 to {MAX_SEED}");
        Ok(Settings {
            reference: 0,
            seed,
            temperature: self.temperature.clone(),
            top_p: self.top_p,
            top_k: self.top_k as usize,
            min_p: self.min_p,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repetition_penalty: self.repetition_penalty,
            samplers: self.samplers.samplers()?,
            max_tokens: self.max_tokens,
            n: self.n,
            analysis: !self.no_analysis,
            top_logprobs: self.top_logprobs,
            command: None,
        })
    }

    /// Returns the command line that repeats the command with these `arguments`: with the seed, if
    /// they have none. `None` if they cannot be typed.
    pub(super) fn command(&self, arguments: &[String], seed: u64) -> Option<String> {
        let program = "incant".to_owned();
        let mut words = vec![program];
        words.extend_from_slice(arguments);
        if self.seed.is_none() {
            words.extend(["--seed".to_owned(), seed.to_string()]);
        }
        shlex::try_join(words.iter().map(String::as_str)).ok()
    }
}

/// Refuses a number of things that is out of range.
fn check_count(flag: &str, count: usize, range: Range<i64>) -> anyhow::Result<()> {
    check_integer(flag, i64::try_from(count).unwrap_or(i64::MAX), range)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        controls: Controls,
    }

    fn parse(line: &str) -> Controls {
        let words = ["incant"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().controls
    }

    #[test]
    fn what_is_not_said_has_a_default_and_the_seed_is_new() {
        let [first, second] = [(); 2].map(|()| parse("").settings().unwrap());
        assert_eq!(
            (first.temperature, first.n, first.max_tokens),
            (vec![0.0], 1, 256)
        );
        assert!(first.analysis);
        assert_ne!(first.seed, second.seed);
        assert!(first.seed < 1 << 53);
    }

    #[test]
    fn several_temperatures_are_separated_by_commas() {
        let settings = parse("-t 0,0.5,1 -n 3 --seed 7").settings().unwrap();
        assert_eq!(settings.temperature, [0.0, 0.5, 1.0]);
        assert_eq!((settings.n, settings.seed), (3, 7));
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_its_flag() {
        let message = |line| parse(line).settings().unwrap_err().to_string();
        assert_eq!(message("-t 0,2.5"), "--temperature must be 0 to 2");
        assert_eq!(message("-t nan"), "--temperature must be 0 to 2");
        assert_eq!(message("-t 0.5,1,0.5"), "--temperature has 0.5 twice");
        assert_eq!(message("-n 0"), "-n must be 1 to 128");
        assert_eq!(
            message("--presence-penalty -3"),
            "--presence-penalty must be -2 to 2"
        );
        assert_eq!(
            message("--top-logprobs 21"),
            "--top-logprobs must be 0 to 20"
        );
        let most = "--seed must be 0 to 9007199254740991";
        assert_eq!(message("--seed 9007199254740992"), most);
    }

    #[test]
    fn the_command_line_is_quoted_and_has_the_seed() {
        let arguments = ["compare", "What's up?"].map(str::to_owned);
        let command = |line: &str| parse(line).command(&arguments, 7);
        let quoted = "incant compare \"What's up?\"";
        assert_eq!(command(""), Some(format!("{quoted} --seed 7")));
        assert_eq!(command("--seed 7"), Some(quoted.to_owned()));
    }
}

//! The flags of all training methods.

use std::path::PathBuf;

use anyhow::bail;
use incant::lora::Linear;
use incant::train::settings::{Length, Settings};

use super::{Origin, Task};
use crate::cli::model_args::StudentArgs;

/// The flags that all methods share.
#[derive(clap::Args)]
pub(super) struct Flags {
    #[command(flatten)]
    pub(super) student: StudentArgs,
    /// Training data; repeatable
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(super) data: Vec<PathBuf>,
    /// Evaluation data, which is held out; repeatable [default: a share of the training data]
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "eval_share")]
    pub(super) eval_data: Vec<PathBuf>,
    /// The share of the training data that is held out for evaluation
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = share)]
    pub(super) eval_share: f64,
    /// The folder for all output: at the end the adapter, as a PEFT directory; beside it
    /// checkpoints, metrics.jsonl, report.html and report.json
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Start from an existing adapter, a PEFT directory or a GGUF file, with its form and rank
    #[arg(long, value_name = "PATH", conflicts_with_all = ["rank", "alpha", "targets", "rslora"])]
    pub(super) from: Option<PathBuf>,
    /// The profile that conversations are rendered with, or `turn` or `base`; the adapter records
    /// it and is served with it [default: that of --from; the file's chat template; or turn. For
    /// distill, the profile that is learnt: the model's default]
    #[arg(long, value_name = "NAME")]
    pub(super) profile: Option<String>,
    /// The adapter's rank
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = rank)]
    pub(super) rank: usize,
    /// The adapter's product is scaled by alpha over rank
    #[arg(long, value_name = "N", default_value_t = 32.0, value_parser = positive)]
    pub(super) alpha: f64,
    /// The linear layers to adapt: all, or some of q_proj, k_proj, v_proj, o_proj,
    /// gate_proj, up_proj, down_proj, separated by commas
    #[arg(long, value_name = "NAMES", default_value = "all", value_parser = targets)]
    pub(super) targets: Targets,
    /// Divide alpha by the root of the rank instead (rank-stabilized LoRA)
    #[arg(long)]
    pub(super) rslora: bool,
    /// The highest learning rate [default: 2e-4 for sft and distill, 5e-6 for dpo and simpo]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    learning_rate: Option<f64>,
    /// The number of passes over all examples
    #[arg(long, value_name = "N", default_value_t = 1)]
    epochs: usize,
    /// The number of steps instead
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<usize>,
    /// Examples per batch
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Gradient accumulation: batches whose gradients are added up for one step
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Truncate sequences that are longer than this number of tokens, including a profile's; the
    /// number of truncated ones is reported
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub(super) max_length: usize,
    /// The share of the steps in which the learning rate rises (warm-up)
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    warmup: f64,
    /// The weight decay of AdamW
    #[arg(long, value_name = "DECAY", default_value_t = 0.0, value_parser = not_negative)]
    weight_decay: f64,
    /// Gradient clipping: scale down gradients whose norm is larger than this
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = positive)]
    clip: f64,
    /// The random seed of the adapter's initial values, the order of the examples and the held-out
    /// share
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// The number of steps between checkpoints; the last step always has one
    #[arg(long, value_name = "STEPS", default_value_t = 100)]
    save_every: usize,
    /// The number of steps between evaluations on the held-out examples; there is always one before
    /// the first and after the last step
    #[arg(long, value_name = "STEPS", default_value_t = 100)]
    eval_every: usize,
    /// The number of held-out prompts that are answered before and after the run, for the report; 0
    /// answers none
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(super) samples: usize,
    /// Resume from the last checkpoint in --out, if there is one, as if the run had never been
    /// interrupted
    #[arg(long)]
    pub(super) resume: bool,
    /// Recompute each layer's activations in the backward pass instead of keeping them (gradient
    /// checkpointing): less memory for long sequences, some 30% more time
    #[arg(long)]
    pub(super) recompute: bool,
}

/// Linear layers, by PEFT's names (`target_modules`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Targets(pub(super) Vec<Linear>);

fn targets(text: &str) -> Result<Targets, String> {
    if text == "all" {
        return Ok(Targets(Linear::ALL.to_vec()));
    }
    let linears = text.split(',').map(|name| {
        let mut all = Linear::ALL.into_iter();
        all.find(|linear| linear.target() == name.trim())
            .ok_or_else(|| format!("there is no linear layer '{}'", name.escape_debug()))
    });
    let mut linears = linears.collect::<Result<Vec<_>, _>>()?;
    linears.sort_unstable();
    linears.dedup();
    Ok(Targets(linears))
}

fn number(text: &str) -> Result<f64, String> {
    let number: Result<f64, _> = text.parse();
    let number = number.ok().filter(|number| number.is_finite());
    number.ok_or_else(|| "it is no number".to_owned())
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    let number = number(text)?;
    let is_positive = number > 0.0;
    is_positive
        .then_some(number)
        .ok_or_else(|| "it must be above 0".to_owned())
}

pub(super) fn not_negative(text: &str) -> Result<f64, String> {
    let number = number(text)?;
    let is_fit = number >= 0.0;
    is_fit
        .then_some(number)
        .ok_or_else(|| "it must be at least 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number = number(text)?;
    let is_share = (0.0..1.0).contains(&number);
    is_share
        .then_some(number)
        .ok_or_else(|| "it must be at least 0 and below 1".to_owned())
}

fn rank(text: &str) -> Result<usize, String> {
    let rank: Option<usize> = text.parse().ok();
    rank.filter(|rank| (1..=1024).contains(rank))
        .ok_or_else(|| "it must be 1 to 1024".to_owned())
}

impl Flags {
    /// Checks the flags before anything is loaded.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let counts = [
            ("--epochs", self.epochs),
            ("--steps", self.steps.unwrap_or(1)),
            ("--batch-size", self.batch_size),
            ("--accumulate", self.accumulate),
            ("--max-length", self.max_length),
            ("--save-every", self.save_every),
            ("--eval-every", self.eval_every),
        ];
        if let Some((flag, _)) = counts.into_iter().find(|&(_, count)| count == 0) {
            bail!("{flag} must be at least 1");
        }
        Ok(())
    }

    /// Returns the trainer's settings.
    pub(super) fn settings(&self, task: &Task, origin: Origin) -> Settings {
        Settings {
            learning_rate: self.learning_rate.unwrap_or(task.learning_rate()),
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            clip: self.clip,
            length: match self.steps {
                Some(steps) => Length::Steps(steps),
                None => Length::Epochs(self.epochs),
            },
            batch_size: self.batch_size,
            accumulate: self.accumulate,
            seed: self.seed,
            save_every: Some(self.save_every),
            eval_every: Some(self.eval_every),
            origin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_peft_does() {
        assert_eq!(targets("all").unwrap().0.len(), 7);
        assert_eq!(
            targets("v_proj, q_proj,v_proj").unwrap(),
            Targets(vec![Linear::Query, Linear::Value])
        );
        assert!(targets("lm_head").unwrap_err().contains("'lm_head'"));
    }

    #[test]
    fn numbers_out_of_range_are_told() {
        assert_eq!(positive("2e-4"), Ok(2e-4));
        assert_eq!(share("0"), Ok(0.0));
        for refused in ["0", "-1", "nan", "inf", "x", ""] {
            assert!(positive(refused).is_err(), "{refused}");
        }
        assert!(share("1").is_err() && not_negative("-0.1").is_err() && rank("0").is_err());
    }
}

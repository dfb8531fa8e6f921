//! What is typed.

use std::path::PathBuf;

use anyhow::bail;
use incant::lora::Linear;
use incant::train::settings::{Length, Settings};

use super::{Origin, Task};
use crate::config::StudentArgs;

/// What all methods share.
#[derive(clap::Args)]
pub(super) struct Flags {
    #[command(flatten)]
    pub(super) student: StudentArgs,
    /// What is learnt from; repeatable
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(super) data: Vec<PathBuf>,
    /// What is looked at but not learnt from; repeatable [default: a share of the data]
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "eval_share")]
    pub(super) eval_data: Vec<PathBuf>,
    /// The share of the data that is looked at but not learnt from
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = share)]
    pub(super) eval_share: f64,
    /// Where everything is written: at the end the adapter, as a PEFT directory; beside
    /// it checkpoints, metrics.jsonl, report.html and report.json
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Go on with an adapter, a PEFT directory or a GGUF file, in its form and rank
    #[arg(long, value_name = "PATH", conflicts_with_all = ["rank", "alpha", "targets", "rslora"])]
    pub(super) from: Option<PathBuf>,
    /// The profile that conversations are rendered with, or `turn` or `base`; the adapter
    /// says so and is served with it [default: that of --from; the file's chat template;
    /// or turn. For distill, the profile that is learnt: the model's default]
    #[arg(long, value_name = "NAME")]
    pub(super) profile: Option<String>,
    /// The adapter's rank
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = rank)]
    pub(super) rank: usize,
    /// The adapter adds alpha over rank times its product
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
    /// How often all examples are seen
    #[arg(long, value_name = "N", default_value_t = 1)]
    epochs: usize,
    /// Make so many steps instead
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<usize>,
    /// Examples that are computed together
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch_size: usize,
    /// Batches whose gradients are added up for one step
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Cut sequences that are longer than so many tokens, a profile's included; how many
    /// that are is said
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub(super) max_length: usize,
    /// The share of the steps in which the learning rate rises
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    warmup: f64,
    /// AdamW's weight decay
    #[arg(long, value_name = "DECAY", default_value_t = 0.0, value_parser = not_negative)]
    weight_decay: f64,
    /// Shorten gradients that are longer than this
    #[arg(long, value_name = "NORM", default_value_t = 1.0, value_parser = positive)]
    clip: f64,
    /// What the adapter's first values, the order of the examples and the held-out share
    /// follow from
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// Save a checkpoint after every so many steps; there is one at the end in any case
    #[arg(long, value_name = "STEPS", default_value_t = 100)]
    save_every: usize,
    /// Look at the held-out examples after every so many steps; they are looked at before
    /// the first and after the last in any case
    #[arg(long, value_name = "STEPS", default_value_t = 100)]
    eval_every: usize,
    /// Ask so many held-out prompts before the run and after it, for the report; 0 asks none
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(super) samples: usize,
    /// Go on from the last checkpoint in --out, if there is one, as if the run had never
    /// ended
    #[arg(long)]
    pub(super) resume: bool,
    /// Compute each layer's inside again on the way back, rather than keep it: less memory
    /// for long sequences, some 30% more time
    #[arg(long)]
    pub(super) recompute: bool,
}

/// Linear layers, by PEFT's names.
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
    /// What can be known to be wrong before anything is loaded.
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

    /// The trainer's settings.
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

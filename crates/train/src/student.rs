//! The interface between training and a model.

use std::path::Path;

use candle_core::{Tensor, Var};

use super::TrainError;

/// A sequence of tokens, and which of them are to be learnt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The tokens, including a BOS if the model wants one.
    pub tokens: Vec<u32>,
    /// For each token, whether its log-probability counts. Always false for the first, which
    /// nothing precedes.
    pub counts: Vec<bool>,
}

impl Sample {
    /// The number of tokens that count.
    pub fn counted(&self) -> usize {
        self.counts.iter().filter(|&&counts| counts).count()
    }
}

/// A sparse target distribution for a token: the possible tokens without duplicates, with their
/// probabilities, which add up to 1.
pub type Target = Vec<(u32, f32)>;

/// Sequences that are computed together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The sequences; none depends on another.
    pub sequences: Vec<Sample>,
}

/// A frozen model with an adapter that is being trained.
///
/// On one machine with a fixed number of threads, its results for a batch must depend on
/// nothing but the batch and the values of its variables, to the last bit: otherwise an
/// interrupted run could not be resumed exactly.
pub trait Student {
    /// A and B of every adapted linear layer by PEFT's names, such as
    /// `model.layers.0.self_attn.q_proj.lora_A.weight`, in a fixed order. All are f32.
    fn variables(&self) -> &[(String, Var)];

    /// The log-probabilities of all tokens that count, sample by sample, in order: `[n]`,
    /// differentiable.
    ///
    /// # Errors
    /// A computation failed.
    fn logprobs(&self, batch: &Batch) -> Result<Tensor, TrainError>;

    /// The prediction of the model without its adapter before each token that counts: a row for
    /// each, from which [`divergences`](Self::divergences) can recompute its logits. (A last
    /// hidden state has a few thousand elements, its logits hundreds of thousands.) Not
    /// differentiable.
    ///
    /// # Errors
    /// A computation failed.
    fn unadapted(&self, batch: &Batch) -> Result<Tensor, TrainError>;

    /// KL(teacher ‖ student) over the whole vocabulary before each token that counts, in nats:
    /// `[n]`, differentiable. `teacher` has the corresponding rows of
    /// [`unadapted`](Self::unadapted).
    ///
    /// # Errors
    /// A computation failed.
    fn divergences(&self, batch: &Batch, teacher: &Tensor) -> Result<Tensor, TrainError>;

    /// KL(target ‖ student) before each token that counts, in nats: `[n]`, differentiable.
    /// `targets` has one target for each.
    ///
    /// # Errors
    /// A computation failed.
    fn sparse_divergences(&self, batch: &Batch, targets: &[&Target]) -> Result<Tensor, TrainError>;

    /// The same student without gradients: its results need not be differentiable, which is
    /// cheaper.
    fn without_gradients(&self) -> Box<dyn Student + '_>;

    /// Writes the current adapter into `folder`, which exists and is empty, as a PEFT
    /// directory.
    ///
    /// # Errors
    /// A file cannot be written.
    fn save(&self, folder: &Path) -> Result<(), TrainError>;
}

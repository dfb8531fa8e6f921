//! What is trained, as far as training needs to know it.

use std::path::Path;

use candle_core::{Tensor, Var};

use super::TrainError;

/// A sequence of tokens, and which of them are to be learnt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The tokens, a BOS included where the model wants one.
    pub tokens: Vec<u32>,
    /// One for each token: whether its log-probability counts. Never the first one's,
    /// which nothing precedes.
    pub counts: Vec<bool>,
}

impl Sample {
    /// How many of its tokens count.
    pub fn counted(&self) -> usize {
        self.counts.iter().filter(|&&counts| counts).count()
    }
}

/// What a token should be where only few tokens are possible: these tokens, none of them
/// twice, with their probabilities, which add up to 1.
pub type Target = Vec<(u32, f32)>;

/// Sequences that are computed together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The sequences; none depends on another.
    pub sequences: Vec<Sample>,
}

/// A frozen model with an adapter that is being trained.
///
/// On one machine, with as many threads, what it gives for a batch must not depend on
/// anything but the batch and the values of its variables, to the last bit: only then can a
/// run that was cut off be taken up again.
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

    /// What the model without its adapter knows before each token that counts: a row for
    /// each, from which [`divergences`](Self::divergences) can make its logits again.
    /// (Its last hidden states are a few thousand numbers, its logits hundreds of
    /// thousands.) Not differentiable.
    ///
    /// # Errors
    /// A computation failed.
    fn unadapted(&self, batch: &Batch) -> Result<Tensor, TrainError>;

    /// KL(teacher ‖ student) over the whole vocabulary before each token that counts, in
    /// nats: `[n]`, differentiable. `teacher` has a row of what
    /// [`unadapted`](Self::unadapted) gave for each.
    ///
    /// # Errors
    /// A computation failed.
    fn divergences(&self, batch: &Batch, teacher: &Tensor) -> Result<Tensor, TrainError>;

    /// KL(target ‖ student) before each token that counts, in nats: `[n]`, differentiable.
    /// There is a target for each.
    ///
    /// # Errors
    /// A computation failed.
    fn sparse_divergences(&self, batch: &Batch, targets: &[&Target]) -> Result<Tensor, TrainError>;

    /// The same student for whoever only looks: what it gives need not be differentiable,
    /// which is cheaper.
    fn observed(&self) -> Box<dyn Student + '_>;

    /// Writes the adapter as it is now into `folder`, which exists and is empty, as a
    /// PEFT directory.
    ///
    /// # Errors
    /// A file cannot be written.
    fn save(&self, folder: &Path) -> Result<(), TrainError>;
}

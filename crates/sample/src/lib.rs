//! Sampling: from logits to a token, and log-probabilities.
//!
//! A row of logits passes through the following chain:
//!
//! 1. repetition penalty, frequency and presence penalty, DRY (a penalty on the continuation of
//!    repetitions, see [`DryParams`]), logit bias; tokens that must not be chosen (see
//!    [`Limits`]) are ruled out;
//! 2. temperature: 0 takes the most likely token (greedy decoding) and ends here;
//! 3. top-n-sigma (which is independent of the temperature), top-k, typical-p, top-p (nucleus),
//!    min-p;
//! 4. XTC, with its own probability;
//! 5. the draw, from the random stream of the sequence.
//!
//! Steps that are off cost nothing and use no random number.
//!
//! If several arms choose together (see [`Mixture`]), the bias is added to the first arm's row,
//! and tokens that must not be chosen are ruled out of it; then the rows are mixed; then the
//! penalties and the rest follow.
//!
//! The order of likelihood is by logit, ties by the lower id, so that each result is a function
//! of the row alone. NaN is treated like −∞, and such tokens are never chosen. The result is
//! exact, equal to that of a full sort in double precision, but the vocabulary is never sorted.
//!
//! This crate does not know where a row of logits comes from: it knows no model and no text.
#![forbid(unsafe_code)]

mod blocks;
mod divergence;
mod dry;
mod edits;
mod limits;
mod logprobs;
mod mixture;
mod random;
mod rank;
mod truncation;
mod xtc;

#[cfg(test)]
mod properties;

pub use divergence::{Divergence, divergence};
pub use dry::{Breakers, DryParams};
pub use limits::Limits;
pub use logprobs::{LogSoftmax, logprobs, rank};
pub use mixture::{DEFAULT_PLAUSIBILITY, MAX_WEIGHT, Mixture, plausible};
pub use random::fresh_seed;

use blocks::{Blocks, Scale};
use edits::Edits;
use random::RandomStream;
use rank::Ranked;
use truncation::Truncation;
use xtc::Xtc;

/// The sampling parameters. The defaults are OpenAI's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// The temperature; 0 always takes the most likely token.
    pub temperature: f32,
    /// Top-p: the nucleus mass in `[0, 1]`; 0 keeps only the most likely token.
    pub top_p: f32,
    /// Top-k: keeps the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Min-p: keeps tokens at least this likely relative to the most likely one.
    pub min_p: f32,
    /// Subtracted once from the logit of each token that was generated before.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time it was generated before.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens seen before; 1 is off.
    pub repetition_penalty: f32,
    /// Whether `repetition_penalty` applies to the prompt's tokens too.
    pub penalize_prompt: bool,
    /// DRY: the penalty on tokens that would continue a repetition. Boxed because it is off in
    /// most requests.
    pub dry: Box<DryParams>,
    /// Top-n-sigma: keeps tokens whose logit is at most this number of standard deviations
    /// below the largest; values up to 0 keep all.
    pub top_n_sigma: f32,
    /// Typical-p: the mass in `[0, 1]` of the kept tokens, those whose surprise is nearest the
    /// expected one; 1 keeps all.
    pub typical_p: f32,
    /// The probability with which XTC removes all tokens that reach `xtc_threshold`, except the
    /// least likely of them, 0 to 1; 0 is off.
    pub xtc_probability: f32,
    /// The probability from which XTC considers a token a top choice; above 0.5 XTC is off.
    pub xtc_threshold: f32,
    /// Added to the logits of the named tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The tokens that may be chosen at all. Boxed because most requests allow all.
    pub limits: Box<Limits>,
    /// The seed of the random stream; without one, a random seed is used.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            penalize_prompt: false,
            dry: Box::default(),
            top_n_sigma: -1.0,
            typical_p: 1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            logit_bias: Vec::new(),
            limits: Box::default(),
            seed: None,
        }
    }
}

/// The log-probabilities at one position: log-softmax of the raw logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The log-probability of the chosen token.
    pub chosen: f32,
    /// The 1-based rank of the chosen token by likelihood, ties by the lower id.
    pub rank: usize,
    /// The most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// The reasons why no token could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The row is empty, or has no logit above −∞: the model's computation has failed, or the
    /// bias has banned everything.
    #[error("no token can be chosen: every logit is NaN or minus infinity")]
    NothingToChoose,
    /// The row is valid, but [`Limits`] rule out all tokens.
    #[error("no token can be chosen: none is allowed here")]
    NothingAllowed,
}

/// Chooses the tokens of one sequence.
///
/// ```
/// use incant_sample::{Sampler, SamplingParams};
///
/// let mut sampler = Sampler::new(&SamplingParams::default(), 7, 0, &[]);
/// let mut logits = [0.0, 2.0, 1.0];
/// let id = sampler.sample(&mut logits)?;
/// sampler.accept(id);
/// # Ok::<(), incant_sample::SampleError>(())
/// ```
#[derive(Debug)]
pub struct Sampler {
    temperature: f32,
    truncation: Truncation,
    xtc: Xtc,
    edits: Edits,
    random: RandomStream,
    blocks: Blocks,
    kept: Vec<Ranked>,
}

impl Sampler {
    /// Creates a sampler for answer number `stream` of a request.
    ///
    /// The answers of one request share its `seed` (`params.seed`, or [`fresh_seed`] if that is
    /// `None`, which is up to the caller) and differ by `stream`. `prompt` holds the client's
    /// own tokens, without those of a constant prompt before them. DRY uses it, and so does the
    /// repetition penalty if `params.penalize_prompt` is set.
    ///
    /// The same parameters, seed, stream and rows give the same tokens, in this release and in
    /// later ones. Values are not validated; refusing those out of range is the responsibility
    /// of the API layer.
    pub fn new(params: &SamplingParams, seed: u64, stream: u64, prompt: &[u32]) -> Sampler {
        Sampler {
            temperature: params.temperature,
            truncation: Truncation::new(params.top_k, params.top_p, params.min_p)
                .with_top_n_sigma(params.top_n_sigma)
                .with_typical_p(params.typical_p),
            xtc: Xtc::new(params.xtc_probability, params.xtc_threshold),
            edits: Edits::new(params, prompt),
            random: RandomStream::new(seed, stream),
            blocks: Blocks::default(),
            kept: Vec::new(),
        }
    }

    /// Chooses a token from a row of raw logits, one per token of the vocabulary.
    ///
    /// The row is edited temporarily and has its original values on return. The token is not
    /// counted as generated: [`Sampler::accept`] does that, also for tokens chosen in other
    /// ways. One random number is used, two if XTC is on, none if the choice is deterministic:
    /// at temperature 0, and for a row with a logit of +∞, whose first such token is chosen.
    ///
    /// # Errors
    /// [`SampleError::NothingToChoose`] if every logit is NaN or −∞, and
    /// [`SampleError::NothingAllowed`] if only the limits have caused this.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SampleError> {
        self.edits.apply(logits);
        let chosen = self.choose(logits);
        self.edits.revert(logits);
        chosen.ok_or_else(|| self.nothing(logits))
    }

    /// Returns the reason why no token could be chosen from a row.
    fn nothing(&mut self, logits: &[f32]) -> SampleError {
        let is_sound = self.blocks.survey(logits) > f32::NEG_INFINITY;
        if self.edits.has_limits() && is_sound {
            SampleError::NothingAllowed
        } else {
            SampleError::NothingToChoose
        }
    }

    /// Adds the bias to a row and rules out tokens that must not be chosen, before the row is
    /// mixed with others; [`Sampler::unbias`] reverts this.
    pub fn bias(&mut self, logits: &mut [f32]) {
        self.edits.bias(logits);
    }

    /// Restores the original values of a row that [`Sampler::bias`] has edited, bit for bit.
    pub fn unbias(&mut self, logits: &mut [f32]) {
        self.edits.revert(logits);
    }

    /// Like [`Sampler::sample`], from a mixture of rows, the first of which had its bias:
    /// applies the penalties and the rest of the chain.
    ///
    /// # Errors
    /// [`SampleError::NothingToChoose`] if every score is NaN or −∞, and
    /// [`SampleError::NothingAllowed`] if there are limits, which are the likely cause.
    pub fn sample_mixture(&mut self, mixture: &Mixture) -> Result<u32, SampleError> {
        let mut scores = mixture.scores().to_vec();
        self.edits.penalize(mixture.ids(), &mut scores);
        let chosen = self.choose(&scores);
        let chosen = chosen.ok_or(if self.edits.has_limits() {
            SampleError::NothingAllowed
        } else {
            SampleError::NothingToChoose
        })?;
        Ok(mixture.ids().map_or(chosen, |ids| ids[chosen as usize]))
    }

    /// Counts `id` as generated, for the penalties of the following tokens.
    pub fn accept(&mut self, id: u32) {
        self.edits.count(id);
    }

    /// Chooses from the edited row; `None` if no logit is above −∞.
    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let largest = self.blocks.survey(logits);
        if largest == f32::NEG_INFINITY {
            return None;
        }
        // With a logit of +∞ the choice is as certain as at temperature 0.
        let greedy = self.temperature.is_nan() || self.temperature <= 0.0;
        if greedy || largest == f32::INFINITY {
            return self.blocks.first(logits, largest);
        }
        let scale = Scale::new(largest, self.temperature);
        if self.truncation.keeps_all(logits.len()) {
            let mut mass = self.blocks.weigh(logits, scale);
            if self.xtc.strikes(&mut self.random) {
                let blocks = &mut self.blocks;
                mass = self
                    .xtc
                    .leave_out(logits, scale, mass, blocks, &mut self.kept);
            }
            let target = self.random.uniform() * mass;
            self.blocks.at_mass(logits, scale, target)
        } else {
            let mut mass = self
                .truncation
                .keep(logits, scale, &mut self.blocks, &mut self.kept);
            if self.xtc.strikes(&mut self.random) {
                mass = self.xtc.cut(&mut self.kept, scale, mass);
            }
            let target = self.random.uniform() * mass;
            let mut passed = 0.0;
            let drawn = self.kept.iter().find(|token| {
                passed += scale.weight(token.logit());
                passed > target
            });
            // The target is below the mass, which is the same sum in the same order.
            drawn.map(|token| token.id())
        }
    }
}

//! From logits to a token: the sampling chain and log-probabilities.
//!
//! A row of logits passes, in this order,
//!
//! 1. the repetition penalty, the frequency and the presence penalty, DRY (a penalty on
//!    what continues a repetition, see [`DryParams`]), the bias; what must not be chosen
//!    (see [`Limits`]) is ruled out;
//! 2. the temperature: 0 takes the most likely token and ends here;
//! 3. top-n-sigma (which no temperature changes), top-k, typical-p, top-p, min-p;
//! 4. XTC, with its own probability;
//! 5. the draw, by the sequence's own random stream.
//!
//! What is off costs nothing and uses no random number.
//!
//! Where several arms choose together (see [`Mixture`]), the bias is added to the first
//! arm's row, and what must not be chosen is ruled out of it; then the rows are mixed, then come the penalties and the rest.
//!
//! Whatever is decided by likelihood is decided by the logit and among equals by
//! the lower id, so that each result is a function of the row alone. NaN counts as
//! −∞, and such tokens are never chosen. The result is exact, that of the full sort
//! in double precision, but nothing sorts the vocabulary.

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
pub use mixture::{MOST_WEIGHT, Mixture, PLAUSIBLE, plausible};
pub use random::fresh_seed;

use blocks::{Blocks, Scale};
use edits::Edits;
use random::RandomStream;
use rank::Ranked;
use truncation::Truncation;
use xtc::Xtc;

/// How a token is chosen. The defaults are OpenAI's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 takes the most likely token, always.
    pub temperature: f32,
    /// Nucleus mass in `[0, 1]`; 0 keeps only the top token.
    pub top_p: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep tokens at least this likely relative to the most likely one.
    pub min_p: f32,
    /// Subtracted once from each token that was generated before.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was generated before.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of seen tokens; 1 is off.
    pub repetition_penalty: f32,
    /// Whether `repetition_penalty` counts the prompt's tokens too.
    pub penalize_prompt: bool,
    /// The penalty on tokens that would continue a repetition. Boxed, since it is off in
    /// most requests.
    pub dry: Box<DryParams>,
    /// Keep tokens whose logit is at most this many standard deviations below the
    /// largest; 0 and below keep all.
    pub top_n_sigma: f32,
    /// The mass in `[0, 1]` of the tokens whose surprise is nearest the expected one
    /// that are kept; 1 keeps all.
    pub typical_p: f32,
    /// How often XTC removes all tokens that reach `xtc_threshold` but the least likely
    /// of them, 0 to 1; 0 is off.
    pub xtc_probability: f32,
    /// The probability that marks a token as a top choice; above 0.5 XTC is off.
    pub xtc_threshold: f32,
    /// Added to the logits of the named tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Which tokens may be chosen at all. Boxed, since most requests allow all.
    pub limits: Box<Limits>,
    /// The seed of the random stream; `None` draws one.
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

/// Log-probabilities at one position: log-softmax of the raw logits.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// That of the chosen token.
    pub chosen: f32,
    /// The 1-based place of the chosen token by likelihood, ties by the lower id.
    pub rank: usize,
    /// The most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why no token could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The row is empty, or nothing in it is above −∞: the model's computation has
    /// failed, or the bias has banned everything.
    #[error("no token can be chosen: every logit is NaN or minus infinity")]
    NothingToChoose,
    /// The row is sound, but [`Limits`] rule out all of it.
    #[error("no token can be chosen: none is allowed here")]
    NothingAllowed,
}

/// Chooses the tokens of one sequence.
///
/// ```
/// use incant::sample::{Sampler, SamplingParams};
///
/// let mut sampler = Sampler::new(&SamplingParams::default(), 7, 0, &[]);
/// let mut logits = [0.0, 2.0, 1.0];
/// let id = sampler.sample(&mut logits)?;
/// sampler.accept(id);
/// # Ok::<(), incant::sample::SampleError>(())
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
    /// A sampler for answer number `stream` of a request.
    ///
    /// The answers of one request share its `seed` (`params.seed`, or
    /// [`fresh_seed`] where that is `None`: this is the caller's to decide) and
    /// differ by `stream`. `prompt` holds the client's own tokens, without those of a
    /// constant prompt before them. It is read by DRY, and by the repetition penalty if
    /// `params.penalize_prompt` is set.
    ///
    /// The same parameters, seed, stream and rows give the same tokens, in this
    /// release and in later ones. The values are taken as they are; refusing those
    /// out of range is for whoever speaks to the client.
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
    /// The row is edited while it runs and has all its values back when it returns.
    /// The token is not counted as generated: [`Sampler::accept`] does that, also
    /// for tokens that were chosen in another way. One random number is used, two where
    /// XTC is on, none where nothing is left to chance: at temperature 0, and for a row
    /// with a logit of +∞, whose first such token is taken.
    ///
    /// # Errors
    /// [`SampleError::NothingToChoose`] if every logit is NaN or −∞, and
    /// [`SampleError::NothingAllowed`] if the limits alone have made it so.
    pub fn sample(&mut self, logits: &mut [f32]) -> Result<u32, SampleError> {
        self.edits.apply(logits);
        let chosen = self.choose(logits);
        self.edits.take_back(logits);
        chosen.ok_or_else(|| self.nothing(logits))
    }

    /// Why nothing could be chosen from a row.
    fn nothing(&mut self, logits: &[f32]) -> SampleError {
        let is_sound = self.blocks.survey(logits) > f32::NEG_INFINITY;
        match self.edits.has_limits() && is_sound {
            true => SampleError::NothingAllowed,
            false => SampleError::NothingToChoose,
        }
    }

    /// Adds the bias to a row and rules out what must not be chosen, before it is mixed with
    /// others; [`Sampler::unbias`] takes that back.
    pub fn bias(&mut self, logits: &mut [f32]) {
        self.edits.bias(logits);
    }

    /// Gives a row that [`Sampler::bias`] has edited its values back, to the bit.
    pub fn unbias(&mut self, logits: &mut [f32]) {
        self.edits.take_back(logits);
    }

    /// [`Sampler::sample`] from a mixture of rows, of which the first had its bias: what
    /// is left of the chain is the penalties and all that comes after them.
    ///
    /// # Errors
    /// [`SampleError::NothingToChoose`] if every score is NaN or −∞, and
    /// [`SampleError::NothingAllowed`] if there are limits, which are likely to be why.
    pub fn sample_mixture(&mut self, mixture: &Mixture) -> Result<u32, SampleError> {
        let mut scores = mixture.scores().to_vec();
        self.edits.penalize(mixture.ids(), &mut scores);
        let chosen = self.choose(&scores);
        let chosen = chosen.ok_or(match self.edits.has_limits() {
            true => SampleError::NothingAllowed,
            false => SampleError::NothingToChoose,
        })?;
        Ok(mixture.ids().map_or(chosen, |ids| ids[chosen as usize]))
    }

    /// Counts `id` as generated, for the penalties of the tokens that follow.
    pub fn accept(&mut self, id: u32) {
        self.edits.count(id);
    }

    /// Chooses from the edited row; `None` if there is nothing above −∞.
    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let largest = self.blocks.survey(logits);
        if largest == f32::NEG_INFINITY {
            return None;
        }
        // A logit of +∞ is as certain as a temperature of 0 makes the largest.
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

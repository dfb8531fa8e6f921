//! DRY's sequence breakers: texts for people, token ids for the sampler.

use std::sync::Arc;

use super::Arm;
use incant_prompt::text::Tokenizer;
use incant_sample::{Breakers, DryParams, SamplingParams};

/// The sequence breakers `texts`, or the usual ones, as this tokenizer writes them. The
/// whole vocabulary is read for a list that is new to the tokenizer, so this is for
/// requests where DRY is on.
pub fn breakers(tokenizer: &Tokenizer, texts: Option<&[String]>) -> Arc<Breakers> {
    let usual = || DryParams::DEFAULT_BREAKERS.map(str::to_owned).to_vec();
    let texts = texts.map_or_else(usual, <[String]>::to_vec);
    let occurrences = tokenizer.occurrences(&texts);
    let patterns = occurrences.iter();
    let patterns = patterns.map(|occurrence| (&occurrence.heads[..], &occurrence.tail[..]));
    Arc::new(Breakers::new(patterns))
}

impl Arm {
    /// How chat answers are sampled where the client does not say, sequence breakers
    /// included.
    pub fn sampling(&self) -> SamplingParams {
        let defaults = self.defaults();
        let mut sampling = defaults.sampling();
        if sampling.dry.is_on() {
            let texts = defaults.dry_sequence_breakers.as_deref();
            sampling.dry.breakers = breakers(self.tokenizer(), texts);
        }
        sampling
    }
}

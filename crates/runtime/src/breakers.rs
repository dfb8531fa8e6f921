//! DRY's sequence breakers: converts texts to token ids for the sampler.

use std::sync::Arc;

use super::Arm;
use incant_prompt::text::Tokenizer;
use incant_sample::{Breakers, DryParams, SamplingParams};

/// Returns the sequence breakers `texts`, or the default ones, for this tokenizer. A list that is
/// new to the tokenizer is searched in the whole vocabulary, so call this only for requests with
/// DRY.
pub fn breakers(tokenizer: &Tokenizer, texts: Option<&[String]>) -> Arc<Breakers> {
    let usual = || DryParams::DEFAULT_BREAKERS.map(str::to_owned).to_vec();
    let texts = texts.map_or_else(usual, <[String]>::to_vec);
    let occurrences = tokenizer.occurrences(&texts);
    let patterns = occurrences.iter();
    let patterns = patterns.map(|occurrence| (&occurrence.heads[..], &occurrence.tail[..]));
    Arc::new(Breakers::new(patterns))
}

impl Arm {
    /// Returns the default sampling of chat answers, including sequence breakers.
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

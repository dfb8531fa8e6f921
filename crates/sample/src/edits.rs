//! Penalties and logit bias: edits of a few logits, which are reverted afterwards.
//!
//! With c the number of times a token was generated, its logit becomes
//!
//! - `l / r` if l > 0, else `l · r`, for a token seen before and the repetition penalty r
//!   (Keskar et al. 2019, with the usual correction for negative logits);
//! - `l − c · frequency − presence` if c > 0 (OpenAI's definition);
//! - less the DRY penalty of a repetition that it would continue (see [`dry`](super::dry));
//! - `l + bias` for a token that the client names; −100 practically bans it and 100 practically
//!   forces it, just by their magnitude;
//! - −∞ for a token that must not be chosen (see [`Limits`](super::Limits)).

use super::SamplingParams;
use super::dry::Dry;
use super::limits::Limited;

/// A token that was seen, and how often it was generated.
#[derive(Clone, Copy, Debug)]
struct Seen {
    id: u32,
    generated: u32,
}

/// The penalties and the bias of one sequence.
#[derive(Clone, Debug)]
pub(super) struct Edits {
    presence: f32,
    frequency: f32,
    repetition: f32,
    bias: Vec<(u32, f32)>,
    /// `None` if DRY is off.
    dry: Option<Dry>,
    /// `None` if all tokens may be chosen.
    limited: Option<Limited>,
    /// Sorted by id. Stays empty if there are no penalties.
    seen: Vec<Seen>,
    /// The original values of the edited logits, in the order of the edits.
    before: Vec<(usize, f32)>,
}

impl Edits {
    /// Creates the edits. `prompt` counts for DRY, and for the repetition penalty if `params`
    /// say so.
    pub(super) fn new(params: &SamplingParams, prompt: &[u32]) -> Edits {
        let mut edits = Edits {
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            repetition: params.repetition_penalty,
            bias: params.logit_bias.clone(),
            dry: Dry::new(&params.dry, prompt),
            limited: Limited::new(&params.limits),
            seen: Vec::new(),
            before: Vec::new(),
        };
        if params.penalize_prompt && edits.repetition != 1.0 {
            let mut ids = prompt.to_vec();
            ids.sort_unstable();
            ids.dedup();
            edits.seen = ids
                .into_iter()
                .map(|id| Seen { id, generated: 0 })
                .collect();
        }
        edits
    }

    /// Counts a generated token.
    pub(super) fn count(&mut self, id: u32) {
        if let Some(dry) = &mut self.dry {
            dry.push(id);
        }
        if let Some(limited) = &mut self.limited {
            limited.count(id);
        }
        if self.presence == 0.0 && self.frequency == 0.0 && self.repetition == 1.0 {
            return;
        }
        match self.seen.binary_search_by_key(&id, |seen| seen.id) {
            Ok(at) => self.seen[at].generated += 1,
            Err(at) => self.seen.insert(at, Seen { id, generated: 1 }),
        }
    }

    /// Edits a row. Ids beyond its end are ignored.
    pub(super) fn apply(&mut self, logits: &mut [f32]) {
        self.before.clear();
        for &seen in &self.seen {
            let at = seen.id as usize;
            if let Some(logit) = logits.get_mut(at) {
                self.before.push((at, *logit));
                *logit = self.penalized(seen, *logit);
            }
        }
        for &(id, penalty) in self.dry.iter().flat_map(Dry::penalties) {
            let at = id as usize;
            if let Some(logit) = logits.get_mut(at) {
                self.before.push((at, *logit));
                *logit -= penalty;
            }
        }
        self.add_bias(logits);
    }

    /// Whether some tokens must not be chosen.
    pub(super) fn has_limits(&self) -> bool {
        self.limited.is_some()
    }

    /// Edits a row only by the bias and the limits.
    pub(super) fn bias(&mut self, logits: &mut [f32]) {
        self.before.clear();
        self.add_bias(logits);
    }

    fn add_bias(&mut self, logits: &mut [f32]) {
        for &(id, bias) in &self.bias {
            let at = id as usize;
            if let Some(logit) = logits.get_mut(at) {
                self.before.push((at, *logit));
                *logit += bias;
            }
        }
        if let Some(limited) = &self.limited {
            let before = &mut self.before;
            limited.apply(logits.len(), |at| {
                if let Some(logit) = logits.get_mut(at) {
                    before.push((at, *logit));
                    *logit = f32::NEG_INFINITY;
                }
            });
        }
    }

    /// Edits the scores of the tokens `ids`, in their order, or of all tokens, only by the
    /// penalties. These edits are not reverted.
    pub(super) fn penalize(&self, ids: Option<&[u32]>, scores: &mut [f32]) {
        let place = |id: u32| match ids {
            Some(ids) => ids.binary_search(&id).ok(),
            None => Some(id as usize),
        };
        for &seen in &self.seen {
            if let Some(score) = place(seen.id).and_then(|at| scores.get_mut(at)) {
                *score = self.penalized(seen, *score);
            }
        }
        for &(id, penalty) in self.dry.iter().flat_map(Dry::penalties) {
            if let Some(score) = place(id).and_then(|at| scores.get_mut(at)) {
                *score -= penalty;
            }
        }
    }

    fn penalized(&self, seen: Seen, mut logit: f32) -> f32 {
        if self.repetition != 1.0 {
            logit = if logit > 0.0 {
                logit / self.repetition
            } else {
                logit * self.repetition
            };
        }
        if seen.generated > 0 {
            logit -= seen.generated as f32 * self.frequency;
            logit -= self.presence;
        }
        logit
    }

    /// Restores the original values of an edited row, bit for bit.
    pub(super) fn revert(&mut self, logits: &mut [f32]) {
        // The last edit is reverted first, because a token may have been edited twice.
        for (at, logit) in self.before.drain(..).rev() {
            logits[at] = logit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DryParams;

    fn edited(params: &SamplingParams, prompt: &[u32], generated: &[u32]) -> Vec<f32> {
        let mut edits = Edits::new(params, prompt);
        for &id in generated {
            edits.count(id);
        }
        let original = [2.0, -2.0, 0.0, 1.0, f32::NEG_INFINITY];
        let mut logits = original;
        edits.apply(&mut logits);
        let result = logits.to_vec();
        edits.revert(&mut logits);
        assert_eq!(logits, original);
        result
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time() {
        let params = SamplingParams {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            ..SamplingParams::default()
        };
        assert_eq!(
            edited(&params, &[3], &[0, 1, 0, 0]),
            [0.75, -2.75, 0.0, 1.0, f32::NEG_INFINITY]
        );
    }

    #[test]
    fn negative_penalties_encourage() {
        let params = SamplingParams {
            presence_penalty: -2.0,
            frequency_penalty: -1.0,
            ..SamplingParams::default()
        };
        assert_eq!(
            edited(&params, &[], &[2, 2]),
            [2.0, -2.0, 4.0, 1.0, f32::NEG_INFINITY]
        );
    }

    #[test]
    fn repetition_divides_positive_and_multiplies_negative_logits() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            ..SamplingParams::default()
        };
        assert_eq!(
            edited(&params, &[3], &[0, 1, 1, 4]),
            [1.0, -4.0, 0.0, 1.0, f32::NEG_INFINITY]
        );
    }

    #[test]
    fn repetition_counts_the_prompt_if_asked_to() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            presence_penalty: 0.25,
            penalize_prompt: true,
            ..SamplingParams::default()
        };
        // The presence penalty applies only to generated tokens.
        assert_eq!(
            edited(&params, &[3, 0, 3, 77], &[1]),
            [1.0, -4.25, 0.0, 0.5, f32::NEG_INFINITY]
        );
    }

    /// DRY parameters that penalize repetitions of at least one token: by 1 for one token, by 3
    /// for two.
    fn dry() -> SamplingParams {
        SamplingParams {
            dry: Box::new(DryParams {
                multiplier: 1.0,
                base: 3.0,
                allowed_length: 1,
                ..DryParams::default()
            }),
            ..SamplingParams::default()
        }
    }

    #[test]
    fn dry_reads_the_prompt_and_comes_between_presence_and_bias() {
        let params = SamplingParams {
            presence_penalty: 0.5,
            logit_bias: vec![(3, 10.0)],
            ..dry()
        };
        // After 0 1 once came 3, after another 1 came 0.
        assert_eq!(
            edited(&params, &[0, 1, 3, 2, 1, 0], &[1]),
            [1.0, -2.5, 0.0, 8.0, f32::NEG_INFINITY]
        );
    }

    #[test]
    fn dry_finds_its_tokens_among_those_of_a_mixture() {
        let edits = Edits::new(&dry(), &[7, 8, 5, 7, 8]);
        let mut some = [1.0, 1.0, 1.0];
        edits.penalize(Some(&[4, 5, 9]), &mut some);
        assert_eq!(some, [1.0, -2.0, 1.0]);
        let mut all = [1.0; 6];
        edits.penalize(None, &mut all);
        assert_eq!(all, [1.0, 1.0, 1.0, 1.0, 1.0, -2.0]);
    }

    #[test]
    fn bias_is_added_after_the_penalties() {
        let params = SamplingParams {
            repetition_penalty: 2.0,
            logit_bias: vec![(0, 5.0), (3, -100.0), (99, 1.0)],
            ..SamplingParams::default()
        };
        assert_eq!(
            edited(&params, &[], &[0]),
            [6.0, -2.0, 0.0, -99.0, f32::NEG_INFINITY]
        );
    }

    #[test]
    fn no_bias_brings_back_what_must_not_be_chosen() {
        let params = SamplingParams {
            logit_bias: vec![(0, 100.0), (1, 100.0)],
            limits: Box::new(crate::Limits {
                allowed: Some([1, 2].into()),
                banned: [vec![2]].into(),
                ..Default::default()
            }),
            ..SamplingParams::default()
        };
        let out = f32::NEG_INFINITY;
        assert_eq!(edited(&params, &[], &[]), [out, 98.0, out, out, out]);
    }
}

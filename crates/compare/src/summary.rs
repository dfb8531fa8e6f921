//! Shares and means over the tokens of many answers.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap::intervals;
use super::{Answer, Prompt, Score, ShiftClass, Token};

#[cfg(test)]
mod tests;

/// The maximum number of most shifted tokens to list.
const MAX_MOST_SHIFTED: usize = 20;

/// A summary of all tokens' scores. It is over the answers of temperature 0 if there are any,
/// otherwise over those of the first temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparisonSummary")]
pub struct Summary {
    /// Every pair of arms of which one has scored the other's answers.
    pub pairs: Vec<Pair>,
    /// The parts of the shift from the reference that third arms account for.
    pub removed: Vec<Removed>,
}

/// The answers of one arm as scored by another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedPair")]
pub struct Pair {
    /// The arm that answered.
    pub arm: usize,
    /// The arm that scored.
    pub under: usize,
    /// The number of scored tokens, over all prompts.
    pub tokens: usize,
    /// The share of tokens in each class.
    pub shares: Shares,
    /// The mean over tokens of KL(`arm` ‖ `under`), in nats.
    pub kl: f64,
    /// The mean over tokens of KL(`under` ‖ `arm`).
    pub kl_reverse: f64,
    /// The mean log-probability of a token under `under`.
    pub logprob: f64,
    /// The mean log-probability of a token under `arm`.
    pub own_logprob: f64,
    /// Confidence intervals; null with a single prompt.
    pub interval: Option<Interval>,
    /// The same numbers by position in the answer.
    pub positions: Vec<Position>,
    /// The tokens that were shifted most often, at most 20: by that count, then by their mean
    /// `kl`.
    pub most_shifted: Vec<MostShifted>,
}

/// Shares of tokens by class; they sum to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ShiftShares")]
pub struct Shares {
    /// Of rank 1.
    pub unshifted: f64,
    /// Of rank 2 or 3.
    pub marginal: f64,
    /// Of a rank above 3.
    pub shifted: f64,
}

/// 95% confidence intervals, `[low, high]`, by bootstrap over prompts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedInterval")]
pub struct Interval {
    /// The number of prompts that were resampled.
    pub prompts: usize,
    /// Of the share of unshifted tokens.
    pub unshifted: [f64; 2],
    /// Of the share of marginal tokens.
    pub marginal: [f64; 2],
    /// Of the share of shifted tokens.
    pub shifted: [f64; 2],
    /// Of the mean `kl`.
    pub kl: [f64; 2],
    /// Of the mean `kl_reverse`.
    pub kl_reverse: [f64; 2],
}

/// The tokens at one position of all answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ComparedPosition")]
pub struct Position {
    /// The position, counted from 0.
    pub position: usize,
    /// The number of answers that are longer than that.
    pub tokens: usize,
    /// Shares by class.
    #[serde(flatten)]
    pub shares: Shares,
    /// The mean of KL(`arm` ‖ `under`), in nats.
    pub kl: f64,
    /// The mean of KL(`under` ‖ `arm`).
    pub kl_reverse: f64,
    /// The mean probability of the token under `under`.
    pub probability: f64,
}

/// A token, over all positions where it was generated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "MostShiftedToken")]
pub struct MostShifted {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Its text, as in an answer.
    pub token: String,
    /// How often it was generated.
    pub count: usize,
    /// How often it was shifted: at least once.
    pub shifted: usize,
    /// Its mean rank under `under`.
    pub rank: f64,
    /// The mean of KL(`arm` ‖ `under`) where it was generated.
    pub kl: f64,
}

/// The part of the shift from the reference to one arm that another arm accounts for by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "RemovedShift")]
pub struct Removed {
    /// The arm that answered.
    pub arm: usize,
    /// The arm that the shift is measured against.
    pub reference: usize,
    /// The arm that accounts for a part of it.
    pub by: usize,
    /// Tokens of `arm` that are shifted under `reference`.
    pub shifted: usize,
    /// Tokens among these that are shifted under `by`, too.
    pub remaining: usize,
    /// 1 − remaining / shifted; null if nothing is shifted.
    pub share: Option<f64>,
    /// 1 − mean KL(arm ‖ by) / mean KL(arm ‖ reference); null if the latter is 0.
    pub kl_share: Option<f64>,
    /// The 95% confidence interval of `share`, by bootstrap over prompts.
    pub interval: Option<[f64; 2]>,
}

/// Summarises the scores of `arms` arms. The shift that third arms account for is measured
/// against `reference`.
pub fn summary(arms: usize, reference: usize, prompts: &[Prompt]) -> Summary {
    let Some(temperature) = summary_temperature(prompts) else {
        return Summary {
            pairs: Vec::new(),
            removed: Vec::new(),
        };
    };
    let tokens_of = |arm: usize| -> Vec<Vec<(usize, &Token)>> {
        let of = |answer: &&Answer| answer.arm == arm && answer.temperature == temperature;
        prompts
            .iter()
            .map(|prompt| {
                let answers = prompt.answers.iter().filter(of);
                let tokens = answers.flat_map(|answer| answer.tokens.iter().flatten().enumerate());
                tokens.collect()
            })
            .collect()
    };
    let (mut pairs, mut removed) = (Vec::new(), Vec::new());
    for arm in 0..arms {
        let tokens = tokens_of(arm);
        let others = || (0..arms).filter(move |&other| other != arm);
        pairs.extend(others().filter_map(|under| pair(arm, under, &tokens)));
        if arm != reference {
            let third = others().filter(|&by| by != reference);
            removed.extend(third.filter_map(|by| removed_by(arm, reference, by, &tokens)));
        }
    }
    Summary { pairs, removed }
}

/// The temperature whose answers are summarised.
fn summary_temperature(prompts: &[Prompt]) -> Option<f32> {
    let answers = || prompts.iter().flat_map(|prompt| &prompt.answers);
    let temperatures = || answers().map(|answer| answer.temperature);
    temperatures().find(|&t| t == 0.0).or(temperatures().next())
}

/// Sums over tokens, from which shares and means are computed.
#[derive(Clone, Copy, Default)]
struct Sums {
    tokens: usize,
    unshifted: usize,
    marginal: usize,
    shifted: usize,
    rank: f64,
    kl: f64,
    kl_reverse: f64,
    logprob: f64,
    own_logprob: f64,
    probability: f64,
}

impl Sums {
    fn add(&mut self, token: &Token, score: &Score) {
        self.tokens += 1;
        match score.class {
            ShiftClass::Unshifted => self.unshifted += 1,
            ShiftClass::Marginal => self.marginal += 1,
            ShiftClass::Shifted => self.shifted += 1,
        }
        self.rank += score.rank as f64;
        self.kl += f64::from(score.kl);
        self.kl_reverse += f64::from(score.kl_reverse);
        self.logprob += f64::from(score.logprob);
        self.own_logprob += f64::from(token.logprob);
        self.probability += f64::from(score.logprob).exp();
    }

    /// The mean over tokens, from a sum.
    fn mean(&self, sum: f64) -> f64 {
        sum / self.tokens as f64
    }

    fn shares(&self) -> Shares {
        Shares {
            unshifted: self.mean(self.unshifted as f64),
            marginal: self.mean(self.marginal as f64),
            shifted: self.mean(self.shifted as f64),
        }
    }

    /// The statistics that have intervals: the shares by class, and both divergences.
    fn statistics(&self) -> [f64; 5] {
        let Shares {
            unshifted,
            marginal,
            shifted,
        } = self.shares();
        let (kl, kl_reverse) = (self.mean(self.kl), self.mean(self.kl_reverse));
        [unshifted, marginal, shifted, kl, kl_reverse]
    }
}

/// The tokens of `arm` as scored by `under`; `None` if it has scored none. `prompts` are the
/// tokens of each prompt with their positions.
fn pair(arm: usize, under: usize, prompts: &[Vec<(usize, &Token)>]) -> Option<Pair> {
    let mut by_prompt = Vec::new();
    let mut by_position: BTreeMap<usize, Sums> = BTreeMap::new();
    let mut by_id: BTreeMap<u32, (Sums, &str)> = BTreeMap::new();
    let mut all = Sums::default();
    for tokens in prompts {
        let mut sums = Sums::default();
        for &(position, token) in tokens {
            let Some(score) = token.score(under) else {
                continue;
            };
            sums.add(token, score);
            all.add(token, score);
            by_position.entry(position).or_default().add(token, score);
            let (of_id, text) = by_id.entry(token.id).or_default();
            of_id.add(token, score);
            // A token whose text was trimmed is empty.
            if text.is_empty() {
                *text = &token.token;
            }
        }
        if sums.tokens > 0 {
            by_prompt.push(sums);
        }
    }
    if all.tokens == 0 {
        return None;
    }
    Some(Pair {
        arm,
        under,
        tokens: all.tokens,
        shares: all.shares(),
        kl: all.mean(all.kl),
        kl_reverse: all.mean(all.kl_reverse),
        logprob: all.mean(all.logprob),
        own_logprob: all.mean(all.own_logprob),
        interval: interval(&by_prompt),
        positions: by_position
            .iter()
            .map(|(&position, sums)| Position {
                position,
                tokens: sums.tokens,
                shares: sums.shares(),
                kl: sums.mean(sums.kl),
                kl_reverse: sums.mean(sums.kl_reverse),
                probability: sums.mean(sums.probability),
            })
            .collect(),
        most_shifted: most_shifted(&by_id),
    })
}

fn interval(prompts: &[Sums]) -> Option<Interval> {
    let bounds = intervals(prompts.len(), |drawn| {
        let mut sums = Sums::default();
        for &at in drawn {
            let prompt = &prompts[at];
            sums.tokens += prompt.tokens;
            sums.unshifted += prompt.unshifted;
            sums.marginal += prompt.marginal;
            sums.shifted += prompt.shifted;
            sums.kl += prompt.kl;
            sums.kl_reverse += prompt.kl_reverse;
        }
        Some(sums.statistics())
    });
    let [unshifted, marginal, shifted, kl, kl_reverse] = bounds?;
    Some(Interval {
        prompts: prompts.len(),
        unshifted,
        marginal,
        shifted,
        kl,
        kl_reverse,
    })
}

fn most_shifted(by_id: &BTreeMap<u32, (Sums, &str)>) -> Vec<MostShifted> {
    let shifted = by_id.iter().filter(|(_, (sums, _))| sums.shifted > 0);
    let mut tokens: Vec<MostShifted> = shifted
        .map(|(&id, (sums, token))| MostShifted {
            id,
            token: (*token).to_owned(),
            count: sums.tokens,
            shifted: sums.shifted,
            rank: sums.mean(sums.rank),
            kl: sums.mean(sums.kl),
        })
        .collect();
    // The sort is stable: among equals, the lower id comes first.
    tokens.sort_by(|a, b| (b.shifted.cmp(&a.shifted)).then(b.kl.total_cmp(&a.kl)));
    tokens.truncate(MAX_MOST_SHIFTED);
    tokens
}

/// The part of the shift from `reference` to `arm` that `by` accounts for; `None` if the two
/// have not both scored the tokens.
fn removed_by(
    arm: usize,
    reference: usize,
    by: usize,
    prompts: &[Vec<(usize, &Token)>],
) -> Option<Removed> {
    // Shifted and remaining tokens of each prompt.
    let mut counts: Vec<(usize, usize)> = Vec::new();
    let (mut kl, mut kl_by) = (0.0, 0.0);
    for tokens in prompts {
        let (mut scored, mut shifted, mut remaining) = (0, 0, 0);
        for (_, token) in tokens {
            let (Some(under), Some(by)) = (token.score(reference), token.score(by)) else {
                continue;
            };
            scored += 1;
            kl += f64::from(under.kl);
            kl_by += f64::from(by.kl);
            if under.class == ShiftClass::Shifted {
                shifted += 1;
                remaining += usize::from(by.class == ShiftClass::Shifted);
            }
        }
        if scored > 0 {
            counts.push((shifted, remaining));
        }
    }
    if counts.is_empty() {
        return None;
    }
    let sums = |places: &[usize]| {
        let counts = places.iter().map(|&at| counts[at]);
        counts.fold((0, 0), |sums, count| (sums.0 + count.0, sums.1 + count.1))
    };
    let share = |(shifted, remaining): (usize, usize)| {
        (shifted > 0).then(|| 1.0 - remaining as f64 / shifted as f64)
    };
    let all: Vec<usize> = (0..counts.len()).collect();
    let interval = intervals(counts.len(), |drawn| {
        share(sums(drawn)).map(|share| [share])
    });
    Some(Removed {
        arm,
        reference,
        by,
        shifted: sums(&all).0,
        remaining: sums(&all).1,
        share: share(sums(&all)),
        // Both means are over the same tokens.
        kl_share: (kl > 0.0).then(|| 1.0 - kl_by / kl),
        interval: interval.map(|[interval]| interval),
    })
}

//! DRY ("don't repeat yourself") sampling: a penalty on the tokens that would continue a
//! repetition.
//!
//! The history is the client's own tokens followed by those of the answer; its last
//! `penalty_last_n` tokens are the window. With
//!
//! - *limit* the number of tokens in the window after the last one at which a breaker ends (all
//!   of them without a breaker), and
//! - *L(i)* the length of the common suffix of the window up to position i and the whole
//!   window, at most *limit*,
//!
//! a token t that follows a position i with L(i) ≥ `allowed_length` loses
//! `multiplier · base^(L − allowed_length)`, where L is the largest such L(i). The exponent is
//! at most ⌊ln(max f32) / ln(base)⌋ and the penalty at most the largest `f32`. A token whose
//! own text contains a breaker is not penalized. These are llama.cpp's rules.
//!
//! A step costs one pass over the window: a new token t changes L(i) to L(i − 1) + 1 if t is at
//! position i, and to 0 otherwise. For a prompt, all L(i) are computed by the Z-function of the
//! reversed tokens.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The natural logarithm of the largest `f32`.
const LN_MAX: f64 = 88.722_839_1;

/// The smallest base for which the exponent is bounded; below it no exponent overflows.
const BOUNDED_BASE: f64 = 1.000_001;

/// The parameters of DRY. The default is off.
#[derive(Clone, Debug, PartialEq)]
pub struct DryParams {
    /// The penalty of a repetition of the allowed length; 0 turns DRY off.
    pub multiplier: f32,
    /// The factor of the penalty for each further token; values below 1 turn DRY off.
    pub base: f32,
    /// The minimum length of penalized repetitions, in tokens.
    pub allowed_length: usize,
    /// The number of last tokens to examine; `None` examines all, 0 turns DRY off.
    pub penalty_last_n: Option<usize>,
    /// The sequence breakers: repetitions do not extend across them.
    pub breakers: Arc<Breakers>,
}

impl DryParams {
    /// The default sequence breakers.
    pub const DEFAULT_BREAKERS: [&str; 4] = ["\n", ":", "\"", "*"];

    /// Whether anything is penalized; otherwise the breakers need not be prepared.
    pub fn is_on(&self) -> bool {
        self.multiplier != 0.0 && self.base >= 1.0 && self.penalty_last_n != Some(0)
    }
}

impl Default for DryParams {
    fn default() -> Self {
        DryParams {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            penalty_last_n: None,
            breakers: Arc::default(),
        }
    }
}

/// Sequence breakers, as token ids.
///
/// A breaker ends at a token if the tokens up to it end with one of its *heads* followed by the
/// *tail* that belongs to these heads. The tail is empty if the text of a single token contains
/// the whole breaker.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Breakers {
    /// A trie of the tails, each read from its end; the first node is the root. Without nodes
    /// there are no breakers.
    nodes: Vec<Node>,
    /// The maximum number of tokens of a breaker.
    longest: usize,
}

/// A node of the trie: a suffix of the tokens.
#[derive(Clone, Debug, Default, PartialEq)]
struct Node {
    /// The tokens that complete a breaker if they precede the suffix, sorted.
    heads: Vec<u32>,
    /// The child nodes, by the preceding token.
    next: BTreeMap<u32, usize>,
}

impl Breakers {
    /// Creates breakers from pairs of heads and their tail.
    pub fn new<'a>(patterns: impl IntoIterator<Item = (&'a [u32], &'a [u32])>) -> Breakers {
        let mut nodes = vec![Node::default()];
        let mut longest = 1;
        for (heads, tail) in patterns {
            longest = longest.max(1 + tail.len());
            let mut at = 0;
            for &token in tail.iter().rev() {
                let added = nodes.len();
                at = *nodes[at].next.entry(token).or_insert(added);
                if at == added {
                    nodes.push(Node::default());
                }
            }
            nodes[at].heads.extend_from_slice(heads);
        }
        for node in &mut nodes {
            node.heads.sort_unstable();
            node.heads.dedup();
        }
        Breakers { nodes, longest }
    }

    /// Whether the text of a single token contains a breaker.
    fn contains_breaker(&self, token: u32) -> bool {
        self.nodes
            .first()
            .is_some_and(|root| root.heads.binary_search(&token).is_ok())
    }

    /// Whether a breaker ends at the last of some tokens.
    fn breaker_ends_at(&self, tokens: &[u32]) -> bool {
        let mut node = self.nodes.first();
        for token in tokens.iter().rev() {
            let Some(here) = node else {
                return false;
            };
            if here.heads.binary_search(token).is_ok() {
                return true;
            }
            node = here.next.get(token).map(|&next| &self.nodes[next]);
        }
        false
    }
}

/// The history of one sequence, and the resulting penalties.
#[derive(Clone, Debug)]
pub(super) struct Dry {
    params: DryParams,
    /// The maximum number of tokens to examine.
    window: usize,
    /// The tokens; at least those of the window and of a breaker that ends in it.
    history: Vec<u32>,
    /// For each position except the last, the length of the common suffix of the history up to
    /// it and the whole history.
    alike: Vec<u32>,
    /// A buffer for the next `alike`.
    next: Vec<u32>,
    /// The number of tokens after the last breaker.
    unbroken: usize,
    /// The length of the longest repetition that each token would continue.
    longest: HashMap<u32, u32>,
    penalties: Vec<(u32, f32)>,
}

impl Dry {
    /// Creates the state after the tokens `prompt`; `None` if `params` turn DRY off.
    pub(super) fn new(params: &DryParams, prompt: &[u32]) -> Option<Dry> {
        if !params.is_on() {
            return None;
        }
        let window = params.penalty_last_n.unwrap_or(usize::MAX);
        let kept = window.saturating_add(params.breakers.longest);
        let history = prompt[prompt.len().saturating_sub(kept)..].to_vec();
        let mut ends = (1..=history.len()).rev();
        let broken = ends.find(|&end| params.breakers.breaker_ends_at(&history[..end]));
        let mut dry = Dry {
            params: params.clone(),
            window,
            alike: common_suffixes(&history),
            next: Vec::new(),
            unbroken: history.len() - broken.unwrap_or(0),
            history,
            longest: HashMap::new(),
            penalties: Vec::new(),
        };
        dry.penalize();
        Some(dry)
    }

    /// Appends a token to the history.
    pub(super) fn push(&mut self, id: u32) {
        self.next.clear();
        if let Some((&first, rest)) = self.history.split_first() {
            self.next.push(u32::from(first == id));
            let longer = rest.iter().zip(&self.alike);
            let longer = longer.map(|(&token, &alike)| if token == id { alike + 1 } else { 0 });
            self.next.extend(longer);
        }
        std::mem::swap(&mut self.alike, &mut self.next);
        self.history.push(id);
        self.unbroken += 1;
        if self.params.breakers.breaker_ends_at(&self.history) {
            self.unbroken = 0;
        }
        // Unused tokens are dropped rarely, so that this costs little.
        let unused = self.start().saturating_sub(self.params.breakers.longest);
        if unused > self.window {
            self.history.drain(..unused);
            self.alike.drain(..unused);
        }
        self.penalize();
    }

    /// Returns the tokens that would continue a repetition, unordered, and their penalties.
    pub(super) fn penalties(&self) -> &[(u32, f32)] {
        &self.penalties
    }

    /// The start of the window.
    fn start(&self) -> usize {
        self.history.len().saturating_sub(self.window)
    }

    fn penalize(&mut self) {
        self.penalties.clear();
        let start = self.start();
        let limit = self.unbroken.min(self.history.len() - start);
        let allowed = self.params.allowed_length;
        if limit < allowed || self.alike.is_empty() {
            return;
        }
        self.longest.clear();
        let positions = self.alike[start..].iter().zip(&self.history[start + 1..]);
        for (inside, (&alike, &token)) in positions.enumerate() {
            if (alike as usize) < allowed {
                continue;
            }
            let length = (alike as usize).min(limit).min(inside + 1);
            if length >= allowed {
                let longest = self.longest.entry(token).or_default();
                *longest = (*longest).max(length as u32);
            }
        }
        for (&token, &length) in &self.longest {
            if !self.params.breakers.contains_breaker(token) {
                let penalty = penalty(&self.params, length as usize - allowed);
                self.penalties.push((token, penalty));
            }
        }
    }
}

/// Returns the penalty of a repetition that exceeds the allowed length by `excess` tokens.
fn penalty(params: &DryParams, excess: usize) -> f32 {
    let base = f64::from(params.base);
    let mut exponent = i32::try_from(excess).unwrap_or(i32::MAX);
    if base > BOUNDED_BASE {
        exponent = exponent.min((LN_MAX / base.ln()) as i32);
    }
    let penalty = f64::from(params.multiplier) * base.powi(exponent);
    penalty.min(f64::from(f32::MAX)) as f32
}

/// Computes, for each position except the last, the length of the common suffix of the history
/// up to it and the whole history: the Z-function of the reversed history.
fn common_suffixes(history: &[u32]) -> Vec<u32> {
    let count = history.len();
    let from_end = |at: usize| history[count - 1 - at];
    let mut lengths = vec![0u32; count];
    // The known match that reaches farthest: it has the length `lengths[left]` and ends before
    // `right`.
    let (mut left, mut right) = (0, 0);
    for at in 1..count {
        let mut length = 0;
        if at < right {
            length = (lengths[at - left] as usize).min(right - at);
        }
        while at + length < count && from_end(length) == from_end(at + length) {
            length += 1;
        }
        if at + length > right {
            (left, right) = (at, at + length);
        }
        lengths[at] = length as u32;
    }
    lengths.reverse();
    lengths.pop();
    lengths
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Computes the penalties by definition, position by position and token by token.
    fn reference(
        params: &DryParams,
        patterns: &[(Vec<u32>, Vec<u32>)],
        history: &[u32],
    ) -> BTreeMap<u32, f32> {
        let window = params.penalty_last_n.unwrap_or(usize::MAX);
        let window = &history[history.len().saturating_sub(window)..];
        let breaks = |end: usize| {
            patterns.iter().any(|(heads, tail)| {
                history[..end]
                    .strip_suffix(&tail[..])
                    .and_then(|rest| rest.last())
                    .is_some_and(|head| heads.contains(head))
            })
        };
        let broken = (1..=history.len()).rev().find(|&end| breaks(end));
        let limit = window.len().min(history.len() - broken.unwrap_or(0));
        let mut longest: BTreeMap<u32, usize> = BTreeMap::new();
        for i in 0..window.len().saturating_sub(1) {
            let alike = (0..=i)
                .take_while(|&back| window[i - back] == window[window.len() - 1 - back])
                .count()
                .min(limit);
            if alike >= params.allowed_length {
                let longest = longest.entry(window[i + 1]).or_default();
                *longest = alike.max(*longest);
            }
        }
        let single = |token: &u32| {
            let mut whole = patterns.iter().filter(|(_, tail)| tail.is_empty());
            whole.any(|(heads, _)| heads.contains(token))
        };
        longest.retain(|token, _| !single(token));
        let penalty = |length: usize| {
            let exponent = (length - params.allowed_length) as f64;
            let most = (f64::from(f32::MAX).ln() / f64::from(params.base).ln()).floor();
            let exponent = if params.base > 1.0 {
                exponent.min(most)
            } else {
                exponent
            };
            let penalty = f64::from(params.multiplier) * f64::from(params.base).powf(exponent);
            penalty.min(f64::from(f32::MAX)) as f32
        };
        let penalties = longest.into_iter();
        penalties
            .map(|(token, length)| (token, penalty(length)))
            .collect()
    }

    fn params(penalty_last_n: Option<usize>, patterns: &[(Vec<u32>, Vec<u32>)]) -> DryParams {
        let patterns = patterns.iter().map(|(heads, tail)| (&heads[..], &tail[..]));
        DryParams {
            multiplier: 0.8,
            penalty_last_n,
            breakers: Arc::new(Breakers::new(patterns)),
            ..DryParams::default()
        }
    }

    fn sorted(dry: &Dry) -> BTreeMap<u32, f32> {
        dry.penalties().iter().copied().collect()
    }

    proptest! {
        #[test]
        fn penalties_are_those_of_the_definition(
            // A small vocabulary, so that there are many repetitions.
            tokens in vec(0u32..4, 0..60),
            prompt in 0usize..60,
            last in proptest::option::of(1usize..40),
            allowed_length in 0usize..5,
            base in prop_oneof![Just(1.0f32), Just(1.75), 1.0f32..4.0],
            patterns in vec((vec(0u32..4, 0..2), vec(0u32..4, 0..3)), 0..3),
        ) {
            let params = DryParams { base, allowed_length, ..params(last, &patterns) };
            let prompt = prompt.min(tokens.len());
            let mut dry = Dry::new(&params, &tokens[..prompt]).unwrap();
            for end in prompt..=tokens.len() {
                let (found, expected) = (sorted(&dry), reference(&params, &patterns, &tokens[..end]));
                prop_assert!(found.keys().eq(expected.keys()), "{:?} {:?}", found, expected);
                for (found, expected) in found.values().zip(expected.values()) {
                    prop_assert!((found - expected).abs() <= expected * 1e-5);
                }
                if let Some(&token) = tokens.get(end) {
                    dry.push(token);
                }
            }
        }
    }

    #[test]
    fn a_longer_repetition_costs_more() {
        // After 1 2 3, before 4 and 5: the common suffix has 3 tokens once, 2 once.
        let history = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3];
        let dry = Dry::new(&params(None, &[]), &history).unwrap();
        assert_eq!(sorted(&dry), BTreeMap::from([(4, 0.8 * 1.75), (5, 0.8)]));
    }

    #[test]
    fn nothing_is_a_repetition_across_a_breaker() {
        let history = [1, 2, 3, 4, 9, 1, 2, 3];
        let breakers = |heads: &[u32], tail: &[u32]| {
            let params = params(None, &[(heads.to_vec(), tail.to_vec())]);
            sorted(&Dry::new(&params, &history).unwrap())
        };
        assert_eq!(breakers(&[9], &[]), BTreeMap::from([(4, 0.8 * 1.75)]));
        assert_eq!(breakers(&[1], &[]), BTreeMap::from([(4, 0.8)]));
        assert_eq!(breakers(&[2], &[]), BTreeMap::new());
        assert_eq!(breakers(&[7, 1], &[2]), BTreeMap::new());
        assert_eq!(breakers(&[9], &[1]), BTreeMap::from([(4, 0.8)]));
        assert_eq!(breakers(&[8], &[1]), BTreeMap::from([(4, 0.8 * 1.75)]));
        // A breaker itself is not penalized.
        assert_eq!(breakers(&[4], &[]), BTreeMap::new());
    }

    #[test]
    fn a_penalty_is_always_finite() {
        let history = [7; 5000];
        for base in [1.0, 1.000_000_1, 1.001, 1.75, 10.0] {
            let params = DryParams {
                multiplier: 100.0,
                base,
                ..params(None, &[])
            };
            let dry = Dry::new(&params, &history).unwrap();
            let (token, penalty) = dry.penalties()[0];
            assert!(
                token == 7 && penalty.is_finite() && penalty >= 99.9,
                "{penalty}"
            );
        }
    }

    #[test]
    fn it_is_off_by_each_of_its_parameters() {
        let on = params(None, &[]);
        assert!(on.is_on() && !DryParams::default().is_on());
        let off = [
            DryParams {
                multiplier: 0.0,
                ..on.clone()
            },
            DryParams {
                base: 0.99,
                ..on.clone()
            },
            DryParams {
                penalty_last_n: Some(0),
                ..on
            },
        ];
        assert!(
            off.iter()
                .all(|params| Dry::new(params, &[1, 1, 1]).is_none())
        );
    }
}

//! Restrictions of the tokens that may be chosen.

use std::collections::VecDeque;
use std::sync::Arc;

/// The restrictions of an answer. The defaults allow everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The only tokens that may be chosen, sorted by id; `None` allows all.
    pub allowed: Option<Arc<[u32]>>,
    /// Token sequences that must not be generated: the last token of one is never chosen after
    /// all its other tokens. No sequence is empty.
    pub banned: Arc<[Vec<u32>]>,
    /// The minimum number of tokens to generate: before that, none of `end_tokens` is chosen.
    pub min_tokens: usize,
    /// The tokens that end an answer.
    pub end_tokens: Arc<[u32]>,
}

impl Limits {
    /// Whether everything is allowed.
    pub(super) fn is_off(&self) -> bool {
        self.allowed.is_none() && self.banned.is_empty() && self.min_tokens == 0
    }
}

/// The limits of one answer, and its progress.
#[derive(Clone, Debug)]
pub(super) struct Limited {
    limits: Limits,
    /// The number of generated tokens.
    generated: usize,
    /// The last generated tokens, as far as a banned sequence may begin with them.
    last: VecDeque<u32>,
    most: usize,
}

impl Limited {
    /// Creates the state; `None` if everything is allowed.
    pub(super) fn new(limits: &Limits) -> Option<Limited> {
        let runs = limits.banned.iter();
        let most = runs.map(|run| run.len().saturating_sub(1)).max();
        (!limits.is_off()).then(|| Limited {
            limits: limits.clone(),
            generated: 0,
            last: VecDeque::new(),
            most: most.unwrap_or(0),
        })
    }

    /// Counts a generated token.
    pub(super) fn count(&mut self, id: u32) {
        self.generated += 1;
        self.last.push_back(id);
        if self.last.len() > self.most {
            self.last.pop_front();
        }
    }

    /// Calls `rule_out` with the id of each token that must not come next, for a row of
    /// `tokens` tokens.
    pub(super) fn apply(&self, tokens: usize, mut rule_out: impl FnMut(usize)) {
        let Limits {
            allowed,
            banned,
            min_tokens,
            end_tokens,
        } = &self.limits;
        if let Some(allowed) = allowed {
            // The tokens between each allowed one and the next.
            let mut from = 0;
            for &id in allowed.iter() {
                (from..(id as usize).min(tokens)).for_each(&mut rule_out);
                from = from.max(id as usize + 1);
            }
            (from..tokens).for_each(&mut rule_out);
        }
        for run in banned.iter() {
            let Some((&last, before)) = run.split_last() else {
                continue;
            };
            let come = self.last.iter().rev().take(before.len());
            if come.eq(before.iter().rev()) {
                rule_out(last as usize);
            }
        }
        if self.generated < *min_tokens {
            for &id in end_tokens.iter() {
                rule_out(id as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns those of eight tokens that may follow the `generated` ones.
    fn left(limits: &Limits, generated: &[u32]) -> Vec<usize> {
        let mut left: Vec<usize> = (0..8).collect();
        if let Some(mut limited) = Limited::new(limits) {
            generated.iter().for_each(|&id| limited.count(id));
            limited.apply(8, |at| left.retain(|&other| other != at));
        }
        left
    }

    #[test]
    fn without_limits_all_is_allowed() {
        assert!(Limited::new(&Limits::default()).is_none());
        let end_tokens = Limits {
            end_tokens: [1].into(),
            ..Limits::default()
        };
        assert!(Limited::new(&end_tokens).is_none(), "they rule nothing out");
    }

    #[test]
    fn only_allowed_tokens_are_left() {
        let allowed = |ids: &[u32]| Limits {
            allowed: Some(ids.into()),
            ..Limits::default()
        };
        assert_eq!(left(&allowed(&[2, 5]), &[]), [2, 5]);
        assert_eq!(left(&allowed(&[0, 7, 300]), &[2]), [0, 7]);
        assert_eq!(left(&allowed(&[]), &[]), [0; 0]);
    }

    #[test]
    fn the_last_token_of_a_banned_run_does_not_come_after_the_others() {
        let limits = Limits {
            banned: [vec![3], vec![1, 2], vec![1, 1, 4], vec![300]].into(),
            ..Limits::default()
        };
        let without =
            |ids: &[usize]| -> Vec<usize> { (0..8).filter(|at| !ids.contains(at)).collect() };
        assert_eq!(left(&limits, &[]), without(&[3]));
        assert_eq!(left(&limits, &[1]), without(&[2, 3]));
        assert_eq!(left(&limits, &[1, 5]), without(&[3]));
        assert_eq!(left(&limits, &[5, 1, 1]), without(&[2, 3, 4]));
        assert_eq!(left(&limits, &[1, 5, 1]), without(&[2, 3]));
    }

    #[test]
    fn end_tokens_wait_for_the_least_number_of_tokens() {
        let limits = Limits {
            min_tokens: 2,
            end_tokens: [0, 6].into(),
            ..Limits::default()
        };
        assert_eq!(left(&limits, &[]), [1, 2, 3, 4, 5, 7]);
        assert_eq!(left(&limits, &[1]), [1, 2, 3, 4, 5, 7]);
        assert_eq!(left(&limits, &[1, 1]).len(), 8);
    }
}

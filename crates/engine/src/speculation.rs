//! Speculative decoding without a draft model (prompt lookup decoding).
//!
//! The last tokens of an answer often occurred before: in the prompt, in the answer itself, or
//! in text that the client predicts. The tokens that followed there are *drafted*: computed in
//! the same step as the answer's last token, each with its logits. Then the tokens of the
//! answer are chosen from these rows one after the other, exactly as without a draft, as long
//! as each equals the drafted one. The KV of the other rows is discarded. Since a row's logits
//! do not depend on the rows beside it, an answer has the same tokens and the same
//! log-probabilities with and without drafts.
//!
//! [`Drafter`] drafts for one answer and knows how often its drafts are accepted;
//! [`cost`] decides how many drafted rows a step is worth.

pub(super) mod cost;
mod lookup;
pub(super) mod recent;

use self::lookup::{Lookup, Match};

/// The maximum number of drafted tokens per step of one answer: more rows at once would cost
/// more than the weights they share.
pub const MAX_DRAFT: usize = 15;

/// How many tokens are drafted for an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// As many as are likely to save time, according to previous steps and drafts.
    #[default]
    Auto,
    /// As many as are found, up to this number; none at 0.
    UpTo(usize),
}

impl Speculation {
    /// No drafts.
    pub const OFF: Speculation = Speculation::UpTo(0);
}

/// The number of tokens before an answer by which the beginning of a similar one is found.
pub(super) const CONTEXT: usize = 8;

/// The number of a prompt's last tokens in which drafts are looked for.
const MAX_TEXT: usize = 1 << 15;

/// A token that occurs in no vocabulary, between texts that do not follow one another.
const GAP: u32 = u32::MAX;

/// Drafts the tokens of one answer.
#[derive(Debug)]
pub(super) struct Drafter {
    speculation: Speculation,
    /// Texts that the answer may resemble, and the sequence's tokens.
    lookup: Lookup,
    /// The number of the sequence's tokens that are in `lookup`.
    known: usize,
    acceptance: Acceptance,
    /// Where the last tokens occurred before.
    found: Option<Match>,
    /// The number of tokens that were chosen since.
    chosen: usize,
}

impl Drafter {
    /// Creates a drafter for an answer to `prompt` that may resemble `prediction`.
    pub(super) fn new(speculation: Speculation, prompt: &[u32], prediction: &[u32]) -> Drafter {
        let mut drafter = Drafter {
            speculation,
            lookup: Lookup::default(),
            known: 0,
            acceptance: Acceptance::default(),
            found: None,
            chosen: 0,
        };
        if !prediction.is_empty() {
            let context = &prompt[prompt.len().saturating_sub(CONTEXT)..];
            drafter.add(&[context, prediction].concat());
        }
        drafter
    }

    /// Adds a text that the answer may resemble, before the first token is looked up.
    pub(super) fn add(&mut self, text: &[u32]) {
        if self.speculation != Speculation::OFF {
            self.lookup.extend(text);
            self.lookup.extend(&[GAP]);
        }
    }

    /// Looks up the last of the sequence's tokens. Returns the probabilities that the first
    /// tokens of a draft are accepted, each with all before it: at most `most`, and an empty list
    /// if nothing was found.
    pub(super) fn look_up(&mut self, tokens: &[u32], most: usize) -> Vec<f32> {
        let most = match self.speculation {
            Speculation::Auto => MAX_DRAFT.min(most),
            Speculation::UpTo(number) => number.min(MAX_DRAFT).min(most),
        };
        if self.speculation == Speculation::OFF {
            return Vec::new();
        }
        if self.known == 0 {
            self.known = tokens.len().saturating_sub(MAX_TEXT);
        }
        self.lookup.extend(&tokens[self.known..]);
        self.known = tokens.len();
        self.found = self.lookup.longest();
        self.chosen = 0;
        let Some(found) = self.found else {
            return Vec::new();
        };
        let mut all = 1.0;
        let followed = self.lookup.continuation(found).take(most);
        let probabilities = followed.zip(found.length..).map(|(_, length)| {
            match self.speculation {
                Speculation::Auto => all *= self.acceptance.probability(length),
                // As many as are wanted, whatever they are worth.
                Speculation::UpTo(_) => {}
            }
            all
        });
        probabilities.collect()
    }

    /// Whether as many tokens as possible are drafted, whatever they are worth.
    pub(super) fn is_fixed(&self) -> bool {
        self.speculation != Speculation::Auto
    }

    /// Returns the first `count` of the tokens that may follow, as many as
    /// [`look_up`](Drafter::look_up) has promised at most.
    pub(super) fn draft(&self, count: usize) -> Vec<u32> {
        let found = self.found.map(|found| self.lookup.continuation(found));
        found.into_iter().flatten().take(count).collect()
    }

    /// Records the next token of the answer, drafted or not: what was found is compared with it
    /// even where nothing was drafted.
    pub(super) fn note(&mut self, chosen: u32) {
        let Some(found) = self.found else {
            return;
        };
        let expected = self.lookup.continuation(found).nth(self.chosen);
        if let Some(expected) = expected {
            let length = found.length + self.chosen;
            self.acceptance.note(length, expected == chosen);
        }
        self.chosen += 1;
        if expected != Some(chosen) {
            self.found = None;
        }
    }
}

/// How often the token was chosen that had followed earlier, by the number of tokens that were
/// the same before it.
#[derive(Clone, Copy, Debug)]
struct Acceptance([Rate; CLASSES.len()]);

/// The least number of equal tokens of each class, and the rate assumed before any was
/// observed.
const CLASSES: [(usize, f32); 6] = [
    (2, 0.25),
    (3, 0.4),
    (4, 0.5),
    (6, 0.65),
    (9, 0.8),
    (16, 0.9),
];

/// The weight of the assumed rate, in observations.
const ASSUMED: f32 = 2.0;

/// The number of observations of a class after which the influence of an older one has halved:
/// answers quote for a while, and then go on freely.
const MEMORY: f32 = 12.0;

#[derive(Clone, Copy, Debug)]
struct Rate {
    accepted: f32,
    observed: f32,
}

impl Default for Acceptance {
    fn default() -> Acceptance {
        Acceptance(CLASSES.map(|(_, rate)| Rate {
            accepted: ASSUMED * rate,
            observed: ASSUMED,
        }))
    }
}

impl Acceptance {
    fn class(length: usize) -> usize {
        let class = CLASSES.partition_point(|&(least, _)| least <= length);
        class.saturating_sub(1)
    }

    fn probability(&self, length: usize) -> f32 {
        let rate = self.0[Acceptance::class(length)];
        rate.accepted / rate.observed
    }

    fn note(&mut self, length: usize, accepted: bool) {
        let rate = &mut self.0[Acceptance::class(length)];
        let keep = 0.5_f32.powf(1.0 / MEMORY);
        rate.accepted = keep * rate.accepted + f32::from(u8::from(accepted));
        rate.observed = keep * rate.observed + 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_before_is_drafted() {
        let mut drafter = Drafter::new(Speculation::UpTo(3), &[], &[]);
        let tokens = [1, 2, 3, 4, 5, 9, 1, 2];
        assert_eq!(drafter.look_up(&tokens, 8).len(), 3);
        assert_eq!(drafter.draft(2), [3, 4]);
        // Only as many as the answer may have.
        assert_eq!(drafter.look_up(&tokens, 1).len(), 1);
        assert_eq!(drafter.look_up(&[&tokens[..], &[7]].concat(), 8).len(), 0);
        let mut off = Drafter::new(Speculation::OFF, &[], &[]);
        assert_eq!(off.look_up(&tokens, 8).len(), 0);
    }

    #[test]
    fn a_draft_begins_with_predicted_text() {
        let prompt = [7, 8, 9];
        let mut drafter = Drafter::new(Speculation::UpTo(4), &prompt, &[1, 2, 3]);
        drafter.look_up(&prompt, 8);
        assert_eq!(drafter.draft(3), [1, 2, 3]);
        // Text after the prediction does not continue it.
        assert_eq!(drafter.look_up(&[7, 8, 9, 1, 2, 3], 8).len(), 0);
    }

    #[test]
    fn the_chance_of_a_draft_follows_what_was_accepted() {
        let tokens = [1, 2, 3, 4, 5, 9, 1, 2];
        let mut drafter = Drafter::new(Speculation::Auto, &[], &[]);
        let before = drafter.look_up(&tokens, 3);
        assert!(
            before.is_sorted_by(|a, b| a > b) && before[0] < 0.5,
            "{before:?}"
        );
        for _ in 0..30 {
            drafter.note(3);
            drafter.look_up(&tokens, 3);
        }
        let after = drafter.look_up(&tokens, 3);
        assert!(after[0] > 0.9, "{after:?}");
        for _ in 0..30 {
            drafter.note(4);
            drafter.look_up(&tokens, 3);
        }
        assert!(drafter.look_up(&tokens, 3)[0] < 0.2);
    }
}

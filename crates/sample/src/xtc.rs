//! XTC ("exclude top choices") sampling: the most likely tokens are randomly removed.
//!
//! With the given probability, only the least likely of the tokens whose share of the mass is
//! at least the threshold is kept. So nothing happens if fewer than two tokens reach it, and
//! the remaining tokens always include one that does.

use super::blocks::{Blocks, Scale};
use super::random::RandomStream;
use super::rank::Ranked;
use super::truncation::as_written;

/// The maximum threshold: two tokens cannot both reach a higher one.
const HIGHEST_THRESHOLD: f64 = 0.5;

/// The XTC parameters, in the form in which they are computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Xtc {
    /// 0 is off.
    probability: f64,
    /// Values above 0.5 are off.
    threshold: f64,
}

impl Xtc {
    /// Interprets the numbers as the client wrote them.
    pub(super) fn new(probability: f32, threshold: f32) -> Xtc {
        Xtc {
            probability: as_written(probability),
            threshold: as_written(threshold),
        }
    }

    /// Draws whether tokens are removed this time. Uses one random number, or none if XTC is
    /// off.
    pub(super) fn strikes(&self, random: &mut RandomStream) -> bool {
        self.probability > 0.0
            && self.threshold <= HIGHEST_THRESHOLD
            && random.uniform() < self.probability
    }

    /// Removes tokens of a whole row, whose weights `blocks` has summed to `mass`, and returns
    /// the mass of the rest. `found` is a buffer.
    pub(super) fn leave_out(
        &self,
        logits: &[f32],
        scale: Scale,
        mass: f64,
        blocks: &mut Blocks,
        found: &mut Vec<Ranked>,
    ) -> f64 {
        found.clear();
        blocks.at_least(logits, scale.logit_of((self.threshold * mass).ln()), found);
        let reach = |token: &&Ranked| self.reached(scale.weight(token.logit()), mass);
        match found.iter().filter(reach).max() {
            Some(&first) => blocks.leave_out_before(logits, scale, first),
            None => mass,
        }
    }

    /// Removes tokens from the beginning of `kept`, which is ordered by likelihood and has the
    /// weight `mass`, and returns the mass of the rest.
    pub(super) fn cut(&self, kept: &mut Vec<Ranked>, scale: Scale, mass: f64) -> f64 {
        let weight = |token: &Ranked| scale.weight(token.logit());
        let reach = kept.partition_point(|token| self.reached(weight(token), mass));
        if reach < 2 {
            return mass;
        }
        kept.drain(..reach - 1);
        kept.iter().map(weight).sum()
    }

    /// Whether the share of a weight is at least the threshold and above 0: a token of weight 0
    /// is never chosen.
    fn reached(&self, weight: f64, mass: f64) -> bool {
        weight > 0.0 && weight >= self.threshold * mass
    }
}

//! XTC ("exclude top choices"): now and then the most likely tokens are left out.
//!
//! With the given probability, of the tokens whose share of the mass is at least the
//! threshold only the least likely one stays. So nothing happens where fewer than two
//! reach it, and what is left always holds one that does.

use super::blocks::{Blocks, Scale};
use super::random::RandomStream;
use super::rank::Ranked;
use super::truncation::as_written;

/// A threshold above this is off: two tokens cannot both reach it.
const HIGHEST_THRESHOLD: f64 = 0.5;

/// Whether and which tokens are left out, in the form in which it is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Xtc {
    /// 0 is off.
    probability: f64,
    /// Above a half is off.
    threshold: f64,
}

impl Xtc {
    /// Takes the numbers as a client wrote them.
    pub(super) fn new(probability: f32, threshold: f32) -> Xtc {
        Xtc {
            probability: as_written(probability),
            threshold: as_written(threshold),
        }
    }

    /// Draws whether tokens are left out this time. Uses one random number, or none if
    /// it is off.
    pub(super) fn strikes(&self, random: &mut RandomStream) -> bool {
        self.probability > 0.0
            && self.threshold <= HIGHEST_THRESHOLD
            && random.uniform() < self.probability
    }

    /// Leaves tokens of a whole row out, whose weights `blocks` has summed to `mass`, and
    /// returns the mass of the rest. `found` is room for tokens.
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

    /// Cuts tokens off the beginning of `kept`, which is in the order of likelihood and
    /// weighs `mass`, and returns the mass of the rest.
    pub(super) fn cut(&self, kept: &mut Vec<Ranked>, scale: Scale, mass: f64) -> f64 {
        let weight = |token: &Ranked| scale.weight(token.logit());
        let reach = kept.partition_point(|token| self.reached(weight(token), mass));
        if reach < 2 {
            return mass;
        }
        kept.drain(..reach - 1);
        kept.iter().map(weight).sum()
    }

    /// Whether a weight is a share of at least the threshold, and more than none: a token
    /// that weighs nothing is never chosen.
    fn reached(&self, weight: f64, mass: f64) -> bool {
        weight > 0.0 && weight >= self.threshold * mass
    }
}

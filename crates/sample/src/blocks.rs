//! A row of logits, indexed by blocks, so that repeated scans can skip most of it.
//!
//! One pass records the largest logit of each block. With these, the overall maximum is located
//! without a search, a bound on relevant logits skips whole blocks, and the k-th largest block
//! maximum is a lower bound of the k-th largest logit: at least k logits reach it.

use std::sync::LazyLock;

use super::rank::{Ranked, not_nan};
use incant_kernels::exp::exp;
use incant_kernels::{Isa, softmax};

/// Logits per block.
const LOGITS_PER_BLOCK: usize = 64;

/// Elements that a pass processes side by side.
const LANES: usize = 8;

/// All instruction sets give the same bits.
static ISA: LazyLock<Isa> = LazyLock::new(Isa::best);

/// The index of one row; its buffers are reused for the next row.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The largest logit of each block; −∞ if the whole block is NaN.
    largest: Vec<f32>,
    /// The weight of each block, once [`Blocks::weigh`] has run.
    weight: Vec<f64>,
    /// The first token, in the order of likelihood, that `weight` includes.
    from: Ranked,
    /// A buffer for selections from `largest`.
    order: Vec<f32>,
}

impl Default for Blocks {
    fn default() -> Self {
        Blocks {
            largest: Vec::new(),
            weight: Vec::new(),
            from: Ranked::FIRST,
            order: Vec::new(),
        }
    }
}

impl Blocks {
    /// Indexes a row and returns its largest logit, −∞ if it has none. The other methods then
    /// refer to this row and must be given the same one.
    pub(super) fn survey(&mut self, logits: &[f32]) -> f32 {
        self.largest.clear();
        self.largest
            .extend(logits.chunks(LOGITS_PER_BLOCK).map(largest_of));
        largest_of(&self.largest)
    }

    /// Returns the lowest id whose logit is `largest`, the value that `survey` returned.
    pub(super) fn first(&self, logits: &[f32], largest: f32) -> Option<u32> {
        let block = self.largest.iter().position(|&value| value == largest)?;
        let start = block * LOGITS_PER_BLOCK;
        let inside = logits[start..].iter().position(|&l| l == largest)?;
        Some((start + inside) as u32)
    }

    /// Sums the weights of all tokens.
    pub(super) fn weigh(&mut self, logits: &[f32], scale: Scale) -> f64 {
        let negligible = scale.logit_of(negligible(logits.len()));
        self.from = Ranked::FIRST;
        self.weight.clear();
        self.weight.resize(self.largest.len(), 0.0);
        let blocks = logits.chunks(LOGITS_PER_BLOCK).zip(&self.largest);
        for ((block, &largest), weight) in blocks.zip(&mut self.weight) {
            if largest >= negligible {
                *weight = softmax::weight(*ISA, block, scale.largest, scale.inverse);
            }
        }
        self.weight.iter().sum()
    }

    /// Removes the tokens before `first`, in the order of likelihood, from the sums of
    /// [`Blocks::weigh`], and returns the remaining sum.
    pub(super) fn leave_out_before(&mut self, logits: &[f32], scale: Scale, first: Ranked) -> f64 {
        self.from = first;
        let blocks = logits
            .chunks(LOGITS_PER_BLOCK)
            .zip(&self.largest)
            .enumerate();
        for ((index, (block, &largest)), weight) in blocks.zip(&mut self.weight) {
            if largest >= first.logit() {
                let ids = (index * LOGITS_PER_BLOCK..).map(|id| id as u32);
                let left = ids
                    .zip(block)
                    .filter(|&(id, &logit)| Ranked::new(id, logit) >= first);
                *weight = left.map(|(_, &logit)| scale.weight(logit)).sum();
            }
        }
        self.weight.iter().sum()
    }

    /// Computes the sums over all tokens of the weights, and of the weights times their
    /// logarithms.
    pub(super) fn moments(&self, logits: &[f32], scale: Scale) -> Moments {
        // As in `weigh`, with a lower threshold because the logarithm multiplies the weight.
        let negligible = scale.logit_of(negligible(logits.len()) - 5.0);
        let mut moments = Moments::default();
        for (block, &largest) in logits.chunks(LOGITS_PER_BLOCK).zip(&self.largest) {
            if largest >= negligible {
                let (mass, logarithms) =
                    softmax::moments(*ISA, block, scale.largest, scale.inverse);
                moments.mass += mass;
                moments.logarithms += logarithms;
            }
        }
        moments
    }

    /// Returns the token at which the running sum of weights, in the order of ids, first
    /// exceeds `target`; if rounding keeps the sum below it, the last token with a weight above
    /// zero. Requires that [`Blocks::weigh`] has run with the same `scale`; skips the tokens
    /// that [`Blocks::leave_out_before`] has removed since then.
    pub(super) fn at_mass(&self, logits: &[f32], scale: Scale, target: f64) -> Option<u32> {
        let mut before = 0.0;
        let mut reached = None;
        for (block, &weight) in self.weight.iter().enumerate() {
            if weight > 0.0 {
                reached = Some((block, before));
                if before + weight > target {
                    break;
                }
                before += weight;
            }
        }
        let (block, mut mass) = reached?;
        let start = block * LOGITS_PER_BLOCK;
        let mut last = None;
        for (id, &logit) in
            (start..).zip(&logits[start..logits.len().min(start + LOGITS_PER_BLOCK)])
        {
            let weight = scale.weight(logit);
            if weight > 0.0 && Ranked::new(id as u32, logit) >= self.from {
                mass += weight;
                last = Some(id as u32);
                if mass > target {
                    break;
                }
            }
        }
        last
    }

    /// Appends the tokens whose logit is at least `bound` to `found`, in the order of ids.
    pub(super) fn at_least(&self, logits: &[f32], bound: f32, found: &mut Vec<Ranked>) {
        for (block, (values, &largest)) in logits
            .chunks(LOGITS_PER_BLOCK)
            .zip(&self.largest)
            .enumerate()
        {
            if largest < bound {
                continue;
            }
            for (id, &logit) in (block * LOGITS_PER_BLOCK..).zip(values) {
                if not_nan(logit) >= bound {
                    found.push(Ranked::new(id as u32, logit));
                }
            }
        }
    }

    /// Returns a logit that at least `k` tokens reach: the k-th largest block maximum, −∞ if
    /// there are fewer blocks.
    pub(super) fn reached_by(&mut self, k: usize) -> f32 {
        if k == 0 || k > self.largest.len() {
            return f32::NEG_INFINITY;
        }
        self.order.clear();
        self.order.extend_from_slice(&self.largest);
        // The maxima are never NaN, so the total order is the usual one.
        let (_, bound, _) = self
            .order
            .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        *bound
    }

    /// Replaces `found` with the `k` most likely tokens, best first; with all tokens if the row
    /// has fewer.
    pub(super) fn most_likely(&mut self, logits: &[f32], k: usize, found: &mut Vec<Ranked>) {
        found.clear();
        if k == 0 {
            return;
        }
        let bound = self.reached_by(k);
        self.at_least(logits, bound, found);
        if k < found.len() {
            found.select_nth_unstable(k - 1);
            found.truncate(k);
        }
        found.sort_unstable();
    }
}

/// Computes the standard deviation of the logits above −∞; at least one must be.
pub(super) fn deviation(logits: &[f32]) -> f64 {
    softmax::deviation(*ISA, logits)
}

/// Returns the logarithm of a weight so small that adding it for each of `count` tokens changes
/// a sum by less than half a unit in the last place: blocks below it can be skipped.
fn negligible(count: usize) -> f64 {
    -37.0 - (count as f64).ln()
}

/// Sums over the weights of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Moments {
    /// Σ w.
    pub(super) mass: f64,
    /// Σ w · ln w.
    pub(super) logarithms: f64,
}

/// Converts logits to weights: `e^((logit − largest) / temperature)`, 1 for the most likely
/// token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    largest: f64,
    temperature: f64,
    inverse: f64,
}

impl Scale {
    /// Creates a scale; `largest` is the row's largest logit and must be finite, `temperature`
    /// must be above 0.
    pub(super) fn new(largest: f32, temperature: f32) -> Scale {
        let temperature = f64::from(temperature);
        Scale {
            largest: f64::from(largest),
            temperature,
            inverse: 1.0 / temperature,
        }
    }

    /// Returns the weight of a token; 0 for NaN.
    #[inline(always)]
    pub(super) fn weight(self, logit: f32) -> f64 {
        exp((f64::from(logit) - self.largest) * self.inverse)
    }

    /// Returns the smallest logit that is at most `depth` below the largest.
    pub(super) fn floor(self, depth: f64) -> f32 {
        let bound = self.largest - depth;
        let nearest = bound as f32;
        if f64::from(nearest) < bound {
            nearest.next_up()
        } else {
            nearest
        }
    }

    /// Returns the logarithm of a token's weight.
    pub(super) fn logarithm(self, logit: f32) -> f64 {
        (f64::from(logit) - self.largest) * self.inverse
    }

    /// Returns a logit whose weight is at most `e^exponent`, and hardly less: used as a bound,
    /// it admits all tokens of that weight, and possibly a neighbour.
    pub(super) fn logit_of(self, exponent: f64) -> f32 {
        // The conversion rounds to nearest, possibly up; so take one step down.
        ((self.largest + self.temperature * exponent) as f32).next_down()
    }
}

/// Returns the largest of some logits, ignoring NaN; −∞ if there is none.
fn largest_of(logits: &[f32]) -> f32 {
    // Written out because `f32::max` handles NaN on both sides and would cost three times as
    // much. Here the comparison is false for NaN, so NaN is skipped.
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (groups, rest) = logits.as_chunks::<LANES>();
    for group in groups {
        for (lane, &logit) in lanes.iter_mut().zip(group) {
            *lane = larger(*lane, logit);
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,000 logits, with a partial last block and with ties.
    fn row() -> Vec<f32> {
        (0..1000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 22) as f32 / 64.0)
            .collect()
    }

    #[test]
    fn finds_the_first_of_the_largest() {
        let mut logits = row();
        logits[333] = 99.0;
        logits[700] = 99.0;
        let mut blocks = Blocks::default();
        let largest = blocks.survey(&logits);
        assert_eq!(largest, 99.0);
        assert_eq!(blocks.first(&logits, largest), Some(333));
    }

    #[test]
    fn passes_over_nan() {
        let mut logits = vec![f32::NAN; 200];
        logits[130] = -5.0;
        logits[131] = f32::NEG_INFINITY;
        let mut blocks = Blocks::default();
        let largest = blocks.survey(&logits);
        assert_eq!(largest, -5.0);
        assert_eq!(blocks.first(&logits, largest), Some(130));
        let scale = Scale::new(largest, 1.0);
        assert_eq!(blocks.weigh(&logits, scale), 1.0);
        assert_eq!(blocks.at_mass(&logits, scale, 0.999), Some(130));
    }

    #[test]
    fn weighs_what_a_plain_sum_weighs() {
        let logits = row();
        let mut blocks = Blocks::default();
        for temperature in [0.01, 0.5, 1.0, 2.0] {
            let scale = Scale::new(blocks.survey(&logits), temperature);
            let plain: f64 = logits.iter().map(|&l| scale.weight(l)).sum();
            let ours = blocks.weigh(&logits, scale);
            assert!((ours / plain - 1.0).abs() < 1e-14, "{ours} {plain}");
        }
    }

    #[test]
    fn most_likely_is_the_head_of_a_full_sort() {
        let logits = row();
        let mut sorted: Vec<Ranked> = (0..)
            .zip(&logits)
            .map(|(i, &l)| Ranked::new(i, l))
            .collect();
        sorted.sort_unstable();
        let mut blocks = Blocks::default();
        blocks.survey(&logits);
        let mut found = Vec::new();
        // 16 blocks: values of k on both sides of where the block bound no longer applies.
        for k in [0, 1, 2, 15, 16, 17, 500, 999, 1000, 5000] {
            blocks.most_likely(&logits, k, &mut found);
            assert_eq!(found, sorted[..k.min(1000)], "k = {k}");
        }
    }

    #[test]
    fn the_bound_lets_pass_what_weighs_as_much() {
        for largest in [-3.3f32, 0.1, 17.77, 1e6] {
            let scale = Scale::new(largest, 0.7);
            for exponent in [-0.001, -1.0, -15.5, -40.0] {
                let bound = scale.logit_of(exponent);
                assert!(scale.weight(bound) <= exponent.exp());
            }
        }
    }
}

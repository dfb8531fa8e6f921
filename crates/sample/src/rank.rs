//! The order of likelihood: by logit, ties by the lower id.

/// A token and its logit; the most likely token is the smallest.
///
/// Both are packed into one integer, the inverted bits of the logit above the id, so that a
/// comparison is one instruction and no two tokens are ever equal: results of selecting and
/// sorting cannot depend on how an algorithm moves ties. NaN is treated like −∞, and −0 like 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ranked(u64);

/// The sign bit of an `f32`.
const SIGN: u32 = 1 << 31;

impl Ranked {
    /// A bound that is not after any token.
    pub(super) const FIRST: Ranked = Ranked(0);

    /// Creates the entry of token `id` with this logit.
    pub(super) fn new(id: u32, logit: f32) -> Ranked {
        // Adding zero converts −0 to 0.
        let bits = (not_nan(logit) + 0.0).to_bits();
        let ascending = if bits & SIGN == 0 { bits | SIGN } else { !bits };
        Ranked((u64::from(!ascending) << 32) | u64::from(id))
    }

    pub(super) fn id(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn logit(self) -> f32 {
        let ascending = !((self.0 >> 32) as u32);
        f32::from_bits(if ascending & SIGN == 0 {
            !ascending
        } else {
            ascending & !SIGN
        })
    }
}

/// Returns the logit, or −∞ for NaN: a token whose logit is NaN is never chosen.
#[inline(always)]
pub(super) fn not_nan(logit: f32) -> f32 {
    if logit.is_nan() {
        f32::NEG_INFINITY
    } else {
        logit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_logit_then_by_lower_id() {
        let values = [
            f32::INFINITY,
            f32::MAX,
            1.5,
            1.0,
            f32::MIN_POSITIVE,
            0.0,
            -1e-40,
            -1.0,
            -2.5,
            f32::MIN,
            f32::NEG_INFINITY,
        ];
        let expected: Vec<Ranked> = values
            .iter()
            .flat_map(|&v| [Ranked::new(3, v), Ranked::new(u32::MAX, v)])
            .collect();
        let mut sorted = expected.clone();
        sorted.reverse();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
    }

    #[test]
    fn gives_back_what_it_packs() {
        for logit in [0.0, -1.25, 3.5e37, f32::NEG_INFINITY, f32::INFINITY] {
            let ranked = Ranked::new(262_143, logit);
            assert_eq!((ranked.id(), ranked.logit()), (262_143, logit));
        }
    }

    #[test]
    fn minus_zero_ties_with_zero_and_nan_with_minus_infinity() {
        assert_eq!(Ranked::new(7, -0.0), Ranked::new(7, 0.0));
        assert_eq!(Ranked::new(7, f32::NAN), Ranked::new(7, f32::NEG_INFINITY));
    }
}

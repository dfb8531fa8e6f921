//! Bootstrap confidence intervals: prompts are resampled with replacement, and a statistic of
//! all their tokens is recomputed; the middle 95% of its values are the interval (Efron's
//! percentile method). Prompts are resampled rather than tokens, because the tokens of one
//! answer are not independent (cluster bootstrap).

use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// The number of resamples.
const RESAMPLES: usize = 1000;

/// A fixed seed, so that the same answers give the same intervals.
const SEED: u64 = 0;

/// The 95% intervals, `[low, high]`, of `N` statistics over `prompts` prompts.
///
/// `statistics` gets the indices of the drawn prompts, and returns `None` if the statistics are
/// not defined for them. There is no interval for a single prompt, nor if the statistics are
/// not defined for any draw.
pub(super) fn intervals<const N: usize>(
    prompts: usize,
    mut statistics: impl FnMut(&[usize]) -> Option<[f64; N]>,
) -> Option<[[f64; 2]; N]> {
    if prompts < 2 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut drawn = vec![0; prompts];
    let mut values: [Vec<f64>; N] = [const { Vec::new() }; N];
    for _ in 0..RESAMPLES {
        drawn.fill_with(|| below(prompts, &mut random));
        if let Some(found) = statistics(&drawn) {
            for (values, value) in values.iter_mut().zip(found) {
                values.push(value);
            }
        }
    }
    if values.iter().any(Vec::is_empty) {
        return None;
    }
    Some(values.map(|mut values| {
        values.sort_unstable_by(f64::total_cmp);
        [0.025, 0.975].map(|share| values[(share * (values.len() - 1) as f64).round() as usize])
    }))
}

/// A random number below `count`: the upper half of a product with 64 random bits.
fn below(count: usize, random: &mut ChaCha8Rng) -> usize {
    ((u128::from(random.next_u64()) * count as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(values: &[f64]) -> impl FnMut(&[usize]) -> Option<[f64; 1]> {
        let sum = |drawn: &[usize]| drawn.iter().map(|&at| values[at]).sum::<f64>();
        move |drawn| Some([sum(drawn) / drawn.len() as f64])
    }

    #[test]
    fn the_same_prompts_give_the_same_interval() {
        let values: Vec<f64> = (0..20).map(f64::from).collect();
        let first = intervals(20, mean(&values));
        assert!(first.is_some());
        assert_eq!(intervals(20, mean(&values)), first);
    }

    #[test]
    fn the_interval_of_a_mean_is_as_wide_as_theory_says() {
        // 400 prompts, half 0 and half 1: ±1.96 · 0.5 / √400 around 0.5.
        let values: Vec<f64> = (0..400).map(|at| f64::from(at % 2)).collect();
        let [[low, high]] = intervals(400, mean(&values)).unwrap();
        assert!((low - 0.451).abs() < 0.01, "{low}");
        assert!((high - 0.549).abs() < 0.01, "{high}");
    }

    #[test]
    fn intervals_cover_the_truth_as_often_as_they_claim() {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let covered = (0..200).filter(|_| {
            let values: Vec<f64> = (0..60).map(|_| below(1000, &mut random) as f64).collect();
            let [[low, high]] = intervals(60, mean(&values)).unwrap();
            (low..=high).contains(&499.5)
        });
        let covered = covered.count();
        assert!((180..=200).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn what_never_varies_has_no_width_and_one_prompt_no_interval() {
        assert_eq!(intervals(5, |_| Some([0.25])), Some([[0.25, 0.25]]));
        assert_eq!(intervals(1, |_| Some([0.25])), None);
        assert_eq!(intervals::<1>(5, |_| None), None);
    }

    #[test]
    fn draws_without_the_statistic_are_left_out() {
        // Only the first prompt has it: draws without it tell nothing.
        let share = |drawn: &[usize]| drawn.contains(&0).then_some([1.0]);
        assert_eq!(intervals(3, share), Some([[1.0, 1.0]]));
    }
}

//! Draws follow the distribution of the reference.

use super::*;

/// Pearson's chi-square statistic of `draws` draws against the expected weights.
fn chi_square(logits: &[f32], params: &SamplingParams, draws: u32) -> (f64, usize) {
    let mut whole = reference(logits, params);
    // A banned token has no expected draws; it must never be drawn.
    whole.retain(|t| t.1 > 0.0);
    let left = struck(whole.clone(), params.xtc_threshold);
    // XTC mixes two distributions.
    let sum = |tokens: &[(u32, f64)]| -> f64 { tokens.iter().map(|t| t.1).sum() };
    let (of_whole, of_left) = (sum(&whole), sum(&left));
    let struck = if params.xtc_threshold > 0.5 {
        0.0
    } else {
        f64::from(params.xtc_probability)
    };
    let share = |&(id, weight): &(u32, f64)| {
        let stays = f64::from(u8::from(left.iter().any(|t| t.0 == id)));
        let share = (1.0 - struck) * weight / of_whole + struck * stays * weight / of_left;
        (id, share)
    };
    let mut expected: Vec<(u32, f64)> = whole.iter().map(share).collect();
    expected.retain(|t| t.1 > 0.0);
    let total = 1.0;
    let mut counts = vec![0u32; logits.len()];
    let mut row = logits.to_vec();
    let mut sampler = Sampler::new(params, 2024, 0, &[]);
    for _ in 0..draws {
        counts[sampler.sample(&mut row).unwrap() as usize] += 1;
    }
    let mut statistic = 0.0;
    for &(id, weight) in &expected {
        let mean = f64::from(draws) * weight / total;
        assert!(mean >= 5.0, "the test expects too little of token {id}");
        let count = std::mem::take(&mut counts[id as usize]);
        statistic += (f64::from(count) - mean).powi(2) / mean;
    }
    assert!(counts.iter().all(|&c| c == 0), "a token outside was drawn");
    (statistic, expected.len() - 1)
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0, 1.0, -1.0, 2.0, 0.5, f32::NEG_INFINITY, 1.5, 2.0];
    let with = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams::default();
        change(&mut params);
        params
    };
    let cases = [
        with(|_| ()),
        with(|p| p.temperature = 0.6),
        with(|p| p.temperature = 1.7),
        with(|p| p.top_p = 0.8),
        with(|p| p.top_k = 4),
        with(|p| p.min_p = 0.2),
        with(|p| p.top_n_sigma = 1.0),
        with(|p| p.typical_p = 0.6),
        with(|p| p.xtc_probability = 1.0),
        with(|p| p.xtc_probability = 0.4),
        with(|p| (p.xtc_probability, p.top_k) = (0.4, 5)),
        with(|p| (p.xtc_probability, p.xtc_threshold) = (0.5, 0.2)),
        with(|p| (p.xtc_probability, p.xtc_threshold) = (1.0, 0.51)),
    ];
    // The 0.999 quantiles of chi-square, by degrees of freedom.
    let critical = [0.0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46];
    for params in cases {
        let (statistic, freedom) = chi_square(&logits, &params, 20_000);
        assert!(
            statistic < critical[freedom],
            "{statistic} with {freedom} degrees of freedom: {params:?}"
        );
    }
}

#[test]
fn draws_follow_the_distribution_over_many_blocks() {
    // 640 tokens, of which only every tenth has a weight above zero.
    let logits: Vec<f32> = (0..640)
        .map(|i| {
            if i % 10 == 0 {
                (i % 7) as f32 / 4.0
            } else {
                -80.0
            }
        })
        .collect();
    let mut row = logits.clone();
    let mut sampler = Sampler::new(&SamplingParams::default(), 5, 0, &[]);
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let mut counts = [0u32; 64];
    for _ in 0..20_000 {
        let id = sampler.sample(&mut row).unwrap();
        assert_eq!(id % 10, 0);
        counts[id as usize / 10] += 1;
    }
    let statistic: f64 = counts
        .iter()
        .enumerate()
        .map(|(i, &count)| {
            let mean = 20_000.0 * f64::from(logits[i * 10]).exp() / total;
            (f64::from(count) - mean).powi(2) / mean
        })
        .sum();
    // The 0.999 quantile for 63 degrees of freedom.
    assert!(statistic < 103.4, "{statistic}");
}

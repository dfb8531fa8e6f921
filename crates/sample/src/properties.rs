//! Property tests of the sampling chain against a plain reference: a full sort in double
//! precision.

mod distribution;
mod reference;

use proptest::collection::vec;
use proptest::prelude::*;

use super::rank::Ranked;
use super::*;
use reference::{reference, struck};

fn kept(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    let truncation = Truncation::new(params.top_k, params.top_p, params.min_p)
        .with_top_n_sigma(params.top_n_sigma)
        .with_typical_p(params.typical_p);
    let mut blocks = Blocks::default();
    let scale = Scale::new(blocks.survey(logits), params.temperature);
    let mut kept = Vec::new();
    truncation.keep(logits, scale, &mut blocks, &mut kept);
    kept.iter().map(|token| token.id()).collect()
}

/// Logits that are multiples of a quarter: differences are exact in `f32`, ties are frequent.
fn grid(length: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    vec(
        (-80i32..40).prop_map(|quarters| quarters as f32 / 4.0),
        length,
    )
}

fn truncations() -> impl Strategy<Value = SamplingParams> {
    (
        prop_oneof![Just(0.05f32), Just(0.7), Just(1.0), Just(2.0)],
        prop_oneof![Just(0usize), 1usize..60, 60usize..3000],
        prop_oneof![Just(1.0f32), 0.0f32..1.0, 0.99f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..1.0, 0.0f32..0.01],
    )
        .prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            ..SamplingParams::default()
        })
}

/// [`truncations`], with the samplers that OpenAI does not offer.
fn all_truncations() -> impl Strategy<Value = SamplingParams> {
    (
        truncations(),
        prop_oneof![Just(-1.0f32), 0.0f32..4.0],
        prop_oneof![Just(1.0f32), 0.0f32..1.0, 0.99f32..1.0],
        prop_oneof![Just(0.0f32), Just(0.5), Just(1.0)],
        prop_oneof![Just(0.0f32), 0.0f32..0.5, 0.0f32..0.01],
    )
        .prop_map(
            |(params, top_n_sigma, typical_p, xtc_probability, xtc_threshold)| SamplingParams {
                top_n_sigma,
                typical_p,
                xtc_probability,
                xtc_threshold,
                ..params
            },
        )
}

proptest! {
    #[test]
    fn keeps_what_a_full_sort_keeps(logits in grid(1..2500), params in truncations()) {
        let expected: Vec<u32> = reference(&logits, &params).iter().map(|t| t.0).collect();
        prop_assert_eq!(kept(&logits, &params), expected);
    }

    #[test]
    fn keeps_what_a_full_sort_keeps_with_all_samplers(
        logits in grid(1..2500), params in all_truncations(),
    ) {
        let expected: Vec<u32> = reference(&logits, &params).iter().map(|t| t.0).collect();
        prop_assert_eq!(kept(&logits, &params), expected);
    }

    #[test]
    fn xtc_leaves_what_a_full_sort_leaves(logits in grid(1..1500), params in all_truncations()) {
        let expected = struck(reference(&logits, &params), params.xtc_threshold);
        let truncation = Truncation::new(params.top_k, params.top_p, params.min_p)
            .with_top_n_sigma(params.top_n_sigma)
            .with_typical_p(params.typical_p);
        let xtc = Xtc::new(1.0, params.xtc_threshold);
        let mut blocks = Blocks::default();
        let scale = Scale::new(blocks.survey(&logits), params.temperature);
        let mut kept = Vec::new();
        let total: f64 = expected.iter().map(|t| t.1).sum();
        if truncation.keeps_all(logits.len()) {
            let mass = blocks.weigh(&logits, scale);
            let mass = xtc.leave_out(&logits, scale, mass, &mut blocks, &mut kept);
            prop_assert!((mass / total - 1.0).abs() < 1e-12, "{} {}", mass, total);
            // The middle of each token's share, in the order of ids, selects it.
            let mut expected = expected;
            expected.sort_unstable_by_key(|t| t.0);
            let mut before = 0.0;
            for (id, weight) in expected {
                if weight > 1e-9 * total {
                    let found = blocks.at_mass(&logits, scale, before + weight / 2.0);
                    prop_assert_eq!(found, Some(id));
                }
                before += weight;
            }
        } else {
            let mass = truncation.keep(&logits, scale, &mut blocks, &mut kept);
            let mass = xtc.cut(&mut kept, scale, mass);
            prop_assert!((mass / total - 1.0).abs() < 1e-12, "{} {}", mass, total);
            kept.retain(|token| scale.weight(token.logit()) > 0.0);
            let kept: Vec<u32> = kept.iter().map(|token| token.id()).collect();
            let expected: Vec<u32> = expected.iter().map(|t| t.0).collect();
            prop_assert_eq!(kept, expected);
        }
    }

    #[test]
    fn a_larger_top_p_keeps_no_less(
        logits in grid(1..500), a in 0.0f32..1.0, b in 0.0f32..1.0,
    ) {
        let keep = |top_p| kept(&logits, &SamplingParams { top_p, ..SamplingParams::default() });
        let (fewer, more) = (keep(a.min(b)), keep(a.max(b)));
        prop_assert!(more.starts_with(&fewer));
    }

    #[test]
    fn the_order_of_the_vocabulary_is_of_no_matter(
        order in Just((0..700usize).collect::<Vec<_>>()).prop_shuffle(),
        params in truncations(),
    ) {
        // All different, so that the id never decides a tie.
        let logits: Vec<f32> = (0..700).map(|i| (i as f32 / 40.0).sin() * 8.0 + i as f32 / 512.0).collect();
        let shuffled: Vec<f32> = order.iter().map(|&i| logits[i]).collect();
        let back: Vec<u32> = kept(&shuffled, &params).iter().map(|&i| order[i as usize] as u32).collect();
        prop_assert_eq!(back, kept(&logits, &params));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest(logits in grid(1..500)) {
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let mut row = logits.clone();
        let chosen = Sampler::new(&params, 1, 0, &[]).sample(&mut row).unwrap();
        let best = (0..).zip(&logits).map(|(i, &l)| Ranked::new(i, l)).min().unwrap();
        prop_assert_eq!(chosen, best.id());
    }

    #[test]
    fn any_row_gives_a_token_above_minus_infinity_or_an_error(
        logits in vec(any::<f32>(), 0..200), params in all_truncations(), seed: u64,
    ) {
        let mut row = logits.clone();
        let possible = logits.iter().any(|&l| l > f32::NEG_INFINITY);
        match Sampler::new(&params, seed, 0, &[]).sample(&mut row) {
            Ok(id) => prop_assert!(logits[id as usize] > f32::NEG_INFINITY),
            Err(SampleError::NothingToChoose) => prop_assert!(!possible),
            Err(SampleError::NothingAllowed) => prop_assert!(false, "all is allowed"),
        }
    }

    #[test]
    fn the_row_has_its_values_back(
        logits in grid(20..300), seen in vec(0u32..300, 0..40), bias in vec((0u32..300, -100f32..100.0), 0..20),
    ) {
        let params = SamplingParams {
            repetition_penalty: 1.3,
            presence_penalty: 0.3,
            frequency_penalty: -0.7,
            logit_bias: bias,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(&params, 3, 0, &[]);
        for id in seen {
            sampler.accept(id);
        }
        let mut row = logits.clone();
        sampler.sample(&mut row).unwrap();
        prop_assert_eq!(row, logits);
    }

    #[test]
    fn the_same_seed_draws_the_same(logits in grid(1..300), params in truncations(), seed: u64, stream: u64) {
        let mut row = logits.clone();
        let mut draw = || {
            let mut sampler = Sampler::new(&params, seed, stream, &[]);
            (0..5).map(|_| sampler.sample(&mut row).unwrap()).collect::<Vec<_>>()
        };
        prop_assert_eq!(draw(), draw());
    }

    #[test]
    fn log_probabilities_are_the_references(logits in grid(1..1500), top in 0usize..100, at: prop::sample::Index) {
        let chosen = at.index(logits.len()) as u32;
        let found = logprobs(&logits, chosen, top);
        let log_sum = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        let every = SamplingParams::default();
        let mut expected: Vec<u32> = reference(&logits, &every).iter().map(|t| t.0).collect();
        let place = expected.iter().position(|&id| id == chosen).unwrap();
        prop_assert_eq!(rank(&logits, chosen), place + 1);
        expected.truncate(top);
        prop_assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), expected);
        for &(id, value) in found.top.iter().chain(&[(chosen, found.chosen)]) {
            let exact = f64::from(logits[id as usize]) - log_sum;
            prop_assert!((f64::from(value) - exact).abs() <= exact.abs() * 1e-6 + 1e-12);
        }
        if let Some(entry) = found.top.iter().find(|t| t.0 == chosen) {
            prop_assert_eq!(entry.1.to_bits(), found.chosen.to_bits());
        }
    }
}

#[test]
fn a_banned_token_is_never_drawn() {
    let mut row = vec![f32::NEG_INFINITY, 0.0, f32::NAN, 0.0, f32::NEG_INFINITY];
    for params in [
        SamplingParams::default(),
        SamplingParams {
            top_k: 4,
            ..SamplingParams::default()
        },
        SamplingParams {
            top_p: 0.99,
            ..SamplingParams::default()
        },
    ] {
        let mut sampler = Sampler::new(&params, 9, 0, &[]);
        for _ in 0..200 {
            assert!([1, 3].contains(&sampler.sample(&mut row).unwrap()));
        }
    }
}

#[test]
fn a_row_without_a_candidate_is_an_error() {
    for mut row in [vec![], vec![f32::NAN; 70], vec![f32::NEG_INFINITY; 3]] {
        for temperature in [0.0, 1.0] {
            let params = SamplingParams {
                temperature,
                ..SamplingParams::default()
            };
            assert_eq!(
                Sampler::new(&params, 1, 0, &[]).sample(&mut row),
                Err(SampleError::NothingToChoose)
            );
        }
    }
}

#[test]
fn what_is_off_changes_nothing() {
    let logits: Vec<f32> = (0..500).map(|i| (i as f32 / 7.0).sin() * 4.0).collect();
    let draw = |params: SamplingParams| {
        let mut row = logits.clone();
        let mut sampler = Sampler::new(&params, 5, 0, &[3, 1, 3, 1]);
        let mut one = || {
            let id = sampler.sample(&mut row).unwrap();
            sampler.accept(id);
            id
        };
        (0..50).map(|_| one()).collect::<Vec<_>>()
    };
    let plain = || SamplingParams {
        top_p: 0.95,
        ..SamplingParams::default()
    };
    let dry = |multiplier, base, penalty_last_n| DryParams {
        multiplier,
        base,
        penalty_last_n,
        ..DryParams::default()
    };
    let expected = draw(plain());
    for off in [
        SamplingParams {
            top_n_sigma: 0.0,
            ..plain()
        },
        SamplingParams {
            xtc_probability: 1.0,
            xtc_threshold: 0.6,
            ..plain()
        },
        SamplingParams {
            xtc_threshold: 0.0,
            ..plain()
        },
        SamplingParams {
            dry: Box::new(dry(1.0, 0.5, None)),
            ..plain()
        },
        SamplingParams {
            dry: Box::new(dry(1.0, 2.0, Some(0))),
            ..plain()
        },
        SamplingParams {
            dry: Box::new(dry(0.0, 2.0, None)),
            ..plain()
        },
    ] {
        assert_eq!(draw(off.clone()), expected, "{off:?}");
    }
    let on = [
        SamplingParams {
            top_n_sigma: 1.0,
            ..plain()
        },
        SamplingParams {
            typical_p: 0.5,
            ..plain()
        },
        // XTC is practically never applied, but it uses random numbers.
        SamplingParams {
            xtc_probability: 1e-9,
            ..plain()
        },
    ];
    for on in on {
        assert_ne!(draw(on.clone()), expected, "{on:?}");
    }
}

#[test]
fn at_temperature_zero_only_the_penalties_count() {
    let params = SamplingParams {
        temperature: 0.0,
        xtc_probability: 1.0,
        xtc_threshold: 0.0,
        typical_p: 0.1,
        dry: Box::new(DryParams {
            multiplier: 1.0,
            ..DryParams::default()
        }),
        ..SamplingParams::default()
    };
    // 1 2 was followed by 0, whose logit is now reduced by 1.
    let mut sampler = Sampler::new(&params, 0, 0, &[1, 2, 0, 1, 2]);
    let mut row = [3.0, 2.5, 0.0];
    assert_eq!(sampler.sample(&mut row), Ok(1));
    assert_eq!(row, [3.0, 2.5, 0.0]);
    sampler.accept(1);
    assert_eq!(sampler.sample(&mut row), Ok(0));
    let mut sampler = Sampler::new(&params, 0, 0, &[1, 2, 0, 1, 2]);
    let mixture = Mixture::of_tokens(vec![0, 1], &[3.0, 2.5], &[]);
    assert_eq!(sampler.sample_mixture(&mixture), Ok(1));
}

#[test]
fn accepted_tokens_are_penalized() {
    let params = SamplingParams {
        temperature: 0.0,
        frequency_penalty: 0.75,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(&params, 0, 0, &[]);
    let mut row = [3.0, 2.0, 1.0];
    let chosen: Vec<u32> = (0..6)
        .map(|_| {
            let id = sampler.sample(&mut row).unwrap();
            sampler.accept(id);
            id
        })
        .collect();
    // 3; 2.25 against 2; 1.5 against 2; 1.5 against 1.25; 0.75 against 1.25; …
    assert_eq!(chosen, [0, 0, 1, 0, 1, 2]);
}

/// Seeded answers stay the same across releases. If this test fails, every answer that was
/// requested with a seed has changed.
#[test]
fn seeded_draws_are_pinned() {
    let logits: Vec<f32> = (0..1000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 20) as f32 / 512.0)
        .collect();
    let draw = |params: SamplingParams, seed, stream| {
        let mut row = logits.clone();
        let mut sampler = Sampler::new(&params, seed, stream, &[]);
        (0..6)
            .map(|_| sampler.sample(&mut row).unwrap())
            .collect::<Vec<_>>()
    };
    let plain = SamplingParams::default;
    assert_eq!(draw(plain(), 1, 0), [380, 296, 802, 919, 862, 144]);
    assert_eq!(draw(plain(), 1, 1), [110, 817, 639, 330, 364, 974]);
    assert_eq!(
        draw(
            SamplingParams {
                top_p: 0.9,
                ..plain()
            },
            1,
            0
        ),
        [851, 508, 579, 731, 134, 110]
    );
    assert_eq!(
        draw(
            SamplingParams {
                top_k: 40,
                temperature: 0.5,
                ..plain()
            },
            u64::MAX,
            0
        ),
        [542, 665, 398, 953, 864, 864]
    );
}

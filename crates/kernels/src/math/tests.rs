use half::f16;
use proptest::prelude::*;

use super::*;

/// Checks that all instruction sets give the same bits, and returns the result.
fn on_all(compute: impl Fn(Isa) -> Vec<f32>) -> Vec<f32> {
    let mut all = Isa::all().into_iter();
    let plain = compute(all.next().expect("plain code runs everywhere"));
    for isa in all {
        let other = compute(isa);
        assert_eq!(other.len(), plain.len());
        for (index, (other, plain)) in other.iter().zip(&plain).enumerate() {
            let same = other.to_bits() == plain.to_bits() || other.is_nan() && plain.is_nan();
            assert!(same, "{isa} at {index}: {other}, not {plain}");
        }
    }
    plain
}

/// Checks each element against its expected value, within an error relative to the magnitude of
/// the inputs.
fn assert_close(actual: &[f32], expected: impl IntoIterator<Item = (f64, f64)>, error: f64) {
    let mut count = 0;
    for (index, (expected, size)) in expected.into_iter().enumerate() {
        let difference = (f64::from(actual[index]) - expected).abs();
        let allowed = error * size + 1e-37;
        assert!(
            difference <= allowed,
            "at {index}: {} should be {expected}",
            actual[index]
        );
        count += 1;
    }
    assert_eq!(count, actual.len());
}

fn numbers(len: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-4.0f32..4.0, len)
}

/// Two rows of the same length, often with a tail.
fn two() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    (0usize..200).prop_flat_map(|len| (numbers(len), numbers(len)))
}

/// Arbitrary bits, half of them floats near the limits of f16.
fn any_bits() -> impl Strategy<Value = Vec<f32>> {
    let number = prop_oneof![
        any::<u32>().prop_map(f32::from_bits),
        (any::<u16>(), any::<bool>(), any::<bool>()).prop_map(|(bits, half_more, a_bit_more)| {
            // An f16 value, the midpoint between it and the next one, and values just beside
            // these.
            let exact = f16::from_bits(bits).to_f32().to_bits();
            f32::from_bits(exact + u32::from(half_more) * 0x1000 + u32::from(a_bit_more))
        }),
    ];
    prop::collection::vec(number, 0..100)
}

proptest! {
    #[test]
    fn norms_are_right_in_every_set((x, weight) in two(), eps in 1e-6f32..1e-3) {
        let normed = on_all(|isa| {
            let mut out = vec![f32::NAN; x.len()];
            rms_norm(isa, &x, &weight, eps, &mut out);
            let mut in_place = x.clone();
            rms_norm_in_place(isa, &mut in_place, &weight, eps);
            assert_eq!(out, in_place);
            out
        });
        let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let root = (squares / x.len() as f64 + f64::from(eps)).sqrt();
        let expected = x.iter().zip(&weight).map(|(x, weight)| {
            let expected = f64::from(*x) * f64::from(*weight) / root;
            (expected, expected.abs())
        });
        assert_close(&normed, expected, 1e-6);
    }

    #[test]
    fn sums_and_multiples_are_exactly_rounded((x, y) in two(), factor in -3.0f32..3.0) {
        let sums = on_all(|isa| {
            let mut x = x.clone();
            add_assign(isa, &mut x, &y);
            x
        });
        let multiples = on_all(|isa| {
            let mut x = x.clone();
            scale(isa, &mut x, factor);
            x
        });
        for i in 0..x.len() {
            prop_assert_eq!(sums[i], x[i] + y[i]);
            prop_assert_eq!(multiples[i], x[i] * factor);
        }
    }

    #[test]
    fn soft_caps_are_right_in_every_set(x in numbers(0..100), cap in 0.1f32..60.0, reach in 0.1f32..60.0) {
        let x: Vec<f32> = x.iter().map(|x| x * reach).collect();
        let capped = on_all(|isa| {
            let mut x = x.clone();
            soft_cap(isa, &mut x, cap);
            x
        });
        let cap = f64::from(cap);
        let expected = x.iter().map(|x| (cap * (f64::from(*x) / cap).tanh(), cap));
        assert_close(&capped, expected, 4e-7);
    }

    #[test]
    fn gates_are_right_in_every_set((gate, up) in two(), reach in 0.1f32..20.0) {
        let gate: Vec<f32> = gate.iter().map(|x| x * reach).collect();
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let gated = on_all(|isa| {
                let mut gate = gate.clone();
                gated(isa, activation, &mut gate, &up);
                gate
            });
            let expected = gate.iter().zip(&up).map(|(gate, up)| {
                let (gate, up) = (f64::from(*gate), f64::from(*up));
                let expected = up * reference_activation(activation, gate);
                (expected, (gate * up).abs())
            });
            assert_close(&gated, expected, 5e-7);
        }
    }

    #[test]
    fn rope_rotates_its_pairs_and_nothing_else(
        (head, angles) in (1usize..100, 0usize..40)
            .prop_flat_map(|(pairs, rest)| (numbers(2 * pairs + rest), numbers(pairs)))
    ) {
        let cos: Vec<f32> = angles.iter().map(|angle| angle.cos()).collect();
        let sin: Vec<f32> = angles.iter().map(|angle| angle.sin()).collect();
        for style in [RopeStyle::Halves, RopeStyle::Pairs] {
            let rotated = on_all(|isa| {
                let mut head = head.clone();
                rope(isa, style, &mut head, &cos, &sin);
                head
            });
            let mut expected: Vec<(f64, f64)> =
                head.iter().map(|x| (f64::from(*x), 0.0)).collect();
            for pair in 0..angles.len() {
                let (x, y) = match style {
                    RopeStyle::Halves => (pair, pair + angles.len()),
                    RopeStyle::Pairs => (2 * pair, 2 * pair + 1),
                };
                let (a, b) = (f64::from(head[x]), f64::from(head[y]));
                let (cos, sin) = (f64::from(cos[pair]), f64::from(sin[pair]));
                expected[x] = (a * cos - b * sin, a.abs() + b.abs());
                expected[y] = (a * sin + b * cos, a.abs() + b.abs());
            }
            assert_close(&rotated, expected, 2e-7);
        }
    }

    #[test]
    fn f16_conversion_rounds_to_nearest_in_every_set(x in any_bits()) {
        on_all(|isa| {
            let mut halves = vec![0; x.len()];
            to_f16(isa, &x, &mut halves);
            for (x, half) in x.iter().zip(&halves) {
                let half = f16::from_bits(*half);
                if x.is_nan() {
                    assert!(half.is_nan());
                } else {
                    let expected = f16::from_f32(x.clamp(-65504.0, 65504.0));
                    assert_eq!(half.to_bits(), expected.to_bits(), "{x}");
                }
            }
            halves.into_iter().map(|half| f32::from_bits(half.into())).collect()
        });
    }
}

fn reference_activation(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
    }
}

#[test]
fn the_largest_is_found_wherever_it_is() {
    for len in [0, 1, 15, 16, 40] {
        for place in 0..len {
            let mut x = vec![-3.0; len];
            x[place] = -1.0;
            x[(place + 1) % len] = f32::NAN;
            let expected = if len == 1 { f32::NEG_INFINITY } else { -1.0 };
            assert_eq!(
                on_all(|isa| vec![largest(isa, &x)]),
                [expected],
                "{place} of {len}"
            );
        }
        let x = vec![f32::NEG_INFINITY; len];
        assert_eq!(on_all(|isa| vec![largest(isa, &x)]), [f32::NEG_INFINITY]);
    }
}

#[test]
fn gates_far_out_neither_overflow_nor_vanish() {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gated = on_all(|isa| {
            let mut gate = vec![-1e30, -1e10, -1000.0, 0.0, 1000.0, 1e10, 1e30];
            gated(isa, activation, &mut gate, &[1.0; 7]);
            gate
        });
        assert_eq!(gated[3..], [0.0, 1000.0, 1e10, 1e30]);
        assert!(gated[..3].iter().all(|x| x.abs() < 1e-7), "{gated:?}");
    }
}

#[test]
fn every_f16_becomes_its_value() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let numbers = on_all(|isa| {
        let mut numbers = vec![0.0; halves.len()];
        from_f16(isa, &halves, &mut numbers);
        numbers
    });
    for (half, number) in halves.iter().zip(numbers) {
        let expected = f16::from_bits(*half).to_f32();
        let same = number.to_bits() == expected.to_bits() || number.is_nan() && expected.is_nan();
        assert!(same, "{half:#06x}: {number}, not {expected}");
    }
}

#[test]
fn exp_is_accurate_within_its_range() {
    let mut worst = 0.0f64;
    for step in 0..=1_000_000 {
        let x = -87.3 + step as f32 * (175.6 / 1_000_000.0);
        let exact = f64::from(x).exp();
        worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
    }
    assert!(worst < 2e-7, "{worst:e}");
}

#[test]
fn exp_keeps_its_promises_at_the_ends() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(-0.0), 1.0);
    for x in [-88.0, -89.0, -1e30, f32::NEG_INFINITY] {
        assert_eq!(exp(x), 0.0, "{x}");
    }
    for x in [89.0, 1e30, f32::INFINITY] {
        assert_eq!(exp(x), f32::INFINITY, "{x}");
    }
    assert!(exp(f32::NAN).is_nan());
}

//! Element-wise kernels: RMS norm, gated activations (SwiGLU, GeGLU), soft cap, rotary position
//! embedding (RoPE), f16 conversion.
//!
//! Each kernel is written once, as plain loops that LLVM vectorizes, and `dispatch!` compiles
//! it for every instruction set. All instruction sets compute the same bits: sums run in 16
//! lanes in a fixed order, multiplications and additions are fused only where `mul_add` says
//! so, and `exp` is our own.

mod lanes;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub(super) use lanes::{Avx2, Avx512};
pub(super) use lanes::{LANES, Lanes, Plain};

use super::isa::{Isa, Tier};

/// `dispatch!(isa, |lanes, x: X, y: Y| body)` runs `body` compiled for the instruction set of
/// `isa`. `x` and `y` are variables in scope, passed by these names and types; `lanes` is the
/// [`Lanes`] of the instruction set. Functions called by `body` are compiled for the
/// instruction set only if they are `#[inline(always)]`.
macro_rules! dispatch {
    ($isa:expr, |$lanes:pat_param, $($argument:ident: $type:ty),*| $body:expr) => {{
        fn plain($($argument: $type),*) {
            let $lanes = $crate::math::Plain;
            $body
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2($($argument: $type),*) {
            let $lanes = $crate::math::Avx2::new();
            $body
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn avx512($($argument: $type),*) {
            let $lanes = $crate::math::Avx512::new();
            $body
        }
        match $isa.tier() {
            // SAFETY: an `Isa` of this tier exists only where the processor
            // has these instructions.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => unsafe { avx2($($argument),*) },
            // SAFETY: as above; AMX implies AVX-512.
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 | Tier::Amx => unsafe { avx512($($argument),*) },
            _ => plain($($argument),*),
        }
    }};
}
pub(super) use dispatch;

/// The pairing of dimensions of a head that rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// Dimension `i` rotates with `i + dims/2` (GPT-NeoX).
    Halves,
    /// Dimension `2i` rotates with `2i + 1` (the original; GGUF's llama files are permuted for
    /// it).
    Pairs,
}

/// The activation of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// SiLU: `x · sigmoid(x)`.
    Silu,
    /// GELU in its tanh approximation.
    GeluTanh,
}

/// Computes the RMS norm: `out = x / sqrt(mean(x²) + eps) · weight`.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    dispatch!(isa, |_,
                    x: &[f32],
                    weight: &[f32],
                    eps: f32,
                    out: &mut [f32]| {
        let factor = norm_factor(x, eps);
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * factor * weight;
        }
    });
}

/// Computes the RMS norm in place.
pub fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(x.len(), weight.len());
    dispatch!(isa, |_, x: &mut [f32], weight: &[f32], eps: f32| {
        let factor = norm_factor(x, eps);
        for (x, weight) in x.iter_mut().zip(weight) {
            *x = *x * factor * weight;
        }
    });
}

/// Computes `1 / sqrt(mean(x²) + eps)`.
#[inline(always)]
fn norm_factor(x: &[f32], eps: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = x.mul_add(*x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum = x.mul_add(*x, *sum);
    }
    1.0 / (sum_lanes(sums) / x.len() as f32 + eps).sqrt()
}

/// Returns the largest element; NaN is ignored.
pub fn largest(isa: Isa, x: &[f32]) -> f32 {
    let mut largest = f32::NEG_INFINITY;
    let out = &mut largest;
    dispatch!(isa, |_, x: &[f32], out: &mut f32| {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = x.as_chunks::<LANES>();
        for x in whole {
            for (lane, x) in lanes.iter_mut().zip(x) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        *out = lanes
            .into_iter()
            .chain(rest.iter().copied())
            .fold(*out, f32::max);
    });
    largest
}

/// Sums all lanes by halving their number until one is left.
#[inline(always)]
pub(super) fn sum_lanes(mut x: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            x[lane] += x[lane + width];
        }
        width /= 2;
    }
    x[0]
}

/// Computes `x += y`.
pub fn add_assign(isa: Isa, x: &mut [f32], y: &[f32]) {
    assert_eq!(x.len(), y.len());
    dispatch!(isa, |_, x: &mut [f32], y: &[f32]| {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    });
}

/// Computes `x *= factor`.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    dispatch!(isa, |_, x: &mut [f32], factor: f32| {
        for x in x {
            *x *= factor;
        }
    });
}

/// Computes the soft cap `x = cap · tanh(x / cap)`, which keeps small values and bounds large
/// ones.
pub fn soft_cap(isa: Isa, x: &mut [f32], cap: f32) {
    dispatch!(isa, |_, x: &mut [f32], cap: f32| {
        for x in x {
            *x = soft_cap_one(*x, cap);
        }
    });
}

/// Computes the soft cap of one element, with `tanh(y) = 1 − 2 / (1 + exp(2y))`. The error is
/// about 2⁻²³ of the cap.
#[inline(always)]
pub(super) fn soft_cap_one(x: f32, cap: f32) -> f32 {
    cap - 2.0 * cap / (1.0 + exp(2.0 * x / cap))
}

/// Computes `e^x` with a relative error below 2e-7 from -87.3 to 88.3. Below that range the
/// result goes to 0, above it to infinity; NaN stays NaN, and `exp(0)` is exactly 1.
///
/// `x` is split into `n · ln 2 + r` with `|r| ≤ ln 2 / 2`; the polynomial in `r` is that of
/// Cephes' `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves the integer part of a float in its lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // The high part of ln 2 has so few bits that its product with n is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Clamps n to -127 and 128, whose powers of two come out as 0 and infinity. Unlike `clamp`,
    // each comparison is a single instruction that preserves NaN.
    let x = if x < -88.0 { -88.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2_HIGH, x);
    let r = n.mul_add(-LN_2_LOW, r);
    let y = 1.987_569_1e-4f32;
    let y = y.mul_add(r, 1.398_2e-3);
    let y = y.mul_add(r, 8.333_452e-3);
    let y = y.mul_add(r, 4.166_579_6e-2);
    let y = y.mul_add(r, 1.666_666_5e-1);
    let y = y.mul_add(r, 0.5);
    let y = y.mul_add(r * r, r) + 1.0;
    y * f32::from_bits(rounded.to_bits().wrapping_add(127) << 23)
}

/// Computes the gate of a feed-forward layer: `gate = activation(gate) · up`.
pub fn gated(isa: Isa, activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    match activation {
        Activation::Silu => dispatch!(isa, |_, gate: &mut [f32], up: &[f32]| {
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = *gate / (1.0 + exp(-*gate)) * up;
            }
        }),
        Activation::GeluTanh => dispatch!(isa, |_, gate: &mut [f32], up: &[f32]| {
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = gelu_tanh(*gate) * up;
            }
        }),
    }
}

/// Computes the tanh approximation of GELU, `x/2 · (1 + tanh(u))` with
/// `u = √(2/π) · (x + 0.044715 x³)`, which equals `x / (1 + exp(-2u))`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const LINEAR: f32 = -1.595_769;
    const CUBIC: f32 = LINEAR * 0.044_715;
    x / (1.0 + exp((x * x).mul_add(CUBIC, LINEAR) * x))
}

/// Applies the rotary position embedding (RoPE): rotates the first `2 · cos.len()` dimensions
/// of one head by the angles with the given cosines and sines.
pub fn rope(isa: Isa, style: RopeStyle, head: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert_eq!(cos.len(), sin.len());
    let head = &mut head[..2 * cos.len()];
    match style {
        RopeStyle::Halves => {
            let (first, second) = head.split_at_mut(cos.len());
            dispatch!(isa, |_,
                            first: &mut [f32],
                            second: &mut [f32],
                            cos: &[f32],
                            sin: &[f32]| {
                let pairs = first.iter_mut().zip(second);
                for ((x, y), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
                    (*x, *y) = rotate(*x, *y, *cos, *sin);
                }
            });
        }
        RopeStyle::Pairs => {
            dispatch!(isa, |_, head: &mut [f32], cos: &[f32], sin: &[f32]| {
                let pairs = head.as_chunks_mut::<2>().0;
                for (pair, (cos, sin)) in pairs.iter_mut().zip(cos.iter().zip(sin)) {
                    (pair[0], pair[1]) = rotate(pair[0], pair[1], *cos, *sin);
                }
            });
        }
    }
}

#[inline(always)]
fn rotate(x: f32, y: f32, cos: f32, sin: f32) -> (f32, f32) {
    (x.mul_add(cos, -(y * sin)), y.mul_add(cos, x * sin))
}

/// Converts to f16, rounding to nearest even. Values beyond ±65504, including infinities,
/// become ±65504; NaN stays NaN.
pub fn to_f16(isa: Isa, x: &[f32], out: &mut [u16]) {
    assert_eq!(x.len(), out.len());
    dispatch!(isa, |lanes, x: &[f32], out: &mut [u16]| {
        let (x, last_x) = x.as_chunks::<LANES>();
        let (out, last_out) = out.as_chunks_mut::<LANES>();
        for (x, out) in x.iter().zip(out) {
            lanes.store_f16(lanes.load(x), out);
        }
        let (mut padded, mut halves) = ([0.0; LANES], [0; LANES]);
        padded[..last_x.len()].copy_from_slice(last_x);
        lanes.store_f16(lanes.load(&padded), &mut halves);
        last_out.copy_from_slice(&halves[..last_out.len()]);
    });
}

/// Converts from f16, which is exact.
pub fn from_f16(isa: Isa, x: &[u16], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    dispatch!(isa, |lanes, x: &[u16], out: &mut [f32]| {
        let (x, last_x) = x.as_chunks::<LANES>();
        let (out, last_out) = out.as_chunks_mut::<LANES>();
        for (x, out) in x.iter().zip(out) {
            lanes.store(lanes.load_f16(x), out);
        }
        let (mut halves, mut padded) = ([0; LANES], [0.0; LANES]);
        halves[..last_x.len()].copy_from_slice(last_x);
        lanes.store(lanes.load_f16(&halves), &mut padded);
        last_out.copy_from_slice(&padded[..last_out.len()]);
    });
}

//! Norm, rope and activation: the seam where serving has candle's fused
//! operations and training will put differentiable ones.

use candle_core::{Result, Tensor};

use crate::model::{Activation, RopeSpec, RopeStyle};

/// `x / rms(x) · weight` over the last dimension.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps)
}

/// The gated feed-forward's product, `activation(gate) ⊙ up`.
pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        // candle's `gelu` is the tanh approximation; `gelu_erf` is the exact one.
        Activation::GeluTanh => gate.gelu()?,
    };
    gate * up
}

/// Cosines and sines of a rope at the batch's positions, `[rows, dims/2]` each.
pub(super) struct Angles {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Angles {
    pub(super) fn new(
        rope: &RopeSpec,
        positions: &[usize],
        device: &candle_core::Device,
    ) -> Result<Angles> {
        let frequencies = rope.frequencies();
        // In f64: at position 30,000 an f32 angle is off by a thousandth.
        let angles = positions.iter().flat_map(|&position| {
            frequencies
                .iter()
                .map(move |&frequency| position as f64 * f64::from(frequency))
        });
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles
            .map(|angle| (angle.cos() as f32, angle.sin() as f32))
            .unzip();
        let shape = (positions.len(), rope.dims / 2);
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

/// Rotates the heads of `x`, `[heads, rows, head_dim]`.
pub(super) fn rope(x: &Tensor, rope: &RopeSpec, angles: &Angles) -> Result<Tensor> {
    let (_, _, head_dim) = x.dims3()?;
    let rotated = x.narrow(2, 0, rope.dims)?.contiguous()?.unsqueeze(0)?;
    let rotated = match rope.style {
        RopeStyle::Halves => candle_nn::rotary_emb::rope(&rotated, &angles.cos, &angles.sin)?,
        RopeStyle::Pairs => candle_nn::rotary_emb::rope_i(&rotated, &angles.cos, &angles.sin)?,
    }
    .squeeze(0)?;
    if rope.dims == head_dim {
        return Ok(rotated);
    }
    let rest = x.narrow(2, rope.dims, head_dim - rope.dims)?;
    Tensor::cat(&[&rotated, &rest.contiguous()?], 2)
}

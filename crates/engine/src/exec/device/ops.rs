//! Norm, RoPE and activation: the place where serving uses candle's fused operations and
//! training could substitute differentiable ones.

use candle_core::{Result, Tensor};

use incant_model::{Activation, RopeSpec, RopeStyle, Rotation};

/// RMS norm: `x / rms(x) · weight` over the last dimension.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    candle_nn::ops::rms_norm(&x.contiguous()?, weight, eps)
}

/// The gate of the feed-forward layer: `activation(gate) ⊙ up`.
pub(super) fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let gate = match activation {
        Activation::Silu => gate.silu()?,
        // candle's `gelu` is the tanh approximation; `gelu_erf` is the exact one.
        Activation::GeluTanh => gate.gelu()?,
    };
    gate * up
}

/// `x · factor`.
pub(super) fn scaled(x: Tensor, factor: f32) -> Result<Tensor> {
    match factor {
        1.0 => Ok(x),
        factor => x * f64::from(factor),
    }
}

/// Soft cap: `cap · tanh(x / cap)` if there is a cap.
pub(super) fn soft_cap(x: Tensor, cap: Option<f32>) -> Result<Tensor> {
    match cap {
        Some(cap) => (x / f64::from(cap))?.tanh()? * f64::from(cap),
        None => Ok(x),
    }
}

/// The cosines and sines of a RoPE at the positions of a batch, `[rows, dims/2]` each.
pub(super) struct Angles {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Angles {
    pub(super) fn new(
        rotation: &Rotation,
        positions: &[usize],
        device: &candle_core::Device,
    ) -> Result<Angles> {
        let (cos, sin) = rotation.angles(positions);
        let shape = (positions.len(), cos.len() / positions.len().max(1));
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

/// Applies a RoPE to the heads of `x`, `[heads, rows, head_dim]`.
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

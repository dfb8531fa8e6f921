//! The constant part of a decoder (specification, weights, rotary angles), and its row-wise
//! functions with their backward passes: embedding, RMSNorm, RoPE, residuals, gated activation.

use std::borrow::Cow;

use super::Context;
use super::rows::Sequence;
use incant_kernels::{Isa, gradients, math};
use incant_model::PackedWeights;
use incant_model::{DecoderSpec, RopeStyle, Rotation};

/// The constant part of a decoder.
pub(super) struct Decoder {
    pub(super) spec: DecoderSpec,
    pub(super) isa: Isa,
    pub(super) weights: PackedWeights,
    rotations: Vec<Rotation>,
}

/// RoPE angles of a batch's rows.
pub(super) struct Angles {
    style: RopeStyle,
    /// `[row][pair]`, likewise `sin` and `minus_sin`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// −sin, for the inverse rotation.
    minus_sin: Vec<f32>,
    /// Rotated pairs per row.
    pairs: usize,
}

/// The direction of a rotation.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    Forward,
    Inverse,
}

/// Rows per part: every thread gets at least one part, and no part is so tall that it falls out
/// of the caches.
pub(super) fn part_rows(rows: usize) -> usize {
    const MAX_PART_ROWS: usize = 512;
    let threads = rayon::current_num_threads();
    let parts = rows
        .div_ceil(MAX_PART_ROWS)
        .next_multiple_of(threads)
        .max(1);
    rows.div_ceil(parts).max(1)
}

impl Decoder {
    pub(super) fn new(spec: DecoderSpec, isa: Isa, weights: PackedWeights) -> Decoder {
        let rotations = spec.ropes.iter();
        let rotations = rotations.map(|rope| rope.rotation(spec.served_context));
        Decoder {
            rotations: rotations.collect(),
            spec,
            isa,
            weights,
        }
    }

    /// Builds the context that layers need for a batch whose rows have these positions.
    pub(super) fn context(&self, positions: &[usize], sequences: Vec<Sequence>) -> Context {
        let ropes = self.spec.ropes.iter().zip(&self.rotations);
        let angles = ropes.map(|(rope, rotation)| {
            let (cos, sin) = rotation.angles(positions);
            Angles {
                style: rope.style,
                pairs: cos.len().checked_div(positions.len()).unwrap_or(0),
                minus_sin: sin.iter().map(|sin| -sin).collect(),
                cos,
                sin,
            }
        });
        let scales = positions.iter().map(|&at| self.spec.query_scale(at));
        Context {
            angles: angles.collect(),
            scales: scales.collect(),
            sequences,
            part_rows: part_rows(positions.len()),
        }
    }

    /// Token embeddings, in parts of `part` rows.
    pub(super) fn embed(&self, tokens: &[u32], part: usize) -> Vec<Vec<f32>> {
        let (hidden, matrix) = (self.spec.hidden, self.weights.embedding());
        let parts = tokens.chunks(part).map(|tokens| {
            let mut x = vec![0.0; tokens.len() * hidden];
            for (x, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
                matrix.row(token as usize, x);
            }
            math::scale(self.isa, &mut x, self.spec.embedding_scale);
            x
        });
        parts.collect()
    }

    /// RMSNorm of each run of `weight.len()` elements of `x`; without a weight, `x` itself.
    pub(super) fn normed<'a>(&self, weight: Option<&[f32]>, x: &'a [f32]) -> Cow<'a, [f32]> {
        match weight {
            Some(weight) => self.norm(weight, x).into(),
            None => x.into(),
        }
    }

    pub(super) fn norm(&self, weight: &[f32], x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        let stretches = y.chunks_exact_mut(weight.len());
        for (y, x) in stretches.zip(x.chunks_exact(weight.len())) {
            math::rms_norm(self.isa, x, weight, self.spec.norm_eps, y);
        }
        y
    }

    /// Backward pass of [`norm`](Self::norm): turns the gradient `dy` of the output into that
    /// of the input `x`.
    pub(super) fn norm_backward(&self, weight: &[f32], x: &[f32], dy: &mut [f32]) {
        let stretches = dy.chunks_exact_mut(weight.len());
        for (dy, x) in stretches.zip(x.chunks_exact(weight.len())) {
            gradients::rms_norm(self.isa, x, weight, self.spec.norm_eps, dy);
        }
    }

    /// Normalises `x` in place and returns the old values, if there is a `weight`.
    pub(super) fn norm_in_place(
        &self,
        weight: Option<&[f32]>,
        x: &mut Vec<f32>,
    ) -> Option<Vec<f32>> {
        let y = self.norm(weight?, x);
        Some(std::mem::replace(x, y))
    }

    /// Applies RoPE, or its inverse, to the heads of the rows from `first` on.
    pub(super) fn apply_rope(
        &self,
        angles: &Angles,
        direction: Direction,
        first: usize,
        width: usize,
        x: &mut [f32],
    ) {
        let sin = match direction {
            Direction::Forward => &angles.sin,
            // The transpose of a rotation is its inverse.
            Direction::Inverse => &angles.minus_sin,
        };
        for (row, x) in (first..).zip(x.chunks_exact_mut(width)) {
            let pairs = row * angles.pairs..(row + 1) * angles.pairs;
            let (cos, sin) = (&angles.cos[pairs.clone()], &sin[pairs]);
            for head in x.chunks_exact_mut(self.spec.head_dim) {
                math::rope(self.isa, angles.style, head, cos, sin);
            }
        }
    }

    /// Adds the residual: `h = x + scale · h`.
    pub(super) fn add_residual(&self, x: &[f32], h: &mut [f32]) {
        if self.spec.residual_scale != 1.0 {
            math::scale(self.isa, h, self.spec.residual_scale);
        }
        math::add_assign(self.isa, h, x);
    }

    /// The gradient of `h` in [`add_residual`](Self::add_residual), given the gradient of the sum.
    pub(super) fn residual_backward(&self, dx: &[f32]) -> Vec<f32> {
        let mut dh = dx.to_vec();
        if self.spec.residual_scale != 1.0 {
            math::scale(self.isa, &mut dh, self.spec.residual_scale);
        }
        dh
    }

    pub(super) fn gated(&self, gate: &[f32], up: &[f32]) -> Vec<f32> {
        let mut h = gate.to_vec();
        math::gated(self.isa, self.spec.activation, &mut h, up);
        h
    }

    pub(super) fn query_width(&self) -> usize {
        self.spec.heads * self.spec.head_dim
    }

    pub(super) fn key_width(&self) -> usize {
        self.spec.kv_heads * self.spec.head_dim
    }
}

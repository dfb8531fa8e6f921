//! A decoder layer, forward and backward pass.
//!
//! Work is split by rows: each thread has one part, or several if there are many rows, and
//! takes it through all weights of a layer. Attention is split by sequences and heads.

use rayon::prelude::*;

use super::Context;
use super::adapter::{self, Gradients};
use super::attention::Attention;
use super::decoder::{Angles, Decoder, Direction};
use super::linear::Linear;
use incant_kernels::product::Inputs;
use incant_kernels::{gradients, math};
use incant_model::lora;
use incant_model::packed;

/// One layer with the adapter's weights at a step.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) index: usize,
    pub(super) context: &'a Context,
    pub(super) adapter: adapter::Layer<'a>,
}

/// Activations that the backward pass through a layer needs.
pub(super) struct Activations {
    /// After norm and RoPE.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attended: Vec<f32>,
    parts: Vec<(ProjectionActivations, FeedForwardActivations)>,
}

/// Activations of some rows before attention.
struct ProjectionActivations {
    /// The first of these rows.
    first: usize,
    x: Vec<f32>,
    /// Before the norm, if there is one; `k` likewise.
    q: Option<Vec<f32>>,
    k: Option<Vec<f32>>,
    low: [Low; 3],
}

/// Activations of some rows after attention.
struct FeedForwardActivations {
    /// The output projection before its norm, if there is one.
    output: Option<Vec<f32>>,
    low_output: [Low; 1],
    /// The residual stream between attention and the feed-forward network.
    middle: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    low_inner: [Low; 2],
    /// The down projection before its norm, if there is one.
    down: Option<Vec<f32>>,
    low_down: [Low; 1],
}

/// `scale · x·Aᵀ`: the low-rank activations of an adapted linear layer.
type Low = Vec<f32>;

impl Layer<'_> {
    fn weights(&self) -> &packed::Layer {
        &self.decoder.weights.layers[self.index]
    }

    fn linear(&self, linear: lora::Linear) -> Linear<'_> {
        let layer = self.weights();
        let [query, key, value] = &layer.projections;
        let matrix = match linear {
            lora::Linear::Query => &query.matrix,
            lora::Linear::Key => &key.matrix,
            lora::Linear::Value => &value.matrix,
            lora::Linear::Output => &layer.output,
            lora::Linear::Gate => &layer.gate,
            lora::Linear::Up => &layer.up,
            lora::Linear::Down => &layer.down,
        };
        Linear {
            isa: self.decoder.isa,
            matrix,
            lora: self.adapter.get(linear),
        }
    }

    /// The outputs of linear layers that share their inputs.
    fn linears<const N: usize>(
        &self,
        linears: [lora::Linear; N],
        x: &[f32],
    ) -> ([Vec<f32>; N], [Low; N]) {
        let linears = linears.map(|linear| self.linear(linear));
        let inputs = Inputs::new(self.decoder.isa, linears.map(|linear| linear.matrix), x);
        let mut all_low = [const { Vec::new() }; N];
        let all = std::array::from_fn(|at| {
            let (y, low) = linears[at].forward(&inputs, x);
            all_low[at] = low;
            y
        });
        (all, all_low)
    }

    /// Backward pass of [`linears`](Self::linears): the gradient of the shared inputs `x`, from
    /// those of the outputs.
    fn linears_backward<const N: usize>(
        &self,
        linears: [lora::Linear; N],
        x: &[f32],
        low: &[Low; N],
        dy: [&[f32]; N],
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        let mut dx = vec![0.0; x.len()];
        for ((linear, low), dy) in linears.into_iter().zip(low).zip(dy) {
            gradients[linear as usize] = self.linear(linear).backward(x, low, dy, &mut dx);
        }
        dx
    }

    fn attention(&self) -> Attention<'_> {
        let spec = &self.decoder.spec;
        Attention {
            isa: self.decoder.isa,
            sequences: &self.context.sequences,
            scales: &self.context.scales,
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            window: spec.layers[self.index].window,
            cap: spec.attention_cap,
        }
    }

    fn angles(&self) -> &Angles {
        &self.context.angles[self.decoder.spec.layers[self.index].rope]
    }

    /// Runs the layer over all rows, which are given in parts.
    pub(super) fn forward(&self, x: Vec<Vec<f32>>) -> (Vec<Vec<f32>>, Activations) {
        let part = self.context.part_rows;
        let parts = x.into_par_iter().enumerate();
        let parts = parts.map(|(number, x)| self.project(number * part, x));
        let (projected, qkv): (Vec<ProjectionActivations>, Vec<[Vec<f32>; 3]>) = parts.collect();
        let [q, k, v] = [0, 1, 2].map(|place| {
            let of_parts: Vec<&[f32]> = qkv.iter().map(|qkv| &qkv[place][..]).collect();
            of_parts.concat()
        });
        drop(qkv);
        let attended = self.attention().forward(&q, &k, &v);
        let parts = projected.into_par_iter();
        let parts = parts.zip(attended.par_chunks(part * self.decoder.query_width()));
        let parts = parts.map(|(projected, attended)| {
            let (x, fed) = self.feed_forward(&projected.x, attended);
            (x, (projected, fed))
        });
        let (x, parts) = parts.collect();
        let activations = Activations {
            q,
            k,
            v,
            attended,
            parts,
        };
        (x, activations)
    }

    /// Queries, keys and values of the rows from `first` on.
    fn project(&self, first: usize, x: Vec<f32>) -> (ProjectionActivations, [Vec<f32>; 3]) {
        use lora::Linear::{Key, Query, Value};
        let (decoder, weights) = (self.decoder, self.weights());
        let (mut qkv, low) = {
            let h = decoder.normed(weights.attention_norm.as_deref(), &x);
            self.linears([Query, Key, Value], &h)
        };
        for (y, projection) in qkv.iter_mut().zip(&weights.projections) {
            if let Some(bias) = &projection.bias {
                for y in y.chunks_exact_mut(bias.len()) {
                    math::add_assign(decoder.isa, y, bias);
                }
            }
        }
        let [q, k, _] = &mut qkv;
        let [query, key, _] = &weights.projections;
        let projected = ProjectionActivations {
            q: decoder.norm_in_place(query.norm.as_deref(), q),
            k: decoder.norm_in_place(key.norm.as_deref(), k),
            first,
            x,
            low,
        };
        let angles = self.angles();
        decoder.apply_rope(angles, Direction::Forward, first, decoder.query_width(), q);
        decoder.apply_rope(angles, Direction::Forward, first, decoder.key_width(), k);
        (projected, qkv)
    }

    /// The part of a layer after attention, for some rows. Returns the inputs of the next
    /// layer.
    fn feed_forward(&self, x: &[f32], attended: &[f32]) -> (Vec<f32>, FeedForwardActivations) {
        use lora::Linear::{Down, Gate, Output, Up};
        let (decoder, weights) = (self.decoder, self.weights());
        let ([mut middle], low_output) = self.linears([Output], attended);
        let post_norm = weights.post_attention_norm.as_deref();
        let output = decoder.norm_in_place(post_norm, &mut middle);
        decoder.add_residual(x, &mut middle);
        let h = decoder.normed(weights.feed_forward_norm.as_deref(), &middle);
        let ([gate, up], low_inner) = self.linears([Gate, Up], &h);
        drop(h);
        let h = decoder.gated(&gate, &up);
        let ([mut next], low_down) = self.linears([Down], &h);
        let post_norm = weights.post_feed_forward_norm.as_deref();
        let down = decoder.norm_in_place(post_norm, &mut next);
        decoder.add_residual(&middle, &mut next);
        let fed = FeedForwardActivations {
            output,
            low_output,
            middle,
            gate,
            up,
            low_inner,
            down,
            low_down,
        };
        (next, fed)
    }

    /// Backward pass: from the gradients of the layer's outputs, in parts, to those of its
    /// inputs. Also returns each part's gradients of the adapter.
    pub(super) fn backward(
        &self,
        activations: &Activations,
        mut dx: Vec<Vec<f32>>,
    ) -> (Vec<Vec<f32>>, Vec<Gradients>) {
        let decoder = self.decoder;
        let wide = self.context.part_rows * decoder.query_width();
        let narrow = self.context.part_rows * decoder.key_width();
        let parts = dx.par_iter_mut().zip(&activations.parts);
        let parts = parts.zip(activations.attended.par_chunks(wide));
        let fed = parts.map(|((dx, (_, fed)), attended)| {
            let mut gradients = Gradients::default();
            let d_attended = self.feed_forward_backward(fed, attended, dx, &mut gradients);
            (d_attended, gradients)
        });
        let (d_attended, mut gradients): (Vec<Vec<f32>>, Vec<Gradients>) = fed.collect();
        let d_attended = d_attended.concat();
        let qkv = [&activations.q[..], &activations.k, &activations.v];
        let [mut dq, mut dk, mut dv] = self.attention().backward(qkv, &d_attended);
        drop(d_attended);
        let d_qkv = dq.par_chunks_mut(wide);
        let d_qkv = d_qkv.zip(dk.par_chunks_mut(narrow));
        let d_qkv = d_qkv.zip(dv.par_chunks_mut(narrow));
        let parts = dx
            .par_iter_mut()
            .zip(&activations.parts)
            .zip(&mut gradients);
        let parts = parts.zip(d_qkv);
        parts.for_each(|(((dx, (projected, _)), gradients), ((dq, dk), dv))| {
            self.project_backward(projected, [dq, dk, dv], dx, gradients);
        });
        (dx, gradients)
    }

    /// Backward pass of [`feed_forward`](Self::feed_forward). Turns `dx` from the gradient of its outputs into
    /// that of `x`, except for the path through attention. Returns the gradient of `attended`.
    fn feed_forward_backward(
        &self,
        fed: &FeedForwardActivations,
        attended: &[f32],
        dx: &mut [f32],
        gradients: &mut Gradients,
    ) -> Vec<f32> {
        use lora::Linear::{Down, Gate, Output, Up};
        let (decoder, weights) = (self.decoder, self.weights());
        let mut dh = decoder.residual_backward(dx);
        if let (Some(weight), Some(down)) = (&weights.post_feed_forward_norm, &fed.down) {
            decoder.norm_backward(weight, down, &mut dh);
        }
        let h = decoder.gated(&fed.gate, &fed.up);
        let mut d_up = self.linears_backward([Down], &h, &fed.low_down, [&dh], gradients);
        let mut d_gate = h;
        let (isa, activation) = (decoder.isa, decoder.spec.activation);
        gradients::gated(isa, activation, &fed.gate, &fed.up, &mut d_up, &mut d_gate);
        let h = decoder.normed(weights.feed_forward_norm.as_deref(), &fed.middle);
        let both = [&d_gate[..], &d_up];
        let mut dh = self.linears_backward([Gate, Up], &h, &fed.low_inner, both, gradients);
        if let Some(weight) = &weights.feed_forward_norm {
            decoder.norm_backward(weight, &fed.middle, &mut dh);
        }
        math::add_assign(decoder.isa, dx, &dh);
        let mut dh = decoder.residual_backward(dx);
        if let (Some(weight), Some(output)) = (&weights.post_attention_norm, &fed.output) {
            decoder.norm_backward(weight, output, &mut dh);
        }
        self.linears_backward([Output], attended, &fed.low_output, [&dh], gradients)
    }

    /// Backward pass of [`project`](Self::project); adds to `dx`.
    fn project_backward(
        &self,
        projected: &ProjectionActivations,
        [dq, dk, dv]: [&mut [f32]; 3],
        dx: &mut [f32],
        gradients: &mut Gradients,
    ) {
        use lora::Linear::{Key, Query, Value};
        let (decoder, weights) = (self.decoder, self.weights());
        let (angles, first) = (self.angles(), projected.first);
        decoder.apply_rope(angles, Direction::Inverse, first, decoder.query_width(), dq);
        decoder.apply_rope(angles, Direction::Inverse, first, decoder.key_width(), dk);
        let [query, key, _] = &weights.projections;
        let normed = [
            (query, &projected.q, &mut *dq),
            (key, &projected.k, &mut *dk),
        ];
        for (projection, before, dy) in normed {
            if let (Some(weight), Some(before)) = (&projection.norm, before) {
                decoder.norm_backward(weight, before, dy);
            }
        }
        let h = decoder.normed(weights.attention_norm.as_deref(), &projected.x);
        let dy = [&*dq, &*dk, &*dv];
        let linears = [Query, Key, Value];
        let mut dh = self.linears_backward(linears, &h, &projected.low, dy, gradients);
        if let Some(weight) = &weights.attention_norm {
            decoder.norm_backward(weight, &projected.x, &mut dh);
        }
        math::add_assign(decoder.isa, dx, &dh);
    }
}

impl Activations {
    /// The layer's inputs, from which everything else can be recomputed (gradient
    /// checkpointing).
    pub(super) fn into_inputs(self) -> Vec<Vec<f32>> {
        let parts = self.parts.into_iter();
        parts.map(|(projected, _)| projected.x).collect()
    }
}

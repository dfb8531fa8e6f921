//! One transformer layer of the device executor.

use candle_core::{Device, Result, Tensor};

use super::adapters::Adapted;
use super::attention::Attention;
use super::cache::Kv;
use super::error::DeviceError;
use super::linear::{Linear, vector};
use super::ops;
use super::plan::Plan;
use crate::exec::Footprint;
use crate::exec::ledger::Ledger;
use incant_model::lora;
use incant_model::{DecoderSpec, Part, Weights};

pub(super) struct Layer {
    attention_norm: Option<Tensor>,
    query: Projection,
    key: Projection,
    value: Projection,
    output: Linear,
    post_attention_norm: Option<Tensor>,
    feed_forward_norm: Option<Tensor>,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_feed_forward_norm: Option<Tensor>,
}

/// A q, k or v projection, with the bias and norm that some architectures add.
struct Projection {
    linear: Linear,
    bias: Option<Tensor>,
    /// The norm of each head, or of all heads together if it has their whole width.
    norm: Option<Tensor>,
}

impl Projection {
    /// Computes `[heads, rows, head_dim]` from `[rows, hidden]`.
    fn forward(&self, h: &Tensor, spec: &DecoderSpec, adapted: &Adapted) -> Result<Tensor> {
        let mut x = self.linear.forward(h, adapted)?;
        if let Some(bias) = &self.bias {
            x = x.broadcast_add(bias)?;
        }
        let (rows, width) = x.dims2()?;
        if let Some(norm) = &self.norm {
            let part = norm.dim(0)?;
            x = x.reshape((rows, width / part, part))?;
            x = ops::rms_norm(&x, norm, spec.norm_eps)?;
        }
        let x = x.reshape((rows, width / spec.head_dim, spec.head_dim))?;
        x.transpose(0, 1)?.contiguous()
    }
}

impl Layer {
    pub(super) fn load(
        weights: &Weights<'_>,
        spec: &DecoderSpec,
        index: usize,
        device: &Device,
        footprint: &mut Footprint,
    ) -> std::result::Result<Layer, DeviceError> {
        let mut linear = |part, linear| {
            let place = Some((index, linear));
            Linear::load(weights.layer(index, part)?, place, device, footprint)
        };
        let query = linear(Part::Query, lora::Linear::Query)?;
        let key = linear(Part::Key, lora::Linear::Key)?;
        let value = linear(Part::Value, lora::Linear::Value)?;
        let output = linear(Part::Output, lora::Linear::Output)?;
        let gate = linear(Part::Gate, lora::Linear::Gate)?;
        let up = linear(Part::Up, lora::Linear::Up)?;
        let down = linear(Part::Down, lora::Linear::Down)?;
        let mut vector = |part| vector(weights.layer(index, part)?, device, footprint);
        let mut vector_if = |wanted: bool, part| wanted.then(|| vector(part)).transpose();
        Ok(Layer {
            query: Projection {
                linear: query,
                bias: vector_if(spec.qkv_bias, Part::QueryBias)?,
                norm: vector_if(spec.qk_norm.is_some(), Part::QueryNorm)?,
            },
            key: Projection {
                linear: key,
                bias: vector_if(spec.qkv_bias, Part::KeyBias)?,
                norm: vector_if(spec.qk_norm.is_some(), Part::KeyNorm)?,
            },
            value: Projection {
                linear: value,
                bias: vector_if(spec.qkv_bias, Part::ValueBias)?,
                norm: None,
            },
            post_attention_norm: vector_if(spec.post_norms, Part::PostAttentionNorm)?,
            post_feed_forward_norm: vector_if(spec.post_norms, Part::PostFeedForwardNorm)?,
            attention_norm: vector_if(spec.pre_norms, Part::AttentionNorm)?,
            feed_forward_norm: vector_if(spec.pre_norms, Part::FeedForwardNorm)?,
            output,
            gate,
            up,
            down,
        })
    }

    /// Runs the layer over all rows, `[rows, hidden]`, and appends their keys and values to
    /// their sequences.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        index: usize,
        spec: &DecoderSpec,
        plan: &Plan,
        ledger: &mut Ledger<Kv>,
    ) -> std::result::Result<Tensor, DeviceError> {
        let h = normed(x, self.attention_norm.as_ref(), spec)?;
        let h = self.attention(&h, index, spec, plan, ledger)?;
        let h = normed(&h, self.post_attention_norm.as_ref(), spec)?;
        let x = (x + ops::scaled(h, spec.residual_scale)?)?;
        let h = normed(&x, self.feed_forward_norm.as_ref(), spec)?;
        let h = ops::gated(
            &self.gate.forward(&h, &plan.adapted)?,
            &self.up.forward(&h, &plan.adapted)?,
            spec.activation,
        )?;
        let h = self.down.forward(&h, &plan.adapted)?;
        let h = normed(&h, self.post_feed_forward_norm.as_ref(), spec)?;
        Ok((x + ops::scaled(h, spec.residual_scale)?)?)
    }

    fn attention(
        &self,
        h: &Tensor,
        index: usize,
        spec: &DecoderSpec,
        plan: &Plan,
        ledger: &mut Ledger<Kv>,
    ) -> std::result::Result<Tensor, DeviceError> {
        let (rope, window) = (spec.layers[index].rope, spec.layers[index].window);
        let rotate = |x| ops::rope(&x, &spec.ropes[rope], &plan.angles[rope]);
        let q = rotate(self.query.forward(h, spec, &plan.adapted)?)?;
        let k = rotate(self.key.forward(h, spec, &plan.adapted)?)?;
        let v = self.value.forward(h, spec, &plan.adapted)?;

        let runs = &plan.rows.runs;
        let mut own = Vec::with_capacity(runs.len());
        for (run, suffix) in runs.iter().zip(&plan.own) {
            let rows = |x: &Tensor| x.narrow(1, run.rows.start, run.rows.len());
            let kv = &mut ledger.sequence_mut(run.sequence)?.kv;
            let skipped = suffix.views.of(window).from.saturating_sub(suffix.start);
            own.push(kv.append(index, suffix.tokens, &rows(&k)?, &rows(&v)?, skipped)?);
        }

        let (heads, rows, width) = q.dims3()?;
        let group = heads / spec.kv_heads;
        let q = q.broadcast_mul(&plan.query_scales)?;
        let q = q.reshape((spec.kv_heads, group, rows, width))?;
        let attended = Attention {
            plan,
            layer: index,
            window,
            cap: spec.attention_cap,
            q: &q,
            own: &own,
        }
        .run()?;
        let attended = attended
            .reshape((heads, rows, width))?
            .transpose(0, 1)?
            .reshape((rows, heads * width))?;
        Ok(self.output.forward(&attended, &plan.adapted)?)
    }
}

fn normed(h: &Tensor, weight: Option<&Tensor>, spec: &DecoderSpec) -> Result<Tensor> {
    match weight {
        Some(weight) => ops::rms_norm(h, weight, spec.norm_eps),
        None => Ok(h.clone()),
    }
}

//! A decoder's layers, as graphs.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};

use super::Context;
use super::adapter;
use super::attention::Attention;
use super::node::{of_two, with};
use super::ops::{self, Angles, Frozen};
use super::rows::Sequence;
use crate::exec::native::Weights;
use crate::kernels::{Isa, Matrix, math};
use crate::lora::Linear;
use crate::model::{DecoderSpec, Rotation};

/// What does not change: what a decoder is, and its weights.
pub(super) struct Decoder {
    pub(super) spec: DecoderSpec,
    pub(super) isa: Isa,
    pub(super) weights: Weights,
    rotations: Vec<Rotation>,
    norms: Vec<Norms>,
    output_norm: Arc<Vec<f32>>,
}

/// A layer's norms, where it has them.
struct Norms {
    attention: Option<Arc<Vec<f32>>>,
    query: Option<Arc<Vec<f32>>>,
    key: Option<Arc<Vec<f32>>>,
    post_attention: Option<Arc<Vec<f32>>>,
    feed_forward: Option<Arc<Vec<f32>>>,
    post_feed_forward: Option<Arc<Vec<f32>>>,
}

/// A linear layer of a decoder.
struct Part {
    decoder: Arc<Decoder>,
    layer: usize,
    linear: Linear,
}

impl AsRef<Matrix> for Part {
    fn as_ref(&self) -> &Matrix {
        let layer = &self.decoder.weights.layers[self.layer];
        let [query, key, value] = &layer.projections;
        match self.linear {
            Linear::Query => &query.matrix,
            Linear::Key => &key.matrix,
            Linear::Value => &value.matrix,
            Linear::Output => &layer.output,
            Linear::Gate => &layer.gate,
            Linear::Up => &layer.up,
            Linear::Down => &layer.down,
        }
    }
}

impl Decoder {
    pub(super) fn new(spec: DecoderSpec, isa: Isa, weights: Weights) -> Decoder {
        let shared = |norm: &Option<Vec<f32>>| norm.clone().map(Arc::new);
        let norms = weights.layers.iter().map(|layer| Norms {
            attention: shared(&layer.attention_norm),
            query: shared(&layer.projections[0].norm),
            key: shared(&layer.projections[1].norm),
            post_attention: shared(&layer.post_attention_norm),
            feed_forward: shared(&layer.feed_forward_norm),
            post_feed_forward: shared(&layer.post_feed_forward_norm),
        });
        let rotations = spec.ropes.iter();
        let rotations = rotations.map(|rope| rope.rotation(spec.served_context));
        Decoder {
            rotations: rotations.collect(),
            norms: norms.collect(),
            output_norm: Arc::new(weights.output_norm.clone()),
            spec,
            isa,
            weights,
        }
    }

    /// What the layers need to know of a batch, whose rows have these positions.
    pub(super) fn context(&self, positions: &[usize], sequences: Vec<Sequence>) -> Context {
        let ropes = self.spec.ropes.iter().zip(&self.rotations);
        let angles = ropes.map(|(rope, rotation)| {
            let (cos, sin) = rotation.angles(positions);
            Arc::new(Angles {
                style: rope.style,
                pairs: cos.len().checked_div(positions.len()).unwrap_or(0),
                minus_sin: sin.iter().map(|sin| -sin).collect(),
                cos,
                sin,
            })
        });
        let scales = positions.iter().map(|&at| self.spec.query_scale(at));
        Context {
            angles: angles.collect(),
            scales: Arc::new(scales.collect()),
            sequences: Arc::new(sequences),
        }
    }

    /// The embeddings of tokens.
    pub(super) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let (hidden, matrix) = (self.spec.hidden, self.weights.embedding());
        let mut x = vec![0.0; tokens.len() * hidden];
        for (x, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
            matrix.row(token as usize, x);
        }
        math::scale(self.isa, &mut x, self.spec.embedding_scale);
        Tensor::from_vec(x, (tokens.len(), hidden), &Device::Cpu)
    }

    pub(super) fn output_norm(&self, x: &Tensor) -> Result<Tensor> {
        self.norm(Some(&self.output_norm), x)
    }

    fn norm(&self, weight: Option<&Arc<Vec<f32>>>, x: &Tensor) -> Result<Tensor> {
        match weight {
            Some(weight) => ops::norm(self.isa, Arc::clone(weight), self.spec.norm_eps, x),
            None => Ok(x.clone()),
        }
    }

    /// A linear layer with what the adapter adds.
    fn linear(
        self: &Arc<Self>,
        layer: usize,
        linear: Linear,
        x: &Tensor,
        adapter: &adapter::Layer,
    ) -> Result<Tensor> {
        let part: Frozen = Arc::new(Part {
            decoder: Arc::clone(self),
            layer,
            linear,
        });
        match adapter.get(linear) {
            Some(added) => {
                ops::adapted_linear(self.isa, part, x, (&added.a, &added.b), added.scale)
            }
            None => ops::linear(self.isa, part, x),
        }
    }

    /// Runs a layer over all rows, `[rows, hidden]`.
    pub(super) fn layer(
        self: &Arc<Self>,
        index: usize,
        x: &Tensor,
        context: &Context,
        adapter: &adapter::Layer,
    ) -> Result<Tensor> {
        let (spec, norms) = (&self.spec, &self.norms[index]);
        let linear = |linear, x: &Tensor| self.linear(index, linear, x, adapter);
        let h = self.norm(norms.attention.as_ref(), x)?;
        let h = linear(
            Linear::Output,
            &self.attention(index, &h, context, adapter)?,
        )?;
        let h = self.norm(norms.post_attention.as_ref(), &h)?;
        let x = (x + scaled(h, spec.residual_scale)?)?;
        let h = self.norm(norms.feed_forward.as_ref(), &x)?;
        let (gate, up) = (linear(Linear::Gate, &h)?, linear(Linear::Up, &h)?);
        let h = ops::gated(self.isa, spec.activation, &gate, &up)?;
        let h = linear(Linear::Down, &h)?;
        let h = self.norm(norms.post_feed_forward.as_ref(), &h)?;
        x + scaled(h, spec.residual_scale)?
    }

    fn attention(
        self: &Arc<Self>,
        index: usize,
        h: &Tensor,
        context: &Context,
        adapter: &adapter::Layer,
    ) -> Result<Tensor> {
        let (spec, norms) = (&self.spec, &self.norms[index]);
        let angles = &context.angles[spec.layers[index].rope];
        let project = |place: usize, linear| {
            let y = self.linear(index, linear, h, adapter)?;
            match &self.weights.layers[index].projections[place].bias {
                Some(bias) => y.broadcast_add(&Tensor::new(&bias[..], &Device::Cpu)?),
                None => Ok(y),
            }
        };
        let turned = |x: Tensor, norm: Option<&Arc<Vec<f32>>>| {
            let x = self.norm(norm, &x)?;
            ops::rope(self.isa, Arc::clone(angles), spec.head_dim, &x)
        };
        let q = turned(project(0, Linear::Query)?, norms.query.as_ref())?;
        let k = turned(project(1, Linear::Key)?, norms.key.as_ref())?;
        let v = project(2, Linear::Value)?;
        let attention = Attention {
            isa: self.isa,
            sequences: Arc::clone(&context.sequences),
            scales: Arc::clone(&context.scales),
            heads: spec.heads,
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            window: spec.layers[index].window,
            cap: spec.attention_cap,
        };
        attention.run(&q, &k, &v)
    }
}

fn scaled(x: Tensor, scale: f32) -> Result<Tensor> {
    match scale {
        1.0 => Ok(x),
        scale => x * f64::from(scale),
    }
}

/// A layer of which nothing is kept but its input: on the way back it is computed again.
pub(super) fn recomputed(
    decoder: &Arc<Decoder>,
    index: usize,
    x: &Tensor,
    context: &Context,
    adapter: adapter::Layer,
) -> Result<Tensor> {
    let own = Arc::clone(decoder);
    let context = context.clone();
    let value = own.layer(index, &x.detach(), &context, &adapter.detached())?;
    let value = with(&value, <[f32]>::to_vec)?;
    let Some(weights) = adapter.flat()? else {
        return own.layer(index, x, &context, &adapter);
    };
    let shape = x.shape().clone();
    let back = move |[x, weights]: [&[f32]; 2], dy: &[f32]| {
        let gradients = || {
            let x = Var::from_slice(x, &shape, &Device::Cpu)?;
            let weights = Var::from_slice(weights, weights.len(), &Device::Cpu)?;
            let y = own.layer(index, &x, &context, &adapter.of_flat(&weights)?)?;
            let dy = Tensor::from_slice(dy, &shape, &Device::Cpu)?;
            let gradients = (y * dy)?.sum_all()?.backward()?;
            let of = |var: &Var| match gradients.get(var) {
                Some(gradient) => gradient.flatten_all()?.to_vec1(),
                None => Ok(vec![0.0; var.elem_count()]),
            };
            Ok::<_, candle_core::Error>([of(&x)?, of(&weights)?])
        };
        gradients().expect("what was computed once can be computed again")
    };
    of_two(
        "layer",
        [x, &weights],
        x.shape().clone(),
        value,
        Box::new(back),
    )
}

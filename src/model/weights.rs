//! Which tensors a decoder is made of, by name, with their shapes checked.

use super::{DecoderSpec, ModelError};
use crate::gguf::{Gguf, TensorView};

/// One weight matrix or vector of a layer, under llama.cpp's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Norm before attention.
    AttentionNorm,
    /// Query projection.
    Query,
    /// Key projection.
    Key,
    /// Value projection.
    Value,
    /// Query bias.
    QueryBias,
    /// Key bias.
    KeyBias,
    /// Value bias.
    ValueBias,
    /// Norm of each query head.
    QueryNorm,
    /// Norm of each key head.
    KeyNorm,
    /// Output projection of attention.
    Output,
    /// Norm of attention's output.
    PostAttentionNorm,
    /// Norm before the feed-forward part.
    FeedForwardNorm,
    /// Gate projection.
    Gate,
    /// Up projection.
    Up,
    /// Down projection.
    Down,
    /// Norm of the feed-forward part's output.
    PostFeedForwardNorm,
}

impl Part {
    /// What each layer of a decoder is made of.
    pub fn of(spec: &DecoderSpec) -> impl Iterator<Item = Part> {
        let always = [
            Part::AttentionNorm,
            Part::Query,
            Part::Key,
            Part::Value,
            Part::Output,
            Part::FeedForwardNorm,
            Part::Gate,
            Part::Up,
            Part::Down,
        ];
        let optional = [
            (
                spec.qkv_bias,
                &[Part::QueryBias, Part::KeyBias, Part::ValueBias][..],
            ),
            (spec.qk_norm, &[Part::QueryNorm, Part::KeyNorm]),
            (
                spec.post_norms,
                &[Part::PostAttentionNorm, Part::PostFeedForwardNorm],
            ),
        ];
        let present = optional.into_iter().filter(|(present, _)| *present);
        let present = present.flat_map(|(_, parts)| parts.iter().copied());
        always.into_iter().chain(present)
    }
}

/// The tensor names of one layer.
#[derive(Clone, Copy, Debug)]
pub struct LayerNames(pub usize);

impl LayerNames {
    /// The full name of a part, such as `blk.0.attn_q.weight`.
    pub fn of(self, part: Part) -> String {
        let suffix = match part {
            Part::AttentionNorm => "attn_norm.weight",
            Part::Query => "attn_q.weight",
            Part::Key => "attn_k.weight",
            Part::Value => "attn_v.weight",
            Part::QueryBias => "attn_q.bias",
            Part::KeyBias => "attn_k.bias",
            Part::ValueBias => "attn_v.bias",
            Part::QueryNorm => "attn_q_norm.weight",
            Part::KeyNorm => "attn_k_norm.weight",
            Part::Output => "attn_output.weight",
            Part::PostAttentionNorm => "post_attention_norm.weight",
            Part::FeedForwardNorm => "ffn_norm.weight",
            Part::Gate => "ffn_gate.weight",
            Part::Up => "ffn_up.weight",
            Part::Down => "ffn_down.weight",
            Part::PostFeedForwardNorm => "post_ffw_norm.weight",
        };
        format!("blk.{}.{suffix}", self.0)
    }
}

/// The tensors of a model, looked up by role and checked against its spec.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    gguf: &'a Gguf,
    spec: &'a DecoderSpec,
}

impl<'a> Weights<'a> {
    /// The weights in `gguf` of the decoder that `spec` describes.
    pub fn new(gguf: &'a Gguf, spec: &'a DecoderSpec) -> Weights<'a> {
        Weights { gguf, spec }
    }

    /// The token embedding, `[vocab, hidden]`.
    pub fn embedding(&self) -> Result<TensorView<'a>, ModelError> {
        self.checked("token_embd.weight", &[self.spec.vocab, self.spec.hidden])
    }

    /// The head, `[vocab, hidden]`; the embedding itself where they are tied.
    pub fn head(&self) -> Result<TensorView<'a>, ModelError> {
        if self.spec.tied_head {
            return self.embedding();
        }
        self.checked("output.weight", &[self.spec.vocab, self.spec.hidden])
    }

    /// The last norm, `[hidden]`.
    pub fn output_norm(&self) -> Result<TensorView<'a>, ModelError> {
        self.checked("output_norm.weight", &[self.spec.hidden])
    }

    /// A part of layer `layer`, in the shape the spec asks for.
    pub fn layer(&self, layer: usize, part: Part) -> Result<TensorView<'a>, ModelError> {
        let spec = self.spec;
        let (hidden, ff) = (spec.hidden, spec.feed_forward);
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let shape: &[usize] = match part {
            Part::AttentionNorm
            | Part::PostAttentionNorm
            | Part::FeedForwardNorm
            | Part::PostFeedForwardNorm => &[hidden],
            Part::Query => &[q, hidden],
            Part::Key | Part::Value => &[kv, hidden],
            Part::QueryBias => &[q],
            Part::KeyBias | Part::ValueBias => &[kv],
            Part::QueryNorm | Part::KeyNorm => &[spec.head_dim],
            Part::Output => &[hidden, q],
            Part::Gate | Part::Up => &[ff, hidden],
            Part::Down => &[hidden, ff],
        };
        self.checked(&LayerNames(layer).of(part), shape)
    }

    fn checked(&self, name: &str, expected: &[usize]) -> Result<TensorView<'a>, ModelError> {
        let view = self.gguf.tensor(name)?;
        if view.info.shape != expected {
            return Err(ModelError::Shape {
                name: name.to_owned(),
                found: view.info.shape.clone(),
                expected: expected.to_vec(),
            });
        }
        Ok(view)
    }
}

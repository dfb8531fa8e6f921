//! Which tensors a decoder is made of, by name, with their shapes checked.

use std::ops::Range;

use super::{DecoderSpec, ModelError, QkNorm};
use incant_gguf::{Gguf, TensorType, TensorView};

/// One weight matrix or vector of a layer.
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
            Part::Query,
            Part::Key,
            Part::Value,
            Part::Output,
            Part::Gate,
            Part::Up,
            Part::Down,
        ];
        let optional = [
            (
                spec.pre_norms,
                &[Part::AttentionNorm, Part::FeedForwardNorm][..],
            ),
            (
                spec.qkv_bias,
                &[Part::QueryBias, Part::KeyBias, Part::ValueBias],
            ),
            (spec.qk_norm.is_some(), &[Part::QueryNorm, Part::KeyNorm]),
            (
                spec.post_norms,
                &[Part::PostAttentionNorm, Part::PostFeedForwardNorm],
            ),
        ];
        let present = optional.into_iter().filter(|(present, _)| *present);
        let present = present.flat_map(|(_, parts)| parts.iter().copied());
        always.into_iter().chain(present)
    }

    /// The tensor that a part of layer `layer` is, or is rows of: a name such as
    /// `blk.0.attn_q.weight`.
    pub fn tensor(self, spec: &DecoderSpec, layer: usize) -> String {
        let suffix = match self {
            Part::Query | Part::Key | Part::Value if spec.fused_qkv => "attn_qkv.weight",
            Part::Gate | Part::Up if spec.fused_gate => "ffn_up.weight",
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
        format!("blk.{layer}.{suffix}")
    }

    /// Its shape, outermost dimension first.
    fn shape(self, spec: &DecoderSpec) -> Vec<usize> {
        let (hidden, ff) = (spec.hidden, spec.feed_forward);
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let normed = |whole| match spec.qk_norm {
            Some(QkNorm::Whole) => whole,
            _ => spec.head_dim,
        };
        match self {
            Part::AttentionNorm
            | Part::PostAttentionNorm
            | Part::FeedForwardNorm
            | Part::PostFeedForwardNorm => vec![hidden],
            Part::Query => vec![q, hidden],
            Part::Key | Part::Value => vec![kv, hidden],
            Part::QueryBias => vec![q],
            Part::KeyBias | Part::ValueBias => vec![kv],
            Part::QueryNorm => vec![normed(q)],
            Part::KeyNorm => vec![normed(kv)],
            Part::Output => vec![hidden, q],
            Part::Gate | Part::Up => vec![ff, hidden],
            Part::Down => vec![hidden, ff],
        }
    }

    /// The rows of its tensor that it is.
    pub fn rows(self, spec: &DecoderSpec) -> Range<usize> {
        let height = |part: Part| part.shape(spec)[0];
        let together = self.together(spec).iter().copied();
        let first = together
            .take_while(|&other| other != self)
            .map(height)
            .sum();
        first..first + height(self)
    }

    /// The matrices that stand one below the other in its tensor, itself among
    /// them; none if it has a tensor of its own.
    fn together(self, spec: &DecoderSpec) -> &'static [Part] {
        match self {
            Part::Query | Part::Key | Part::Value if spec.fused_qkv => {
                &[Part::Query, Part::Key, Part::Value]
            }
            Part::Gate | Part::Up if spec.fused_gate => &[Part::Gate, Part::Up],
            _ => &[],
        }
    }
}

/// A matrix or vector of a model: a tensor of its file, or some rows of one.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// The tensor's name.
    pub name: &'a str,
    /// How numbers are stored.
    pub kind: TensorType,
    /// How many rows there are; 1 in a vector.
    pub rows: usize,
    /// Numbers in a row.
    pub columns: usize,
    /// The rows, one after the other.
    pub data: &'a [u8],
}

impl<'a> Weight<'a> {
    /// A whole tensor: a matrix or a vector.
    pub fn whole(view: TensorView<'a>) -> Weight<'a> {
        let columns = view.info.shape.last().copied().unwrap_or(1);
        Weight {
            name: &view.info.name,
            kind: view.info.kind,
            rows: view.info.elements() / columns.max(1),
            columns,
            data: view.data,
        }
    }

    /// Some of its rows.
    pub fn cut(self, rows: Range<usize>) -> Weight<'a> {
        let row = self.data.len() / self.rows;
        Weight {
            rows: rows.len(),
            data: &self.data[rows.start * row..rows.end * row],
            ..self
        }
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
    pub fn embedding(&self) -> Result<Weight<'a>, ModelError> {
        self.tokens("token_embd.weight")
    }

    /// The head, `[vocab, hidden]`; the embedding itself where they are tied.
    pub fn head(&self) -> Result<Weight<'a>, ModelError> {
        if self.spec.tied_head {
            return self.embedding();
        }
        self.tokens("output.weight")
    }

    /// The rows of a tensor that belong to tokens: the first `vocab`, of which there may
    /// be more.
    fn tokens(&self, name: &str) -> Result<Weight<'a>, ModelError> {
        let DecoderSpec { vocab, hidden, .. } = *self.spec;
        let rows = self.gguf.tensor(name)?.info.shape.first();
        let rows = rows.map_or(vocab, |&rows| rows.max(vocab));
        Ok(self.whole(name, &[rows, hidden])?.cut(0..vocab))
    }

    /// The last norm, `[hidden]`.
    pub fn output_norm(&self) -> Result<Weight<'a>, ModelError> {
        self.whole("output_norm.weight", &[self.spec.hidden])
    }

    /// A part of layer `layer`, in the shape the spec asks for.
    pub fn layer(&self, layer: usize, part: Part) -> Result<Weight<'a>, ModelError> {
        let (name, shape) = (part.tensor(self.spec, layer), part.shape(self.spec));
        let together = part.together(self.spec);
        if together.is_empty() {
            return self.whole(&name, &shape);
        }
        let all = together.iter().map(|part| part.shape(self.spec)[0]).sum();
        Ok(self
            .whole(&name, &[all, shape[1]])?
            .cut(part.rows(self.spec)))
    }

    /// Makes sure that every weight is there, in its shape, and of a type that can
    /// be computed with, before any work is done.
    ///
    /// # Errors
    /// One is not; the error names it.
    pub fn check(&self, supported: impl Fn(TensorType) -> bool) -> Result<(), ModelError> {
        let check = |weight: Weight<'_>| match supported(weight.kind) {
            true => Ok(()),
            false => {
                let all = TensorType::all().filter(|&kind| supported(kind));
                Err(ModelError::WeightType {
                    name: weight.name.to_owned(),
                    kind: weight.kind,
                    supported: all.map(TensorType::name).collect::<Vec<_>>().join(", "),
                })
            }
        };
        check(self.embedding()?)?;
        check(self.head()?)?;
        check(self.output_norm()?)?;
        for layer in 0..self.spec.layers.len() {
            for part in Part::of(self.spec) {
                check(self.layer(layer, part)?)?;
            }
        }
        Ok(())
    }

    fn whole(&self, name: &str, expected: &[usize]) -> Result<Weight<'a>, ModelError> {
        let view = self.gguf.tensor(name)?;
        if view.info.shape != expected {
            return Err(ModelError::Shape {
                name: name.to_owned(),
                found: view.info.shape.clone(),
                expected: expected.to_vec(),
            });
        }
        Ok(Weight::whole(view))
    }
}

//! The tensors of a decoder, by name, with checked shapes.

use std::ops::Range;

use super::{DecoderSpec, ModelError, QkNorm};
use incant_gguf::{Gguf, TensorType, TensorView};

/// The role of a weight matrix or vector within a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The norm before attention.
    AttentionNorm,
    /// The query projection.
    Query,
    /// The key projection.
    Key,
    /// The value projection.
    Value,
    /// The query bias.
    QueryBias,
    /// The key bias.
    KeyBias,
    /// The value bias.
    ValueBias,
    /// The norm of the query heads.
    QueryNorm,
    /// The norm of the key heads.
    KeyNorm,
    /// The output projection of attention.
    Output,
    /// The norm of the output of attention.
    PostAttentionNorm,
    /// The norm before the feed-forward part.
    FeedForwardNorm,
    /// The gate projection.
    Gate,
    /// The up projection.
    Up,
    /// The down projection.
    Down,
    /// The norm of the output of the feed-forward part.
    PostFeedForwardNorm,
}

impl Part {
    /// Iterates over the parts of each layer of a decoder.
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

    /// Returns the name of the tensor that holds a part of layer `layer`, such as
    /// `blk.0.attn_q.weight`; a fused tensor holds several parts.
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

    /// The shape, outermost dimension first.
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

    /// Returns the rows of the tensor that hold this part.
    pub fn rows(self, spec: &DecoderSpec) -> Range<usize> {
        let height = |part: Part| part.shape(spec)[0];
        let fused = self.fused_with(spec).iter().copied();
        let first = fused.take_while(|&other| other != self).map(height).sum();
        first..first + height(self)
    }

    /// Returns all parts that a fused tensor holds one after the other, including this one;
    /// empty if the part has a tensor of its own.
    fn fused_with(self, spec: &DecoderSpec) -> &'static [Part] {
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
    /// The name of the tensor.
    pub name: &'a str,
    /// The storage type of the elements.
    pub kind: TensorType,
    /// The number of rows; 1 for a vector.
    pub rows: usize,
    /// The number of elements per row.
    pub columns: usize,
    /// The bytes of the rows.
    pub data: &'a [u8],
}

impl<'a> Weight<'a> {
    /// Returns a whole tensor, a matrix or a vector.
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

    /// Returns some of the rows.
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
    /// Returns the weights in `gguf` of the decoder that `spec` describes.
    pub fn new(gguf: &'a Gguf, spec: &'a DecoderSpec) -> Weights<'a> {
        Weights { gguf, spec }
    }

    /// Returns the token embedding, `[vocab, hidden]`.
    pub fn embedding(&self) -> Result<Weight<'a>, ModelError> {
        self.tokens("token_embd.weight")
    }

    /// Returns the LM head, `[vocab, hidden]`: the embedding itself if they are tied.
    pub fn lm_head(&self) -> Result<Weight<'a>, ModelError> {
        if self.spec.tied_embeddings {
            return self.embedding();
        }
        self.tokens("output.weight")
    }

    /// Returns the rows of a tensor that belong to tokens: the first `vocab` rows. The tensor
    /// may have more.
    fn tokens(&self, name: &str) -> Result<Weight<'a>, ModelError> {
        let DecoderSpec { vocab, hidden, .. } = *self.spec;
        let rows = self.gguf.tensor(name)?.info.shape.first();
        let rows = rows.map_or(vocab, |&rows| rows.max(vocab));
        Ok(self.whole(name, &[rows, hidden])?.cut(0..vocab))
    }

    /// Returns the final norm, `[hidden]`.
    pub fn output_norm(&self) -> Result<Weight<'a>, ModelError> {
        self.whole("output_norm.weight", &[self.spec.hidden])
    }

    /// Returns a part of layer `layer`, in the shape that the spec requires.
    pub fn layer(&self, layer: usize, part: Part) -> Result<Weight<'a>, ModelError> {
        let (name, shape) = (part.tensor(self.spec, layer), part.shape(self.spec));
        let fused = part.fused_with(self.spec);
        if fused.is_empty() {
            return self.whole(&name, &shape);
        }
        let all = fused.iter().map(|part| part.shape(self.spec)[0]).sum();
        Ok(self
            .whole(&name, &[all, shape[1]])?
            .cut(part.rows(self.spec)))
    }

    /// Checks that every weight exists, with the right shape and a supported type, before any
    /// of them is loaded.
    ///
    /// # Errors
    /// A weight is missing or unsuitable; the error names it.
    pub fn check(&self, supported: impl Fn(TensorType) -> bool) -> Result<(), ModelError> {
        let check = |weight: Weight<'_>| {
            if supported(weight.kind) {
                Ok(())
            } else {
                let all = TensorType::all().filter(|&kind| supported(kind));
                Err(ModelError::WeightType {
                    name: weight.name.to_owned(),
                    kind: weight.kind,
                    supported: all.map(TensorType::name).collect::<Vec<_>>().join(", "),
                })
            }
        };
        check(self.embedding()?)?;
        check(self.lm_head()?)?;
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

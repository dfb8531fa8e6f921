//! Attention over shared segments and private suffixes (cascade attention) with online softmax.
//!
//! The softmax over all keys of a row is computed in parts: one part per segment, in one
//! product for all rows that share the segment, and one part for the row's own suffix. A part
//! keeps its weighted sum of values together with the maximum score and the sum of the weights,
//! which suffices to merge two parts (log-sum-exp).

use candle_core::{Result, Tensor};

use super::cache::LayerKv;
use super::ops;
use super::plan::{Node, Plan};

/// The softmax-weighted sum of the values of some keys, before division by the sum of the
/// weights.
struct Partial {
    /// `[kv_heads, group, rows, head_dim]`.
    values: Tensor,
    /// The maximum score, `[kv_heads, group, rows, 1]`.
    max: Tensor,
    /// The sum of exp(score − max), of the same shape.
    sum: Tensor,
}

impl Partial {
    /// Computes the attention of `q`, `[kv_heads, group, rows, head_dim]` and already scaled,
    /// to the keys of `kv`.
    fn new(q: &Tensor, kv: &LayerKv, cap: Option<f32>, mask: Option<&Tensor>) -> Result<Partial> {
        let (kv_heads, group, rows, width) = q.dims4()?;
        let keys = kv.k.dims()[1];
        let flat = q.contiguous()?.reshape((kv_heads, group * rows, width))?;
        let scores = flat
            .matmul(&kv.k.transpose(1, 2)?)?
            .reshape((kv_heads, group, rows, keys))?;
        let mut scores = ops::soft_cap(scores, cap)?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        let max = scores.max_keepdim(3)?;
        let weights = scores.broadcast_sub(&max)?.exp()?;
        let sum = weights.sum_keepdim(3)?;
        let values = weights
            .reshape((kv_heads, group * rows, keys))?
            .matmul(&kv.v.contiguous()?)?
            .reshape((kv_heads, group, rows, width))?;
        Ok(Partial { values, max, sum })
    }

    /// Merges two partial results over different keys.
    fn merge(&self, other: &Partial) -> Result<Partial> {
        let max = self.max.maximum(&other.max)?;
        let mine = (&self.max - &max)?.exp()?;
        let theirs = (&other.max - &max)?.exp()?;
        let values = (self.values.broadcast_mul(&mine)? + other.values.broadcast_mul(&theirs)?)?;
        let sum = ((&self.sum * &mine)? + (&other.sum * &theirs)?)?;
        Ok(Partial { values, max, sum })
    }

    /// Concatenates the rows of several partial results.
    fn cat(mut parts: Vec<Partial>) -> Result<Partial> {
        if parts.len() == 1 {
            return Ok(parts.remove(0));
        }
        let cat = |of: fn(&Partial) -> &Tensor| {
            let tensors: Vec<&Tensor> = parts.iter().map(of).collect();
            Tensor::cat(&tensors, 2)
        };
        Ok(Partial {
            values: cat(|part| &part.values)?,
            max: cat(|part| &part.max)?,
            sum: cat(|part| &part.sum)?,
        })
    }

    fn finish(&self) -> Result<Tensor> {
        self.values.broadcast_div(&self.sum)
    }
}

/// The attention of one layer for all rows of a batch.
pub(super) struct Attention<'a> {
    pub(super) plan: &'a Plan,
    pub(super) layer: usize,
    pub(super) window: Option<usize>,
    /// The soft cap of the scores.
    pub(super) cap: Option<f32>,
    /// Scaled queries, `[kv_heads, group, rows, head_dim]`.
    pub(super) q: &'a Tensor,
    /// The visible part of each run's own suffix, including its new tokens.
    pub(super) own: &'a [LayerKv],
}

impl Attention<'_> {
    /// Computes the attention output, in the shape of the queries.
    pub(super) fn run(&self) -> Result<Tensor> {
        self.nodes(&self.plan.nodes)?.finish()
    }

    fn nodes(&self, nodes: &[Node]) -> Result<Partial> {
        let parts = nodes.iter().map(|node| self.node(node));
        Partial::cat(parts.collect::<Result<_>>()?)
    }

    fn node(&self, node: &Node) -> Result<Partial> {
        match node {
            Node::Own(run) => {
                let views = &self.plan.own[*run].views;
                let rows = &self.plan.rows.runs[*run].rows;
                let q = self.q.narrow(2, rows.start, rows.len())?;
                let mask = views.of(self.window).mask.as_ref();
                Partial::new(&q, &self.own[*run], self.cap, mask)
            }
            Node::Shared {
                segment,
                rows,
                end,
                views,
                beyond,
            } => {
                let beyond = self.nodes(beyond)?;
                let view = views.of(self.window);
                if view.from >= *end {
                    return Ok(beyond);
                }
                let (kv, start) = segment.layer(self.layer);
                let kv = kv.narrow(view.from - start, end - view.from)?;
                let q = self.q.narrow(2, rows.start, rows.len())?;
                Partial::new(&q, &kv, self.cap, view.mask.as_ref())?.merge(&beyond)
            }
        }
    }
}

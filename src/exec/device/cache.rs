//! KV on the device: private suffixes and shared segments.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::exec::{ExecError, SavedTensor, SegmentId};
use crate::model::DecoderSpec;

/// The least room a suffix is given, in tokens.
const LEAST_ROOM: usize = 64;

/// Keys and values of one layer, `[kv_heads, tokens, head_dim]` each.
#[derive(Clone, Debug)]
pub(super) struct LayerKv {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

/// A shared, read-only stretch of KV.
#[derive(Debug)]
pub(super) struct Segment {
    /// The chain that it was made on.
    pub(super) below: Vec<SegmentId>,
    /// Position of its first token.
    pub(super) start: usize,
    /// How many tokens it stands for.
    pub(super) len: usize,
    /// Per layer. A layer with a window holds only the last `window − 1` tokens:
    /// whoever comes after the segment sees no more.
    layers: Vec<LayerKv>,
}

impl Segment {
    /// Position after its last token.
    pub(super) fn end(&self) -> usize {
        self.start + self.len
    }

    /// The KV that layer `layer` holds, and the position of its first token.
    pub(super) fn layer(&self, layer: usize) -> (usize, &LayerKv) {
        let kv = &self.layers[layer];
        let held = kv.k.dims()[1];
        (self.end() - held, kv)
    }

    pub(super) fn save(&self) -> Result<Vec<SavedTensor>, ExecError> {
        if self.start > 0 {
            return Err(ExecError::Batch(
                "only a segment that begins at position 0 can be saved",
            ));
        }
        let mut saved = Vec::with_capacity(2 * self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            for (side, tensor) in [("k", &layer.k), ("v", &layer.v)] {
                let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
                saved.push(SavedTensor {
                    name: name(index, side),
                    shape: tensor.dims().to_vec(),
                    dtype: Dtype::F32,
                    bytes: values
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect(),
                });
            }
        }
        Ok(saved)
    }

    pub(super) fn restore(
        tokens: usize,
        saved: &SafeTensors<'_>,
        spec: &DecoderSpec,
        device: &Device,
    ) -> Result<Segment, ExecError> {
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            let shape = [spec.kv_heads, held(tokens, layer.window), spec.head_dim];
            let load = |side| load(saved, &name(index, side), &shape, device);
            layers.push(LayerKv {
                k: load("k")?,
                v: load("v")?,
            });
        }
        Ok(Segment {
            below: Vec::new(),
            start: 0,
            len: tokens,
            layers,
        })
    }
}

fn name(layer: usize, side: &str) -> String {
    format!("layers.{layer}.{side}")
}

/// How many of a segment's tokens a layer needs to hold.
fn held(tokens: usize, window: Option<usize>) -> usize {
    window.map_or(tokens, |window| tokens.min(window - 1))
}

fn load(
    saved: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
    device: &Device,
) -> Result<Tensor, ExecError> {
    let view = saved
        .tensor(name)
        .map_err(|error| ExecError::Saved(format!("{name}: {error}")))?;
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        return Err(ExecError::Saved(format!(
            "{name} is {:?} {:?}, expected F32 {shape:?}",
            view.dtype(),
            view.shape()
        )));
    }
    Ok(Tensor::from_raw_buffer(
        view.data(),
        DType::F32,
        shape,
        device,
    )?)
}

/// A running sequence: the segments it stands on and its own suffix.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Outermost first.
    pub(super) chain: Vec<(SegmentId, Arc<Segment>)>,
    /// Tokens in the suffix.
    own: usize,
    /// Per layer: room for at least `own` tokens. Nothing before the first one.
    layers: Vec<Option<LayerKv>>,
}

impl Sequence {
    pub(super) fn new(chain: Vec<(SegmentId, Arc<Segment>)>, spec: &DecoderSpec) -> Sequence {
        Sequence {
            chain,
            own: 0,
            layers: vec![None; spec.layers.len()],
        }
    }

    /// Position of the suffix's first token.
    pub(super) fn start(&self) -> usize {
        self.chain.last().map_or(0, |(_, segment)| segment.end())
    }

    /// How many tokens the sequence holds in all.
    pub(super) fn len(&self) -> usize {
        self.start() + self.own
    }

    /// Counts `tokens` tokens that were written behind the suffix's end.
    pub(super) fn grow(&mut self, tokens: usize) {
        self.own += tokens;
    }

    /// Writes keys and values, `[kv_heads, tokens, head_dim]`, behind the
    /// suffix's end, and returns the suffix with them: the KV of the positions
    /// from `from` on.
    pub(super) fn append(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        from: usize,
    ) -> candle_core::Result<LayerKv> {
        let (heads, tokens, width) = k.dims3()?;
        let needed = self.own + tokens;
        let slot = &mut self.layers[layer];
        let room = slot.as_ref().map_or(0, |kv| kv.k.dims()[1]);
        if room < needed {
            let room = needed.next_power_of_two().max(LEAST_ROOM);
            let grown = |old: Option<&Tensor>| -> candle_core::Result<Tensor> {
                let new = Tensor::zeros((heads, room, width), k.dtype(), k.device())?;
                if let Some(old) = old
                    && self.own > 0
                {
                    new.slice_set(&old.narrow(1, 0, self.own)?.contiguous()?, 1, 0)?;
                }
                Ok(new)
            };
            *slot = Some(LayerKv {
                k: grown(slot.as_ref().map(|kv| &kv.k))?,
                v: grown(slot.as_ref().map(|kv| &kv.v))?,
            });
        }
        let kv = slot.as_ref().expect("room was just made");
        kv.k.slice_set(&k.contiguous()?, 1, self.own)?;
        kv.v.slice_set(&v.contiguous()?, 1, self.own)?;
        let start = self.chain.last().map_or(0, |(_, segment)| segment.end());
        let skipped = from.saturating_sub(start).min(needed);
        Ok(LayerKv {
            k: kv.k.narrow(1, skipped, needed - skipped)?,
            v: kv.v.narrow(1, skipped, needed - skipped)?,
        })
    }

    /// A read-only copy of the suffix.
    pub(super) fn freeze(&self, spec: &DecoderSpec) -> Result<Segment, ExecError> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for (kv, layer) in self.layers.iter().zip(&spec.layers) {
            let kv = kv
                .as_ref()
                .ok_or(ExecError::Batch("an empty sequence cannot be frozen"))?;
            let held = held(self.own, layer.window);
            // A copy even of what is contiguous already, as with one KV head: a
            // view would keep the whole suffix's room alive.
            let last = |tensor: &Tensor| {
                let last = tensor.narrow(1, self.own - held, held)?;
                last.force_contiguous()
            };
            layers.push(LayerKv {
                k: last(&kv.k)?,
                v: last(&kv.v)?,
            });
        }
        Ok(Segment {
            below: self.chain.iter().map(|(id, _)| *id).collect(),
            start: self.start(),
            len: self.own,
            layers,
        })
    }
}

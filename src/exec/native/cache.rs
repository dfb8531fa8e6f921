//! KV in blocks of 16 tokens: private suffixes and shared segments.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use safetensors::{Dtype, SafeTensors};

use super::shared::SharedSlice;
use crate::exec::{ExecError, SavedTensor, SegmentId};
use crate::kernels::Isa;
use crate::kernels::attention::{
    self, BLOCK, Stretch, key_block_len, value_block_len, write_key, write_value,
};
use crate::model::DecoderSpec;

/// How the KV of a layer lies in memory: `[block][kv_head]` and then as
/// [`Stretch`] has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    kv_heads: usize,
    head_dim: usize,
}

impl Layout {
    pub(super) fn of(spec: &DecoderSpec) -> Layout {
        Layout {
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
        }
    }

    /// Numbers in a block of keys of all heads.
    pub(super) fn keys(self) -> usize {
        self.kv_heads * key_block_len(self.head_dim)
    }

    /// Numbers in a block of values of all heads.
    pub(super) fn values(self) -> usize {
        self.kv_heads * value_block_len(self.head_dim)
    }

    /// What attention reads of one head.
    pub(super) fn head<'a>(self, head: usize, keys: &'a [u16], values: &'a [u16]) -> Stretch<'a> {
        Stretch {
            keys: keys
                .get(head * key_block_len(self.head_dim)..)
                .unwrap_or(&[]),
            values: values
                .get(head * value_block_len(self.head_dim)..)
                .unwrap_or(&[]),
            key_stride: self.keys(),
            value_stride: self.values(),
            head_dim: self.head_dim,
        }
    }

    /// Writes a token's keys and values, all heads side by side, as token
    /// `token` of what the blocks hold.
    pub(super) fn write(
        self,
        isa: Isa,
        (keys, values): (&mut [u16], &mut [u16]),
        token: usize,
        (key, value): (&[f32], &[f32]),
    ) {
        let heads = key
            .chunks_exact(self.head_dim)
            .zip(value.chunks_exact(self.head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let keys = &mut keys[head * key_block_len(self.head_dim)..];
            write_key(isa, keys, self.keys(), token, key);
            let values = &mut values[head * value_block_len(self.head_dim)..];
            write_value(isa, values, self.values(), token, value);
        }
    }

    /// Reads one head's key and value of a token.
    fn read(
        self,
        isa: Isa,
        kv: &LayerKv,
        head: usize,
        token: usize,
        (key, value): (&mut [f32], &mut [f32]),
    ) {
        let stretch = self.head(head, &kv.keys, &kv.values);
        attention::read_key(isa, stretch.keys, stretch.key_stride, token, key);
        attention::read_value(isa, stretch.values, stretch.value_stride, token, value);
    }
}

/// Keys and values of one layer.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerKv {
    pub(super) keys: Vec<u16>,
    pub(super) values: Vec<u16>,
}

impl LayerKv {
    /// Room for `tokens` tokens.
    fn reserve(&mut self, layout: Layout, tokens: usize) {
        let blocks = tokens.div_ceil(BLOCK);
        if self.keys.len() < blocks * layout.keys() {
            self.keys.resize(blocks * layout.keys(), 0);
            self.values.resize(blocks * layout.values(), 0);
        }
    }

    /// A copy of the tokens from `first` on, `tokens` in all.
    fn from(&self, isa: Isa, layout: Layout, first: usize, tokens: usize) -> LayerKv {
        let mut copy = LayerKv::default();
        copy.reserve(layout, tokens);
        let width = layout.kv_heads * layout.head_dim;
        let (mut key, mut value) = (vec![0.0; width], vec![0.0; width]);
        for token in 0..tokens {
            let heads = key
                .chunks_exact_mut(layout.head_dim)
                .zip(value.chunks_exact_mut(layout.head_dim));
            for (head, head_kv) in heads.enumerate() {
                layout.read(isa, self, head, first + token, head_kv);
            }
            let blocks = (&mut copy.keys[..], &mut copy.values[..]);
            layout.write(isa, blocks, token, (&key, &value));
        }
        copy
    }
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
    pub(super) layers: Vec<LayerKv>,
}

/// How many of a segment's tokens a layer holds.
pub(super) fn held(tokens: usize, window: Option<usize>) -> usize {
    window.map_or(tokens, |window| tokens.min(window - 1))
}

impl Segment {
    /// Position after its last token.
    pub(super) fn end(&self) -> usize {
        self.start + self.len
    }

    pub(super) fn save(&self, isa: Isa, spec: &DecoderSpec) -> Result<Vec<SavedTensor>, ExecError> {
        if self.start > 0 {
            return Err(ExecError::Batch(
                "only a segment that begins at position 0 can be saved",
            ));
        }
        let layout = Layout::of(spec);
        let mut saved = Vec::with_capacity(2 * self.layers.len());
        let (mut key, mut value) = (vec![0.0; spec.head_dim], vec![0.0; spec.head_dim]);
        for (index, (kv, layer)) in self.layers.iter().zip(&spec.layers).enumerate() {
            let tokens = held(self.len, layer.window);
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for head in 0..spec.kv_heads {
                for token in 0..tokens {
                    layout.read(isa, kv, head, token, (&mut key, &mut value));
                    push(&mut keys, &key);
                    push(&mut values, &value);
                }
            }
            for (side, bytes) in [("k", keys), ("v", values)] {
                saved.push(SavedTensor {
                    name: name(index, side),
                    shape: vec![spec.kv_heads, tokens, spec.head_dim],
                    dtype: Dtype::F16,
                    bytes,
                });
            }
        }
        Ok(saved)
    }

    pub(super) fn restore(
        tokens: usize,
        saved: &SafeTensors<'_>,
        isa: Isa,
        spec: &DecoderSpec,
    ) -> Result<Segment, ExecError> {
        let layout = Layout::of(spec);
        let mut layers = Vec::with_capacity(spec.layers.len());
        let width = spec.kv_heads * spec.head_dim;
        let (mut key, mut value) = (vec![0.0; width], vec![0.0; width]);
        for (index, layer) in spec.layers.iter().enumerate() {
            let held = held(tokens, layer.window);
            let shape = [spec.kv_heads, held, spec.head_dim];
            let keys = load(saved, &name(index, "k"), &shape)?;
            let values = load(saved, &name(index, "v"), &shape)?;
            let mut kv = LayerKv::default();
            kv.reserve(layout, held);
            for token in 0..held {
                for head in 0..spec.kv_heads {
                    let from = (head * held + token) * spec.head_dim..;
                    let to = head * spec.head_dim..(head + 1) * spec.head_dim;
                    keys[from.clone()][..spec.head_dim].convert_to_f32_slice(&mut key[to.clone()]);
                    values[from][..spec.head_dim].convert_to_f32_slice(&mut value[to]);
                }
                let blocks = (&mut kv.keys[..], &mut kv.values[..]);
                layout.write(isa, blocks, token, (&key, &value));
            }
            layers.push(kv);
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

/// Appends numbers that are binary16 already.
fn push(bytes: &mut Vec<u8>, numbers: &[f32]) {
    bytes.extend(numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
}

fn load(saved: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f16>, ExecError> {
    let view = saved
        .tensor(name)
        .map_err(|error| ExecError::Saved(format!("{name}: {error}")))?;
    if view.dtype() != Dtype::F16 || view.shape() != shape {
        return Err(ExecError::Saved(format!(
            "{name} is {:?} {:?}, expected F16 {shape:?}",
            view.dtype(),
            view.shape()
        )));
    }
    let halves = view.data().chunks_exact(2);
    Ok(halves
        .map(|bytes| f16::from_le_bytes([bytes[0], bytes[1]]))
        .collect())
}

/// A running sequence: the segments it stands on and its own suffix.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Outermost first.
    pub(super) chain: Vec<(SegmentId, Arc<Segment>)>,
    /// Tokens in the suffix.
    pub(super) own: usize,
    /// Per layer: room for at least `own` tokens.
    layers: Vec<LayerKv>,
}

impl Sequence {
    pub(super) fn new(chain: Vec<(SegmentId, Arc<Segment>)>, spec: &DecoderSpec) -> Sequence {
        Sequence {
            chain,
            own: 0,
            layers: vec![LayerKv::default(); spec.layers.len()],
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

    /// Makes room for `tokens` more, and gives access to each layer's KV for
    /// several threads.
    pub(super) fn grow(&mut self, layout: Layout, tokens: usize) -> Vec<SharedKv<'_>> {
        let needed = self.own + tokens;
        self.layers
            .iter_mut()
            .map(|kv| {
                kv.reserve(layout, needed);
                SharedKv {
                    keys: SharedSlice::from(&mut kv.keys[..]),
                    values: SharedSlice::from(&mut kv.values[..]),
                }
            })
            .collect()
    }

    /// Ends the sequence and makes its suffix a segment.
    pub(super) fn freeze(self, isa: Isa, spec: &DecoderSpec) -> Segment {
        let layout = Layout::of(spec);
        let start = self.start();
        let layers = self.layers.into_iter().zip(&spec.layers);
        let layers = layers.map(|(mut kv, layer)| {
            let held = held(self.own, layer.window);
            if held < self.own {
                return kv.from(isa, layout, self.own - held, held);
            }
            kv.keys.shrink_to_fit();
            kv.values.shrink_to_fit();
            kv
        });
        Segment {
            layers: layers.collect(),
            below: self.chain.iter().map(|(id, _)| *id).collect(),
            start,
            len: self.own,
        }
    }
}

/// One layer's KV of a suffix, of which threads write different blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedKv<'a> {
    pub(super) keys: SharedSlice<'a, u16>,
    pub(super) values: SharedSlice<'a, u16>,
}

//! KV in blocks of 16 tokens: private suffixes and shared segments.

use half::f16;
use safetensors::{Dtype, SafeTensors};

use super::shared::SharedSlice;
use crate::exec::ledger::{self, held};
use crate::exec::{ExecError, SavedTensor, saved};
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

/// The KV of a segment, per layer. A layer with a window holds only the last
/// `window − 1` tokens.
#[derive(Debug)]
pub(super) struct Frozen(Vec<LayerKv>);

/// What this executor keeps count of.
pub(super) type Ledger = ledger::Ledger<Suffix, Frozen>;

impl Frozen {
    pub(super) fn layer(&self, layer: usize) -> &LayerKv {
        &self.0[layer]
    }

    /// What the segment of `len` tokens is saved as.
    pub(super) fn save(&self, len: usize, isa: Isa, spec: &DecoderSpec) -> Vec<SavedTensor> {
        let layout = Layout::of(spec);
        let mut saved = Vec::with_capacity(2 * self.0.len());
        let (mut key, mut value) = (vec![0.0; spec.head_dim], vec![0.0; spec.head_dim]);
        for (index, (kv, layer)) in self.0.iter().zip(&spec.layers).enumerate() {
            let tokens = held(len, layer.window);
            let [mut keys, mut values] = [(); 2].map(|()| Vec::new());
            for head in 0..spec.kv_heads {
                for token in 0..tokens {
                    layout.read(isa, kv, head, token, (&mut key, &mut value));
                    push(&mut keys, &key);
                    push(&mut values, &value);
                }
            }
            let shape = [spec.kv_heads, tokens, spec.head_dim];
            saved.extend(saved::layer(index, Dtype::F16, &shape, [keys, values]));
        }
        saved
    }

    pub(super) fn restore(
        tokens: usize,
        saved: &SafeTensors<'_>,
        isa: Isa,
        spec: &DecoderSpec,
    ) -> Result<Frozen, ExecError> {
        let layout = Layout::of(spec);
        let mut layers = Vec::with_capacity(spec.layers.len());
        let width = spec.kv_heads * spec.head_dim;
        let (mut key, mut value) = (vec![0.0; width], vec![0.0; width]);
        for (index, layer) in spec.layers.iter().enumerate() {
            let held = held(tokens, layer.window);
            let shape = [spec.kv_heads, held, spec.head_dim];
            let [keys, values] = saved::read(saved, index, Dtype::F16, &shape)?;
            let mut kv = LayerKv::default();
            kv.reserve(layout, held);
            for token in 0..held {
                for head in 0..spec.kv_heads {
                    let from = (head * held + token) * spec.head_dim;
                    let to = head * spec.head_dim..(head + 1) * spec.head_dim;
                    read_halves(keys, from, &mut key[to.clone()]);
                    read_halves(values, from, &mut value[to]);
                }
                let blocks = (&mut kv.keys[..], &mut kv.values[..]);
                layout.write(isa, blocks, token, (&key, &value));
            }
            layers.push(kv);
        }
        Ok(Frozen(layers))
    }
}

/// Appends numbers that are binary16 already.
fn push(bytes: &mut Vec<u8>, numbers: &[f32]) {
    bytes.extend(numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
}

/// Reads the binary16 numbers from the one numbered `first` on.
fn read_halves(bytes: &[u8], first: usize, out: &mut [f32]) {
    let halves = bytes[2 * first..].chunks_exact(2);
    for (out, half) in out.iter_mut().zip(halves) {
        *out = f16::from_le_bytes([half[0], half[1]]).to_f32();
    }
}

/// The KV of a sequence's suffix.
#[derive(Debug)]
pub(super) struct Suffix {
    /// Per layer, with room to grow.
    layers: Vec<LayerKv>,
}

impl Suffix {
    pub(super) fn new(spec: &DecoderSpec) -> Suffix {
        Suffix {
            layers: vec![LayerKv::default(); spec.layers.len()],
        }
    }

    /// Makes room for `tokens` tokens in all, and gives access to each layer's
    /// KV for several threads.
    pub(super) fn reserve(&mut self, layout: Layout, tokens: usize) -> Vec<SharedKv<'_>> {
        self.layers
            .iter_mut()
            .map(|kv| {
                kv.reserve(layout, tokens);
                SharedKv {
                    keys: SharedSlice::from(&mut kv.keys[..]),
                    values: SharedSlice::from(&mut kv.values[..]),
                }
            })
            .collect()
    }

    /// Gives up the KV of the suffix's `own` tokens.
    pub(super) fn freeze(&mut self, own: usize, isa: Isa, spec: &DecoderSpec) -> Frozen {
        let layout = Layout::of(spec);
        let layers = std::mem::take(&mut self.layers).into_iter();
        let layers = layers.zip(&spec.layers).map(|(mut kv, layer)| {
            let held = held(own, layer.window);
            if held < own {
                return kv.from(isa, layout, own - held, held);
            }
            kv.keys.shrink_to_fit();
            kv.values.shrink_to_fit();
            kv
        });
        Frozen(layers.collect())
    }
}

/// One layer's KV of a suffix, of which threads write different blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct SharedKv<'a> {
    pub(super) keys: SharedSlice<'a, u16>,
    pub(super) values: SharedSlice<'a, u16>,
}

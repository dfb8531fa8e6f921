//! KV on the device: private suffixes and shared segments.

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::exec::ledger::{self, held};
use crate::exec::{ExecError, SavedTensor, saved};
use crate::model::DecoderSpec;

/// The least room a suffix is given, in tokens.
const LEAST_ROOM: usize = 64;

/// Keys and values of one layer, `[kv_heads, tokens, head_dim]` each.
#[derive(Clone, Debug)]
pub(super) struct LayerKv {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

/// The KV of a segment, per layer. A layer with a window holds only the last
/// `window − 1` tokens.
#[derive(Debug)]
pub(super) struct Frozen(Vec<LayerKv>);

impl Frozen {
    pub(super) fn layer(&self, layer: usize) -> &LayerKv {
        &self.0[layer]
    }

    pub(super) fn save(&self) -> Result<Vec<SavedTensor>, ExecError> {
        let mut saved = Vec::with_capacity(2 * self.0.len());
        for (index, layer) in self.0.iter().enumerate() {
            let sides = [bytes(&layer.k)?, bytes(&layer.v)?];
            saved.extend(saved::layer(index, Dtype::F32, layer.k.dims(), sides));
        }
        Ok(saved)
    }

    pub(super) fn restore(
        tokens: usize,
        saved: &SafeTensors<'_>,
        spec: &DecoderSpec,
        device: &Device,
    ) -> Result<Frozen, ExecError> {
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            let shape = [spec.kv_heads, held(tokens, layer.window), spec.head_dim];
            let tensor = |bytes| Tensor::from_raw_buffer(bytes, DType::F32, &shape, device);
            let [k, v] = saved::read(saved, index, Dtype::F32, &shape)?;
            layers.push(LayerKv {
                k: tensor(k)?,
                v: tensor(v)?,
            });
        }
        Ok(Frozen(layers))
    }
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>, ExecError> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    Ok(bytes.collect())
}

/// The KV of a sequence's suffix.
#[derive(Debug)]
pub(super) struct Suffix {
    /// Per layer, with room to grow. Nothing before the first token.
    layers: Vec<Option<LayerKv>>,
}

/// What this executor keeps count of.
pub(super) type Ledger = ledger::Ledger<Suffix, Frozen>;

impl Suffix {
    pub(super) fn new(spec: &DecoderSpec) -> Suffix {
        Suffix {
            layers: vec![None; spec.layers.len()],
        }
    }

    /// Writes keys and values, `[kv_heads, tokens, head_dim]`, behind the
    /// suffix's `own` tokens, and returns the suffix with them from token
    /// `skipped` on.
    pub(super) fn append(
        &mut self,
        layer: usize,
        own: usize,
        k: &Tensor,
        v: &Tensor,
        skipped: usize,
    ) -> candle_core::Result<LayerKv> {
        let (heads, tokens, width) = k.dims3()?;
        let needed = own + tokens;
        let slot = &mut self.layers[layer];
        let room = slot.as_ref().map_or(0, |kv| kv.k.dims()[1]);
        if room < needed {
            let room = needed.next_power_of_two().max(LEAST_ROOM);
            let grown = |old: Option<&Tensor>| -> candle_core::Result<Tensor> {
                let new = Tensor::zeros((heads, room, width), k.dtype(), k.device())?;
                if let Some(old) = old
                    && own > 0
                {
                    new.slice_set(&old.narrow(1, 0, own)?.contiguous()?, 1, 0)?;
                }
                Ok(new)
            };
            *slot = Some(LayerKv {
                k: grown(slot.as_ref().map(|kv| &kv.k))?,
                v: grown(slot.as_ref().map(|kv| &kv.v))?,
            });
        }
        let kv = slot.as_ref().expect("room was just made");
        kv.k.slice_set(&k.contiguous()?, 1, own)?;
        kv.v.slice_set(&v.contiguous()?, 1, own)?;
        let skipped = skipped.min(needed);
        Ok(LayerKv {
            k: kv.k.narrow(1, skipped, needed - skipped)?,
            v: kv.v.narrow(1, skipped, needed - skipped)?,
        })
    }

    /// A read-only copy of the suffix's `own` tokens.
    pub(super) fn freeze(&self, own: usize, spec: &DecoderSpec) -> Result<Frozen, ExecError> {
        let mut layers = Vec::with_capacity(self.layers.len());
        for (kv, layer) in self.layers.iter().zip(&spec.layers) {
            let kv = kv.as_ref().expect("a suffix with tokens has KV");
            let held = held(own, layer.window);
            // A copy even of what is contiguous already, as with one KV head: a
            // view would keep the whole suffix's room alive.
            let last = |tensor: &Tensor| {
                let last = tensor.narrow(1, own - held, held)?;
                last.force_contiguous()
            };
            layers.push(LayerKv {
                k: last(&kv.k)?,
                v: last(&kv.v)?,
            });
        }
        Ok(Frozen(layers))
    }
}

//! The KV cache of the device executor: for each sequence a chain of shared segments, and a
//! private suffix.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use super::adapters::Adapter;
use super::error::DeviceError;
use crate::exec::{ExecError, SavedTensor, SwapOut, saved};
use incant_model::DecoderSpec;

/// The minimum capacity of a suffix, in tokens.
const MIN_CAPACITY: usize = 64;

/// The keys and values of one layer, `[kv_heads, tokens, head_dim]` each.
#[derive(Clone, Debug)]
pub(super) struct LayerKv {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

impl LayerKv {
    /// Returns a range of the tokens.
    pub(super) fn narrow(&self, first: usize, tokens: usize) -> candle_core::Result<LayerKv> {
        Ok(LayerKv {
            k: self.k.narrow(1, first, tokens)?,
            v: self.v.narrow(1, first, tokens)?,
        })
    }

    /// The number of tokens, or the capacity of a suffix.
    fn tokens(&self) -> usize {
        self.k.dims()[1]
    }
}

/// A read-only range of tokens that sequences share.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u64,
    /// The position of the first token.
    pub(super) start: usize,
    len: usize,
    /// The KV of each layer; a layer with a sliding window may hold only the last tokens.
    layers: Vec<LayerKv>,
}

impl Segment {
    /// Returns the keys and values of a layer, and the position of the first of them.
    pub(super) fn layer(&self, layer: usize) -> (&LayerKv, usize) {
        let kv = &self.layers[layer];
        (kv, self.start + self.len - kv.tokens())
    }

    pub(super) fn bytes(&self) -> usize {
        bytes_of(self.layers.iter())
    }
}

/// A link of a chain: the first `len` tokens of a segment.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) segment: Arc<Segment>,
    pub(super) len: usize,
}

impl Link {
    /// The position after the last used token.
    pub(super) fn end(&self) -> usize {
        self.segment.start + self.len
    }

    /// Iterates over the keys and values of each layer, limited to the tokens that are held and
    /// used.
    fn layers(&self) -> impl Iterator<Item = candle_core::Result<LayerKv>> {
        let beyond = self.segment.len - self.len;
        let layers = self.segment.layers.iter();
        layers.map(move |kv| kv.narrow(0, kv.tokens().saturating_sub(beyond)))
    }
}

/// The KV of a sequence, and the adapter with which it is computed.
#[derive(Debug)]
pub(super) struct Kv {
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) chain: Vec<Link>,
    suffix: Suffix,
}

#[derive(Debug)]
enum Suffix {
    /// The KV of each layer, with spare capacity; `None` before the first token.
    Here(Vec<Option<LayerKv>>),
    SwappedOut,
}

impl Kv {
    pub(super) fn new(spec: &DecoderSpec, adapter: Option<Arc<Adapter>>, chain: Vec<Link>) -> Kv {
        Kv {
            adapter,
            chain,
            suffix: Suffix::Here(vec![None; spec.layers.len()]),
        }
    }

    /// The position of the first token of the suffix.
    pub(super) fn start(&self) -> usize {
        self.chain.last().map_or(0, Link::end)
    }

    pub(super) fn is_swapped_out(&self) -> bool {
        matches!(self.suffix, Suffix::SwappedOut)
    }

    /// The capacity of the suffix in tokens.
    fn capacity(&self) -> usize {
        match &self.suffix {
            Suffix::Here(layers) => layers[0].as_ref().map_or(0, LayerKv::tokens),
            Suffix::SwappedOut => 0,
        }
    }

    /// Returns by how many tokens the capacity of the suffix would grow if it had to hold
    /// `needed` tokens.
    pub(super) fn growth(&self, needed: usize) -> usize {
        let capacity = self.capacity();
        if needed > capacity {
            capacity_for(needed) - capacity
        } else {
            0
        }
    }

    /// The size of the suffix in bytes.
    pub(super) fn bytes(&self) -> usize {
        match &self.suffix {
            Suffix::Here(layers) => bytes_of(layers.iter().flatten()),
            Suffix::SwappedOut => 0,
        }
    }

    /// Writes keys and values, `[kv_heads, tokens, head_dim]`, after the `own` tokens of the
    /// suffix, and returns the suffix including them, from token `skipped` on.
    pub(super) fn append(
        &mut self,
        layer: usize,
        own: usize,
        k: &Tensor,
        v: &Tensor,
        skipped: usize,
    ) -> candle_core::Result<LayerKv> {
        let Suffix::Here(layers) = &mut self.suffix else {
            candle_core::bail!("a sequence is swapped out");
        };
        let (heads, tokens, width) = k.dims3()?;
        let needed = own + tokens;
        let slot = &mut layers[layer];
        if slot.as_ref().map_or(0, LayerKv::tokens) < needed {
            let grown = |old: Option<&Tensor>| -> candle_core::Result<Tensor> {
                let shape = (heads, capacity_for(needed), width);
                let new = Tensor::zeros(shape, k.dtype(), k.device())?;
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
        let kv = slot.as_ref().expect("capacity was just added");
        kv.k.slice_set(&k.contiguous()?, 1, own)?;
        kv.v.slice_set(&v.contiguous()?, 1, own)?;
        let skipped = skipped.min(needed);
        kv.narrow(skipped, needed - skipped)
    }

    /// Converts the suffix of a sequence of `len` tokens to a segment with this id, so that it
    /// can be shared.
    pub(super) fn seal(&mut self, len: usize, id: u64) -> candle_core::Result<()> {
        let (start, own) = (self.start(), len - self.start());
        let Suffix::Here(layers) = &mut self.suffix else {
            candle_core::bail!("a sequence is swapped out");
        };
        if own == 0 {
            return Ok(());
        }
        let mut sealed = Vec::with_capacity(layers.len());
        for kv in layers.iter() {
            let kv = kv.as_ref().expect("a suffix with tokens has KV");
            // Copy even if the tensor is contiguous already, as with one KV head: a view would
            // keep the whole capacity of the suffix alive.
            let kv = kv.narrow(0, own)?;
            sealed.push(LayerKv {
                k: kv.k.force_contiguous()?,
                v: kv.v.force_contiguous()?,
            });
        }
        layers.fill(None);
        self.chain.push(Link {
            segment: Arc::new(Segment {
                id,
                start,
                len: own,
                layers: sealed,
            }),
            len: own,
        });
        Ok(())
    }

    /// Returns the chain of the first `tokens` tokens of a sealed sequence.
    pub(super) fn chain_of(&self, tokens: usize) -> Vec<Link> {
        let links = self.chain.iter();
        let links = links.take_while(|link| link.segment.start < tokens);
        links
            .map(|link| Link {
                segment: Arc::clone(&link.segment),
                len: link.len.min(tokens - link.segment.start),
            })
            .collect()
    }

    /// Shortens the chain to the first `tokens` tokens. Tokens of the suffix are overwritten by
    /// the next ones.
    pub(super) fn truncate(&mut self, tokens: usize) {
        if tokens < self.start() {
            self.chain = self.chain_of(tokens);
            if let Suffix::Here(layers) = &mut self.suffix {
                layers.fill(None);
            }
        }
    }

    /// Whether the KV needed to continue after the first `tokens` tokens is complete.
    pub(super) fn can_fork(&self, spec: &DecoderSpec, tokens: usize) -> bool {
        let whole = |link: &Link| {
            let mut layers = spec.layers.iter().enumerate();
            layers.all(|(index, layer)| {
                let (_, held) = link.segment.layer(index);
                let seen = layer.window.map_or(0, |window| first_seen(tokens, window));
                held <= seen.max(link.segment.start)
            })
        };
        !self.is_swapped_out() && self.chain_of(tokens).iter().all(whole)
    }

    /// Releases the suffix of a sequence of `len` tokens, and segments before it. Each is
    /// serialized after its first position and its length, and each of its layers after the
    /// number of tokens it holds.
    pub(super) fn swap_out(&mut self, len: usize, part: SwapOut) -> Result<Vec<u8>, DeviceError> {
        let mut out = Vec::new();
        let mut write = |start: usize, tokens: usize, layers: Vec<LayerKv>| {
            for number in [start, tokens] {
                out.extend((number as u64).to_le_bytes());
            }
            for kv in layers {
                out.extend((kv.tokens() as u64).to_le_bytes());
                out.extend(bytes(&kv.k)?);
                out.extend(bytes(&kv.v)?);
            }
            Ok::<(), DeviceError>(())
        };
        let start = self.start();
        if let Suffix::Here(layers) = &self.suffix {
            if len > start {
                let layers = layers.iter().flatten();
                let held = layers.map(|kv| kv.narrow(0, len - start));
                write(start, len - start, held.collect::<Result<_, _>>()?)?;
            }
            self.suffix = Suffix::SwappedOut;
        }
        while let Some(link) = self.chain.last() {
            if part == SwapOut::Own && Arc::strong_count(&link.segment) > 1 {
                break;
            }
            let layers = link.layers().collect::<Result<_, _>>()?;
            write(link.segment.start, link.len, layers)?;
            self.chain.pop();
        }
        Ok(out)
    }

    /// Restores the KV that a sequence of `len` tokens released; the segments get ids from
    /// `new_id`.
    pub(super) fn swap_in(
        &mut self,
        len: usize,
        spec: &DecoderSpec,
        device: &Device,
        bytes: &[u8],
        mut new_id: impl FnMut() -> u64,
    ) -> Result<(), DeviceError> {
        let wrong = || ExecError::Saved("it is not what was swapped out".to_owned());
        let mut links = Vec::new();
        let mut rest = bytes;
        let number = |rest: &mut &[u8]| {
            let (number, after) = rest.split_first_chunk().ok_or_else(wrong)?;
            *rest = after;
            Ok::<usize, DeviceError>(u64::from_le_bytes(*number) as usize)
        };
        let mut end = len;
        while !rest.is_empty() {
            let (start, tokens) = (number(&mut rest)?, number(&mut rest)?);
            // Segments were written from last to first.
            if tokens == 0 || start.checked_add(tokens) != Some(end) {
                return Err(wrong().into());
            }
            end = start;
            let mut layers = Vec::with_capacity(spec.layers.len());
            for _ in &spec.layers {
                let held = number(&mut rest)?;
                if held > tokens {
                    return Err(wrong().into());
                }
                let shape = [spec.kv_heads, held, spec.head_dim];
                let each = size_of::<f32>() * shape.iter().product::<usize>();
                let (both, after) = rest.split_at_checked(2 * each).ok_or_else(wrong)?;
                let (k, v) = both.split_at(each);
                let tensor = |bytes| Tensor::from_raw_buffer(bytes, DType::F32, &shape, device);
                layers.push(LayerKv {
                    k: tensor(k)?,
                    v: tensor(v)?,
                });
                rest = after;
            }
            let segment = Arc::new(Segment {
                id: new_id(),
                start,
                len: tokens,
                layers,
            });
            links.push(Link {
                segment,
                len: tokens,
            });
        }
        if end != self.start() {
            return Err(wrong().into());
        }
        self.chain.extend(links.into_iter().rev());
        self.suffix = Suffix::Here(vec![None; spec.layers.len()]);
        Ok(())
    }

    /// Returns the KV needed to continue after the `len` tokens of a sequence.
    pub(super) fn save(
        &self,
        len: usize,
        spec: &DecoderSpec,
    ) -> Result<Vec<SavedTensor>, DeviceError> {
        let mut saved = Vec::with_capacity(2 * spec.layers.len());
        let own = len - self.start();
        for (index, layer) in spec.layers.iter().enumerate() {
            let first = layer.window.map_or(0, |window| first_seen(len, window));
            let mut parts = Vec::new();
            for link in &self.chain {
                let (kv, start) = link.segment.layer(index);
                let from = first.max(start);
                if from < link.end() {
                    parts.push(kv.narrow(from - start, link.end() - from)?);
                }
            }
            if let Suffix::Here(layers) = &self.suffix
                && let Some(kv) = layers[index].as_ref().filter(|_| own > 0)
            {
                let from = first.saturating_sub(self.start());
                parts.push(kv.narrow(from, own - from)?);
            }
            let cat = |side: fn(&LayerKv) -> &Tensor| {
                let parts: Vec<&Tensor> = parts.iter().map(side).collect();
                Tensor::cat(&parts, 1)
            };
            let (k, v) = (cat(|kv| &kv.k)?, cat(|kv| &kv.v)?);
            let sides = [bytes(&k)?, bytes(&v)?];
            saved.extend(saved::layer(index, Dtype::F32, k.dims(), sides));
        }
        Ok(saved)
    }

    /// Restores the saved KV of `tokens` tokens as a segment with this id.
    pub(super) fn restore(
        tokens: usize,
        adapter: Option<Arc<Adapter>>,
        saved: &SafeTensors<'_>,
        spec: &DecoderSpec,
        device: &Device,
        id: u64,
    ) -> Result<Kv, DeviceError> {
        let mut layers = Vec::with_capacity(spec.layers.len());
        for (index, layer) in spec.layers.iter().enumerate() {
            let first = layer.window.map_or(0, |window| first_seen(tokens, window));
            let shape = [spec.kv_heads, tokens - first, spec.head_dim];
            let tensor = |bytes| Tensor::from_raw_buffer(bytes, DType::F32, &shape, device);
            let [k, v] = saved::read(saved, index, Dtype::F32, &shape)?;
            layers.push(LayerKv {
                k: tensor(k)?,
                v: tensor(v)?,
            });
        }
        let segment = Arc::new(Segment {
            id,
            start: 0,
            len: tokens,
            layers,
        });
        let link = Link {
            segment,
            len: tokens,
        };
        Ok(Kv::new(spec, adapter, vec![link]))
    }
}

/// The capacity of a suffix that must hold `needed` tokens.
pub(super) fn capacity_for(needed: usize) -> usize {
    needed.next_power_of_two().max(MIN_CAPACITY)
}

/// The first position visible from position `at` through a sliding window.
fn first_seen(at: usize, window: usize) -> usize {
    (at + 1).saturating_sub(window)
}

fn bytes_of<'a>(layers: impl Iterator<Item = &'a LayerKv>) -> usize {
    let numbers = |kv: &LayerKv| kv.k.elem_count() + kv.v.elem_count();
    layers.map(numbers).sum::<usize>() * size_of::<f32>()
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>, DeviceError> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    Ok(bytes.collect())
}

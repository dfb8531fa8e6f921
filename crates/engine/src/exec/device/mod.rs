//! The device executor: the forward pass as plain tensor operations, on any device that candle
//! supports (CPU, CUDA, Metal).
//!
//! It is the reference for faster executors, so it is written for readability. A batch is
//! ragged: the rows (tokens) of all its chunks are concatenated to a `[rows, hidden]` matrix,
//! and everything except attention treats rows alike. Attention processes the rows of all
//! sequences that share a segment together, and the suffix of each sequence separately (see
//! `attention.rs`).

mod adapters;
mod attention;
mod cache;
mod error;
mod layer;
mod linear;
mod ops;
mod plan;

use std::collections::HashSet;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use self::adapters::Adapter;
use self::cache::{Kv, capacity_for};
use self::error::DeviceError;
use self::layer::Layer;
use self::linear::{Embedding, Linear};
use self::plan::Plan;
use super::adapters::Adapters;
use super::ledger::Ledger;
use super::{
    AdapterId, Chunk, ExecError, Executor, Footprint, KvMemory, Logits, SavedTensor, SequenceId,
    SwapOut, check_states, default_kv_memory,
};
use incant_gguf::Gguf;
use incant_model::lora::Lora;
use incant_model::{DecoderSpec, Weights, candle_dtype};

/// Runs a model with candle's tensors.
pub struct DeviceExecutor {
    spec: DecoderSpec,
    device: Device,
    embedding: Embedding,
    layers: Vec<Layer>,
    output_norm: Tensor,
    lm_head: Linear,
    footprint: Footprint,
    ledger: Ledger<Kv>,
    adapters: Adapters<Adapter>,
    /// The maximum size of the KV cache in bytes.
    kv_memory: usize,
    /// The number of segments created so far, from which ids are assigned.
    segments: u64,
}

impl DeviceExecutor {
    /// Loads the weights of `gguf` onto `device`. `kv_memory` limits the bytes of the KV cache;
    /// `None` means [`default_kv_memory`].
    ///
    /// # Errors
    /// A tensor is missing, has the wrong shape or an unsupported type, or the device is out of
    /// memory.
    pub fn load(
        gguf: &Gguf,
        spec: &DecoderSpec,
        device: &Device,
        kv_memory: Option<usize>,
    ) -> Result<DeviceExecutor, ExecError> {
        let weights = Weights::new(gguf, spec);
        weights.check(|kind| candle_dtype(kind).is_some())?;
        let mut footprint = Footprint::default();
        let lm_head = Linear::load(weights.lm_head()?, None, device, &mut footprint)?;
        let embedding = if spec.tied_embeddings {
            Embedding::tied(&lm_head)
        } else {
            Embedding::load(weights.embedding()?, device, &mut footprint)?
        };
        let output_norm = linear::vector(weights.output_norm()?, device, &mut footprint)?;
        let layers = (0..spec.layers.len())
            .map(|index| Layer::load(&weights, spec, index, device, &mut footprint))
            .collect::<Result<_, DeviceError>>()?;
        let looked_up = if spec.tied_embeddings {
            0
        } else {
            weights.embedding()?.data.len()
        };
        footprint.streamed = footprint.resident - looked_up;
        Ok(DeviceExecutor {
            spec: spec.clone(),
            device: device.clone(),
            embedding,
            layers,
            output_norm,
            lm_head,
            footprint,
            ledger: Ledger::new(),
            adapters: Adapters::new(),
            kv_memory: kv_memory.unwrap_or_else(|| default_kv_memory(spec, size_of::<f32>())),
            segments: 0,
        })
    }

    /// The size of the KV of one token in bytes.
    fn token_bytes(&self) -> usize {
        let spec = &self.spec;
        2 * spec.layers.len() * spec.kv_heads * spec.head_dim * size_of::<f32>()
    }

    fn new_segment(&mut self) -> u64 {
        self.segments += 1;
        self.segments
    }

    /// Runs a batch: all layers and the LM head.
    fn compute(&mut self, plan: &Plan) -> Result<Logits, DeviceError> {
        let ids = Tensor::new(plan.rows.tokens.as_slice(), &self.device)?;
        let mut x = ops::scaled(self.embedding.forward(&ids)?, self.spec.embedding_scale)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, index, &self.spec, plan, &mut self.ledger)?;
        }
        self.lm_head(&x, plan)
    }

    /// Computes the logits and the final hidden states of the rows for which they are wanted,
    /// given the output of the last layer.
    fn lm_head(&self, x: &Tensor, plan: &Plan) -> Result<Logits, DeviceError> {
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        let normed = |rows: &[usize]| -> Result<Option<Tensor>, DeviceError> {
            if rows.is_empty() {
                return Ok(None);
            }
            let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
            let x = x.index_select(&Tensor::new(rows, &self.device)?, 0)?;
            let x = ops::rms_norm(&x, &self.output_norm, self.spec.norm_eps)?;
            Ok(Some(x))
        };
        let values = match normed(&plan.rows.wanted)? {
            Some(x) => self.logits(&x)?,
            None => Vec::new(),
        };
        let states = match normed(&plan.rows.states)? {
            Some(x) => x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
            None => Vec::new(),
        };
        Ok(Logits {
            vocab,
            values,
            hidden,
            states,
        })
    }

    /// Computes the logits of some normed rows with the LM head, row by row.
    fn logits(&self, x: &Tensor) -> Result<Vec<f32>, DeviceError> {
        let logits = ops::scaled(self.lm_head.forward(x, &[])?, self.spec.logit_scale)?;
        let logits = ops::soft_cap(logits, self.spec.logit_cap)?;
        Ok(logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

impl Executor for DeviceExecutor {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn footprint(&self) -> Footprint {
        self.footprint
    }

    fn kv_format(&self) -> String {
        format!("device-f32{}", self.spec.kv_variant())
    }

    fn adapter_bytes(&self, lora: &Lora) -> usize {
        let parts = lora.additions();
        let numbers = parts.map(|(.., part)| part.a.len() + part.b.len());
        numbers.sum::<usize>() * size_of::<f32>()
    }

    fn add_adapter(&mut self, lora: &Lora) -> Result<AdapterId, ExecError> {
        let adapter = Adapter::load(lora, &self.device).map_err(DeviceError::from)?;
        Ok(self.adapters.add(adapter))
    }

    fn remove_adapter(&mut self, adapter: AdapterId) {
        self.adapters.remove(adapter);
    }

    fn begin(&mut self) -> SequenceId {
        self.ledger.add(0, Kv::new(&self.spec, None, Vec::new()))
    }

    fn begin_with_adapter(&mut self, adapter: Option<AdapterId>) -> Result<SequenceId, ExecError> {
        let adapter = self.adapters.get(adapter)?;
        let kv = Kv::new(&self.spec, adapter, Vec::new());
        Ok(self.ledger.add(0, kv))
    }

    fn fork(&mut self, from: SequenceId, tokens: usize) -> Result<SequenceId, ExecError> {
        self.ledger.check_fork(from, tokens)?;
        if !self.can_fork(from, tokens) {
            return Err(ExecError::Batch("a fork needs KV that was let go"));
        }
        let id = self.new_segment();
        let parent = self.ledger.sequence_mut(from)?;
        // Shared tokens must not change any more, so they are sealed.
        if tokens > parent.kv.start() {
            let sealed = parent.kv.seal(parent.len, id);
            sealed.map_err(DeviceError::from)?;
        }
        let chain = parent.kv.chain_of(tokens);
        let kv = Kv::new(&self.spec, parent.kv.adapter.clone(), chain);
        Ok(self.ledger.add(tokens, kv))
    }

    fn can_fork(&self, from: SequenceId, tokens: usize) -> bool {
        self.ledger.sequence(from).is_ok_and(|sequence| {
            tokens <= sequence.len && sequence.kv.can_fork(&self.spec, tokens)
        })
    }

    fn truncate(&mut self, sequence: SequenceId, tokens: usize) -> Result<(), ExecError> {
        self.ledger.check_fork(sequence, tokens)?;
        if !self.can_fork(sequence, tokens) {
            return Err(ExecError::Batch(
                "a sequence is cut where its KV was let go",
            ));
        }
        self.ledger.sequence_mut(sequence)?.kv.truncate(tokens);
        self.ledger.shorten(sequence, tokens);
        Ok(())
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError> {
        Ok(self.ledger.sequence(sequence)?.len)
    }

    fn forward_into(&mut self, batch: &[Chunk<'_>], logits: &mut Logits) -> Result<(), ExecError> {
        let ids = |kv: &Kv| -> Vec<u64> { kv.chain.iter().map(|l| l.segment.id).collect() };
        let rows = self
            .ledger
            .lay_out(batch, self.spec.vocab, false, |a, b| ids(a).cmp(&ids(b)))?;
        let kv = rows.runs.iter();
        let kv = kv.map(|run| Ok(&self.ledger.sequence(run.sequence)?.kv));
        let kv = kv.collect::<Result<Vec<&Kv>, ExecError>>()?;
        if kv.iter().any(|kv| kv.is_swapped_out()) {
            return Err(ExecError::Batch("a sequence is swapped out"));
        }
        let growth = batch.iter().map(|c| (c.sequence, c.tokens.len()));
        if !self.fits(&growth.collect::<Vec<_>>()) {
            return Err(ExecError::OutOfKvMemory);
        }
        let plan = Plan::new(rows, &kv, &self.spec, &self.device).map_err(DeviceError::from)?;
        *logits = self.compute(&plan)?;
        // Only now, so that a failed batch leaves every sequence unchanged.
        self.ledger.grow(batch);
        Ok(())
    }

    fn logits_at(&mut self, states: &[&[f32]], ids: &[u32]) -> Result<Vec<Vec<f32>>, ExecError> {
        check_states(&self.spec, states, ids)?;
        if states.is_empty() {
            return Ok(Vec::new());
        }
        // Computes all logits and picks a few: a device has arithmetic to spare.
        let shape = (states.len(), self.spec.hidden);
        let states = Tensor::from_vec(states.concat(), shape, &self.device);
        let logits = self.logits(&states.map_err(DeviceError::from)?)?;
        let rows = logits.chunks_exact(self.spec.vocab);
        Ok(rows
            .map(|row| ids.iter().map(|&id| row[id as usize]).collect())
            .collect())
    }

    fn end(&mut self, sequence: SequenceId) {
        self.ledger.end(sequence);
    }

    fn kv_memory(&self) -> KvMemory {
        let mut seen = HashSet::new();
        let mut used = 0;
        for sequence in self.ledger.sequences() {
            used += sequence.kv.bytes();
            for link in &sequence.kv.chain {
                if seen.insert(link.segment.id) {
                    used += link.segment.bytes();
                }
            }
        }
        KvMemory {
            used,
            capacity: self.kv_memory,
        }
    }

    fn max_tokens(&self) -> usize {
        let most = self.kv_memory / self.token_bytes();
        let capacities =
            std::iter::successors(Some(capacity_for(1)), |capacity| Some(2 * capacity));
        let largest = capacities.take_while(|&capacity| capacity <= most).last();
        largest.unwrap_or(0).min(self.spec.context)
    }

    fn fits(&self, growth: &[(SequenceId, usize)]) -> bool {
        let tokens = growth.iter().map(|&(id, tokens)| {
            self.ledger.sequence(id).map_or(0, |sequence| {
                let own = sequence.len - sequence.kv.start();
                sequence.kv.growth(own + tokens)
            })
        });
        let more = tokens.sum::<usize>() * self.token_bytes();
        self.kv_memory().used + more <= self.kv_memory
    }

    fn trim(&mut self, _: SequenceId) -> bool {
        // Sliding windows are views of tensors here, so keys and values outside of them cannot
        // be freed.
        false
    }

    fn swap_out(&mut self, sequence: SequenceId, part: SwapOut) -> Result<Vec<u8>, ExecError> {
        let found = self.ledger.sequence_mut(sequence)?;
        Ok(found.kv.swap_out(found.len, part)?)
    }

    fn swap_in(&mut self, sequence: SequenceId, kv: &[u8]) -> Result<(), ExecError> {
        if !self.fits(&[(sequence, 0)]) {
            return Err(ExecError::OutOfKvMemory);
        }
        let found = self.ledger.sequence_mut(sequence)?;
        let segments = &mut self.segments;
        let new_id = || {
            *segments += 1;
            *segments
        };
        found
            .kv
            .swap_in(found.len, &self.spec, &self.device, kv, new_id)?;
        Ok(())
    }

    fn save(&self, sequence: SequenceId) -> Result<Vec<SavedTensor>, ExecError> {
        let found = self.ledger.sequence(sequence)?;
        if !self.can_fork(sequence, found.len) {
            return Err(ExecError::Batch("a sequence is swapped out"));
        }
        Ok(found.kv.save(found.len, &self.spec)?)
    }

    fn restore(
        &mut self,
        adapter: Option<AdapterId>,
        tokens: usize,
        saved: &SafeTensors<'_>,
    ) -> Result<SequenceId, ExecError> {
        let adapter = self.adapters.get(adapter)?;
        let id = self.new_segment();
        let kv = Kv::restore(tokens, adapter, saved, &self.spec, &self.device, id)?;
        Ok(self.ledger.add(tokens, kv))
    }
}

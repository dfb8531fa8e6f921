//! The native executor: the forward pass on the CPU, with our own kernels over packed weights
//! and a paged KV cache.
//!
//! It computes the same as the device executor. The rows of a batch pass through each layer
//! together, in a few *phases* that all threads of one pool share (`forward.rs`). KV is kept in
//! pages of 16 tokens that sequences share (`pages.rs`, `cache.rs`), and attention processes
//! the rows of all sequences that share pages together (`plan.rs`).
//!
//! The result of a row depends neither on the other rows of the batch nor on the origin of its
//! KV: attention is computed in chunks of 128 positions, whether or not sequences share them.
#![expect(unsafe_code)]

mod adapters;
mod buffers;
mod cache;
mod forward;
mod layout;
mod pages;
mod plan;
mod tasks;

use std::sync::Arc;

use safetensors::SafeTensors;

use self::adapters::{Adapted, Adapter};
use self::buffers::Buffers;
use self::cache::Kv;
use self::layout::Layout;
use self::pages::PagePool;
use self::plan::Plan;
use super::adapters::Adapters;
use super::ledger::Ledger;
use super::{
    AdapterId, Chunk, ExecError, Executor, Footprint, KvMemory, Logits, SavedTensor, SequenceId,
    SwapOut, check_states, default_kv_memory,
};
use incant_gguf::Gguf;
pub use incant_kernels::pool::{Pool, Worker, threads_to_use};
use incant_kernels::{Isa, LowRank, Tier};
use incant_model::lora::Lora;
use incant_model::{DecoderSpec, PackedWeights, Rotation};

/// Runs a model on the CPU.
pub struct NativeExecutor {
    spec: DecoderSpec,
    isa: Isa,
    pool: Arc<Pool>,
    weights: PackedWeights,
    /// The rotations of the RoPEs of the spec.
    rotations: Vec<Rotation>,
    buffers: Buffers,
    layout: Layout,
    pages: PagePool,
    ledger: Ledger<Kv>,
    adapters: Adapters<Adapter>,
}

impl NativeExecutor {
    /// Packs the weights of `gguf` for the kernels of `isa`. `kv_memory` limits the bytes of
    /// the KV cache; `None` means [`default_kv_memory`].
    ///
    /// # Errors
    /// A tensor is missing, has the wrong shape or an unsupported type, or memory cannot be
    /// allocated.
    pub fn load(
        gguf: &Gguf,
        spec: &DecoderSpec,
        isa: Isa,
        pool: Arc<Pool>,
        kv_memory: Option<usize>,
    ) -> Result<NativeExecutor, ExecError> {
        let layout = Layout::of(spec);
        let kv_memory = kv_memory.unwrap_or_else(|| default_kv_memory(spec, size_of::<u16>()));
        Ok(NativeExecutor {
            spec: spec.clone(),
            isa,
            weights: PackedWeights::load(gguf, spec, &pool)?,
            rotations: spec
                .ropes
                .iter()
                .map(|rope| rope.rotation(spec.served_context))
                .collect(),
            buffers: Buffers::new(isa, pool.threads()),
            pool,
            pages: PagePool::new(&layout, kv_memory)?,
            layout,
            ledger: Ledger::new(),
            adapters: Adapters::new(),
        })
    }

    /// Returns the KV and the length of a sequence, and the page pool.
    fn kv(&mut self, id: SequenceId) -> Result<(&mut Kv, usize, &mut PagePool), ExecError> {
        let sequence = self.ledger.sequence_mut(id)?;
        Ok((&mut sequence.kv, sequence.len, &mut self.pages))
    }
}

impl Executor for NativeExecutor {
    fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    fn footprint(&self) -> Footprint {
        self.weights.footprint()
    }

    fn kv_format(&self) -> String {
        // All instruction sets compute the same bits, except for AMX tiles.
        let tiles = match self.isa.tier() {
            Tier::Amx => "-amx",
            _ => "",
        };
        format!("native-f16{tiles}{}", self.spec.kv_variant())
    }

    fn adapter_bytes(&self, lora: &Lora) -> usize {
        let parts = lora.additions();
        let bytes = parts.map(|(.., part)| LowRank::packed(part.rank, part.inputs, part.outputs));
        bytes.sum()
    }

    fn add_adapter(&mut self, lora: &Lora) -> Result<AdapterId, ExecError> {
        Ok(self.adapters.add(Adapter::pack(lora)))
    }

    fn remove_adapter(&mut self, adapter: AdapterId) {
        self.adapters.remove(adapter);
    }

    fn begin(&mut self) -> SequenceId {
        self.ledger.add(0, Kv::new(&self.layout, None))
    }

    fn begin_with_adapter(&mut self, adapter: Option<AdapterId>) -> Result<SequenceId, ExecError> {
        let adapter = self.adapters.get(adapter)?;
        Ok(self.ledger.add(0, Kv::new(&self.layout, adapter)))
    }

    fn fork(&mut self, from: SequenceId, tokens: usize) -> Result<SequenceId, ExecError> {
        self.ledger.check_fork(from, tokens)?;
        if !self.can_fork(from, tokens) {
            return Err(ExecError::Batch("a fork needs KV that was let go"));
        }
        let (kv, _, pool) = self.kv(from)?;
        let kv = kv.fork(pool, tokens);
        Ok(self.ledger.add(tokens, kv))
    }

    fn has_fast_precision(&self) -> bool {
        // AMX tiles round to bf16.
        self.isa.tier() == Tier::Amx
    }

    fn can_fork(&self, from: SequenceId, tokens: usize) -> bool {
        self.ledger.sequence(from).is_ok_and(|sequence| {
            tokens <= sequence.len && sequence.kv.can_fork(&self.layout, tokens)
        })
    }

    fn truncate(&mut self, sequence: SequenceId, tokens: usize) -> Result<(), ExecError> {
        self.ledger.check_fork(sequence, tokens)?;
        if !self.can_fork(sequence, tokens) {
            return Err(ExecError::Batch(
                "a sequence is cut where its KV was let go",
            ));
        }
        let (kv, _, pool) = self.kv(sequence)?;
        kv.truncate(pool, tokens);
        self.ledger.shorten(sequence, tokens);
        Ok(())
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError> {
        Ok(self.ledger.sequence(sequence)?.len)
    }

    fn forward_into(&mut self, batch: &[Chunk<'_>], logits: &mut Logits) -> Result<(), ExecError> {
        let fast_apart = self.has_fast_precision();
        // Sequences that share pages are placed next to each other.
        let group = self.layout.whole_group();
        let order = |a: &Kv, b: &Kv| {
            let (a, b) = (&a.tables[group], &b.tables[group]);
            a.pages().cmp(b.pages())
        };
        let rows = self
            .ledger
            .lay_out(batch, self.spec.vocab, fast_apart, order)?;
        for run in &rows.runs {
            if self.ledger.sequence(run.sequence)?.kv.is_swapped_out() {
                return Err(ExecError::Batch("a sequence is swapped out"));
            }
        }
        let growth = batch.iter().map(|c| (c.sequence, c.tokens.len()));
        if !self.fits(&growth.collect::<Vec<_>>()) {
            return Err(ExecError::OutOfKvMemory);
        }
        for run in &rows.runs {
            let (kv, len, pool) = self.kv(run.sequence)?;
            kv.grow(pool, len, run.rows.len())?;
        }
        let (plan, adapted) = {
            let runs = rows.runs.iter();
            let kv = runs.map(|run| Ok(&self.ledger.sequence(run.sequence)?.kv));
            let kv = kv.collect::<Result<Vec<_>, ExecError>>()?;
            let mut adapted = Adapted::default();
            for (run, kv) in rows.runs.iter().zip(&kv) {
                if let Some(adapter) = &kv.adapter {
                    adapted.push(run.rows.clone(), adapter);
                }
            }
            let plan = Plan::new(rows, &kv, &self.pages, &self.layout, &self.rotations);
            (plan, adapted)
        };
        self.run(&plan, &adapted, logits);
        self.ledger.grow(batch);
        Ok(())
    }

    fn logits_at(&mut self, states: &[&[f32]], ids: &[u32]) -> Result<Vec<Vec<f32>>, ExecError> {
        check_states(&self.spec, states, ids)?;
        if states.is_empty() || ids.is_empty() {
            Ok(vec![Vec::new(); states.len()])
        } else {
            Ok(self.lm_head_at(states, ids))
        }
    }

    fn end(&mut self, sequence: SequenceId) {
        if let Some(ended) = self.ledger.end(sequence) {
            ended.kv.release(&mut self.pages);
        }
    }

    fn kv_memory(&self) -> KvMemory {
        self.pages.usage()
    }

    fn max_tokens(&self) -> usize {
        cache::max_tokens(&self.pages, &self.layout, self.spec.context)
    }

    fn fits(&self, growth: &[(SequenceId, usize)]) -> bool {
        let mut needed = vec![0; self.layout.groups.len()];
        for &(id, tokens) in growth {
            if let Ok(sequence) = self.ledger.sequence(id) {
                let (kv, len) = (&sequence.kv, sequence.len);
                kv.count_needed(&self.pages, len, tokens, &mut needed);
            }
        }
        self.pages.fits(&needed)
    }

    fn trim(&mut self, sequence: SequenceId) -> bool {
        match self.ledger.sequence_mut(sequence) {
            Ok(found) => found.kv.trim(&mut self.pages, &self.layout, found.len),
            Err(_) => false,
        }
    }

    fn swap_out(&mut self, sequence: SequenceId, part: SwapOut) -> Result<Vec<u8>, ExecError> {
        let (kv, _, pool) = self.kv(sequence)?;
        Ok(kv.swap_out(pool, part))
    }

    fn swap_in(&mut self, sequence: SequenceId, bytes: &[u8]) -> Result<(), ExecError> {
        let found = self.ledger.sequence_mut(sequence)?;
        found
            .kv
            .swap_in(&mut self.pages, &self.layout, found.len, bytes)
    }

    fn save(&self, sequence: SequenceId) -> Result<Vec<SavedTensor>, ExecError> {
        let found = self.ledger.sequence(sequence)?;
        if !self.can_fork(sequence, found.len) {
            return Err(ExecError::Batch("a sequence is swapped out"));
        }
        let (pages, layout) = (&self.pages, &self.layout);
        Ok(found
            .kv
            .save(pages, layout, self.isa, &self.spec, found.len))
    }

    fn restore(
        &mut self,
        adapter: Option<AdapterId>,
        tokens: usize,
        saved: &SafeTensors<'_>,
    ) -> Result<SequenceId, ExecError> {
        let adapter = self.adapters.get(adapter)?;
        let (pool, layout) = (&mut self.pages, &self.layout);
        let mut kv = Kv::restore(pool, layout, self.isa, &self.spec, tokens, saved)?;
        kv.adapter = adapter;
        Ok(self.ledger.add(tokens, kv))
    }
}

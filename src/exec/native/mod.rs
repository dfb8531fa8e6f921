//! The native executor: the forward pass on the CPU, with our own kernels over
//! packed weights.
//!
//! It computes what the device executor computes. A batch's rows go through
//! each layer together, in a handful of *phases* that all threads of one pool
//! share (`forward.rs`); attention takes the rows of all sequences that share a
//! segment through it at once (`plan.rs`, `cache.rs`). A row's numbers do not
//! depend on the rows beside it.
#![allow(unsafe_code)]

mod buffers;
mod cache;
mod forward;
mod plan;
mod pool;
mod shared;
mod shares;
mod weights;

use std::sync::Arc;

use safetensors::SafeTensors;

use self::buffers::Buffers;
use self::cache::{Frozen, Ledger, Suffix};
use self::plan::Plan;
pub use self::pool::{Crew, Pool, threads_to_use};
use self::weights::Weights;
use super::{Chunk, ExecError, Executor, Footprint, Logits, SavedTensor, SegmentId, SequenceId};
use crate::gguf::Gguf;
use crate::kernels::{Isa, Tier};
use crate::model::DecoderSpec;

/// Runs a model on the CPU.
pub struct NativeExecutor {
    spec: DecoderSpec,
    isa: Isa,
    pool: Arc<Pool>,
    weights: Weights,
    /// Radians per position of each rope's pairs.
    frequencies: Vec<Vec<f32>>,
    buffers: Buffers,
    ledger: Ledger,
}

impl NativeExecutor {
    /// Packs the weights of `gguf` for the kernels of `isa`.
    ///
    /// # Errors
    /// A tensor is missing, has the wrong shape or an unsupported type, or
    /// there is no memory.
    pub fn load(
        gguf: &Gguf,
        spec: &DecoderSpec,
        isa: Isa,
        pool: Arc<Pool>,
    ) -> Result<NativeExecutor, ExecError> {
        Ok(NativeExecutor {
            spec: spec.clone(),
            isa,
            weights: Weights::load(gguf, spec, &pool)?,
            frequencies: spec.ropes.iter().map(|rope| rope.frequencies()).collect(),
            buffers: Buffers::new(isa, pool.threads()),
            pool,
            ledger: Ledger::new(),
        })
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
        // All instruction sets compute the same, but for the tiles of AMX.
        match self.isa.tier() {
            Tier::Amx => "native-f16-amx".to_owned(),
            _ => "native-f16".to_owned(),
        }
    }

    fn begin(&mut self, chain: &[SegmentId]) -> Result<SequenceId, ExecError> {
        self.ledger.begin(chain, Suffix::new(&self.spec))
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError> {
        Ok(self.ledger.sequence(sequence)?.len())
    }

    fn forward(&mut self, batch: &[Chunk<'_>]) -> Result<Logits, ExecError> {
        // Tiles take prompts and nothing else.
        let prompts_apart = self.isa.tier() == Tier::Amx;
        let rows = self.ledger.lay_out(batch, self.spec.vocab, prompts_apart)?;
        let plan = Plan::new(rows, &self.spec, &self.frequencies);
        let logits = self.run(&plan);
        self.ledger.grow(batch);
        Ok(logits)
    }

    fn freeze(&mut self, sequence: SequenceId) -> Result<SegmentId, ExecError> {
        let (isa, spec) = (self.isa, &self.spec);
        self.ledger
            .freeze(sequence, |suffix, own| Ok(suffix.freeze(own, isa, spec)))
    }

    fn end(&mut self, sequence: SequenceId) {
        self.ledger.end(sequence);
    }

    fn release(&mut self, segment: SegmentId) {
        self.ledger.release(segment);
    }

    fn save(&self, segment: SegmentId) -> Result<Vec<SavedTensor>, ExecError> {
        let segment = self.ledger.first_segment(segment)?;
        Ok(segment.kv.save(segment.len, self.isa, &self.spec))
    }

    fn restore(&mut self, tokens: usize, saved: &SafeTensors<'_>) -> Result<SegmentId, ExecError> {
        let kv = Frozen::restore(tokens, saved, self.isa, &self.spec)?;
        Ok(self.ledger.add_first(tokens, kv))
    }
}

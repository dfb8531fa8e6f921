//! The native executor: the forward pass on the CPU, with our own kernels over
//! packed weights.
//!
//! It computes what the device executor computes. A batch's rows go through
//! each layer together, in a handful of *phases* that all threads of one pool
//! share (`forward.rs`); attention takes the rows of all sequences that share a
//! segment through it at once (`plan.rs`, `cache.rs`). A row's numbers do not
//! depend on the rows beside it.
#![allow(unsafe_code)]

mod cache;
mod forward;
mod plan;
mod pool;
mod shared;
mod shares;
mod weights;

use std::collections::HashMap;
use std::sync::Arc;

use safetensors::SafeTensors;

use self::cache::{Segment, Sequence};
use self::forward::Buffers;
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
    sequences: HashMap<SequenceId, Sequence>,
    segments: HashMap<SegmentId, Arc<Segment>>,
    next_id: u64,
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
            sequences: HashMap::new(),
            segments: HashMap::new(),
            next_id: 0,
        })
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence, ExecError> {
        self.sequences
            .get(&id)
            .ok_or_else(|| ExecError::Unknown(format!("sequence {}", id.0)))
    }

    fn segment(&self, id: SegmentId) -> Result<&Arc<Segment>, ExecError> {
        self.segments
            .get(&id)
            .ok_or_else(|| ExecError::Unknown(format!("segment {}", id.0)))
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn add_segment(&mut self, segment: Segment) -> SegmentId {
        let id = SegmentId(self.fresh_id());
        self.segments.insert(id, Arc::new(segment));
        id
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
        let chain = chain
            .iter()
            .map(|id| self.segment(*id).map(|segment| (*id, Arc::clone(segment))))
            .collect::<Result<Vec<_>, _>>()?;
        let ids: Vec<SegmentId> = chain.iter().map(|(id, _)| *id).collect();
        for (depth, (_, segment)) in chain.iter().enumerate() {
            // Elsewhere its keys would stand at the wrong positions.
            if segment.below != ids[..depth] {
                return Err(ExecError::Batch(
                    "a segment follows one that it was not made on",
                ));
            }
        }
        let id = SequenceId(self.fresh_id());
        self.sequences.insert(id, Sequence::new(chain, &self.spec));
        Ok(id)
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError> {
        Ok(self.sequence(sequence)?.len())
    }

    fn forward(&mut self, batch: &[Chunk<'_>]) -> Result<Logits, ExecError> {
        let amx = self.isa.tier() == Tier::Amx;
        let plan = Plan::new(batch, &self.sequences, &self.spec, &self.frequencies, amx)?;
        let logits = self.run(&plan);
        for run in &plan.runs {
            if let Some(sequence) = self.sequences.get_mut(&run.sequence) {
                sequence.own += run.rows.len();
            }
        }
        Ok(logits)
    }

    fn freeze(&mut self, sequence: SequenceId) -> Result<SegmentId, ExecError> {
        if self.sequence(sequence)?.own == 0 {
            return Err(ExecError::Batch("an empty sequence cannot be frozen"));
        }
        let ended = self.sequences.remove(&sequence);
        let ended = ended.expect("it was just looked up");
        Ok(self.add_segment(ended.freeze(self.isa, &self.spec)))
    }

    fn end(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn release(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
    }

    fn save(&self, segment: SegmentId) -> Result<Vec<SavedTensor>, ExecError> {
        self.segment(segment)?.save(self.isa, &self.spec)
    }

    fn restore(&mut self, tokens: usize, saved: &SafeTensors<'_>) -> Result<SegmentId, ExecError> {
        let segment = Segment::restore(tokens, saved, self.isa, &self.spec)?;
        Ok(self.add_segment(segment))
    }
}

//! The device executor: the forward pass as plain tensor operations, on
//! whatever device candle drives (CPU, CUDA, Metal).
//!
//! It is the reference that faster executors are held against, so it is
//! written to be read. A batch is ragged: the rows (tokens) of all its chunks
//! stand one below the other in a `[rows, hidden]` matrix, and everything but
//! attention treats rows alike. Attention takes the rows of all sequences that
//! share a segment through it at once, and each sequence's suffix by itself
//! (see `attention.rs`).

mod attention;
mod cache;
mod layer;
mod linear;
mod ops;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use self::cache::{Segment, Sequence};
use self::layer::Layer;
use self::linear::{Embedding, Linear};
use self::plan::Plan;
use super::{Chunk, ExecError, Executor, Footprint, Logits, SavedTensor, SegmentId, SequenceId};
use crate::gguf::Gguf;
use crate::model::{DecoderSpec, Weights};

/// Runs a model with candle's tensors.
pub struct DeviceExecutor {
    spec: DecoderSpec,
    device: Device,
    embedding: Embedding,
    layers: Vec<Layer>,
    output_norm: Tensor,
    head: Linear,
    footprint: Footprint,
    sequences: HashMap<SequenceId, Sequence>,
    segments: HashMap<SegmentId, Arc<Segment>>,
    next_id: u64,
}

impl DeviceExecutor {
    /// Loads the weights of `gguf` onto `device`.
    ///
    /// # Errors
    /// A tensor is missing, has the wrong shape or an unsupported type, or the
    /// device has no room.
    pub fn load(
        gguf: &Gguf,
        spec: &DecoderSpec,
        device: &Device,
    ) -> Result<DeviceExecutor, ExecError> {
        let weights = Weights::new(gguf, spec);
        let mut footprint = Footprint::default();
        let head = Linear::load(weights.head()?, device, &mut footprint)?;
        let embedding = if spec.tied_head {
            Embedding::tied(&head)
        } else {
            Embedding::load(weights.embedding()?, device, &mut footprint)?
        };
        let output_norm = linear::vector(weights.output_norm()?, device, &mut footprint)?;
        let layers = (0..spec.layers.len())
            .map(|index| Layer::load(&weights, spec, index, device, &mut footprint))
            .collect::<Result<_, _>>()?;
        let looked_up = match spec.tied_head {
            true => 0,
            false => weights.embedding()?.data.len(),
        };
        footprint.streamed = footprint.resident - looked_up;
        Ok(DeviceExecutor {
            spec: spec.clone(),
            device: device.clone(),
            embedding,
            layers,
            output_norm,
            head,
            footprint,
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

    /// The logits of the wanted rows, given the last layer's output.
    fn head(&self, x: &Tensor, plan: &Plan) -> Result<Logits, ExecError> {
        let vocab = self.spec.vocab;
        if plan.wanted.is_empty() {
            return Ok(Logits {
                vocab,
                values: Vec::new(),
            });
        }
        let rows = Tensor::new(plan.wanted.as_slice(), &self.device)?;
        let x = x.index_select(&rows, 0)?;
        let x = ops::rms_norm(&x, &self.output_norm, self.spec.norm_eps)?;
        let logits = self.head.forward(&x)?;
        Ok(Logits {
            vocab,
            values: logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?,
        })
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
        "device-f32".to_owned()
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
        let plan = Plan::new(batch, &self.sequences, &self.spec, &self.device)?;
        let ids = Tensor::new(plan.tokens.as_slice(), &self.device)?;
        let mut x = self.embedding.forward(&ids)?;
        if self.spec.embedding_scale != 1.0 {
            x = (x * f64::from(self.spec.embedding_scale))?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, index, &self.spec, &plan, &mut self.sequences)?;
        }
        let logits = self.head(&x, &plan)?;
        // Only now: a batch that failed half-way leaves every sequence as it was.
        for chunk in batch {
            if let Some(sequence) = self.sequences.get_mut(&chunk.sequence) {
                sequence.grow(chunk.tokens.len());
            }
        }
        Ok(logits)
    }

    fn freeze(&mut self, sequence: SequenceId) -> Result<SegmentId, ExecError> {
        let segment = self.sequence(sequence)?.freeze(&self.spec)?;
        self.end(sequence);
        Ok(self.add_segment(segment))
    }

    fn end(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    fn release(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
    }

    fn save(&self, segment: SegmentId) -> Result<Vec<SavedTensor>, ExecError> {
        self.segment(segment)?.save()
    }

    fn restore(&mut self, tokens: usize, saved: &SafeTensors<'_>) -> Result<SegmentId, ExecError> {
        let segment = Segment::restore(tokens, saved, &self.spec, &self.device)?;
        Ok(self.add_segment(segment))
    }
}

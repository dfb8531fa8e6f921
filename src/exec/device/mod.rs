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

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use self::cache::{Frozen, Ledger, Suffix};
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
    ledger: Ledger,
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
            ledger: Ledger::new(),
        })
    }

    /// The logits of the wanted rows, given the last layer's output.
    fn head(&self, x: &Tensor, plan: &Plan) -> Result<Logits, ExecError> {
        let vocab = self.spec.vocab;
        if plan.rows.wanted.is_empty() {
            return Ok(Logits {
                vocab,
                values: Vec::new(),
            });
        }
        let wanted: Vec<u32> = plan.rows.wanted.iter().map(|&row| row as u32).collect();
        let rows = Tensor::new(wanted, &self.device)?;
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
        self.ledger.begin(chain, Suffix::new(&self.spec))
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError> {
        Ok(self.ledger.sequence(sequence)?.len())
    }

    fn forward(&mut self, batch: &[Chunk<'_>]) -> Result<Logits, ExecError> {
        let rows = self.ledger.lay_out(batch, self.spec.vocab, false)?;
        let plan = Plan::new(rows, &self.spec, &self.device)?;
        let ids = Tensor::new(plan.rows.tokens.as_slice(), &self.device)?;
        let mut x = self.embedding.forward(&ids)?;
        if self.spec.embedding_scale != 1.0 {
            x = (x * f64::from(self.spec.embedding_scale))?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, index, &self.spec, &plan, &mut self.ledger)?;
        }
        let logits = self.head(&x, &plan)?;
        // Only now: a batch that failed half-way leaves every sequence as it was.
        self.ledger.grow(batch);
        Ok(logits)
    }

    fn freeze(&mut self, sequence: SequenceId) -> Result<SegmentId, ExecError> {
        let spec = &self.spec;
        self.ledger
            .freeze(sequence, |suffix, own| suffix.freeze(own, spec))
    }

    fn end(&mut self, sequence: SequenceId) {
        self.ledger.end(sequence);
    }

    fn release(&mut self, segment: SegmentId) {
        self.ledger.release(segment);
    }

    fn save(&self, segment: SegmentId) -> Result<Vec<SavedTensor>, ExecError> {
        self.ledger.first_segment(segment)?.kv.save()
    }

    fn restore(&mut self, tokens: usize, saved: &SafeTensors<'_>) -> Result<SegmentId, ExecError> {
        let kv = Frozen::restore(tokens, saved, &self.spec, &self.device)?;
        Ok(self.ledger.add_first(tokens, kv))
    }
}

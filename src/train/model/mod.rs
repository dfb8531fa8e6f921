//! The model that is trained: a decoder whose packed weights stay as they are, and an
//! adapter that changes.
//!
//! It computes what the executors compute, for whole sequences at once, as a graph of
//! functions that each know their way back. There is no other copy of the weights than
//! the packed one, on the way back neither.

mod adapter;
mod attention;
mod head;
mod layer;
mod node;
mod ops;
mod rows;

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

pub use adapter::{AdapterSettings, Form};

use self::adapter::Adapter;
use self::head::Head;
use self::layer::Decoder;
use self::ops::Angles;
use self::rows::{Rows, Sequence};
use super::{Batch, Student, TrainError};
use crate::exec::native::{Pool, Weights};
use crate::gguf::Gguf;
use crate::kernels::{Isa, Matrix};
use crate::model::{DecoderSpec, arch};

/// A frozen model with an adapter that is being trained, on the processor.
pub struct Model {
    decoder: Arc<Decoder>,
    head: Head,
    adapter: Adapter,
    /// Compute each layer again on the way back, instead of keeping what is in it.
    recompute: bool,
}

/// What layers need to know of a batch.
#[derive(Clone)]
struct Context {
    sequences: Arc<Vec<Sequence>>,
    /// By the model's ropes.
    angles: Vec<Arc<Angles>>,
    /// What each row's attention scores are multiplied by.
    scales: Arc<Vec<f32>>,
}

impl Model {
    /// Packs the weights of `gguf` for the best instructions there are, and makes an
    /// adapter for them.
    ///
    /// # Errors
    /// The file cannot be run, or the adapter does not fit it.
    pub fn load(
        gguf: &Gguf,
        pool: &Pool,
        settings: AdapterSettings,
        recompute: bool,
    ) -> Result<Model, TrainError> {
        let failed = |error: &dyn std::fmt::Display| TrainError::Model(error.to_string());
        let spec = arch::read(gguf).map_err(|error| failed(&error))?;
        let weights = Weights::load(gguf, &spec, pool).map_err(|error| failed(&error))?;
        let adapter = Adapter::new(&spec, settings)?;
        let isa = Isa::best();
        let decoder = Arc::new(Decoder::new(spec, isa, weights));
        let spec = &decoder.spec;
        let head = Head {
            isa,
            weight: Arc::new(HeadMatrix(Arc::clone(&decoder))),
            scale: spec.logit_scale,
            cap: spec.logit_cap,
        };
        Ok(Model {
            head,
            adapter,
            recompute,
            decoder,
        })
    }

    /// What the model is.
    pub fn spec(&self) -> &DecoderSpec {
        &self.decoder.spec
    }

    /// The last hidden states, normalised, of the rows before each token that counts, and
    /// those tokens.
    fn before_counted(
        &self,
        batch: &Batch,
        adapted: bool,
    ) -> candle_core::Result<(Tensor, Vec<u32>)> {
        let Rows {
            tokens,
            positions,
            sequences,
            counted,
        } = Rows::new(batch);
        let context = self.decoder.context(&positions, sequences);
        let mut x = self.decoder.embed(&tokens)?;
        for index in 0..self.decoder.spec.layers.len() {
            let adapter = match adapted {
                true => self.adapter.layer(index),
                false => adapter::Layer::default(),
            };
            x = match self.recompute && adapted {
                true => layer::recomputed(&self.decoder, index, &x, &context, adapter)?,
                false => self.decoder.layer(index, &x, &context, &adapter)?,
            };
        }
        let (wanted, targets): (Vec<u32>, Vec<u32>) = counted.into_iter().unzip();
        let x = x.index_select(&Tensor::new(wanted, &Device::Cpu)?, 0)?;
        Ok((self.decoder.output_norm(&x)?, targets))
    }
}

/// The head's matrix of a decoder's weights.
struct HeadMatrix(Arc<Decoder>);

impl AsRef<Matrix> for HeadMatrix {
    fn as_ref(&self) -> &Matrix {
        &self.0.weights.head
    }
}

impl Student for Model {
    fn variables(&self) -> &[(String, Var)] {
        self.adapter.variables()
    }

    fn logprobs(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        let (x, targets) = self.before_counted(batch, true)?;
        Ok(self.head.logprobs(&x, &targets, x.track_op())?)
    }

    fn unadapted(&self, batch: &Batch) -> Result<Tensor, TrainError> {
        let (x, _) = self.before_counted(batch, false)?;
        Ok(x.detach())
    }

    fn divergences(&self, batch: &Batch, teacher: &Tensor) -> Result<Tensor, TrainError> {
        let (x, _) = self.before_counted(batch, true)?;
        Ok(self.head.divergences(&x, teacher, x.track_op())?)
    }

    fn save(&self, folder: &Path) -> Result<(), TrainError> {
        self.adapter.save(&self.decoder.spec, folder)
    }
}

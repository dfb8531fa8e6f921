//! Weights on the device: linear layers, the embedding, norms and biases.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};

use super::adapters::{self, Adapted};
use crate::exec::{ExecError, Footprint};
use incant_gguf::TensorType;
use incant_model::lora;
use incant_model::{Weight, candle_dtype};

/// Up to so many rows are few: the rows of a batch that decodes.
const FEW_ROWS: usize = 16;

/// A frozen linear layer, `y = x·Wᵀ`, `W` of shape `[out, in]`, to which adapters
/// may add.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: QMatMul,
    /// Which one it is of which layer; the head has no such place.
    place: Option<(usize, lora::Linear)>,
}

impl Linear {
    /// Puts a weight matrix on the device.
    ///
    /// A GPU computes on every quantized type as it is. On the CPU matrices are
    /// expanded to f32: candle's code for most quantized types is several times
    /// slower than the same product in f32, and all of it rounds activations to
    /// 8 bits, in ways that depend on how many rows there are.
    pub(super) fn load(
        weight: Weight<'_>,
        place: Option<(usize, lora::Linear)>,
        device: &Device,
        footprint: &mut Footprint,
    ) -> Result<Linear, ExecError> {
        let tensor = quantized(weight, device)?;
        if device.is_cpu() {
            let expanded = tensor.dequantize(device)?;
            let bytes = expanded.elem_count() * expanded.dtype().size_in_bytes();
            footprint.resident += bytes;
            if weight.kind != TensorType::F32 {
                footprint.expanded += bytes;
                footprint.expanded_from += weight.data.len();
            }
            let weight = QMatMul::Tensor(expanded);
            return Ok(Linear { weight, place });
        }
        footprint.resident += weight.data.len();
        let weight = QMatMul::from_arc(Arc::new(tensor))?;
        Ok(Linear { weight, place })
    }

    /// Applies the layer to `[rows, in]`, and the adapters of some of the rows.
    pub(super) fn forward(&self, x: &Tensor, adapted: &Adapted) -> candle_core::Result<Tensor> {
        let y = self.product(x)?;
        match self.place {
            Some(place) => adapters::add(adapted, place, x, y),
            None => Ok(y),
        }
    }

    fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.weight {
            // With few rows candle's CPU product is up to five times as fast if
            // the tall matrix comes first.
            QMatMul::Tensor(weight) if weight.device().is_cpu() && x.dim(0)? <= FEW_ROWS => {
                weight.matmul(&x.t()?)?.t()?.contiguous()
            }
            weight => weight.forward(x),
        }
    }
}

/// The token embedding: a row of the matrix per id.
#[derive(Debug)]
pub(super) struct Embedding(QMatMul);

impl Embedding {
    /// The embedding that shares the head's weights.
    pub(super) fn tied(head: &Linear) -> Embedding {
        Embedding(head.weight.clone())
    }

    /// An embedding with weights of its own. Rows are looked up one by one, so
    /// no type needs expanding.
    pub(super) fn load(
        weight: Weight<'_>,
        device: &Device,
        footprint: &mut Footprint,
    ) -> Result<Embedding, ExecError> {
        footprint.resident += weight.data.len();
        let tensor = Arc::new(quantized(weight, device)?);
        Ok(Embedding(QMatMul::from_arc(tensor)?))
    }

    /// `[rows]` ids to `[rows, hidden]`.
    pub(super) fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.0.embedding(ids)
    }
}

/// A norm's weight or a bias, as f32.
pub(super) fn vector(
    weight: Weight<'_>,
    device: &Device,
    footprint: &mut Footprint,
) -> Result<Tensor, ExecError> {
    let vector = quantized(weight, device)?
        .dequantize(device)?
        .flatten_all()?;
    footprint.resident += vector.elem_count() * vector.dtype().size_in_bytes();
    Ok(vector)
}

fn quantized(weight: Weight<'_>, device: &Device) -> Result<QTensor, ExecError> {
    let dtype = candle_dtype(weight.kind).expect("the weights' types were checked");
    let storage = QStorage::from_data(Cow::Borrowed(weight.data), device, dtype)?;
    Ok(QTensor::new(storage, (weight.rows, weight.columns))?)
}

//! Weights of the device executor: linear layers, the embedding, norms and biases.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};

use super::adapters::{self, Adapted};
use super::error::DeviceError;
use crate::exec::Footprint;
use incant_gguf::TensorType;
use incant_model::lora;
use incant_model::{Weight, candle_dtype};

/// The maximum number of rows that count as few: the rows of a decode step.
const FEW_ROWS: usize = 16;

/// A frozen linear layer, `y = x·Wᵀ` with `W` of shape `[out, in]`, to which adapters may add
/// low-rank products.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    weight: QMatMul,
    /// The layer index and the role of this linear layer; the LM head has none.
    place: Option<(usize, lora::Linear)>,
}

impl Linear {
    /// Loads a weight matrix onto the device.
    ///
    /// A GPU computes with every quantized type directly. On the CPU, matrices are dequantized
    /// to f32: candle's kernels for most quantized types are several times slower than the same
    /// product in f32, and all of them round activations to 8 bits in ways that depend on the
    /// number of rows.
    pub(super) fn load(
        weight: Weight<'_>,
        place: Option<(usize, lora::Linear)>,
        device: &Device,
        footprint: &mut Footprint,
    ) -> Result<Linear, DeviceError> {
        let tensor = quantized(weight, device)?;
        if device.is_cpu() {
            let dequantized = tensor.dequantize(device)?;
            let bytes = dequantized.elem_count() * dequantized.dtype().size_in_bytes();
            footprint.resident += bytes;
            if weight.kind != TensorType::F32 {
                footprint.dequantized += bytes;
                footprint.dequantized_from += weight.data.len();
            }
            let weight = QMatMul::Tensor(dequantized);
            return Ok(Linear { weight, place });
        }
        footprint.resident += weight.data.len();
        let weight = QMatMul::from_arc(Arc::new(tensor))?;
        Ok(Linear { weight, place })
    }

    /// Applies the layer to `[rows, in]`, and adds the low-rank products of the rows' adapters.
    pub(super) fn forward(&self, x: &Tensor, adapted: &Adapted) -> candle_core::Result<Tensor> {
        let y = self.product(x)?;
        match self.place {
            Some(place) => adapters::add(adapted, place, x, y),
            None => Ok(y),
        }
    }

    fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match &self.weight {
            // With few rows, candle's CPU product is up to five times faster if the tall matrix
            // is the first operand.
            QMatMul::Tensor(weight) if weight.device().is_cpu() && x.dim(0)? <= FEW_ROWS => {
                weight.matmul(&x.t()?)?.t()?.contiguous()
            }
            weight => weight.forward(x),
        }
    }
}

/// The token embedding: one row of the matrix per id.
#[derive(Debug)]
pub(super) struct Embedding(QMatMul);

impl Embedding {
    /// Creates an embedding that shares the weights of the LM head.
    pub(super) fn tied(head: &Linear) -> Embedding {
        Embedding(head.weight.clone())
    }

    /// Loads an embedding with its own weights. Rows are looked up one by one, so no type needs
    /// to be dequantized as a whole.
    pub(super) fn load(
        weight: Weight<'_>,
        device: &Device,
        footprint: &mut Footprint,
    ) -> Result<Embedding, DeviceError> {
        footprint.resident += weight.data.len();
        let tensor = Arc::new(quantized(weight, device)?);
        Ok(Embedding(QMatMul::from_arc(tensor)?))
    }

    /// Looks up `[rows]` ids and returns `[rows, hidden]`.
    pub(super) fn forward(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.0.embedding(ids)
    }
}

/// Loads the weight of a norm, or a bias, as f32.
pub(super) fn vector(
    weight: Weight<'_>,
    device: &Device,
    footprint: &mut Footprint,
) -> Result<Tensor, DeviceError> {
    let vector = quantized(weight, device)?
        .dequantize(device)?
        .flatten_all()?;
    footprint.resident += vector.elem_count() * vector.dtype().size_in_bytes();
    Ok(vector)
}

fn quantized(weight: Weight<'_>, device: &Device) -> Result<QTensor, DeviceError> {
    let dtype = candle_dtype(weight.kind).expect("the weights' types were checked");
    let storage = QStorage::from_data(Cow::Borrowed(weight.data), device, dtype)?;
    Ok(QTensor::new(storage, (weight.rows, weight.columns))?)
}

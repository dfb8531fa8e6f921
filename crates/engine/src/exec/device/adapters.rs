//! LoRA adapters of the device executor.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use incant_model::lora::{Linear, Lora};

/// An adapter, as tensors.
#[derive(Debug)]
pub(super) struct Adapter {
    /// Indexed by layer and [`Linear`].
    layers: Vec<[Option<Addition>; Linear::ALL.len()]>,
}

/// The low-rank addition to one linear layer.
#[derive(Debug)]
struct Addition {
    /// `[inputs, rank]`, multiplied with the scale.
    a: Tensor,
    /// `[rank, outputs]`.
    b: Tensor,
}

impl Adapter {
    pub(super) fn load(lora: &Lora, device: &Device) -> Result<Adapter> {
        let mut layers: Vec<[Option<Addition>; Linear::ALL.len()]> = Vec::new();
        layers.resize_with(lora.layers(), Default::default);
        for (layer, linear, part) in lora.additions() {
            let tensor = |numbers: &[f32], shape| {
                Tensor::from_slice(numbers, shape, device)?
                    .t()?
                    .contiguous()
            };
            let a = tensor(&part.a, (part.rank, part.inputs))?;
            layers[layer][linear as usize] = Some(Addition {
                a: (a * f64::from(part.scale))?,
                b: tensor(&part.b, (part.outputs, part.rank))?,
            });
        }
        Ok(Adapter { layers })
    }
}

/// The adapters of a batch's rows: ranges of rows, in order. Rows outside of them have no
/// adapter.
pub(super) type Adapted = [(Range<usize>, Arc<Adapter>)];

/// Adds the low-rank products of the adapters of `x`'s rows to `y`, the output of the linear
/// layer at `place`.
pub(super) fn add(
    adapted: &Adapted,
    (layer, linear): (usize, Linear),
    x: &Tensor,
    y: Tensor,
) -> Result<Tensor> {
    let mut y = y;
    for (rows, adapter) in adapted {
        let Some(addition) = &adapter.layers[layer][linear as usize] else {
            continue;
        };
        let own = |of: &Tensor| of.narrow(0, rows.start, rows.len());
        let low = own(x)?.contiguous()?.matmul(&addition.a)?;
        let sum = (own(&y)? + low.matmul(&addition.b)?)?;
        y = y.slice_scatter0(&sum, rows.start)?;
    }
    Ok(y)
}

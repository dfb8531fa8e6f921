//! A function with its own backward pass, as a custom op of candle's autograd graph.
//!
//! All values are f32 in CPU memory.

use std::mem::take;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// Backward pass: from the argument and the gradient of the value to the gradient of the
/// argument.
pub(super) type Back = Box<dyn Fn(&[f32], &[f32]) -> Vec<f32> + Send + Sync>;

struct Node {
    name: &'static str,
    /// Empty once candle has taken it.
    value: Mutex<Vec<f32>>,
    back: Back,
}

/// A one-dimensional tensor `value` as a function of `x` whose backward pass is `back`.
pub(super) fn function(
    name: &'static str,
    x: &Tensor,
    value: Vec<f32>,
    back: Back,
) -> Result<Tensor> {
    x.apply_op1(Node {
        name,
        value: Mutex::new(value),
        back,
    })
}

/// Calls `work` with a tensor's elements.
pub(super) fn with<T>(x: &Tensor, work: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(numbers)) = &*storage else {
        bail!("training computes in f32, on the processor");
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a tensor's numbers do not lie one after the other");
    };
    Ok(work(&numbers[start..end]))
}

impl CustomOp1 for Node {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let shape = value.len().into();
        Ok((CpuStorage::F32(take(&mut value)), shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with(x, |values| with(dy, |dy| (self.back)(values, dy)))??;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

//! A function with its own backward pass, as a custom op of candle's autograd graph.
//!
//! All values are f32 in CPU memory.

use std::mem::take;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};

/// Backward pass: from the argument and the gradient of the value to the gradient of the
/// argument.
pub(super) type Backward = Box<dyn Fn(&[f32], &[f32]) -> Vec<f32> + Send + Sync>;

struct Node {
    name: &'static str,
    /// Empty once candle has taken it.
    value: Mutex<Vec<f32>>,
    backward: Backward,
}

/// A one-dimensional tensor `value` as a function of `x` whose backward pass is `backward`.
pub(super) fn custom_op(
    name: &'static str,
    x: &Tensor,
    value: Vec<f32>,
    backward: Backward,
) -> Result<Tensor> {
    x.apply_op1(Node {
        name,
        value: Mutex::new(value),
        backward,
    })
}

/// Calls `f` with a tensor's elements.
pub(super) fn with_elements<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(elements)) = &*storage else {
        bail!("training computes in f32, on the processor");
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a tensor is not contiguous");
    };
    Ok(f(&elements[start..end]))
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
        let dx = with_elements(x, |values| {
            with_elements(dy, |dy| (self.backward)(values, dy))
        })??;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

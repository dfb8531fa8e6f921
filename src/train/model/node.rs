//! Functions with their ways back, as nodes of candle's graph.
//!
//! All values are f32 and lie in the processor's memory. The way back is given the
//! arguments and the gradient of the value, and gives the gradients of the arguments.

use std::mem::take;
use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail,
};

/// The way back of a function of `N` arguments.
pub(super) type Back<const N: usize> =
    Box<dyn Fn([&[f32]; N], &[f32]) -> [Vec<f32>; N] + Send + Sync>;

struct Node<const N: usize> {
    name: &'static str,
    shape: Shape,
    /// Until candle has it.
    value: Mutex<Vec<f32>>,
    back: Back<N>,
}

impl<const N: usize> Node<N> {
    fn new(name: &'static str, shape: Shape, value: Vec<f32>, back: Back<N>) -> Node<N> {
        Node {
            name,
            shape,
            value: Mutex::new(value),
            back,
        }
    }

    fn value(&self) -> (CpuStorage, Shape) {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        (CpuStorage::F32(take(&mut value)), self.shape.clone())
    }
}

/// `value`, as a function of `x` whose way back is `back`.
pub(super) fn of_one(
    name: &'static str,
    x: &Tensor,
    shape: impl Into<Shape>,
    value: Vec<f32>,
    back: Back<1>,
) -> Result<Tensor> {
    x.apply_op1(Node::new(name, shape.into(), value, back))
}

/// The same of two arguments.
pub(super) fn of_two(
    name: &'static str,
    [x, y]: [&Tensor; 2],
    shape: impl Into<Shape>,
    value: Vec<f32>,
    back: Back<2>,
) -> Result<Tensor> {
    x.apply_op2(y, Node::new(name, shape.into(), value, back))
}

/// The same of three arguments.
pub(super) fn of_three(
    name: &'static str,
    [x, y, z]: [&Tensor; 3],
    shape: impl Into<Shape>,
    value: Vec<f32>,
    back: Back<3>,
) -> Result<Tensor> {
    x.apply_op3(y, z, Node::new(name, shape.into(), value, back))
}

/// Gives `work` a tensor's numbers.
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

/// A tensor of numbers.
fn tensor(numbers: Vec<f32>, like: &Tensor) -> Result<Option<Tensor>> {
    Tensor::from_vec(numbers, like.shape(), like.device()).map(Some)
}

impl CustomOp1 for Node<1> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(self.value())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = with(x, |values| with(dy, |dy| (self.back)([values], dy)))??;
        tensor(dx, x)
    }
}

impl CustomOp2 for Node<2> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(self.value())
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = with(a, |a| with(b, |b| with(dy, |dy| (self.back)([a, b], dy))))???;
        Ok((tensor(da, a)?, tensor(db, b)?))
    }
}

impl CustomOp3 for Node<3> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(self.value())
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = with(a, |a| {
            with(b, |b| {
                with(c, |c| with(dy, |dy| (self.back)([a, b, c], dy)))
            })
        })????;
        Ok((tensor(da, a)?, tensor(db, b)?, tensor(dc, c)?))
    }
}

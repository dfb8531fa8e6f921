//! The low-rank additions of LoRA adapters to linear layers.

use super::{LinearId, Pass};
use incant_kernels::pool::Worker;
use incant_kernels::{LANES, Matrix};
use incant_model::lora::Linear;

/// A product with the rows of a phase.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    /// The linear layer, if adapters may add to it.
    pub(super) place: Option<LinearId>,
}

impl Pass<'_> {
    /// Computes the first products of a row's adapter for all linear layers that share the
    /// input `x` with the one given.
    ///
    /// # Safety
    /// A part of a task that owns the row of `low`: see [`Pass`].
    pub(super) unsafe fn shrink(&self, row: usize, (layer, linear): LinearId, x: &[f32]) {
        let Some(adapter) = self.adapted.of_row(row) else {
            return;
        };
        // SAFETY: the caller's obligation.
        let mut low = unsafe { self.row(self.low, row, self.low_width) };
        for &linear in linear.sharing_input() {
            if let Some(part) = adapter.get(layer, linear) {
                let (own, rest) = low.split_at_mut(part.width());
                part.shrink(self.isa, x, own);
                low = rest;
            }
        }
    }

    /// Adds the second products to a panel of all rows.
    ///
    /// # Safety
    /// A part of a task of a phase in which nothing writes `low`: see [`Pass`].
    pub(super) unsafe fn expand(
        &self,
        place: Option<LinearId>,
        panel: usize,
        results: &mut [[f32; LANES]],
    ) {
        let Some((layer, linear)) = place else {
            return;
        };
        for (rows, adapter) in self.adapted.runs() {
            let Some(part) = adapter.get(layer, linear) else {
                continue;
            };
            let first = adapter.offset(layer, linear);
            let low = rows.start * self.low_width + first..rows.end * self.low_width;
            // SAFETY: the caller's obligation.
            let low = unsafe { self.low.slice(low) };
            let results = &mut results[rows.clone()];
            part.expand(self.isa, panel, low, self.low_width, results);
        }
    }

    /// Stores a part of the input of the down projection if the row has an adapter, which needs
    /// it.
    ///
    /// # Safety
    /// A part of a task that owns these elements of `inner_row`: see [`Pass`].
    pub(super) unsafe fn keep_inner(&self, row: usize, first: usize, inner: &[f32]) {
        if self.adapted.of_row(row).is_some() {
            let at = row * self.spec.feed_forward + first;
            // SAFETY: the caller's obligation.
            let kept = unsafe { self.inner_row.slice_mut(at..at + inner.len()) };
            kept.copy_from_slice(inner);
        }
    }

    /// Computes the first products of adapters for the down projection.
    ///
    /// # Safety
    /// A phase after the one that wrote `inner_row`: see [`Pass`].
    pub(super) unsafe fn shrink_inner(&self, worker: &mut Worker<'_>, layer: usize) {
        if self.adapted.is_empty() {
            return;
        }
        let width = self.spec.feed_forward;
        worker.each(self.plan.count(), |row| {
            if self.adapted.of_row(row).is_some() {
                // SAFETY: an earlier phase has written the row of `inner_row`, and each row of
                // `low` is written by one task.
                unsafe {
                    let inner = self.inner_row.slice(row * width..(row + 1) * width);
                    self.shrink(row, (layer, Linear::Down), inner);
                }
            }
        });
    }
}

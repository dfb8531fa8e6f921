//! The low-rank additions of LoRA adapters to linear layers.

use super::{Pass, Place};
use incant_kernels::pool::Worker;
use incant_kernels::{LANES, Matrix};
use incant_model::lora::Linear;

/// A product with the rows of a phase.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    /// The linear layer, if adapters may add to it.
    pub(super) place: Option<Place>,
}

impl Pass<'_> {
    /// Computes the first products of a row's adapter for all linear layers that share the
    /// input `x` with the one at `place`.
    pub(super) fn shrink(&self, row: usize, (layer, linear): Place, x: &[f32]) {
        let Some(adapter) = self.adapted.of_row(row) else {
            return;
        };
        let mut low = self.row(self.low, row, self.low_width);
        for &linear in linear.sharing_input() {
            if let Some(part) = adapter.get(layer, linear) {
                let (own, rest) = low.split_at_mut(part.width());
                part.shrink(self.isa, x, own);
                low = rest;
            }
        }
    }

    /// Adds the second products to a panel of all rows.
    pub(super) fn expand(&self, place: Option<Place>, panel: usize, results: &mut [[f32; LANES]]) {
        let Some((layer, linear)) = place else {
            return;
        };
        for (rows, adapter) in self.adapted.runs() {
            let Some(part) = adapter.get(layer, linear) else {
                continue;
            };
            let first = adapter.offset(layer, linear);
            let low = rows.start * self.low_width + first..rows.end * self.low_width;
            // SAFETY: an earlier phase has written `low`.
            let low = unsafe { self.low.slice(low) };
            let results = &mut results[rows.clone()];
            part.expand(self.isa, panel, low, self.low_width, results);
        }
    }

    /// Stores a part of the input of the down projection if the row has an adapter, which needs
    /// it.
    pub(super) fn keep_inner(&self, row: usize, first: usize, inner: &[f32]) {
        if self.adapted.of_row(row).is_some() {
            let at = row * self.spec.feed_forward + first;
            // SAFETY: each block is written by one task.
            let kept = unsafe { self.inner_row.slice_mut(at..at + inner.len()) };
            kept.copy_from_slice(inner);
        }
    }

    /// Computes the first products of adapters for the down projection.
    pub(super) fn shrink_inner(&self, worker: &mut Worker<'_>, layer: usize) {
        if self.adapted.is_empty() {
            return;
        }
        let width = self.spec.feed_forward;
        worker.each(self.plan.count(), |row| {
            if self.adapted.of_row(row).is_some() {
                // SAFETY: an earlier phase has written the row.
                let inner = unsafe { self.inner_row.slice(row * width..(row + 1) * width) };
                self.shrink(row, (layer, Linear::Down), inner);
            }
        });
    }
}

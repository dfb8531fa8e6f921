//! Products of rows with weights, and what is computed from them right away.

use super::low_rank::Product;
use super::{LOGITS_PER_TASK, Pass};
use crate::exec::native::tasks::Tasks;
use incant_kernels::pool::Worker;
use incant_kernels::product::{self, Writer};
use incant_kernels::shared::SharedSlice;
use incant_kernels::{COLUMNS_PER_BLOCK, LANES, math};
use incant_model::lora::Linear;
use incant_model::packed::Layer;

impl<'a> Pass<'a> {
    /// Multiplies all rows with some matrices and writes the results side by side into the rows
    /// of `out`.
    ///
    /// # Safety
    /// A phase after the one that wrote the rows: see [`Pass`].
    pub(super) unsafe fn multiply(
        &self,
        worker: &mut Worker<'_>,
        products: &[Product<'_>],
        rows: &Writer<'_>,
        out: SharedSlice<'a, f32>,
    ) {
        let panels: usize = products.iter().map(|product| product.matrix.panels()).sum();
        let width: usize = products.iter().map(|product| product.matrix.rows()).sum();
        let tasks = Tasks::new(panels, self.threads);
        // SAFETY: it is used within this phase.
        let scratch = unsafe { self.scratch(worker) };
        worker.each(tasks.count(), |task| {
            // SAFETY: an earlier phase has written the rows.
            let rows = unsafe { rows.activations() };
            let result = &mut scratch.panel[..rows.rows()];
            for panel in tasks.range(task) {
                let (mut panel, mut column) = (panel, 0);
                let Product {
                    mut matrix,
                    mut place,
                } = products[0];
                for next in products {
                    Product { matrix, place } = *next;
                    if panel < matrix.panels() {
                        break;
                    }
                    panel -= matrix.panels();
                    column += matrix.rows();
                }
                product::panel(self.isa, matrix, panel, rows, result);
                // SAFETY: an earlier phase has written the products of adapters.
                unsafe { self.expand(place, panel, result) };
                let used = LANES.min(matrix.rows() - panel * LANES);
                column += panel * LANES;
                for (row, lanes) in result.iter().enumerate() {
                    let at = row * width + column;
                    // SAFETY: each panel's columns are written by one task.
                    let out = unsafe { out.slice_mut(at..at + used) };
                    out.copy_from_slice(&lanes[..used]);
                }
            }
        });
    }

    /// Computes the feed-forward layer up to the input of the down projection.
    ///
    /// # Safety
    /// A phase after the one that wrote the rows: see [`Pass`].
    pub(super) unsafe fn gate(
        &self,
        worker: &mut Worker<'_>,
        index: usize,
        layer: &Layer,
        rows: &Writer<'_>,
        to: &Writer<'_>,
    ) {
        let width = self.spec.feed_forward;
        let blocks = width.div_ceil(COLUMNS_PER_BLOCK);
        let tasks = Tasks::new(blocks, self.threads);
        // SAFETY: it is used within this phase.
        let scratch = unsafe { self.scratch(worker) };
        worker.each(tasks.count(), |task| {
            // SAFETY: an earlier phase has written the rows.
            let rows = unsafe { rows.activations() };
            let gate = &mut scratch.panel[..rows.rows()];
            let up = &mut scratch.other_panel[..rows.rows()];
            let inner = &mut scratch.block[..rows.rows()];
            for block in tasks.range(task) {
                for half in 0..2 {
                    let panel = 2 * block + half;
                    if panel >= layer.gate.panels() {
                        break;
                    }
                    product::panel(self.isa, &layer.gate, panel, rows, gate);
                    // SAFETY: an earlier phase has written the products of adapters.
                    unsafe { self.expand(Some((index, Linear::Gate)), panel, gate) };
                    product::panel(self.isa, &layer.up, panel, rows, up);
                    // SAFETY: as above.
                    unsafe { self.expand(Some((index, Linear::Up)), panel, up) };
                    let activation = self.spec.activation;
                    let up = up.as_flattened();
                    math::gated(self.isa, activation, gate.as_flattened_mut(), up);
                    for (inner, gate) in inner.iter_mut().zip(&*gate) {
                        inner[half * LANES..][..LANES].copy_from_slice(gate);
                    }
                }
                let used = COLUMNS_PER_BLOCK.min(width - block * COLUMNS_PER_BLOCK);
                for (row, inner) in inner.iter().enumerate() {
                    let inner = &inner[..used];
                    // SAFETY: each block of both buffers is written by one task.
                    unsafe {
                        to.write_block(row, block, inner);
                        self.keep_inner(row, block * COLUMNS_PER_BLOCK, inner);
                    }
                }
            }
        });
    }

    /// Scales and caps `len` logits if the model requires it.
    ///
    /// # Safety
    /// A phase: see [`Pass`].
    pub(super) unsafe fn finish_logits(
        &self,
        worker: &mut Worker<'_>,
        logits: SharedSlice<'_, f32>,
        len: usize,
    ) {
        let (scale, cap) = (self.spec.logit_scale, self.spec.logit_cap);
        if scale == 1.0 && cap.is_none() {
            return;
        }
        worker.each(len.div_ceil(LOGITS_PER_TASK), |task| {
            let part = task * LOGITS_PER_TASK..len.min((task + 1) * LOGITS_PER_TASK);
            // SAFETY: each part is written by one task.
            let logits = unsafe { logits.slice_mut(part) };
            math::scale(self.isa, logits, scale);
            if let Some(cap) = cap {
                math::soft_cap(self.isa, logits, cap);
            }
        });
    }
}

//! The forward pass: a program of phases that all threads of the pool run.
//!
//! The phases of each layer:
//!
//! ```text
//! rows    norm, round                       → activations
//! panels  query, key, value                 → projected
//! spans   bias, norm, rope; keys and values → KV, queries
//! chunks  attention                         → partial results
//! rows    merge, round                      → activations
//! panels  output                            → added
//! rows    norm, add; norm, round            → activations
//! panels  gate and up, activation, round    → activations
//! panels  down                              → added
//! rows    norm, add                             (with the next layer's first)
//! ```
//!
//! For rows with an adapter, the phase that computes the input of linear layers also computes
//! the first low-rank product of the adapter, and the phase that computes their panels adds the
//! second product to each panel. Only the first product of the down projection takes a phase of
//! its own.
//!
//! At the end, if logits are wanted:
//!
//! ```text
//! rows    norm, add; norm, round            → activations
//! panels  LM head                           → logits
//! parts   scale, cap                        → logits
//! ```

mod attention;
mod linear;
mod low_rank;

use self::attention::Split;
use self::low_rank::Product;
use super::NativeExecutor;
use super::adapters::Adapted;
use super::buffers::Scratch;
use super::layout::Layout;
use super::plan::Plan;
use crate::exec::Logits;
use incant_kernels::pool::Worker;
use incant_kernels::product::{self, Writer};
use incant_kernels::shared::SharedSlice;
use incant_kernels::{Isa, LANES, Matrix, math};
use incant_model::DecoderSpec;
use incant_model::lora::Linear;

/// Logits that are scaled and capped per task.
const LOGITS_PER_TASK: usize = 1 << 13;

/// The layer index and the role of a linear layer.
type LinearId = (usize, Linear);

impl NativeExecutor {
    /// Runs a batch. The keys and values of its sequences are written, but not yet added to
    /// their lengths.
    pub(super) fn run(&mut self, plan: &Plan, adapted: &Adapted, logits: &mut Logits) {
        let spec = &self.spec;
        let (rows, threads) = (plan.count(), self.pool.threads());
        let split = Split::of(plan, spec, threads);
        let buffers = &mut self.buffers;
        let low_width = adapted.width();
        buffers.grow(spec, rows, split.partials(plan), low_width);

        logits.reset(plan.rows.wanted.len(), spec.vocab);
        logits.reset_states(plan.rows.states.len(), spec.hidden);
        let pass = Pass {
            spec,
            isa: self.isa,
            plan,
            adapted,
            low_width,
            layout: &self.layout,
            threads,
            split,
            kv: self.pages.shared(),
            x: SharedSlice::from(&mut buffers.x[..]),
            added: SharedSlice::from(&mut buffers.added[..]),
            projected: SharedSlice::from(&mut buffers.projected[..]),
            queries: SharedSlice::from(&mut buffers.queries[..]),
            maxima: SharedSlice::from(&mut buffers.maxima[..]),
            sums: SharedSlice::from(&mut buffers.sums[..]),
            values: SharedSlice::from(&mut buffers.values[..]),
            low: SharedSlice::from(&mut buffers.low[..]),
            inner_row: SharedSlice::from(&mut buffers.inner_row[..]),
            scratch: SharedSlice::from(&mut buffers.scratch[..]),
        };
        let weights = &self.weights;
        let heads = spec.heads * spec.head_dim;
        let forms = &weights.forms;
        let fast = plan.rows.fast;
        buffers.normed.reset(rows, fast, spec.hidden, forms.normed);
        buffers.attended.reset(rows, fast, heads, forms.attended);
        buffers
            .inner
            .reset(rows, fast, spec.feed_forward, forms.inner);
        let normed = buffers.normed.writer();
        let attended = buffers.attended.writer();
        let inner = buffers.inner.writer();
        self.pool.run(|worker| {
            // SAFETY: this program alone uses the pass and the writers, and all its threads run
            // the same phases.
            unsafe { pass.embed(worker, weights.embedding()) };
            for (index, layer) in weights.layers.iter().enumerate() {
                let before = index.checked_sub(1).map(|index| &weights.layers[index]);
                let projections = layer.projections.each_ref().map(|p| &p.matrix);
                let linears = [Linear::Query, Linear::Key, Linear::Value];
                let products: [Product<'_>; 3] = std::array::from_fn(|at| Product {
                    matrix: projections[at],
                    place: Some((index, linears[at])),
                });
                let output = Product {
                    matrix: &layer.output,
                    place: Some((index, Linear::Output)),
                };
                let down = Product {
                    matrix: &layer.down,
                    place: Some((index, Linear::Down)),
                };
                // SAFETY: as above.
                unsafe {
                    pass.norm(
                        worker,
                        before.map(|layer| layer.post_feed_forward_norm.as_deref()),
                        layer.attention_norm.as_deref(),
                        Some((index, Linear::Query)),
                        &normed,
                    );
                    pass.multiply(worker, &products, &normed, pass.projected);
                    pass.store_qkv(worker, index, &layer.projections);
                    pass.attention(worker, index);
                    pass.merge(worker, index, &attended);
                    pass.multiply(worker, &[output], &attended, pass.added);
                    pass.norm(
                        worker,
                        Some(layer.post_attention_norm.as_deref()),
                        layer.feed_forward_norm.as_deref(),
                        Some((index, Linear::Gate)),
                        &normed,
                    );
                    pass.gate(worker, index, layer, &normed, &inner);
                    pass.shrink_inner(worker, index);
                    pass.multiply(worker, &[down], &inner, pass.added);
                }
            }
        });
        let last = weights.layers.last();
        let post_norm = last.and_then(|layer| layer.post_feed_forward_norm.as_deref());
        if !plan.rows.states.is_empty() {
            let states = SharedSlice::from(&mut logits.states[..]);
            self.pool.run(|worker| {
                // SAFETY: as above.
                unsafe { pass.last_states(worker, post_norm, &weights.output_norm, states) };
            });
        }
        if !plan.rows.wanted.is_empty() {
            let wanted = &mut buffers.normed;
            let count = plan.rows.wanted.len();
            wanted.reset(count, count, spec.hidden, forms.lm_head);
            let wanted = wanted.writer();
            let out = SharedSlice::from(&mut logits.values[..]);
            self.pool.run(|worker| {
                let head = Product {
                    matrix: &weights.lm_head,
                    place: None,
                };
                // SAFETY: as above.
                unsafe {
                    pass.last_norm(worker, post_norm, &weights.output_norm, &wanted);
                    pass.multiply(worker, &[head], &wanted, out);
                    pass.finish_logits(worker, out, count * spec.vocab);
                }
            });
        }
    }
}

impl NativeExecutor {
    /// Computes the logits of the tokens `ids` for some states: whole panels of the LM head, by
    /// the kernel of the forward pass.
    pub(super) fn lm_head_at(&mut self, states: &[&[f32]], ids: &[u32]) -> Vec<Vec<f32>> {
        let (spec, isa, head) = (&self.spec, self.isa, &self.weights.lm_head);
        let rows = states.len();
        let buffers = &mut self.buffers;
        let wanted = &mut buffers.normed;
        wanted.reset(rows, rows, spec.hidden, self.weights.forms.lm_head);
        wanted.fill(&states.concat());
        let mut panels: Vec<usize> = ids.iter().map(|&id| id as usize / LANES).collect();
        panels.sort_unstable();
        panels.dedup();
        // `[panel][state]`.
        let mut products = vec![[0.0; LANES]; panels.len() * rows];
        let out = SharedSlice::from(&mut products[..]);
        let wanted = &buffers.normed;
        self.pool.run(|worker| {
            worker.each(panels.len(), |index| {
                let part = index * rows..(index + 1) * rows;
                // SAFETY: each part is written by one task.
                let out = unsafe { out.slice_mut(part) };
                product::panel(isa, head, panels[index], wanted, out);
                let values = out.as_flattened_mut();
                if spec.logit_scale != 1.0 || spec.logit_cap.is_some() {
                    math::scale(isa, values, spec.logit_scale);
                }
                if let Some(cap) = spec.logit_cap {
                    math::soft_cap(isa, values, cap);
                }
            });
        });
        let of_state = |state: usize| {
            let logits = ids.iter().map(|&id| {
                let id = id as usize;
                // The panel of every id is in `panels`.
                let panel = panels.partition_point(|&panel| panel < id / LANES);
                products[panel * rows + state][id % LANES]
            });
            logits.collect()
        };
        (0..rows).map(of_state).collect()
    }
}

/// One forward pass, as seen by all threads.
///
/// The output of each phase is divided by rows, panels, spans or pieces such that no two tasks
/// of a phase touch the same elements; phases run one after the other.
///
/// # Safety
/// The buffers are shared by all threads, so the methods that use them are unsafe, with one of
/// two contracts:
///
/// - A *phase* (a method that takes the [`Worker`]) must be called by all threads of a program,
///   and no other program may use the pass, the buffers or the writers that are passed at the
///   same time. The pool then runs each task of the phase once, on one thread, after all tasks
///   of earlier phases.
/// - A *part of a task* (any other unsafe method) must be called within a task of a phase that
///   owns the elements it names: no other task of the phase may use elements that it writes, or
///   write elements that it reads, and the task itself may hold no other reference to elements
///   that it writes.
struct Pass<'a> {
    spec: &'a DecoderSpec,
    isa: Isa,
    plan: &'a Plan,
    adapted: &'a Adapted,
    /// Elements of a row in `low`.
    low_width: usize,
    layout: &'a Layout,
    threads: usize,
    split: Split,
    /// All pages of the KV cache.
    kv: SharedSlice<'a, u16>,
    x: SharedSlice<'a, f32>,
    added: SharedSlice<'a, f32>,
    projected: SharedSlice<'a, f32>,
    queries: SharedSlice<'a, f32>,
    maxima: SharedSlice<'a, f32>,
    sums: SharedSlice<'a, f32>,
    values: SharedSlice<'a, f32>,
    low: SharedSlice<'a, f32>,
    inner_row: SharedSlice<'a, f32>,
    scratch: SharedSlice<'a, Scratch>,
}

impl<'a> Pass<'a> {
    /// Returns the working memory of the current thread.
    ///
    /// # Safety
    /// No other program may use the pass at the same time, and a thread may call this once per
    /// phase, and use the result only within the phase.
    unsafe fn scratch(&self, worker: &Worker<'_>) -> &'a mut Scratch {
        let thread = worker.thread();
        // SAFETY: thread numbers are unique within a program, and the caller holds no other
        // reference to the working memory of its thread.
        let own = unsafe { self.scratch.slice_mut(thread..thread + 1) };
        &mut own[0]
    }

    /// Returns a row of a buffer, to be written.
    ///
    /// # Safety
    /// A part of a task that owns the row of the buffer: see [`Pass`].
    unsafe fn row(&self, buffer: SharedSlice<'a, f32>, row: usize, width: usize) -> &'a mut [f32] {
        // SAFETY: the caller's obligation.
        unsafe { buffer.slice_mut(row * width..(row + 1) * width) }
    }

    /// Looks up the embeddings of the tokens.
    ///
    /// # Safety
    /// A phase: see [`Pass`].
    unsafe fn embed(&self, worker: &mut Worker<'_>, embedding: &Matrix) {
        worker.each(self.plan.count(), |row| {
            // SAFETY: each row is written by one task.
            let x = unsafe { self.row(self.x, row, self.spec.hidden) };
            embedding.row(self.plan.rows.tokens[row] as usize, x);
            if self.spec.embedding_scale != 1.0 {
                math::scale(self.isa, x, self.spec.embedding_scale);
            }
        });
    }

    /// Adds the output of the previous part of the layer to the residual stream, if there is
    /// one, and norms the sum for the linear layers that share their input with `reader`, if the
    /// model has pre-norms.
    ///
    /// # Safety
    /// A phase: see [`Pass`].
    unsafe fn norm(
        &self,
        worker: &mut Worker<'_>,
        before: Option<Option<&[f32]>>,
        weight: Option<&[f32]>,
        reader: Option<LinearId>,
        to: &Writer<'_>,
    ) {
        // SAFETY: it is used within this phase.
        let scratch = unsafe { self.scratch(worker) };
        worker.each(self.plan.count(), |row| {
            // SAFETY: each row of all these buffers is used by one task.
            unsafe {
                let normed = self.norm_row(row, before, weight, scratch);
                if let Some(place) = reader {
                    self.shrink(row, place, normed);
                }
                to.write(row, normed);
            }
        });
    }

    /// Like [`norm`](Self::norm), for the rows whose logits are wanted; the others are dropped.
    ///
    /// # Safety
    /// A phase: see [`Pass`].
    unsafe fn last_norm(
        &self,
        worker: &mut Worker<'_>,
        post_norm: Option<&[f32]>,
        weight: &[f32],
        to: &Writer<'_>,
    ) {
        // SAFETY: it is used within this phase.
        let scratch = unsafe { self.scratch(worker) };
        worker.each(self.plan.rows.wanted.len(), |index| {
            let row = self.plan.rows.wanted[index];
            // SAFETY: each row is used by one task.
            unsafe {
                let normed = self.norm_row(row, Some(post_norm), Some(weight), scratch);
                to.write(index, normed);
            }
        });
    }

    /// Copies the normed rows whose states are wanted.
    ///
    /// # Safety
    /// A phase: see [`Pass`].
    unsafe fn last_states(
        &self,
        worker: &mut Worker<'_>,
        post_norm: Option<&[f32]>,
        weight: &[f32],
        to: SharedSlice<'a, f32>,
    ) {
        // SAFETY: it is used within this phase.
        let scratch = unsafe { self.scratch(worker) };
        worker.each(self.plan.rows.states.len(), |index| {
            let row = self.plan.rows.states[index];
            // SAFETY: each row of all these buffers is used by one task.
            unsafe {
                let normed = self.norm_row(row, Some(post_norm), Some(weight), scratch);
                self.row(to, index, normed.len()).copy_from_slice(normed);
            }
        });
    }

    /// Adds the output of the previous part of the layer to a row of the residual stream, if
    /// there is one, and returns the normed row.
    ///
    /// # Safety
    /// A part of a task that owns the row of `x` and `added`: see [`Pass`].
    unsafe fn norm_row<'s>(
        &self,
        row: usize,
        before: Option<Option<&[f32]>>,
        weight: Option<&[f32]>,
        scratch: &'s mut Scratch,
    ) -> &'s [f32]
    where
        'a: 's,
    {
        let (isa, eps, hidden) = (self.isa, self.spec.norm_eps, self.spec.hidden);
        // SAFETY: the caller's obligation.
        let x = unsafe { self.row(self.x, row, hidden) };
        if let Some(post_norm) = before {
            // SAFETY: the caller's obligation.
            let added = unsafe { self.row(self.added, row, hidden) };
            if let Some(weight) = post_norm {
                math::rms_norm_in_place(isa, added, weight, eps);
            }
            if self.spec.residual_scale != 1.0 {
                math::scale(isa, added, self.spec.residual_scale);
            }
            math::add_assign(isa, x, added);
        }
        match weight {
            Some(weight) => {
                let normed = &mut scratch.row[..hidden];
                math::rms_norm(isa, x, weight, eps, normed);
                normed
            }
            None => x,
        }
    }
}

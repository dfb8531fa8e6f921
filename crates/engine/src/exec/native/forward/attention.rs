//! The attention phases of a forward pass.

use std::ops::Range;

use super::Pass;
use crate::exec::native::buffers::{Scratch, grow};
use crate::exec::native::plan::{BLOCKS_PER_CHUNK, Piece, Plan, View};
use incant_kernels::attention::{self, Block, KvChunk, Partials, attend, merge};
use incant_kernels::math;
use incant_kernels::pool::Worker;
use incant_kernels::product::Writer;
use incant_model::DecoderSpec;
use incant_model::lora::Linear;
use incant_model::packed::Projection;

/// Queries that are processed together over a chunk of keys in a long prompt, such that their
/// scores and values stay in the L2 cache.
const QUERIES_PER_TASK: usize = 64;

/// The division of the attention of one layer into tasks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Split {
    /// For few rows: a task is a piece and a KV head; each piece has its own partial results
    /// (split-KV).
    Pieces,
    /// For many rows: a task is this number of rows and a KV head. It processes all pieces of
    /// these rows, in the same order in which the partial results of `Pieces` are merged.
    Rows(usize),
}

impl Split {
    /// Splits by rows if that gives every thread enough tasks.
    pub(super) fn of(plan: &Plan, spec: &DecoderSpec, threads: usize) -> Split {
        let many = (QUERIES_PER_TASK * spec.kv_heads / spec.heads).max(1);
        if plan.count().div_ceil(many) * spec.kv_heads >= 4 * threads {
            Split::Rows(many)
        } else {
            Split::Pieces
        }
    }

    /// The number of partial results at the same time.
    pub(super) fn partials(self, plan: &Plan) -> usize {
        match self {
            Split::Rows(_) => plan.count(),
            Split::Pieces => plan.views.iter().map(|v| v.partials).max().unwrap_or(0),
        }
    }
}

impl<'a> Pass<'a> {
    /// Finishes queries, keys and values (bias, norm, RoPE) and stores them for attention.
    ///
    /// # Safety
    /// A phase: see [`Pass`].
    pub(super) unsafe fn store_qkv(
        &self,
        worker: &mut Worker<'_>,
        layer: usize,
        projections: &[Projection; 3],
    ) {
        let spec = self.spec;
        let (heads, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let rope = spec.layers[layer].rope;
        let style = spec.ropes[rope].style;
        let (cos, sin) = &self.plan.angles[rope];
        let pairs = spec.ropes[rope].dims / 2;
        let group = spec.heads / spec.kv_heads;
        let (group_of, block) = (self.layout.group_of(layer), self.layout.block_of(layer));
        worker.each(self.plan.spans.len(), |index| {
            let span = &self.plan.spans[index];
            let page = self.plan.pages[index * self.layout.groups.len() + group_of];
            // SAFETY: each span's page is written by one task.
            let block = unsafe { self.kv.slice_mut(page + block.start..page + block.end) };
            for (offset, row) in span.rows.clone().enumerate() {
                let (cos, sin) = (&cos[row * pairs..][..pairs], &sin[row * pairs..][..pairs]);
                // SAFETY: each row is used by one task.
                let projected = unsafe { self.row(self.projected, row, heads + 2 * kv) };
                let (query, rest) = projected.split_at_mut(heads);
                let (key, value) = rest.split_at_mut(kv);
                let parts = [&mut *query, &mut *key, &mut *value];
                for (part, projection) in parts.into_iter().zip(projections) {
                    self.finish(part, projection);
                }
                for head in query.chunks_exact_mut(spec.head_dim) {
                    math::rope(self.isa, style, head, cos, sin);
                }
                for head in key.chunks_exact_mut(spec.head_dim) {
                    math::rope(self.isa, style, head, cos, sin);
                }
                let scale = spec.query_scale(self.plan.rows.positions[row]);
                math::scale(self.isa, query, scale);
                let width = group * spec.head_dim;
                for (head, queries) in query.chunks_exact(width).enumerate() {
                    let at = (head * self.plan.count() + row) * width;
                    // SAFETY: each row's queries are written by one task.
                    let to = unsafe { self.queries.slice_mut(at..at + width) };
                    to.copy_from_slice(queries);
                }
                let token = span.first_token + offset;
                self.layout.write(self.isa, block, token, (key, value));
            }
        });
    }

    /// Adds the bias of a projection and norms its heads, separately or together.
    fn finish(&self, x: &mut [f32], projection: &Projection) {
        if let Some(bias) = &projection.bias {
            math::add_assign(self.isa, x, bias);
        }
        if let Some(norm) = &projection.norm {
            for part in x.chunks_exact_mut(norm.len()) {
                math::rms_norm_in_place(self.isa, part, norm, self.spec.norm_eps);
            }
        }
    }

    fn view(&self, layer: usize) -> &'a View {
        &self.plan.views[self.layout.group_of(layer)]
    }

    /// The number of query heads per KV head.
    fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    /// Computes the partial results of all rows.
    ///
    /// # Safety
    /// A phase after the one that stored queries, keys and values: see [`Pass`].
    pub(super) unsafe fn attention(&self, worker: &mut Worker<'_>, layer: usize) {
        let view = self.view(layer);
        // SAFETY: it is used within this phase.
        let scratch = unsafe { self.scratch(worker) };
        let kv_heads = self.spec.kv_heads;
        match self.split {
            Split::Pieces => worker.each(view.pieces.len() * kv_heads, |task| {
                let (piece, head) = (&view.pieces[task / kv_heads], task % kv_heads);
                let rows = piece.rows.clone();
                self.visible(view, piece, rows.clone(), &mut scratch.visible);
                // SAFETY: tasks divide the partial results by pieces and KV heads; an earlier
                // phase has written queries, keys and values.
                unsafe {
                    let mut out = self.partials(head, piece.first..piece.first + rows.len());
                    self.attend(piece, layer, head, rows, &scratch.visible, &mut out);
                }
            }),
            Split::Rows(many) => {
                let tiles = self.plan.count().div_ceil(many);
                worker.each(tiles * kv_heads, |task| {
                    let (tile, head) = (task / kv_heads, task % kv_heads);
                    let rows = tile * many..self.plan.count().min((tile + 1) * many);
                    // SAFETY: tasks divide the partial results by rows and KV heads; an earlier
                    // phase has written queries, keys and values.
                    unsafe { self.attend_all(view, layer, head, rows, scratch) };
                });
            }
        }
    }

    /// Computes the results of some rows over all their pieces, merged into one per row.
    ///
    /// # Safety
    /// A part of a task that owns the partial results of the rows for a KV head, after queries,
    /// keys and values were stored: see [`Pass`].
    unsafe fn attend_all(
        &self,
        view: &View,
        layer: usize,
        head: usize,
        rows: Range<usize>,
        scratch: &mut Scratch,
    ) {
        // SAFETY: the caller's obligation.
        let Partials {
            maxima,
            sums,
            values,
        } = unsafe { self.partials(head, rows.clone()) };
        maxima.fill(f32::NEG_INFINITY);
        sums.fill(0.0);
        values.fill(0.0);
        let most = rows.len() * self.group();
        grow(&mut scratch.maxima, most);
        grow(&mut scratch.sums, most);
        grow(&mut scratch.values, most * self.spec.head_dim);
        for piece in &view.pieces {
            let rows = rows.start.max(piece.rows.start)..rows.end.min(piece.rows.end);
            if rows.is_empty() {
                continue;
            }
            self.visible(view, piece, rows.clone(), &mut scratch.visible);
            if scratch.visible.iter().all(|seen| seen.is_empty()) {
                continue;
            }
            let queries = rows.len() * self.group();
            let mut part = Partials {
                maxima: &mut scratch.maxima[..queries],
                sums: &mut scratch.sums[..queries],
                values: &mut scratch.values[..queries * self.spec.head_dim],
            };
            let visible = &scratch.visible;
            // SAFETY: the caller's obligation; no other reference to these partial results is
            // in use.
            unsafe {
                self.attend(piece, layer, head, rows.clone(), visible, &mut part);
                merge(self.isa, &mut self.partials(head, rows), &part);
            }
        }
    }

    /// Returns the partial results with these numbers for one KV head, to be written.
    ///
    /// # Safety
    /// A part of a task that owns these partial results: see [`Pass`].
    unsafe fn partials(&self, head: usize, numbers: Range<usize>) -> Partials<'a> {
        let group = self.group();
        let first = head * self.split.partials(self.plan);
        let queries = (first + numbers.start) * group..(first + numbers.end) * group;
        let width = self.spec.head_dim;
        // SAFETY: the caller's obligation.
        unsafe {
            Partials {
                maxima: self.maxima.slice_mut(queries.clone()),
                sums: self.sums.slice_mut(queries.clone()),
                values: self
                    .values
                    .slice_mut(queries.start * width..queries.end * width),
            }
        }
    }

    /// Collects the visible keys of each query of some rows.
    fn visible(&self, view: &View, piece: &Piece, rows: Range<usize>, out: &mut Vec<Range<u32>>) {
        out.clear();
        for row in rows {
            let seen = view.visible(piece, self.plan.rows.positions[row]);
            out.extend(std::iter::repeat_n(seen, self.group()));
        }
    }

    /// Computes the partial results of some rows over one piece.
    ///
    /// # Safety
    /// A part of a task of a phase in which nothing writes queries, keys or values: see
    /// [`Pass`].
    unsafe fn attend(
        &self,
        piece: &Piece,
        layer: usize,
        head: usize,
        rows: Range<usize>,
        visible: &[Range<u32>],
        out: &mut Partials<'_>,
    ) {
        let width = self.group() * self.spec.head_dim;
        let first = head * self.plan.count();
        let queries = (first + rows.start) * width..(first + rows.end) * width;
        let block = self.layout.block_of(layer);
        // SAFETY: the caller's obligation.
        let (queries, chunk) = unsafe {
            let queries = self.queries.slice(queries);
            let mut blocks = [Block::default(); BLOCKS_PER_CHUNK];
            for seen in piece.blocks.clone() {
                let page = piece.pages[seen];
                let numbers = self.kv.slice(page + block.start..page + block.end);
                blocks[seen] = self.layout.head(numbers, head);
            }
            let head_dim = self.spec.head_dim;
            (queries, KvChunk { blocks, head_dim })
        };
        let cap = self.spec.attention_cap;
        attend(self.isa, &chunk, queries, visible, cap, out);
    }

    /// Merges the partial results of each row and rounds the output of attention.
    ///
    /// # Safety
    /// A phase: see [`Pass`].
    pub(super) unsafe fn merge(&self, worker: &mut Worker<'_>, layer: usize, to: &Writer<'_>) {
        let view = self.view(layer);
        // SAFETY: it is used within this phase.
        let scratch = unsafe { self.scratch(worker) };
        let (width, group) = (self.spec.head_dim, self.group());
        worker.each(self.plan.count(), |row| {
            let own = [row];
            let (first, others) = match self.split {
                Split::Pieces => view.of_row(row),
                Split::Rows(_) => &own[..],
            }
            .split_first()
            .expect("a row sees its own key");
            let out = &mut scratch.row[..self.spec.heads * width];
            for (head, out) in out.chunks_exact_mut(group * width).enumerate() {
                // SAFETY: each row's partial results are used by one task, and none is merged
                // with itself.
                let mut whole = unsafe { self.partials(head, *first..first + 1) };
                for other in others {
                    // SAFETY: as above.
                    let part = unsafe { self.partials(head, *other..other + 1) };
                    merge(self.isa, &mut whole, &part);
                }
                for (query, out) in out.chunks_exact_mut(width).enumerate() {
                    let values = &whole.values[query * width..][..width];
                    attention::finish(self.isa, whole.sums[query], values, out);
                }
            }
            // SAFETY: each row of both buffers is written by one task.
            unsafe {
                self.shrink(row, (layer, Linear::Output), out);
                to.write(row, out);
            }
        });
    }
}

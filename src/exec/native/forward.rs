//! The forward pass: a program of phases that all threads of the pool run.
//!
//! Per layer:
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

use super::NativeExecutor;
use super::cache::{Layout, SharedKv};
use super::plan::{Piece, Plan, Source, View};
use super::pool::Crew;
use super::shared::SharedSlice;
use super::shares::Shares;
use super::weights::{Layer, Projection};
use crate::exec::Logits;
use crate::kernels::attention::{self, Partials, Stretch, attend, merge};
use crate::kernels::product::{self, Writer};
use crate::kernels::{Activations, Isa, Kind, LANES, Matrix, math};
use crate::model::DecoderSpec;

/// Columns of a block of activations.
const BLOCK: usize = 2 * LANES;
/// Queries that go over a chunk of keys together in a long prompt: their
/// scores and values stay in the second-level cache.
const QUERIES: usize = 64;

/// Memory that forward passes use again and again. It only grows.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The residual stream, `[row][hidden]`.
    x: Vec<f32>,
    /// What is to be added to it.
    added: Vec<f32>,
    /// Queries, keys and values as projected, `[row][heads…]`.
    projected: Vec<f32>,
    /// Queries, ready to be used: `[kv_head][row][head of the group][head_dim]`.
    queries: Vec<f32>,
    /// Partial results of attention: `[slot][kv_head][row][head of the group]`.
    maxima: Vec<f32>,
    sums: Vec<f32>,
    values: Vec<f32>,
    /// What the projections and the feed-forward part take.
    normed: Activations,
    /// What attention's output projection takes.
    attended: Activations,
    /// What the down projection takes.
    inner: Activations,
    /// Each thread's own.
    scratch: Vec<Scratch>,
}

/// What one thread works in.
#[derive(Debug, Default)]
struct Scratch {
    panel: Vec<[f32; LANES]>,
    other_panel: Vec<[f32; LANES]>,
    block: Vec<[f32; BLOCK]>,
    row: Vec<f32>,
    maxima: Vec<f32>,
    sums: Vec<f32>,
    values: Vec<f32>,
    visible: Vec<std::ops::Range<u32>>,
}

impl Buffers {
    pub(super) fn new(isa: Isa, threads: usize) -> Buffers {
        Buffers {
            x: Vec::new(),
            added: Vec::new(),
            projected: Vec::new(),
            queries: Vec::new(),
            maxima: Vec::new(),
            sums: Vec::new(),
            values: Vec::new(),
            normed: Activations::new(isa),
            attended: Activations::new(isa),
            inner: Activations::new(isa),
            scratch: (0..threads).map(|_| Scratch::default()).collect(),
        }
    }

    fn grow(&mut self, spec: &DecoderSpec, rows: usize, slots: usize) {
        let (heads, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        grow(&mut self.x, rows * spec.hidden);
        grow(&mut self.added, rows * spec.hidden);
        grow(&mut self.projected, rows * (heads + 2 * kv));
        grow(&mut self.queries, rows * heads);
        grow(&mut self.maxima, slots * rows * spec.heads);
        grow(&mut self.sums, slots * rows * spec.heads);
        grow(&mut self.values, slots * rows * heads);
        for scratch in &mut self.scratch {
            if scratch.panel.len() < rows {
                scratch.panel.resize(rows, [0.0; LANES]);
                scratch.other_panel.resize(rows, [0.0; LANES]);
                scratch.block.resize(rows, [0.0; BLOCK]);
            }
            grow(&mut scratch.row, spec.hidden.max(heads));
        }
    }
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

/// How the attention of one layer is shared out.
#[derive(Clone, Copy, Debug)]
enum Split {
    /// Few rows: a task is a piece and a head of keys; each piece has a slot of
    /// partial results of its own.
    Pieces,
    /// Many rows: a task is so many rows and a head of keys. It goes over all
    /// their pieces, in the same order in which the others are merged.
    Rows(usize),
}

impl NativeExecutor {
    /// Runs a batch. Its sequences' keys and values are written, but not yet
    /// counted.
    pub(super) fn run(&mut self, plan: &Plan) -> Logits {
        let spec = &self.spec;
        let layout = Layout::of(spec);
        let (rows, threads) = (plan.rows(), self.pool.threads());
        let queries = (QUERIES * spec.kv_heads / spec.heads).max(1);
        let split = match rows.div_ceil(queries) * spec.kv_heads >= 4 * threads {
            true => Split::Rows(queries),
            false => Split::Pieces,
        };
        let slots = match split {
            Split::Rows(_) => 1,
            Split::Pieces => plan
                .views
                .values()
                .map(|view| view.slots)
                .max()
                .unwrap_or(0),
        };
        let buffers = &mut self.buffers;
        buffers.grow(spec, rows, slots);

        // The suffixes' KV by run, then by layer.
        let mut suffixes: Vec<Vec<SharedKv<'_>>> = Vec::new();
        suffixes.resize_with(plan.runs.len(), Vec::new);
        for (id, sequence) in &mut self.sequences {
            if let Some(run) = plan.runs.iter().position(|run| run.sequence == *id) {
                suffixes[run] = sequence.grow(layout, plan.runs[run].rows.len());
            }
        }

        let mut logits = vec![0.0; plan.wanted.len() * spec.vocab];
        let pass = Pass {
            spec,
            isa: self.isa,
            plan,
            layout,
            threads,
            split,
            suffixes: &suffixes,
            x: SharedSlice::from(&mut buffers.x[..]),
            added: SharedSlice::from(&mut buffers.added[..]),
            projected: SharedSlice::from(&mut buffers.projected[..]),
            queries: SharedSlice::from(&mut buffers.queries[..]),
            maxima: SharedSlice::from(&mut buffers.maxima[..]),
            sums: SharedSlice::from(&mut buffers.sums[..]),
            values: SharedSlice::from(&mut buffers.values[..]),
            scratch: SharedSlice::from(&mut buffers.scratch[..]),
        };
        let weights = &self.weights;
        let heads = spec.heads * spec.head_dim;
        // The layers' kinds of weights may differ, so all of them are asked.
        let kind = |of: fn(&Layer) -> Vec<&Matrix>| Kind::of(weights.layers.iter().flat_map(of));
        let takes_normed = kind(|layer| {
            let projections = layer.projections.iter().map(|p| &p.matrix);
            projections.chain([&layer.gate, &layer.up]).collect()
        });
        let prompts = plan.prompts;
        buffers
            .normed
            .reset(rows, prompts, spec.hidden, takes_normed);
        buffers
            .attended
            .reset(rows, prompts, heads, kind(|layer| vec![&layer.output]));
        buffers.inner.reset(
            rows,
            prompts,
            spec.feed_forward,
            kind(|layer| vec![&layer.down]),
        );
        let normed = buffers.normed.writer();
        let attended = buffers.attended.writer();
        let inner = buffers.inner.writer();
        self.pool.run(|crew| {
            pass.embed(crew, weights.embedding());
            for (index, layer) in weights.layers.iter().enumerate() {
                let before = index.checked_sub(1).map(|index| &weights.layers[index]);
                pass.norm(
                    crew,
                    before.map(|layer| layer.post_feed_forward_norm.as_deref()),
                    &layer.attention_norm,
                    &normed,
                );
                let matrices = layer.projections.each_ref().map(|p| &p.matrix);
                pass.multiply(crew, &matrices, &normed, pass.projected);
                pass.place(crew, index, &layer.projections);
                pass.attention(crew, index);
                pass.merge(crew, index, &attended);
                pass.multiply(crew, &[&layer.output], &attended, pass.added);
                pass.norm(
                    crew,
                    Some(layer.post_attention_norm.as_deref()),
                    &layer.feed_forward_norm,
                    &normed,
                );
                pass.gate(crew, layer, &normed, &inner);
                pass.multiply(crew, &[&layer.down], &inner, pass.added);
            }
        });
        if !plan.wanted.is_empty() {
            let wanted = &mut buffers.normed;
            let count = plan.wanted.len();
            wanted.reset(count, count, spec.hidden, Kind::of([&weights.head]));
            let wanted = wanted.writer();
            let out = SharedSlice::from(&mut logits[..]);
            let last = weights.layers.last();
            let post_norm = last.and_then(|layer| layer.post_feed_forward_norm.as_deref());
            self.pool.run(|crew| {
                pass.last_norm(crew, post_norm, &weights.output_norm, &wanted);
                pass.multiply(crew, &[&weights.head], &wanted, out);
            });
        }
        Logits {
            vocab: spec.vocab,
            values: logits,
        }
    }
}

/// One forward pass, as all threads see it.
///
/// What its phases write is divided by row, by panel, by span or by piece, so
/// that no two tasks of a phase touch the same numbers; phases follow one
/// another. That is what every `SAFETY` comment below relies on.
struct Pass<'a> {
    spec: &'a DecoderSpec,
    isa: Isa,
    plan: &'a Plan,
    layout: Layout,
    threads: usize,
    split: Split,
    suffixes: &'a [Vec<SharedKv<'a>>],
    x: SharedSlice<'a, f32>,
    added: SharedSlice<'a, f32>,
    projected: SharedSlice<'a, f32>,
    queries: SharedSlice<'a, f32>,
    maxima: SharedSlice<'a, f32>,
    sums: SharedSlice<'a, f32>,
    values: SharedSlice<'a, f32>,
    scratch: SharedSlice<'a, Scratch>,
}

impl<'a> Pass<'a> {
    /// A thread's scratch memory.
    fn scratch(&self, crew: &Crew<'_>) -> &'a mut Scratch {
        let thread = crew.thread();
        // SAFETY: a thread has one number, and holds its scratch memory only
        // within one phase.
        let own = unsafe { self.scratch.slice_mut(thread..thread + 1) };
        &mut own[0]
    }

    /// A row of a buffer, to be written.
    fn row(&self, buffer: SharedSlice<'a, f32>, row: usize, width: usize) -> &'a mut [f32] {
        // SAFETY: the phases that call this divide the buffer by rows.
        unsafe { buffer.slice_mut(row * width..(row + 1) * width) }
    }

    /// The tokens' embeddings.
    fn embed(&self, crew: &mut Crew<'_>, embedding: &Matrix) {
        crew.each(self.plan.rows(), |row| {
            let x = self.row(self.x, row, self.spec.hidden);
            embedding.row(self.plan.tokens[row] as usize, x);
            if self.spec.embedding_scale != 1.0 {
                math::scale(self.isa, x, self.spec.embedding_scale);
            }
        });
    }

    /// Adds what the last part of the layer gave, if there was one, and norms
    /// the sum for the next.
    fn norm(
        &self,
        crew: &mut Crew<'_>,
        before: Option<Option<&[f32]>>,
        weight: &[f32],
        to: &Writer<'_>,
    ) {
        let scratch = self.scratch(crew);
        crew.each(self.plan.rows(), |row| {
            self.norm_row(row, before, weight, scratch, to, row);
        });
    }

    /// The same for the rows whose logits are wanted, which then are the only
    /// ones.
    fn last_norm(
        &self,
        crew: &mut Crew<'_>,
        post_norm: Option<&[f32]>,
        weight: &[f32],
        to: &Writer<'_>,
    ) {
        let scratch = self.scratch(crew);
        crew.each(self.plan.wanted.len(), |index| {
            let row = self.plan.wanted[index];
            self.norm_row(row, Some(post_norm), weight, scratch, to, index);
        });
    }

    fn norm_row(
        &self,
        row: usize,
        before: Option<Option<&[f32]>>,
        weight: &[f32],
        scratch: &mut Scratch,
        to: &Writer<'_>,
        to_row: usize,
    ) {
        let (isa, eps, hidden) = (self.isa, self.spec.norm_eps, self.spec.hidden);
        let x = self.row(self.x, row, hidden);
        if let Some(post_norm) = before {
            let added = self.row(self.added, row, hidden);
            if let Some(weight) = post_norm {
                math::rms_norm_in_place(isa, added, weight, eps);
            }
            math::add_assign(isa, x, added);
        }
        let normed = &mut scratch.row[..hidden];
        math::rms_norm(isa, x, weight, eps, normed);
        // SAFETY: each row is written by one task.
        unsafe { to.write(to_row, normed) };
    }

    /// Multiplies all rows with some matrices, side by side, into the rows of
    /// `out`.
    fn multiply(
        &self,
        crew: &mut Crew<'_>,
        matrices: &[&Matrix],
        rows: &Writer<'_>,
        out: SharedSlice<'a, f32>,
    ) {
        let panels: usize = matrices.iter().map(|matrix| matrix.panels()).sum();
        let width: usize = matrices.iter().map(|matrix| matrix.rows()).sum();
        let shares = Shares::new(panels, self.threads);
        let scratch = self.scratch(crew);
        crew.each(shares.tasks(), |task| {
            // SAFETY: an earlier phase wrote the rows.
            let rows = unsafe { rows.activations() };
            let result = &mut scratch.panel[..rows.rows()];
            for panel in shares.range(task) {
                let (mut panel, mut column) = (panel, 0);
                let mut matrix = matrices[0];
                for next in matrices {
                    matrix = next;
                    if panel < matrix.panels() {
                        break;
                    }
                    panel -= matrix.panels();
                    column += matrix.rows();
                }
                product::panel(self.isa, matrix, panel, rows, result);
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

    /// Finishes queries, keys and values, and puts them where attention finds
    /// them.
    fn place(&self, crew: &mut Crew<'_>, layer: usize, projections: &[Projection; 3]) {
        let spec = self.spec;
        let (heads, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let rope = spec.layers[layer].rope;
        let style = spec.ropes[rope].style;
        let (cos, sin) = &self.plan.angles[rope];
        let pairs = spec.ropes[rope].dims / 2;
        let group = spec.heads / spec.kv_heads;
        crew.each(self.plan.spans.len(), |index| {
            let span = &self.plan.spans[index];
            let suffix = &self.suffixes[span.run][layer];
            let blocks = |size: usize| span.block * size..(span.block + 1) * size;
            // SAFETY: each block is written by one task.
            let (keys, values) = unsafe {
                (
                    suffix.keys.slice_mut(blocks(self.layout.keys())),
                    suffix.values.slice_mut(blocks(self.layout.values())),
                )
            };
            for (offset, row) in span.rows.clone().enumerate() {
                let (cos, sin) = (&cos[row * pairs..][..pairs], &sin[row * pairs..][..pairs]);
                let projected = self.row(self.projected, row, heads + 2 * kv);
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
                math::scale(self.isa, query, spec.attention_scale);
                let width = group * spec.head_dim;
                for (head, queries) in query.chunks_exact(width).enumerate() {
                    let at = (head * self.plan.rows() + row) * width;
                    // SAFETY: each row's queries are written by one task.
                    let to = unsafe { self.queries.slice_mut(at..at + width) };
                    to.copy_from_slice(queries);
                }
                let place = span.place + offset;
                let blocks = (&mut *keys, &mut *values);
                self.layout.write(self.isa, blocks, place, (key, value));
            }
        });
    }

    /// Adds a projection's bias and norms its heads.
    fn finish(&self, x: &mut [f32], projection: &Projection) {
        if let Some(bias) = &projection.bias {
            math::add_assign(self.isa, x, bias);
        }
        if let Some(norm) = &projection.norm {
            for head in x.chunks_exact_mut(self.spec.head_dim) {
                math::rms_norm_in_place(self.isa, head, norm, self.spec.norm_eps);
            }
        }
    }

    fn view(&self, layer: usize) -> &'a View {
        // Made for every window of the spec.
        &self.plan.views[&self.spec.layers[layer].window]
    }

    /// Query heads to a head of keys.
    fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    /// All rows' partial results.
    fn attention(&self, crew: &mut Crew<'_>, layer: usize) {
        let view = self.view(layer);
        let scratch = self.scratch(crew);
        let kv_heads = self.spec.kv_heads;
        match self.split {
            Split::Pieces => crew.each(view.pieces.len() * kv_heads, |task| {
                let (piece, head) = (&view.pieces[task / kv_heads], task % kv_heads);
                let rows = piece.rows.clone();
                let mut out = self.partials(piece.slot, head, rows.clone());
                self.visible(view, piece, rows.clone(), &mut scratch.visible);
                self.attend(piece, layer, head, rows, &scratch.visible, &mut out);
            }),
            Split::Rows(many) => {
                let tiles = self.plan.rows().div_ceil(many);
                crew.each(tiles * kv_heads, |task| {
                    let (tile, head) = (task / kv_heads, task % kv_heads);
                    let rows = tile * many..self.plan.rows().min((tile + 1) * many);
                    self.attend_all(view, layer, head, rows, scratch);
                });
            }
        }
    }

    /// Some rows' results over all their pieces, merged into the first slot.
    fn attend_all(
        &self,
        view: &View,
        layer: usize,
        head: usize,
        rows: std::ops::Range<usize>,
        scratch: &mut Scratch,
    ) {
        let Partials {
            maxima,
            sums,
            values,
        } = self.partials(0, head, rows.clone());
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
            self.attend(
                piece,
                layer,
                head,
                rows.clone(),
                &scratch.visible,
                &mut part,
            );
            merge(self.isa, &mut self.partials(0, head, rows), &part);
        }
    }

    /// Partial results of some rows with a head of keys, in one slot.
    fn partials(&self, slot: usize, head: usize, rows: std::ops::Range<usize>) -> Partials<'a> {
        let group = self.group();
        let first = (slot * self.spec.kv_heads + head) * self.plan.rows();
        let queries = (first + rows.start) * group..(first + rows.end) * group;
        let width = self.spec.head_dim;
        // SAFETY: attention's tasks divide slots by rows and heads, and merging
        // divides them by rows.
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

    /// The keys that each query of some rows sees.
    fn visible(
        &self,
        view: &View,
        piece: &Piece,
        rows: std::ops::Range<usize>,
        out: &mut Vec<std::ops::Range<u32>>,
    ) {
        out.clear();
        for row in rows {
            let seen = view.visible(piece, self.plan.positions[row]);
            out.extend(std::iter::repeat_n(seen, self.group()));
        }
    }

    fn attend(
        &self,
        piece: &Piece,
        layer: usize,
        head: usize,
        rows: std::ops::Range<usize>,
        visible: &[std::ops::Range<u32>],
        out: &mut Partials<'_>,
    ) {
        let width = self.group() * self.spec.head_dim;
        let first = head * self.plan.rows();
        let queries = (first + rows.start) * width..(first + rows.end) * width;
        // SAFETY: an earlier phase wrote the queries and the suffixes.
        let (queries, stretch): (_, Stretch<'_>) = unsafe {
            let queries = self.queries.slice(queries);
            let (keys, values) = match &piece.source {
                Source::Segment(segment) => {
                    let kv = &segment.layers[layer];
                    (&kv.keys[..], &kv.values[..])
                }
                Source::Own(run) => {
                    let kv = &self.suffixes[*run][layer];
                    let all = |numbers: SharedSlice<'a, u16>| numbers.slice(0..numbers.len());
                    (all(kv.keys), all(kv.values))
                }
            };
            (queries, self.layout.head(head, keys, values))
        };
        attend(
            self.isa,
            &stretch,
            piece.keys.clone(),
            queries,
            visible,
            out,
        );
    }

    /// Merges each row's partial results and rounds what they give.
    fn merge(&self, crew: &mut Crew<'_>, layer: usize, to: &Writer<'_>) {
        let view = self.view(layer);
        let scratch = self.scratch(crew);
        let (width, group) = (self.spec.head_dim, self.group());
        crew.each(self.plan.rows(), |row| {
            let slots = match self.split {
                Split::Pieces => view.slots_of[row],
                Split::Rows(_) => 1,
            };
            let out = &mut scratch.row[..self.spec.heads * width];
            for (head, out) in out.chunks_exact_mut(group * width).enumerate() {
                let mut whole = self.partials(0, head, row..row + 1);
                for slot in 1..slots {
                    let part = self.partials(slot, head, row..row + 1);
                    merge(self.isa, &mut whole, &part);
                }
                for (query, out) in out.chunks_exact_mut(width).enumerate() {
                    let values = &whole.values[query * width..][..width];
                    attention::finish(self.isa, whole.sums[query], values, out);
                }
            }
            // SAFETY: each row is written by one task.
            unsafe { to.write(row, out) };
        });
    }

    /// The feed-forward part up to what the down projection takes.
    fn gate(&self, crew: &mut Crew<'_>, layer: &Layer, rows: &Writer<'_>, to: &Writer<'_>) {
        let width = self.spec.feed_forward;
        let blocks = width.div_ceil(BLOCK);
        let shares = Shares::new(blocks, self.threads);
        let scratch = self.scratch(crew);
        crew.each(shares.tasks(), |task| {
            // SAFETY: an earlier phase wrote the rows.
            let rows = unsafe { rows.activations() };
            let gate = &mut scratch.panel[..rows.rows()];
            let up = &mut scratch.other_panel[..rows.rows()];
            let inner = &mut scratch.block[..rows.rows()];
            for block in shares.range(task) {
                for half in 0..2 {
                    let panel = 2 * block + half;
                    if panel >= layer.gate.panels() {
                        break;
                    }
                    product::panel(self.isa, &layer.gate, panel, rows, gate);
                    product::panel(self.isa, &layer.up, panel, rows, up);
                    let activation = self.spec.activation;
                    let up = up.as_flattened();
                    math::gated(self.isa, activation, gate.as_flattened_mut(), up);
                    for (inner, gate) in inner.iter_mut().zip(&*gate) {
                        inner[half * LANES..][..LANES].copy_from_slice(gate);
                    }
                }
                let used = BLOCK.min(width - block * BLOCK);
                for (row, inner) in inner.iter().enumerate() {
                    // SAFETY: each block is written by one task.
                    unsafe { to.write_block(row, block, &inner[..used]) };
                }
            }
        });
    }
}

//! Causal attention within sequences, forward and backward pass. Sequences may share their
//! first rows (a common prefix).
//!
//! Attention weights are not kept for the backward pass but recomputed: they would be the
//! largest part of the saved activations.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use super::rows::Sequence;
use incant_kernels::gemm::{StridedLayout, multiply};
use incant_kernels::{Isa, gradients, math};

/// Queries per block. Positions after a block's last query are skipped altogether.
const QUERIES: usize = 64;

/// Attention over a batch's sequences with one layer's parameters.
pub(super) struct Attention<'a> {
    pub(super) isa: Isa,
    pub(super) sequences: &'a [Sequence],
    /// The factor of each row's scores.
    pub(super) scales: &'a [f32],
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Sliding window: the positions that a query sees, including its own; `None` for all.
    pub(super) window: Option<usize>,
    /// Soft cap of the scores.
    pub(super) cap: Option<f32>,
}

/// One query head of one sequence's own rows.
#[derive(Clone, Copy)]
struct Task<'a> {
    sequence: &'a Sequence,
    head: usize,
}

impl Task<'_> {
    fn queries(self) -> usize {
        self.sequence.rows.len() - self.sequence.shared
    }

    /// Positions that the last query sees without a sliding window.
    fn positions(self) -> usize {
        self.sequence.rows.len()
    }
}

/// Queries of a task that are computed together, and all positions that any of them sees.
struct QueryBlock {
    queries: Range<usize>,
    positions: Range<usize>,
}

impl QueryBlock {
    fn shape(&self) -> (usize, usize) {
        (self.queries.len(), self.positions.len())
    }
}

/// The positions that the query at `position` sees.
fn visible(window: Option<usize>, position: usize) -> Range<usize> {
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
    first..position + 1
}

/// A matrix without its first `row` rows.
fn without_rows(place: StridedLayout, row: usize) -> StridedLayout {
    StridedLayout {
        start: place.start + row * place.row,
        ..place
    }
}

/// A matrix whose elements may be borrowed or copied.
type MatrixRef<'a> = (Cow<'a, [f32]>, StridedLayout);

impl Attention<'_> {
    fn tasks(&self) -> Vec<Task<'_>> {
        let sequences = self.sequences.iter();
        let sequences = sequences.filter(|sequence| !sequence.own().is_empty());
        let tasks =
            sequences.flat_map(|sequence| (0..self.heads).map(move |head| Task { sequence, head }));
        tasks.collect()
    }

    /// The place of a task's queries.
    fn query(&self, task: Task<'_>) -> StridedLayout {
        let width = self.heads * self.head_dim;
        let start = task.sequence.own().start * width;
        StridedLayout::rows(start + task.head * self.head_dim, width)
    }

    /// A task's queries in consecutive blocks, each with the positions that it sees; all other
    /// positions have weight zero for the whole block.
    fn blocks(&self, task: Task<'_>) -> impl Iterator<Item = QueryBlock> {
        let (shared, window) = (task.sequence.shared, self.window);
        let starts = (0..task.queries()).step_by(QUERIES);
        starts.map(move |start| {
            let queries = start..task.queries().min(start + QUERIES);
            let first = visible(window, shared + start).start;
            QueryBlock {
                positions: first..shared + queries.end,
                queries,
            }
        })
    }

    /// The place of a row's keys and values for a task.
    fn key_of(&self, task: Task<'_>, row: usize) -> Range<usize> {
        let head = task.head * self.kv_heads / self.heads;
        let start = (row * self.kv_heads + head) * self.head_dim;
        start..start + self.head_dim
    }

    /// A task's keys or values: borrowed where they are contiguous, otherwise a gathered copy.
    fn keys<'a>(&self, task: Task<'_>, of: &'a [f32]) -> MatrixRef<'a> {
        if task.sequence.shared == 0 {
            let start = self.key_of(task, task.sequence.own().start).start;
            let place = StridedLayout::rows(start, self.kv_heads * self.head_dim);
            return (Cow::Borrowed(of), place);
        }
        let rows = task.sequence.rows.iter();
        let rows: Vec<&[f32]> = rows.map(|&row| &of[self.key_of(task, row)]).collect();
        (rows.concat().into(), StridedLayout::rows(0, self.head_dim))
    }

    /// A block's attention weights, `[query][position]`, and the derivatives of the scores'
    /// soft cap.
    fn weights(
        &self,
        task: Task<'_>,
        block: &QueryBlock,
        q: &[f32],
        k: &MatrixRef<'_>,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let (queries, length) = block.shape();
        let mut weights = vec![0.0; queries * length];
        let keys = (&*k.0, without_rows(k.1, block.positions.start).transposed());
        let q = (q, without_rows(self.query(task), block.queries.start));
        let out = (&mut weights[..], StridedLayout::rows(0, length));
        multiply([queries, self.head_dim, length], q, keys, 1.0, 0.0, out);
        let mut slopes = self.cap.map(|_| vec![0.0; queries * length]);
        let row_indices = task.sequence.own().start + block.queries.start..;
        let positions = task.sequence.shared + block.queries.start..;
        let rows = weights
            .chunks_exact_mut(length)
            .zip(row_indices.zip(positions));
        for (query, (row, (row_index, position))) in rows.enumerate() {
            let visible = visible(self.window, position);
            let visible =
                visible.start - block.positions.start..visible.end - block.positions.start;
            let (before, rest) = row.split_at_mut(visible.start);
            let (scores, after) = rest.split_at_mut(visible.len());
            before.fill(0.0);
            after.fill(0.0);
            math::scale(self.isa, scores, self.scales[row_index]);
            if let (Some(cap), Some(slopes)) = (self.cap, &mut slopes) {
                math::soft_cap(self.isa, scores, cap);
                let slopes = &mut slopes[query * length..][visible];
                for (slope, score) in slopes.iter_mut().zip(&*scores) {
                    *slope = 1.0 - (score / cap) * (score / cap);
                }
            }
            let largest = math::largest(self.isa, scores);
            let sum = gradients::exponentials(self.isa, scores, largest);
            math::scale(self.isa, scores, 1.0 / sum);
        }
        (weights, slopes)
    }

    /// The attention output of each row: `q` is `[rows, heads · head_dim]`, `k` and `v` are
    /// `[rows, kv_heads · head_dim]`.
    pub(super) fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let tasks = self.tasks();
        let attended: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|&task| {
                let width = self.head_dim;
                let (keys, values) = (self.keys(task, k), self.keys(task, v));
                let mut attended = vec![0.0; task.queries() * width];
                for block in self.blocks(task) {
                    let (queries, length) = block.shape();
                    let (weights, _) = self.weights(task, &block, q, &keys);
                    multiply(
                        [queries, length, width],
                        (&weights, StridedLayout::rows(0, length)),
                        (&values.0, without_rows(values.1, block.positions.start)),
                        1.0,
                        0.0,
                        (
                            &mut attended,
                            StridedLayout::rows(block.queries.start * width, width),
                        ),
                    );
                }
                attended
            })
            .collect();
        let mut y = vec![0.0; q.len()];
        for (task, attended) in tasks.into_iter().zip(attended) {
            self.scatter_queries(task, &attended, &mut y);
        }
        y
    }

    /// Scatters values of a task's queries to their rows.
    fn scatter_queries(&self, task: Task<'_>, from: &[f32], to: &mut [f32]) {
        let place = self.query(task);
        for (query, from) in from.chunks_exact(self.head_dim).enumerate() {
            to[place.start + query * place.row..][..self.head_dim].copy_from_slice(from);
        }
    }

    /// Adds values of a task's keys to their rows, which tasks may share.
    fn add_keys(&self, task: Task<'_>, from: &[f32], to: &mut [f32]) {
        let rows = task.sequence.rows.iter();
        for (&row, from) in rows.zip(from.chunks_exact(self.head_dim)) {
            math::add_assign(self.isa, &mut to[self.key_of(task, row)], from);
        }
    }

    /// Backward pass: from the gradient of the attention output to those of `q`, `k` and `v`.
    pub(super) fn backward(&self, [q, k, v]: [&[f32]; 3], dy: &[f32]) -> [Vec<f32>; 3] {
        let tasks = self.tasks();
        let gradients: Vec<[Vec<f32>; 3]> = tasks
            .par_iter()
            .map(|&task| self.task_backward(task, [q, k, v], dy))
            .collect();
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let all = || tasks.iter().zip(&gradients);
        // Gradients of shared keys are summed in a fixed order, so that results are
        // reproducible.
        rayon::join(
            || all().for_each(|(&task, [own, ..])| self.scatter_queries(task, own, &mut dq)),
            || {
                all().for_each(|(&task, [_, own, _])| self.add_keys(task, own, &mut dk));
                all().for_each(|(&task, [.., own])| self.add_keys(task, own, &mut dv));
            },
        );
        [dq, dk, dv]
    }

    fn task_backward(&self, task: Task<'_>, [q, k, v]: [&[f32]; 3], dy: &[f32]) -> [Vec<f32>; 3] {
        let width = self.head_dim;
        let (keys, values) = (self.keys(task, k), self.keys(task, v));
        let mut dq = vec![0.0; task.queries() * width];
        let mut dk = vec![0.0; task.positions() * width];
        let mut dv = dk.clone();
        for block in self.blocks(task) {
            let (queries, length) = block.shape();
            let (weights, slopes) = self.weights(task, &block, q, &keys);
            let square = StridedLayout::rows(0, length);
            let own = without_rows(self.query(task), block.queries.start);
            let narrow = StridedLayout::rows(block.positions.start * width, width);
            let shape = [length, queries, width];
            let transposed = (&weights[..], square.transposed());
            multiply(shape, transposed, (dy, own), 1.0, 1.0, (&mut dv, narrow));
            let mut scores = vec![0.0; queries * length];
            let shape = [queries, width, length];
            let transposed = without_rows(values.1, block.positions.start).transposed();
            let out = (&mut scores[..], square);
            multiply(shape, (dy, own), (&*values.0, transposed), 1.0, 0.0, out);
            let first = task.sequence.own().start + block.queries.start;
            let rows = scores.chunks_exact_mut(length);
            let rows = rows.zip(weights.chunks_exact(length)).zip(first..);
            for ((scores, weights), row_index) in rows {
                gradients::softmax(self.isa, weights, self.scales[row_index], scores);
            }
            for (score, slope) in scores.iter_mut().zip(slopes.iter().flatten()) {
                *score *= slope;
            }
            let shape = [queries, length, width];
            let place = without_rows(keys.1, block.positions.start);
            let out = StridedLayout::rows(block.queries.start * width, width);
            let scores = &scores[..];
            multiply(
                shape,
                (scores, square),
                (&*keys.0, place),
                1.0,
                0.0,
                (&mut dq, out),
            );
            let shape = [length, queries, width];
            let transposed = (scores, square.transposed());
            multiply(shape, transposed, (q, own), 1.0, 1.0, (&mut dk, narrow));
        }
        [dq, dk, dv]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: usize = 4;
    const KV_HEADS: usize = 2;
    const WIDTH: usize = 8;

    fn elements(count: usize, seed: u32) -> Vec<f32> {
        let element = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32;
        (0..count as u32).map(|i| element(i) / 8e6 - 1.0).collect()
    }

    /// The attention output and the gradients of queries, keys and values, element by element.
    fn reference(attention: &Attention<'_>, [q, k, v]: [&[f32]; 3], dy: &[f32]) -> [Vec<f64>; 4] {
        let mut found = [q, q, k, v].map(|like| vec![0.0f64; like.len()]);
        let [y, dq, dk, dv] = &mut found;
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let both = a.iter().zip(b);
            both.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        for sequence in attention.sequences {
            let places = (sequence.shared..sequence.rows.len()).map(|at| (at, sequence.rows[at]));
            for ((position, row), head) in
                places.flat_map(|place| (0..HEADS).map(move |head| (place, head)))
            {
                let first = attention.window.map_or(0, |w| (position + 1).max(w) - w);
                let query = (row * HEADS + head) * WIDTH..(row * HEADS + head + 1) * WIDTH;
                let keys: Vec<Range<usize>> = sequence.rows[first..=position]
                    .iter()
                    .map(|row| (row * KV_HEADS + head / 2) * WIDTH)
                    .map(|start| start..start + WIDTH)
                    .collect();
                let scale = f64::from(attention.scales[row]);
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|key| scale * dot(&q[query.clone()], &k[key.clone()]))
                    .collect();
                let capped = |score: f64| match attention.cap.map(f64::from) {
                    Some(cap) => (
                        cap * (score / cap).tanh(),
                        1.0 - (score / cap).tanh().powi(2),
                    ),
                    None => (score, 1.0),
                };
                let weights: Vec<f64> = scores.iter().map(|s| capped(*s).0.exp()).collect();
                let sum: f64 = weights.iter().sum();
                let weights: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
                let gradients: Vec<f64> = keys
                    .iter()
                    .map(|key| dot(&dy[query.clone()], &v[key.clone()]))
                    .collect();
                let mean: f64 = weights.iter().zip(&gradients).map(|(w, g)| w * g).sum();
                for (at, key) in keys.into_iter().enumerate() {
                    let slope = capped(scores[at]).1 * scale;
                    let d_score = weights[at] * (gradients[at] - mean) * slope;
                    for (own, its) in query.clone().zip(key) {
                        y[own] += weights[at] * f64::from(v[its]);
                        dv[its] += weights[at] * f64::from(dy[own]);
                        dq[own] += d_score * f64::from(k[its]);
                        dk[its] += d_score * f64::from(q[own]);
                    }
                }
            }
        }
        found
    }

    #[test]
    fn it_is_what_a_plain_loop_computes() {
        // Several blocks of queries, some of which start within a shared prefix; one sequence
        // that is short, and one that is a prefix of another.
        let sequences = [
            Sequence {
                rows: (0..150).collect(),
                shared: 0,
            },
            Sequence {
                rows: (0..40).chain(150..250).collect(),
                shared: 40,
            },
            Sequence {
                rows: (250..253).collect(),
                shared: 0,
            },
            Sequence {
                rows: (0..9).collect(),
                shared: 9,
            },
        ];
        let rows = 253;
        let scales: Vec<f32> = (0..rows).map(|row| 0.5 + (row % 3) as f32 * 0.1).collect();
        let q = elements(rows * HEADS * WIDTH, 1);
        let [k, v] = [2, 3].map(|seed| elements(rows * KV_HEADS * WIDTH, seed));
        let dy = elements(rows * HEADS * WIDTH, 4);
        for (window, cap) in [
            (None, None),
            (Some(5), None),
            (Some(70), Some(3.0)),
            (None, Some(3.0)),
        ] {
            let attention = Attention {
                isa: Isa::best(),
                sequences: &sequences,
                scales: &scales,
                heads: HEADS,
                kv_heads: KV_HEADS,
                head_dim: WIDTH,
                window,
                cap,
            };
            let y = attention.forward(&q, &k, &v);
            let [dq, dk, dv] = attention.backward([&q, &k, &v], &dy);
            let expected = reference(&attention, [&q, &k, &v], &dy);
            for (found, expected) in [y, dq, dk, dv].iter().zip(&expected) {
                assert!(expected.iter().any(|element| element.abs() > 0.1));
                for (found, expected) in found.iter().zip(expected) {
                    let apart = (f64::from(*found) - expected).abs();
                    assert!(
                        apart <= 1e-4 * expected.abs().max(1.0),
                        "{window:?} {cap:?}: {found} and {expected}"
                    );
                }
            }
        }
    }
}

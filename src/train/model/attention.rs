//! Causal attention within sequences, whose first rows may be those of others too.
//!
//! Weights are not kept for the way back, but computed again: they would be the largest
//! part of what is.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::node::{of_three, with};
use super::rows::Sequence;
use crate::kernels::gemm::{Place, multiply};
use crate::kernels::{Isa, gradients, math};

/// What is the same for all layers, and what is not.
pub(super) struct Attention {
    pub(super) isa: Isa,
    pub(super) sequences: Arc<Vec<Sequence>>,
    /// What the scores of each row are multiplied by.
    pub(super) scales: Arc<Vec<f32>>,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// A position sees so many, itself included; `None` sees all before it.
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
    /// How many queries there are.
    fn queries(self) -> usize {
        self.sequence.rows.len() - self.sequence.shared
    }

    /// How many positions the last of them sees, if nothing hides them.
    fn positions(self) -> usize {
        self.sequence.rows.len()
    }
}

/// A matrix in numbers that may be a copy.
type Held<'a> = (Cow<'a, [f32]>, Place);

impl Attention {
    /// What each row attends to: `q` is `[rows, heads · head_dim]`, `k` and `v` are
    /// `[rows, kv_heads · head_dim]`.
    pub(super) fn run(self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let rows = q.dim(0)?;
        let width = self.heads * self.head_dim;
        let y = with(q, |q| with(k, |k| with(v, |v| self.forward(q, k, v))))???;
        let back = move |[q, k, v]: [&[f32]; 3], dy: &[f32]| self.back(q, k, v, dy);
        of_three("attention", [q, k, v], (rows, width), y, Box::new(back))
    }

    fn tasks(&self) -> Vec<Task<'_>> {
        let sequences = self.sequences.iter();
        let sequences = sequences.filter(|sequence| !sequence.own().is_empty());
        let tasks =
            sequences.flat_map(|sequence| (0..self.heads).map(move |head| Task { sequence, head }));
        tasks.collect()
    }

    /// Where a task's queries are.
    fn query(&self, task: Task<'_>) -> Place {
        let width = self.heads * self.head_dim;
        let start = task.sequence.own().start * width;
        Place::rows(start + task.head * self.head_dim, width)
    }

    /// Where a row's keys and values for a task are.
    fn key_of(&self, task: Task<'_>, row: usize) -> Range<usize> {
        let head = task.head * self.kv_heads / self.heads;
        let start = (row * self.kv_heads + head) * self.head_dim;
        start..start + self.head_dim
    }

    /// A task's keys, or values: where they are, or a copy of those of several places.
    fn keys<'a>(&self, task: Task<'_>, of: &'a [f32]) -> Held<'a> {
        if task.sequence.shared == 0 {
            let start = self.key_of(task, task.sequence.own().start).start;
            let place = Place::rows(start, self.kv_heads * self.head_dim);
            return (Cow::Borrowed(of), place);
        }
        let rows = task.sequence.rows.iter();
        let rows = rows.flat_map(|&row| &of[self.key_of(task, row)]);
        (rows.copied().collect(), Place::rows(0, self.head_dim))
    }

    /// The positions that one sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let first = self
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }

    /// A task's weights, `[query][position]`, and the slopes of their scores' caps.
    fn weights(&self, task: Task<'_>, q: &[f32], k: &Held<'_>) -> (Vec<f32>, Option<Vec<f32>>) {
        let (queries, length) = (task.queries(), task.positions());
        let mut weights = vec![0.0; queries * length];
        let shape = [queries, self.head_dim, length];
        let keys = (&*k.0, k.1.transposed());
        let out = (&mut weights[..], Place::rows(0, length));
        multiply(shape, (q, self.query(task)), keys, 1.0, 0.0, out);
        let mut slopes = self.cap.map(|_| vec![0.0; queries * length]);
        let rows = weights
            .chunks_exact_mut(length.max(1))
            .zip(task.sequence.own());
        for (query, (row, number)) in rows.enumerate() {
            let position = task.sequence.shared + query;
            let visible = self.visible(position);
            let (before, rest) = row.split_at_mut(visible.start);
            let (scores, after) = rest.split_at_mut(visible.len());
            before.fill(0.0);
            after.fill(0.0);
            math::scale(self.isa, scores, self.scales[number]);
            if let (Some(cap), Some(slopes)) = (self.cap, &mut slopes) {
                math::soft_cap(self.isa, scores, cap);
                let slopes = &mut slopes[query * length..][visible];
                for (slope, score) in slopes.iter_mut().zip(&*scores) {
                    *slope = 1.0 - (score / cap) * (score / cap);
                }
            }
            let largest = scores.iter().copied().fold(f32::MIN, f32::max);
            let sum = gradients::exponentials(self.isa, scores, largest);
            math::scale(self.isa, scores, 1.0 / sum);
        }
        (weights, slopes)
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let tasks = self.tasks();
        let attended: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|&task| {
                let (weights, _) = self.weights(task, q, &self.keys(task, k));
                let (values, place) = self.keys(task, v);
                let mut out = vec![0.0; task.queries() * self.head_dim];
                multiply(
                    [task.queries(), task.positions(), self.head_dim],
                    (&weights, Place::rows(0, task.positions())),
                    (&values, place),
                    1.0,
                    0.0,
                    (&mut out, Place::rows(0, self.head_dim)),
                );
                out
            })
            .collect();
        let mut y = vec![0.0; q.len()];
        for (task, attended) in tasks.into_iter().zip(attended) {
            self.put_queries(task, &attended, &mut y);
        }
        y
    }

    /// Puts what belongs to a task's queries in its place.
    fn put_queries(&self, task: Task<'_>, from: &[f32], to: &mut [f32]) {
        let place = self.query(task);
        for (query, from) in from.chunks_exact(self.head_dim).enumerate() {
            to[place.start + query * place.row..][..self.head_dim].copy_from_slice(from);
        }
    }

    /// Adds what belongs to a task's keys in their places, which others may share.
    fn add_keys(&self, task: Task<'_>, from: &[f32], to: &mut [f32]) {
        let rows = task.sequence.rows.iter();
        for (&row, from) in rows.zip(from.chunks_exact(self.head_dim)) {
            math::add_assign(self.isa, &mut to[self.key_of(task, row)], from);
        }
    }

    fn back(&self, q: &[f32], k: &[f32], v: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let tasks = self.tasks();
        let gradients: Vec<[Vec<f32>; 3]> = tasks
            .par_iter()
            .map(|&task| self.task_back(task, [q, k, v], dy))
            .collect();
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        // Tasks that share keys add up, in the same order every time.
        for (task, [task_dq, task_dk, task_dv]) in tasks.into_iter().zip(gradients) {
            self.put_queries(task, &task_dq, &mut dq);
            self.add_keys(task, &task_dk, &mut dk);
            self.add_keys(task, &task_dv, &mut dv);
        }
        [dq, dk, dv]
    }

    fn task_back(&self, task: Task<'_>, [q, k, v]: [&[f32]; 3], dy: &[f32]) -> [Vec<f32>; 3] {
        let (queries, length, width) = (task.queries(), task.positions(), self.head_dim);
        let (keys, values) = (self.keys(task, k), self.keys(task, v));
        let (weights, slopes) = self.weights(task, q, &keys);
        let square = Place::rows(0, length);
        let dy = (dy, self.query(task));
        let product = |shape: [usize; 3], a, b, columns| {
            let mut out = vec![0.0; shape[0] * shape[2]];
            multiply(shape, a, b, 1.0, 0.0, (&mut out, Place::rows(0, columns)));
            out
        };
        let transposed = (&weights[..], square.transposed());
        let dv = product([length, queries, width], transposed, dy, width);
        let transposed = (&*values.0, values.1.transposed());
        let mut scores = product([queries, width, length], dy, transposed, length);
        // From the weights' gradients to the scores'.
        let rows = scores
            .chunks_exact_mut(length.max(1))
            .zip(weights.chunks_exact(length.max(1)))
            .zip(task.sequence.own());
        for (query, ((scores, weights), number)) in rows.enumerate() {
            let both = scores.iter().zip(weights);
            let mean: f32 = both.map(|(score, weight)| score * weight).sum();
            let scale = self.scales[number];
            for (score, weight) in scores.iter_mut().zip(weights) {
                *score = weight * (*score - mean) * scale;
            }
            if let Some(slopes) = &slopes {
                let slopes = &slopes[query * length..][..length];
                for (score, slope) in scores.iter_mut().zip(slopes) {
                    *score *= slope;
                }
            }
        }
        let shape = [queries, length, width];
        let dq = product(shape, (&scores[..], square), (&*keys.0, keys.1), width);
        let transposed = (&scores[..], square.transposed());
        let queries_of = (q, self.query(task));
        let dk = product([length, queries, width], transposed, queries_of, width);
        [dq, dk, dv]
    }
}

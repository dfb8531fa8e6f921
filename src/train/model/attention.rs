//! Causal attention within sequences that stand one below the other.
//!
//! Weights are not kept for the way back, but computed again: they would be the largest
//! part of what is.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::node::{of_three, with};
use crate::kernels::gemm::{Place, multiply};
use crate::kernels::{Isa, gradients, math};

/// What is the same for all layers, and what is not.
pub(super) struct Attention {
    pub(super) isa: Isa,
    /// The rows of each sequence.
    pub(super) sequences: Arc<Vec<Range<usize>>>,
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

/// One query head of one sequence.
#[derive(Clone)]
struct Task {
    rows: Range<usize>,
    head: usize,
}

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

    fn tasks(&self) -> Vec<Task> {
        let sequences = self.sequences.iter();
        let tasks = sequences.flat_map(|rows| {
            (0..self.heads).map(|head| Task {
                rows: rows.clone(),
                head,
            })
        });
        tasks.collect()
    }

    /// Where a task's queries are.
    fn query(&self, task: &Task) -> Place {
        let width = self.heads * self.head_dim;
        Place::rows(task.rows.start * width + task.head * self.head_dim, width)
    }

    /// Where its keys and values are.
    fn key(&self, task: &Task) -> Place {
        let width = self.kv_heads * self.head_dim;
        let head = task.head * self.kv_heads / self.heads;
        Place::rows(task.rows.start * width + head * self.head_dim, width)
    }

    /// The positions that one sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let first = self
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        first..position + 1
    }

    /// A task's weights, `[position][position]`, and the slopes of their scores' caps.
    fn weights(&self, task: &Task, q: &[f32], k: &[f32]) -> (Vec<f32>, Option<Vec<f32>>) {
        let length = task.rows.len();
        let mut weights = vec![0.0; length * length];
        let shape = [length, self.head_dim, length];
        let keys = (k, self.key(task).transposed());
        let out = (&mut weights[..], Place::rows(0, length));
        multiply(shape, (q, self.query(task)), keys, 1.0, 0.0, out);
        let mut slopes = self.cap.map(|_| vec![0.0; length * length]);
        for (position, row) in weights.chunks_exact_mut(length).enumerate() {
            let visible = self.visible(position);
            let (before, rest) = row.split_at_mut(visible.start);
            let (scores, after) = rest.split_at_mut(visible.len());
            before.fill(0.0);
            after.fill(0.0);
            math::scale(self.isa, scores, self.scales[task.rows.start + position]);
            if let (Some(cap), Some(slopes)) = (self.cap, &mut slopes) {
                math::soft_cap(self.isa, scores, cap);
                let slopes = &mut slopes[position * length..][visible];
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
            .map(|task| {
                let length = task.rows.len();
                let (weights, _) = self.weights(task, q, k);
                let mut out = vec![0.0; length * self.head_dim];
                multiply(
                    [length, length, self.head_dim],
                    (&weights, Place::rows(0, length)),
                    (v, self.key(task)),
                    1.0,
                    0.0,
                    (&mut out, Place::rows(0, self.head_dim)),
                );
                out
            })
            .collect();
        let mut y = vec![0.0; q.len()];
        for (task, attended) in tasks.iter().zip(attended) {
            self.gather(&attended, self.query(task), &mut y);
        }
        y
    }

    /// Adds a head's rows where they belong.
    fn gather(&self, head: &[f32], place: Place, to: &mut [f32]) {
        for (row, head) in head.chunks_exact(self.head_dim).enumerate() {
            let to = &mut to[place.start + row * place.row..][..self.head_dim];
            math::add_assign(self.isa, to, head);
        }
    }

    fn back(&self, q: &[f32], k: &[f32], v: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let tasks = self.tasks();
        let gradients: Vec<[Vec<f32>; 3]> = tasks
            .par_iter()
            .map(|task| self.task_back(task, [q, k, v], dy))
            .collect();
        let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        // Heads that share keys add up, in the same order every time.
        for (task, [task_dq, task_dk, task_dv]) in tasks.iter().zip(gradients) {
            self.gather(&task_dq, self.query(task), &mut dq);
            self.gather(&task_dk, self.key(task), &mut dk);
            self.gather(&task_dv, self.key(task), &mut dv);
        }
        [dq, dk, dv]
    }

    fn task_back(&self, task: &Task, [q, k, v]: [&[f32]; 3], dy: &[f32]) -> [Vec<f32>; 3] {
        let (length, width) = (task.rows.len(), self.head_dim);
        let (weights, slopes) = self.weights(task, q, k);
        let square = Place::rows(0, length);
        let own = Place::rows(0, width);
        let dy = (dy, self.query(task));
        let mut dv = vec![0.0; length * width];
        let transposed = (&weights[..], square.transposed());
        multiply(
            [length, length, width],
            transposed,
            dy,
            1.0,
            0.0,
            (&mut dv, own),
        );
        let mut scores = vec![0.0; length * length];
        let values = (v, self.key(task).transposed());
        multiply(
            [length, width, length],
            dy,
            values,
            1.0,
            0.0,
            (&mut scores, square),
        );
        // From the weights' gradients to the scores'.
        let rows = scores
            .chunks_exact_mut(length)
            .zip(weights.chunks_exact(length));
        for (position, (scores, weights)) in rows.enumerate() {
            let both = scores.iter().zip(weights);
            let mean: f32 = both.map(|(score, weight)| score * weight).sum();
            let scale = self.scales[task.rows.start + position];
            for (score, weight) in scores.iter_mut().zip(weights) {
                *score = weight * (*score - mean) * scale;
            }
            if let Some(slopes) = &slopes {
                let slopes = &slopes[position * length..][..length];
                for (score, slope) in scores.iter_mut().zip(slopes) {
                    *score *= slope;
                }
            }
        }
        let (mut dq, mut dk) = (vec![0.0; length * width], vec![0.0; length * width]);
        let shape = [length, length, width];
        let keys = (k, self.key(task));
        multiply(shape, (&scores, square), keys, 1.0, 0.0, (&mut dq, own));
        let transposed = (&scores[..], square.transposed());
        multiply(
            shape,
            transposed,
            (q, self.query(task)),
            1.0,
            0.0,
            (&mut dk, own),
        );
        [dq, dk, dv]
    }
}

//! KL divergences from dense targets: a teacher's distribution over the whole vocabulary.

use rayon::prelude::*;

use super::{LmHead, Scored, Softmax, joined};
use crate::model::decoder::part_rows;
use incant_kernels::product::Inputs;

impl LmHead<'_> {
    /// KL(teacher ‖ student) over the vocabulary, where `x` are the student's rows and
    /// `teacher` the teacher's.
    pub(in crate::model) fn divergences(
        &self,
        x: &[f32],
        teacher: &[f32],
        differentiable: bool,
    ) -> Scored {
        let hidden = self.matrix.columns();
        let part = part_rows(x.len() / hidden) * hidden;
        let parts = x.par_chunks(part).zip(teacher.par_chunks(part));
        let parts = parts.map(|(x, teacher)| self.part_divergences(x, teacher, differentiable));
        joined(parts.collect())
    }

    fn part_divergences(&self, x: &[f32], teacher: &[f32], differentiable: bool) -> Scored {
        let hidden = self.matrix.columns();
        let rows = x.len() / hidden;
        let [x, teacher] = [x, teacher].map(|x| Inputs::new(self.isa, [self.matrix], x));
        let wanted = differentiable.then_some(hidden);
        let (mut ours, mut theirs) = (Softmax::new(rows, wanted), Softmax::new(rows, wanted));
        // Σ teacher's weight · (teacher's logit − student's logit), for each row.
        let mut above = vec![0.0f64; rows];
        let (mut logits, mut weights, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
        for panels in self.parts() {
            self.logits(panels.clone(), &x, &mut logits);
            self.logits(panels.clone(), &teacher, &mut weights);
            if differentiable {
                self.slopes(&logits, &mut slopes);
            }
            let outputs = logits.len() / rows;
            let pairs = logits
                .chunks_exact_mut(outputs)
                .zip(weights.chunks_exact_mut(outputs));
            for (row, (logits, weights)) in pairs.enumerate() {
                let apart: Vec<f32> = weights.iter().zip(&*logits).map(|(t, s)| t - s).collect();
                let before = theirs.update(self.isa, row, weights);
                let terms = weights.iter().zip(apart);
                let terms = terms.map(|(weight, apart)| f64::from(*weight) * f64::from(apart));
                above[row] = above[row] * f64::from(before) + terms.sum::<f64>();
                ours.update(self.isa, row, logits);
            }
            // Both use the student's slopes, because only its logits change.
            self.add_weighted_rows(panels.clone(), &mut logits, &slopes, &mut ours);
            self.add_weighted_rows(panels, &mut weights, &slopes, &mut theirs);
        }
        let values = above.iter().enumerate().map(|(row, above)| {
            let apart = ours.normalizer(row) - theirs.normalizer(row);
            (above / f64::from(theirs.sums[row])) as f32 + apart
        });
        let values = values.collect();
        // d KL / dx = Σ (q − p) · slope · W.
        let gradient = ours.weighted_rows.take().zip(theirs.weighted_rows.take());
        let gradient = gradient.map(|(mut our_rows, their_rows)| {
            let both = our_rows.chunks_exact_mut(hidden);
            let both = both.zip(their_rows.chunks_exact(hidden));
            for (row, (ours_row, theirs_row)) in both.enumerate() {
                for (own, other) in ours_row.iter_mut().zip(theirs_row) {
                    *own = *own / ours.sums[row] - other / theirs.sums[row];
                }
            }
            our_rows
        });
        (values, gradient)
    }
}

//! DPO loss, direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): the
//! log-ratio of chosen to rejected answer grows relative to a reference, as in a Bradley–Terry
//! model of preferences.

use candle_core::Tensor;
use serde_json::{Value, json};

use super::{Loss, LossUnit, Objective, by_side, elements, pairs, softplus, sums};
use crate::samples::Example;
use crate::{Student, TrainError};

/// −log σ(β [(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]) for each pair, where
/// log π is the sum over an answer's tokens. The reference is the student before the first
/// step.
#[derive(Clone, Copy, Debug)]
pub struct Dpo {
    /// The weight of the KL penalty: the larger, the closer the student stays to the reference.
    pub beta: f64,
}

impl Objective for Dpo {
    fn name(&self) -> &'static str {
        "dpo"
    }

    fn unit(&self) -> LossUnit {
        LossUnit::Pair
    }

    fn settings(&self) -> Vec<(&'static str, Value)> {
        vec![("beta", json!(self.beta))]
    }

    fn references(
        &self,
        student: &dyn Student,
        examples: &[&Example],
    ) -> Result<Option<Vec<Tensor>>, TrainError> {
        let answers = answers(student, examples)?.detach().reshape(((), 2))?;
        let rows = (0..examples.len()).map(|row| answers.get(row));
        Ok(Some(rows.collect::<candle_core::Result<_>>()?))
    }

    fn loss(
        &self,
        student: &dyn Student,
        examples: &[&Example],
        references: &[&Tensor],
    ) -> Result<Loss, TrainError> {
        let reference = Tensor::cat(references, 0)?;
        let margins = margins(&answers(student, examples)?, &reference, self.beta)?;
        Ok(Loss {
            sum: losses(&margins)?.sum_all()?,
            margins: elements(&margins)?,
        })
    }
}

/// log π of the chosen and the rejected answer of each example, alternating.
fn answers(student: &dyn Student, examples: &[&Example]) -> Result<Tensor, TrainError> {
    let (batch, counted) = pairs(examples);
    Ok(sums(&student.logprobs(&batch)?, &counted)?)
}

/// β times the chosen answer's gain over the reference minus the rejected answer's.
fn margins(answers: &Tensor, reference: &Tensor, beta: f64) -> candle_core::Result<Tensor> {
    let [chosen, rejected] = by_side(&(answers - reference)?)?;
    (chosen - rejected)? * beta
}

/// −log σ.
fn losses(margins: &Tensor) -> candle_core::Result<Tensor> {
    softplus(&margins.neg()?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_close, check_gradient, row};
    use super::*;

    const REFERENCE: [f64; 4] = [-10.0, -11.0, -20.0, -18.0];

    #[test]
    fn values_are_those_computed_by_hand() {
        // Gains: 1 and -1, then 0 and 2.
        let answers = row(&[-9.0, -12.0, -20.0, -16.0]);
        let found = margins(answers.as_tensor(), row(&REFERENCE).as_tensor(), 0.1).unwrap();
        assert_close(&elements(&found).unwrap(), &[0.2, -0.2], 1e-12);
        // log(1 + e^-0.2) and log(1 + e^0.2).
        let expected = [0.598_138_869_381_592, 0.798_138_869_381_592];
        assert_close(
            &elements(&losses(&found).unwrap()).unwrap(),
            &expected,
            1e-12,
        );
    }

    #[test]
    fn its_gradient_is_right_also_where_nothing_has_moved_yet() {
        let reference = row(&REFERENCE);
        for answers in [REFERENCE, [-3.0, -30.0, -25.0, -1.0]] {
            check_gradient(&answers, |answers| {
                let margins = margins(answers, reference.as_tensor(), 0.1).unwrap();
                losses(&margins).unwrap().sum_all().unwrap()
            });
        }
    }
}

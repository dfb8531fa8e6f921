//! SimPO loss, simple preference optimization (Meng et al. 2024, arXiv 2405.14734): the chosen
//! answer becomes likelier per token than the rejected one, without a reference.

use candle_core::Tensor;
use serde_json::{Value, json};

use super::{Loss, LossUnit, Objective, by_side, elements, pairs, softplus, sums};
use crate::samples::Example;
use crate::{Student, TrainError};

/// −log σ(β (mean log π(chosen) − mean log π(rejected)) − γ) for each pair.
#[derive(Clone, Copy, Debug)]
pub struct Simpo {
    /// The factor of the difference.
    pub beta: f64,
    /// The target margin γ as a multiple of β.
    pub gamma_ratio: f64,
}

impl Objective for Simpo {
    fn name(&self) -> &'static str {
        "simpo"
    }

    fn unit(&self) -> LossUnit {
        LossUnit::Pair
    }

    fn settings(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("beta", json!(self.beta)),
            ("gamma-ratio", json!(self.gamma_ratio)),
        ]
    }

    fn loss(
        &self,
        student: &dyn Student,
        examples: &[&Example],
        _references: &[&Tensor],
    ) -> Result<Loss, TrainError> {
        let (batch, counted) = pairs(examples);
        let margins = margins(&student.logprobs(&batch)?, &counted, self.beta)?;
        let gamma = self.beta * self.gamma_ratio;
        Ok(Loss {
            sum: losses(&margins, gamma)?.sum_all()?,
            margins: elements(&margins)?,
        })
    }
}

/// β times the difference of both answers' mean log-probabilities. `counted` holds the number
/// of tokens of the chosen and the rejected answer of each pair, alternating.
fn margins(logprobs: &Tensor, counted: &[usize], beta: f64) -> candle_core::Result<Tensor> {
    let lengths: Vec<f64> = counted.iter().map(|&count| count as f64).collect();
    let lengths = Tensor::new(lengths, logprobs.device())?.to_dtype(logprobs.dtype())?;
    let means = (sums(logprobs, counted)? / lengths)?;
    let [chosen, rejected] = by_side(&means)?;
    (chosen - rejected)? * beta
}

/// −log σ(margin − γ).
fn losses(margins: &Tensor, gamma: f64) -> candle_core::Result<Tensor> {
    softplus(&margins.affine(-1.0, gamma)?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_close, check_gradient, row};
    use super::*;

    /// Two pairs: answers of 2 and 1 tokens, then of 1 and 3.
    const LOGPROBS: [f64; 7] = [-1.0, -2.0, -2.0, -4.0, -1.0, -1.5, -2.0];
    const COUNTED: [usize; 4] = [2, 1, 1, 3];

    #[test]
    fn values_are_those_computed_by_hand() {
        let found = margins(row(&LOGPROBS).as_tensor(), &COUNTED, 2.0).unwrap();
        // 2 (-1.5 + 2) and 2 (-4 + 1.5).
        assert_close(&elements(&found).unwrap(), &[1.0, -5.0], 1e-12);
        // γ = 1: log(1 + e^0) and log(1 + e^6).
        let expected = [std::f64::consts::LN_2, 6.002_475_685_137_73];
        let found = elements(&losses(&found, 1.0).unwrap()).unwrap();
        assert_close(&found, &expected, 1e-12);
    }

    #[test]
    fn its_gradient_is_right() {
        check_gradient(&LOGPROBS, |logprobs| {
            let margins = margins(logprobs, &COUNTED, 2.0).unwrap();
            losses(&margins, 1.0).unwrap().sum_all().unwrap()
        });
    }
}

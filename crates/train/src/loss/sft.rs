//! Supervised fine-tuning (SFT): cross-entropy on the answers' tokens.

use candle_core::Tensor;

use super::{Loss, LossUnit, Objective, batch};
use crate::samples::Example;
use crate::{Student, TrainError};

/// −Σ log π over the tokens that count, divided by their number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sft;

impl Objective for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn unit(&self) -> LossUnit {
        LossUnit::Token
    }

    fn loss(
        &self,
        student: &dyn Student,
        examples: &[&Example],
        _references: &[&Tensor],
    ) -> Result<Loss, TrainError> {
        let logprobs = student.logprobs(&batch(examples, 0))?;
        Ok(Loss::without_margins(negative_log_likelihood(&logprobs)?))
    }
}

/// −Σ log π.
fn negative_log_likelihood(logprobs: &Tensor) -> candle_core::Result<Tensor> {
    logprobs.sum_all()?.neg()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check_gradient, row};
    use super::*;

    #[test]
    fn the_loss_is_the_sum_of_what_each_token_lacks() {
        let logprobs = [-0.5, -1.25, -3.0];
        let loss = negative_log_likelihood(row(&logprobs).as_tensor()).unwrap();
        assert_eq!(loss.to_scalar::<f64>().unwrap(), 4.75);
        check_gradient(&logprobs, |logprobs| {
            negative_log_likelihood(logprobs).unwrap()
        });
    }
}

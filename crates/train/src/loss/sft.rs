//! Supervised fine-tuning (SFT): cross-entropy on the answers' tokens.

use candle_core::Tensor;
use serde_json::Value;

use super::{Loss, Objective, batch};
use crate::samples::Example;
use crate::{Student, TrainError};

/// −Σ log π over the tokens that count, divided by their number.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sft;

impl Objective for Sft {
    fn name(&self) -> &'static str {
        "sft"
    }

    fn unit(&self) -> &'static str {
        "nats per token"
    }

    fn settings(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    fn weight(&self, example: &Example) -> usize {
        example.counted(0)
    }

    fn loss(
        &self,
        student: &dyn Student,
        examples: &[&Example],
        _references: &[&Tensor],
    ) -> Result<Loss, TrainError> {
        let logprobs = student.logprobs(&batch(examples, 0))?;
        Ok(Loss {
            sum: negative_log_likelihood(&logprobs)?,
            margins: Vec::new(),
        })
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

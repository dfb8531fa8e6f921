//! Training objectives, one file for each loss (SFT, DPO, SimPO, distillation), computed from
//! the log-probabilities of the tokens that count.
//!
//! An [`Objective`] queries the student about some examples and computes a loss from the
//! results. The formulas are functions of plain tensors in the same file.

mod distill;
mod dpo;
mod sft;
mod simpo;

use candle_core::Tensor;
use serde_json::Value;

pub use distill::Distill;
pub use dpo::Dpo;
pub use sft::Sft;
pub use simpo::Simpo;

use super::TrainError;
use super::samples::Example;
use super::student::{Batch, Student};

/// A training objective: the loss to minimise.
pub trait Objective {
    /// Its name.
    fn name(&self) -> &'static str;

    /// The unit of the loss.
    fn unit(&self) -> LossUnit;

    /// Its parameters by name, which must not change when a run is resumed.
    fn settings(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    /// The number of tokens in an example's sequences that a step processes. A common prefix
    /// counts for each sequence, though it is computed once.
    fn tokens(&self, example: &Example) -> usize {
        let samples = example.sides.iter().flatten();
        samples.map(|sample| sample.tokens.len()).sum()
    }

    /// Reference values, computed once with the student as it is before the first step: a
    /// tensor for each example, or `None` if the objective has no references.
    ///
    /// # Errors
    /// A computation failed.
    fn references(
        &self,
        _student: &dyn Student,
        _examples: &[&Example],
    ) -> Result<Option<Vec<Tensor>>, TrainError> {
        Ok(None)
    }

    /// The loss of some examples, with their references.
    ///
    /// # Errors
    /// A computation failed.
    fn loss(
        &self,
        student: &dyn Student,
        examples: &[&Example],
        references: &[&Tensor],
    ) -> Result<Loss, TrainError>;
}

/// The unit of a loss: the things that it is summed over, and whose number it is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossUnit {
    /// The tokens of the first side that count.
    Token,
    /// The examples, each a pair of a chosen and a rejected answer.
    Pair,
}

impl LossUnit {
    /// Its name, such as "nats per token".
    pub fn name(self) -> &'static str {
        match self {
            LossUnit::Token => "nats per token",
            LossUnit::Pair => "nats per pair",
        }
    }

    /// An example's weight: the number of tokens or pairs that its loss is summed over. A
    /// step's summed loss is divided by the total weight of its examples.
    pub fn weight(self, example: &Example) -> usize {
        match self {
            LossUnit::Token => example.counted(0),
            LossUnit::Pair => 1,
        }
    }
}

/// The loss of some examples.
#[derive(Debug)]
pub struct Loss {
    /// The loss summed over the examples' weights: a differentiable scalar.
    pub sum: Tensor,
    /// For preferences: the margin of the chosen over the rejected answer of each pair.
    pub margins: Vec<f64>,
}

impl Loss {
    /// The loss of examples that are not preferences.
    fn without_margins(sum: Tensor) -> Loss {
        Loss {
            sum,
            margins: Vec::new(),
        }
    }
}

/// All sequences of one side of some examples.
fn batch(examples: &[&Example], side: usize) -> Batch {
    let sides = examples.iter().flat_map(|example| &example.sides[side]);
    Batch {
        sequences: sides.cloned().collect(),
    }
}

/// The sequences of both sides, example by example, and the number of tokens that count on each
/// side.
fn pairs(examples: &[&Example]) -> (Batch, Vec<usize>) {
    let sides = examples.iter().flat_map(|example| &example.sides);
    let counted = examples
        .iter()
        .flat_map(|example| (0..example.sides.len()).map(|side| example.counted(side)));
    let batch = Batch {
        sequences: sides.flatten().cloned().collect(),
    };
    (batch, counted.collect())
}

/// The sums of consecutive parts of `values` (`[n]`) that have these lengths.
fn sums(values: &Tensor, lengths: &[usize]) -> candle_core::Result<Tensor> {
    let mut begins = 0;
    let parts = lengths.iter().map(|&length| {
        let part = values.narrow(0, begins, length)?.sum_all();
        begins += length;
        part
    });
    Tensor::stack(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// Splits alternating values into chosen and rejected.
fn by_side(values: &Tensor) -> candle_core::Result<[Tensor; 2]> {
    let values = values.reshape(((), 2))?;
    let side = |side| values.narrow(1, side, 1)?.squeeze(1);
    Ok([side(0)?, side(1)?])
}

/// Softplus, log(1 + e^x), without overflow and smooth at 0.
fn softplus(x: &Tensor) -> candle_core::Result<Tensor> {
    let largest = x.relu()?.detach();
    let sum = (largest.neg()?.exp()? + (x - &largest)?.exp()?)?;
    largest + sum.log()?
}

/// The elements of a row.
fn elements(row: &Tensor) -> candle_core::Result<Vec<f64>> {
    row.to_dtype(candle_core::DType::F64)?.to_vec1()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// A row vector that can be differentiated by.
    pub(super) fn row(values: &[f64]) -> Var {
        Var::from_slice(values, values.len(), &Device::Cpu).unwrap()
    }

    #[track_caller]
    pub(super) fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= tolerance,
                "{found} is not {expected}"
            );
        }
    }

    /// Checks the gradient of `loss` at `values` against central differences.
    #[track_caller]
    pub(super) fn check_gradient(values: &[f64], loss: impl Fn(&Tensor) -> Tensor) {
        let step = 1e-6;
        let at = |place: usize, by: f64| {
            let mut moved = values.to_vec();
            moved[place] += by;
            loss(row(&moved).as_tensor()).to_scalar::<f64>().unwrap()
        };
        let differences =
            (0..values.len()).map(|place| (at(place, step) - at(place, -step)) / (2.0 * step));
        let variable = row(values);
        let gradients = loss(variable.as_tensor()).backward().unwrap();
        let gradient = gradients.get(&variable).unwrap().to_vec1().unwrap();
        assert_close(&gradient, &differences.collect::<Vec<_>>(), 1e-8);
    }

    #[test]
    fn softplus_is_right_far_away_and_has_no_kink() {
        let values = [-800.0, -1.0, 0.0, 1.0, 800.0];
        let found = softplus(row(&values).as_tensor()).unwrap();
        let expected = [
            0.0,
            0.313_261_687_518_223,
            std::f64::consts::LN_2,
            1.313_261_687_518_223,
            800.0,
        ];
        assert_close(&elements(&found).unwrap(), &expected, 1e-12);
        check_gradient(&values[1..4], |x| softplus(x).unwrap().sum_all().unwrap());
    }

    #[test]
    fn parts_are_summed_by_their_lengths() {
        let values = row(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]);
        let found = sums(values.as_tensor(), &[1, 3, 0, 2]).unwrap();
        assert_eq!(elements(&found).unwrap(), [1.0, 14.0, 0.0, 48.0]);
        let [chosen, rejected] = by_side(&found).unwrap();
        assert_eq!(elements(&chosen).unwrap(), [1.0, 0.0]);
        assert_eq!(elements(&rejected).unwrap(), [14.0, 48.0]);
    }
}

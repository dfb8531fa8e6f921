//! Prompt distillation (context distillation): the student, without the prompt, learns to
//! continue as the frozen model does with it. The loss is the KL divergence.

use candle_core::Tensor;

use super::{Loss, LossUnit, Objective, batch};
use crate::samples::Example;
use crate::{Student, Target, TrainError};

/// KL(teacher ‖ student) at every token of the teacher's own answers, divided by their number.
/// The teacher's distribution is given by the examples' targets; or, if they have none, it is
/// that of the model without the adapter after the other side of an example, over the whole
/// vocabulary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distill;

impl Objective for Distill {
    fn name(&self) -> &'static str {
        "distill"
    }

    fn unit(&self) -> LossUnit {
        LossUnit::Token
    }

    fn tokens(&self, example: &Example) -> usize {
        // The teacher's side is computed once, before training.
        let samples = example.sides[0].iter();
        samples.map(|sample| sample.tokens.len()).sum()
    }

    fn references(
        &self,
        student: &dyn Student,
        examples: &[&Example],
    ) -> Result<Option<Vec<Tensor>>, TrainError> {
        if targets(examples)?.is_some() {
            return Ok(None);
        }
        for example in examples {
            if example.counted(0) != example.counted(1) {
                return Err(target_mismatch(example));
            }
        }
        let knowledge = student.unadapted(&batch(examples, 1))?.detach();
        let mut begins = 0;
        let parts = examples.iter().map(|example| {
            let counted = example.counted(1);
            // A copy, so that the whole batch is not kept alive.
            let part = knowledge.narrow(0, begins, counted)?.copy();
            begins += counted;
            part
        });
        Ok(Some(parts.collect::<candle_core::Result<_>>()?))
    }

    fn loss(
        &self,
        student: &dyn Student,
        examples: &[&Example],
        references: &[&Tensor],
    ) -> Result<Loss, TrainError> {
        let divergences = match targets(examples)? {
            Some(targets) => student.sparse_divergences(&batch(examples, 0), &targets)?,
            None => {
                let teacher = Tensor::cat(references, 0)?;
                student.divergences(&batch(examples, 0), &teacher)?
            }
        };
        Ok(Loss::without_margins(divergences.sum_all()?))
    }
}

/// The targets of examples if all have some, `None` if none has.
fn targets<'a>(examples: &[&'a Example]) -> Result<Option<Vec<&'a Target>>, TrainError> {
    if examples.iter().all(|example| example.targets.is_none()) {
        return Ok(None);
    }
    let mut all = Vec::new();
    for example in examples {
        let targets = example.targets.iter().flatten();
        let before = all.len();
        all.extend(targets);
        if all.len() - before != example.counted(0) {
            return Err(target_mismatch(example));
        }
    }
    Ok(Some(all))
}

fn target_mismatch(example: &Example) -> TrainError {
    TrainError::Example {
        place: example.place.clone(),
        what: "the teacher's answer and the student's have different lengths",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::Sample;
    use crate::data::Place;
    use crate::toy::Toy;

    /// An answer of two tokens, after one that does not count.
    fn example(tokens: [u32; 3], targets: &[&[(u32, f32)]]) -> Example {
        let targets = targets.iter().map(|target| target.to_vec());
        Example {
            place: Place {
                file: Arc::new(PathBuf::from("toy.jsonl")),
                line: 1,
            },
            sides: vec![vec![Sample {
                tokens: tokens.to_vec(),
                counts: vec![false, true, true],
            }]],
            targets: Some(targets.collect()),
        }
    }

    #[test]
    fn targets_take_the_teachers_place_and_their_loss_has_the_gradient_of_differences() {
        let examples = [
            example([1, 2, 3], &[&[(2, 0.5), (7, 0.5)], &[(3, 1.0)]]),
            example([4, 5, 6], &[&[(0, 0.2), (5, 0.7), (9, 0.1)], &[(11, 1.0)]]),
        ];
        let examples: Vec<&Example> = examples.iter().collect();
        let student = Toy::new();
        assert!(Distill.references(&student, &examples).unwrap().is_none());
        let loss = || Distill.loss(&student, &examples, &[]).unwrap().sum;
        let value = || f64::from(loss().to_scalar::<f32>().unwrap());
        let gradients = loss().backward().unwrap();
        for (name, variable) in student.variables() {
            let gradient = gradients.get(variable).unwrap().flatten_all().unwrap();
            let gradient = gradient.to_vec1::<f32>().unwrap();
            let before = variable.as_tensor().copy().unwrap();
            let elements = before.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let moved = |place: usize, by: f32| {
                let mut moved = elements.clone();
                moved[place] += by;
                let moved = Tensor::from_vec(moved, before.shape(), before.device()).unwrap();
                variable.set(&moved).unwrap();
                value()
            };
            for (place, gradient) in gradient.into_iter().enumerate() {
                let slope = (moved(place, 1e-2) - moved(place, -1e-2)) / 2e-2;
                let apart = (slope - f64::from(gradient)).abs();
                assert!(apart < 1e-3, "{name} {place}: {slope} and {gradient}");
            }
            variable.set(&before).unwrap();
        }
    }

    #[test]
    fn what_has_targets_for_other_tokens_is_named() {
        let whole = example([1, 2, 3], &[&[(2, 1.0)], &[(3, 1.0)]]);
        let lacks = example([1, 2, 3], &[&[(2, 1.0)]]);
        let without = Example {
            targets: None,
            ..whole.clone()
        };
        for odd in [&lacks, &without] {
            let told = Distill.loss(&Toy::new(), &[&whole, odd], &[]).unwrap_err();
            assert!(told.to_string().starts_with("toy.jsonl:1: "), "{told}");
        }
    }
}

//! Distillation of a prompt into an adapter: make the student, without the prompt, go on
//! as the frozen model does with it.

use candle_core::Tensor;
use serde_json::Value;

use super::{Loss, Objective, batch};
use crate::train::samples::Example;
use crate::train::{Student, TrainError};

/// KL(teacher ‖ student) over the whole vocabulary at every token of the teacher's own
/// answers, divided by their number. The teacher is the model without the adapter, which
/// sees the other side of an example.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distil;

impl Objective for Distil {
    fn name(&self) -> &'static str {
        "distill"
    }

    fn settings(&self) -> Vec<(&'static str, Value)> {
        Vec::new()
    }

    fn weight(&self, example: &Example) -> usize {
        example.counted(0)
    }

    fn tokens(&self, example: &Example) -> usize {
        // The teacher's side is computed before.
        let samples = example.sides[0].iter();
        samples.map(|sample| sample.tokens.len()).sum()
    }

    fn references(
        &self,
        student: &dyn Student,
        examples: &[&Example],
    ) -> Result<Option<Vec<Tensor>>, TrainError> {
        for example in examples {
            if example.counted(0) != example.counted(1) {
                return Err(TrainError::Example {
                    place: example.place.clone(),
                    what: "the teacher's answer is not the student's",
                });
            }
        }
        let knowledge = student.unadapted(&batch(examples, 1))?.detach();
        let mut begins = 0;
        let parts = examples.iter().map(|example| {
            let counted = example.counted(1);
            // A copy: what is kept should not keep the whole batch.
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
        let teacher = Tensor::cat(references, 0)?;
        let divergences = student.divergences(&batch(examples, 0), &teacher)?;
        Ok(Loss {
            sum: divergences.sum_all()?,
            margins: Vec::new(),
        })
    }
}

//! Warnings in a run's report that it may have learnt nothing.

use candle_core::{Tensor, Var};

use super::TrainError;
use super::metrics::{Evaluation, Record};

/// Notes on a run after `step` steps, based on its variables before and now, and on its log.
pub(super) fn notes(
    initial: &[Tensor],
    variables: &[(String, Var)],
    records: &[Record],
    step: usize,
) -> Result<Vec<String>, TrainError> {
    let mut notes = Vec::new();
    let evaluations: Vec<&Evaluation> = records.iter().filter_map(evaluation).collect();
    let unchanged = is_unchanged(initial, variables)?;
    let adds_nothing = adds_nothing(variables)?;
    if step > 0 && unchanged {
        notes
            .push("Nothing was learnt: the adapter is as it was before the first step.".to_owned());
    }
    if step > 0 && adds_nothing {
        notes
            .push("The adapter adds nothing to the model: all its B matrices are zero.".to_owned());
    }
    if let [first, .., last] = evaluations[..]
        && first.loss == last.loss
        && !unchanged
        && !adds_nothing
    {
        notes.push(format!(
            "The held-out loss after {} steps is the one before the first, to the last digit: what \
             was learnt changes no answer to the held-out examples.",
            last.step
        ));
    }
    if let Some(last) = evaluations.last().filter(|last| last.step > 0)
        && let Some(preference) = last.preference
        && 2 * preference.ties > preference.pairs
    {
        notes.push(format!(
            "In {} of {} held-out pairs neither answer is ahead: the share of those whose chosen \
             answer is ahead says little.",
            preference.ties, preference.pairs
        ));
    }
    Ok(notes)
}

fn evaluation(record: &Record) -> Option<&Evaluation> {
    match record {
        Record::Evaluation(evaluation) => Some(evaluation),
        Record::Step(_) => None,
    }
}

fn is_unchanged(initial: &[Tensor], variables: &[(String, Var)]) -> Result<bool, TrainError> {
    for (before, (_, now)) in initial.iter().zip(variables) {
        if elements(before)? != elements(now.as_tensor())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether every B is zero, and so every product B·A. False if there is no B at all.
fn adds_nothing(variables: &[(String, Var)]) -> Result<bool, TrainError> {
    let mut is_any = false;
    for (_, b) in variables
        .iter()
        .filter(|(name, _)| name.contains(".lora_B."))
    {
        is_any = true;
        if elements(b.as_tensor())?
            .iter()
            .any(|&element| element != 0.0)
        {
            return Ok(false);
        }
    }
    Ok(is_any)
}

fn elements(tensor: &Tensor) -> Result<Vec<f32>, TrainError> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::metrics::Preference;

    fn variables(b: f32) -> Vec<(String, Var)> {
        let variable = |name: &str, value: f32| {
            let name = format!("model.layers.0.self_attn.q_proj.{name}.weight");
            (name, Var::new(&[value, 0.0], &Device::Cpu).unwrap())
        };
        vec![variable("lora_A", 0.5), variable("lora_B", b)]
    }

    fn told(b: f32, records: &[Record]) -> Vec<String> {
        let initial = variables(0.0).into_iter();
        let initial: Vec<Tensor> = initial.map(|(_, a)| a.as_tensor().clone()).collect();
        notes(&initial, &variables(b), records, 4).unwrap()
    }

    fn evaluated(step: usize, loss: f64, ties: usize) -> Record {
        Record::Evaluation(Evaluation {
            step,
            loss,
            preference: Some(Preference {
                pairs: 4,
                ties,
                accuracy: 0.5,
                interval: [0.1, 0.9],
                mean_margin: 0.0,
            }),
        })
    }

    #[test]
    fn a_run_that_changed_nothing_says_so() {
        let [nothing, adds] = &told(0.0, &[])[..] else {
            panic!("two notes");
        };
        assert!(nothing.starts_with("Nothing was learnt"), "{nothing}");
        assert!(adds.contains("all its B matrices are zero"), "{adds}");
        let [same] = &told(1e-20, &[evaluated(0, 0.7, 4), evaluated(4, 0.7, 0)])[..] else {
            panic!("one note");
        };
        assert!(same.contains("after 4 steps is the one before"), "{same}");
        let fine = [evaluated(0, 0.7, 4), evaluated(4, 0.6, 2)];
        assert_eq!(told(0.1, &fine), [""; 0]);
    }

    #[test]
    fn pairs_that_are_mostly_even_are_told_but_not_before_the_first_step() {
        assert_eq!(told(0.1, &[evaluated(0, 0.7, 4)]), [""; 0]);
        let [even] = &told(0.1, &[evaluated(0, 0.7, 4), evaluated(4, 0.6, 3)])[..] else {
            panic!("one note");
        };
        assert!(even.starts_with("In 3 of 4 held-out pairs"), "{even}");
    }
}

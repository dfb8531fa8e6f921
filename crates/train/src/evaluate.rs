//! Evaluation of the student on held-out examples: loss and preference accuracy with its
//! confidence interval.

use std::sync::atomic::Ordering;

use super::loss::Loss;
use super::metrics::{Evaluation, Event, Observer, Preference};
use super::references::{self, References};
use super::samples::Example;
use super::trainer::Training;
use super::{TrainError, batches};

/// The two-sided 95% quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Evaluates all held-out examples. Returns `None` if told to stop.
pub(super) fn evaluate(
    training: &Training<'_>,
    references: &References,
    step: usize,
    observer: &mut dyn Observer,
) -> Result<Option<Evaluation>, TrainError> {
    let (examples, student) = (training.held_out, training.student.without_gradients());
    let lengths: Vec<usize> = examples.iter().map(Example::length).collect();
    let (mut sum, mut weight, mut done) = (0.0, 0, 0);
    let mut margins = Vec::new();
    for batch in batches::by_length(&lengths, training.settings.batch_size) {
        if training.stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let some: Vec<&Example> = batch.iter().map(|&place| &examples[place]).collect();
        let references = references::of_batch(references.of_held_out(), &batch);
        let found: Loss = training.objective.loss(&*student, &some, &references)?;
        let loss = scalar(&found.sum)?;
        if !loss.is_finite() {
            return Err(TrainError::NotFinite {
                what: "held-out loss",
                step,
                value: loss,
                places: some.iter().map(|example| example.place.clone()).collect(),
            });
        }
        sum += loss;
        weight += weight_of(training, &some);
        margins.extend(found.margins);
        done += batch.len();
        observer.on(&Event::Evaluating {
            done,
            total: examples.len(),
        });
    }
    Ok(Some(Evaluation {
        step,
        loss: sum / weight as f64,
        preference: preference(&margins),
    }))
}

/// The only element of a tensor.
pub(super) fn scalar(tensor: &candle_core::Tensor) -> Result<f64, TrainError> {
    Ok(tensor.to_dtype(candle_core::DType::F64)?.to_scalar()?)
}

/// The total weight of some examples, by which their losses are divided.
pub(super) fn weight_of(training: &Training<'_>, examples: &[&Example]) -> usize {
    let unit = training.objective.unit();
    examples.iter().map(|example| unit.weight(example)).sum()
}

fn preference(margins: &[f64]) -> Option<Preference> {
    let pairs = margins.len();
    let count = |is: fn(f64) -> bool| margins.iter().filter(|&&margin| is(margin)).count();
    let (ahead, ties) = (count(|margin| margin > 0.0), count(|margin| margin == 0.0));
    let hits = ahead as f64 + ties as f64 / 2.0;
    (pairs > 0).then(|| Preference {
        pairs,
        ties,
        accuracy: hits / pairs as f64,
        interval: wilson(hits, pairs),
        mean_margin: margins.iter().sum::<f64>() / pairs as f64,
    })
}

/// The 95% Wilson score interval (Wilson 1927) of a proportion of which `hits` out of `count`
/// were observed.
fn wilson(hits: f64, count: usize) -> [f64; 2] {
    let (share, count) = (hits / count as f64, count as f64);
    let shrink = 1.0 + Z * Z / count;
    let middle = (share + Z * Z / (2.0 * count)) / shrink;
    let spread = (share * (1.0 - share) / count + Z * Z / (4.0 * count * count)).sqrt();
    let half = Z * spread / shrink;
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_textbooks() {
        for (hits, count, expected) in [
            (81.0, 263, [0.255_28, 0.366_21]),
            (15.0, 148, [0.062_37, 0.160_51]),
            (0.0, 20, [0.0, 0.161_13]),
            (20.0, 20, [0.838_87, 1.0]),
        ] {
            for (found, expected) in wilson(hits, count).iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
            }
        }
    }

    #[test]
    fn a_pair_that_is_even_counts_half() {
        let found = preference(&[0.0, 1.0, -2.0, 3.0]).unwrap();
        assert_eq!((found.pairs, found.ties), (4, 1));
        assert_eq!((found.accuracy, found.mean_margin), (0.625, 0.5));
        let even = preference(&[0.0; 20]).unwrap();
        assert_eq!((even.ties, even.accuracy), (20, 0.5));
        let [low, high] = even.interval;
        assert!((low + high - 1.0).abs() < 1e-12 && low > 0.25, "{even:?}");
        assert_eq!(preference(&[]), None);
    }
}

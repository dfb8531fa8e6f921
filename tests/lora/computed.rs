//! The results of adapters, on both executors.

use incant::exec::{AdapterId, Chunk, Executor, Logits, Precision, SequenceId, Wanted};
use incant::lora::Lora;

use super::fixtures::{self, ADAPTERS, Fixture};
use crate::support::subjects;

pub(super) fn step(executor: &mut dyn Executor, batch: &[(SequenceId, &[u32])]) -> Logits {
    let chunks: Vec<Chunk<'_>> = batch
        .iter()
        .map(|&(sequence, tokens)| Chunk {
            sequence,
            tokens,
            wanted: Wanted::All,
            precision: Precision::Exact,
        })
        .collect();
    executor.forward(&chunks).expect("runs")
}

/// Returns all rows of some logits, concatenated.
pub(super) fn flat(logits: &Logits) -> Vec<f32> {
    let rows = (0..logits.rows()).flat_map(|row| logits.row(row));
    rows.copied().collect()
}

pub(super) fn furthest(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    let distances = pairs.map(|(a, b)| f64::from((a - b).abs()));
    distances.fold(0.0, f64::max)
}

/// Adds the adapters of a fixture to an executor; returns them, and no adapter, with the
/// expected logits.
fn arms(fixture: &Fixture, executor: &mut dyn Executor) -> Vec<(Option<AdapterId>, Vec<f32>)> {
    let mut arms = vec![(None, fixture.expected(None))];
    for adapter in ADAPTERS {
        let id = executor.add_adapter(&fixture.lora(adapter));
        arms.push((Some(id.expect("taken in")), fixture.expected(Some(adapter))));
    }
    arms
}

#[test]
fn adapters_compute_what_peft_computes() {
    for fixture in fixtures::all() {
        let tokens = fixture.tokens();
        for subject in subjects::all() {
            let mut executor = subject.load(&fixture.gguf());
            for (index, (adapter, expected)) in
                arms(&fixture, executor.as_mut()).into_iter().enumerate()
            {
                let sequence = executor.begin_with_adapter(adapter).expect("begins");
                let logits = step(executor.as_mut(), &[(sequence, &tokens)]);
                let distance = furthest(&flat(&logits), &expected);
                assert!(
                    distance < subject.tolerance,
                    "{subject}, {index}: {distance}"
                );
            }
        }
    }
}

#[test]
fn rows_of_different_adapters_share_a_batch_and_change_nothing_for_each_other() {
    for fixture in fixtures::all() {
        let tokens = fixture.tokens();
        for subject in subjects::all() {
            let mut executor = subject.load(&fixture.gguf());
            let executor = executor.as_mut();
            let arms = arms(&fixture, executor);
            let begin = |executor: &mut dyn Executor, arm: usize| {
                executor.begin_with_adapter(arms[arm].0).expect("begins")
            };
            // Each sequence in two chunks, and by itself.
            let (first, second) = tokens.split_at(7);
            let order = [3, 1, 0, 1, 2, 0];
            let alone = order.map(|arm| {
                let sequence = begin(executor, arm);
                let mut logits = flat(&step(executor, &[(sequence, first)]));
                logits.extend(flat(&step(executor, &[(sequence, second)])));
                logits
            });
            let sequences = order.map(|arm| begin(executor, arm));
            let batch = |tokens| sequences.map(|sequence| (sequence, tokens));
            let parts = [first, second].map(|tokens| flat(&step(executor, &batch(tokens))));
            for (place, alone) in alone.iter().enumerate() {
                let own = parts
                    .iter()
                    .zip([first, second])
                    .flat_map(|(part, tokens)| {
                        let len = part.len() / order.len();
                        assert_eq!(len, tokens.len() * (alone.len() / 12));
                        &part[place * len..][..len]
                    });
                let own: Vec<f32> = own.copied().collect();
                let distance = furthest(&own, alone);
                match subject.tier() {
                    Some(_) => assert_eq!(distance, 0.0, "{subject}"),
                    None => assert!(distance < subject.tolerance, "{subject}: {distance}"),
                }
            }
        }
    }
}

/// Forks, restored and swapped-in sequences continue with the same adapter, even after it was
/// removed.
#[test]
fn a_sequence_keeps_its_adapter() {
    let fixture = Fixture::new("llama");
    let (tokens, expected) = (fixture.tokens(), fixture.expected(Some("plain")));
    let (before, last) = tokens.split_at(11);
    let expected = &expected[11 * (expected.len() / 12)..];
    for subject in subjects::both() {
        let mut executor = subject.load(&fixture.gguf());
        let executor = executor.as_mut();
        let adapter = executor
            .add_adapter(&fixture.lora("plain"))
            .expect("taken in");
        let first = executor.begin_with_adapter(Some(adapter)).expect("begins");
        step(executor, &[(first, before)]);
        let saved = executor.save(first).expect("saves");
        let views = saved.iter().map(|tensor| {
            let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
            let view = safetensors::tensor::TensorView::new(dtype, shape, &tensor.bytes);
            (&tensor.name, view.expect("bytes for the shape"))
        });
        let file = safetensors::serialize(views, None).expect("serializes");
        let file = safetensors::SafeTensors::deserialize(&file).expect("reads");
        let restored = executor.restore(Some(adapter), 11, &file).expect("fits");
        executor.remove_adapter(adapter);
        assert!(
            executor.begin_with_adapter(Some(adapter)).is_err(),
            "it has gone"
        );
        assert!(
            executor.restore(Some(adapter), 11, &file).is_err(),
            "it has gone"
        );
        let fork = executor.fork(first, 11).expect("forks");
        let bytes = executor
            .swap_out(first, incant::exec::SwapOut::All)
            .expect("goes");
        executor.swap_in(first, &bytes).expect("comes");
        for sequence in [restored, fork, first] {
            let logits = step(executor, &[(sequence, last)]);
            let distance = furthest(&flat(&logits), expected);
            assert!(distance < subject.tolerance, "{subject}: {distance}");
        }
    }
}

#[test]
fn an_adapter_written_as_gguf_is_read_as_the_same() {
    for fixture in fixtures::all() {
        let (spec, tokens) = (fixture.spec(), fixture.tokens());
        for adapter in ADAPTERS {
            let lora = fixture.lora(adapter);
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("adapter.gguf");
            lora.export(&spec, &path).expect("written");
            let read = Lora::read(&path, &spec).expect("reads");
            let subject = subjects::reference();
            let mut executor = subject.load(&fixture.gguf());
            let id = executor.add_adapter(&read).expect("taken in");
            let sequence = executor.begin_with_adapter(Some(id)).expect("begins");
            let logits = step(executor.as_mut(), &[(sequence, &tokens)]);
            let distance = furthest(&flat(&logits), &fixture.expected(Some(adapter)));
            assert!(distance < subject.tolerance, "{adapter}: {distance}");
        }
    }
}

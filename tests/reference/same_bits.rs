//! Determinism of the native executor, beyond closeness: the logits of a row are bit-identical
//! in any batch, with any instruction set, on any number of threads.

use candle_core::quantized::GgmlDType;
use incant::exec::{Chunk, Executor, Precision, SequenceId, SwapOut, Wanted};
use incant::kernels::Tier;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::tiny::{self, Tiny};
use super::{executor, forward};
use crate::support::subjects::{self, Subject};

type Rows = Vec<Vec<f32>>;

/// Models of architectures whose kernels differ, with exact weights, and models with weights in
/// bf16, in codes with minima and in codes with two scales per block.
fn models() -> impl Iterator<Item = (String, Tiny)> {
    let architectures = [Tiny::llama(), Tiny::qwen2(), Tiny::gemma2(), Tiny::gemma3()];
    let types = [GgmlDType::BF16, GgmlDType::Q4_1, GgmlDType::Q6K].map(|weights| Tiny {
        layers: 1,
        weights,
        ..Tiny::llama().wide()
    });
    let name = |model: Tiny| {
        (
            format!("{}, {:?}", model.architecture, model.weights),
            model,
        )
    };
    architectures.into_iter().chain(types).map(name)
}

/// The instruction sets that compute prompts like single tokens: AMX tiles round to bf16.
fn without_tiles() -> impl Iterator<Item = &'static Subject> {
    let sets = subjects::instruction_sets().iter();
    sets.filter(|subject| subject.tier() < Some(Tier::Amx))
}

fn load(model: &Tiny, subject: &Subject) -> Box<dyn Executor> {
    executor(model, &model.tensors(), subject)
}

fn assert_same(found: &[Vec<f32>], expected: &[Vec<f32>], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        let pairs = found.iter().zip(expected);
        let other = pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(other, 0, "{what}: differing logits in row {row}");
    }
}

/// A constant prefix, longer than one chunk of attention.
fn beginning(executor: &mut dyn Executor) -> SequenceId {
    let sequence = executor.begin();
    forward(executor, sequence, &tiny::tokens(1, 140));
    sequence
}

/// Begins a sequence after the prefix, or without one.
fn after(executor: &mut dyn Executor, beginning: Option<SequenceId>) -> SequenceId {
    match beginning {
        Some(beginning) => executor.fork(beginning, 140).expect("can be forked"),
        None => executor.begin(),
    }
}

/// Computes a long prompt, a shorter one, and then token by token.
fn answer(executor: &mut dyn Executor) -> Rows {
    let text = tiny::tokens(2, 146);
    let sequence = executor.begin();
    let (prompts, tokens) = text.split_at(140);
    let (long, short) = prompts.split_at(100);
    let chunks = [long, short].into_iter().chain(tokens.chunks(1));
    let rows = chunks.flat_map(|chunk| forward(executor, sequence, chunk));
    rows.collect()
}

#[test]
fn every_instruction_set_gives_the_same() {
    for (name, model) in models() {
        let mut answers = without_tiles().map(|subject| {
            let rows = answer(load(&model, subject).as_mut());
            (subject, rows)
        });
        let (_, plain) = answers.next().expect("plain code runs everywhere");
        for (subject, rows) in answers {
            assert_same(&rows, &plain, &format!("{subject}, {name}"));
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same() {
    let [one, more @ ..] = [1, 2, 3].map(subjects::native_with_threads);
    for (name, model) in models() {
        let expected = answer(load(&model, &one).as_mut());
        for subject in &more {
            let rows = answer(load(&model, subject).as_mut());
            assert_same(&rows, &expected, &format!("{subject}, {name}"));
        }
    }
}

/// The number of sequences that decode in [`decoded`].
const SEQUENCES: usize = 8;

/// Returns the rows of the last tokens of each sequence, run in batches of `together`. Every
/// second sequence is a fork of `beginning`.
fn decoded(executor: &mut dyn Executor, beginning: SequenceId, together: usize) -> Vec<Rows> {
    let texts: Vec<Vec<u32>> = (0..SEQUENCES)
        .map(|index| tiny::tokens(10 + index as u64, 5 + 7 * index))
        .collect();
    let sequences: Vec<SequenceId> = (0..SEQUENCES)
        .map(|index| after(executor, (index % 2 == 0).then_some(beginning)))
        .collect();
    for (text, &sequence) in texts.iter().zip(&sequences) {
        forward(executor, sequence, &text[3..]);
    }
    let mut rows = vec![Vec::new(); SEQUENCES];
    for step in 0..3 {
        for first in (0..SEQUENCES).step_by(together) {
            let range = first..SEQUENCES.min(first + together);
            let chunk = |index: usize| Chunk {
                sequence: sequences[index],
                tokens: &texts[index][step..][..1],
                wanted: Wanted::Last,
                precision: Precision::Exact,
            };
            let batch: Vec<Chunk<'_>> = range.clone().map(chunk).collect();
            let logits = executor.forward(&batch).expect("runs");
            for (row, index) in range.enumerate() {
                rows[index].push(logits.row(row).to_vec());
            }
        }
    }
    for sequence in sequences {
        executor.end(sequence);
    }
    rows
}

#[test]
fn tokens_of_other_sequences_change_nothing() {
    for (name, model) in models() {
        for subject in subjects::instruction_sets() {
            let mut executor = load(&model, subject);
            let beginning = beginning(executor.as_mut());
            let alone = decoded(executor.as_mut(), beginning, 1);
            for together in [2, 5, 8] {
                let rows = decoded(executor.as_mut(), beginning, together);
                for (index, (rows, alone)) in rows.iter().zip(&alone).enumerate() {
                    let what = format!("{subject}, {name}, sequence {index} among {together}");
                    assert_same(rows, alone, &what);
                }
            }
        }
    }
}

#[test]
fn prompts_of_other_sequences_change_nothing() {
    let texts = [(1, 40), (2, 1), (3, 7), (4, 170), (5, 1)];
    let texts = texts.map(|(seed, len)| tiny::tokens(seed, len));
    for (name, model) in models() {
        for subject in subjects::instruction_sets() {
            let mut executor = load(&model, subject);
            let executor = executor.as_mut();
            let beginning = Some(beginning(executor));
            let begin = |executor: &mut dyn Executor| {
                let afters = [None, beginning, beginning, None, None];
                afters.map(|beginning| after(executor, beginning))
            };
            let sequences = begin(executor);
            let alone: Rows = sequences
                .iter()
                .zip(&texts)
                .flat_map(|(&sequence, text)| forward(executor, sequence, text))
                .collect();
            let sequences = begin(executor);
            let chunks = sequences.iter().zip(&texts);
            let chunks = chunks.map(|(&sequence, tokens)| Chunk {
                sequence,
                tokens,
                wanted: Wanted::All,
                precision: Precision::Fast,
            });
            let logits = executor.forward(&chunks.collect::<Vec<_>>());
            let logits = logits.expect("runs");
            let rows = (0..logits.rows()).map(|row| logits.row(row).to_vec());
            assert_same(
                &rows.collect::<Rows>(),
                &alone,
                &format!("{subject}, {name}"),
            );
        }
    }
}

#[test]
fn a_prompt_cut_otherwise_gives_the_same() {
    let text = tiny::tokens(3, 200);
    for (name, model) in models() {
        for subject in without_tiles() {
            let mut executor = load(&model, subject);
            let executor = executor.as_mut();
            let beginning = beginning(executor);
            for beginning in [None, Some(beginning)] {
                let mut run = |size: usize| -> Rows {
                    let sequence = after(executor, beginning);
                    let chunks = text.chunks(size);
                    let rows = chunks.flat_map(|chunk| forward(executor, sequence, chunk));
                    let rows = rows.collect();
                    executor.end(sequence);
                    rows
                };
                let whole = run(text.len());
                for size in [1, 7, 64] {
                    let what = format!("{subject}, {name}, {size} at once");
                    assert_same(&run(size), &whole, &what);
                }
            }
        }
    }
}

#[test]
fn a_sequence_read_back_gives_the_same() {
    let text = tiny::tokens(4, 20);
    for (name, model) in models() {
        for subject in subjects::instruction_sets() {
            let mut executor = load(&model, subject);
            let executor = executor.as_mut();
            let computed = beginning(executor);
            let saved = executor.save(computed).expect("saves");
            let views = saved.iter().map(|tensor| {
                let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
                (&tensor.name, view.expect("bytes for the shape"))
            });
            let file = safetensors::serialize(views, None).expect("serializes");
            let file = SafeTensors::deserialize(&file).expect("reads");
            let read = executor.restore(None, 140, &file).expect("restores");
            let [computed, read] = [computed, read].map(|from| {
                let sequence = after(executor, Some(from));
                forward(executor, sequence, &text)
            });
            assert_same(&read, &computed, &format!("{subject}, {name}"));
        }
    }
}

/// Wherever a sequence was forked, and whichever KV it shares, its results equal those of
/// computing it at once.
#[test]
fn a_fork_anywhere_gives_the_same() {
    let text = tiny::tokens(5, 300);
    for (name, model) in models() {
        for subject in without_tiles() {
            let mut executor = load(&model, subject);
            let executor = executor.as_mut();
            let whole = executor.begin();
            let expected = forward(executor, whole, &text);
            let mut last = whole;
            // Forks of forks, each with tokens of its own in between.
            for at in [290, 257, 130, 128, 100, 17, 16, 3] {
                let other = executor.fork(last, at).expect("can be forked");
                forward(executor, other, &tiny::tokens(at as u64, 9));
                let fork = executor.fork(last, at).expect("can be forked");
                let rows = forward(executor, fork, &text[at..]);
                let what = format!("{subject}, {name}, forked at {at}");
                assert_same(&rows, &expected[at..], &what);
                last = fork;
            }
        }
    }
}

#[test]
fn a_sequence_swapped_out_and_in_gives_the_same() {
    let text = tiny::tokens(6, 60);
    for (name, model) in models() {
        for subject in subjects::instruction_sets() {
            let mut executor = load(&model, subject);
            let executor = executor.as_mut();
            let beginning = beginning(executor);
            let [still, moved] = [(); 2].map(|()| after(executor, Some(beginning)));
            for sequence in [still, moved] {
                forward(executor, sequence, &text[..30]);
            }
            let bytes = executor.swap_out(moved, SwapOut::Own).expect("swaps out");
            // Other sequences use its memory meanwhile.
            let other = executor.begin();
            forward(executor, other, &tiny::tokens(7, 90));
            executor.swap_in(moved, &bytes).expect("swaps in");
            let expected = forward(executor, still, &text[30..]);
            let rows = forward(executor, moved, &text[30..]);
            assert_same(&rows, &expected, &format!("{subject}, {name}"));
        }
    }
}

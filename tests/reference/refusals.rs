//! A refused batch leaves every sequence unchanged.

use incant::exec::{Chunk, ExecError, Executor, Precision, SequenceId, SwapOut, Wanted};
use incant::gguf::Gguf;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::plain::Plain;
use super::tiny::{self, Tiny, VOCAB};
use super::watched::Watched;
use crate::support::subjects;

fn chunk(sequence: SequenceId, tokens: &[u32]) -> Chunk<'_> {
    Chunk {
        sequence,
        tokens,
        wanted: Wanted::Last,
        precision: Precision::Exact,
    }
}

fn refusal(executor: &mut dyn Executor, batch: &[Chunk<'_>]) -> String {
    let line = executor.forward(batch).expect_err("is refused").to_string();
    assert!(!line.contains('\n'), "{line:?}");
    line
}

#[test]
fn bad_batches_change_nothing() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::gemma3(), subject);
        let a = watched.computed(None, &tiny::tokens(1, 7), 7);
        let b = watched.begin();
        let gone = watched.executor.begin();
        watched.executor.end(gone);
        let text = tiny::tokens(2, 12);
        watched.step(&[(a, &text[..5], Wanted::All), (b, &text[..2], Wanted::All)]);

        let good = &text[5..8];
        let cases: [(Vec<Chunk<'_>>, &str); 5] = [
            (vec![], "bad batch: it is empty"),
            (
                vec![chunk(a, good), chunk(b, &[])],
                "bad batch: a chunk holds no token",
            ),
            (
                vec![chunk(a, good), chunk(b, good), chunk(a, good)],
                "bad batch: a sequence occurs twice",
            ),
            (
                vec![chunk(a, good), chunk(b, &[3, VOCAB as u32])],
                "bad batch: a token is not in the vocabulary",
            ),
            (vec![chunk(a, good), chunk(gone, good)], "unknown sequence "),
        ];
        for (batch, message) in cases {
            let line = refusal(watched.executor.as_mut(), &batch);
            assert!(line.starts_with(message), "{line}");
            for sequence in [a, b] {
                let len = watched.executor.len(sequence).expect("known");
                assert_eq!(len, watched.len(sequence), "{message}");
            }
        }
        // Their next logits are those they would have had.
        watched.step(&[(b, &text[2..], Wanted::All), (a, &text[5..], Wanted::All)]);
        watched.finish("after refusals");
    }
}

#[test]
fn what_was_never_begun_is_unknown() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::llama(), subject);
        let executor = watched.executor.as_mut();
        let sequence = executor.begin();
        executor.end(sequence);
        let unknown = |result: Result<(), ExecError>| {
            assert!(matches!(result, Err(ExecError::Unknown(_))), "{result:?}");
        };
        unknown(executor.len(sequence).map(|_| ()));
        unknown(executor.fork(sequence, 0).map(|_| ()));
        unknown(executor.save(sequence).map(|_| ()));
        unknown(executor.swap_out(sequence, SwapOut::Own).map(|_| ()));
        unknown(executor.swap_in(sequence, &[]));
        assert!(!executor.can_fork(sequence, 0));
        assert!(!executor.trim(sequence));
        // Ending it again has no effect.
        executor.end(sequence);
    }
}

#[test]
fn a_fork_is_no_longer_than_what_it_comes_from() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::gemma3(), subject);
        let from = watched.computed(None, &tiny::tokens(1, 3), 3);
        let error = watched.executor.fork(from, 4).expect_err("is refused");
        assert_eq!(
            error.to_string(),
            "bad batch: a fork is longer than what it comes from"
        );
        for tokens in 0..=3 {
            watched.fork(from, tokens);
        }
    }
}

#[test]
fn memory_that_is_used_up_is_an_error_that_changes_nothing() {
    for subject in subjects::both() {
        let model = Tiny::gemma3();
        let tensors = model.tensors();
        let file = model.written(&tensors);
        let gguf = Gguf::open(file.path()).expect("a good file");
        let most = 2 << 20;
        let executor = subject.load_with(&gguf, Some(most));
        let plain = Plain::new(&model, &tensors);
        let mut watched = Watched::of(plain, executor, subject);
        let longest = watched.executor.max_tokens();
        assert!(longest > 100, "{subject}: {longest}");
        let first = watched.computed(None, &tiny::tokens(1, 100), 100);
        let mut forks = vec![first];
        // Forks cost only their own tokens.
        while watched.executor.fits(&[(forks[0], 1), (first, 20)]) {
            let fork = watched.fork_all(first);
            if !watched.executor.fits(&[(fork, 20)]) {
                break;
            }
            watched.feed(fork, &tiny::tokens(2, 20));
            forks.push(fork);
            assert!(watched.executor.kv_memory().used <= most);
        }
        assert!(forks.len() > 4, "{subject}: {}", forks.len());
        let last = watched.fork_all(first);
        let text = tiny::tokens(3, 2000);
        let error = watched.executor.forward(&[chunk(last, &text)]);
        assert!(matches!(error, Err(ExecError::OutOfKvMemory)), "{error:?}");
        assert_eq!(watched.executor.len(last).expect("known"), 100);
        // Freed memory is available to others.
        for fork in forks.drain(1..) {
            watched.end(fork);
        }
        watched.feed(last, &text[..20]);
        watched.finish("out of room");
    }
}

#[test]
fn saved_kv_of_another_shape_is_refused() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::gemma3(), subject);
        let sequence = watched.computed(None, &tiny::tokens(1, 9), 9);
        let executor = watched.executor.as_mut();
        let saved = executor.save(sequence).expect("saves");
        let kind = saved[0].dtype;
        let mut read = |tokens: usize, change: &dyn Fn(usize) -> Option<Vec<usize>>| {
            let views = saved.iter().enumerate().filter_map(|(at, tensor)| {
                let shape = change(at)?;
                let view = TensorView::new(tensor.dtype, shape, &tensor.bytes);
                Some((&tensor.name, view.expect("bytes for the shape")))
            });
            let file = safetensors::serialize(views, None).expect("serializes");
            let file = SafeTensors::deserialize(&file).expect("reads");
            executor
                .restore(None, tokens, &file)
                .map_err(|error| error.to_string())
        };
        let same = |at: usize| Some(saved[at].shape.clone());
        let begins = |result: Result<_, String>, start: &str| {
            let line = result.map(|_| ()).expect_err("is refused");
            assert!(line.starts_with(start), "{line}");
            assert!(!line.contains('\n'), "{line:?}");
        };
        read(9, &same).expect("fits");
        // Sliding-window layers hold four tokens of any longer text; the global one shows the
        // difference.
        begins(
            read(10, &same),
            &format!(
                "saved KV does not fit: layers.5.k is {kind:?} [2, 9, 24], expected {kind:?} [2, 10, 24]"
            ),
        );
        begins(
            read(9, &|at| (at != 3).then(|| saved[at].shape.clone())),
            "saved KV does not fit: layers.1.v: ",
        );
        begins(
            read(9, &|at| Some(vec![saved[at].shape.iter().product()])),
            &format!(
                "saved KV does not fit: layers.0.k is {kind:?} [192], expected {kind:?} [2, 4, 24]"
            ),
        );
    }
}

//! A batch that is refused leaves every sequence as it was.

use incant::exec::{Chunk, ExecError, Executor, SequenceId, Wanted};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::tiny::{self, Tiny, VOCAB};
use super::watched::Watched;
use crate::support::subjects;

fn chunk(sequence: SequenceId, tokens: &[u32]) -> Chunk<'_> {
    Chunk {
        sequence,
        tokens,
        wanted: Wanted::Last,
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
        let segment = watched.segment(None, &tiny::tokens(1, 7), 7);
        let [a, b] = [Some(segment), None].map(|on| watched.begin(on));
        let gone = watched.executor.begin(&[]).expect("begins");
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
        // What they say next is what they would have said.
        watched.step(&[(b, &text[2..], Wanted::All), (a, &text[5..], Wanted::All)]);
        watched.finish("after refusals");
    }
}

#[test]
fn what_was_never_begun_is_unknown() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::llama(), subject);
        let executor = watched.executor.as_mut();
        let sequence = executor.begin(&[]).expect("begins");
        assert!(matches!(
            executor.freeze(sequence),
            Err(ExecError::Batch(_))
        ));
        // Refusing to freeze what is empty has not ended it.
        executor.forward(&[chunk(sequence, &[1])]).expect("runs");
        let segment = executor.freeze(sequence).expect("freezes");
        assert!(matches!(executor.len(sequence), Err(ExecError::Unknown(_))));
        assert!(matches!(
            executor.freeze(sequence),
            Err(ExecError::Unknown(_))
        ));
        executor.end(sequence);
        executor.release(segment);
        assert!(matches!(
            executor.begin(&[segment]),
            Err(ExecError::Unknown(_))
        ));
        assert!(matches!(executor.save(segment), Err(ExecError::Unknown(_))));
        executor.release(segment);
    }
}

#[test]
fn a_chain_is_what_its_segments_were_made_on() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::gemma3(), subject);
        let outer = watched.segment(None, &tiny::tokens(1, 3), 3);
        let inner = watched.segment(Some(outer), &tiny::tokens(2, 3), 3);
        // As long as `outer`, but of another text.
        let other = watched.segment(None, &tiny::tokens(3, 3), 3);
        let executor = watched.executor.as_mut();
        for chain in [
            &[inner][..],
            &[inner, outer],
            &[outer, outer],
            &[outer, inner, inner],
            &[other, inner],
        ] {
            let error = executor.begin(chain).expect_err("is refused").to_string();
            assert_eq!(
                error,
                "bad batch: a segment follows one that it was not made on"
            );
        }
        for chain in [&[][..], &[outer], &[outer, inner], &[other]] {
            executor.begin(chain).expect("begins");
        }
        let error = executor.save(inner).expect_err("is refused").to_string();
        assert_eq!(
            error,
            "bad batch: only a segment that begins at position 0 can be saved"
        );
    }
}

#[test]
fn saved_kv_of_another_shape_is_refused() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::gemma3(), subject);
        let segment = watched.segment(None, &tiny::tokens(1, 9), 9);
        let executor = watched.executor.as_mut();
        let saved = executor.save(segment).expect("saves");
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
                .restore(tokens, &file)
                .map_err(|error| error.to_string())
        };
        let same = |at: usize| Some(saved[at].shape.clone());
        let begins = |result: Result<_, String>, start: &str| {
            let line = result.map(|_| ()).expect_err("is refused");
            assert!(line.starts_with(start), "{line}");
            assert!(!line.contains('\n'), "{line:?}");
        };
        read(9, &same).expect("fits");
        // Sliding layers hold four tokens of any longer text; the global one tells.
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

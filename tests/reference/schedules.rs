//! The division of tokens into steps does not change answers.

use incant::exec::Wanted;

use super::tiny::{self, Tiny};
use super::watched::Watched;
use crate::support::subjects::{self, Subject};

/// One model of each kind, on both executors.
fn cases() -> impl Iterator<Item = (&'static Subject, Tiny)> {
    let models = [Tiny::llama(), Tiny::qwen2(), Tiny::gemma3()];
    subjects::both().flat_map(move |subject| models.clone().map(|model| (subject, model)))
}

#[test]
fn chunks_of_any_size_are_the_whole() {
    for (subject, model) in cases() {
        let tokens = tiny::tokens(1, 80);
        let mut watched = Watched::new(&model, subject);
        for size in [1, 3, 7, 64, 80] {
            let sequence = watched.begin();
            for chunk in tokens.chunks(size) {
                watched.feed(sequence, chunk);
            }
        }
        watched.finish(model.architecture);
    }
}

#[test]
fn sequences_in_one_batch_do_not_meet() {
    for (subject, model) in cases() {
        let mut watched = Watched::new(&model, subject);
        let texts = [1, 2, 3, 4].map(|seed| tiny::tokens(seed, 40));
        let [a, b, c, d] = [(); 4].map(|()| watched.begin());
        let [x, y, z, w] = &texts;
        // Ragged prefill, then decoding together with prefill, then only decoding, not always
        // in the order in which the sequences began.
        watched.step(&[
            (a, &x[..20], Wanted::Last),
            (b, &y[..3], Wanted::All),
            (c, &z[..1], Wanted::None),
        ]);
        watched.step(&[
            (d, &w[..33], Wanted::Last),
            (b, &y[3..4], Wanted::Last),
            (a, &x[20..21], Wanted::Last),
            (c, &z[1..12], Wanted::All),
        ]);
        for at in 0..6 {
            watched.step(&[
                (c, &z[12 + at..][..1], Wanted::Last),
                (a, &x[21 + at..][..1], Wanted::Last),
                (d, &w[33 + at..][..1], Wanted::Last),
                (b, &y[4 + at..][..1], Wanted::None),
            ]);
        }
        watched.end(a);
        watched.step(&[(b, &y[10..], Wanted::All), (c, &z[18..19], Wanted::Last)]);
        watched.finish(model.architecture);
    }
}

#[test]
fn a_shared_beginning_is_what_each_would_compute() {
    for (subject, model) in cases() {
        // Shorter than a window, equally long, one longer, and much longer.
        for length in [1, 3, 4, 5, 6, 30, 64] {
            let mut watched = Watched::new(&model, subject);
            let text = tiny::tokens(5, length);
            let common = watched.computed(None, &text, 7);
            let [a, b] = [(); 2].map(|()| watched.fork_all(common));
            let [x, y] = [6, 7].map(|seed| tiny::tokens(seed, 12));
            // One stays near the shared tokens, for the other they fall out of the window.
            watched.feed(a, &x[..9]);
            watched.step(&[(b, &y[..1], Wanted::All), (a, &x[9..10], Wanted::All)]);
            watched.step(&[(a, &x[10..], Wanted::All), (b, &y[1..3], Wanted::All)]);
            watched.step(&[(b, &y[3..], Wanted::All)]);
            watched.finish(&format!("{}, {length} tokens", model.architecture));
        }
    }
}

#[test]
fn forks_of_forks_are_what_each_would_compute() {
    for (subject, model) in cases() {
        for (first, second) in [(6, 2), (2, 6), (1, 1), (20, 1), (3, 9)] {
            let mut watched = Watched::new(&model, subject);
            let outer = watched.computed(None, &tiny::tokens(1, first), 4);
            let inner = watched.computed(Some(outer), &tiny::tokens(2, second), 4);
            let other = watched.computed(Some(outer), &tiny::tokens(3, second + 1), 4);
            // Forks of both branches, of the trunk, and a new sequence, in one batch.
            let on = [Some(inner), Some(other), Some(outer), None, Some(inner)];
            let sequences = on.map(|on| match on {
                Some(on) => watched.fork_all(on),
                None => watched.begin(),
            });
            let texts = [11, 12, 13, 14, 15].map(|seed| tiny::tokens(seed, 9));
            for range in [0..1, 1..4, 4..5, 5..9] {
                let batch: Vec<_> = sequences
                    .iter()
                    .zip(&texts)
                    .rev()
                    .map(|(&sequence, text)| (sequence, &text[range.clone()], Wanted::All))
                    .collect();
                watched.step(&batch);
            }
            watched.finish(&format!("{}, {first} and {second}", model.architecture));
        }
    }
}

#[test]
fn a_sequence_read_back_is_the_sequence() {
    for (subject, model) in cases() {
        for length in [1, 4, 30] {
            let mut watched = Watched::new(&model, subject);
            let computed = watched.computed(None, &tiny::tokens(5, length), 30);
            let read = watched.restore(computed);
            watched.end(computed);
            let above = watched.computed(Some(read), &tiny::tokens(6, 3), 3);
            let [a, b] = [read, above].map(|from| watched.fork_all(from));
            let text = tiny::tokens(7, 9);
            watched.step(&[(a, &text[..5], Wanted::All), (b, &text[..1], Wanted::All)]);
            watched.step(&[(a, &text[5..], Wanted::All), (b, &text[1..], Wanted::All)]);
            watched.finish(&format!("{}, {length} tokens", model.architecture));
        }
    }
}

#[test]
fn what_is_shared_stays_with_those_who_share_it() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::gemma3(), subject);
        let outer = watched.computed(None, &tiny::tokens(1, 9), 9);
        let inner = watched.computed(Some(outer), &tiny::tokens(2, 3), 3);
        let sequence = watched.fork_all(inner);
        watched.end(inner);
        watched.end(outer);
        let text = tiny::tokens(3, 10);
        watched.feed(sequence, &text[..1]);
        watched.feed(sequence, &text[1..]);
        watched.finish("ended");
    }
}

#[test]
fn a_window_of_one_needs_no_kv() {
    for subject in subjects::both() {
        let model = Tiny {
            window: 1,
            ..Tiny::gemma3()
        };
        let mut watched = Watched::new(&model, subject);
        let computed = watched.computed(None, &tiny::tokens(1, 9), 4);
        let read = watched.restore(computed);
        let sequences = [computed, read].map(|from| watched.fork_all(from));
        for text in tiny::tokens(2, 6).chunks(2) {
            let batch = sequences.map(|sequence| (sequence, text, Wanted::All));
            watched.step(&batch);
        }
        watched.finish("a window of one");
    }
}

#[test]
fn a_fork_in_the_middle_goes_its_own_way() {
    for (subject, model) in cases() {
        // Within a page and at its end, and such that three share a part of a page, two of whom
        // write into it.
        for at in [1, 15, 16, 17, 33, 130] {
            let mut watched = Watched::new(&model, subject);
            let text = tiny::tokens(1, 140);
            let long = watched.computed(None, &text, 50);
            let [a, b] = [(); 2].map(|()| watched.fork(long, at));
            let c = watched.fork_all(long);
            let own = [2, 3, 4, 5].map(|seed| tiny::tokens(seed, 12));
            for range in [0..1, 1..2, 2..12] {
                let batch = [long, a, b, c].into_iter().zip(&own);
                let batch = batch.map(|(id, text)| (id, &text[range.clone()], Wanted::All));
                watched.step(&batch.collect::<Vec<_>>());
            }
            watched.finish(&format!("{}, forked at {at}", model.architecture));
        }
    }
}

#[test]
fn a_trimmed_sequence_goes_on_as_before() {
    for subject in subjects::both() {
        let mut watched = Watched::new(&Tiny::gemma3(), subject);
        let long = watched.computed(None, &tiny::tokens(1, 130), 130);
        let whole = watched.executor.kv_memory().used;
        let trimmed = watched.executor.trim(long);
        assert_eq!(trimmed, watched.executor.kv_memory().used < whole);
        // The sequence can still be forked shortly before its end.
        let [a, b] = [watched.fork_all(long), watched.fork(long, 120)];
        let early = watched.try_fork(long, 30);
        assert_eq!(early.is_none(), trimmed);
        let text = tiny::tokens(2, 8);
        watched.step(&[(a, &text, Wanted::All), (b, &text[..5], Wanted::All)]);
        watched.step(&[
            (long, &text[..3], Wanted::All),
            (b, &text[5..], Wanted::All),
        ]);
        watched.finish("trimmed");
    }
}

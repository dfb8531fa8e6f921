//! Any schedule at all, against the oracle.

use std::sync::OnceLock;

use incant::exec::Wanted;
use proptest::prelude::*;
use proptest::sample::Index;

use super::tiny::{self, Tiny};
use super::watched::Watched;
use crate::support::subjects::{self, Subject};

/// Sequences stop growing here: the oracle's work is quadratic.
const LONGEST: usize = 140;

/// What an engine may do. An index picks among what there is at the time;
/// where there is nothing to pick from, nothing is done.
#[derive(Clone, Debug)]
enum Action {
    /// Begins a sequence on a segment, or on none.
    Begin(Option<Index>),
    /// A batch of different sequences, with so many tokens of each.
    Step(Vec<(Index, usize, Wanted)>),
    Freeze(Index),
    Restore(Index),
    End(Index),
    Release(Index),
}

fn action() -> impl Strategy<Value = Action> {
    let wanted = prop_oneof![Just(Wanted::None), Just(Wanted::Last), Just(Wanted::All)];
    // Some long enough that the room of 64 tokens is outgrown.
    let length = prop_oneof![9 => 1..8usize, 1 => 40..70usize];
    let part = (any::<Index>(), length, wanted);
    let index = any::<Index>;
    prop_oneof![
        6 => proptest::option::of(index()).prop_map(Action::Begin),
        8 => proptest::collection::vec(part, 1..7).prop_map(Action::Step),
        3 => index().prop_map(Action::Freeze),
        1 => index().prop_map(Action::Restore),
        1 => index().prop_map(Action::End),
        1 => index().prop_map(Action::Release),
    ]
}

/// A model with windows and global layers, and one without windows.
fn model(windows: bool) -> Tiny {
    let small = Tiny {
        hidden: 32,
        feed_forward: 32,
        head_dim: 6,
        ..Tiny::gemma3()
    };
    if windows {
        return small;
    }
    Tiny {
        head_dim: 8,
        layers: 2,
        hidden: 32,
        feed_forward: 32,
        ..Tiny::llama()
    }
}

/// A fresh executor beside the oracle of the same weights.
fn watched(windows: bool, subject: &'static Subject) -> Watched {
    static DRAWN: [OnceLock<super::Plain>; 2] = [OnceLock::new(), OnceLock::new()];
    let model = model(windows);
    let tensors = model.tensors();
    let plain = DRAWN[usize::from(windows)].get_or_init(|| super::Plain::new(&model, &tensors));
    let executor = super::executor(&model, &tensors, subject);
    Watched::of(plain.clone(), executor, subject)
}

fn pick<T: Copy>(index: Index, from: &[T]) -> Option<T> {
    (!from.is_empty()).then(|| *index.get(from))
}

fn act(watched: &mut Watched, action: &Action, text: &mut impl Iterator<Item = u32>) {
    match action {
        Action::Begin(on) => {
            let segments = watched.segments();
            let segment = on.and_then(|index| pick(index, &segments));
            watched.begin(segment);
        }
        Action::Step(parts) => {
            let mut free = watched.sequences();
            let mut batch = Vec::new();
            for &(index, length, wanted) in parts {
                let Some(sequence) = pick(index, &free) else {
                    continue;
                };
                free.retain(|&other| other != sequence);
                if watched.len(sequence) + length <= LONGEST {
                    let tokens: Vec<u32> = text.take(length).collect();
                    batch.push((sequence, tokens, wanted));
                }
            }
            if !batch.is_empty() {
                let batch: Vec<_> = batch.iter().map(|(s, t, w)| (*s, &t[..], *w)).collect();
                watched.step(&batch);
            }
        }
        Action::Freeze(index) => {
            let mut sequences = watched.sequences();
            sequences.retain(|&sequence| watched.has_own_tokens(sequence));
            if let Some(sequence) = pick(*index, &sequences) {
                watched.freeze(sequence);
            }
        }
        Action::Restore(index) => {
            let mut segments = watched.segments();
            segments.retain(|&segment| watched.is_first(segment));
            if let Some(segment) = pick(*index, &segments) {
                watched.restore(segment);
            }
        }
        Action::End(index) => {
            if let Some(sequence) = pick(*index, &watched.sequences()) {
                watched.end(sequence);
            }
        }
        Action::Release(index) => {
            if let Some(segment) = pick(*index, &watched.segments()) {
                watched.release(segment);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_schedule_gives_the_oracles_logits(
        windows in any::<bool>(),
        seed in any::<u64>(),
        actions in proptest::collection::vec(action(), 4..24),
    ) {
        for subject in subjects::both() {
            let mut watched = watched(windows, subject);
            let mut text = tiny::tokens(seed, 24 * 6 * 70).into_iter();
            watched.begin(None);
            for action in &actions {
                act(&mut watched, action, &mut text);
            }
            // All that still run say a last word.
            for sequence in watched.sequences() {
                let last: Vec<u32> = text.by_ref().take(2).collect();
                watched.feed(sequence, &last);
            }
            let (compared, error) = watched.result();
            prop_assert!(error <= subject.tolerance, "{subject}: {error:.2e} in {compared} rows");
        }
    }
}

//! Random schedules, against the oracle.

use std::sync::OnceLock;

use incant::exec::{SwapOut, Wanted};
use proptest::prelude::*;
use proptest::sample::Index;

use super::tiny::{self, Tiny};
use super::watched::Watched;
use crate::support::subjects::{self, Subject};

/// The maximum length of sequences: the oracle's cost is quadratic.
const LONGEST: usize = 140;

/// An action of an engine. An index selects among the existing items; without any, nothing is
/// done.
#[derive(Clone, Debug)]
enum Action {
    Begin,
    /// Forks a sequence after a fraction of its tokens.
    Fork(Index, Index),
    /// Takes back all tokens after a fraction of them.
    Truncate(Index, Index),
    /// A batch of different sequences, with a number of tokens for each.
    Step(Vec<(Index, usize, Wanted)>),
    Restore(Index),
    Trim(Index),
    /// Swaps a sequence out, or in again.
    Swap(Index),
    /// Swaps out more of a swapped-out sequence.
    SwapMore(Index, SwapOut),
    End(Index),
}

fn action() -> impl Strategy<Value = Action> {
    let wanted = prop_oneof![Just(Wanted::None), Just(Wanted::Last), Just(Wanted::All)];
    // Some are long enough to outgrow the initial capacity of 64 tokens.
    let length = prop_oneof![9 => 1..8usize, 1 => 40..70usize];
    let part = (any::<Index>(), length, wanted);
    let index = any::<Index>;
    let part_of = || prop_oneof![Just(SwapOut::Own), Just(SwapOut::All)];
    prop_oneof![
        3 => Just(Action::Begin),
        6 => (index(), index()).prop_map(|(from, at)| Action::Fork(from, at)),
        4 => (index(), index()).prop_map(|(from, at)| Action::Truncate(from, at)),
        10 => proptest::collection::vec(part, 1..7).prop_map(Action::Step),
        1 => index().prop_map(Action::Restore),
        1 => index().prop_map(Action::Trim),
        2 => index().prop_map(Action::Swap),
        1 => (index(), part_of()).prop_map(|(index, part)| Action::SwapMore(index, part)),
        2 => index().prop_map(Action::End),
    ]
}

/// Models that differ in attention: without windows, with windows and global layers, also with
/// soft caps, with windows only, and with scores that grow with the position.
const MODELS: [fn() -> Tiny; 5] = [
    || Tiny {
        head_dim: 8,
        layers: 2,
        ..Tiny::llama()
    },
    || Tiny {
        head_dim: 6,
        ..Tiny::gemma3()
    },
    || Tiny {
        head_dim: 6,
        ..Tiny::gemma2()
    },
    || Tiny {
        head_dim: 8,
        layers: 2,
        ..Tiny::phi3()
    },
    || Tiny {
        head_dim: 8,
        layers: 2,
        ..Tiny::mistral3()
    },
];

/// A new executor with the oracle of the same weights.
fn watched(index: usize, subject: &'static Subject) -> Watched {
    static DRAWN: [OnceLock<super::Plain>; MODELS.len()] =
        [const { OnceLock::new() }; MODELS.len()];
    let model = Tiny {
        hidden: 32,
        feed_forward: 32,
        ..MODELS[index]()
    };
    let tensors = model.tensors();
    let plain = DRAWN[index].get_or_init(|| super::Plain::new(&model, &tensors));
    let executor = super::executor(&model, &tensors, subject);
    Watched::of(plain.clone(), executor, subject)
}

fn pick<T: Copy>(index: Index, from: &[T]) -> Option<T> {
    (!from.is_empty()).then(|| *index.get(from))
}

fn act(watched: &mut Watched, action: &Action, text: &mut impl Iterator<Item = u32>) {
    match action {
        Action::Begin => _ = watched.begin(),
        Action::Fork(from, at) => {
            if let Some(from) = pick(*from, &watched.present()) {
                let tokens = at.index(watched.len(from) + 1);
                watched.try_fork(from, tokens);
            }
        }
        Action::Truncate(index, at) => {
            if let Some(sequence) = pick(*index, &watched.present()) {
                let tokens = at.index(watched.len(sequence) + 1);
                watched.try_truncate(sequence, tokens);
            }
        }
        Action::Step(parts) => {
            let mut free = watched.present();
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
        Action::Restore(index) => {
            let mut sequences = watched.present();
            sequences.retain(|&sequence| watched.len(sequence) > 0);
            if let Some(sequence) = pick(*index, &sequences) {
                watched.restore(sequence);
            }
        }
        Action::Trim(index) => {
            if let Some(sequence) = pick(*index, &watched.sequences()) {
                watched.executor.trim(sequence);
            }
        }
        Action::Swap(index) => {
            if let Some(sequence) = pick(*index, &watched.sequences()) {
                watched.swap(sequence);
            }
        }
        Action::SwapMore(index, part) => {
            if let Some(sequence) = pick(*index, &watched.absent()) {
                watched.swap_more(sequence, *part);
            }
        }
        Action::End(index) => {
            if let Some(sequence) = pick(*index, &watched.sequences()) {
                watched.end(sequence);
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
        model in 0..MODELS.len(),
        seed in any::<u64>(),
        actions in proptest::collection::vec(action(), 4..24),
    ) {
        for subject in subjects::both() {
            let mut watched = watched(model, subject);
            let mut text = tiny::tokens(seed, 24 * 6 * 70).into_iter();
            watched.begin();
            for action in &actions {
                act(&mut watched, action, &mut text);
            }
            // All running sequences compute some last tokens.
            for sequence in watched.present() {
                let last: Vec<u32> = text.by_ref().take(2).collect();
                watched.feed(sequence, &last);
            }
            let (compared, error) = watched.result();
            prop_assert!(error <= subject.tolerance, "{subject}: {error:.2e} in {compared} rows");
        }
    }
}

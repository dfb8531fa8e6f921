//! Groups of sequences that choose their tokens together (ensembling, contrastive decoding,
//! classifier-free guidance).
//!
//! A *lead* generates an answer; its *members* are sequences with prompts of their own,
//! possibly with another adapter or of another model's engine, that continue with the lead's
//! answer. Each token is sampled from a mixture of the logits of the lead and of the members
//! (see [`Mixture`]), so the lead waits until all rows are available.
//!
//! The lead and its members share an [`Ensemble`] behind a lock: a member stores its row there, the
//! lead takes the rows and stores the token. Each sequence can be computed, swapped out and swapped
//! in independently of the others; a waiting sequence holds no slot, so there is no deadlock.
//! Waiting engines are woken.
//!
//! If only plausible tokens count (some weight is negative), a member in the lead's own engine
//! stores its final hidden *state* instead of a row: then only the logits of these tokens are
//! computed for it.
//!
//! If all are in one engine and in the same step, tokens can be drafted (see
//! [`speculation`](super::speculation)): then each computes the rows of all drafted tokens.
//!
//! The ensemble ends with its lead. If a member ends earlier, the lead fails.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use super::handle::Message;
use crate::exec::{Executor, Logits, Wanted};
use incant_sample::{Mixture, SampleError, Sampler, plausible};

/// The contribution of a member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemberSpec {
    /// The weight of its distribution; a negative weight steers away from it.
    pub weight: f32,
    /// Whether the lead's engine computes the member.
    pub same_engine: bool,
}

/// The lead's handle of an ensemble; part of a [`GenerateRequest`](super::GenerateRequest).
#[derive(Clone, Debug)]
pub struct EnsembleLead(Arc<LeadState>);

/// A member's handle of an ensemble; part of a [`JoinRequest`](super::JoinRequest).
#[derive(Debug)]
pub struct EnsembleMember {
    ensemble: Arc<Ensemble>,
    index: usize,
}

/// Creates an ensemble of a lead and members with these specs, which must have the same
/// vocabulary. A token is plausible if its probability according to the lead is at least
/// `plausible` times (above 0, at most 1) that of the most likely token; this applies only if a
/// weight is negative.
pub fn ensemble(specs: &[MemberSpec], plausible: f32) -> (EnsembleLead, Vec<EnsembleMember>) {
    let narrows = specs.iter().any(|spec| spec.weight < 0.0);
    let ensemble = Arc::new(Ensemble {
        weights: specs.iter().map(|spec| spec.weight).collect(),
        plausible: narrows.then_some(plausible),
        same_engine: specs.iter().map(|spec| spec.same_engine).collect(),
        state: Mutex::new(State {
            lead: None,
            is_over: false,
            failure: None,
            members: specs.iter().map(|_| MemberState::default()).collect(),
        }),
    });
    let members = (0..specs.len()).map(|index| EnsembleMember {
        ensemble: Arc::clone(&ensemble),
        index,
    });
    let members = members.collect();
    (EnsembleLead(Arc::new(LeadState(ensemble))), members)
}

/// Wakes the thread of an engine.
#[derive(Clone, Debug)]
pub(super) struct Waker(mpsc::Sender<Message>);

impl Waker {
    pub(super) fn new(messages: mpsc::Sender<Message>) -> Waker {
        Waker(messages)
    }

    fn wake(&self) {
        // An engine that has ended needs no waking.
        _ = self.0.send(Message::Wake);
    }
}

/// The state that lead and members share.
#[derive(Debug)]
struct Ensemble {
    weights: Vec<f32>,
    /// `None` if no weight is negative.
    plausible: Option<f32>,
    /// Whether the lead's engine computes each member.
    same_engine: Vec<bool>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The lead's engine, to be woken by members of other engines.
    lead: Option<Waker>,
    /// Whether the lead has ended.
    is_over: bool,
    /// The reason why a member ended before its lead.
    failure: Option<String>,
    members: Vec<MemberState>,
}

#[derive(Debug, Default)]
struct MemberState {
    /// The member's engine, if it is not the lead's.
    waker: Option<Waker>,
    /// The member's contributions to the next tokens: to one, or also to those that follow if
    /// the drafted tokens are chosen.
    rows: VecDeque<Row>,
    /// The chosen tokens, until the member takes them.
    chosen: Vec<u32>,
}

/// Identifies an ensemble while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct EnsembleId(usize);

/// The contribution of a member to one token.
#[derive(Debug)]
enum Row {
    /// All logits.
    Logits(Vec<f32>),
    /// The final hidden state, from which the lead's engine computes some logits.
    State(Vec<f32>),
}

impl Ensemble {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while holding the lock; even so, the state would be consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lead's side. Dropping it, with the lead, ends the ensemble.
#[derive(Debug)]
struct LeadState(Arc<Ensemble>);

impl Drop for LeadState {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        for member in &mut state.members {
            member.rows.clear();
            if let Some(waker) = member.waker.take() {
                waker.wake();
            }
        }
    }
}

impl EnsembleLead {
    /// Registers the lead's engine.
    pub(super) fn register(&self, waker: Waker) {
        self.0.0.state().lead = Some(waker);
    }

    /// Whether every member has stored its contribution.
    pub(super) fn can_choose(&self) -> bool {
        let state = self.0.0.state();
        state.members.iter().all(|member| !member.rows.is_empty())
    }

    /// Returns why the ensemble cannot continue, if a member has ended.
    pub(super) fn failure(&self) -> Option<String> {
        self.0.0.state().failure.clone()
    }

    /// The number of its members, if all are in the lead's own engine.
    pub(super) fn members_here(&self) -> Option<usize> {
        let same_engine = &self.0.0.same_engine;
        same_engine
            .iter()
            .all(|&same| same)
            .then_some(same_engine.len())
    }

    /// The id of the ensemble.
    pub(super) fn id(&self) -> EnsembleId {
        EnsembleId(Arc::as_ptr(&self.0.0) as usize)
    }

    /// Drops the members' contributions to tokens after the last chosen one.
    pub(super) fn drop_rows(&self) {
        for member in &mut self.0.0.state().members {
            member.rows.clear();
        }
    }

    /// Chooses a token from the lead's row and the contributions of the members. Edits the row.
    pub(super) fn choose(
        &self,
        own: &mut [f32],
        sampler: &mut Sampler,
        executor: &mut dyn Executor,
    ) -> Result<(u32, Mixture), ChooseError> {
        let ensemble = &*self.0.0;
        let rows: Vec<Row> = {
            let mut state = ensemble.state();
            let members = state.members.iter_mut();
            members
                .filter_map(|member| member.rows.pop_front())
                .collect()
        };
        sampler.bias(own);
        let mixture = ensemble.mix(own, &rows, executor);
        sampler.unbias(own);
        let mixture = mixture?;
        let id = sampler.sample_mixture(&mixture)?;
        Ok((id, mixture))
    }

    /// Stores the chosen token for the members.
    pub(super) fn send_chosen(&self, id: u32) {
        for member in &mut self.0.0.state().members {
            member.chosen.push(id);
            if let Some(waker) = &member.waker {
                waker.wake();
            }
        }
    }
}

/// The error if no token could be chosen.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChooseError {
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Exec(#[from] crate::exec::ExecError),
}

impl Ensemble {
    /// Mixes the lead's row and the contributions of the members into one row of scores.
    fn mix(
        &self,
        own: &[f32],
        rows: &[Row],
        executor: &mut dyn Executor,
    ) -> Result<Mixture, ChooseError> {
        let Some(share) = self.plausible else {
            let others = self.weights.iter().zip(rows);
            let others = others.filter_map(|(&weight, row)| match row {
                Row::Logits(row) => Some((weight, &row[..])),
                // Members store states only if a weight is negative.
                Row::State(_) => None,
            });
            return Ok(Mixture::of_rows(own, &others.collect::<Vec<_>>()));
        };
        let ids = plausible(own, share);
        let at = |row: &[f32]| -> Vec<f32> { ids.iter().map(|&id| row[id as usize]).collect() };
        let states = rows.iter().filter_map(|row| match row {
            Row::State(state) => Some(&state[..]),
            Row::Logits(_) => None,
        });
        let states: Vec<&[f32]> = states.collect();
        let mut computed = executor.logits_at(&states, &ids)?.into_iter();
        let others = rows.iter().map(|row| match row {
            Row::State(_) => computed.next().unwrap_or_default(),
            Row::Logits(row) => at(row),
        });
        let others: Vec<Vec<f32>> = others.collect();
        let others = self.weights.iter().copied().zip(&others);
        let others: Vec<(f32, &[f32])> = others.map(|(w, row)| (w, &row[..])).collect();
        let own = at(own);
        Ok(Mixture::of_tokens(ids, &own, &others))
    }
}

impl EnsembleMember {
    /// The id of the ensemble.
    pub(super) fn id(&self) -> EnsembleId {
        EnsembleId(Arc::as_ptr(&self.ensemble) as usize)
    }

    /// Registers the member's engine.
    pub(super) fn register(&self, waker: Waker) {
        if !self.shares_engine() {
            self.ensemble.state().members[self.index].waker = Some(waker);
        }
    }

    fn shares_engine(&self) -> bool {
        self.ensemble.same_engine[self.index]
    }

    /// Tells whether the member must compute logits or states: of its last row, or `of_all` rows.
    pub(super) fn wanted(&self, of_all: bool) -> Wanted {
        match (self.ensemble.plausible, of_all) {
            (Some(_), false) if self.shares_engine() => Wanted::State,
            (Some(_), true) if self.shares_engine() => Wanted::States,
            (_, false) => Wanted::Last,
            (_, true) => Wanted::All,
        }
    }

    /// Takes the tokens that were chosen.
    pub(super) fn take_chosen(&self) -> Vec<u32> {
        std::mem::take(&mut self.ensemble.state().members[self.index].chosen)
    }

    /// Whether the lead has ended.
    pub(super) fn is_over(&self) -> bool {
        self.ensemble.state().is_over
    }

    /// Stores the rows or states of these numbers, whichever were wanted.
    pub(super) fn store_logits(&self, logits: &Logits, numbers: Range<usize>) {
        let row = |number| match self.wanted(false) {
            Wanted::State => Row::State(logits.state(number).to_vec()),
            _ => Row::Logits(logits.row(number).to_vec()),
        };
        let mut state = self.ensemble.state();
        if !state.is_over {
            state.members[self.index].rows = numbers.map(row).collect();
            self.wake_lead(&state);
        }
    }

    /// Reports why the member cannot continue.
    pub(super) fn fail(&self, why: &str) {
        let mut state = self.ensemble.state();
        state.failure.get_or_insert_with(|| why.to_owned());
        self.wake_lead(&state);
    }

    /// Wakes the lead's engine, unless it is awake because it computes this member.
    fn wake_lead(&self, state: &State) {
        if !self.shares_engine()
            && let Some(waker) = &state.lead
        {
            waker.wake();
        }
    }
}

impl Drop for EnsembleMember {
    fn drop(&mut self) {
        if !self.is_over() {
            self.fail("a sequence that it chooses its tokens with has ended");
        }
    }
}

//! Sequences that choose their tokens together.
//!
//! A *lead* generates an answer; its *members* are sequences with prompts of their own,
//! perhaps of another adapter or another model's engine, that continue with the lead's
//! answer. Each token is chosen from the lead's row of logits and the members' (see
//! [`Mixture`]), so the lead waits until all rows are there.
//!
//! Lead and members meet in what they share, a [`Group`] behind a lock: a member leaves
//! its row there, the lead takes the rows and leaves the token. Each of them can be
//! computed, swapped out and brought back at other times than the rest; whoever waits
//! holds no slot, so nobody waits for someone who waits for him. The engines that wait
//! are woken.
//!
//! Where only plausible tokens count (some weight is negative) a member in the lead's own
//! engine leaves its *state* instead of a row: then only these tokens' logits are ever
//! computed of it.
//!
//! The group ends with its lead. When a member ends before, the lead fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use super::handle::Mail;
use crate::exec::{Executor, Logits, Wanted};
use incant_sample::{Mixture, SampleError, Sampler, plausible};

/// A member's part in the choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// The weight of its distribution; negative leads away from it.
    pub weight: f32,
    /// Whether it is computed by the lead's engine.
    pub same_engine: bool,
}

/// The place of the sequence that generates; goes into a
/// [`GenerateRequest`](super::GenerateRequest).
#[derive(Clone, Debug)]
pub struct Lead(Arc<Leading>);

/// The place of a member; goes into a [`JoinRequest`](super::JoinRequest).
#[derive(Debug)]
pub struct Seat {
    group: Arc<Group>,
    index: usize,
}

/// A group of a lead and members with these shares, who all have the same vocabulary. A
/// token is plausible if it is at least `plausible` times (above 0, at most 1) as likely
/// to the lead as the most likely one; that counts only where a weight is negative.
pub fn group(shares: &[Share], plausible: f32) -> (Lead, Vec<Seat>) {
    let narrows = shares.iter().any(|share| share.weight < 0.0);
    let group = Arc::new(Group {
        weights: shares.iter().map(|share| share.weight).collect(),
        plausible: narrows.then_some(plausible),
        same_engine: shares.iter().map(|share| share.same_engine).collect(),
        state: Mutex::new(State {
            lead: None,
            is_over: false,
            failure: None,
            members: shares.iter().map(|_| Member::default()).collect(),
        }),
    });
    let seats = (0..shares.len()).map(|index| Seat {
        group: Arc::clone(&group),
        index,
    });
    let seats = seats.collect();
    (Lead(Arc::new(Leading(group))), seats)
}

/// Wakes an engine's thread.
#[derive(Clone, Debug)]
pub(super) struct Bell(mpsc::Sender<Mail>);

impl Bell {
    pub(super) fn new(mail: mpsc::Sender<Mail>) -> Bell {
        Bell(mail)
    }

    fn ring(&self) {
        // An engine that is gone needs no waking.
        _ = self.0.send(Mail::Wake);
    }
}

/// What lead and members share.
#[derive(Debug)]
struct Group {
    weights: Vec<f32>,
    /// `None` where no weight is negative.
    plausible: Option<f32>,
    /// Whether each member is computed by the lead's engine.
    same_engine: Vec<bool>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The lead's engine, for members of other engines.
    lead: Option<Bell>,
    /// Whether the lead has ended.
    is_over: bool,
    /// Why a member ended before its lead.
    failure: Option<String>,
    members: Vec<Member>,
}

#[derive(Debug, Default)]
struct Member {
    /// Its engine, if that is not the lead's.
    bell: Option<Bell>,
    /// What it has to say about the next token.
    row: Option<Row>,
    /// The token that was chosen, until it knows.
    told: Option<u32>,
}

/// What a member leaves.
#[derive(Debug)]
enum Row {
    /// All logits.
    Logits(Vec<f32>),
    /// That from which the lead's engine computes some of them.
    State(Vec<f32>),
}

impl Group {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nobody panics while holding it, and if so, what is there is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lead's side. Dropped with the lead, it ends the group.
#[derive(Debug)]
struct Leading(Arc<Group>);

impl Drop for Leading {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        for member in &mut state.members {
            member.row = None;
            if let Some(bell) = member.bell.take() {
                bell.ring();
            }
        }
    }
}

impl Lead {
    /// Says where the lead is computed.
    pub(super) fn seat(&self, bell: Bell) {
        self.0.0.state().lead = Some(bell);
    }

    /// Whether every member has left a row.
    pub(super) fn can_choose(&self) -> bool {
        let state = self.0.0.state();
        state.members.iter().all(|member| member.row.is_some())
    }

    /// Why the group cannot go on, if a member has ended.
    pub(super) fn failure(&self) -> Option<String> {
        self.0.0.state().failure.clone()
    }

    /// Chooses a token from the lead's row and those that the members left. The row is
    /// edited meanwhile.
    pub(super) fn choose(
        &self,
        own: &mut [f32],
        sampler: &mut Sampler,
        executor: &mut dyn Executor,
    ) -> Result<(u32, Mixture), ChooseError> {
        let group = &*self.0.0;
        let rows: Vec<Row> = {
            let mut state = group.state();
            let members = state.members.iter_mut();
            members.filter_map(|member| member.row.take()).collect()
        };
        sampler.bias(own);
        let mixture = group.mix(own, &rows, executor);
        sampler.unbias(own);
        let mixture = mixture?;
        let id = sampler.sample_mixture(&mixture)?;
        Ok((id, mixture))
    }

    /// Tells the members which token was chosen.
    pub(super) fn tell(&self, id: u32) {
        for member in &mut self.0.0.state().members {
            member.told = Some(id);
            if let Some(bell) = &member.bell {
                bell.ring();
            }
        }
    }
}

/// Why no token could be chosen together.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChooseError {
    #[error(transparent)]
    Sample(#[from] SampleError),
    #[error(transparent)]
    Exec(#[from] crate::exec::ExecError),
}

impl Group {
    /// Makes one row of scores out of the lead's row and the members'.
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
                // Given only where a weight is negative.
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

impl Seat {
    /// Says where the member is computed.
    pub(super) fn seat(&self, bell: Bell) {
        if !self.shares_engine() {
            self.group.state().members[self.index].bell = Some(bell);
        }
    }

    fn shares_engine(&self) -> bool {
        self.group.same_engine[self.index]
    }

    /// What it wants of its last row.
    pub(super) fn wanted(&self) -> Wanted {
        match self.group.plausible {
            Some(_) if self.shares_engine() => Wanted::State,
            _ => Wanted::Last,
        }
    }

    /// The next token, if it was chosen.
    pub(super) fn told(&self) -> Option<u32> {
        self.group.state().members[self.index].told.take()
    }

    /// Whether the lead has ended.
    pub(super) fn is_over(&self) -> bool {
        self.group.state().is_over
    }

    /// Leaves row number `index` of what was wanted.
    pub(super) fn leave(&self, logits: &Logits, index: usize) {
        let row = match self.wanted() {
            Wanted::State => Row::State(logits.state(index).to_vec()),
            _ => Row::Logits(logits.row(index).to_vec()),
        };
        let mut state = self.group.state();
        if !state.is_over {
            state.members[self.index].row = Some(row);
            self.wake_lead(&state);
        }
    }

    /// Says why the member cannot go on.
    pub(super) fn fail(&self, why: &str) {
        let mut state = self.group.state();
        state.failure.get_or_insert_with(|| why.to_owned());
        self.wake_lead(&state);
    }

    /// An engine that is awake, because it computes this member, needs no waking.
    fn wake_lead(&self, state: &State) {
        if !self.shares_engine()
            && let Some(bell) = &state.lead
        {
            bell.ring();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.is_over() {
            self.fail("a sequence that it chooses its tokens with has ended");
        }
    }
}

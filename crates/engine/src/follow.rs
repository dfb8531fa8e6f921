//! Scoring one sequence's answer under another's beginning, as it is generated.
//!
//! A *leader* generates. Each token it chooses goes, with the logits it was chosen
//! from, down a [`Feed`] to a *follower*: a sequence with a prompt of its own, perhaps
//! of another adapter or another model's engine, that takes the token for its own next
//! one. So the two rows of logits for the same place in the answer meet, and all of both
//! distributions can be compared without keeping any of them.
//!
//! A follower is a scored prompt that arrives token by token: it runs in the same steps
//! as everything else. A leader that is too far ahead pauses until its followers have
//! caught up; whoever pauses holds no slot, so nobody waits for someone who waits for
//! him.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::Scored;
use incant_sample::{LogSoftmax, divergence, rank};

/// How many tokens may be on their way to a follower, and how many it takes in at once.
/// For each of them a row of logits is held (1 MiB for gemma's vocabulary).
const AHEAD: usize = 8;

/// Where a leader's tokens go.
#[derive(Clone, Debug)]
pub struct Feed(Sender<Led>);

/// Where a follower's tokens come from.
#[derive(Debug)]
pub struct Follow(Receiver<Led>);

/// A way for one leader's tokens to one follower. Both have the same vocabulary.
pub fn lead() -> (Feed, Follow) {
    let (sender, receiver) = channel(AHEAD);
    (Feed(sender), Follow(receiver))
}

/// A token that a leader chose, and the logits that it was chosen from.
#[derive(Debug)]
struct Led {
    id: u32,
    logits: Arc<[f32]>,
}

/// Where a leader's tokens go: nowhere, if there are no followers.
#[derive(Debug)]
pub(super) struct Followers(Vec<Feed>);

impl Followers {
    pub(super) fn new(feeds: Vec<Feed>) -> Followers {
        Followers(feeds)
    }

    /// Whether one of them has enough to do.
    pub(super) fn are_behind(&self) -> bool {
        // One that has left holds nobody up.
        let behind = |Feed(feed): &Feed| feed.capacity() == 0 && !feed.is_closed();
        self.0.iter().any(behind)
    }

    /// Tells them the next token and the raw logits that it was chosen from. None is
    /// [behind](Followers::are_behind).
    pub(super) fn tell(&self, id: u32, logits: &[f32]) {
        if self.0.is_empty() {
            return;
        }
        let logits: Arc<[f32]> = logits.into();
        for Feed(feed) in &self.0 {
            let logits = Arc::clone(&logits);
            // One that has left needs to know nothing.
            _ = feed.try_send(Led { id, logits });
        }
    }
}

/// A follower's own state, beside its tokens.
#[derive(Debug)]
pub(super) struct Following {
    follow: Follow,
    top: usize,
    /// Tokens that are not scored yet.
    ahead: VecDeque<Led>,
    /// Whether the leader has ended.
    is_over: bool,
}

impl Following {
    /// Follows, and reports so many alternatives.
    pub(super) fn new(follow: Follow, top: usize) -> Following {
        Following {
            follow,
            top,
            ahead: VecDeque::new(),
            is_over: false,
        }
    }

    /// Takes in what the leader has said since, onto the end of `tokens`.
    pub(super) fn listen(&mut self, tokens: &mut Vec<u32>) {
        while self.ahead.len() < AHEAD {
            match self.follow.0.try_recv() {
                Ok(led) => {
                    tokens.push(led.id);
                    self.ahead.push_back(led);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_over = true;
                    return;
                }
            }
        }
    }

    /// Whether the leader has ended and all it said is scored.
    pub(super) fn is_done(&self) -> bool {
        self.is_over && self.ahead.is_empty()
    }

    /// Scores the next token by the logits in its place.
    pub(super) fn score(&mut self, logits: &[f32]) -> Option<Scored> {
        let led = self.ahead.pop_front()?;
        let mut row = LogSoftmax::new(logits);
        Some(Scored {
            logprob: row.logprob(led.id),
            rank: rank(logits, led.id),
            top: row.top(self.top),
            divergence: divergence(&led.logits, logits),
        })
    }
}

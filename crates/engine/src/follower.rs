//! Scores the answer of one sequence after the prompt of another, while it is generated.
//!
//! A *leader* generates. Each token it samples is sent, with the logits it was sampled from,
//! through a [`Feed`] to a *follower*: a sequence with a prompt of its own, possibly with
//! another adapter or of another model's engine, which takes the token as its own next one. So
//! the two rows of logits for the same position of the answer are available together, and the
//! full distributions can be compared without storing them.
//!
//! A follower is a scored prompt that arrives token by token; it takes part in the same steps
//! as all other sequences. A leader that is too far ahead pauses until its followers have
//! caught up. A paused sequence holds no slot, so there is no deadlock.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::Scored;
use incant_sample::{LogSoftmax, divergence, rank};

/// The maximum number of tokens in a feed, and of tokens that a follower takes from it at once.
/// Each holds a row of logits (1 MiB for gemma's vocabulary).
const MAX_AHEAD: usize = 8;

/// The sending side, for the leader.
#[derive(Clone, Debug)]
pub struct Feed(Sender<FedToken>);

/// The receiving side, for the follower.
#[derive(Debug)]
pub struct Follow(Receiver<FedToken>);

/// Creates a channel from one leader to one follower. Both must have the same vocabulary.
pub fn follow_channel() -> (Feed, Follow) {
    let (sender, receiver) = channel(MAX_AHEAD);
    (Feed(sender), Follow(receiver))
}

/// A token that a leader sampled, and the logits that it was sampled from.
#[derive(Debug)]
struct FedToken {
    id: u32,
    logits: Arc<[f32]>,
}

/// The feeds of a leader's followers; empty without followers.
#[derive(Debug)]
pub(super) struct Followers(Vec<Feed>);

impl Followers {
    pub(super) fn new(feeds: Vec<Feed>) -> Followers {
        Followers(feeds)
    }

    /// Whether a follower's feed is full.
    pub(super) fn are_behind(&self) -> bool {
        // A follower that has ended delays nobody.
        let behind = |Feed(feed): &Feed| feed.capacity() == 0 && !feed.is_closed();
        self.0.iter().any(behind)
    }

    /// The number of tokens that can be sent before a follower is behind.
    pub(super) fn room(&self) -> usize {
        let open = self.0.iter().filter(|Feed(feed)| !feed.is_closed());
        open.map(|Feed(feed)| feed.capacity())
            .min()
            .unwrap_or(usize::MAX)
    }

    /// Sends the next token and the raw logits that it was sampled from to the followers. None
    /// of them may be [behind](Followers::are_behind).
    pub(super) fn send(&self, id: u32, logits: &[f32]) {
        if self.0.is_empty() {
            return;
        }
        let logits: Arc<[f32]> = logits.into();
        for Feed(feed) in &self.0 {
            let logits = Arc::clone(&logits);
            // A follower that has ended is ignored.
            _ = feed.try_send(FedToken { id, logits });
        }
    }
}

/// The state of a follower, in addition to its tokens.
#[derive(Debug)]
pub(super) struct Following {
    follow: Follow,
    top: usize,
    /// The tokens that are not scored yet.
    ahead: VecDeque<FedToken>,
    /// Whether the leader has ended.
    is_over: bool,
}

impl Following {
    /// Creates the state of a follower that reports `top` alternatives.
    pub(super) fn new(follow: Follow, top: usize) -> Following {
        Following {
            follow,
            top,
            ahead: VecDeque::new(),
            is_over: false,
        }
    }

    /// Receives the leader's new tokens and appends them to `tokens`.
    pub(super) fn receive(&mut self, tokens: &mut Vec<u32>) {
        while self.ahead.len() < MAX_AHEAD {
            match self.follow.0.try_recv() {
                Ok(fed) => {
                    tokens.push(fed.id);
                    self.ahead.push_back(fed);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.is_over = true;
                    return;
                }
            }
        }
    }

    /// Whether the leader has ended and all its tokens are scored.
    pub(super) fn is_done(&self) -> bool {
        self.is_over && self.ahead.is_empty()
    }

    /// Scores the next token by the logits at its position.
    pub(super) fn score(&mut self, logits: &[f32]) -> Option<Scored> {
        let fed = self.ahead.pop_front()?;
        let mut row = LogSoftmax::new(logits);
        Some(Scored {
            logprob: row.logprob(fed.id),
            rank: rank(logits, fed.id),
            top: row.top(self.top),
            divergence: divergence(&fed.logits, logits),
        })
    }
}

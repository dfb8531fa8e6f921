//! Requests that wait for a slot.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use super::admission::Permit;
use super::client::Owner;
use super::follower::Following;
use super::task::{Answering, Task};
use super::wait_estimate::RemainingWork;
use super::{Adapter, Event, Prefix, Request, cache};
use crate::exec::SequenceId;

/// A request as it was accepted.
pub(super) struct Submitted {
    pub(super) request: Request,
    pub(super) events: UnboundedSender<Event>,
    pub(super) owner: Owner,
    pub(super) permit: Permit,
}

/// One sequence that waits for a slot.
pub(super) struct Waiting {
    pub(super) adapter: Option<Adapter>,
    pub(super) prefix: Option<Arc<Prefix>>,
    pub(super) events: UnboundedSender<Event>,
    /// The tokens of prefix and prompt.
    pub(super) tokens: Vec<u32>,
    pub(super) task: Task,
    pub(super) isolated: bool,
    pub(super) owner: Owner,
    pub(super) permit: Permit,
    /// Whether its prefix was read from disk for it.
    pub(super) read_from_disk: bool,
    /// The sequence that is computing tokens for it, and the number of their common tokens.
    pub(super) waits_for: Option<(SequenceId, usize)>,
    /// Whether other requests may go first because of that.
    pub(super) lets_pass: bool,
}

impl Waiting {
    pub(super) fn new(submitted: Submitted) -> Waiting {
        let Submitted {
            request,
            events,
            owner,
            permit,
        } = submitted;
        let join = |prefix: &Option<Arc<Prefix>>, prompt: &[u32]| {
            let prefix: &[u32] = prefix.as_ref().map_or(&[], |prefix| &prefix.ids);
            [prefix, prompt].concat()
        };
        let (adapter, prefix, tokens, task, isolated) = match request {
            Request::Generate(mut request) => {
                let tokens = join(&request.prefix, &request.prompt);
                let (adapter, prefix) = (request.adapter.take(), request.prefix.take());
                let (isolated, first) = (request.isolated, tokens.len() - request.prompt.len());
                let task = Task::Answer(Box::new(Answering::new(*request, first)));
                (adapter, prefix, tokens, task, isolated)
            }
            Request::Follow(request) => {
                let tokens = join(&request.prefix, &request.prompt);
                let task = Task::Follow(Following::new(request.follow, request.top));
                (request.adapter, request.prefix, tokens, task, false)
            }
            Request::Join(request) => {
                let tokens = join(&request.prefix, &request.prompt);
                let task = Task::Join {
                    member: request.member,
                    keep: request.keep,
                };
                let isolated = request.isolated;
                (request.adapter, request.prefix, tokens, task, isolated)
            }
        };
        Waiting {
            adapter,
            prefix,
            events,
            tokens,
            task,
            isolated,
            owner,
            permit,
            read_from_disk: false,
            waits_for: None,
            lets_pass: false,
        }
    }

    /// The tokens whose KV other sequences may provide. At least one token is left to compute,
    /// whose logits determine the next one.
    pub(super) fn shareable(&self) -> &[u32] {
        let most = match &self.task {
            // Scoring needs the logits before each of the prompt's tokens.
            Task::Answer(answer) if let Some(scoring) = &answer.scoring => scoring.first - 1,
            _ => self.tokens.len().saturating_sub(1),
        };
        let most = if self.isolated {
            most.min(
                self.prefix()
                    .map_or(0, |prefix| cache::shared(prefix).len()),
            )
        } else {
            most
        };
        &self.tokens[..most]
    }

    /// The estimated remaining work.
    pub(super) fn remaining_work(&self) -> RemainingWork {
        let (answer, may_end) = self.task.remaining_work();
        RemainingWork {
            prompt: self.tokens.len(),
            answer,
            may_end,
        }
    }

    pub(super) fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The prefix, if it has tokens to share.
    pub(super) fn prefix(&self) -> Option<&Arc<Prefix>> {
        let prefix = self.prefix.as_ref();
        prefix.filter(|prefix| !cache::shared(prefix).is_empty())
    }

    /// Whether the client has disconnected.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Reports to the client that the request failed.
    pub(super) fn fail(&self, why: &str) {
        self.task.fail(why);
        // A client that has disconnected needs no answer.
        _ = self.events.send(Event::Failed(why.to_owned()));
    }
}

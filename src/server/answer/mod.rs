//! From the engine's events to a response, whole or streamed.
//!
//! [`respond`] is the one path that chat and completions share. Each answer
//! has a [`Choice`] that turns its events into [`Piece`]s of text; [`Running`]
//! interleaves the choices of a request; a [`Shape`] says how an endpoint
//! writes them. Nothing is sent before the first token, so that a failure until
//! then is a plain error with its status.

mod envelope;
mod logprobs;
mod watch;

use std::ops::Add;
use std::pin::Pin;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream::{FuturesUnordered, unfold};
use schemars::JsonSchema;
use serde::Serialize;

use super::call::Call;
use super::controls::{Resolved, Stream};
use super::deadline::Deadline;
use super::errors::ApiError;
use super::metrics::Outcome;
use super::sse::{self, Frames};
use crate::runtime::choice::{Choice, Echo, Entry, Piece};
use crate::runtime::together;
use crate::runtime::{Arm, Partners, Prompt};
use incant_engine::{Event, FinishReason, GenerateRequest, Generation};
use incant_prompt::text::Tokenizer;

pub(crate) use envelope::{Envelope, Shape};
pub(crate) use logprobs::{ChatLogprobs, CompletionLogprobs, Measured, Names};
pub(crate) use watch::Watch;

use envelope::Head;

/// Everything there is to run for one request.
pub(crate) struct Plan {
    pub(crate) arm: Arm,
    /// Each is answered `controls.answers` times.
    pub(crate) prompts: Vec<Planned>,
    pub(crate) controls: Resolved,
    /// Report log-probabilities, with so many alternatives.
    pub(crate) logprobs: Option<usize>,
    /// Share KV with no other request.
    pub(crate) isolated: bool,
    /// What the answer tells of the prompt's tokens beside it, if that is asked for.
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
    /// The request field that holds the prompt, for errors.
    pub(crate) param: &'static str,
    /// The profile that rendered the conversation, if it was one.
    pub(crate) profile: Option<String>,
}

/// One prompt of a plan.
pub(crate) struct Planned {
    pub(crate) prompt: Prompt,
    /// What precedes the answer's text, if the client asked for its prompt back.
    pub(crate) echo: Option<Echo>,
    /// Who else has a say in the answers.
    pub(crate) partners: Partners,
}

/// What a request cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Usage {
    /// Tokens of all prompts, those of the profile included; a prompt with several answers counts once.
    pub(crate) prompt_tokens: usize,
    /// Tokens generated in all answers, an end token included.
    pub(crate) completion_tokens: usize,
    /// The sum of both.
    total_tokens: usize,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
    /// Absent where nobody else had a say. Not counted in the other numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) guidance_tokens_details: Option<GuidanceTokensDetails>,
}

/// What was computed for those who had a say in the answers: the guide, and the arms of a mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct GuidanceTokensDetails {
    /// Tokens of all their prompts.
    pub(crate) prompt_tokens: usize,
    /// Of these, tokens that were not computed again.
    pub(crate) cached_tokens: usize,
    /// Tokens of the answers, once for each of them.
    pub(crate) completion_tokens: usize,
}

impl Usage {
    /// The cost of prompts, some of whose tokens were there, and of their answers.
    pub(crate) fn new(
        prompt_tokens: usize,
        cached_tokens: usize,
        completion_tokens: usize,
    ) -> Usage {
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
            guidance_tokens_details: None,
        }
    }
}

impl Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        let cached = |usage: &Usage| usage.prompt_tokens_details.cached_tokens;
        let sum = Usage::new(
            self.prompt_tokens + other.prompt_tokens,
            cached(&self) + cached(&other),
            self.completion_tokens + other.completion_tokens,
        );
        let details = [self.guidance_tokens_details, other.guidance_tokens_details];
        let details = details.into_iter().flatten();
        Usage {
            guidance_tokens_details: details.reduce(|a, b| GuidanceTokensDetails {
                prompt_tokens: a.prompt_tokens + b.prompt_tokens,
                cached_tokens: a.cached_tokens + b.cached_tokens,
                completion_tokens: a.completion_tokens + b.completion_tokens,
            }),
            ..sum
        }
    }
}

/// Where the prompt's tokens came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct PromptTokensDetails {
    /// Tokens that were not computed again.
    pub(crate) cached_tokens: usize,
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) index: usize,
    pub(crate) text: String,
    /// All its tokens, those without text too.
    pub(crate) ids: Vec<u32>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) finish: FinishReason,
}

/// Runs the `plan` that `call` asked for and writes what comes in `shape`.
pub(crate) async fn respond<S: Shape>(
    call: &Call,
    mut plan: Plan,
    shape: S,
) -> Result<Response, ApiError> {
    let prompt_token_ids = plan.prompt_token_ids.take();
    let head = Head::new::<S>(plan.arm.full_id(), plan.profile.clone(), prompt_token_ids);
    let stream = plan.controls.stream;
    let mut running = Running::submit(call, plan)?;
    match stream {
        Stream::No => {
            let answers = running.collect().await?;
            let choices = answers
                .into_iter()
                .map(|answer| shape.answer(answer))
                .collect();
            Ok(Json(head.whole::<S>(choices, running.usage())).into_response())
        }
        Stream::Events {
            include_usage,
            continuous_usage,
        } => {
            let first = running.next().await.transpose()?;
            let events = Events {
                first,
                running,
                shape,
                head,
                include_usage,
                continuous_usage,
            };
            let frames = unfold(Some(events), |events| async { events?.frames().await });
            Ok(sse::response(frames))
        }
    }
}

/// The rest of a stream.
struct Events<S> {
    /// The piece that proved that there is an answer.
    first: Option<Piece>,
    running: Running,
    shape: S,
    head: Head,
    include_usage: bool,
    continuous_usage: bool,
}

impl<S: Shape> Events<S> {
    /// The `usage` of a chunk that is not the last.
    fn usage(&self) -> Option<Option<Usage>> {
        match (self.continuous_usage, self.include_usage) {
            (true, _) => Some(Some(self.running.usage())),
            (false, true) => Some(None),
            (false, false) => None,
        }
    }

    /// The next frames, and what comes after them; without the latter they are the last.
    async fn frames(mut self) -> Option<(Frames, Option<Self>)> {
        let mut frames = Frames::default();
        while frames.is_empty() {
            let next = match self.first.take() {
                Some(first) => Some(Ok(first)),
                None => self.running.next().await,
            };
            match next {
                Some(Ok(piece)) => {
                    for choice in self.shape.chunks(piece) {
                        let usage = self.usage();
                        frames.push(&self.head.chunk::<S>(choice, usage));
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!("a stream broke off: {error}");
                    frames.push(&error.body());
                    return Some((frames, None));
                }
                None => {
                    if self.include_usage {
                        frames.push(&self.head.last_chunk::<S>(self.running.usage()));
                    }
                    frames.done();
                    return Some((frames, None));
                }
            }
        }
        Some((frames, Some(self)))
    }
}

type Step = Pin<Box<dyn Future<Output = (usize, Generation, Option<Event>)> + Send>>;

/// Waits for the next event of one generation, and hands the generation back with it.
fn step(index: usize, mut generation: Generation) -> Step {
    Box::pin(async move {
        let event = generation.next().await;
        (index, generation, event)
    })
}

/// A request's answers while they are generated. Dropping it cancels them all.
struct Running {
    choices: Vec<Choice<Tokenizer>>,
    /// Of each answer: those who have a say in it.
    guided: Vec<Guided>,
    steps: FuturesUnordered<Step>,
    answers_per_prompt: usize,
    deadline: Deadline,
    watch: Watch,
}

/// Those who have a say in one answer.
#[derive(Clone, Copy, Debug, Default)]
struct Guided {
    /// How many there are.
    partners: usize,
    /// The tokens of their prompts.
    prompt_tokens: usize,
    /// Of these, tokens that were there; known from the answer's first token on.
    cached_tokens: Option<usize>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watch.end(self.usage());
    }
}

impl Running {
    /// Hands all sequences to the engine, or none.
    fn submit(call: &Call, plan: Plan) -> Result<Running, ApiError> {
        let Plan {
            arm,
            prompts,
            controls,
            logprobs,
            isolated,
            param,
            prompt_token_ids: _,
            profile: _,
        } = plan;
        let mut sequences = Vec::new();
        let mut choices = Vec::new();
        let mut guided = Vec::new();
        let mut prompt_tokens = Vec::with_capacity(prompts.len());
        for Planned {
            prompt,
            echo,
            partners,
        } in prompts
        {
            let room = fit(&prompt, arm.context(), controls.max_tokens, param)?;
            let room = with_partners(room, &partners, controls.max_tokens)?;
            prompt_tokens.push(prompt.token_count());
            let markers = partners.markers(&prompt);
            for index in 0..controls.answers {
                let request = GenerateRequest {
                    adapter: arm.adapter(),
                    prefix: prompt.prefix.clone(),
                    prompt: prompt.ids.clone(),
                    max_tokens: room,
                    end_tokens: controls.end_tokens.clone(),
                    sampling: controls.sampling.clone(),
                    index: index as u64,
                    logprobs,
                    prompt_logprobs: logprobs.filter(|_| echo.is_some()),
                    feeds: Vec::new(),
                    together: None,
                    isolated,
                };
                sequences.push(partners.sequences(&arm, request));
                guided.push(Guided {
                    partners: partners.partners.len(),
                    prompt_tokens: partners.prompt_tokens(),
                    cached_tokens: None,
                });
                choices.push(Choice::new(
                    choices.len(),
                    Arc::clone(arm.tokenizer()),
                    controls.end_tokens.clone(),
                    &controls.stop,
                    &markers,
                    echo.as_ref(),
                ));
            }
        }
        let generations = together::submit(call.client, sequences)?;
        let watch = call.watch(arm.id(), prompt_tokens, controls.answers);
        let steps = generations
            .into_iter()
            .enumerate()
            .map(|(index, generation)| step(index, generation))
            .collect();
        Ok(Running {
            choices,
            guided,
            steps,
            answers_per_prompt: controls.answers,
            deadline: call.deadline(controls.timeout),
            watch,
        })
    }

    /// The next piece of any answer; `None` after all have ended. After an error
    /// there is nothing more to come: dropping it all ends what still runs.
    async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        loop {
            let next = tokio::select! {
                // Events that lie ready must not put the deadline off.
                biased;
                error = self.deadline.passed() => {
                    self.watch.note_outcome(Outcome::TimedOut);
                    return Some(Err(error));
                }
                next = self.steps.next() => next,
            };
            let Some((index, mut generation, event)) = next else {
                self.watch.note_outcome(Outcome::Finished);
                return None;
            };
            let event = event.unwrap_or_else(|| Event::Failed("the engine stopped".into()));
            self.watch.note(index, &event);
            let guided = &mut self.guided[index];
            if matches!(event, Event::Token { .. }) && guided.cached_tokens.is_none() {
                guided.cached_tokens = Some(generation.partners_cached());
            }
            match self.choices[index].advance(event) {
                Err(cause) => return Some(Err(ApiError::Internal(cause))),
                Ok(Some(piece)) => {
                    // An answer that a stop text ended is dropped here, which frees its place.
                    if piece.finish.is_none() {
                        self.steps.push(step(index, generation));
                    }
                    return Some(Ok(piece));
                }
                Ok(None) => self.steps.push(step(index, generation)),
            }
        }
    }

    /// Waits for all answers.
    async fn collect(&mut self) -> Result<Vec<Answer>, ApiError> {
        let blank = |index| Answer {
            index,
            text: String::new(),
            ids: Vec::new(),
            entries: Vec::new(),
            finish: FinishReason::Length,
        };
        let mut answers: Vec<Answer> = (0..self.choices.len()).map(blank).collect();
        while let Some(piece) = self.next().await.transpose()? {
            let answer = &mut answers[piece.index];
            answer.text.push_str(&piece.text);
            answer.ids.extend(piece.ids);
            answer.entries.extend(piece.entries);
            answer.finish = piece.finish.unwrap_or(answer.finish);
        }
        Ok(answers)
    }

    fn usage(&self) -> Usage {
        let completion_tokens = self.choices.iter().map(Choice::generated).sum();
        // A prompt's later answers find in the cache what its first one computed:
        // only the first says what the request could reuse.
        let cached_tokens = self
            .choices
            .iter()
            .step_by(self.answers_per_prompt)
            .map(Choice::cached)
            .sum();
        Usage {
            guidance_tokens_details: self.guidance_usage(),
            ..Usage::new(self.watch.prompt_tokens(), cached_tokens, completion_tokens)
        }
    }

    /// What was computed for those who have a say; prompts count as the answers' own do.
    fn guidance_usage(&self) -> Option<GuidanceTokensDetails> {
        if self.guided.iter().all(|guided| guided.partners == 0) {
            return None;
        }
        let firsts = || self.guided.iter().step_by(self.answers_per_prompt);
        let answers = self.choices.iter().zip(&self.guided);
        Some(GuidanceTokensDetails {
            prompt_tokens: firsts().map(|guided| guided.prompt_tokens).sum(),
            cached_tokens: firsts().filter_map(|guided| guided.cached_tokens).sum(),
            completion_tokens: answers
                .map(|(choice, guided)| guided.partners * choice.generated())
                .sum(),
        })
    }
}

/// The same where others have a say: the answer must fit after their prompts too.
fn with_partners(
    room: usize,
    partners: &Partners,
    max_tokens: Option<usize>,
) -> Result<usize, ApiError> {
    let theirs = partners.room();
    if theirs == 0 && max_tokens != Some(0) {
        let message = "`mix`: the prompt of an arm that has a say leaves no room for an answer.";
        return Err(ApiError::invalid("mix", message));
    }
    Ok(room.min(theirs))
}

/// How many tokens may be generated: the prompt must fit, the answer ends with the context.
pub(crate) fn fit(
    prompt: &Prompt,
    context: usize,
    max_tokens: Option<usize>,
    param: &'static str,
) -> Result<usize, ApiError> {
    let tokens = prompt.token_count();
    if tokens == 0 {
        return Err(ApiError::invalid(
            param,
            format!("`{param}` has no tokens to continue from."),
        ));
    }
    let room = max_tokens.map_or(1, |most| most.min(1));
    if tokens + room > context {
        let prefix = tokens - prompt.ids.len();
        return Err(ApiError::ContextLength {
            context,
            prompt: tokens,
            prefix,
            room,
            param,
        });
    }
    let left = context - tokens;
    Ok(max_tokens.map_or(left, |most| most.min(left)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use incant_engine::Prefix;

    fn room(prefix: usize, ids: usize, max_tokens: Option<usize>) -> Result<usize, ApiError> {
        let prefix = (prefix > 0).then(|| {
            Arc::new(Prefix {
                ids: vec![1; prefix],
            })
        });
        let prompt = Prompt {
            prefix,
            ids: vec![1; ids],
            text: String::new(),
            markers: Vec::new(),
        };
        fit(&prompt, 10, max_tokens, "prompt")
    }

    #[test]
    fn the_prompt_must_fit_and_the_answer_ends_with_the_context() {
        let table = [
            (0, 4, None, Ok(6)),
            (3, 4, None, Ok(3)),
            (0, 4, Some(2), Ok(2)),
            (0, 4, Some(100), Ok(6)),
            (0, 9, Some(100), Ok(1)),
            (0, 10, Some(0), Ok(0)),
            (0, 10, Some(1), Err(1)),
            (0, 10, None, Err(1)),
            (0, 11, Some(0), Err(0)),
            (7, 4, Some(0), Err(0)),
        ];
        for (prefix, ids, max_tokens, expected) in table {
            let refused = |room| ApiError::ContextLength {
                context: 10,
                prompt: prefix + ids,
                prefix,
                room,
                param: "prompt",
            };
            assert_eq!(
                room(prefix, ids, max_tokens),
                expected.map_err(refused),
                "{prefix} + {ids}, {max_tokens:?}"
            );
        }
    }

    #[test]
    fn there_must_be_something_to_continue_from() {
        assert!(matches!(
            room(0, 0, None),
            Err(ApiError::Invalid { param: Some(_), .. })
        ));
        assert_eq!(room(3, 0, None), Ok(7), "a profile alone will do");
    }
}

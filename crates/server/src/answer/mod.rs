//! Turns the engine's events into a response, whole or streamed as server-sent events.
//!
//! [`respond`] is the one path that chat and completions share. Each answer has a [`Choice`] that
//! turns its events into [`Piece`]s of text, [`Running`] interleaves the choices of a request, and
//! a [`Shape`] defines how an endpoint writes them. Nothing is sent before the first token, so an
//! earlier failure is a plain error with its status.

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

use super::controls::{Resolved, Stream};
use super::deadline::Deadline;
use super::errors::ApiError;
use super::metrics::Outcome;
use super::request::RequestContext;
use super::sse;
use incant_api::sse::Frames;
pub(crate) use incant_api::{GuidanceTokensDetails, Usage};
use incant_engine::{Event, FinishReason, GenerateRequest, Generation};
use incant_prompt::text::Tokenizer;
use incant_runtime::choice::{Choice, Echo, Entry, Piece};
use incant_runtime::guidance;
use incant_runtime::{Arm, Partners, Prompt};

pub(crate) use envelope::{Envelope, Shape};
pub(crate) use logprobs::{ChatLogprobs, CompletionLogprobs, Measured, Names};
pub(crate) use watch::Watch;

use envelope::Head;

/// The generation that one request asks for.
pub(crate) struct Plan {
    pub(crate) arm: Arm,
    /// Each is answered `controls.answers` times.
    pub(crate) prompts: Vec<Planned>,
    pub(crate) controls: Resolved,
    /// Report log-probabilities, with this number of alternatives.
    pub(crate) logprobs: Option<usize>,
    /// Share KV pages with no other request.
    pub(crate) isolated: bool,
    /// The token ids of the prompt, if the answer shall return them.
    pub(crate) prompt_token_ids: Option<Vec<u32>>,
    /// The request field that holds the prompt, for errors.
    pub(crate) param: &'static str,
    /// The profile that rendered the conversation, if any.
    pub(crate) profile: Option<String>,
}

/// One prompt of a plan.
pub(crate) struct Planned {
    pub(crate) prompt: Prompt,
    /// The prompt that precedes the answer's text, if the client asked for it (`echo`).
    pub(crate) echo: Option<Echo>,
    /// The guide and the other arms that shape the answers.
    pub(crate) partners: Partners,
    /// The ids of text that the answers may repeat; may be empty.
    pub(crate) prediction: Vec<u32>,
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) index: usize,
    pub(crate) text: String,
    /// All its tokens, including those without text.
    pub(crate) ids: Vec<u32>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) finish: FinishReason,
}

/// Runs the `plan` of the request `context` and writes the answers in `shape`.
pub(crate) async fn respond<S: Shape>(
    context: &RequestContext,
    mut plan: Plan,
    shape: S,
) -> Result<Response, ApiError> {
    let prompt_token_ids = plan.prompt_token_ids.take();
    let head = Head::new::<S>(plan.arm.full_id(), plan.profile.clone(), prompt_token_ids);
    let stream = plan.controls.stream;
    let mut running = Running::submit(context, plan)?;
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

/// A streamed answer.
struct Events<S> {
    /// The piece that `respond` awaited to know that there is an answer.
    first: Option<Piece>,
    running: Running,
    shape: S,
    head: Head,
    include_usage: bool,
    continuous_usage: bool,
}

impl<S: Shape> Events<S> {
    /// Returns the `usage` of a chunk that is not the last.
    fn usage(&self) -> Option<Option<Usage>> {
        match (self.continuous_usage, self.include_usage) {
            (true, _) => Some(Some(self.running.usage())),
            (false, true) => Some(None),
            (false, false) => None,
        }
    }

    /// Returns the next frames and the stream after them; without the latter they are the last.
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

/// Waits for the next event of one generation, and returns the generation with it.
fn step(index: usize, mut generation: Generation) -> Step {
    Box::pin(async move {
        let event = generation.next().await;
        (index, generation, event)
    })
}

/// A request's answers while they are generated. Dropping this cancels them all.
struct Running {
    choices: Vec<Choice<Tokenizer>>,
    /// The partners of each answer.
    guided: Vec<Guided>,
    steps: FuturesUnordered<Step>,
    answers_per_prompt: usize,
    deadline: Deadline,
    watch: Watch,
}

/// The guide and the other arms that shape one answer.
#[derive(Clone, Copy, Debug, Default)]
struct Guided {
    partners: usize,
    /// The tokens of their prompts.
    prompt_tokens: usize,
    /// Of these, tokens that were cached; known once the answer's first token has arrived.
    cached_tokens: Option<usize>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.watch.end(self.usage());
    }
}

impl Running {
    /// Submits all sequences to the engine, or none.
    fn submit(context: &RequestContext, plan: Plan) -> Result<Running, ApiError> {
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
            prediction,
        } in prompts
        {
            let max_tokens = fit(&prompt, arm.context(), controls.max_tokens, param)?;
            let max_tokens = with_partners(max_tokens, &partners, controls.max_tokens)?;
            prompt_tokens.push(prompt.token_count());
            let markers = partners.markers(&prompt);
            for index in 0..controls.answers {
                let request = GenerateRequest {
                    adapter: arm.adapter(),
                    prefix: prompt.prefix.clone(),
                    prompt: prompt.ids.clone(),
                    max_tokens,
                    end_tokens: controls.end_tokens.clone(),
                    sampling: controls.sampling.clone(),
                    index: index as u64,
                    logprobs,
                    prompt_logprobs: logprobs.filter(|_| echo.is_some()),
                    feeds: Vec::new(),
                    together: None,
                    isolated,
                    speculation: controls.speculation,
                    prediction: prediction.clone(),
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
        let generations = guidance::submit(context.client, sequences)?;
        let watch = context.watch(arm.id(), prompt_tokens, controls.answers);
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
            deadline: context.deadline(controls.timeout),
            watch,
        })
    }

    /// Returns the next piece of any answer; `None` after all have ended. After an error nothing
    /// more follows: dropping this cancels the answers that still run.
    async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        loop {
            let next = tokio::select! {
                // Events that are ready must not postpone the deadline.
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
                Err(failure) => return Some(Err(ApiError::Internal(failure.to_string()))),
                Ok(Some(piece)) => {
                    // An answer that a stop string ended is dropped here, which frees its slot.
                    if piece.finish.is_none() {
                        self.steps.push(step(index, generation));
                    }
                    return Some(Ok(piece));
                }
                Ok(None) => self.steps.push(step(index, generation)),
            }
        }
    }

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
        // A prompt's later answers find the tokens of its first one in the cache: only the first
        // tells how many the request reused.
        let cached_tokens = self
            .choices
            .iter()
            .step_by(self.answers_per_prompt)
            .map(Choice::cached)
            .sum();
        let usage = Usage::new(self.watch.prompt_tokens(), cached_tokens, completion_tokens);
        let drafts = self.choices.iter().map(Choice::drafts).reduce(Add::add);
        Usage {
            guidance_tokens_details: self.guidance_usage(),
            ..drafts.map_or(usage, |drafts| usage.with_drafts(drafts))
        }
    }

    /// Returns the tokens computed for guides and other arms; prompts are counted as for the
    /// answers themselves.
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

/// Limits `fitting` so that the answer also fits after the prompts of the partners.
fn with_partners(
    fitting: usize,
    partners: &Partners,
    max_tokens: Option<usize>,
) -> Result<usize, ApiError> {
    let theirs = partners.max_answer_tokens();
    if theirs == 0 && max_tokens != Some(0) {
        let message =
            "`mix`: the prompt of an arm that shapes the answer leaves no room for an answer.";
        return Err(ApiError::invalid("mix", message));
    }
    Ok(fitting.min(theirs))
}

/// Returns how many tokens may be generated. The prompt must fit; the answer ends with the context.
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
    let needed = max_tokens.map_or(1, |most| most.min(1));
    if tokens + needed > context {
        let prefix = tokens - prompt.ids.len();
        return Err(ApiError::ContextLength {
            context,
            prompt: tokens,
            prefix,
            needed,
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

    fn fitting(prefix: usize, ids: usize, max_tokens: Option<usize>) -> Result<usize, ApiError> {
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
            let refused = |needed| ApiError::ContextLength {
                context: 10,
                prompt: prefix + ids,
                prefix,
                needed,
                param: "prompt",
            };
            assert_eq!(
                fitting(prefix, ids, max_tokens),
                expected.map_err(refused),
                "{prefix} + {ids}, {max_tokens:?}"
            );
        }
    }

    #[test]
    fn there_must_be_something_to_continue_from() {
        assert!(matches!(
            fitting(0, 0, None),
            Err(ApiError::Invalid { param: Some(_), .. })
        ));
        assert_eq!(fitting(3, 0, None), Ok(7), "a profile alone will do");
    }
}

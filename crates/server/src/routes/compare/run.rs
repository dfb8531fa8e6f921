//! Runs a comparison and writes its response, whole or streamed.

use std::ops::Range;

use axum::Json;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;

use super::{CompareChunk, CompareEvent, CompareResponse, Plan, Question};
use crate::answer::{Usage, Watch};
use crate::controls::Stream;
use crate::deadline::Deadline;
use crate::errors::ApiError;
use crate::metrics::Outcome;
use crate::request::RequestContext;
use crate::sse;
use incant_api::sse::Frames;
use incant_compare::{Report, ReportArm, Settings};
use incant_engine::Event;
use incant_runtime::clock::unix_time;
use incant_runtime::{Comparison, Output, OutputPart, Transcript, finish};

/// Runs the `plan` of the request `context` and writes the response.
pub(super) async fn respond(context: &RequestContext, plan: Plan) -> Result<Response, ApiError> {
    let stream = plan.stream;
    let mut running = Running::begin(context, plan)?;
    match stream {
        Stream::No => {
            while running.next().await.transpose()?.is_some() {}
            Ok(Json(running.into_response()).into_response())
        }
        Stream::Events { .. } => {
            // Before the first event, an error is a response with its own status.
            let first = running.next().await.transpose()?;
            let mut frames = Frames::default();
            frames.push(&running.chunk(running.begins()));
            if let Some(event) = first {
                frames.push(&running.chunk(event));
            }
            let begun = (Some(frames), running);
            let rest = unfold(Some(begun), |state| async {
                let (begun, running) = state?;
                Some(match begun {
                    Some(frames) => (frames, Some((None, running))),
                    None => running.frames().await,
                })
            });
            Ok(sse::response(rest))
        }
    }
}

/// A running comparison. Dropping this cancels it.
struct Running {
    id: String,
    created: u64,
    arms: Vec<ReportArm>,
    settings: Settings,
    question: Question,
    comparison: Comparison,
    transcript: Transcript,
    /// One per arm.
    watches: Vec<Watch>,
    deadline: Deadline,
}

impl Drop for Running {
    fn drop(&mut self) {
        let answers = self.settings.n;
        for (arm, watch) in self.watches.iter().enumerate() {
            let answers = arm * answers..(arm + 1) * answers;
            watch.end(usage(&self.comparison, answers));
        }
    }
}

impl Running {
    /// Submits all sequences to the engines, or none.
    fn begin(context: &RequestContext, plan: Plan) -> Result<Running, ApiError> {
        let Settings {
            n,
            analysis,
            top_logprobs,
            ..
        } = plan.settings;
        let top = analysis.then_some(top_logprobs);
        let comparison = Comparison::begin(context.client, &plan.sides, n, top)?;
        let sides = plan.sides.iter();
        let watches = sides.clone().map(|side| {
            let prompt = side.prompt.token_count();
            context.watch(side.arm.id(), vec![prompt], n)
        });
        let is_chat = matches!(plan.question, Question::Messages(_));
        Ok(Running {
            id: format!("cmp-{:032x}", rand::random::<u128>()),
            created: unix_time(),
            arms: sides.map(|side| side.report_arm(is_chat)).collect(),
            settings: plan.settings,
            question: plan.question,
            comparison,
            transcript: Transcript::new(&plan.sides, n, analysis),
            watches: watches.collect(),
            deadline: context.deadline(plan.timeout),
        })
    }

    /// Returns the next event; `None` after the last.
    async fn next(&mut self) -> Option<Result<CompareEvent, ApiError>> {
        let answers = self.settings.n;
        let watches = &mut self.watches;
        let note = |answer: usize, event: &Event| {
            watches[answer / answers].note(answer % answers, event);
        };
        let next = tokio::select! {
            // Events that are ready must not postpone the deadline.
            biased;
            error = self.deadline.passed() => Some(Err((Outcome::TimedOut, error))),
            next = self.comparison.next(note) => next.map(|next| {
                next.map_err(|failure| (Outcome::Failed, ApiError::Internal(failure.to_string())))
            }),
        };
        match next {
            Some(Ok(output)) => {
                self.transcript.process(output.clone());
                Some(Ok(self.event(output)))
            }
            Some(Err((outcome, error))) => {
                self.note_outcome(outcome);
                Some(Err(error))
            }
            None => {
                self.note_outcome(Outcome::Finished);
                None
            }
        }
    }

    fn note_outcome(&mut self, outcome: Outcome) {
        for watch in &mut self.watches {
            watch.note_outcome(outcome);
        }
    }

    /// Converts a comparison's output to an event.
    fn event(&self, output: Output) -> CompareEvent {
        let (arm, index) = (
            output.answer / self.settings.n,
            output.answer % self.settings.n,
        );
        match output.part {
            OutputPart::Text(content) => CompareEvent::Delta {
                arm,
                index,
                content,
            },
            OutputPart::Tokens(tokens) => CompareEvent::Tokens { arm, index, tokens },
            OutputPart::End(reason, usage) => CompareEvent::End {
                arm,
                index,
                finish_reason: finish(reason),
                usage,
            },
        }
    }

    /// Returns the first event.
    fn begins(&self) -> CompareEvent {
        CompareEvent::Begin {
            arms: self.arms.clone(),
            settings: self.settings.clone(),
        }
    }

    fn chunk(&self, event: CompareEvent) -> CompareChunk {
        CompareChunk {
            id: self.id.clone(),
            object: "compare.chunk",
            created: self.created,
            event,
        }
    }

    /// Returns the next frames and the stream after them; without the latter they are the last.
    async fn frames(mut self) -> (Frames, Option<(Option<Frames>, Running)>) {
        let mut frames = Frames::default();
        match self.next().await {
            Some(Ok(event)) => {
                frames.push(&self.chunk(event));
                (frames, Some((None, self)))
            }
            Some(Err(error)) => {
                tracing::warn!("a stream broke off: {error}");
                frames.push(&error.body());
                (frames, None)
            }
            None => {
                let report = self.report();
                frames.push(&self.chunk(CompareEvent::Summary(report.summary)));
                frames.done();
                (frames, None)
            }
        }
    }

    fn into_response(mut self) -> CompareResponse {
        CompareResponse {
            id: self.id.clone(),
            object: "compare",
            report: self.report(),
        }
    }

    /// Returns the whole report, once the comparison has ended.
    fn report(&mut self) -> Report {
        let answers = std::mem::take(&mut self.transcript).into_answers();
        let prompts = vec![self.question.clone().into_prompt(answers)];
        Report::new(
            self.created,
            self.settings.clone(),
            self.arms.clone(),
            prompts,
        )
    }
}

/// Returns the usage of one arm's answers so far: the prompt counts once, and only its first answer
/// tells how many tokens were reused.
fn usage(comparison: &Comparison, answers: Range<usize>) -> Usage {
    let first = comparison.usage(answers.start);
    let generated = answers.map(|answer| comparison.usage(answer).completion_tokens);
    let cached = first.prompt_tokens_details.cached_tokens;
    Usage::new(first.prompt_tokens, cached, generated.sum())
}

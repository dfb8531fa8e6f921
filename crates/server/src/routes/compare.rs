//! `POST /v1/compare`: several arms answer the same prompt, side by side.

mod run;

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chat::{ChatMessage, conversation};
use run::respond;

use crate::answer::fit;
use crate::controls::{Controls, Limits, Resolved, Stream, in_range};
use crate::errors::ApiError;
use crate::fields::{BoundedList, Object, integer};
use crate::ranges::TOP_LOGPROBS;
use crate::request::{Post, RequestContext};
use crate::unsupported;
use incant_api::FinishReason;
use incant_compare::{self as analyze, Report, ReportArm, Settings, Summary, Token, Usage};
use incant_gguf::printable::excerpt;
use incant_prompt::profile::{Message, SamplingDefaults};
use incant_prompt::text::Cancel;
use incant_runtime::{
    Arm, GuidanceOptions, Partners, Prompt, PromptBounds, PromptInput, Runtime, Side,
    default_reference, max_answer_tokens,
};
use incant_sample::fresh_seed;

/// The maximum number of arms per comparison.
const MAX_ARMS: usize = 16;

/// The default number of alternatives per token.
const DEFAULT_TOP_LOGPROBS: usize = 10;

/// The default of `max_tokens`: a base model seldom ends by itself.
const DEFAULT_MAX_TOKENS: usize = 256;

/// Seeds are below this, so that JavaScript can represent them.
const SEEDS: u64 = 1 << 53;

/// One prompt for several arms.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct CompareRequest {
    /// The arms that answer, of any served models. An arm may be listed twice, and have guidance of
    /// its own: `ID guidance=0.5`.
    #[schemars(length(min = 1, max = MAX_ARMS))]
    arms: BoundedList<String, MAX_ARMS>,
    /// A conversation, which each arm renders in its own way. Either this or `prompt` is required.
    messages: Option<Vec<Object<ChatMessage>>>,
    /// A text that each arm continues verbatim, after its profile's text if its id names one.
    prompt: Option<String>,
    /// The arm of `arms` that shift is measured against: by default an arm with `@turn` if there is
    /// one, else the first.
    reference: Option<String>,
    /// Score each token under the other arms with the same tokenizer.
    analysis: Option<bool>,
    /// The number of alternatives to report for each token; 10 by default.
    #[serde(default, deserialize_with = "integer::option")]
    #[schemars(range(min = TOP_LOGPROBS.min, max = TOP_LOGPROBS.max))]
    top_logprobs: Option<i64>,
}

/// A whole comparison.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CompareResponse {
    id: String,
    /// Always `compare`.
    object: &'static str,
    #[serde(flatten)]
    report: Report,
}

/// An event of a comparison's stream.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct CompareChunk {
    /// The id of the comparison, the same in every event of a stream.
    id: String,
    /// Always `compare.chunk`.
    object: &'static str,
    /// When the comparison was begun, in seconds since 1970 (Unix time).
    created: u64,
    #[serde(flatten)]
    event: CompareEvent,
}

/// The content of an event.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum CompareEvent {
    /// The first event: the arms and the settings of the comparison.
    Begin {
        arms: Vec<ReportArm>,
        settings: Settings,
    },
    /// More of an answer's text.
    Delta {
        arm: usize,
        index: usize,
        content: String,
    },
    /// An answer's next tokens with all their scores; sent only with `analysis`.
    Tokens {
        arm: usize,
        index: usize,
        tokens: Vec<Token>,
    },
    /// An answer has ended. Its last tokens may follow.
    End {
        arm: usize,
        index: usize,
        finish_reason: FinishReason,
        usage: Usage,
    },
    /// The last event; null without `analysis`.
    Summary(Option<Summary>),
}

pub(crate) async fn compare(post: Post) -> Result<Response, ApiError> {
    let read = post.read(|fields| {
        let request: CompareRequest = fields.view()?;
        let controls: Controls = fields.view()?;
        unsupported::refuse(fields, unsupported::EVERYWHERE)?;
        unsupported::refuse(fields, unsupported::CHAT)?;
        unsupported::refuse(fields, unsupported::COMPARE)?;
        Ok((request, controls))
    });
    let ((request, controls), mut context) = read.await?;
    let arms = arms(&context, &request.arms.0)?;
    let reference = reference(&request, &arms)?;
    let top = in_range("top_logprobs", request.top_logprobs, TOP_LOGPROBS)?;
    let analysis = request.analysis.unwrap_or(false);
    let top = top.map_or(DEFAULT_TOP_LOGPROBS, |top| top as usize);
    // Checked before prompts are made: a small body can ask for many sequences.
    let answers = controls.answers()?;
    let judges = if analysis { arms.len() } else { 1 };
    let sequences = arms.len().saturating_mul(answers).saturating_mul(judges);
    arms[0]
        .check_capacity(sequences)
        .map_err(|error| ApiError::too_many_answers(error, answers, "arms"))?;
    let app = Arc::clone(&context.app);
    let timeout = controls.timeout()?;
    let plan = move |cancel: &Cancel| {
        let question = Question::read(request.messages, request.prompt)?;
        let arms = question.of_arms(arms);
        let samplers = controls.samplers();
        let resolved = resolve(controls, &arms)?;
        let bounds = PromptBounds {
            must_fit: true,
            cancel: cancel.clone(),
        };
        let prompts = arms
            .iter()
            .map(|arm| question.read_by(&app.runtime, arm, &bounds));
        let prompts = prompts.collect::<Result<_, ApiError>>()?;
        let sides = sides(arms, prompts, &resolved, analysis, question.param())?;
        let first = &resolved[0];
        let sampling = &sides[0].sampling;
        let settings = Settings {
            reference,
            seed: sampling.seed.unwrap_or_default(),
            temperature: vec![sampling.temperature],
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            min_p: sampling.min_p,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            repetition_penalty: sampling.repetition_penalty,
            samplers,
            max_tokens: first.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS),
            n: answers,
            analysis,
            top_logprobs: top,
            command: None,
        };
        Ok(Plan {
            sides,
            question,
            settings,
            timeout: first.timeout,
            stream: first.stream,
        })
    };
    let plan = context.plan(timeout, plan).await?;
    respond(&context, plan).await
}

/// The generation that one comparison asks for.
struct Plan {
    sides: Vec<Side>,
    question: Question,
    settings: Settings,
    timeout: Option<Duration>,
    stream: Stream,
}

/// Returns the arms with these ids.
fn arms(context: &RequestContext, ids: &[String]) -> Result<Vec<Arm>, ApiError> {
    if !(1..=MAX_ARMS).contains(&ids.len()) {
        let message = format!("`arms` must name 1 to {MAX_ARMS} arms.");
        return Err(ApiError::invalid("arms", message));
    }
    ids.iter().map(|id| context.arm(id)).collect()
}

/// Returns the position of the arm that shift is measured against.
fn reference(request: &CompareRequest, arms: &[Arm]) -> Result<usize, ApiError> {
    match &request.reference {
        Some(id) => arms
            .iter()
            .zip(&request.arms.0)
            .position(|(arm, asked)| asked == id || arm.full_id() == *id)
            .ok_or_else(|| {
                let id = excerpt(id);
                let message = format!("`reference` is '{id}', which is not among `arms`.");
                ApiError::invalid("reference", message)
            }),
        None => Ok(default_reference(arms)),
    }
}

/// The prompt of a comparison.
#[derive(Clone)]
enum Question {
    Messages(Vec<Message>),
    Text(String),
}

impl Question {
    fn read(
        messages: Option<Vec<Object<ChatMessage>>>,
        prompt: Option<String>,
    ) -> Result<Question, ApiError> {
        match (messages, prompt) {
            (Some(messages), None) => Ok(Question::Messages(conversation(messages)?)),
            (None, Some(text)) => Ok(Question::Text(text)),
            (None, None) => {
                let message = "Either `messages` or `prompt` is required.";
                Err(ApiError::invalid("messages", message))
            }
            (Some(_), Some(_)) => {
                let message = "`messages` and `prompt` cannot both be given.";
                Err(ApiError::invalid("prompt", message))
            }
        }
    }

    /// Returns the request field that holds it.
    fn param(&self) -> &'static str {
        match self {
            Question::Messages(_) => "messages",
            Question::Text(_) => "prompt",
        }
    }

    /// Returns the arms as they answer it.
    fn of_arms(&self, arms: Vec<Arm>) -> Vec<Arm> {
        match self {
            Question::Messages(messages) => {
                let arms = arms.iter();
                arms.map(|arm| arm.for_conversation(messages)).collect()
            }
            Question::Text(_) => arms,
        }
    }

    /// Returns the prompt as an arm reads it, and as the partners that shape its answers read it.
    fn read_by(
        &self,
        runtime: &Runtime,
        arm: &Arm,
        bounds: &PromptBounds,
    ) -> Result<(Prompt, Partners), ApiError> {
        let options = GuidanceOptions::default();
        let refused = |error| ApiError::from_prompt_error(error, self.param());
        let (prompt, partners) = match self {
            Question::Messages(messages) => {
                let prompt = arm.chat_within(messages, bounds).map_err(refused)?;
                let guidance = arm.guidance_for_chat(runtime, &options)?;
                (prompt, guidance.partners_for_chat(arm, messages, bounds)?)
            }
            Question::Text(text) => {
                let input = PromptInput::Text(text.clone());
                let prompt = arm.completion_within(&input, bounds).map_err(refused)?;
                let guidance = arm.guidance_for_completion(runtime, &options)?;
                (
                    prompt,
                    guidance.partners_for_completion(arm, &input, bounds)?,
                )
            }
        };
        Ok((prompt, partners.reporting_own_logprobs()))
    }

    fn into_prompt(self, answers: Vec<analyze::Answer>) -> analyze::Prompt {
        let (messages, prompt) = match self {
            Question::Messages(messages) => (Some(messages), None),
            Question::Text(text) => (None, Some(text)),
        };
        analyze::Prompt {
            messages,
            prompt,
            answers,
        }
    }
}

/// Resolves the parameters of each arm. They are the same for all, so that answers differ by the
/// arm alone: a profile's defaults do not apply.
fn resolve(controls: Controls, arms: &[Arm]) -> Result<Vec<Resolved>, ApiError> {
    let defaults = SamplingDefaults {
        temperature: Some(0.0),
        ..SamplingDefaults::default()
    };
    let limits = Limits {
        least_tokens: 1,
        default_tokens: Some(DEFAULT_MAX_TOKENS),
    };
    let resolved = arms
        .iter()
        .map(|arm| controls.clone().resolve(arm, &defaults, limits));
    let mut resolved: Vec<Resolved> = resolved.collect::<Result<_, _>>()?;
    let drawn = fresh_seed() % SEEDS;
    for resolved in &mut resolved {
        resolved.sampling.seed.get_or_insert(drawn);
    }
    Ok(resolved)
}

fn sides(
    arms: Vec<Arm>,
    prompts: Vec<(Prompt, Partners)>,
    resolved: &[Resolved],
    analysis: bool,
    param: &'static str,
) -> Result<Vec<Side>, ApiError> {
    let (prompts, partners): (Vec<Prompt>, Vec<Partners>) = prompts.into_iter().unzip();
    let sides = arms.iter().zip(&prompts);
    let limits =
        sides
            .clone()
            .zip(resolved)
            .zip(&partners)
            .map(|(((arm, prompt), resolved), partners)| {
                let own = fit(prompt, arm.context(), resolved.max_tokens, param)?;
                let own = own.min(partners.max_answer_tokens());
                // The other arms that score the answer must have room for it too.
                let judges = sides
                    .clone()
                    .filter(|(other, _)| analysis && arm.shares_tokens(other));
                Ok(own.min(max_answer_tokens(judges)))
            });
    let limits: Vec<usize> = limits.collect::<Result<_, ApiError>>()?;
    let sides = arms.into_iter().zip(prompts).zip(resolved);
    let sides = sides.zip(limits.into_iter().zip(partners));
    let sides = sides.map(|(((arm, prompt), resolved), (max_tokens, partners))| Side {
        arm,
        prompt,
        sampling: resolved.sampling.clone(),
        max_tokens,
        end_tokens: resolved.end_tokens.clone(),
        stop: resolved.stop.clone(),
        partners,
    });
    Ok(sides.collect())
}

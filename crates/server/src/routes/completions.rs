//! `POST /v1/completions`: text completions of a verbatim prompt.

mod prompts;

use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use incant_api::FinishReason;
use incant_runtime::finish;
use prompts::{PromptField, inputs, prompt_schema};

use crate::answer::{Answer, CompletionLogprobs, Measured, Names, Plan, Planned, Shape, respond};
use crate::controls::{Controls, Limits, check_ids, in_range};
use crate::errors::ApiError;
use crate::extras::Extras;
use crate::fields::integer;
use crate::guidance::GuidanceFields;
use crate::ranges::LOGPROBS;
use crate::request::Post;
use crate::unsupported;
use incant_prompt::profile::SamplingDefaults;
use incant_prompt::text::{Cancel, Tokenizer};
use incant_runtime::choice::{Echo, Entry, Piece, Vocabulary};
use incant_runtime::{Arm, Prompt, PromptBounds, PromptInput, ResolvedGuidance};

/// The default of `max_tokens`, as in OpenAI's API.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A text to continue.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct CompletionRequest {
    /// The arm that answers. `MODEL` is the raw model; with `@PROFILE` it continues right after the
    /// profile's text.
    model: String,
    /// A text, a list of texts, a list of token ids, or a list of such lists.
    #[schemars(schema_with = "prompt_schema")]
    prompt: PromptField,
    /// Report log-probabilities, with this number of alternatives per token.
    #[serde(default, deserialize_with = "integer::option")]
    #[schemars(range(min = LOGPROBS.min, max = LOGPROBS.max))]
    logprobs: Option<i64>,
    /// Begin the answer with the prompt; with `logprobs`, its tokens are scored too.
    echo: Option<bool>,
    /// Only the value of `n` is accepted: all answers are returned.
    #[serde(default, deserialize_with = "integer::option")]
    best_of: Option<i64>,
    /// Begin a text prompt with BOS if the model expects it; true by default.
    add_special_tokens: Option<bool>,
}

/// Continues texts.
pub(crate) async fn completions(post: Post) -> Result<Response, ApiError> {
    let read = post.read(|fields| {
        let request: CompletionRequest = fields.view()?;
        let controls: Controls = fields.view()?;
        let extras: Extras = fields.view()?;
        let guidance: GuidanceFields = fields.view()?;
        unsupported::refuse(fields, unsupported::EVERYWHERE)?;
        unsupported::refuse(fields, unsupported::COMPLETIONS)?;
        Ok((request, controls, extras, guidance))
    });
    let ((request, controls, extras, guidance), mut context) = read.await?;
    let logprobs = in_range("logprobs", request.logprobs, LOGPROBS)?.map(|top| top as usize);
    let arm = context.arm(&request.model)?;
    // Checked before prompts are made: a small body can ask for millions of answers.
    let answers = controls.answers()?;
    let inputs = inputs(request.prompt, |count| {
        arm.check_capacity(count.saturating_mul(answers))
            .map_err(|error| ApiError::too_many_answers(error, answers, "prompt"))
    })?;
    extras.check(arm.context())?;
    let echo = request.echo.unwrap_or(false);
    let guidance = arm.guidance_for_completion(&context.app.runtime, &guidance.options())?;
    if guidance.is_requested() && echo && logprobs.is_some() {
        let message = "`echo` with `logprobs` scores the prompt by the arm alone: it cannot be \
            asked for together with `guidance` or `mix`.";
        return Err(ApiError::invalid("echo", message));
    }
    let limits = Limits {
        least_tokens: 0,
        default_tokens: Some(DEFAULT_MAX_TOKENS),
    };
    let max_tokens = controls.requested_tokens(limits)?.or(limits.default_tokens);
    let timeout = controls.timeout()?;
    let add_special = request.add_special_tokens.unwrap_or(true);
    let best_of = request.best_of;
    let plan = move |cancel: &Cancel| {
        let builder = PromptBuilder {
            arm: &arm,
            guidance: &guidance,
            extras: &extras,
            max_tokens,
            add_special,
            echo,
            bounds: PromptBounds {
                must_fit: !extras.truncates(),
                cancel: cancel.clone(),
            },
        };
        let prompts = inputs.into_iter().map(|input| builder.planned(input));
        let prompts: Vec<Planned> = prompts.collect::<Result<_, ApiError>>()?;
        // A profile sets the defaults of the raw model only if its text comes first.
        let profile = prompts
            .iter()
            .any(|planned| planned.prompt.prefix.is_some());
        let none = SamplingDefaults::default();
        let defaults = if profile {
            arm.completion_defaults()
        } else {
            &none
        };
        let controls = controls.resolve(&arm, defaults, limits)?;
        for planned in &prompts {
            check_max_tokens(&planned.prompt, arm.context(), controls.requested_tokens)?;
        }
        if best_of.is_some_and(|best_of| best_of != controls.answers as i64) {
            let message =
                "`best_of` can only be what `n` is: incant gives every answer it generates.";
            return Err(ApiError::invalid("best_of", message));
        }
        let shape = Completions {
            logprobs: logprobs.is_some(),
            names: Names::new(extras.names_by_ids()),
            token_ids: extras.token_ids().then(|| TokenIds {
                prompts: prompts
                    .iter()
                    .map(|planned| planned.prompt.all_ids())
                    .collect(),
                answers: controls.answers,
            }),
            measured: prompts
                .first()
                .and_then(|planned| Measured::of(&planned.partners)),
        };
        let plan = Plan {
            arm,
            prompts,
            controls,
            logprobs,
            isolated: extras.isolated(),
            prompt_token_ids: None,
            param: "prompt",
            profile: None,
        };
        Ok((plan, shape))
    };
    let (plan, shape) = context.plan(timeout, plan).await?;
    respond(&context, plan, shape).await
}

/// Refuses `max_tokens` beyond the context's end: the answer would be shorter than requested
/// without any explanation.
fn check_max_tokens(prompt: &Prompt, context: usize, asked: Option<usize>) -> Result<(), ApiError> {
    let tokens = prompt.token_count();
    match asked {
        // A prompt that is too long by itself has its own error.
        Some(asked) if tokens < context && asked > context - tokens => {
            Err(ApiError::ContextLength {
                context,
                prompt: tokens,
                prefix: tokens - prompt.ids.len(),
                needed: asked,
                param: "max_tokens",
            })
        }
        _ => Ok(()),
    }
}

/// Turns inputs into prompts that are ready to run.
struct PromptBuilder<'a> {
    arm: &'a Arm,
    guidance: &'a ResolvedGuidance,
    extras: &'a Extras,
    /// The maximum number of tokens of an answer.
    max_tokens: Option<usize>,
    /// Whether text prompts get a BOS, if the model expects it.
    add_special: bool,
    /// Whether the answer begins with the prompt.
    echo: bool,
    /// Bounds of the prompts that are worth encoding.
    bounds: PromptBounds,
}

impl PromptBuilder<'_> {
    fn planned(&self, input: PromptInput) -> Result<Planned, ApiError> {
        let PromptBuilder { arm, bounds, .. } = self;
        let tokenizer = arm.tokenizer();
        if let PromptInput::Tokens(ids) = &input {
            check_ids("prompt", ids, tokenizer.vocab_size())?;
        }
        let prompt = match &input {
            PromptInput::Text(text) if !self.add_special => {
                let ids = arm.encode_within(text, bounds);
                ids.map(|ids| arm.completion(&PromptInput::Tokens(ids)))
            }
            input => arm.completion_within(input, bounds),
        };
        let mut prompt = prompt.map_err(|error| ApiError::from_prompt_error(error, "prompt"))?;
        self.truncate(arm, &mut prompt);
        let echo = self.echo.then(|| echoed(tokenizer, &prompt, &input));
        let mut partners = self.guidance.partners_for_completion(arm, &input, bounds)?;
        for partner in &mut partners.partners {
            self.truncate(&partner.arm, &mut partner.prompt);
        }
        Ok(Planned {
            prompt,
            echo,
            partners,
            prediction: Vec::new(),
        })
    }

    fn truncate(&self, arm: &Arm, prompt: &mut Prompt) {
        self.extras.truncate(prompt, arm.context(), self.max_tokens);
    }
}

/// Returns the prompt's tokens with their texts. A BOS that the client did not write, and the space
/// that some tokenizers put before a text, are left out: the joined tokens are exactly what the
/// client sent.
fn echoed(tokenizer: &Tokenizer, prompt: &Prompt, input: &PromptInput) -> Echo {
    let mut tokens: Vec<(u32, Vec<u8>)> = prompt
        .ids
        .iter()
        .map(|id| (*id, tokenizer.display_bytes(*id).to_vec()))
        .collect();
    if let PromptInput::Text(text) = input {
        strip_added(&mut tokens, text.as_bytes());
    }
    Echo(tokens)
}

/// Cuts from the first tokens the bytes before `text`, if the joined tokens end with it.
fn strip_added(tokens: &mut [(u32, Vec<u8>)], text: &[u8]) {
    let joined: Vec<u8> = tokens
        .iter()
        .flat_map(|(_, bytes)| bytes)
        .copied()
        .collect();
    let mut added = if joined.ends_with(text) {
        joined.len() - text.len()
    } else {
        0
    };
    for (_, bytes) in tokens {
        let cut = added.min(bytes.len());
        bytes.drain(..cut);
        added -= cut;
    }
}

/// The format of completions' answers.
struct Completions {
    /// Whether to report log-probabilities.
    logprobs: bool,
    /// How their tokens are written.
    names: Names,
    /// The token ids to report, if requested.
    token_ids: Option<TokenIds>,
    /// The distribution that log-probabilities are taken from.
    measured: Option<Measured>,
}

/// The tokens of a request's prompts.
struct TokenIds {
    prompts: Vec<Vec<u32>>,
    /// The number of answers per prompt.
    answers: usize,
}

impl Completions {
    /// Returns the tokens of the prompt of answer number `index`, if requested.
    fn prompt_token_ids(&self, index: usize) -> Option<Vec<u32>> {
        let of = self.token_ids.as_ref()?;
        of.prompts.get(index / of.answers).cloned()
    }

    /// Returns the log-probabilities of some tokens, if requested.
    fn logprobs(&self, entries: Vec<Entry>) -> Option<CompletionLogprobs> {
        self.logprobs
            .then(|| CompletionLogprobs::new(entries, self.names, self.measured))
    }
}

/// An answer, or a part of one.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Completion")]
pub(crate) struct CompletionChoice {
    /// The prompt's position in the list times `n`, plus the answer's number.
    index: usize,
    text: String,
    /// Null unless requested.
    logprobs: Option<CompletionLogprobs>,
    /// Null in all but an answer's last chunk.
    finish_reason: Option<FinishReason>,
    /// The ids of the prompt's tokens, in an answer's first chunk; absent unless requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    /// The ids of the tokens, including those without text; absent unless requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

impl Shape for Completions {
    const ID: &'static str = "cmpl-";
    const OBJECT: &'static str = "text_completion";
    const CHUNK: &'static str = "text_completion";
    type Choice = CompletionChoice;
    type Delta = CompletionChoice;

    fn answer(&self, answer: Answer) -> CompletionChoice {
        CompletionChoice {
            index: answer.index,
            text: answer.text,
            logprobs: self.logprobs(answer.entries),
            finish_reason: Some(finish(answer.finish)),
            prompt_token_ids: self.prompt_token_ids(answer.index),
            token_ids: self.token_ids.is_some().then_some(answer.ids),
        }
    }

    fn chunks(&self, piece: Piece) -> Vec<CompletionChoice> {
        let index = piece.index;
        let opening = piece.opens.then(|| self.prompt_token_ids(index));
        let mut prompt_token_ids = opening.flatten();
        let mut token_ids = self.token_ids.is_some().then_some(piece.ids);
        let mut chunk = |text, logprobs, finish_reason| CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason,
            prompt_token_ids: prompt_token_ids.take(),
            token_ids: token_ids.take(),
        };
        let mut chunks = Vec::new();
        let mut entries = piece.entries;
        // Requested ids do not wait for text.
        let tells_ids = self.token_ids.is_some() && piece.finish.is_none();
        if !piece.text.is_empty() || tells_ids {
            let logprobs = if piece.text.is_empty() {
                None
            } else {
                self.logprobs(std::mem::take(&mut entries))
            };
            chunks.push(chunk(piece.text, logprobs, None));
        }
        if let Some(reason) = piece.finish {
            // Only tokens without text are left: the end token, if it arrived alone.
            let logprobs = if entries.is_empty() {
                None
            } else {
                self.logprobs(entries)
            };
            chunks.push(chunk(String::new(), logprobs, Some(finish(reason))));
        }
        chunks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(tokens: &[&str], text: &str) -> Vec<String> {
        let mut tokens: Vec<(u32, Vec<u8>)> = tokens
            .iter()
            .map(|token| (0, token.as_bytes().to_vec()))
            .collect();
        strip_added(&mut tokens, text.as_bytes());
        tokens
            .into_iter()
            .map(|(_, bytes)| String::from_utf8(bytes).unwrap())
            .collect()
    }

    #[test]
    fn what_the_tokenizer_put_before_a_text_is_not_shown() {
        assert_eq!(stripped(&["Hi", " you"], "Hi you"), ["Hi", " you"]);
        assert_eq!(
            stripped(&["<s>", "Hi", " you"], "Hi you"),
            ["", "Hi", " you"],
            "BOS"
        );
        assert_eq!(stripped(&["<s>", " Hi"], "Hi"), ["", "Hi"], "and a space");
        assert_eq!(
            stripped(&["<s>", "<s>", "Hi"], "<s>Hi"),
            ["", "<s>", "Hi"],
            "the client wrote one too"
        );
        assert_eq!(stripped(&["<s>"], ""), [""]);
        assert_eq!(
            stripped(&["<s>", "other"], "text"),
            ["<s>", "other"],
            "a tokenizer that changes texts"
        );
    }
}

//! `POST /v1/chat/completions`: chat completions.

use std::sync::Arc;

use axum::response::Response;
use schemars::JsonSchema;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as UnknownWord, StringDeserializer};
use serde::{Deserialize, Deserializer, Serialize};

use crate::answer::{Answer, ChatLogprobs, Measured, Names, Plan, Planned, Shape, respond};
use crate::controls::{Controls, Limits, in_range};
use crate::errors::ApiError;
use crate::extras::Extras;
use crate::fields::{Object, Skipped, StringOr, integer};
use crate::guidance::GuidanceFields;
use crate::ranges::TOP_LOGPROBS;
use crate::request::Post;
use crate::unsupported;
use incant_api::FinishReason;
use incant_prompt::profile::{Message, Role};
use incant_prompt::text::Cancel;
use incant_runtime::choice::{Entry, Piece};
use incant_runtime::{Partner, PromptBounds, finish};

/// A conversation to continue.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct ChatRequest {
    /// The arm that answers.
    model: String,
    /// The conversation so far.
    #[schemars(length(min = 1))]
    messages: Vec<Object<ChatMessage>>,
    /// Report the log-probability of every token.
    logprobs: Option<bool>,
    /// The number of alternatives to report for each token.
    #[serde(default, deserialize_with = "integer::option")]
    #[schemars(range(min = TOP_LOGPROBS.min, max = TOP_LOGPROBS.max))]
    top_logprobs: Option<i64>,
    /// Predicted output: text that the answer is likely to repeat, such as a file to be edited.
    /// The answer is the same without it, but takes longer.
    prediction: Option<Object<Prediction>>,
}

/// Text that the answer is likely to repeat.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Prediction {
    /// Always `content`.
    #[serde(rename = "type", deserialize_with = "is_content")]
    #[schemars(with = "String", extend("const" = "content"))]
    is_content: bool,
    /// A text, or a list of parts which are joined by line breaks.
    #[schemars(required)]
    content: Option<StringOr<Vec<Object<Part>>>>,
}

/// One message.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct ChatMessage {
    #[serde(deserialize_with = "role")]
    role: ChatRole,
    /// A text, or a list of parts which are joined by line breaks.
    #[schemars(required)]
    content: Option<StringOr<Vec<Object<Part>>>>,
    /// Not supported: a message with one is refused.
    #[schemars(skip)]
    tool_calls: Option<Skipped>,
    /// Not supported: a message with one is refused.
    #[schemars(skip)]
    function_call: Option<Skipped>,
}

/// The author of a message.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ChatRole {
    System,
    Developer,
    User,
    Assistant,
    #[schemars(skip)]
    Tool,
    #[schemars(skip)]
    Function,
}

/// A part of a message's content.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub(crate) struct Part {
    /// Always `text`.
    #[serde(rename = "type", deserialize_with = "is_text")]
    #[schemars(with = "String", extend("const" = "text"))]
    is_text: bool,
    /// The text.
    #[schemars(required)]
    text: Option<String>,
}

/// Reads a role from a string: serde by itself would also accept an object with the role as its
/// key.
fn role<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ChatRole, D::Error> {
    let word: StringDeserializer<UnknownWord> =
        String::deserialize(deserializer)?.into_deserializer();
    ChatRole::deserialize(word).map_err(serde::de::Error::custom)
}

/// Returns whether a string is `text`.
fn is_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    String::deserialize(deserializer).map(|word| word == "text")
}

/// Returns whether a string is `content`.
fn is_content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    String::deserialize(deserializer).map(|word| word == "content")
}

/// Answers a conversation.
pub(crate) async fn chat(post: Post) -> Result<Response, ApiError> {
    let read = post.read(|fields| {
        let request: ChatRequest = fields.view()?;
        let controls: Controls = fields.view()?;
        let extras: Extras = fields.view()?;
        let guidance: GuidanceFields = fields.view()?;
        unsupported::refuse(fields, unsupported::EVERYWHERE)?;
        unsupported::refuse(fields, unsupported::CHAT)?;
        Ok((request, controls, extras, guidance))
    });
    let ((request, controls, extras, guidance), mut context) = read.await?;
    let logprobs = alternatives(request.logprobs, request.top_logprobs)?;
    let arm = context.arm(&request.model)?;
    let app = Arc::clone(&context.app);
    let timeout = controls.timeout()?;
    let plan = move |cancel: &Cancel| {
        let messages = conversation(request.messages)?;
        let arm = arm.for_conversation(&messages);
        let limits = Limits {
            least_tokens: 1,
            default_tokens: None,
        };
        let controls = controls.resolve(&arm, arm.defaults(), limits)?;
        let guidance = arm.guidance_for_chat(&app.runtime, &guidance.options())?;
        extras.check(arm.context())?;
        let bounds = PromptBounds {
            must_fit: !extras.truncates(),
            cancel: cancel.clone(),
        };
        let prompt = arm.chat_within(&messages, &bounds);
        let mut prompt = prompt.map_err(|error| ApiError::from_prompt_error(error, "messages"))?;
        let mut partners = guidance.partners_for_chat(&arm, &messages, &bounds)?;
        extras.truncate(&mut prompt, arm.context(), controls.max_tokens);
        for Partner { arm, prompt, .. } in &mut partners.partners {
            extras.truncate(prompt, arm.context(), controls.max_tokens);
        }
        let shape = Chat {
            logprobs: logprobs.is_some(),
            names: Names::new(extras.names_by_ids()),
            token_ids: extras.token_ids(),
            measured: Measured::of(&partners),
        };
        let prediction = match request.prediction {
            Some(Object(prediction)) => {
                let text = predicted(prediction)?;
                let ids = arm.encode_prediction(&text, cancel);
                ids.map_err(|error| ApiError::from_prompt_error(error, "prediction"))?
            }
            None => Vec::new(),
        };
        let prompt_token_ids = extras.token_ids().then(|| prompt.all_ids());
        let prompts = vec![Planned {
            prompt,
            echo: None,
            partners,
            prediction,
        }];
        let plan = Plan {
            profile: arm.profile_name().map(str::to_owned),
            arm,
            prompts,
            controls,
            logprobs,
            isolated: extras.isolated(),
            prompt_token_ids,
            param: "messages",
        };
        Ok((plan, shape))
    };
    let (plan, shape) = context.plan(timeout, plan).await?;
    respond(&context, plan, shape).await
}

/// Returns how many alternatives to report; `None` reports no log-probabilities.
fn alternatives(logprobs: Option<bool>, top: Option<i64>) -> Result<Option<usize>, ApiError> {
    let top = in_range("top_logprobs", top, TOP_LOGPROBS)?.unwrap_or(0) as usize;
    if logprobs.unwrap_or(false) {
        Ok(Some(top))
    } else if top > 0 {
        Err(ApiError::invalid(
            "top_logprobs",
            "`top_logprobs` needs `logprobs` to be true.",
        ))
    } else {
        Ok(None)
    }
}

pub(crate) fn conversation(messages: Vec<Object<ChatMessage>>) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid(
            "messages",
            "`messages` must hold at least one message.",
        ));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(at, Object(message))| read(at, message))
        .collect()
}

fn read(at: usize, message: ChatMessage) -> Result<Message, ApiError> {
    let refuse = |field: &str, why: &str| {
        let param = format!("messages[{at}].{field}");
        Err(ApiError::invalid(param.clone(), format!("`{param}` {why}")))
    };
    let role = match message.role {
        ChatRole::System | ChatRole::Developer => Role::System,
        ChatRole::User => Role::User,
        ChatRole::Assistant => Role::Assistant,
        ChatRole::Tool | ChatRole::Function => {
            return refuse(
                "role",
                "cannot be `tool` or `function`: incant has no tool calls.",
            );
        }
    };
    let calls = [
        ("tool_calls", message.tool_calls),
        ("function_call", message.function_call),
    ];
    for (field, value) in calls {
        if value.is_some_and(|value| !value.is_empty_list) {
            return refuse(field, "is not supported: incant has no tool calls.");
        }
    }
    let content = text_of(message.content, &format!("messages[{at}].content"))?;
    Ok(Message { role, content })
}

/// Returns the text that the answer is likely to repeat.
fn predicted(prediction: Prediction) -> Result<String, ApiError> {
    if !prediction.is_content {
        return Err(ApiError::invalid(
            "prediction.type",
            "`prediction.type` can only be `content`.",
        ));
    }
    text_of(prediction.content, "prediction.content")
}

/// Joins the parts of the content of field `param`.
fn text_of(content: Option<StringOr<Vec<Object<Part>>>>, param: &str) -> Result<String, ApiError> {
    let refuse = |param: String, why: &str| {
        Err(ApiError::invalid(param.clone(), format!("`{param}` {why}")))
    };
    match content {
        None => refuse(param.to_owned(), "is required."),
        Some(StringOr::Text(text)) => Ok(text),
        Some(StringOr::List(parts)) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (at, Object(part)) in parts.into_iter().enumerate() {
                if !part.is_text {
                    let why = "can only be `text`: incant reads no images, audio or files.";
                    return refuse(format!("{param}[{at}].type"), why);
                }
                let Some(text) = part.text else {
                    return refuse(format!("{param}[{at}].text"), "is required.");
                };
                texts.push(text);
            }
            Ok(texts.join("\n"))
        }
    }
}

/// The format of chat answers.
struct Chat {
    /// Whether to report log-probabilities.
    logprobs: bool,
    /// How their tokens are written.
    names: Names,
    /// Whether to report token ids.
    token_ids: bool,
    /// The distribution that log-probabilities are taken from.
    measured: Option<Measured>,
}

/// An answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletion")]
pub(crate) struct ChatChoice {
    index: usize,
    message: AssistantMessage,
    /// Null unless requested.
    logprobs: Option<ChatLogprobs>,
    finish_reason: FinishReason,
    /// The ids of all its tokens, including those without text; absent unless requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// The message that the model writes.
#[derive(Debug, Serialize, JsonSchema)]
struct AssistantMessage {
    /// Always `assistant`.
    role: &'static str,
    content: String,
    /// Always null: a refusal is an answer like any other.
    refusal: Option<String>,
}

/// A part of an answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatCompletionChunk")]
pub(crate) struct ChatDelta {
    index: usize,
    delta: Delta,
    /// Null unless requested.
    logprobs: Option<ChatLogprobs>,
    /// Null in all but an answer's last chunk.
    finish_reason: Option<FinishReason>,
    /// The ids of the tokens since the last chunk; absent unless requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

/// The new part of a message. Empty in an answer's last chunk.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct Delta {
    /// `assistant`, in an answer's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// More of the text; empty in an answer's first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl Chat {
    /// Returns the log-probabilities of some tokens, if requested.
    fn logprobs(&self, entries: Vec<Entry>) -> Option<ChatLogprobs> {
        self.logprobs
            .then(|| ChatLogprobs::new(entries, self.names, self.measured))
    }
}

impl Shape for Chat {
    const ID: &'static str = "chatcmpl-";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK: &'static str = "chat.completion.chunk";
    type Choice = ChatChoice;
    type Delta = ChatDelta;

    fn answer(&self, answer: Answer) -> ChatChoice {
        ChatChoice {
            index: answer.index,
            message: AssistantMessage {
                role: "assistant",
                content: answer.text,
                refusal: None,
            },
            logprobs: self.logprobs(answer.entries),
            finish_reason: finish(answer.finish),
            token_ids: self.token_ids.then_some(answer.ids),
        }
    }

    fn chunks(&self, piece: Piece) -> Vec<ChatDelta> {
        let index = piece.index;
        let chunk = |delta, logprobs, finish_reason, token_ids| ChatDelta {
            index,
            delta,
            logprobs,
            finish_reason,
            token_ids,
        };
        // The ids are sent with the first chunk that has more than the role.
        let mut token_ids = self.token_ids.then_some(piece.ids);
        let mut chunks = Vec::new();
        let mut entries = piece.entries;
        if piece.opens {
            let delta = Delta {
                role: Some("assistant"),
                content: Some(String::new()),
            };
            chunks.push(chunk(delta, None, None, None));
        }
        if !piece.text.is_empty() {
            let delta = Delta {
                role: None,
                content: Some(piece.text),
            };
            let logprobs = self.logprobs(std::mem::take(&mut entries));
            chunks.push(chunk(delta, logprobs, None, token_ids.take()));
        }
        if let Some(reason) = piece.finish {
            // Only tokens without text are left: the end token, if it arrived alone.
            let logprobs = if entries.is_empty() {
                None
            } else {
                self.logprobs(entries)
            };
            let reason = Some(finish(reason));
            chunks.push(chunk(Delta::default(), logprobs, reason, token_ids.take()));
        }
        // Only the role was sent, and text may take long: the ids get a chunk of their own.
        if let Some(ids) = token_ids.filter(|ids| !ids.is_empty()) {
            chunks.push(chunk(Delta::default(), None, None, Some(ids)));
        }
        chunks
    }
}

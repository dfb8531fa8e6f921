//! `POST /apply-template`: renders a conversation with the chat template or profile.

use axum::Json;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chat::{ChatMessage, conversation};
use crate::errors::ApiError;
use crate::fields::Object;
use crate::request::Post;
use crate::unsupported;
use incant_runtime::PromptBounds;

/// A conversation to render.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct TemplateRequest {
    #[schemars(length(min = 1))]
    messages: Vec<Object<ChatMessage>>,
    /// The arm that renders; may be absent if only one model is served.
    model: Option<String>,
}

/// A rendered conversation, open at the assistant's turn.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TemplateResponse {
    /// The arm that renders.
    model: String,
    /// The whole text, including the profile's constant part.
    prompt: String,
    /// The tokens of the whole text.
    tokens: Vec<u32>,
    /// The number of tokens.
    count: usize,
    /// The number of tokens of the profile's constant part.
    prefix_tokens: usize,
    /// The role markers that end the answer at the start of a line.
    markers: Vec<String>,
}

/// Renders a conversation without answering it.
pub(crate) async fn apply(post: Post) -> Result<Response, ApiError> {
    let read = post.read(|fields| {
        let request: TemplateRequest = fields.view()?;
        unsupported::refuse(fields, unsupported::TEMPLATE)?;
        Ok(request)
    });
    let (request, mut context) = read.await?;
    let arm = context.arm_or_only(request.model.as_deref());
    let rendered = context.run_blocking(None, move |cancel| {
        let messages = conversation(request.messages)?;
        let arm = arm?.for_conversation(&messages);
        // A conversation that is too long to be answered can be rendered too.
        let bounds = PromptBounds {
            must_fit: false,
            cancel: cancel.clone(),
        };
        let prompt = arm.chat_within(&messages, &bounds);
        let prompt = prompt.map_err(|error| ApiError::from_prompt_error(error, "messages"))?;
        let tokens = prompt.all_ids();
        Ok(Json(TemplateResponse {
            model: arm.id().to_owned(),
            count: tokens.len(),
            prefix_tokens: tokens.len() - prompt.ids.len(),
            tokens,
            prompt: prompt.text,
            markers: prompt.markers,
        })
        .into_response())
    });
    rendered.await
}

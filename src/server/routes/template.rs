//! `POST /apply-template`: what a conversation looks like to the model.

use axum::Json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chat::{ChatMessage, conversation};
use crate::server::call::{Call, unhurried};
use crate::server::errors::ApiError;
use crate::server::fields::Object;
use crate::server::lacking;

/// A conversation to render.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct TemplateRequest {
    #[schemars(length(min = 1))]
    messages: Vec<Object<ChatMessage>>,
    /// The arm; may be absent if only one model is served.
    model: Option<String>,
}

/// A conversation as the model reads it, open at the assistant's turn.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TemplateResponse {
    /// The arm that renders.
    model: String,
    /// The whole text, the profile's constant part included.
    prompt: String,
    /// The whole text's tokens.
    tokens: Vec<u32>,
    /// How many there are.
    count: usize,
    /// How many of them are the profile's constant part.
    prefix_tokens: usize,
    /// The role markers that end the answer at the start of a line.
    markers: Vec<String>,
}

/// Renders a conversation without answering it.
pub(crate) async fn apply(mut call: Call) -> Result<Json<TemplateResponse>, ApiError> {
    let request: TemplateRequest = call.fields.view()?;
    lacking::refuse(&mut call.fields, lacking::TEMPLATE)?;
    call.check_unknown()?;
    let messages = conversation(request.messages)?;
    let arm = call.arm_or_only(request.model.as_deref())?;
    let model = arm.id().to_owned();
    let prompt = unhurried(move || arm.chat(&messages)).await?;
    let prefix = prompt.prefix.as_ref().map_or(&[][..], |prefix| &prefix.ids);
    let prefix_tokens = prefix.len();
    let tokens = [prefix, &prompt.ids].concat();
    Ok(Json(TemplateResponse {
        model,
        prompt: prompt.text,
        count: tokens.len(),
        tokens,
        prefix_tokens,
        markers: prompt.markers,
    }))
}

//! `POST /tokenize` and `/detokenize`: text to ids and back.

use axum::Json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::server::call::{Call, unhurried};
use crate::server::controls::check_ids;
use crate::server::errors::ApiError;
use crate::server::fields::whole;
use crate::server::lacking;
use crate::text::{Special, Tokenizer};

/// A text to tokenize. Two kinds of servers have two names for each field;
/// where both are given, the first of each pair below counts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct TokenizeRequest {
    /// The text.
    prompt: Option<String>,
    /// The text.
    content: Option<String>,
    /// Whose tokens; may be absent if only one model is served.
    model: Option<String>,
    /// Begin with BOS if the model asks for one; as those servers have it, true by default
    /// for `prompt` and false for `content`.
    add_special_tokens: Option<bool>,
    /// The same.
    add_special: Option<bool>,
    /// Read control tokens in the text as such; true by default.
    parse_special: Option<bool>,
    /// Give each token's text beside its id.
    with_pieces: Option<bool>,
}

/// A token: its id, or with `with_pieces` its text too.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum ShownToken {
    Id(u32),
    Whole { id: u32, piece: Shown },
}

/// A token's text, or its bytes where they are none.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum Shown {
    Text(String),
    Bytes(Vec<u8>),
}

impl ShownToken {
    fn with_piece(tokenizer: &Tokenizer, id: u32) -> ShownToken {
        let bytes = tokenizer.token_text_special(id).to_vec();
        let piece = String::from_utf8(bytes);
        ShownToken::Whole {
            id,
            piece: piece.map_or_else(|error| Shown::Bytes(error.into_bytes()), Shown::Text),
        }
    }
}

/// A text's tokens.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenizeResponse {
    tokens: Vec<ShownToken>,
    /// How many there are.
    count: usize,
    /// The context of the model in tokens.
    max_model_len: usize,
}

/// Tokenizes a text.
pub(crate) async fn tokenize(mut call: Call) -> Result<Json<TokenizeResponse>, ApiError> {
    let request: TokenizeRequest = call.fields.view()?;
    lacking::refuse(&mut call.fields, lacking::TOKENIZE)?;
    call.check_unknown()?;
    // Whose name it is tells whose default counts.
    let is_prompt = request.prompt.is_some();
    let text = request.prompt.or(request.content);
    let text =
        text.ok_or_else(|| ApiError::invalid("prompt", "`prompt` (or `content`) is required."))?;
    let arm = call.arm_or_only(request.model.as_deref())?;
    let add_bos = request
        .add_special_tokens
        .or(request.add_special)
        .unwrap_or(is_prompt);
    let with_pieces = request.with_pieces.unwrap_or(false);
    let special = if request.parse_special.unwrap_or(true) {
        Special::Parse
    } else {
        Special::Plain
    };
    let max_model_len = arm.context();
    let tokens = unhurried(move || {
        let tokenizer = arm.tokenizer();
        let bos = tokenizer.bos().filter(|_| add_bos && tokenizer.adds_bos());
        let ids = bos.into_iter().chain(tokenizer.encode(&text, special));
        let shown = |id| match with_pieces {
            true => ShownToken::with_piece(tokenizer, id),
            false => ShownToken::Id(id),
        };
        ids.map(shown).collect::<Vec<ShownToken>>()
    });
    let tokens = tokens.await;
    Ok(Json(TokenizeResponse {
        count: tokens.len(),
        tokens,
        max_model_len,
    }))
}

/// Tokens to make a text of.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct DetokenizeRequest {
    #[serde(deserialize_with = "whole::list")]
    tokens: Vec<u32>,
    /// Whose tokens; may be absent if only one model is served.
    model: Option<String>,
}

/// The text, under both of its names.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DetokenizeResponse {
    /// The text, control tokens included. Bytes that are no character are U+FFFD.
    prompt: String,
    /// The same.
    content: String,
}

/// Makes a text of tokens.
pub(crate) async fn detokenize(mut call: Call) -> Result<Json<DetokenizeResponse>, ApiError> {
    let request: DetokenizeRequest = call.fields.view()?;
    call.check_unknown()?;
    let arm = call.arm_or_only(request.model.as_deref())?;
    check_ids("tokens", &request.tokens, arm.tokenizer().vocab_size())?;
    let text = unhurried(move || arm.tokenizer().decode(&request.tokens, true)).await;
    Ok(Json(DetokenizeResponse {
        prompt: text.clone(),
        content: text,
    }))
}

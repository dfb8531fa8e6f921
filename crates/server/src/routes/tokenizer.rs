//! `GET /tokenizer_info`: the facts that a client needs to count and truncate tokens.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::App;
use crate::errors::ApiError;
use incant_gguf::printable::excerpt;

/// The model whose tokenizer is meant.
#[derive(Debug, Deserialize)]
pub(crate) struct TokenizerQuery {
    model: Option<String>,
}

/// A tokenizer's facts, named as in transformers' `tokenizer_config.json`. lm-evaluation-harness
/// reads them from here.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenizerInfo {
    /// The text of the token that begins a text; `/tokenize` parses it to that token.
    bos_token: Option<String>,
    /// The text of the token that ends a text.
    eos_token: Option<String>,
    /// Whether a text prompt gets BOS.
    add_bos_token: bool,
    /// The context of the model in tokens.
    model_max_length: usize,
    /// The chat template in the model's file. A profile is not one: see `/apply-template`.
    chat_template: Option<String>,
}

/// Answers with the tokenizer's facts.
pub(crate) async fn info(
    State(app): State<Arc<App>>,
    query: Result<Query<TokenizerQuery>, QueryRejection>,
) -> Result<Json<TokenizerInfo>, ApiError> {
    let Query(query) =
        query.map_err(|error| ApiError::invalid("model", excerpt(&error.body_text())))?;
    let arm = app.arm_or_only(query.model.as_deref())?;
    let tokenizer = arm.tokenizer();
    let text = |id: Option<u32>| tokenizer.piece(id?).map(str::to_owned);
    Ok(Json(TokenizerInfo {
        bos_token: text(tokenizer.bos()),
        eos_token: text(tokenizer.eos()),
        add_bos_token: tokenizer.bos().is_some() && tokenizer.adds_bos(),
        model_max_length: arm.context(),
        chat_template: arm.template_source().map(str::to_owned),
    }))
}

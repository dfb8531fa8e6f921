//! `POST /tokenize` and `/detokenize`: convert text to token ids and back.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::controls::check_ids;
use crate::errors::ApiError;
use crate::fields::integer;
use crate::request::Post;
use crate::unsupported;
use incant_prompt::text::{EncodeLimits, Special, Tokenizer};

/// A text to tokenize. vLLM and llama.cpp have different names for the fields; if both are given,
/// the first of each pair below counts.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct TokenizeRequest {
    /// The text.
    prompt: Option<String>,
    /// The text.
    content: Option<String>,
    /// The model whose tokenizer is used; may be absent if only one model is served.
    model: Option<String>,
    /// Begin with BOS if the model expects it; as in those servers, true by default for `prompt`
    /// and false for `content`.
    add_special_tokens: Option<bool>,
    /// The same.
    add_special: Option<bool>,
    /// Read control tokens in the text as such; true by default.
    parse_special: Option<bool>,
    /// Return each token's text beside its id.
    with_pieces: Option<bool>,
}

/// A token: its id, or with `with_pieces` its text too.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum ShownToken {
    Id(u32),
    Whole { id: u32, piece: Shown },
}

/// A token's text, or its bytes if they are not valid UTF-8.
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

/// Tokens that are serialized one by one.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct ShownTokens {
    #[schemars(with = "Vec<ShownToken>")]
    ids: Vec<u32>,
    /// The tokenizer that has their texts, if these are shown too.
    #[schemars(skip)]
    pieces: Option<Arc<Tokenizer>>,
}

impl Serialize for ShownTokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = |&id: &u32| match &self.pieces {
            Some(tokenizer) => ShownToken::with_piece(tokenizer, id),
            None => ShownToken::Id(id),
        };
        serializer.collect_seq(self.ids.iter().map(shown))
    }
}

/// The tokens of a text.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TokenizeResponse {
    tokens: ShownTokens,
    /// The number of tokens.
    count: usize,
    /// The context of the model in tokens.
    max_model_len: usize,
}

/// Tokenizes a text.
pub(crate) async fn tokenize(post: Post) -> Result<Response, ApiError> {
    let read = post.read(|fields| {
        let request: TokenizeRequest = fields.view()?;
        unsupported::refuse(fields, unsupported::TOKENIZE)?;
        Ok(request)
    });
    let (request, mut context) = read.await?;
    // The name of the field decides whose default counts.
    let is_prompt = request.prompt.is_some();
    let text = request.prompt.or(request.content);
    let text =
        text.ok_or_else(|| ApiError::invalid("prompt", "`prompt` (or `content`) is required."))?;
    let arm = context.arm_or_only(request.model.as_deref())?;
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
    let tokenized = context.run_blocking(None, move |cancel| {
        let tokenizer = arm.tokenizer();
        let bos = tokenizer.bos().filter(|_| add_bos && tokenizer.adds_bos());
        let bounds = EncodeLimits {
            max_tokens: None,
            cancel: cancel.clone(),
        };
        let ids = tokenizer.encode_within(&text, special, &bounds);
        // A client that cancels gets no answer.
        let ids = ids.map_err(|halt| ApiError::invalid("prompt", halt.to_string()))?;
        let ids: Vec<u32> = bos.into_iter().chain(ids).collect();
        Ok(Json(TokenizeResponse {
            count: ids.len(),
            tokens: ShownTokens {
                ids,
                pieces: with_pieces.then(|| Arc::clone(tokenizer)),
            },
            max_model_len: arm.context(),
        })
        .into_response())
    });
    tokenized.await
}

/// Tokens to convert to a text.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct DetokenizeRequest {
    #[serde(deserialize_with = "integer::list")]
    tokens: Vec<u32>,
    /// The model whose tokenizer is used; may be absent if only one model is served.
    model: Option<String>,
}

/// The text, under both of its names.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct DetokenizeResponse<'a> {
    /// The text, including control tokens. Bytes that are not valid UTF-8 become U+FFFD.
    prompt: &'a str,
    /// The same.
    content: &'a str,
}

/// Converts tokens to a text.
pub(crate) async fn detokenize(post: Post) -> Result<Response, ApiError> {
    let read = post.read(|fields| fields.view::<DetokenizeRequest>());
    let (request, mut context) = read.await?;
    let arm = context.arm_or_only(request.model.as_deref())?;
    let most = context.app.options.max_body;
    let text = context.run_blocking(None, move |_| {
        let tokenizer = arm.tokenizer();
        let ids = request.tokens;
        check_ids("tokens", &ids, tokenizer.vocab_size())?;
        let bytes = ids.iter().map(|&id| tokenizer.token_text_special(id).len());
        if bytes.sum::<usize>() > most {
            let message = format!("`tokens` have a text of more than {most} bytes.");
            return Err(ApiError::invalid("tokens", message));
        }
        let text = tokenizer.decode(&ids, true);
        Ok(Json(DetokenizeResponse {
            prompt: &text,
            content: &text,
        })
        .into_response())
    });
    text.await
}

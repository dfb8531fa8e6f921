//! The description of each endpoint's operation.

use serde_json::{Value, json};

use super::Schemas;
use crate::answer::Envelope;
use crate::controls::Controls;
use crate::extras::Extras;
use crate::guidance::GuidanceFields;
use crate::metrics::CONTENT_TYPE;
use crate::routes::adapters::{Adapter, Adapters, Deleted, LoadRequest};
use crate::routes::chat::{ChatChoice, ChatDelta, ChatRequest};
use crate::routes::compare::{CompareChunk, CompareRequest, CompareResponse};
use crate::routes::completions::{CompletionChoice, CompletionRequest};
use crate::routes::health::Health;
use crate::routes::models::{Model, Models};
use crate::routes::profiles::Profiles;
use crate::routes::template::{TemplateRequest, TemplateResponse};
use crate::routes::tokenize::{
    DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse,
};
use crate::routes::tokenizer::TokenizerInfo;

/// The failures of every operation.
const FAILURES: &[&str] = &["400", "403"];
const BODY_FAILURES: &[&str] = &["401", "404", "408", "413", "415", "500", "503"];
const GENERATION_FAILURES: &[&str] = &["401", "404", "408", "413", "415", "429", "500", "503"];

pub(crate) fn page(_: &mut Schemas) -> Value {
    let summary = "A page that compares arms, and chats with one, in a browser";
    let mut operation = without_body("page", summary, json!({}), &[]);
    operation["security"] = json!([]);
    operation["responses"]["200"]["content"] =
        json!({"text/html; charset=utf-8": {"schema": {"type": "string"}}});
    operation
}

pub(crate) fn health(schemas: &mut Schemas) -> Value {
    let answer = schemas.output::<Health>();
    let summary = "Whether the server can answer";
    let mut operation = without_body("health", summary, answer, &["503"]);
    operation["security"] = json!([]);
    operation
}

pub(crate) fn metrics(_: &mut Schemas) -> Value {
    let summary = "Metrics, as Prometheus reads them";
    let mut operation = without_body("metrics", summary, json!({}), &["401", "503"]);
    operation["responses"]["200"]["content"] =
        json!({CONTENT_TYPE: {"schema": {"type": "string"}}});
    operation
}

pub(crate) fn openapi(_: &mut Schemas) -> Value {
    let answer = json!({"type": "object"});
    without_body("openapi", "This document", answer, &["401", "503"])
}

pub(crate) fn list_models(schemas: &mut Schemas) -> Value {
    let answer = schemas.output::<Models>();
    without_body("listModels", "Every arm", answer, &["401", "503"])
}

pub(crate) fn get_model(schemas: &mut Schemas) -> Value {
    let answer = schemas.output::<Model>();
    let operation = without_body("getModel", "One arm", answer, &["401", "404", "503"]);
    with_id(
        operation,
        "The arm's id; `@` and `+` may be percent-encoded.",
    )
}

pub(crate) fn list_profiles(schemas: &mut Schemas) -> Value {
    let answer = schemas.output::<Profiles>();
    let summary = "The alignment prompts";
    without_body("listProfiles", summary, answer, &["401", "503"])
}

pub(crate) fn list_adapters(schemas: &mut Schemas) -> Value {
    let answer = schemas.output::<Adapters>();
    without_body("listAdapters", "The LoRA adapters", answer, &["401", "503"])
}

pub(crate) fn load_adapter(schemas: &mut Schemas) -> Value {
    let request = schemas.input::<LoadRequest>();
    let answer = schemas.output::<Adapter>();
    let summary = "Load an adapter, or replace one";
    with_body("loadAdapter", summary, request, answer, BODY_FAILURES)
}

pub(crate) fn unload_adapter(schemas: &mut Schemas) -> Value {
    let answer = schemas.output::<Deleted>();
    let failures = &["401", "404", "503"];
    let operation = without_body("unloadAdapter", "Unload an adapter", answer, failures);
    with_id(
        operation,
        "The adapter's id, `MODEL+ADAPTER`; `+` may be percent-encoded.",
    )
}

pub(crate) fn chat(schemas: &mut Schemas) -> Value {
    let request = all_of([
        schemas.input::<ChatRequest>(),
        schemas.input::<Controls>(),
        schemas.input::<Extras>(),
        schemas.input::<GuidanceFields>(),
    ]);
    let answer = schemas.output::<Envelope<ChatChoice>>();
    let chunk = schemas.output::<Envelope<ChatDelta>>();
    let summary = "Answer a conversation";
    let operation = with_body("chat", summary, request, answer, GENERATION_FAILURES);
    with_stream(operation, chunk)
}

pub(crate) fn complete(schemas: &mut Schemas) -> Value {
    let request = all_of([
        schemas.input::<CompletionRequest>(),
        schemas.input::<Controls>(),
        schemas.input::<Extras>(),
        schemas.input::<GuidanceFields>(),
    ]);
    let answer = schemas.output::<Envelope<CompletionChoice>>();
    let summary = "Continue texts, verbatim";
    let chunk = answer.clone();
    let operation = with_body("complete", summary, request, answer, GENERATION_FAILURES);
    with_stream(operation, chunk)
}

pub(crate) fn compare(schemas: &mut Schemas) -> Value {
    let request = all_of([
        schemas.input::<CompareRequest>(),
        schemas.input::<Controls>(),
    ]);
    let answer = schemas.output::<CompareResponse>();
    let chunk = schemas.output::<CompareChunk>();
    let summary = "Have several arms answer the same, side by side";
    let operation = with_body("compare", summary, request, answer, GENERATION_FAILURES);
    with_stream(operation, chunk)
}

pub(crate) fn tokenize(schemas: &mut Schemas) -> Value {
    let request = schemas.input::<TokenizeRequest>();
    let answer = schemas.output::<TokenizeResponse>();
    let summary = "Make tokens of a text";
    with_body("tokenize", summary, request, answer, BODY_FAILURES)
}

pub(crate) fn detokenize(schemas: &mut Schemas) -> Value {
    let request = schemas.input::<DetokenizeRequest>();
    let answer = schemas.output::<DetokenizeResponse>();
    let summary = "Make a text of tokens";
    with_body("detokenize", summary, request, answer, BODY_FAILURES)
}

pub(crate) fn tokenizer_info(schemas: &mut Schemas) -> Value {
    let answer = schemas.output::<TokenizerInfo>();
    let summary = "What a client must know of a tokenizer";
    let failures = &["400", "401", "404", "503"];
    let mut operation = without_body("tokenizerInfo", summary, answer, failures);
    operation["parameters"] = json!([{
        "name": "model", "in": "query", "schema": {"type": "string"},
        "description": "Whose tokenizer; may be absent if only one model is served.",
    }]);
    operation
}

pub(crate) fn apply_template(schemas: &mut Schemas) -> Value {
    let request = schemas.input::<TemplateRequest>();
    let answer = schemas.output::<TemplateResponse>();
    let summary = "Render a conversation as the model reads it";
    with_body("applyTemplate", summary, request, answer, BODY_FAILURES)
}

/// Describes an operation without a request body.
fn without_body(id: &str, summary: &str, answer: Value, failures: &[&str]) -> Value {
    let mut operation = json!({
        "operationId": id,
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
    });
    for status in FAILURES.iter().chain(failures) {
        operation["responses"][status] =
            json!({"$ref": format!("#/components/responses/{status}")});
    }
    operation
}

/// Describes an operation with a request body.
fn with_body(id: &str, summary: &str, request: Value, answer: Value, failures: &[&str]) -> Value {
    let mut operation = without_body(id, summary, answer, failures);
    operation["requestBody"] =
        json!({"required": true, "content": {"application/json": {"schema": request}}});
    operation
}

/// Adds the parameter `id` of the path.
fn with_id(mut operation: Value, description: &str) -> Value {
    operation["parameters"] = json!([{
        "name": "id", "in": "path", "required": true, "schema": {"type": "string"},
        "description": description,
    }]);
    operation
}

/// The schema of an object that is read as several views.
fn all_of<const N: usize>(views: [Value; N]) -> Value {
    json!({"allOf": views.to_vec()})
}

/// Adds the stream of `chunk`s that an answer can be. As is usual before OpenAPI 3.2, the schema is
/// that of one event.
fn with_stream(mut operation: Value, chunk: Value) -> Value {
    let either = json!({"anyOf": [chunk, {"$ref": "#/components/schemas/Error"}]});
    let json = json!({
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": either,
    });
    operation["responses"]["200"]["content"]["text/event-stream"] = json!({
        "schema": {
            "type": "object",
            "description": "With `stream`: the events, `data: {chunk}`, then `data: [DONE]`. A failure after the \
                first token is sent as `data: {error}` and ends the stream.",
            "properties": {"data": {"anyOf": [{"const": "[DONE]"}, json]}},
            "required": ["data"],
        },
    });
    operation
}

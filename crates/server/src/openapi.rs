//! `GET /openapi.json`: the whole API as an OpenAPI 3.1 document.
//!
//! The schemas are derived from the types that read and write the JSON; this file assigns them to
//! operations. A test compares it with the routing table.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::response::IntoResponse;
use http::header;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::answer::Envelope;
use super::controls::Controls;
use super::errors::ErrorBody;
use super::extras::Extras;
use super::guidance::GuidanceFields;
use super::metrics::CONTENT_TYPE;
use super::routes::adapters::{Adapter, Adapters, Deleted, LoadRequest};
use super::routes::chat::{ChatChoice, ChatDelta, ChatRequest};
use super::routes::compare::{CompareChunk, CompareRequest, CompareResponse};
use super::routes::completions::{CompletionChoice, CompletionRequest};
use super::routes::health::Health;
use super::routes::models::{Model, Models};
use super::routes::profiles::Profiles;
use super::routes::template::{TemplateRequest, TemplateResponse};
use super::routes::tokenize::{
    DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse,
};
use super::routes::tokenizer::TokenizerInfo;

/// The name of the security scheme of API keys.
const KEY: &str = "apiKey";

/// Answers with the document.
pub(crate) async fn document() -> impl IntoResponse {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| build().to_string().into());
    (
        [(header::CONTENT_TYPE, "application/json")],
        DOCUMENT.clone(),
    )
}

/// Builds the document.
fn build() -> Value {
    let mut schemas = Schemas::new();
    let paths = paths(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "incant",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's REST API over base language models that answer in context.\n\n\
                A model id is an arm, `MODEL[@PROFILE][+ADAPTER]`. Values out of range are refused, null \
                means the default, and fields that are not listed are ignored with a warning in the log, \
                or refused by a server started as strict. Unsupported features (tools, images, \
                constrained formats) are refused too.\n\n\
                Models, chat and completions are at paths without `/v1` too, and a key can be sent as \
                `X-Api-Key`.",
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas.definitions(),
            "responses": failures(),
            "securitySchemes": {
                KEY: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key that the server was started with; one that was started without any takes all requests.",
                },
            },
        },
        // Either is valid: the document is the same for a server without keys.
        "security": [{KEY: []}, {}],
    })
}

fn paths(schemas: &mut Schemas) -> Value {
    let mut health = get(
        "health",
        "Whether the server can answer",
        schemas.output::<Health>(),
        &["503"],
    );
    health["get"]["security"] = json!([]);
    let mut metrics = get(
        "metrics",
        "Metrics, as Prometheus reads them",
        json!({}),
        &["401", "503"],
    );
    metrics["get"]["responses"]["200"]["content"] =
        json!({CONTENT_TYPE: {"schema": {"type": "string"}}});
    let document = get(
        "openapi",
        "This document",
        json!({"type": "object"}),
        &["401", "503"],
    );
    let models = get(
        "listModels",
        "Every arm",
        schemas.output::<Models>(),
        &["401", "503"],
    );
    let mut model = get(
        "getModel",
        "One arm",
        schemas.output::<Model>(),
        &["401", "404", "503"],
    );
    model["get"]["parameters"] = json!([{
        "name": "id", "in": "path", "required": true, "schema": {"type": "string"},
        "description": "The arm's id; `@` and `+` may be percent-encoded.",
    }]);
    let profiles = get(
        "listProfiles",
        "The alignment prompts",
        schemas.output::<Profiles>(),
        &["401", "503"],
    );
    let adapters = {
        let adapters = schemas.output::<Adapters>();
        let mut path = get(
            "listAdapters",
            "The LoRA adapters",
            adapters,
            &["401", "503"],
        );
        let (what, adapter) = (schemas.input::<LoadRequest>(), schemas.output::<Adapter>());
        let load = "Load an adapter, or replace one";
        let mut load = post("loadAdapter", load, what, adapter, BODY_FAILURES);
        path["post"] = load["post"].take();
        path
    };
    let adapter = {
        let deleted = schemas.output::<Deleted>();
        let failures = &["401", "404", "503"];
        let mut path = get("unloadAdapter", "Unload an adapter", deleted, failures);
        let mut operation = path["get"].take();
        operation["parameters"] = json!([{
            "name": "id", "in": "path", "required": true, "schema": {"type": "string"},
            "description": "The adapter's id, `MODEL+ADAPTER`; `+` may be percent-encoded.",
        }]);
        json!({"delete": operation})
    };
    let chat = {
        let request = all_of([
            schemas.input::<ChatRequest>(),
            schemas.input::<Controls>(),
            schemas.input::<Extras>(),
            schemas.input::<GuidanceFields>(),
        ]);
        let answer = schemas.output::<Envelope<ChatChoice>>();
        let chunk = schemas.output::<Envelope<ChatDelta>>();
        let operation = post(
            "chat",
            "Answer a conversation",
            request,
            answer,
            GENERATION_FAILURES,
        );
        with_stream(operation, chunk)
    };
    let completions = {
        let request = all_of([
            schemas.input::<CompletionRequest>(),
            schemas.input::<Controls>(),
            schemas.input::<Extras>(),
            schemas.input::<GuidanceFields>(),
        ]);
        let answer = schemas.output::<Envelope<CompletionChoice>>();
        let operation = post(
            "complete",
            "Continue texts, verbatim",
            request,
            answer.clone(),
            GENERATION_FAILURES,
        );
        with_stream(operation, answer)
    };
    let (text, tokens) = (
        schemas.input::<TokenizeRequest>(),
        schemas.output::<TokenizeResponse>(),
    );
    let compare = {
        let request = all_of([
            schemas.input::<CompareRequest>(),
            schemas.input::<Controls>(),
        ]);
        let answer = schemas.output::<CompareResponse>();
        let chunk = schemas.output::<CompareChunk>();
        let summary = "Have several arms answer the same, side by side";
        let operation = post("compare", summary, request, answer, GENERATION_FAILURES);
        with_stream(operation, chunk)
    };
    let tokenize = post(
        "tokenize",
        "Make tokens of a text",
        text,
        tokens,
        BODY_FAILURES,
    );
    let (tokens, text) = (
        schemas.input::<DetokenizeRequest>(),
        schemas.output::<DetokenizeResponse>(),
    );
    let detokenize = post(
        "detokenize",
        "Make a text of tokens",
        tokens,
        text,
        BODY_FAILURES,
    );
    let mut tokenizer = get(
        "tokenizerInfo",
        "What a client must know of a tokenizer",
        schemas.output::<TokenizerInfo>(),
        &["400", "401", "404", "503"],
    );
    tokenizer["get"]["parameters"] = json!([{
        "name": "model", "in": "query", "schema": {"type": "string"},
        "description": "Whose tokenizer; may be absent if only one model is served.",
    }]);
    let (messages, rendered) = (
        schemas.input::<TemplateRequest>(),
        schemas.output::<TemplateResponse>(),
    );
    let template = post(
        "applyTemplate",
        "Render a conversation as the model reads it",
        messages,
        rendered,
        BODY_FAILURES,
    );
    let mut page = get(
        "page",
        "A page that compares arms, and chats with one, in a browser",
        json!({}),
        &[],
    );
    page["get"]["security"] = json!([]);
    page["get"]["responses"]["200"]["content"] =
        json!({"text/html; charset=utf-8": {"schema": {"type": "string"}}});
    json!({
        "/": page,
        "/health": health,
        "/metrics": metrics,
        "/openapi.json": document,
        "/v1/models": models,
        "/v1/models/{id}": model,
        "/v1/profiles": profiles,
        "/v1/adapters": adapters,
        "/v1/adapters/{id}": adapter,
        "/v1/chat/completions": chat,
        "/v1/completions": completions,
        "/v1/compare": compare,
        "/tokenize": tokenize,
        "/detokenize": detokenize,
        "/tokenizer_info": tokenizer,
        "/apply-template": template,
    })
}

const BODY_FAILURES: &[&str] = &["401", "404", "408", "413", "415", "500", "503"];
const GENERATION_FAILURES: &[&str] = &["401", "404", "408", "413", "415", "429", "500", "503"];

/// The failures that operations refer to, by status.
fn failures() -> Value {
    let told = [
        (
            "400",
            "The request is wrong: malformed, out of range, longer than the context, or asking for an unsupported feature",
        ),
        (
            "401",
            "The server requires a key, and got none or a wrong one",
        ),
        (
            "403",
            "A web page of another origin asks, or `Host` is a name that the server does not know as its own",
        ),
        ("404", "No such model, profile or adapter"),
        (
            "408",
            "The body took too long to arrive, or the answer longer than it may (`timeout`, or the server's limit)",
        ),
        ("413", "The body is too large"),
        ("415", "The body is not `application/json`, or compressed"),
        ("429", "The queue is full"),
        ("500", "The server failed"),
        (
            "503",
            "The server is loading or shutting down, has all the connections that it can serve, or a model's engine \
             has failed",
        ),
    ];
    let failure = |(status, description): (&str, &str)| {
        let schema = json!({"$ref": "#/components/schemas/Error"});
        let mut response = json!({"description": description, "content": {"application/json": {"schema": schema}}});
        if status == "401" {
            response["headers"] = json!({
                "WWW-Authenticate": {"description": "`Bearer`", "schema": {"type": "string"}},
            });
        }
        if matches!(status, "429" | "503") {
            response["headers"] = json!({
                "Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}},
            });
        }
        if status == "408" {
            response["headers"] = json!({
                "X-Should-Retry": {
                    "description": "`false` where the answer took too long: it would again",
                    "schema": {"type": "string"},
                },
            });
        }
        (status.to_owned(), response)
    };
    told.into_iter().map(failure).collect::<Map<_, _>>().into()
}

fn get(id: &str, summary: &str, answer: Value, failures: &[&str]) -> Value {
    let operation = json!({
        "operationId": id,
        "summary": summary,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
    });
    with_failures(json!({"get": operation}), failures)
}

fn post(id: &str, summary: &str, request: Value, answer: Value, failures: &[&str]) -> Value {
    let operation = json!({
        "operationId": id,
        "summary": summary,
        "requestBody": {"required": true, "content": {"application/json": {"schema": request}}},
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
    });
    with_failures(json!({"post": operation}), failures)
}

/// The failures of every operation.
const FAILURES: &[&str] = &["400", "403"];

/// Adds references to `failures`, and to those of every operation, to all operations of a path.
fn with_failures(mut path: Value, failures: &[&str]) -> Value {
    for operation in path
        .as_object_mut()
        .into_iter()
        .flat_map(|path| path.values_mut())
    {
        for status in FAILURES.iter().chain(failures) {
            operation["responses"][status] =
                json!({"$ref": format!("#/components/responses/{status}")});
        }
    }
    path
}

/// The schema of an object that is read as several views.
fn all_of<const N: usize>(views: [Value; N]) -> Value {
    json!({"allOf": views.to_vec()})
}

/// Adds the stream of `chunk`s that an answer can be. As is usual before OpenAPI 3.2, the schema is
/// that of one event.
fn with_stream(mut path: Value, chunk: Value) -> Value {
    let either = json!({"anyOf": [chunk, {"$ref": "#/components/schemas/Error"}]});
    let json = json!({
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": either,
    });
    path["post"]["responses"]["200"]["content"]["text/event-stream"] = json!({
        "schema": {
            "type": "object",
            "description": "With `stream`: the events, `data: {chunk}`, then `data: [DONE]`. A failure after the \
                first token is sent as `data: {error}` and ends the stream.",
            "properties": {"data": {"anyOf": [{"const": "[DONE]"}, json]}},
            "required": ["data"],
        },
    });
    path
}

/// Collects schemas: input fields may be absent, output fields may not.
struct Schemas {
    input: SchemaGenerator,
    output: SchemaGenerator,
}

impl Schemas {
    fn new() -> Schemas {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        let mut output = settings.clone().for_serialize().into_generator();
        output.subschema_for::<ErrorBody>();
        Schemas {
            input: settings.for_deserialize().into_generator(),
            output,
        }
    }

    fn input<T: JsonSchema>(&mut self) -> Value {
        Schema::to_value(self.input.subschema_for::<T>())
    }

    fn output<T: JsonSchema>(&mut self) -> Value {
        Schema::to_value(self.output.subschema_for::<T>())
    }

    fn definitions(mut self) -> Map<String, Value> {
        let mut definitions = self.input.take_definitions(true);
        definitions.extend(self.output.take_definitions(true));
        definitions.sort_keys();
        definitions
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_endpoint_is_described_and_nothing_else() {
        let described: BTreeSet<String> = build()["paths"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        let routed = super::super::endpoints()
            .into_iter()
            .map(|(path, _)| path.replace("{*", "{"))
            .collect();
        assert_eq!(described, routed);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(reference)) = map.get("$ref") {
                        found.push(reference.clone());
                    }
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(list) => list.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = build();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{}", found.len());
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn requests_may_leave_out_what_has_a_default_and_answers_leave_out_nothing() {
        let document = build();
        let schemas = &document["components"]["schemas"];
        assert_eq!(
            schemas["ChatRequest"]["required"],
            json!(["model", "messages"])
        );
        assert_eq!(
            schemas["CompletionRequest"]["required"],
            json!(["model", "prompt"])
        );
        assert_eq!(schemas["GenerationParameters"]["required"], Value::Null);
        assert_eq!(
            schemas["GenerationParameters"]["properties"]["temperature"]["maximum"],
            json!(2)
        );
        assert_eq!(
            schemas["ErrorDetail"]["required"],
            json!(["message", "type", "param", "code"])
        );
        let chunk = schemas["ChatCompletionChunkResponse"]["required"]
            .as_array()
            .unwrap();
        assert!(
            chunk.contains(&json!("choices")) && !chunk.contains(&json!("usage")),
            "{chunk:?}"
        );
    }
}

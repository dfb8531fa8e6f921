//! `GET /openapi.json`: the whole API as an OpenAPI 3.1 document.
//!
//! The schemas are derived from the types that read and write the JSON; `operations` assigns them
//! to operations, and the table of endpoints assigns those to routes.

pub(crate) mod operations;

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::response::IntoResponse;
use http::header;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::endpoints::endpoints;
use super::errors::ErrorBody;

/// The path of the document.
pub(crate) const PATH: &str = "/openapi.json";

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

/// Describes all endpoints, by path and method.
fn paths(schemas: &mut Schemas) -> Value {
    let mut paths = json!({});
    for endpoint in endpoints() {
        // The router's wildcards are plain parameters here.
        let path = endpoint.path.replace("{*", "{");
        paths[path][endpoint.method] = (endpoint.describe)(schemas);
    }
    paths
}

/// The failures that operations refer to, by status.
fn failures() -> Value {
    let descriptions = [
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
    descriptions
        .into_iter()
        .map(failure)
        .collect::<Map<_, _>>()
        .into()
}

/// Collects schemas: input fields may be absent, output fields may not.
pub(crate) struct Schemas {
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
        let document = build();
        let mut described = BTreeSet::new();
        let mut ids = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                described.insert((path.clone(), method.clone()));
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{id} is there twice");
            }
        }
        let routed = endpoints()
            .into_iter()
            .map(|it| (it.path.replace("{*", "{"), it.method.to_owned()))
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

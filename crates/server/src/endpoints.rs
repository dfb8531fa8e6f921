//! The table of endpoints, from which both the router and the OpenAPI document are made: a route
//! without a description cannot exist, nor a description without a route.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use serde_json::Value;

use super::App;
use super::openapi::{self, Schemas, operations};
use super::routes::*;

/// One operation of the API.
pub(crate) struct Endpoint {
    /// The path, in the router's syntax.
    pub(crate) path: &'static str,
    /// The method, as OpenAPI writes it.
    pub(crate) method: &'static str,
    handler: MethodRouter<Arc<App>>,
    /// Returns its description in the OpenAPI document.
    pub(crate) describe: fn(&mut Schemas) -> Value,
}

/// Returns every endpoint.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get(page::PATH, page::page, operations::page),
        get(health::PATH, health::health, operations::health),
        get(metrics::PATH, metrics::metrics, operations::metrics),
        get(openapi::PATH, openapi::document, operations::openapi),
        get("/v1/models", models::list, operations::list_models),
        get("/v1/models/{*id}", models::one, operations::get_model),
        get("/v1/profiles", profiles::list, operations::list_profiles),
        get("/v1/adapters", adapters::list, operations::list_adapters),
        post("/v1/adapters", adapters::load, operations::load_adapter),
        delete(
            "/v1/adapters/{*id}",
            adapters::unload,
            operations::unload_adapter,
        ),
        post("/v1/chat/completions", chat::chat, operations::chat),
        post(
            "/v1/completions",
            completions::completions,
            operations::complete,
        ),
        post("/v1/compare", compare::compare, operations::compare),
        post("/tokenize", tokenize::tokenize, operations::tokenize),
        post("/detokenize", tokenize::detokenize, operations::detokenize),
        get(
            "/tokenizer_info",
            tokenizer::info,
            operations::tokenizer_info,
        ),
        post(
            "/apply-template",
            template::apply,
            operations::apply_template,
        ),
    ]
}

/// The endpoints that clients of other servers also request without `/v1`.
const ALSO_WITHOUT_V1: [&str; 4] = [
    "/v1/models",
    "/v1/models/{*id}",
    "/v1/chat/completions",
    "/v1/completions",
];

/// Returns the router of all endpoints.
pub(crate) fn router() -> Router<Arc<App>> {
    endpoints()
        .into_iter()
        .fold(Router::new(), |router, endpoint| {
            let Endpoint { path, handler, .. } = endpoint;
            let short = path.strip_prefix("/v1");
            match short.filter(|_| ALSO_WITHOUT_V1.contains(&path)) {
                Some(short) => router.route(short, handler.clone()).route(path, handler),
                None => router.route(path, handler),
            }
        })
}

fn endpoint(
    path: &'static str,
    method: &'static str,
    handler: MethodRouter<Arc<App>>,
    describe: fn(&mut Schemas) -> Value,
) -> Endpoint {
    Endpoint {
        path,
        method,
        handler,
        describe,
    }
}

fn get<H: Handler<T, Arc<App>>, T: 'static>(
    path: &'static str,
    handler: H,
    describe: fn(&mut Schemas) -> Value,
) -> Endpoint {
    endpoint(path, "get", routing::get(handler), describe)
}

fn post<H: Handler<T, Arc<App>>, T: 'static>(
    path: &'static str,
    handler: H,
    describe: fn(&mut Schemas) -> Value,
) -> Endpoint {
    endpoint(path, "post", routing::post(handler), describe)
}

fn delete<H: Handler<T, Arc<App>>, T: 'static>(
    path: &'static str,
    handler: H,
    describe: fn(&mut Schemas) -> Value,
) -> Endpoint {
    endpoint(path, "delete", routing::delete(handler), describe)
}

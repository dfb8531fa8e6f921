//! `GET /health`: whether the server can answer.

use axum::Json;
use schemars::JsonSchema;
use serde::Serialize;

/// Asked without a key, and in any crowd.
pub(crate) const PATH: &str = "/health";

/// What a server that can answer says.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Health {
    /// Always `ok`; a server that is not is answered for by an error.
    status: &'static str,
}

/// Reached only when the models are loaded.
pub(crate) async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

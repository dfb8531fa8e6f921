//! `GET /health`: whether the server can answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::server::App;
use crate::server::errors::ApiError;

/// Asked without a key, and in any crowd.
pub(crate) const PATH: &str = "/health";

/// What a server that can answer says.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Health {
    /// Always `ok`; a server that is not is answered for by an error.
    status: &'static str,
}

/// Reached only when the models are loaded. A server of which one engine has died or is
/// stuck is ill as a whole: whoever balances its load cannot tell models apart.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<Json<Health>, ApiError> {
    if app.runtime.is_about_to_end() {
        Err(ApiError::Draining)
    } else if app.runtime.is_well() {
        Ok(Json(Health { status: "ok" }))
    } else {
        Err(ApiError::Ill)
    }
}

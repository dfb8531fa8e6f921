//! `GET /health`: the health check.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::App;
use crate::errors::ApiError;

/// Served without a key, and under overload.
pub(crate) const PATH: &str = "/health";

/// The response of a healthy server.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Health {
    /// Always `ok`; an unhealthy server responds with an error.
    status: &'static str,
}

/// Answers only after the models are loaded. One engine that has died or is stuck makes the whole
/// server unhealthy, since a load balancer cannot tell models apart.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Result<Json<Health>, ApiError> {
    if app.runtime.is_about_to_end() {
        Err(ApiError::Draining)
    } else if app.runtime.is_healthy() {
        Ok(Json(Health { status: "ok" }))
    } else {
        Err(ApiError::Ill)
    }
}

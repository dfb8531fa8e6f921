//! `GET /metrics`: what Prometheus reads.

use std::sync::Arc;

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;

use crate::server::App;
use crate::server::errors::ApiError;
use crate::server::metrics::CONTENT_TYPE;

/// Asked under any name.
pub(crate) const PATH: &str = "/metrics";

/// All metrics; while models load, those of no model.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    let text = app.metrics.text(&app.runtime);
    let text = text.map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

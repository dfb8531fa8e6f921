//! `GET /metrics`: metrics for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::response::IntoResponse;
use http::header;

use crate::App;
use crate::errors::ApiError;
use crate::metrics::CONTENT_TYPE;

/// Served under any `Host`.
pub(crate) const PATH: &str = "/metrics";

/// Answers with all metrics; while models load, without those of models.
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    let text = app.metrics.text(&app.runtime);
    let text = text.map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

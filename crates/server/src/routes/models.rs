//! `GET /v1/models` and `/v1/models/{id}`: every arm is listed as a model.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use schemars::JsonSchema;
use serde::Serialize;

use crate::App;
use crate::errors::ApiError;
use incant_gguf::printable::excerpt;
use incant_prompt::profile::SamplingDefaults;
use incant_runtime::ArmInfo;

/// Every arm that requests can name.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Models {
    /// Always `list`.
    object: &'static str,
    data: Vec<Model>,
}

/// One arm.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Model {
    /// `MODEL[@PROFILE][+ADAPTER]`.
    id: String,
    /// Always `model`.
    object: &'static str,
    /// When the server loaded it, in seconds since 1970 (Unix time).
    created: u64,
    /// Always `incant`.
    owned_by: &'static str,
    /// The model whose weights it uses.
    root: String,
    /// The arm that it is made from, if any.
    parent: Option<String>,
    /// The alignment prompt it uses, if any.
    profile: Option<String>,
    /// The LoRA adapter it uses, if any.
    adapter: Option<String>,
    /// The language of its alignment prompt (BCP-47); absent without one, or if it follows the
    /// question.
    #[serde(skip_serializing_if = "Option::is_none")]
    language: Option<String>,
    /// The default sampling parameters of its chat answers, where they differ from OpenAI's.
    sampling: SamplingDefaults,
    /// The weight of the guidance that its alignment prompt sets, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    guidance: Option<f32>,
}

impl Model {
    fn new(arm: ArmInfo, created: u64) -> Model {
        let ArmInfo {
            id,
            model,
            profile,
            adapter,
            parent,
            language,
            sampling,
            guidance,
        } = arm;
        Model {
            id,
            object: "model",
            created,
            owned_by: "incant",
            root: model,
            parent,
            profile,
            adapter,
            language,
            sampling,
            guidance,
        }
    }
}

/// Lists all arms.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Models> {
    let created = app.runtime.created();
    let data = app
        .runtime
        .arms()
        .into_iter()
        .map(|arm| Model::new(arm, created))
        .collect();
    Json(Models {
        object: "list",
        data,
    })
}

/// Describes one arm, by its percent-encoded id.
pub(crate) async fn one(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    // The only rejection is an id that is not UTF-8, and no arm has such an id.
    let Path(id) =
        id.map_err(|_| ApiError::UnknownModel("No model has an id that is not UTF-8.".into()))?;
    let known = app.runtime.arms().into_iter().find(|arm| arm.id == id);
    match known {
        Some(arm) => Ok(Json(Model::new(arm, app.runtime.created()))),
        None => {
            // The runtime has the most precise error for an unknown id.
            let missing = app.runtime.arm(&id).err().map(ApiError::from);
            Err(missing.unwrap_or_else(|| {
                ApiError::UnknownModel(format!("The model `{}` is not served.", excerpt(&id)))
            }))
        }
    }
}

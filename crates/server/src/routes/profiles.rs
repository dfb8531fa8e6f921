//! `GET /v1/profiles`: lists the alignment prompts, with their texts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract;
use schemars::JsonSchema;
use serde::Serialize;

use crate::App;
use incant_runtime::ProfileInfo;

/// Every profile that a model id can name.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Profiles {
    /// Always `list`.
    object: &'static str,
    data: Vec<Profile>,
    /// Invalid profile files without an earlier valid version to serve.
    broken: Vec<Broken>,
}

/// An invalid profile file.
#[derive(Debug, Serialize, JsonSchema)]
struct Broken {
    /// The name that its profile would have.
    id: String,
    /// The error in it.
    error: String,
}

/// One profile.
#[derive(Debug, Serialize, JsonSchema)]
struct Profile {
    /// The name after the `@` in a model id.
    id: String,
    /// Always `profile`.
    object: &'static str,
    title: String,
    description: String,
    /// The language it is written in (BCP-47), such as `en`.
    language: String,
    /// The profile that it replaces where that is the default and the first question is in the
    /// variant's language, or null.
    variant_of: Option<String>,
    /// The number of examples in it.
    shots: usize,
    version: String,
    /// The role markers that end an answer at the start of a line.
    markers: Vec<String>,
    /// The constant text before every conversation, or null if there is none.
    prefix: Option<String>,
    /// The number of tokens of that text, by model.
    prefix_tokens: BTreeMap<String, usize>,
    /// The models whose chat uses it if the model id names no profile.
    default_for: Vec<String>,
    /// `current`, or `outdated` if its file has changed since it was loaded.
    state: State,
    /// The reason why the newer version is not served, or null.
    error: Option<String>,
}

/// Whether the served profile matches its file.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum State {
    Current,
    Outdated,
}

impl From<ProfileInfo> for Profile {
    fn from(info: ProfileInfo) -> Profile {
        Profile {
            id: info.name,
            object: "profile",
            title: info.title,
            description: info.description,
            language: info.language,
            variant_of: info.variant_of,
            shots: info.shots,
            version: info.version,
            markers: info.markers,
            prefix: info.prefix_text,
            prefix_tokens: info.prefix_tokens,
            default_for: info.default_for,
            state: match info.problem {
                None => State::Current,
                Some(_) => State::Outdated,
            },
            error: info.problem,
        }
    }
}

/// Lists all profiles.
pub(crate) async fn list(extract::State(app): extract::State<Arc<App>>) -> Json<Profiles> {
    let (profiles, broken) = app.runtime.profiles();
    let broken = broken.into_iter();
    let broken = broken.map(|(id, error)| Broken { id, error }).collect();
    Json(Profiles {
        object: "list",
        data: profiles.into_iter().map(Profile::from).collect(),
        broken,
    })
}

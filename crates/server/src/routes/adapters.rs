//! `/v1/adapters`: lists, loads and unloads LoRA adapters.

use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{self, State};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::App;
use crate::errors::ApiError;
use crate::request::Post;
use incant_engine::AddAdapterError;
use incant_gguf::open::Location;
use incant_gguf::printable::excerpt;
use incant_runtime::{self as runtime, AdapterError, Model};

/// Every adapter that a model id can name.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Adapters {
    /// Always `list`.
    object: &'static str,
    data: Vec<Adapter>,
}

/// One adapter.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Adapter {
    /// The id of the arm of the model with this adapter, `MODEL+ADAPTER`.
    id: String,
    /// Always `adapter`.
    object: &'static str,
    /// The name after the `+` in a model id.
    name: String,
    /// The model that it adapts.
    model: String,
    /// When it was loaded, in seconds since 1970 (Unix time).
    created: u64,
    /// The file it was read from: its path within the server's adapter directory, or its name.
    path: String,
    /// The profile that chat uses with it if the model id names none, or null.
    profile: Option<String>,
    /// The different ranks of its matrices.
    ranks: Vec<usize>,
    /// The number of its parameters.
    parameters: usize,
    /// The size of its weights in bytes; the same weights under several names are stored once.
    bytes: usize,
}

impl Adapter {
    fn new(model: &Model, adapter: &runtime::Adapter) -> Adapter {
        Adapter {
            id: format!("{}+{}", model.id(), adapter.name()),
            object: "adapter",
            name: adapter.name().to_owned(),
            model: model.id().to_owned(),
            created: adapter.created(),
            path: adapter.path().display().to_string(),
            profile: adapter.profile().map(str::to_owned),
            ranks: adapter.ranks().to_vec(),
            parameters: adapter.parameters(),
            bytes: adapter.bytes(),
        }
    }
}

/// The adapter to load, and its name.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct LoadRequest {
    /// The name to serve it under; an adapter that has this name is replaced.
    name: Option<String>,
    /// A PEFT directory or a GGUF file below the server's adapter directory.
    path: Option<String>,
    /// The model that it adapts; may be absent if only one model is served.
    model: Option<String>,
}

/// An adapter that is no longer served.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Deleted {
    /// The id of the arm of the model with this adapter.
    id: String,
    /// Always `adapter`.
    object: &'static str,
    /// Always true.
    deleted: bool,
}

/// Lists all adapters.
pub(crate) async fn list(State(app): State<Arc<App>>) -> Json<Adapters> {
    let models = app.runtime.models().iter();
    let data = models.flat_map(|model| {
        let adapters = model.adapters();
        let adapters = adapters
            .values()
            .map(|adapter| Adapter::new(model, adapter));
        adapters.collect::<Vec<_>>()
    });
    Json(Adapters {
        object: "list",
        data: data.collect(),
    })
}

/// Loads an adapter. Running requests keep the adapters that they began with.
pub(crate) async fn load(post: Post) -> Result<Json<Adapter>, ApiError> {
    let (request, mut context) = post.read(|fields| fields.view::<LoadRequest>()).await?;
    let required = |value: Option<String>, name| {
        value.ok_or_else(|| ApiError::invalid(name, format!("`{name}` is required.")))
    };
    let name = required(request.name, "name")?;
    let path = required(request.path, "path")?;
    let model = model(&context.app, request.model.as_deref())?;
    let folder = context.app.options.adapter_folder.clone().ok_or_else(|| {
        ApiError::invalid(
            "path",
            "This server loads no adapters: it was started without --adapter-dir.",
        )
    })?;
    // One at a time: the parameters of an adapter that is being read are not in the memory budget
    // yet. Requests that wait hold no thread.
    let turn = Arc::clone(&context.app.adapter_turn).lock_owned().await;
    let app = Arc::clone(&context.app);
    let loaded = context.run_blocking(None, move |_| {
        let _turn = turn;
        let missing = |error| ApiError::Internal(format!("the adapter directory: {error}"));
        let location = Location::within(&folder, Path::new(&path)).map_err(missing)?;
        let adapter = model.load_adapter_at(&name, &location);
        let adapter = adapter.map_err(|error| refused(&app, error))?;
        tracing::info!(
            model = model.id(),
            adapter = adapter.name(),
            "adapter loaded"
        );
        Ok(Adapter::new(&model, &adapter))
    });
    loaded.await.map(Json)
}

/// Returns why an adapter is not loaded, for the client that sent the request.
fn refused(app: &App, error: AdapterError) -> ApiError {
    let no_room = |error: &dyn std::fmt::Display| {
        let models = app.runtime.models().iter();
        let loaded = models.flat_map(|model| {
            let adapters = model.adapters();
            let ids = adapters.keys().map(|name| format!("{}+{name}", model.id()));
            ids.collect::<Vec<_>>()
        });
        let loaded = loaded.collect::<Vec<_>>().join(", ");
        ApiError::AdapterMemoryFull(if loaded.is_empty() {
            format!("{error}.")
        } else {
            format!("{error}. Loaded are {}.", excerpt(&loaded))
        })
    };
    match &error {
        AdapterError::Name(_) => ApiError::invalid("name", format!("{error}.")),
        AdapterError::Lora(cause) if cause.is_outside() => ApiError::invalid(
            "path",
            "`path` must be relative to the server's adapter directory and lie within it.",
        ),
        AdapterError::Lora(cause) if cause.is_too_large() => no_room(&error),
        AdapterError::Engine(AddAdapterError::OutOfMemory { .. }) => no_room(&error),
        AdapterError::Lora(_)
        | AdapterError::UnknownProfile { .. }
        | AdapterError::Engine(AddAdapterError::NotFinite(..)) => {
            ApiError::invalid("path", format!("{error}."))
        }
        AdapterError::Engine(AddAdapterError::Exec(_) | AddAdapterError::Died) => {
            ApiError::Internal(error.to_string())
        }
    }
}

/// Unloads an adapter, by its percent-encoded id. Running requests keep it.
pub(crate) async fn unload(
    State(app): State<Arc<App>>,
    id: Result<extract::Path<String>, PathRejection>,
) -> Result<Json<Deleted>, ApiError> {
    let unknown =
        |id: &str| ApiError::UnknownModel(format!("There is no adapter `{}`.", excerpt(id)));
    let extract::Path(id) = id.map_err(|_| unknown("\u{fffd}"))?;
    let models = app.runtime.models().iter();
    let mut found = models.filter_map(|model| {
        let name = id.strip_prefix(model.id())?.strip_prefix('+')?;
        Some((model, model.unload_adapter(name)?))
    });
    let (model, adapter) = found.next().ok_or_else(|| unknown(&id))?;
    tracing::info!(
        model = model.id(),
        adapter = adapter.name(),
        "adapter unloaded"
    );
    Ok(Json(Deleted {
        id,
        object: "adapter",
        deleted: true,
    }))
}

/// Returns the model with this id or, without an id, the only model.
fn model(app: &App, id: Option<&str>) -> Result<Arc<Model>, ApiError> {
    let models = app.runtime.models();
    match (id, models) {
        (None, [only]) => Ok(Arc::clone(only)),
        (None, _) => Err(ApiError::invalid(
            "model",
            "`model` is required: several models are served.",
        )),
        (Some(id), _) => {
            let found = models.iter().find(|model| model.id() == id);
            let unknown =
                || ApiError::UnknownModel(format!("The model `{}` is not served.", excerpt(id)));
            found.cloned().ok_or_else(unknown)
        }
    }
}

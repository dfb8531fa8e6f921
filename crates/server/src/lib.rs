//! The HTTP server: OpenAI's REST API on top of [`incant_runtime`].
//!
//! A request is read into typed views (`fields`), checked (`controls`, `unsupported`), rendered and
//! tokenized by its arm, and handed to the engine. `answer` turns the engine's events back into
//! text; an endpoint (one file each in `routes`) only defines its JSON. Every failure is an
//! `ApiError`.
//!
//! [`incant_runtime`] is the seam between HTTP and everything below it. It knows arms, profiles and
//! engines, and nothing of HTTP. This crate knows nothing of the command line or the terminal
//! program, and trains nothing.
#![forbid(unsafe_code)]

mod accept;
mod answer;
mod blocking_pool;
mod body;
mod client;
mod controls;
mod cors;
mod deadline;
mod endpoints;
mod errors;
mod extras;
mod fields;
mod guidance;
mod hosts;
mod keys;
mod linger;
mod listen;
mod log;
mod metrics;
mod observed_body;
mod openapi;
mod origin_check;
mod overload;
pub mod ranges;
mod request;
mod routes;
mod sse;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;
mod unsupported;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;

pub use accept::serve;
pub use cors::{Origin, OriginError};
pub use deadline::{TimeLimitError, time_limit};
pub use hosts::{HostName, HostNameError};
pub use keys::{ApiKeys, KeyError};
pub use listen::listen;
pub use overload::SPARE_PLACES;
pub use tls::{Tls, TlsError};

use blocking_pool::BlockingPool;
use body::BodyMemory;
use errors::ApiError;
use incant_gguf::printable::excerpt;
use incant_runtime::{Arm, Runtime};
use metrics::Metrics;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Refuse requests with unknown fields, instead of a warning in the log.
    pub strict: bool,
    /// The accepted API keys; without any, no key is required.
    pub keys: ApiKeys,
    /// The web origins whose pages may use the server (CORS).
    pub origins: Vec<Origin>,
    /// The names that clients may address the server by, besides IP addresses and loopback names.
    pub hosts: Vec<HostName>,
    /// The proxies whose `X-Forwarded-For` is trusted.
    pub trusted_proxies: Vec<IpAddr>,
    /// The folder below which clients may name adapters to load; `None` allows no loading.
    pub adapter_folder: Option<PathBuf>,
    /// Serve over TLS.
    pub tls: Option<Arc<Tls>>,
    /// The maximum size of a request body in bytes. All bodies that are larger than 64 KiB and not
    /// turned into prompts yet hold at most eight times this size, and those of one client about
    /// half of that; further ones wait.
    pub max_body: usize,
    /// The connection limit. Connections over it get an overload error, or the health check.
    pub max_connections: usize,
    /// How long a client may take for each of: the TLS handshake, sending a request's head, sending
    /// its body, reading any of the bytes sent to it, idling between requests.
    pub client_timeout: Duration,
    /// How long an answer may take from its request's arrival, including the queue; `None` is
    /// unlimited.
    pub request_timeout: Option<Duration>,
    /// How long running answers may take to end after the shutdown signal (graceful shutdown).
    pub drain_timeout: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        ServeOptions {
            strict: false,
            keys: ApiKeys::default(),
            origins: Vec::new(),
            hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            adapter_folder: None,
            tls: None,
            max_body: 8 << 20,
            max_connections: 1024,
            client_timeout: Duration::from_secs(60),
            request_timeout: None,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// State shared by all requests.
struct App {
    runtime: Arc<Runtime>,
    options: ServeOptions,
    metrics: Metrics,
    /// The memory budget of request bodies.
    body_memory: BodyMemory,
    /// The threads that turn bodies into prompts.
    blocking_pool: BlockingPool,
    /// Unknown fields that were warned of.
    warned: Mutex<HashSet<String>>,
    /// Held by the request that loads an adapter.
    adapter_turn: Arc<tokio::sync::Mutex<()>>,
}

impl App {
    /// Returns the arm with this id or, without an id, the only model.
    fn arm_or_only(&self, id: Option<&str>) -> Result<Arm, ApiError> {
        if let Some(id) = id {
            return Ok(self.runtime.arm(id)?);
        }
        let arms = self.runtime.arms();
        match arms.first() {
            Some(first) if arms.iter().all(|arm| arm.model == first.model) => {
                Ok(self.runtime.arm(&first.model)?)
            }
            _ => Err(ApiError::invalid(
                "model",
                "`model` is required: several models are served.",
            )),
        }
    }
}

/// Returns the endpoints with all middleware around them.
fn router(runtime: Arc<Runtime>, options: ServeOptions) -> Router {
    let cors = cors::layer(&options.origins);
    let app = Arc::new(App {
        runtime,
        body_memory: BodyMemory::new(options.max_body),
        blocking_pool: BlockingPool::new(),
        options,
        metrics: Metrics::new(),
        warned: Mutex::default(),
        adapter_turn: Arc::default(),
    });
    let guarded = endpoints::router()
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(
            app.clone(),
            refuse_while_loading,
        ))
        .layer(middleware::from_fn_with_state(app.clone(), keys::check))
        .layer(CatchPanicLayer::custom(ApiError::from_panic))
        .layer(middleware::from_fn(overload::check));
    // Preflight requests have no key, and a page must be able to read every refusal.
    let shared = match cors {
        Some(cors) => guarded.layer(cors),
        None => guarded,
    };
    shared
        .layer(middleware::from_fn_with_state(
            app.clone(),
            origin_check::check,
        ))
        .layer(middleware::map_request(linger::request))
        .layer(middleware::from_fn_with_state(app.clone(), log::request))
        .with_state(app)
}

async fn unknown_path(request: Request) -> ApiError {
    ApiError::UnknownPath {
        path: excerpt(request.uri().path()).into_owned(),
    }
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed {
        method: excerpt(request.method().as_str()).into_owned(),
        path: excerpt(request.uri().path()).into_owned(),
    }
}

/// Paths that are served while models load.
const SERVED_WHILE_LOADING: [&str; 3] = [routes::page::PATH, routes::metrics::PATH, openapi::PATH];

/// Refuses requests while models load, except to [`SERVED_WHILE_LOADING`].
async fn refuse_while_loading(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    if app.runtime.is_ready() || SERVED_WHILE_LOADING.contains(&request.uri().path()) {
        next.run(request).await
    } else {
        ApiError::Loading.into_response()
    }
}

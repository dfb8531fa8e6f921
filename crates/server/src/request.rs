//! A POST request as its handler gets it: the body, then the server and the log line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRequest, Request};
use bytes::Bytes;

use super::App;
use super::answer::{Usage, Watch};
use super::body::{self, Reservation, SMALL};
use super::client;
use super::deadline::Deadline;
use super::errors::ApiError;
use super::fields::Fields;
use super::log::{AnswerStats, Peer, Trace};
use super::metrics::Outcome;
use incant_engine::Client;
use incant_gguf::printable::excerpt;
use incant_prompt::text::Cancel;
use incant_runtime::Arm;

/// The maximum number of unknown field names remembered. Each is shortened, so that a hostile
/// client cannot fill the memory with them.
const MAX_WARNED: usize = 1000;

/// A request with a JSON body that is not parsed yet.
pub(crate) struct Post {
    context: RequestContext,
    body: Bytes,
}

/// A request whose body was parsed.
pub(crate) struct RequestContext {
    pub(crate) app: Arc<App>,
    pub(crate) client: Client,
    trace: Arc<Trace>,
    /// When its body was received in full.
    arrived: Instant,
    /// The size of its body in bytes.
    size: usize,
    /// The memory budget taken by the body, or by the data parsed from it.
    reservation: Option<Arc<Reservation>>,
}

impl FromRequest<Arc<App>> for Post {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Post, ApiError> {
        let trace = request
            .extensions()
            .get::<Arc<Trace>>()
            .cloned()
            .unwrap_or_default();
        body::check_kind(request.headers())?;
        let options = &app.options;
        let peer = request.extensions().get::<Peer>().copied();
        let client = client::of(options, request.headers(), peer);
        let (body, reservation) = body::read(
            request,
            client,
            &app.body_memory,
            options.max_body,
            options.client_timeout,
        )
        .await?;
        Ok(Post {
            context: RequestContext {
                app: app.clone(),
                client,
                trace,
                arrived: Instant::now(),
                size: body.len(),
                reservation: Some(Arc::new(reservation)),
            },
            body,
        })
    }
}

impl Post {
    /// Parses the body with `views`. Fields that no view read are warned about, or refused if the
    /// server is strict.
    pub(crate) async fn read<T: Send + 'static>(
        self,
        views: impl FnOnce(&mut Fields<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(T, RequestContext), ApiError> {
        let Post { context, body } = self;
        let app = Arc::clone(&context.app);
        let read = move |_: &Cancel| {
            let mut fields = Fields::parse(&body)?;
            let read = views(&mut fields)?;
            app.check_unknown(&fields)?;
            Ok(read)
        };
        let read = if context.size <= SMALL {
            read(&Cancel::default())?
        } else {
            context.work(None, read).await?
        };
        Ok((read, context))
    }
}

impl RequestContext {
    /// Returns the arm with this id, and names it in the log line.
    pub(crate) fn arm(&self, id: &str) -> Result<Arm, ApiError> {
        let arm = self.app.runtime.arm(id)?;
        self.trace.note_arm(arm.id());
        Ok(arm)
    }

    /// Returns the arm with this id or, without an id, the only model.
    pub(crate) fn arm_or_only(&self, id: Option<&str>) -> Result<Arm, ApiError> {
        let arm = self.app.arm_or_only(id)?;
        self.trace.note_arm(arm.id());
        Ok(arm)
    }

    /// Returns when the answer must be complete, by the server's limit and the request's own.
    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> Deadline {
        Deadline::new(self.arrived, self.app.options.request_timeout, timeout)
    }

    /// Starts to measure the answers of `arm` to prompts with these numbers of tokens, which are
    /// queued now.
    pub(crate) fn watch(&self, arm: &str, prompts: Vec<usize>, answers_per_prompt: usize) -> Watch {
        let metrics = self.app.metrics.arm(arm);
        let trace = self.trace.clone();
        Watch::new(metrics, trace, self.arrived, prompts, answers_per_prompt)
    }

    /// Runs the work that turns the parsed fields into the engine's input, as
    /// [`run_blocking`](Self::run_blocking) does. A request that ends here, because its client
    /// disconnects or its deadline passes, is counted among the requests of its arms.
    pub(crate) async fn plan<T: Send + 'static>(
        &mut self,
        timeout: Option<Duration>,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let mut unplanned = Unplanned {
            app: Arc::clone(&self.app),
            trace: Arc::clone(&self.trace),
            outcome: Some(Outcome::Disconnected),
        };
        let planned = self.run_blocking(timeout, work).await;
        unplanned.outcome = match planned {
            Err(ApiError::Timeout { .. }) => Some(Outcome::TimedOut),
            _ => None,
        };
        planned
    }

    /// Runs work where it delays no other request. The work is cancelled when the client
    /// disconnects or the deadline passes. After it the request holds none of the memory budget of
    /// bodies.
    pub(crate) async fn run_blocking<T: Send + 'static>(
        &mut self,
        timeout: Option<Duration>,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let done = self.work(timeout, work).await;
        self.reservation = None;
        done
    }

    async fn work<T: Send + 'static>(
        &self,
        timeout: Option<Duration>,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        // The body's memory stays taken until the work ends, even if the client disconnects before.
        let reservation = self.reservation.clone();
        let working = self.app.blocking_pool.run(self.size, move |cancel| {
            let _reservation = reservation;
            work(cancel)
        });
        let mut deadline = self.deadline(timeout);
        tokio::select! {
            // Work that is ready must not postpone the deadline.
            biased;
            error = deadline.passed() => {
                self.note_timeout();
                Err(error)
            }
            done = working => done,
        }
    }

    /// Notes in the log line that the deadline passed before there was an answer.
    fn note_timeout(&self) {
        self.trace.note_answer(AnswerStats {
            outcome: Outcome::TimedOut,
            usage: Usage::new(0, 0, 0),
            queued: None,
            first_token: None,
        });
    }
}

/// A request without any sequence in the engine yet. Dropping this counts its outcome.
struct Unplanned {
    app: Arc<App>,
    trace: Arc<Trace>,
    /// `None` once the request's sequences are counted instead.
    outcome: Option<Outcome>,
}

impl Drop for Unplanned {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome {
            for arm in self.trace.arms() {
                self.app.metrics.arm(&arm).ended(outcome);
            }
        }
    }
}

impl App {
    /// Warns of fields that nothing read, or refuses them if the server is strict.
    fn check_unknown(&self, fields: &Fields<'_>) -> Result<(), ApiError> {
        for name in fields.unknown() {
            if self.options.strict {
                let name = excerpt(name);
                return Err(ApiError::invalid(
                    name.clone(),
                    format!("`{name}` is not a field that incant knows."),
                ));
            }
            let mut warned = self
                .warned
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            if warned.len() >= MAX_WARNED {
                break;
            }
            let name = excerpt(name).into_owned();
            if warned.insert(name.clone()) {
                tracing::warn!(
                    field = name,
                    "a request has a field that incant does not know; it is ignored"
                );
            }
        }
        Ok(())
    }
}

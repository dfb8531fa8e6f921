//! What a handler of a POST request holds: the body, then the server and the log line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{FromRequest, Request};
use bytes::Bytes;

use super::App;
use super::answer::{Usage, Watch};
use super::body::{self, Room, SMALL};
use super::client;
use super::deadline::Deadline;
use super::errors::ApiError;
use super::fields::Fields;
use super::log::{Learned, Peer, Trace};
use super::metrics::Outcome;
use crate::runtime::Arm;
use incant_engine::Client;
use incant_gguf::printable::excerpt;
use incant_prompt::text::Cancel;

/// Unknown field names remembered, each cut short, so that a hostile client cannot fill the
/// memory with them.
const MAX_WARNED: usize = 1000;

/// One request with a JSON body that nobody has read yet.
pub(crate) struct Post {
    call: Call,
    body: Bytes,
}

/// One request whose body was read.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    /// Whose it is.
    pub(crate) client: Client,
    trace: Arc<Trace>,
    /// When all of it was here.
    arrived: Instant,
    /// The bytes of its body.
    size: usize,
    /// The room that the body, or what was read from it, takes up.
    room: Option<Arc<Room>>,
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
        let (body, room) = body::read(
            request,
            client,
            &app.rooms,
            options.max_body,
            options.client_timeout,
        )
        .await?;
        Ok(Post {
            call: Call {
                app: app.clone(),
                client,
                trace,
                arrived: Instant::now(),
                size: body.len(),
                room: Some(Arc::new(room)),
            },
            body,
        })
    }
}

impl Post {
    /// Reads the body by `views`, and is done with it: what no view knew is warned of, or
    /// refused where the server is strict.
    pub(crate) async fn read<T: Send + 'static>(
        self,
        views: impl FnOnce(&mut Fields<'_>) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<(T, Call), ApiError> {
        let Post { call, body } = self;
        let app = Arc::clone(&call.app);
        let read = move |_: &Cancel| {
            let mut fields = Fields::parse(&body)?;
            let read = views(&mut fields)?;
            app.check_unknown(&fields)?;
            Ok(read)
        };
        let read = match call.size <= SMALL {
            true => read(&Cancel::default())?,
            false => call.work(None, read).await?,
        };
        Ok((read, call))
    }
}

impl Call {
    /// The arm with this id, which the log line then names.
    pub(crate) fn arm(&self, id: &str) -> Result<Arm, ApiError> {
        let arm = self.app.runtime.arm(id)?;
        self.trace.note_arm(arm.id());
        Ok(arm)
    }

    /// The arm with this id, or the only model there is.
    pub(crate) fn arm_or_only(&self, id: Option<&str>) -> Result<Arm, ApiError> {
        let arm = self.app.arm_or_only(id)?;
        self.trace.note_arm(arm.id());
        Ok(arm)
    }

    /// When the answer must be complete, by the server's limit and the request's own.
    pub(crate) fn deadline(&self, timeout: Option<Duration>) -> Deadline {
        Deadline::new(self.arrived, self.app.options.request_timeout, timeout)
    }

    /// Watches the answers of `arm` to prompts of so many tokens, which are queued now.
    pub(crate) fn watch(&self, arm: &str, prompts: Vec<usize>, answers_per_prompt: usize) -> Watch {
        let metrics = self.app.metrics.arm(arm);
        let trace = self.trace.clone();
        Watch::new(metrics, trace, self.arrived, prompts, answers_per_prompt)
    }

    /// Does the work that turns what was read into what the engine takes, as
    /// [`unhurried`](Self::unhurried) does. A request that ends here, because its client leaves
    /// or because there is no time left, counts among the requests of its arms.
    pub(crate) async fn plan<T: Send + 'static>(
        &mut self,
        timeout: Option<Duration>,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let mut unplanned = Unplanned {
            app: Arc::clone(&self.app),
            trace: Arc::clone(&self.trace),
            outcome: Some(Outcome::Left),
        };
        let planned = self.unhurried(timeout, work).await;
        unplanned.outcome = match planned {
            Err(ApiError::Timeout { .. }) => Some(Outcome::TimedOut),
            _ => None,
        };
        planned
    }

    /// Does work where it holds up no other request. The work is cancelled when the client
    /// leaves or when the answer is due. After it the request takes up no room among bodies.
    pub(crate) async fn unhurried<T: Send + 'static>(
        &mut self,
        timeout: Option<Duration>,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let done = self.work(timeout, work).await;
        self.room = None;
        done
    }

    async fn work<T: Send + 'static>(
        &self,
        timeout: Option<Duration>,
        work: impl FnOnce(&Cancel) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        // The body stays until the work ends, even if the client leaves before.
        let room = self.room.clone();
        let working = self.app.workshop.work(self.size, move |cancel| {
            let _room = room;
            work(cancel)
        });
        let mut deadline = self.deadline(timeout);
        tokio::select! {
            // Work that is ready must not put the deadline off.
            biased;
            error = deadline.passed() => {
                self.note_timeout();
                Err(error)
            }
            done = working => done,
        }
    }

    /// Tells the log that there was no time for an answer.
    fn note_timeout(&self) {
        self.trace.note_answer(Learned {
            outcome: Outcome::TimedOut,
            usage: Usage::new(0, 0, 0),
            queued: None,
            first_token: None,
        });
    }
}

/// A request of which no sequence is in the engine yet. Dropping it counts how it ended.
struct Unplanned {
    app: Arc<App>,
    trace: Arc<Trace>,
    /// `None` once sequences of the request are counted instead.
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
    /// Warns of fields that nothing read, or refuses them where the server is strict.
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

//! The engine's handle for other threads.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc as tokio_mpsc;

use super::adapter::{Adapter, AdapterMemory, AddAdapterError, Added, Known};
use super::admission::Admission;
use super::client::{Client, Owner};
use super::ensemble::Waker;
use super::heartbeat::Heartbeat;
use super::wait_estimate::WaitEstimate;
use super::waiting::Submitted;
use super::worker::Worker;
use super::{
    Event, GenerateRequest, Origin, Prefix, Request, Speculation, SubmitError, WarmError, Warmed,
    cache,
};
use crate::exec::{AdapterId, Executor};
use crate::kv::PrefixStore;
use incant_model::lora::Lora;
use incant_sample::SamplingParams;

/// The scheduling options of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The maximum number of sequences that run at once.
    pub slots: usize,
    /// The maximum number of sequences that wait.
    pub queue: usize,
    /// The maximum number of prompt tokens per step (chunked prefill), which limits the delay
    /// of running answers when a prompt arrives.
    pub chunk: usize,
    /// The store that keeps prefixes between runs, if any.
    pub prefixes: Option<PrefixStore>,
    /// The folder for swap files, which hold the KV of swapped-out sequences and have no name.
    pub swap_folder: PathBuf,
    /// The maximum duration of a step before the engine counts as stuck and refuses requests.
    pub stall_timeout: Duration,
    /// The memory budget of adapters, which several engines may share.
    pub adapter_memory: AdapterMemory,
    /// How many tokens are drafted for answers whose request does not say.
    pub speculation: Speculation,
    /// A fault for tests.
    #[cfg(debug_assertions)]
    pub fault: Option<super::Fault>,
}

/// The default budget of adapters in bytes.
pub const DEFAULT_ADAPTER_MEMORY: usize = 1 << 30;

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            slots: 32,
            queue: 128,
            chunk: 256,
            prefixes: None,
            swap_folder: std::env::temp_dir(),
            // A step is meant to take less than a second. The first step of a large model on a
            // slow disk takes longer.
            stall_timeout: Duration::from_secs(30),
            adapter_memory: AdapterMemory::new(DEFAULT_ADAPTER_MEMORY),
            speculation: Speculation::default(),
            #[cfg(debug_assertions)]
            fault: None,
        }
    }
}

/// A handle to the engine of one model. The engine's thread ends after the last handle is
/// dropped and the last sequence has ended.
#[derive(Clone, Debug)]
pub struct Engine {
    messages: mpsc::Sender<Message>,
    shared: Arc<Shared>,
    adapters: Arc<Mutex<Known>>,
    adapter_memory: AdapterMemory,
    speculation: Speculation,
}

/// A message to the worker.
pub(super) enum Message {
    /// Requests that were accepted.
    Requests(Vec<Submitted>),
    /// An adapter to load, and the channel for the result.
    AddAdapter(Box<Lora>, mpsc::Sender<Result<Added, AddAdapterError>>),
    /// An adapter that is no longer held.
    RemoveAdapter(AdapterId),
    /// Data from another engine, for which sequences are waiting, has arrived.
    Wake,
}

/// The state that handles and worker share.
#[derive(Debug)]
pub(super) struct Shared {
    admission: Arc<Admission>,
    /// The number of requests so far.
    requests: AtomicU64,
    draining: AtomicBool,
    stall_timeout: Duration,
    pub(super) heartbeat: Heartbeat,
    wait_estimate: Mutex<WaitEstimate>,
    pub(super) kv_used: AtomicUsize,
    pub(super) kv_capacity: AtomicUsize,
    pub(super) preemptions: AtomicU64,
}

impl Shared {
    /// Whether the worker is alive and makes progress.
    fn is_healthy(&self) -> bool {
        !self.heartbeat.has_died() && self.heartbeat.stalled_for() <= self.stall_timeout
    }

    /// Updates the estimate of how long the current sequences will take.
    pub(super) fn set_wait_estimate(&self, wait_estimate: WaitEstimate) {
        *self.wait_estimate() = wait_estimate;
    }

    fn wait_estimate(&self) -> MutexGuard<'_, WaitEstimate> {
        // The value is always replaced as a whole, so it is consistent.
        self.wait_estimate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The load of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The number of sequences that have begun.
    pub running: usize,
    /// The number of sequences that wait for a slot.
    pub waiting: usize,
    /// The used bytes of the KV cache, including KV kept for later requests.
    pub kv_used: usize,
    /// The size of the KV cache in bytes.
    pub kv_capacity: usize,
    /// The number of preemptions: how many times a sequence was swapped out.
    pub preemptions: u64,
}

impl Engine {
    /// Starts a thread that owns `executor`.
    ///
    /// # Errors
    /// The thread cannot be spawned.
    pub fn start(executor: Box<dyn Executor>, options: EngineOptions) -> std::io::Result<Engine> {
        let (engine, worker) = Engine::around(executor, options);
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())?;
        Ok(engine)
    }

    /// Creates a handle and its worker.
    pub(super) fn around(executor: Box<dyn Executor>, options: EngineOptions) -> (Engine, Worker) {
        let (messages, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            admission: Arc::new(Admission::new(options.slots, options.queue)),
            requests: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            stall_timeout: options.stall_timeout,
            heartbeat: Heartbeat::new(),
            wait_estimate: Mutex::default(),
            kv_used: AtomicUsize::new(0),
            kv_capacity: AtomicUsize::new(executor.kv_memory().capacity),
            preemptions: AtomicU64::new(0),
        });
        let (adapter_memory, speculation) = (options.adapter_memory.clone(), options.speculation);
        let worker = Worker::new(executor, options, inbox, Arc::clone(&shared));
        let engine = Engine {
            messages,
            shared,
            adapters: Arc::default(),
            adapter_memory,
            speculation,
        };
        (engine, worker)
    }

    /// Checks whether `count` requests could ever be queued at once, before they are created.
    ///
    /// # Errors
    /// They could not.
    pub fn could_take(&self, count: usize) -> Result<(), SubmitError> {
        // Slots count too: requests to an idle engine start at once.
        let limit = self.shared.admission.limit();
        if count > limit {
            Err(SubmitError::TooMany {
                asked: count,
                limit,
            })
        } else {
            Ok(())
        }
    }

    /// Calls [`submit_for`](Engine::submit_for) for the program itself.
    ///
    /// # Errors
    /// See [`submit_for`](Engine::submit_for).
    pub fn submit<R: Into<Request>>(
        &self,
        requests: Vec<R>,
    ) -> Result<Vec<Generation>, SubmitError> {
        self.submit_for(Client::default(), requests)
    }

    /// Queues all `requests` of a client, or none of them. For fair sharing of slots and steps
    /// they count as one request.
    ///
    /// # Errors
    /// The queue is full, or too short for all of them; or the engine is draining, stuck or
    /// dead.
    pub fn submit_for<R: Into<Request>>(
        &self,
        client: Client,
        requests: Vec<R>,
    ) -> Result<Vec<Generation>, SubmitError> {
        let shared = &self.shared;
        if shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Draining);
        }
        if !shared.is_healthy() {
            return Err(SubmitError::Unhealthy);
        }
        let count = requests.len();
        self.could_take(count)?;
        let permits = shared.admission.take(client, count);
        let permits = permits.map_err(|missing| SubmitError::QueueFull {
            retry_after: shared.wait_estimate().retry_after(missing),
        })?;
        let owner = Owner {
            client,
            request: shared.requests.fetch_add(1, Ordering::Relaxed),
        };
        let (submitted, generations) = requests
            .into_iter()
            .zip(permits)
            .map(|(request, permit)| {
                let (sender, events) = tokio_mpsc::unbounded_channel();
                let mut request = request.into();
                let waker = || Waker::new(self.messages.clone());
                match &mut request {
                    Request::Generate(generate) => {
                        generate.speculation.get_or_insert(self.speculation);
                        if let Some(together) = &generate.together {
                            together.lead.register(waker());
                        }
                    }
                    Request::Join(join) => join.member.register(waker()),
                    Request::Follow(_) => {}
                }
                let submitted = Submitted {
                    request,
                    events: sender,
                    owner,
                    permit,
                };
                (submitted, Generation::new(events))
            })
            .unzip();
        // Recorded before sending, because the worker may have finished and rest again before
        // this thread continues. The worker ends only after the last handle: if sending fails,
        // the worker has just panicked, and has reverted the counts.
        shared.heartbeat.expect_progress();
        match self.messages.send(Message::Requests(submitted)) {
            Ok(()) => Ok(generations),
            Err(_) => Err(SubmitError::Unhealthy),
        }
    }

    /// Loads an adapter that was read for this engine's model, or returns the same adapter if
    /// it is already held: its weights are in memory once. Blocks until the current step has
    /// ended and the adapter has been tried.
    ///
    /// # Errors
    /// The budget is used up, or the model computes NaN or infinity with the adapter.
    pub fn add_adapter(&self, lora: Lora) -> Result<Adapter, AddAdapterError> {
        let fingerprint = lora.fingerprint();
        // Locked until the adapter is loaded, so that it is not loaded twice at the same time.
        let mut known = self.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(adapter) = known.find(fingerprint) {
            return Ok(adapter);
        }
        let (reply, answer) = mpsc::channel();
        let message = Message::AddAdapter(Box::new(lora), reply);
        self.shared.heartbeat.expect_progress();
        self.messages
            .send(message)
            .map_err(|_| AddAdapterError::Died)?;
        let added = answer.recv().map_err(|_| AddAdapterError::Died)??;
        let adapter = Adapter::new(added, fingerprint, self.messages.clone());
        known.add(&adapter);
        Ok(adapter)
    }

    /// The memory budget of the engine's adapters.
    pub fn adapter_memory(&self) -> &AdapterMemory {
        &self.adapter_memory
    }

    /// Loads a prefix from disk or computes it, unless it is in memory. Blocks.
    ///
    /// # Errors
    /// The executor failed, or the engine refuses requests.
    pub fn warm(&self, prefix: Arc<Prefix>) -> Result<Warmed, WarmError> {
        let began = Instant::now();
        let tokens = cache::shared(&prefix).len();
        let request = GenerateRequest {
            adapter: None,
            prefix: Some(prefix),
            prompt: Vec::new(),
            max_tokens: 0,
            end_tokens: Arc::from([]),
            sampling: SamplingParams::default(),
            index: 0,
            logprobs: None,
            prompt_logprobs: None,
            feeds: Vec::new(),
            together: None,
            isolated: false,
            speculation: None,
            prediction: Vec::new(),
        };
        let mut origin = Origin::Computed;
        for mut generation in self.submit(vec![request])? {
            loop {
                match generation.blocking_next() {
                    Some(Event::Started {
                        cached_tokens,
                        from_disk,
                    }) => {
                        if from_disk {
                            origin = Origin::Disk;
                        } else if cached_tokens == tokens {
                            origin = Origin::Memory;
                        }
                    }
                    Some(Event::Finished(_)) => break,
                    Some(Event::Failed(why)) => return Err(WarmError::Failed(why)),
                    Some(_) => {}
                    None => return Err(WarmError::Died),
                }
            }
        }
        Ok(Warmed {
            origin,
            tokens,
            took: began.elapsed(),
        })
    }

    /// Refuses new requests from now on; accepted ones continue.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// Whether the engine can be expected to answer: its thread is alive, and no step takes
    /// longer than [`EngineOptions::stall_timeout`].
    pub fn is_healthy(&self) -> bool {
        self.shared.is_healthy()
    }

    /// Resolves when the engine's thread has panicked. By then its sequences have failed, and
    /// it refuses requests.
    pub async fn died(&self) {
        self.shared.heartbeat.died().await;
    }

    /// The current load of the engine.
    pub fn load(&self) -> Load {
        // The counts of a dead thread are meaningless.
        let lives = !self.shared.heartbeat.has_died();
        let count = |count: usize| if lives { count } else { 0 };
        let admission = &self.shared.admission;
        Load {
            running: count(admission.running()),
            waiting: count(admission.waiting()),
            kv_used: self.shared.kv_used.load(Ordering::Relaxed),
            kv_capacity: self.shared.kv_capacity.load(Ordering::Relaxed),
            preemptions: self.shared.preemptions.load(Ordering::Relaxed),
        }
    }
}

/// The events of one sequence. Dropping it ends the sequence.
#[derive(Debug)]
pub struct Generation {
    events: tokio_mpsc::UnboundedReceiver<Event>,
    partners: Vec<Generation>,
}

impl Generation {
    fn new(events: tokio_mpsc::UnboundedReceiver<Event>) -> Generation {
        Generation {
            events,
            partners: Vec::new(),
        }
    }

    /// Attaches the generations of the ensemble's other members, which end when this one is
    /// dropped.
    pub fn with_partners(mut self, partners: Vec<Generation>) -> Generation {
        self.partners.extend(partners);
        self
    }

    /// The number of cached prompt tokens of the partners; call it once, after the first token.
    pub fn partners_cached(&mut self) -> usize {
        let started = |partner: &mut Generation| match partner.try_next() {
            Some(Event::Started { cached_tokens, .. }) => cached_tokens,
            _ => 0,
        };
        self.partners.iter_mut().map(started).sum()
    }

    /// Returns the next event; `None` after the last one, or if the engine has died.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Returns the next event if it has arrived.
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// Like [`next`](Generation::next), for a thread that may block.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

//! The side of the engine that other threads hold.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc as tokio_mpsc;

use super::adapter::{Adapter, AdapterMemory, AddAdapterError, Added, Known};
use super::client::{Client, Owner};
use super::group::Bell;
use super::outlook::Outlook;
use super::places::Places;
use super::pulse::Pulse;
use super::waiting::Submitted;
use super::worker::Worker;
use super::{Event, GenerateRequest, Origin, Prefix, Request, SubmitError, Warmed, cache};
use crate::exec::{AdapterId, Executor};
use crate::kv::PrefixStore;
use incant_model::lora::Lora;
use incant_sample::SamplingParams;

/// How an engine schedules.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// How many sequences run at once.
    pub slots: usize,
    /// How many more may wait.
    pub queue: usize,
    /// How many prompt tokens one step computes at the most: what running
    /// answers wait for when a prompt comes in.
    pub chunk: usize,
    /// Where prefixes are kept between runs; `None` keeps none.
    pub prefixes: Option<PrefixStore>,
    /// Where sequences that give up their memory for a while put it, in files
    /// without a name.
    pub swap_folder: PathBuf,
    /// How long one step may take before the engine counts as stuck and takes no new work.
    pub stall_timeout: Duration,
    /// What adapters may take; engines with the same one share it.
    pub adapter_memory: AdapterMemory,
    /// A fault for tests.
    #[cfg(debug_assertions)]
    pub fault: Option<super::Fault>,
}

/// The bytes that adapters may take where nobody says how many.
pub const DEFAULT_ADAPTER_MEMORY: usize = 1 << 30;

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            slots: 32,
            queue: 128,
            chunk: 256,
            prefixes: None,
            swap_folder: std::env::temp_dir(),
            // A step is meant to take less than a second. The first one of a large model
            // on a slow disk takes longer.
            stall_timeout: Duration::from_secs(30),
            adapter_memory: AdapterMemory::new(DEFAULT_ADAPTER_MEMORY),
            #[cfg(debug_assertions)]
            fault: None,
        }
    }
}

/// A handle to one model's engine. The engine's thread ends after the last
/// handle is dropped and the last sequence has ended.
#[derive(Clone, Debug)]
pub struct Engine {
    mail: mpsc::Sender<Mail>,
    shared: Arc<Shared>,
    adapters: Arc<Mutex<Known>>,
    adapter_memory: AdapterMemory,
}

/// What is sent to the worker.
pub(super) enum Mail {
    /// Requests that were accepted.
    Requests(Vec<Submitted>),
    /// An adapter to take in, and where its id goes.
    AddAdapter(Box<Lora>, mpsc::Sender<Result<Added, AddAdapterError>>),
    /// An adapter that nobody holds any more.
    RemoveAdapter(AdapterId),
    /// Something that sequences wait for has come from another engine.
    Wake,
}

/// What both sides see.
#[derive(Debug)]
pub(super) struct Shared {
    places: Arc<Places>,
    /// How many requests have come.
    requests: AtomicU64,
    draining: AtomicBool,
    stall_timeout: Duration,
    pub(super) pulse: Pulse,
    outlook: Mutex<Outlook>,
    pub(super) kv_used: AtomicUsize,
    pub(super) kv_capacity: AtomicUsize,
    pub(super) preemptions: AtomicU64,
}

impl Shared {
    /// Whether the worker lives and gets on.
    fn is_well(&self) -> bool {
        !self.pulse.has_died() && self.pulse.still() <= self.stall_timeout
    }

    /// Takes in how long those that are here will take.
    pub(super) fn set_outlook(&self, outlook: Outlook) {
        *self.outlook() = outlook;
    }

    fn outlook(&self) -> MutexGuard<'_, Outlook> {
        // It is replaced as a whole.
        self.outlook.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Sequences that have begun.
    pub running: usize,
    /// Sequences that wait for one.
    pub waiting: usize,
    /// Bytes of KV that sequences hold, those kept for later requests included.
    pub kv_used: usize,
    /// Bytes of KV that there is room for.
    pub kv_capacity: usize,
    /// How many times a sequence gave up its memory for a while.
    pub preemptions: u64,
}

impl Engine {
    /// Starts a thread that owns `executor`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(executor: Box<dyn Executor>, options: EngineOptions) -> std::io::Result<Engine> {
        let (engine, worker) = Engine::around(executor, options);
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())?;
        Ok(engine)
    }

    /// A handle, and the worker that it talks to.
    pub(super) fn around(executor: Box<dyn Executor>, options: EngineOptions) -> (Engine, Worker) {
        let (mail, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            places: Arc::new(Places::new(options.slots, options.queue)),
            requests: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            stall_timeout: options.stall_timeout,
            pulse: Pulse::new(),
            outlook: Mutex::default(),
            kv_used: AtomicUsize::new(0),
            kv_capacity: AtomicUsize::new(executor.kv_memory().capacity),
            preemptions: AtomicU64::new(0),
        });
        let adapter_memory = options.adapter_memory.clone();
        let worker = Worker::new(executor, options, inbox, Arc::clone(&shared));
        let engine = Engine {
            mail,
            shared,
            adapters: Arc::default(),
            adapter_memory,
        };
        (engine, worker)
    }

    /// Whether so many requests could ever be queued at once: before they are made,
    /// where they may be many.
    ///
    /// # Errors
    /// They could not.
    pub fn could_take(&self, count: usize) -> Result<(), SubmitError> {
        // Slots count as room: what is queued on an idle engine starts at once.
        let limit = self.shared.places.limit();
        match count > limit {
            true => Err(SubmitError::TooMany {
                asked: count,
                limit,
            }),
            false => Ok(()),
        }
    }

    /// [`submit_for`](Engine::submit_for) the program itself.
    ///
    /// # Errors
    /// The same.
    pub fn submit<R: Into<Request>>(
        &self,
        requests: Vec<R>,
    ) -> Result<Vec<Generation>, SubmitError> {
        self.submit_for(Client::default(), requests)
    }

    /// Queues all of a client's `requests`, or none of them. Together they count as one when
    /// slots and steps are shared out.
    ///
    /// # Errors
    /// The queue has no room for all, now or ever, or the engine is draining, stuck or dead.
    pub fn submit_for<R: Into<Request>>(
        &self,
        client: Client,
        requests: Vec<R>,
    ) -> Result<Vec<Generation>, SubmitError> {
        let shared = &self.shared;
        if shared.draining.load(Ordering::Acquire) {
            return Err(SubmitError::Draining);
        }
        if !shared.is_well() {
            return Err(SubmitError::Ill);
        }
        let count = requests.len();
        self.could_take(count)?;
        let places = shared.places.take(client, count);
        let places = places.map_err(|lacking| SubmitError::QueueFull {
            retry_after: shared.outlook().retry_after(lacking),
        })?;
        let owner = Owner {
            client,
            request: shared.requests.fetch_add(1, Ordering::Relaxed),
        };
        let (mail, generations) = requests
            .into_iter()
            .zip(places)
            .map(|(request, place)| {
                let (sender, events) = tokio_mpsc::unbounded_channel();
                let request = request.into();
                let bell = || Bell::new(self.mail.clone());
                match &request {
                    Request::Generate(GenerateRequest {
                        together: Some(together),
                        ..
                    }) => together.lead.seat(bell()),
                    Request::Join(join) => join.seat.seat(bell()),
                    Request::Generate(_) | Request::Follow(_) => {}
                }
                let submitted = Submitted {
                    request,
                    events: sender,
                    owner,
                    place,
                };
                (submitted, Generation::new(events))
            })
            .unzip();
        // The worker ends only after the last handle: if it is gone, it has panicked just
        // now, and has undone what was counted.
        // Said before it is sent: the worker may rest again before this goes on.
        shared.pulse.expect();
        match self.mail.send(Mail::Requests(mail)) {
            Ok(()) => Ok(generations),
            Err(_) => Err(SubmitError::Ill),
        }
    }

    /// Takes in an adapter that was read for this engine's model, or finds the same one
    /// where somebody holds it: its weights are in memory once. Blocks until the step that
    /// runs has ended, and the adapter has been tried.
    ///
    /// # Errors
    /// There is no room for it, or the model does not compute under it.
    pub fn add_adapter(&self, lora: Lora) -> Result<Adapter, AddAdapterError> {
        let fingerprint = lora.fingerprint();
        // Held until it is there: two that come at once are one.
        let mut known = self.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(adapter) = known.find(fingerprint) {
            return Ok(adapter);
        }
        let (reply, answer) = mpsc::channel();
        let mail = Mail::AddAdapter(Box::new(lora), reply);
        self.shared.pulse.expect();
        self.mail.send(mail).map_err(|_| AddAdapterError::Died)?;
        let added = answer.recv().map_err(|_| AddAdapterError::Died)??;
        let adapter = Adapter::new(added, fingerprint, self.mail.clone());
        known.add(&adapter);
        Ok(adapter)
    }

    /// The memory for its adapters.
    pub fn adapter_memory(&self) -> &AdapterMemory {
        &self.adapter_memory
    }

    /// Sees to it that a prefix is in memory, from disk or by computing it. Blocks.
    ///
    /// # Errors
    /// The executor failed, or the engine takes no work; in words.
    pub fn warm(&self, prefix: Arc<Prefix>) -> Result<Warmed, String> {
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
        };
        let mut origin = Origin::Computed;
        let generations = self.submit(vec![request]);
        for mut generation in generations.map_err(|error| error.to_string())? {
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
                    Some(Event::Failed(why)) => return Err(why),
                    Some(_) => {}
                    None => return Err("the engine's thread has died".to_owned()),
                }
            }
        }
        Ok(Warmed {
            origin,
            tokens,
            took: began.elapsed(),
        })
    }

    /// Refuses new work from now on; what was accepted goes on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
    }

    /// Whether the engine can be expected to answer: its thread lives, and no step takes
    /// longer than [`EngineOptions::stall_timeout`].
    pub fn is_well(&self) -> bool {
        self.shared.is_well()
    }

    /// Resolves when the engine's thread has ended by a panic. What it ran has failed by
    /// then, and it takes nothing new.
    pub async fn died(&self) {
        self.shared.pulse.died().await;
    }

    /// How busy the engine is now.
    pub fn load(&self) -> Load {
        // What is counted for a thread that has died waits for nobody.
        let lives = !self.shared.pulse.has_died();
        let count = |count: usize| if lives { count } else { 0 };
        let places = &self.shared.places;
        Load {
            running: count(places.running()),
            waiting: count(places.waiting()),
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

    /// Holds the generations of those who choose with it, which it ends with.
    pub fn with_partners(mut self, partners: Vec<Generation>) -> Generation {
        self.partners.extend(partners);
        self
    }

    /// How many tokens of its partners' prompts were there already; asked once, after
    /// its first token.
    pub fn partners_cached(&mut self) -> usize {
        let started = |partner: &mut Generation| match partner.try_next() {
            Some(Event::Started { cached_tokens, .. }) => cached_tokens,
            _ => 0,
        };
        self.partners.iter_mut().map(started).sum()
    }

    /// The next event; `None` after the last one, or if the engine has died.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event, if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    /// [`next`](Generation::next) for a thread that may wait.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

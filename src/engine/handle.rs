//! The side of the engine that other threads hold.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc as tokio_mpsc;

use super::adapter::{Adapter, AdapterMemory, AddAdapterError, Added, Known};
use super::group::Bell;
use super::pulse::Pulse;
use super::worker::Worker;
use super::{Event, GenerateRequest, Origin, Prefix, Request, SubmitError, Warmed, cache};
use crate::exec::{AdapterId, Executor};
use crate::kv::PrefixStore;
use crate::lora::Lora;
use crate::sample::SamplingParams;

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
    Requests(Vec<(Request, tokio_mpsc::UnboundedSender<Event>)>),
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
    slots: usize,
    queue: usize,
    pub(super) waiting: AtomicUsize,
    pub(super) running: AtomicUsize,
    draining: AtomicBool,
    stall_timeout: Duration,
    pub(super) pulse: Pulse,
    /// How long a sequence has held its slot, in milliseconds: a running mean.
    pub(super) mean_millis: AtomicU64,
    pub(super) kv_used: AtomicUsize,
    pub(super) kv_capacity: AtomicUsize,
    pub(super) preemptions: AtomicU64,
}

impl Shared {
    /// Whether the worker lives and gets on.
    fn is_well(&self) -> bool {
        !self.pulse.has_died() && self.pulse.still() <= self.stall_timeout
    }

    /// Counts a sequence that has ended after `held` in its slot.
    pub(super) fn ended(&self, held: Duration) {
        let held = held.as_millis() as u64;
        // One thread writes: the worker.
        let mean = self.mean_millis.load(Ordering::Relaxed);
        let mean = if mean == 0 {
            held
        } else {
            (7 * mean + held) / 8
        };
        self.mean_millis.store(mean.max(1), Ordering::Relaxed);
    }

    /// When a client that finds `waiting` sequences before it should try again,
    /// in whole seconds: when all of them will have been given a slot, as far as
    /// the sequences that have ended tell, but within a minute.
    fn retry_after(&self, waiting: usize) -> u64 {
        let mean = self.mean_millis.load(Ordering::Relaxed);
        // With no queue at all it waits for the next slot.
        let ahead = waiting.max(1) as u64;
        let millis = ahead.saturating_mul(mean).div_ceil(self.slots as u64);
        millis.div_ceil(1000).clamp(1, 60)
    }
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Sequences that hold a slot.
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
        let (mail, inbox) = mpsc::channel();
        let shared = Arc::new(Shared {
            slots: options.slots,
            queue: options.queue,
            waiting: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            stall_timeout: options.stall_timeout,
            pulse: Pulse::new(),
            mean_millis: AtomicU64::new(0),
            kv_used: AtomicUsize::new(0),
            kv_capacity: AtomicUsize::new(executor.kv_memory().capacity),
            preemptions: AtomicU64::new(0),
        });
        let adapter_memory = options.adapter_memory.clone();
        let worker = Worker::new(executor, options, inbox, Arc::clone(&shared));
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run())?;
        Ok(Engine {
            mail,
            shared,
            adapters: Arc::default(),
            adapter_memory,
        })
    }

    /// Whether so many requests could ever be queued at once: before they are made,
    /// where they may be many.
    ///
    /// # Errors
    /// They could not.
    pub fn could_take(&self, count: usize) -> Result<(), SubmitError> {
        // Slots count as room: what is queued on an idle engine starts at once.
        let limit = self.shared.slots + self.shared.queue;
        match count > limit {
            true => Err(SubmitError::TooMany {
                asked: count,
                limit,
            }),
            false => Ok(()),
        }
    }

    /// Queues all of `requests`, or none of them.
    ///
    /// # Errors
    /// The queue has no room for all, now or ever, or the engine is draining, stuck or dead.
    pub fn submit<R: Into<Request>>(
        &self,
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
        let limit = shared.slots + shared.queue;
        let running = shared.running.load(Ordering::Acquire);
        shared
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
                (running + waiting + count <= limit).then_some(waiting + count)
            })
            .map_err(|waiting| SubmitError::QueueFull {
                retry_after: shared.retry_after(waiting),
            })?;
        let (mail, generations) = requests
            .into_iter()
            .map(|request| {
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
                ((request, sender), Generation::new(events))
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
        let count = |of: &AtomicUsize| if lives { of.load(Ordering::Acquire) } else { 0 };
        Load {
            running: count(&self.shared.running),
            waiting: count(&self.shared.waiting),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_client_comes_back_when_those_before_it_have_a_slot() {
        // Slots, how many wait, mean milliseconds in a slot, seconds.
        let table = [
            (8, 0, 0, 1),
            (8, 128, 0, 1),
            (8, 16, 1500, 3),
            (8, 17, 1500, 4),
            (1, 3, 2000, 6),
            (1, 0, 2500, 3),
            (8, 128, 10_000, 60),
            (1, usize::MAX, u64::MAX, 60),
        ];
        for (slots, waiting, mean, seconds) in table {
            let shared = Shared {
                slots,
                queue: 128,
                waiting: AtomicUsize::new(0),
                running: AtomicUsize::new(0),
                draining: AtomicBool::new(false),
                stall_timeout: Duration::from_secs(30),
                pulse: Pulse::new(),
                mean_millis: AtomicU64::new(mean),
                kv_used: AtomicUsize::new(0),
                kv_capacity: AtomicUsize::new(0),
                preemptions: AtomicU64::new(0),
            };
            let told = shared.retry_after(waiting);
            assert_eq!(told, seconds, "{waiting} before {slots} slots of {mean} ms");
        }
    }
}

//! Metrics for Prometheus: every metric's name and buckets.
//!
//! The cardinality of labels is bounded: `model` are the served models; `arm` are the models
//! themselves and the arms that requests named, at most 256; outcomes and refusals are fixed words.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::errors::Refusal;
use incant_runtime::Runtime;

/// The maximum number of arms that have series of their own. Adapters are loaded and unloaded under
/// arbitrary names.
const MAX_ARMS: usize = 256;

/// The label of all arms beyond these; no arm can have this id.
const OTHER_ARMS: &str = "(other)";

/// The format that [`Metrics::text`] writes.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets of the time to first token, in seconds.
const FIRST_TOKEN: [f64; 15] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0,
];

/// Buckets of the time between tokens, in seconds.
const BETWEEN_TOKENS: [f64; 13] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// Buckets of the time in the queue, in seconds.
const QUEUED: [f64; 14] = [
    0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// How an accepted request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All its answers were generated.
    Finished,
    /// Its client disconnected first, or a shutdown cut it off.
    Disconnected,
    /// The server failed.
    Failed,
    /// Its deadline passed.
    TimedOut,
}

impl Outcome {
    /// All outcomes; the position of each is its discriminant.
    const ALL: [Outcome; 4] = [
        Outcome::Finished,
        Outcome::Disconnected,
        Outcome::Failed,
        Outcome::TimedOut,
    ];

    /// Its name in metrics and the log.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Outcome::Finished => "finished",
            Outcome::Disconnected => "left",
            Outcome::Failed => "failed",
            Outcome::TimedOut => "timed_out",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ArmLabels {
    arm: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    arm: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

type Histograms = Family<ArmLabels, Histogram, fn() -> Histogram>;
type Gauges = Family<ModelLabels, Gauge<u64, AtomicU64>>;

/// All metrics of a server.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    arms: Mutex<HashSet<String>>,
    first_token: Histograms,
    between_tokens: Histograms,
    queued: Histograms,
    requests: Family<OutcomeLabels, Counter>,
    prompt_tokens: Family<ArmLabels, Counter>,
    cached_tokens: Family<ArmLabels, Counter>,
    generated_tokens: Family<ArmLabels, Counter>,
    drafted_tokens: Family<ArmLabels, Counter>,
    accepted_tokens: Family<ArmLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    running: Gauges,
    waiting: Gauges,
    kv_used: Gauges,
    kv_capacity: Gauges,
    preemptions: Family<ModelLabels, Counter>,
}

/// The metrics of one arm.
#[derive(Debug)]
pub(crate) struct ArmMetrics {
    pub(crate) first_token: Histogram,
    pub(crate) between_tokens: Histogram,
    pub(crate) queued: Histogram,
    pub(crate) prompt_tokens: Counter,
    pub(crate) cached_tokens: Counter,
    pub(crate) generated_tokens: Counter,
    pub(crate) drafted_tokens: Counter,
    pub(crate) accepted_tokens: Counter,
    requests: [Counter; Outcome::ALL.len()],
}

impl ArmMetrics {
    /// Counts a request that has ended.
    pub(crate) fn ended(&self, outcome: Outcome) {
        self.requests[outcome as usize].inc();
    }
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("incant");
        let first_token = Histograms::new_with_constructor(|| Histogram::new(FIRST_TOKEN));
        registry.register_with_unit(
            "time_to_first_token",
            "From a request's arrival to the first token of any of its answers",
            Unit::Seconds,
            first_token.clone(),
        );
        let between_tokens = Histograms::new_with_constructor(|| Histogram::new(BETWEEN_TOKENS));
        registry.register_with_unit(
            "inter_token",
            "From one token of an answer to its next",
            Unit::Seconds,
            between_tokens.clone(),
        );
        let queued = Histograms::new_with_constructor(|| Histogram::new(QUEUED));
        registry.register_with_unit(
            "queue",
            "From a sequence's place in the queue to its slot",
            Unit::Seconds,
            queued.clone(),
        );
        let requests = Family::default();
        let help = "Requests that were accepted and have ended: finished, left by their client or \
            cut off by a shutdown, failed, or timed_out";
        registry.register("requests", help, requests.clone());
        let prompt_tokens = Family::default();
        let help = "Tokens of prompts whose sequences were given a slot, cached ones and those of \
            profiles included; a prompt with several answers counts once";
        registry.register("prompt_tokens", help, prompt_tokens.clone());
        let cached_tokens = Family::default();
        let help = "Those of the prompt tokens that were not computed again";
        registry.register("cached_prompt_tokens", help, cached_tokens.clone());
        let generated_tokens = Family::default();
        let help = "Tokens of answers, end tokens included";
        registry.register("generated_tokens", help, generated_tokens.clone());
        let drafted_tokens = Family::default();
        let help = "Tokens that were drafted for answers (speculative decoding)";
        registry.register("drafted_tokens", help, drafted_tokens.clone());
        let accepted_tokens = Family::default();
        let help = "Those of the drafted tokens that became tokens of answers";
        registry.register("accepted_draft_tokens", help, accepted_tokens.clone());
        let refused = Family::default();
        let help = "Requests to any endpoint that were turned away, by reason";
        registry.register("refused_requests", help, refused.clone());
        let running = Gauges::default();
        let help = "Sequences that hold a slot";
        registry.register("running_sequences", help, running.clone());
        let waiting = Gauges::default();
        let help = "Sequences that wait for a slot";
        registry.register("waiting_sequences", help, waiting.clone());
        let kv_used = Gauges::default();
        let help = "Keys and values that sequences hold, those kept for later requests included";
        registry.register_with_unit("kv_used", help, Unit::Bytes, kv_used.clone());
        let kv_capacity = Gauges::default();
        let help = "Keys and values that there is room for";
        registry.register_with_unit("kv_capacity", help, Unit::Bytes, kv_capacity.clone());
        let preemptions = Family::default();
        let help = "Times that a sequence gave up its memory for a while";
        registry.register("preemptions", help, preemptions.clone());
        Metrics {
            registry,
            arms: Mutex::default(),
            first_token,
            between_tokens,
            queued,
            requests,
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            drafted_tokens,
            accepted_tokens,
            refused,
            running,
            waiting,
            kv_used,
            kv_capacity,
            preemptions,
        }
    }

    /// Returns the metrics of the arm `id`, which must be a served one.
    pub(crate) fn arm(&self, id: &str) -> ArmMetrics {
        let mut arms = self.arms.lock().unwrap_or_else(PoisonError::into_inner);
        let id = if arms.contains(id) {
            id
        } else if arms.len() < MAX_ARMS {
            arms.insert(id.to_owned());
            id
        } else {
            OTHER_ARMS
        };
        let arm = ArmLabels { arm: id.to_owned() };
        let requests = Outcome::ALL.map(|outcome| {
            self.requests.get_or_create_owned(&OutcomeLabels {
                arm: id.to_owned(),
                outcome: outcome.word(),
            })
        });
        ArmMetrics {
            first_token: self.first_token.get_or_create_owned(&arm),
            between_tokens: self.between_tokens.get_or_create_owned(&arm),
            queued: self.queued.get_or_create_owned(&arm),
            prompt_tokens: self.prompt_tokens.get_or_create_owned(&arm),
            cached_tokens: self.cached_tokens.get_or_create_owned(&arm),
            generated_tokens: self.generated_tokens.get_or_create_owned(&arm),
            drafted_tokens: self.drafted_tokens.get_or_create_owned(&arm),
            accepted_tokens: self.accepted_tokens.get_or_create_owned(&arm),
            requests,
        }
    }

    /// Counts a refused request.
    pub(crate) fn refused(&self, Refusal(reason): Refusal) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Returns all metrics in the format of Prometheus, with the current load of the engines of
    /// `runtime`.
    ///
    /// # Errors
    /// An error of the encoder; writing to a `String` does not fail.
    pub(crate) fn text(&self, runtime: &Runtime) -> Result<String, fmt::Error> {
        for model in runtime.models() {
            let load = model.engine().load();
            let of = ModelLabels {
                model: model.id().to_owned(),
            };
            let gauges = [
                (&self.running, load.running),
                (&self.waiting, load.waiting),
                (&self.kv_used, load.kv_used),
                (&self.kv_capacity, load.kv_capacity),
            ];
            for (gauge, now) in gauges {
                gauge.get_or_create(&of).set(now as u64);
            }
            let preemptions = self.preemptions.get_or_create(&of);
            // The engine counts; a concurrent scrape may have stored more.
            preemptions
                .inner()
                .fetch_max(load.preemptions, Ordering::Relaxed);
        }
        // A model without requests has counters of zero: a rate needs a value to start from.
        for model in runtime.models() {
            self.arm(model.id());
        }
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_beyond_the_most_share_their_series() {
        let metrics = Metrics::new();
        for n in 0..MAX_ARMS + 50 {
            metrics.arm(&format!("m+{n}")).ended(Outcome::Finished);
        }
        metrics.arm("m+0").ended(Outcome::Finished);
        let text = metrics.text(&Runtime::new()).unwrap();
        let finished =
            |line: &&str| line.starts_with("incant_requests_total{") && line.contains("finished");
        let lines: Vec<&str> = text.lines().filter(finished).collect();
        assert_eq!(lines.len(), MAX_ARMS + 1);
        let of = |arm: &str| {
            let label = format!("arm=\"{arm}\"");
            let line = lines.iter().find(|line| line.contains(&label));
            line.and_then(|line| line.rsplit(' ').next())
                .map(str::to_owned)
        };
        assert_eq!(of("m+0").as_deref(), Some("2"));
        assert_eq!(of(OTHER_ARMS).as_deref(), Some("50"));
    }
}

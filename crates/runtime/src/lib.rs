//! The loaded models, their profiles and adapters, and the arms `MODEL[@PROFILE][+ADAPTER]` that
//! requests name.
//!
//! This is the seam between the server and everything below it: an [`Arm`] turns a client's
//! messages or text into a [`Prompt`] of token ids, and submits sequences to the engine of its
//! model. A [`Choice`](choice::Choice) turns the engine's events back into text. This crate knows
//! nothing of HTTP; the server and the command line use it alike.
#![forbid(unsafe_code)]

mod adapters;
mod arm;
mod bind;
mod breakers;
pub mod choice;
pub mod clock;
mod compare;
pub mod guidance;
mod load;
mod reload;
mod text_answer;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::clock::unix_time;
#[cfg(doc)]
use incant_engine::Engine;
use incant_gguf::nearest::nearest;
use incant_gguf::printable::excerpt;
use incant_prompt::profile::SamplingDefaults;

pub use adapters::{Adapter, AdapterError, Adapters};
pub use arm::{Answered, Arm, ArmError, Prompt, PromptBounds, PromptError, PromptInput};
pub use bind::BoundProfile;
pub use breakers::breakers;
pub use compare::{
    Comparison, Output, OutputPart, Side, Transcript, default_reference, finish, max_answer_tokens,
};
pub use guidance::{Guidance, GuidanceError, GuidanceOptions, Partner, Partners, ResolvedGuidance};
pub use load::{DEFAULT_PROFILE, LoadError, LoadOptions, Model, Profiles};
pub use text_answer::{AnswerError, AnswerOptions, AnswerStep, TextAnswer};

/// An engine failed while it computed a prefix or an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EngineFailure(String);

/// All loaded models, shared by all requests.
pub struct Runtime {
    /// Empty while the models load.
    models: OnceLock<Vec<Arc<Model>>>,
    /// The reasons why profiles do not match their files, by the profiles' names.
    problems: RwLock<BTreeMap<String, String>>,
    created: u64,
    /// Set when the server is about to shut down.
    is_shutting_down: AtomicBool,
}

/// An arm, as the list of models describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ArmInfo {
    /// The id that requests name it by.
    pub id: String,
    /// Its model's id.
    pub model: String,
    /// Its profile, including `base` and `turn`.
    pub profile: Option<String>,
    /// Its adapter.
    pub adapter: Option<String>,
    /// The arm that it is a variant of.
    pub parent: Option<String>,
    /// The language of its profile (BCP-47); `None` if it follows the question.
    pub language: Option<String>,
    /// Its default sampling in chat, where it differs from OpenAI's defaults.
    pub sampling: SamplingDefaults,
    /// The weight of the guidance that its profile sets.
    pub guidance: Option<f32>,
}

/// A profile, with its properties on the loaded models.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileInfo {
    /// The name that arms use.
    pub name: String,
    /// A line for people.
    pub title: String,
    /// Its purpose.
    pub description: String,
    /// Its language (BCP-47).
    pub language: String,
    /// The profile that it replaces in conversations in that language.
    pub variant_of: Option<String>,
    /// The number of examples in its prefix.
    pub shots: usize,
    /// Increased when its text changes.
    pub version: String,
    /// The role markers that end an answer at the start of a line.
    pub markers: Vec<String>,
    /// Its constant text.
    pub prefix_text: Option<String>,
    /// The models whose chat uses it unless another profile is named.
    pub default_for: Vec<String>,
    /// The number of tokens of its prefix, by model.
    pub prefix_tokens: BTreeMap<String, usize>,
    /// The reason why it does not match its file.
    pub problem: Option<String>,
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime::new()
    }
}

impl Runtime {
    /// Creates a runtime that is still loading.
    pub fn new() -> Runtime {
        Runtime {
            models: OnceLock::new(),
            problems: RwLock::default(),
            is_shutting_down: AtomicBool::new(false),
            created: unix_time(),
        }
    }

    /// Makes the models available, once; a second call changes nothing.
    pub fn loaded(&self, models: Vec<Arc<Model>>) {
        // An error means that this was done before, which stands.
        _ = self.models.set(models);
    }

    /// Returns whether the models have loaded.
    pub fn is_ready(&self) -> bool {
        self.models.get().is_some()
    }

    /// Returns the models, in the order they were given; none while they load.
    pub fn models(&self) -> &[Arc<Model>] {
        self.models.get().map_or(&[], Vec::as_slice)
    }

    /// Makes health checks fail from now on, although requests are still served: the server is
    /// about to shut down.
    pub fn announce_shutdown(&self) {
        self.is_shutting_down.store(true, Ordering::Relaxed);
    }

    /// Returns whether the server is about to shut down (see [`Runtime::announce_shutdown`]).
    pub fn is_shutting_down(&self) -> bool {
        self.is_shutting_down.load(Ordering::Relaxed)
    }

    /// Refuses new requests from now on; accepted ones continue.
    pub fn drain(&self) {
        for model in self.models() {
            model.engine().drain();
        }
    }

    /// Returns whether all engines can be expected to answer (see [`Engine::is_healthy`]).
    pub fn is_healthy(&self) -> bool {
        self.models()
            .iter()
            .all(|model| model.engine().is_healthy())
    }

    /// Resolves to a model's id when its engine's thread has panicked. The models must be loaded
    /// before the call: later ones are not watched.
    pub async fn engine_died(&self) -> &str {
        let models = self.models().iter();
        let mut died: FuturesUnordered<_> = models
            .map(async |model| {
                model.engine().died().await;
                model.id()
            })
            .collect();
        match died.next().await {
            Some(id) => id,
            None => pending().await,
        }
    }

    /// Returns when the runtime was created, in Unix seconds.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// Returns the arm called `id`, which may be followed by guidance and a mix (see
    /// [`GuidanceOptions::split`]).
    ///
    /// # Errors
    /// There is no such model, profile or adapter.
    pub fn arm(&self, id: &str) -> Result<Arm, ArmError> {
        // A model's own name may contain a space, so it is tried whole first.
        let whole = self.plain_arm(id);
        match GuidanceOptions::split(id) {
            Some((plain, options)) if whole.is_err() && plain != id => {
                Ok(self.plain_arm(plain)?.with_guidance(options))
            }
            None if whole.is_err() => Err(ArmError::BadGuidance { id: id.to_owned() }),
            _ => whole,
        }
    }

    fn plain_arm(&self, id: &str) -> Result<Arm, ArmError> {
        // A model's own name may contain an @ or a +, so the longest match counts.
        let model = self
            .models()
            .iter()
            .filter(|model| {
                id.strip_prefix(model.id())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['@', '+']))
            })
            .max_by_key(|model| model.id().len())
            .ok_or_else(|| ArmError::UnknownModel {
                id: id.to_owned(),
                arms: nearest(
                    &excerpt(id),
                    self.arms().into_iter().map(|arm| arm.id).collect(),
                ),
            })?;
        Arm::resolve(model, &id[model.id().len()..])
    }

    /// Returns every arm of every model.
    pub fn arms(&self) -> Vec<ArmInfo> {
        let part = |mark: &str, name: &Option<String>| {
            let name = name.as_ref();
            name.map_or_else(String::new, |name| format!("{mark}{name}"))
        };
        let arms = self.models().iter().flat_map(|model| {
            let profiles = model.profile_names().into_iter().map(Some);
            let profiles: Vec<_> = std::iter::once(None).chain(profiles).collect();
            let adapters = model.adapters();
            let adapters = adapters.keys().cloned().map(Some);
            let adapters: Vec<_> = std::iter::once(None).chain(adapters).collect();
            let arms = adapters.iter().flat_map(|adapter| {
                let rests = profiles.iter();
                let rests = rests.map(|profile| part("@", profile) + &part("+", adapter));
                // An adapter or profile that was removed meanwhile has no arm.
                rests.filter_map(|rest| Some(Arm::resolve(model, &rest).ok()?.info()))
            });
            arms.collect::<Vec<_>>()
        });
        arms.collect()
    }

    /// Returns every profile that any model serves and, by name, the errors of profile files that
    /// cannot be served at all.
    pub fn profiles(&self) -> (Vec<ProfileInfo>, BTreeMap<String, String>) {
        let problems_now = self.problems.read();
        let problems_now = problems_now.unwrap_or_else(PoisonError::into_inner);
        let mut infos: BTreeMap<String, ProfileInfo> = BTreeMap::new();
        let mut problems = problems_now.clone();
        for model in self.models() {
            for bound in model.profiles().values() {
                let profile = bound.profile();
                let name = profile.name().to_owned();
                let info = infos.entry(name).or_insert_with(|| ProfileInfo {
                    name: profile.name().to_owned(),
                    title: profile.title().to_owned(),
                    description: profile.description().to_owned(),
                    language: profile.language().to_owned(),
                    variant_of: profile.variant_of().map(str::to_owned),
                    shots: profile.shots(),
                    version: profile.version().to_string(),
                    markers: profile.markers().to_vec(),
                    prefix_text: Some(profile.prefix().to_owned()),
                    default_for: Vec::new(),
                    prefix_tokens: BTreeMap::new(),
                    problem: problems.remove(profile.name()),
                });
                let tokens = bound.whole().map_or(0, |prefix| prefix.ids.len());
                info.prefix_tokens.insert(model.id().to_owned(), tokens);
                if model.chat_profile() == Some(profile.name()) {
                    info.default_for.push(model.id().to_owned());
                }
            }
        }
        (infos.into_values().collect(), problems)
    }
}

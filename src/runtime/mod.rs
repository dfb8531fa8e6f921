//! What is loaded and how it is named: models, their profiles, and the arms
//! `MODEL[@PROFILE][+ADAPTER]` that requests choose between.
//!
//! This is the seam between the server and everything below it: an [`Arm`]
//! turns a client's messages or text into a [`Prompt`] of token ids, and hands
//! sequences to the engine of its model.

mod adapters;
mod arm;
mod bind;
mod breakers;
pub(crate) mod choice;
mod compare;
mod load;
mod reload;
pub(crate) mod together;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

#[cfg(doc)]
use incant_engine::Engine;
use incant_gguf::nearest::nearest;
use incant_gguf::printable::excerpt;
use incant_prompt::profile::SamplingDefaults;

pub use adapters::{Adapter, AdapterError, Adapters};
pub use arm::{Answered, Arm, ArmError, Prompt, PromptError, PromptInput, Wanted};
pub use bind::BoundProfile;
pub use breakers::breakers;
pub use compare::{Comparison, Said, Side, Transcript, What, default_reference, room};
pub use load::{DEFAULT_PROFILE, LoadError, LoadOptions, Model, Profiles};
pub use together::{Guidance, Partner, Partners, Say, WishError, Wishes};

/// Everything loaded, shared by all requests.
pub struct Runtime {
    /// Empty while the models load.
    models: OnceLock<Vec<Arc<Model>>>,
    /// By the names of profiles: why they are not what their files say.
    problems: RwLock<BTreeMap<String, String>>,
    created: u64,
    /// Set when the server is about to end.
    ends: AtomicBool,
}

/// An arm, as the list of models shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ArmInfo {
    /// The id that requests name it by.
    pub id: String,
    /// Its model's id.
    pub model: String,
    /// Its profile, `base` and `turn` included.
    pub profile: Option<String>,
    /// Its adapter.
    pub adapter: Option<String>,
    /// The arm that it is a variant of.
    pub parent: Option<String>,
    /// The language of its profile, BCP-47; `None` where that follows the question.
    pub language: Option<String>,
    /// How it chats where the client does not say, as far as that is not OpenAI's default.
    pub sampling: SamplingDefaults,
    /// The weight of the guidance that its profile asks for.
    pub guidance: Option<f32>,
}

/// A profile, and what it is on the loaded models.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileInfo {
    /// The name that arms use.
    pub name: String,
    /// A line for people.
    pub title: String,
    /// What it is for.
    pub description: String,
    /// BCP-47.
    pub language: String,
    /// The profile whose place it takes in conversations in that language.
    pub variant_of: Option<String>,
    /// How many examples its prefix holds.
    pub shots: usize,
    /// Raised when its text changes.
    pub version: String,
    /// What ends an answer at the start of a line.
    pub markers: Vec<String>,
    /// Its constant text.
    pub prefix_text: Option<String>,
    /// The models whose chat uses it unless another profile is named.
    pub default_for: Vec<String>,
    /// How many tokens the prefix is, by model.
    pub prefix_tokens: BTreeMap<String, usize>,
    /// Why it is not what its file says now.
    pub problem: Option<String>,
}

impl Default for Runtime {
    fn default() -> Self {
        Runtime::new()
    }
}

impl Runtime {
    /// A runtime that is still loading.
    pub fn new() -> Runtime {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Runtime {
            models: OnceLock::new(),
            problems: RwLock::default(),
            ends: AtomicBool::new(false),
            // A clock before 1970 is wrong anyhow.
            created: now.map_or(0, |since| since.as_secs()),
        }
    }

    /// Makes the models available. Done once; a second call changes nothing.
    pub fn loaded(&self, models: Vec<Arc<Model>>) {
        // Failing means that it was done before, which stands.
        _ = self.models.set(models);
    }

    /// Whether the models have loaded.
    pub fn is_ready(&self) -> bool {
        self.models.get().is_some()
    }

    /// The models, in the order they were given; none while they load.
    pub fn models(&self) -> &[Arc<Model>] {
        self.models.get().map_or(&[], Vec::as_slice)
    }

    /// Lets health checks fail from now on, although requests are still served: the server
    /// is about to end.
    pub fn announce_end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    /// Whether the server is about to end (see [`Runtime::announce_end`]).
    pub fn is_about_to_end(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Refuses new work from now on; what was accepted goes on.
    pub fn drain(&self) {
        for model in self.models() {
            model.engine().drain();
        }
    }

    /// Whether all engines can be expected to answer (see [`Engine::is_well`]).
    pub fn is_well(&self) -> bool {
        self.models().iter().all(|model| model.engine().is_well())
    }

    /// Resolves to a model's id when its engine's thread has panicked. The models must have
    /// been loaded: of those that come later nothing is known.
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

    /// When the runtime was made, in Unix seconds.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// The arm called `id`, behind which it may say who else has a say in its answers (see
    /// [`Wishes::split`]).
    ///
    /// # Errors
    /// There is no such model, profile or adapter.
    pub fn arm(&self, id: &str) -> Result<Arm, ArmError> {
        // A model's own name may hold a space, so it is tried whole first.
        let whole = self.plain_arm(id);
        match Wishes::split(id) {
            Some((plain, wishes)) if whole.is_err() && plain != id => {
                Ok(self.plain_arm(plain)?.wishing(wishes))
            }
            None if whole.is_err() => Err(ArmError::BadWish { id: id.to_owned() }),
            _ => whole,
        }
    }

    fn plain_arm(&self, id: &str) -> Result<Arm, ArmError> {
        // A model's own name may hold an @ or a +, so the longest match counts.
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

    /// Every arm of every model.
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
                // One that has gone in the meantime is served no more.
                rests.filter_map(|rest| Some(Arm::resolve(model, &rest).ok()?.info()))
            });
            arms.collect::<Vec<_>>()
        });
        arms.collect()
    }

    /// Every profile that some model serves; and, by name, what is wrong with those that
    /// have a file but cannot be served at all.
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

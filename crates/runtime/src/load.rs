//! Loads a model: its weights into an executor, an engine around it, its tokenizer, and every
//! profile bound to its tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::EngineFailure;
use super::adapters::Table;
use super::bind::BoundProfile;
use incant_engine::exec::{Backend, ExecError, Footprint};
use incant_engine::kv::PrefixStore;
use incant_engine::{Engine, EngineOptions, Warmed};
use incant_gguf::nearest::{listed, nearest};
use incant_gguf::{Gguf, GgufError};
use incant_model::{DecoderSpec, ModelError, arch};
use incant_prompt::profile::{
    CHAT_TEMPLATE_KEY, ChatTemplate, MARKERS_KEY, Part, PartKind, Profile, ProfileError,
    SamplingDefaults,
};
use incant_prompt::text::{TokenKind, Tokenizer, TokenizerError};

/// The profile that a base model chats with unless its manifest names another.
pub const DEFAULT_PROFILE: &str = "assistant";

/// The folder, beside the prefixes, that caches the hashes of the models' files.
const FINGERPRINTS: &str = "fingerprints";

/// Options for loading a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The backend that computes it.
    pub backend: Backend,
    /// The memory for KV in bytes; `None` is [`default_kv_memory`](incant_engine::exec::default_kv_memory).
    pub kv_memory: Option<usize>,
    /// The options of its engine.
    pub engine: EngineOptions,
    /// The maximum context to serve, in tokens; the model's own if absent or smaller.
    pub context: Option<usize>,
    /// The profiles to serve, by name.
    pub profiles: BTreeMap<String, Arc<Profile>>,
    /// The profile to chat with by default, if the model has no template.
    pub default_profile: Option<String>,
    /// The sampling defaults that the model's maker recommends; see
    /// [`Arm::defaults`](super::Arm::defaults).
    pub sampling: SamplingDefaults,
    /// The folder in which computed prefixes are stored; `None` stores none.
    pub prefix_folder: Option<PathBuf>,
}

/// The reason why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model is unsupported or invalid.
    #[error("{}: {error}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: ModelError,
    },
    /// Its tokenizer is not supported.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The device has no memory for it, or failed.
    #[error("{}: {error}", path.display())]
    Exec {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: ExecError,
    },
    /// A profile cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The tokens of a profile's prefix depend on the text after it.
    #[error(
        "profile '{profile}' cannot be used with {model}: what follows its prefix changes the \
         prefix's own tokens; end the prefix with a word and a line break, for instance"
    )]
    PrefixDepends {
        /// The profile's name.
        profile: String,
        /// The model's id.
        model: String,
    },
    /// The profile to chat with by default does not exist.
    #[error("there is no profile '{name}' (profiles: {})", listed(known))]
    UnknownProfile {
        /// The name.
        name: String,
        /// The existing profiles, the nearest first.
        known: Vec<String>,
    },
    /// The system cannot start a thread.
    #[error("the engine cannot start: {0}")]
    Thread(#[from] std::io::Error),
}

impl LoadError {
    /// Returns the error as clients may see it: with the names of profiles' files, but not their
    /// folders.
    pub(super) fn for_clients(&self) -> String {
        match self {
            LoadError::Profile(error) => error.for_clients(),
            error => error.to_string(),
        }
    }

    fn model(path: &Path, error: ModelError) -> LoadError {
        match error {
            // The error names the file already.
            ModelError::Gguf(error) => LoadError::Gguf(error),
            error => LoadError::Model {
                path: path.to_owned(),
                error,
            },
        }
    }

    fn exec(path: &Path, error: ExecError) -> LoadError {
        match error {
            ExecError::Model(error) => LoadError::model(path, error),
            error => LoadError::Exec {
                path: path.to_owned(),
                error,
            },
        }
    }
}

/// The profiles that a model serves, by name.
pub type Profiles = BTreeMap<String, BoundProfile>;

/// One model with its tokenizer, engine and profiles.
pub struct Model {
    id: String,
    spec: DecoderSpec,
    context: usize,
    tokenizer: Arc<Tokenizer>,
    end_tokens: Arc<[u32]>,
    engine: Engine,
    /// Replaced as a whole: a request keeps the profiles that it found.
    profiles: RwLock<Arc<Profiles>>,
    pub(super) adapters: Table,
    template: Option<Arc<ChatTemplate>>,
    template_problem: Option<String>,
    default_profile: Option<String>,
    sampling: SamplingDefaults,
    footprint: Footprint,
    fingerprint: Option<[u8; 32]>,
}

impl Model {
    /// Loads the GGUF file at `path` as the model `id`.
    ///
    /// # Errors
    /// See [`LoadError`]; each is one line that names the file or the profile.
    pub fn load(id: &str, path: &Path, options: &LoadOptions) -> Result<Model, LoadError> {
        let gguf = Gguf::open(path)?;
        let mut spec = arch::read(&gguf).map_err(|error| LoadError::model(path, error))?;
        let requested_context = options.context.unwrap_or(spec.context).min(spec.context);
        spec.served_context = requested_context;
        let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf)?);
        if tokenizer.vocab_size() > spec.vocab {
            return Err(LoadError::Model {
                path: path.to_owned(),
                error: ModelError::Value {
                    key: "tokenizer.ggml.tokens".to_owned(),
                    value: format!("{} tokens", tokenizer.vocab_size()),
                    why: "the embedding has fewer rows",
                },
            });
        }
        let profiles = options
            .profiles
            .iter()
            .map(|(name, profile)| Ok((name.clone(), BoundProfile::new(id, profile, &tokenizer)?)))
            .collect::<Result<Profiles, LoadError>>()?;
        let (template, template_problem) = chat_template(&gguf, &tokenizer)?;
        if let Some(problem) = &template_problem {
            tracing::warn!(model = id, "{problem}");
        }
        let wanted = options.default_profile.as_deref();
        let default_profile = wanted.unwrap_or(DEFAULT_PROFILE);
        if !profiles.contains_key(default_profile) && wanted.is_some() {
            return Err(LoadError::UnknownProfile {
                name: default_profile.to_owned(),
                known: nearest(default_profile, profiles.keys().cloned().collect()),
            });
        }
        let default_profile = profiles
            .contains_key(default_profile)
            .then(|| default_profile.to_owned());

        // Runs concurrently with packing, which reads the same bytes.
        let hashing = options.prefix_folder.as_deref();
        let hashing = hashing.map(|folder| gguf.begin_fingerprint(&folder.join(FINGERPRINTS)));
        let hashing = hashing.transpose()?;
        let backend = &options.backend;
        let executor = backend.load(&gguf, &spec, options.kv_memory);
        let executor = executor.map_err(|error| LoadError::exec(path, error))?;
        let footprint = executor.footprint();
        let context = requested_context.min(executor.max_tokens());
        if context < requested_context {
            tracing::warn!(
                model = id,
                wanted = requested_context,
                context,
                "the memory for KV limits the context (--kv-memory)"
            );
        }
        let fingerprint =
            hashing.map(|hashing| hashing.join().expect("hashing bytes cannot panic"));
        let mut engine = options.engine.clone();
        engine.prefixes = options
            .prefix_folder
            .as_deref()
            .zip(fingerprint)
            .map(|(folder, weights)| PrefixStore::new(folder, weights, executor.kv_format()));
        if let Some(folder) = &options.prefix_folder {
            engine.swap_folder.clone_from(folder);
        }
        Ok(Model {
            id: id.to_owned(),
            context,
            spec,
            end_tokens: tokenizer.end_tokens().into(),
            tokenizer,
            engine: Engine::start(executor, engine)?,
            profiles: RwLock::new(Arc::new(profiles)),
            adapters: Table::default(),
            template,
            template_problem,
            default_profile,
            sampling: options.sampling.clone(),
            footprint,
            fingerprint,
        })
    }

    /// Returns the id that its arms' ids begin with.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the model's hyperparameters.
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Returns the maximum context that it serves, in tokens.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns its tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Returns the tokens that end an answer.
    pub fn end_tokens(&self) -> &Arc<[u32]> {
        &self.end_tokens
    }

    /// Returns its engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns its current profiles, by name.
    pub fn profiles(&self) -> Arc<Profiles> {
        let profiles = self.profiles.read();
        Arc::clone(&profiles.unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the served profiles. Running requests keep theirs.
    pub(super) fn replace_profiles(&self, profiles: Profiles) {
        let mut served = self
            .profiles
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *served = Arc::new(profiles);
    }

    /// Returns the chat template in its file, if there is one that can be run.
    pub fn template(&self) -> Option<&Arc<ChatTemplate>> {
        self.template.as_ref()
    }

    /// Returns why the chat template in its file is not used, if there is one that cannot be run: a
    /// line that names the file. It has been logged.
    pub fn template_problem(&self) -> Option<&str> {
        self.template_problem.as_deref()
    }

    /// Returns the sampling defaults that its maker recommends.
    pub fn sampling(&self) -> &SamplingDefaults {
        &self.sampling
    }

    /// Returns the memory that its weights take.
    pub fn footprint(&self) -> Footprint {
        self.footprint
    }

    /// Returns the [fingerprint](incant_gguf::Gguf::fingerprint) of its file if prefixes are stored
    /// on disk: nothing else needs it while serving.
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        self.fingerprint
    }

    /// Returns the names that may follow the `@` of an arm.
    pub fn profile_names(&self) -> Vec<String> {
        let turn = self.default_profile.is_some().then_some("turn");
        let built_in = std::iter::once("base").chain(turn).map(str::to_owned);
        built_in.chain(self.profiles().keys().cloned()).collect()
    }

    /// Returns the profile whose turns `@turn` writes.
    pub fn default_profile(&self) -> Option<&str> {
        self.default_profile.as_deref()
    }

    /// Returns the profile of a chat that names none; `None` if the file has a chat template.
    pub fn chat_profile(&self) -> Option<&str> {
        match self.template {
            Some(_) => None,
            None => self.default_profile.as_deref(),
        }
    }

    /// Computes the prefix that chat uses by default and makes it resident (warm-up). Blocks.
    ///
    /// # Errors
    /// The executor failed, with its message.
    pub fn warm(&self) -> Result<Option<Warmed>, EngineFailure> {
        let profiles = self.profiles();
        let profile = self.chat_profile().and_then(|name| profiles.get(name));
        match profile.and_then(BoundProfile::prefix) {
            Some(prefix) => {
                let warmed = self.engine.warm(Arc::clone(prefix)).map(Some);
                warmed.map_err(|error| EngineFailure(error.to_string()))
            }
            None => Ok(None),
        }
    }
}

/// Returns the chat template in a model's file, or the reason why it is not used. A model whose
/// template cannot be run is served all the same: it chats with a profile, like a model without a
/// template.
fn chat_template(
    gguf: &Gguf,
    tokenizer: &Tokenizer,
) -> Result<(Option<Arc<ChatTemplate>>, Option<String>), GgufError> {
    let source = gguf.metadata().get_str(CHAT_TEMPLATE_KEY)?;
    let Some(source) = source.filter(|source| !source.trim().is_empty()) else {
        return Ok((None, None));
    };
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.piece(id));
    let why = match ChatTemplate::new(source, text(tokenizer.bos()), text(tokenizer.eos())) {
        Ok(template) if !template.is_silent() => {
            let markers = gguf.metadata().get_strs(MARKERS_KEY)?.into_iter().flatten();
            let markers: Vec<String> = markers.map(str::to_owned).collect();
            let template = if markers.is_empty() {
                template.with_learned_markers(&|text| parts(tokenizer, text))
            } else {
                template.with_markers(markers)
            };
            return Ok((Some(Arc::new(template)), None));
        }
        Ok(_) => "it writes nothing for a user's question".to_owned(),
        Err(error) => error.to_string(),
    };
    let file = gguf.path().display();
    let problem =
        format!("{file}: the chat template cannot be used, so a profile is in its place: {why}");
    Ok((None, Some(problem)))
}

/// Splits a text at its special tokens.
fn parts<'a>(tokenizer: &Tokenizer, text: &'a str) -> Vec<Part<'a>> {
    let parts = tokenizer.split_at_special_tokens(text).into_iter();
    let parts = parts.map(|(text, id)| Part {
        text,
        kind: match id {
            None => PartKind::Text,
            Some(id) if tokenizer.bos() == Some(id) || tokenizer.end_tokens().contains(&id) => {
                PartKind::Separator
            }
            Some(id) if tokenizer.kind(id) == TokenKind::UserDefined => PartKind::Markup,
            Some(_) => PartKind::Control,
        },
    });
    parts.collect()
}

//! The command line's model arguments: as typed in [`ModelArgs`], resolved in [`Loading`]. Only the
//! commands and this module read flags and the environment.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use etcetera::{AppStrategy, AppStrategyArgs};
use incant::catalog::{self, Located};
use incant::engine::EngineOptions;
use incant::exec::{Backend, DeviceChoice};
use incant::profile::{Library, SamplingDefaults};
use incant::runtime::{GuidanceOptions, LoadOptions, Model};

use super::output::eprint_safe;
use super::pull::{self, Consent};

/// The models to load, and their options. Shared by the commands that run models.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// A model of the catalogue, or a GGUF file; repeatable
    #[arg(long = "model", short, value_name = "NAME|FILE.gguf")]
    models: Vec<String>,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Limit the context to this many tokens [default: the model's]
    #[arg(long, value_name = "TOKENS")]
    context: Option<usize>,
    /// The memory for each model's KV, such as 512MiB or 4GiB: for running answers, profiles, and
    /// tokens kept for later requests (prefix caching) [default: 1GiB, or the KV of the longest
    /// context if that is larger]
    #[arg(long, value_name = "SIZE")]
    kv_memory: Option<bytesize::ByteSize>,
    /// A LoRA adapter, a PEFT directory or a GGUF file, to serve as the arms MODEL+NAME and
    /// MODEL@PROFILE+NAME of each model that it fits, or of the named model only; repeatable
    #[arg(long = "adapter", value_name = "[MODEL+]NAME=PATH", value_parser = adapter)]
    adapters: Vec<AdapterArg>,
    #[command(flatten)]
    files: FileArgs,
    /// The profile to chat with when a request names none and the model has no chat template
    /// [default: the model's, or assistant]
    #[arg(long, value_name = "NAME")]
    default_profile: Option<String>,
}

/// The device to compute on. Shared by the commands that compute.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ComputeArgs {
    /// The device to compute on: cpu, cuda, cuda:N or metal; reference computes with plain f32
    /// tensors on the CPU [default: the best available one]
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// The number of threads that compute on the CPU [default: as many as the process may use, by
    /// its affinity and its cgroup's quota]
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
}

impl ComputeArgs {
    /// # Errors
    /// The device is not available.
    pub(crate) fn open(&self) -> anyhow::Result<Backend> {
        let threads = self.threads.map(std::num::NonZeroUsize::get);
        Ok(Backend::open(self.device, threads)?)
    }
}

/// Files other than models. Shared by the commands that render prompts.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FileArgs {
    /// A folder of custom profiles, which add to the built-in ones or replace them; `incant serve`
    /// follows changes of the files, and reads them at once on SIGHUP
    #[arg(long, value_name = "DIR")]
    profile_dir: Option<PathBuf>,
    /// The folder for computed prefixes and hashes of models [default: in the user's cache
    /// directory]
    #[arg(long, value_name = "DIR", conflicts_with = "no_prefix_cache")]
    prefix_dir: Option<PathBuf>,
    /// Store no computed prefixes and no hashes of models on disk
    #[arg(long)]
    no_prefix_cache: bool,
}

/// The arguments of `incant train`, which loads one model and renders only training data.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StudentArgs {
    /// The model to train, of the catalogue or a GGUF file [default: the default model]
    #[arg(long, short, value_name = "NAME|FILE.gguf")]
    model: Option<String>,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    files: FileArgs,
}

impl StudentArgs {
    /// Returns the arguments to load the model with this memory for a teacher's KV.
    pub(crate) fn models(&self, kv_memory: Option<bytesize::ByteSize>) -> ModelArgs {
        let student = self.clone();
        ModelArgs {
            models: student.model.into_iter().collect(),
            consent: student.consent,
            compute: student.compute,
            context: None,
            kv_memory,
            adapters: Vec::new(),
            files: student.files,
            default_profile: None,
        }
    }
}

/// An adapter as typed.
#[derive(Clone, Debug)]
struct AdapterArg {
    model: Option<String>,
    name: String,
    path: PathBuf,
}

fn adapter(text: &str) -> Result<AdapterArg, &'static str> {
    let (names, path) = text.split_once('=').ok_or("it is not NAME=PATH")?;
    // A model's own name may contain a +.
    let (model, name) = match names.rsplit_once('+') {
        Some((model, name)) => (Some(model.to_owned()), name),
        None => (None, names),
    };
    Ok(AdapterArg {
        model,
        name: name.to_owned(),
        path: path.into(),
    })
}

/// The models to load, and their options.
pub(crate) struct Loading {
    models: Vec<Located>,
    adapters: Vec<AdapterArg>,
    options: LoadOptions,
    library: Library,
    default_profile: Option<String>,
}

impl ModelArgs {
    /// Returns whether profiles are in a folder that may change.
    pub(crate) fn follows_profiles(&self) -> bool {
        self.files.profile_dir.is_some()
    }

    /// Names the models of these arms if no model was named.
    pub(crate) fn or_of_arms<'a>(
        mut self,
        arms: impl IntoIterator<Item = &'a String>,
    ) -> ModelArgs {
        if self.models.is_empty() {
            let arms = arms.into_iter().flat_map(|arm| {
                let (id, options) =
                    GuidanceOptions::split(arm).unwrap_or((arm, GuidanceOptions::default()));
                let against = options.guidance.and_then(|guidance| guidance.against);
                let mix = options.mix.into_iter().map(|(id, _)| id);
                std::iter::once(id.to_owned()).chain(mix).chain(against)
            });
            for arm in arms {
                // A model with an @ or a + in its name must be named with --model.
                let model = arm.split(['@', '+']).next().unwrap_or(&arm);
                if !self.models.iter().any(|named| named == model) {
                    self.models.push(model.to_owned());
                }
            }
        }
        self
    }

    /// Resolves all arguments; downloads missing models of the catalogue.
    pub(crate) fn resolve(self, engine: EngineOptions) -> anyhow::Result<Loading> {
        if self.context == Some(0) {
            bail!("--context must be at least 1");
        }
        // Everything that needs no download is checked first.
        let backend = self.compute.open()?;
        let library = Library::open(self.files.profile_dir.as_deref()).context("--profile-dir")?;
        let prefix_folder = match self.files.prefix_dir {
            _ if self.files.no_prefix_cache => None,
            Some(folder) => Some(folder),
            None => Some(cache_folder()?.join("prefixes")),
        };
        let mut names = self.models;
        if names.is_empty() {
            names.push(catalog::default_model().name.clone());
        }
        let mut models: Vec<Located> = Vec::new();
        for name in &names {
            let located = pull::ensure(name, self.consent)?;
            if models.iter().any(|other| other.name == located.name) {
                bail!("two models are called {}; rename one file", located.name);
            }
            models.push(located);
        }
        let named = self
            .adapters
            .iter()
            .filter_map(|adapter| adapter.model.as_deref());
        for model in named {
            if !models.iter().any(|located| located.name == model) {
                bail!("--adapter is for {model}, which is not served");
            }
        }
        Ok(Loading {
            models,
            adapters: self.adapters,
            options: LoadOptions {
                backend,
                kv_memory: self.kv_memory.map(|size| size.as_u64() as usize),
                engine,
                context: self.context,
                profiles: library.profiles(),
                default_profile: None,
                sampling: SamplingDefaults::default(),
                prefix_folder,
            },
            library,
            default_profile: self.default_profile,
        })
    }
}

impl Loading {
    /// Loads the models one after another, in order. Blocks.
    pub(crate) fn load(&self) -> anyhow::Result<Vec<Arc<Model>>> {
        let models = self.models.iter();
        let models = models
            .map(|located| {
                let manifest = located.manifest.as_ref();
                let options = LoadOptions {
                    default_profile: self
                        .default_profile
                        .clone()
                        .or_else(|| manifest.and_then(|m| m.default_profile.clone())),
                    sampling: manifest.map_or_else(Default::default, |m| m.sampling.clone()),
                    ..self.options.clone()
                };
                let model = Model::load(&located.name, &located.path, &options)?;
                Ok(Arc::new(model))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        for adapter in &self.adapters {
            adapter.load(&models)?;
        }
        Ok(models)
    }

    /// Like [`load`](Self::load), for commands without a log: warnings that affect answers are
    /// written to the standard error.
    pub(crate) fn load_with_warnings(&self) -> anyhow::Result<Vec<Arc<Model>>> {
        let models = self.load()?;
        for problem in models.iter().filter_map(|model| model.template_problem()) {
            eprint_safe(&format!("warning: {problem}"));
        }
        Ok(models)
    }

    /// Returns the models' files.
    pub(crate) fn located(&self) -> &[Located] {
        &self.models
    }

    /// Returns the backend that the models will be computed on.
    pub(crate) fn backend(&self) -> &Backend {
        &self.options.backend
    }

    /// Returns the library of the models' profiles.
    pub(crate) fn into_library(self) -> Library {
        self.library
    }
}

impl AdapterArg {
    /// Loads it for the named model, or for all that it fits.
    fn load(&self, models: &[Arc<Model>]) -> anyhow::Result<()> {
        let wanted = |model: &&Arc<Model>| match &self.model {
            Some(name) => model.id() == name,
            None => true,
        };
        let loaded = models.iter().filter(wanted);
        let loaded = loaded.map(|model| model.load_adapter(&self.name, &self.path));
        let (loaded, failed): (Vec<_>, Vec<_>) = loaded.partition(Result::is_ok);
        match failed.into_iter().find_map(Result::err) {
            Some(error) if loaded.is_empty() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Returns `$XDG_CACHE_HOME/incant`, or its equivalent on this system.
fn cache_folder() -> anyhow::Result<PathBuf> {
    let folders = folders().context("give --prefix-dir DIR or --no-prefix-cache")?;
    Ok(folders.cache_dir())
}

/// Returns the folders for a program's files of a user on this system.
pub(crate) fn folders() -> anyhow::Result<impl AppStrategy> {
    etcetera::choose_app_strategy(AppStrategyArgs {
        top_level_domain: String::new(),
        author: String::new(),
        app_name: "incant".to_owned(),
    })
    .context("there is no home directory")
}

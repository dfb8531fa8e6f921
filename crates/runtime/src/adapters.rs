//! The LoRA adapters of a model, by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::clock::unix_time;
use incant_engine::{self as engine, AddAdapterError};
use incant_gguf::open::Location;
use incant_model::lora::{Lora, LoraError};

/// The maximum length of a name.
const MAX_NAME: usize = 64;

/// An adapter that a model serves under a name.
#[derive(Debug)]
pub struct Adapter {
    name: String,
    /// Safe to show to clients.
    path: PathBuf,
    profile: Option<String>,
    ranks: Vec<usize>,
    parameters: usize,
    created: u64,
    pub(super) loaded: engine::Adapter,
}

/// The adapters that a model serves, by name.
pub type Adapters = BTreeMap<String, Arc<Adapter>>;

/// A table of adapters. It is replaced as a whole (copy on write): a request keeps the adapters it
/// found, for as long as it runs.
#[derive(Debug, Default)]
pub(super) struct Table(RwLock<Arc<Adapters>>);

/// The reason why an adapter is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The name cannot be part of an arm's id.
    #[error(
        "'{}' is no name for an adapter: 1 to {MAX_NAME} letters, digits, '.', '_' and '-'",
        incant_gguf::printable::excerpt(.0).escape_debug()
    )]
    Name(String),
    /// The adapter cannot be read, or does not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The adapter was made for a profile that the model does not serve.
    #[error("the adapter was made for the profile '{}', which {model} does not have", profile.escape_debug())]
    UnknownProfile {
        /// The profile that the adapter names.
        profile: String,
        /// The model's id.
        model: String,
    },
    /// There is no memory for it, the model's executor does not support it, or the engine failed.
    #[error("the adapter cannot be loaded: {0}")]
    Engine(#[from] AddAdapterError),
}

impl Adapter {
    /// Returns the name that follows the `+` of an arm.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path it was read from, as far as clients may know: relative to the folder that
    /// they name adapters in, or the last component of a path that the operator named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the profile that chat uses with it unless the arm names another.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    /// Returns the different ranks of its matrices, lowest first.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// Returns the number of its parameters.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// Returns the bytes that its weights take; they are shared by all names that it has.
    pub fn bytes(&self) -> usize {
        self.loaded.bytes()
    }

    /// Returns when it was loaded, in Unix seconds.
    pub fn created(&self) -> u64 {
        self.created
    }
}

impl Table {
    /// Returns the current adapters.
    pub(super) fn get(&self) -> Arc<Adapters> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Adapters) -> T) -> T {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut adapters = Adapters::clone(&table);
        let result = change(&mut adapters);
        *table = Arc::new(adapters);
        result
    }
}

impl super::Model {
    /// Returns the adapters that the model serves now.
    pub fn adapters(&self) -> Arc<Adapters> {
        self.adapters.get()
    }

    /// Calls [`load_adapter_at`](Self::load_adapter_at) for a path that the operator names.
    ///
    /// # Errors
    /// See [`AdapterError`].
    pub fn load_adapter(&self, name: &str, path: &Path) -> Result<Arc<Adapter>, AdapterError> {
        self.load_adapter_at(name, &Location::of(path))
    }

    /// Reads the adapter at `location` and serves it as `name`, replacing an adapter of this name.
    /// Blocks. Nothing changes until it has succeeded; running requests keep their adapters.
    ///
    /// # Errors
    /// See [`AdapterError`].
    pub fn load_adapter_at(
        &self,
        name: &str,
        location: &Location,
    ) -> Result<Arc<Adapter>, AdapterError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fits) {
            return Err(AdapterError::Name(name.to_owned()));
        }
        // No executor stores an element in less than two bytes.
        let most = self.engine().adapter_memory().most() / 2;
        let lora = Lora::read_at(location, self.spec(), most)?;
        let profile = lora.profile().map(str::to_owned);
        if let Some(profile) = &profile
            && !self.profile_names().contains(profile)
        {
            return Err(AdapterError::UnknownProfile {
                profile: profile.clone(),
                model: self.id().to_owned(),
            });
        }
        let mut ranks: Vec<usize> = lora.additions().map(|(_, _, part)| part.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let numbers = lora
            .additions()
            .map(|(_, _, part)| part.a.len() + part.b.len());
        let parameters = numbers.sum();
        let adapter = Arc::new(Adapter {
            name: name.to_owned(),
            path: location.public_path().to_owned(),
            profile,
            ranks,
            parameters,
            created: unix_time(),
            loaded: self.engine().add_adapter(lora)?,
        });
        let served = Arc::clone(&adapter);
        self.adapters
            .change(|adapters| adapters.insert(name.to_owned(), served));
        Ok(adapter)
    }

    /// Stops serving the adapter called `name`, and returns it. Running requests keep it.
    pub fn unload_adapter(&self, name: &str) -> Option<Arc<Adapter>> {
        self.adapters.change(|adapters| adapters.remove(name))
    }
}

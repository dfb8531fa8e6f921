//! Adapters of a model, by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use incant_engine::{self as engine, AddAdapterError};
use incant_gguf::open::Location;
use incant_model::lora::{Lora, LoraError};

/// The longest name.
const MOST_NAME: usize = 64;

/// An adapter that a model serves under a name.
#[derive(Debug)]
pub struct Adapter {
    name: String,
    /// As clients may see it.
    path: PathBuf,
    profile: Option<String>,
    ranks: Vec<usize>,
    parameters: usize,
    created: u64,
    pub(super) loaded: engine::Adapter,
}

/// The adapters that a model serves, by name.
pub type Adapters = BTreeMap<String, Arc<Adapter>>;

/// A table of adapters. It is replaced as a whole: a request keeps what it found, for
/// as long as it runs.
#[derive(Debug, Default)]
pub(super) struct Table(RwLock<Arc<Adapters>>);

/// Why an adapter is not served.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A name that an arm could not say.
    #[error(
        "'{}' is no name for an adapter: 1 to {MOST_NAME} letters, digits, '.', '_' and '-'",
        incant_gguf::printable::excerpt(.0).escape_debug()
    )]
    Name(String),
    /// It cannot be read, or does not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// It was made to be used with a profile that the model does not serve.
    #[error("the adapter was made for the profile '{}', which {model} does not have", profile.escape_debug())]
    UnknownProfile {
        /// The profile that the adapter names.
        profile: String,
        /// The model.
        model: String,
    },
    /// There is no room for it, the model does not compute under it, or the engine failed.
    #[error("the adapter cannot be taken in: {0}")]
    Engine(#[from] AddAdapterError),
}

impl Adapter {
    /// The name that follows the `+` of an arm.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was read from, as far as clients may know: a path within the folder that
    /// they name adapters in, or the last part of one that the operator named.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The profile that chat uses with it unless the arm names another.
    pub fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }

    /// The different ranks of its matrices, lowest first.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// How many numbers it has.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// The bytes that its weights take, once for all names that they have.
    pub fn bytes(&self) -> usize {
        self.loaded.bytes()
    }

    /// When it was loaded, in Unix seconds.
    pub fn created(&self) -> u64 {
        self.created
    }
}

impl Table {
    /// The adapters as they are now.
    pub(super) fn get(&self) -> Arc<Adapters> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the table.
    fn change<T>(&self, change: impl FnOnce(&mut Adapters) -> T) -> T {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut adapters = Adapters::clone(&table);
        let result = change(&mut adapters);
        *table = Arc::new(adapters);
        result
    }
}

impl super::Model {
    /// The adapters that it serves now.
    pub fn adapters(&self) -> Arc<Adapters> {
        self.adapters.get()
    }

    /// [`load_adapter_at`](Self::load_adapter_at) a path that the operator names.
    ///
    /// # Errors
    /// See [`AdapterError`].
    pub fn load_adapter(&self, name: &str, path: &Path) -> Result<Arc<Adapter>, AdapterError> {
        self.load_adapter_at(name, &Location::of(path))
    }

    /// Reads the adapter at `location` and serves it as `name`, in the place of one that
    /// has this name. Blocks. Until it has succeeded nothing changes; requests that
    /// have begun go on as they are.
    ///
    /// # Errors
    /// See [`AdapterError`].
    pub fn load_adapter_at(
        &self,
        name: &str,
        location: &Location,
    ) -> Result<Arc<Adapter>, AdapterError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || name.len() > MOST_NAME || !name.chars().all(fits) {
            return Err(AdapterError::Name(name.to_owned()));
        }
        // No executor holds a number in less than two bytes.
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
        let mut ranks: Vec<usize> = lora.parts().map(|(_, _, part)| part.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let numbers = lora.parts().map(|(_, _, part)| part.a.len() + part.b.len());
        let parameters = numbers.sum();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let adapter = Arc::new(Adapter {
            name: name.to_owned(),
            path: location.public_path().to_owned(),
            profile,
            ranks,
            parameters,
            // A clock before 1970 is wrong anyhow.
            created: now.map_or(0, |since| since.as_secs()),
            loaded: self.engine().add_adapter(lora)?,
        });
        let served = Arc::clone(&adapter);
        self.adapters
            .change(|adapters| adapters.insert(name.to_owned(), served));
        Ok(adapter)
    }

    /// Serves the adapter called `name` no longer, and returns it. Requests that have
    /// begun go on with it.
    pub fn unload_adapter(&self, name: &str) -> Option<Arc<Adapter>> {
        self.adapters.change(|adapters| adapters.remove(name))
    }
}

//! From a model's name to a GGUF file on this machine.
//!
//! The catalogue is the manifests in `models/`, embedded in the program, and
//! those that `incant pull --manifest` has put beside the files they describe.
//! A file that is here is used as it is and needs no network: it was verified
//! when it was written. [`locate`] finds it, [`fetch`] brings it.
//!
//! [`manifest`](Manifest) says what a model is, `download` brings its file
//! into the cache, and each kind of source has a module that fills the part
//! file: `hub` and `wheel`.

mod download;
mod hub;
mod manifest;
mod wheel;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use etcetera::BaseStrategy;

use crate::open::{Kind, Location};

pub use manifest::{Checksum, Licence, Manifest, ManifestError, Source, WheelPart};

/// The manifests that ship with incant. The first is the default model.
const SHIPPED: [&str; 2] = [
    include_str!("../../models/gemma-3-270m.toml"),
    include_str!("../../models/smollm2-135m-instruct.toml"),
];

/// The models that ship with incant, the default one first.
pub fn manifests() -> &'static [Manifest] {
    static MANIFESTS: LazyLock<Vec<Manifest>> = LazyLock::new(|| {
        SHIPPED
            .iter()
            .map(|text| Manifest::parse(text).expect("a test holds the shipped manifests good"))
            .collect()
    });
    &MANIFESTS
}

/// The model that is meant when none is named.
pub fn default_model() -> &'static Manifest {
    &manifests()[0]
}

/// The shipped model of that name.
///
/// ```
/// let model = incant::catalog::find("gemma-3-270m").expect("it ships with incant");
/// assert_eq!(model.default_profile.as_deref(), Some("assistant"));
/// ```
pub fn find(name: &str) -> Option<&'static Manifest> {
    manifests().iter().find(|manifest| manifest.name == name)
}

/// [`Cache::locate`] in the cache that the environment names.
pub fn locate(name_or_file: &str) -> Result<Located, CatalogError> {
    Cache::from_env()?.locate(name_or_file)
}

/// [`Cache::fetch`] into the cache that the environment names.
pub fn fetch(manifest: &Manifest, progress: &dyn Progress) -> Result<PathBuf, CatalogError> {
    Cache::from_env()?.fetch(manifest, progress)
}

/// A model whose file is on this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// The model's id: its manifest's name, or its file's stem.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// What is known of it; `None` for a file that was named by its path.
    pub manifest: Option<Manifest>,
}

/// Where a model's file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is here.
    Present,
    /// A download of it was cut short.
    Partial {
        /// Bytes that are here and need not be fetched again.
        bytes: u64,
    },
    /// Nothing of it is here.
    Absent,
}

/// Watches a download.
pub trait Progress {
    /// Something a person would want to know, in one line.
    fn note(&self, line: &str);
    /// A download of `total` bytes starts.
    fn begin(&self, name: &str, total: u64);
    /// So many bytes are here. It can fall, where a source has to start again.
    fn position(&self, bytes: u64);
    /// The download ended, well or not.
    fn end(&self);
}

/// The Hugging Face hub, or a mirror of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Its address, without a slash at the end.
    pub endpoint: String,
    /// Sent to the endpoint itself, never to where it redirects.
    pub token: Option<String>,
}

/// The folder that holds downloaded models, and how to fill it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The folder; made when first needed.
    pub dir: PathBuf,
    /// The hub to ask; without one, sources on it are skipped.
    pub hub: Option<Hub>,
}

impl Cache {
    /// The cache that the environment names. The only place where the
    /// catalogue reads the environment (pip and the HTTP client read their own
    /// variables).
    ///
    /// - `INCANT_MODELS`: the folder; else `incant/models` in the user's cache
    ///   directory (`$XDG_CACHE_HOME`, `~/.cache`).
    /// - `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`: as Hugging Face's own
    ///   client has them.
    pub fn from_env() -> Result<Cache, CatalogError> {
        // An empty variable is how many shells and unit files unset one.
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let text = |name| set(name).and_then(|value| value.into_string().ok());

        let dir = match set("INCANT_MODELS") {
            Some(dir) => PathBuf::from(dir),
            None => etcetera::choose_base_strategy()
                .map_err(|_| CatalogError::NoCacheDirectory)?
                .cache_dir()
                .join("incant")
                .join("models"),
        };
        let offline = text("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
        });
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let hub = (!offline).then(|| Hub {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: text("HF_TOKEN"),
        });
        Ok(Cache { dir, hub })
    }

    /// Where the model of that name is, or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.gguf"))
    }

    /// Finds a model on this machine, by its name or by its file's path. Never
    /// uses the network.
    ///
    /// A path is what ends in `.gguf` or has a separator; anything else is a
    /// name. A file that someone put into the cache by hand is found by its
    /// stem.
    pub fn locate(&self, name_or_file: &str) -> Result<Located, CatalogError> {
        if names_a_file(name_or_file) {
            return locate_file(Path::new(name_or_file));
        }
        let name = name_or_file.to_owned();
        let path = self.path(&name);
        let Some(manifest) = self.find(&name)? else {
            return match size_of(&path)? {
                Some(_) => Ok(Located {
                    name,
                    path,
                    manifest: None,
                }),
                None => Err(self.unknown(&name)),
            };
        };
        match size_of(&path)? {
            Some(found) if found == manifest.size => Ok(Located {
                name,
                path,
                manifest: Some(manifest),
            }),
            Some(found) => Err(CatalogError::WrongSize {
                expected: manifest.size,
                name,
                path,
                found,
            }),
            None => Err(CatalogError::NotPulled { name }),
        }
    }

    /// Everything in the catalogue: the shipped models, then those that
    /// [`keep`](Cache::keep) has added.
    pub fn manifests(&self) -> Result<Vec<Manifest>, CatalogError> {
        let mut all = manifests().to_vec();
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            Err(error) => return Err(CatalogError::io("read", &self.dir)(error)),
        };
        let mut added = Vec::new();
        for entry in entries {
            let path = entry.map_err(CatalogError::io("read", &self.dir))?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if let Some(stem) = stem.filter(|_| path.extension().is_some_and(|end| end == "toml")) {
                added.extend(self.added(stem)?);
            }
        }
        added.sort_by(|a, b| a.name.cmp(&b.name));
        all.extend(added);
        Ok(all)
    }

    /// The manifest of that name, shipped or added.
    pub fn find(&self, name: &str) -> Result<Option<Manifest>, CatalogError> {
        match find(name) {
            Some(manifest) => Ok(Some(manifest.clone())),
            None => self.added(name),
        }
    }

    /// The error for a name that is not in the catalogue: it lists what is.
    pub fn unknown(&self, name: &str) -> CatalogError {
        let mut known: Vec<String> = match self.manifests() {
            Ok(manifests) => manifests.into_iter().map(|it| it.name).collect(),
            Err(error) => return error,
        };
        let nearness = |known: &String| strsim::jaro_winkler(known, name);
        known.sort_by(|a, b| nearness(b).total_cmp(&nearness(a)));
        CatalogError::Unknown {
            name: name.to_owned(),
            known,
        }
    }

    /// Adds a manifest (the text it was parsed from) to the catalogue of this
    /// cache, so that its model is known by name from now on.
    pub fn keep(&self, manifest: &Manifest, text: &str) -> Result<(), CatalogError> {
        let path = self.added_path(&manifest.name);
        fs::create_dir_all(&self.dir).map_err(CatalogError::io("create", &self.dir))?;
        fs::write(&path, text).map_err(CatalogError::io("write", &path))
    }

    /// What of the model's file is here.
    pub fn state(&self, manifest: &Manifest) -> Result<State, CatalogError> {
        if size_of(&self.path(&manifest.name))? == Some(manifest.size) {
            return Ok(State::Present);
        }
        let mut most = 0;
        for source in &manifest.sources {
            let part = download::part_path(self, manifest, source);
            most = most.max(size_of(&part)?.unwrap_or(0));
        }
        Ok(match most {
            0 => State::Absent,
            bytes => State::Partial { bytes },
        })
    }

    /// Brings a model's file into the cache and says where it is. One that is
    /// there already costs a look at its size, and no network.
    ///
    /// The sources are tried in order. What arrives is kept across failures
    /// and interruptions, and the next call goes on from there. A file takes
    /// its name only when it is whole, verified and on disk. Another process
    /// that wants the same model waits for this one.
    pub fn fetch(
        &self,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<PathBuf, CatalogError> {
        download::fetch(self, manifest, progress)
    }

    fn added_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.toml"))
    }

    fn added(&self, name: &str) -> Result<Option<Manifest>, CatalogError> {
        let path = self.added_path(name);
        let text = match Location::of(&path).read_text(Kind::MANIFEST) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CatalogError::io("read", &path)(error)),
        };
        Manifest::parse(&text)
            .map(Some)
            .map_err(|error| CatalogError::Manifest { path, error })
    }
}

fn names_a_file(text: &str) -> bool {
    text.ends_with(".gguf") || text.contains(std::path::is_separator)
}

fn locate_file(path: &Path) -> Result<Located, CatalogError> {
    let metadata = fs::metadata(path).map_err(CatalogError::io("read", path))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    match stem {
        Some(name) if metadata.is_file() => Ok(Located {
            name: name.to_owned(),
            path: path.to_owned(),
            manifest: None,
        }),
        _ => Err(CatalogError::NotAFile {
            path: path.to_owned(),
        }),
    }
}

/// The file's size in bytes, `None` if there is no such file.
fn size_of(path: &Path) -> Result<Option<u64>, CatalogError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CatalogError::io("read", path)(error)),
    }
}

/// Why a model could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// In the catalogue, not on this machine.
    #[error("the model {name} is not on this machine: run `incant pull {name}`")]
    NotPulled {
        /// Its name.
        name: String,
    },
    /// A file that is not the one its manifest describes.
    #[error(
        "{path} has {found} bytes where the model {name} has {expected}: run `incant pull {name}` to replace it",
        path = path.display()
    )]
    WrongSize {
        /// The model.
        name: String,
        /// Its file.
        path: PathBuf,
        /// The file's size, in bytes.
        found: u64,
        /// What the manifest says.
        expected: u64,
    },
    /// Neither a name in the catalogue nor a file.
    #[error(
        "there is no model {name:?}; there are {known}, or give the path of a .gguf file",
        known = known.join(", ")
    )]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names in the catalogue, the nearest first.
        known: Vec<String>,
    },
    /// The path of something else.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// It.
        path: PathBuf,
    },
    /// A manifest in the cache cannot be read.
    #[error("{}: {error}", path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Why.
        error: ManifestError,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The disk has no room for the model.
    #[error(
        "no space left for the model {name} in {dir}: {missing} more bytes are needed (what was downloaded is kept; INCANT_MODELS names another folder)",
        dir = dir.display()
    )]
    DiskFull {
        /// The model.
        name: String,
        /// The cache.
        dir: PathBuf,
        /// Bytes that were still to come.
        missing: u64,
    },
    /// Every source failed.
    #[error(
        "no source delivered the model {name}:\n{causes}{kept}",
        causes = lines(causes),
        kept = kept_line(*kept)
    )]
    NoSource {
        /// The model.
        name: String,
        /// One line for each source, in the order they were tried.
        causes: Vec<String>,
        /// Bytes that are kept for another try.
        kept: u64,
    },
    /// There is neither a home directory nor `INCANT_MODELS`.
    #[error("there is no home directory to keep models in: set INCANT_MODELS to a folder")]
    NoCacheDirectory,
}

impl CatalogError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CatalogError {
        let path = path.to_owned();
        move |error| CatalogError::Io {
            action,
            path,
            error,
        }
    }
}

fn lines(causes: &[String]) -> String {
    let lines: Vec<String> = causes.iter().map(|cause| format!("  {cause}")).collect();
    lines.join("\n")
}

fn kept_line(kept: u64) -> String {
    match kept {
        0 => String::new(),
        bytes => format!("\n  {bytes} bytes are kept; another try goes on from there"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_manifests_are_good_and_lead_with_the_default() {
        let names: Vec<&str> = manifests().iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["gemma-3-270m", "smollm2-135m-instruct"]);
        assert_eq!(
            default_model().default_profile.as_deref(),
            Some("assistant")
        );
        assert_eq!(
            find("smollm2-135m-instruct").map(|it| it.context),
            Some(8192)
        );
        assert_eq!(find("smollm2"), None);
    }

    #[test]
    fn sources_of_a_shipped_model_agree_on_its_bytes() {
        for manifest in manifests() {
            let first = manifest.sources[0].sha256();
            assert!(
                manifest
                    .sources
                    .iter()
                    .all(|source| source.sha256() == first)
            );
        }
    }
}

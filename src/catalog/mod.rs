//! The catalogue of models: finds and downloads GGUF files by a model's name.
//!
//! The catalogue consists of the manifests in `models/`, embedded in the program, and those that
//! `incant pull --manifest` has stored beside the files they describe. [`locate`] finds a file on
//! this machine and uses it unverified, without network access. [`fetch`] downloads a file, or
//! accepts one on this machine once `verified` has confirmed its checksum.
//!
//! [`manifest`](Manifest) describes a model, `download` downloads its file into the cache, and each
//! kind of source has a module that fills the part file: `hub` and `wheel`.

mod download;
mod error;
mod hub;
mod manifest;
mod verified;
mod wheel;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use etcetera::BaseStrategy;

use incant_gguf::atomic::{self, Access};
use incant_gguf::nearest::nearest;
use incant_gguf::open::{Kind, Location};

pub use error::CatalogError;
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

/// Returns the default model.
pub fn default_model() -> &'static Manifest {
    &manifests()[0]
}

/// Returns the shipped model of that name.
///
/// ```
/// let model = incant::catalog::find("gemma-3-270m").expect("it ships with incant");
/// assert_eq!(model.default_profile.as_deref(), Some("assistant"));
/// ```
pub fn find(name: &str) -> Option<&'static Manifest> {
    manifests().iter().find(|manifest| manifest.name == name)
}

/// Calls [`Cache::locate`] on the cache that the environment names.
pub fn locate(name_or_file: &str) -> Result<Located, CatalogError> {
    Cache::from_env()?.locate(name_or_file)
}

/// Calls [`Cache::fetch`] on the cache that the environment names.
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
    /// Its manifest; `None` for a file that was named by its path.
    pub manifest: Option<Manifest>,
}

/// The models that are known by name.
#[derive(Debug)]
pub struct Catalogue {
    /// The shipped models, then the added ones by their names.
    pub manifests: Vec<Manifest>,
    /// The errors of unusable manifests in the cache's folder, one each.
    pub broken: Vec<CatalogError>,
}

/// The state of a model's file on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A file of the expected size is here.
    Present,
    /// An incomplete download is here.
    Partial {
        /// The bytes that need not be downloaded again.
        bytes: u64,
    },
    /// No part of it is here.
    Absent,
}

/// Observes a download.
pub trait Progress {
    /// Reports a message for people, in one line.
    fn note(&self, line: &str);
    /// Reports that a download of `total` bytes starts.
    fn begin(&self, name: &str, total: u64);
    /// Reports the number of bytes on this machine. It can decrease if a source must start again.
    fn position(&self, bytes: u64);
    /// Reports that the download has ended, successfully or not.
    fn end(&self);
}

/// The Hugging Face hub, or a mirror of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Its URL, without a final slash.
    pub endpoint: String,
    /// The access token, sent only to the endpoint itself, never to redirect targets.
    pub token: Option<String>,
}

/// The folder of downloaded models, and the hub to download from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// The folder; created when first needed.
    pub dir: PathBuf,
    /// The hub; without one, sources on it are skipped.
    pub hub: Option<Hub>,
}

impl Cache {
    /// Returns the cache that the environment names. This is the only place where the catalogue
    /// reads the environment (pip and the HTTP client read their own variables).
    ///
    /// - `INCANT_MODELS`: the folder; else `incant/models` in the user's cache
    ///   directory (`$XDG_CACHE_HOME`, `~/.cache`).
    /// - `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`: as in Hugging Face's own client.
    pub fn from_env() -> Result<Cache, CatalogError> {
        // Many shells and unit files unset a variable by making it empty.
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

    /// Removes what killed processes left half written in the folder: manifests, and models that
    /// were merged or quantized into it. Unfinished downloads stay: they are continued.
    pub fn sweep(&self) {
        atomic::sweep(&self.dir, atomic::UNFINISHED);
    }

    /// Returns the path of the model of that name, whether it exists or not.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.gguf"))
    }

    /// Finds a model on this machine, by its name or by its file's path. Never uses the network.
    ///
    /// An argument that ends in `.gguf` or has a separator is a path; any other one is a name. A
    /// file that was copied into the cache by hand is found by its stem.
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

    /// Returns all models of the catalogue: the shipped ones, then those that [`keep`](Cache::keep)
    /// has added. An unusable manifest hides no others.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn catalogue(&self) -> Result<Catalogue, CatalogError> {
        let mut all = Catalogue {
            manifests: manifests().to_vec(),
            broken: Vec::new(),
        };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
            Err(error) => return Err(CatalogError::io("read", &self.dir)(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.map_err(CatalogError::io("read", &self.dir))?.path();
            if path.extension().is_some_and(|end| end == "toml") {
                paths.push(path);
            }
        }
        paths.sort();
        for path in paths {
            match read_added(&path) {
                Ok(manifest) => all.manifests.extend(manifest),
                Err(error) => all.broken.push(error),
            }
        }
        Ok(all)
    }

    /// Returns the manifest of that name, shipped or added.
    ///
    /// # Errors
    /// There is a manifest of that name, but it is unusable.
    pub fn find(&self, name: &str) -> Result<Option<Manifest>, CatalogError> {
        match find(name) {
            Some(manifest) => Ok(Some(manifest.clone())),
            None => read_added(&self.added_path(name)),
        }
    }

    /// Returns the error for a name that is not in the catalogue: it lists the known names.
    pub fn unknown(&self, name: &str) -> CatalogError {
        let known: Vec<String> = match self.catalogue() {
            Ok(catalogue) => catalogue.manifests.into_iter().map(|it| it.name).collect(),
            Err(error) => return error,
        };
        let known = nearest(name, known);
        CatalogError::Unknown {
            name: name.to_owned(),
            known,
        }
    }

    /// Adds a manifest (the text it was parsed from) to the catalogue of this cache, so that its
    /// model is known by name from now on.
    pub fn keep(&self, manifest: &Manifest, text: &str) -> Result<(), CatalogError> {
        let path = self.added_path(&manifest.name);
        fs::create_dir_all(&self.dir).map_err(CatalogError::io("create", &self.dir))?;
        let written = atomic::replace(&path, text.as_bytes(), Access::Umask);
        written.map_err(CatalogError::io("write", &path))
    }

    /// Returns whether the model's file is on this machine, completely or in part.
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

    /// Returns whether a model's file is here and has the checksum of its manifest. The file is
    /// read once: its checksum is cached for as long as the file does not change, unless the file
    /// was written less than three seconds ago.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn holds(
        &self,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> Result<bool, CatalogError> {
        verified::holds(self, manifest, progress)
    }

    /// Downloads a model's file into the cache and returns its path. A file that is there already
    /// needs no network; it is replaced if it is not the file that the manifest describes.
    ///
    /// The sources are tried in order. Downloaded bytes are kept across failures and interruptions,
    /// and the next call resumes from there. A file gets its name only when it is complete,
    /// verified and synced to disk. Another process that needs the same model waits for this one.
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
}

/// Reads a manifest of the cache, if it exists.
fn read_added(path: &Path) -> Result<Option<Manifest>, CatalogError> {
    let text = match Location::of(path).read_text(Kind::MANIFEST) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CatalogError::io("read", path)(error)),
    };
    let manifest = Manifest::parse(&text).map_err(|error| CatalogError::Manifest {
        path: path.to_owned(),
        error,
    })?;
    // Under another name it would be listed but not found.
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(&manifest.name) {
        return Err(CatalogError::Misnamed {
            path: path.to_owned(),
            name: manifest.name,
        });
    }
    if find(&manifest.name).is_some() {
        return Err(CatalogError::Shadowed {
            path: path.to_owned(),
            name: manifest.name,
        });
    }
    Ok(Some(manifest))
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

/// Returns the file's size in bytes, `None` if there is no such file.
fn size_of(path: &Path) -> Result<Option<u64>, CatalogError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CatalogError::io("read", path)(error)),
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

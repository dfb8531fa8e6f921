//! Sources of profiles: those compiled in, and a folder of the user's own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use super::limits::MAX_SOURCE_BYTES;
use super::{Profile, ProfileError};
use incant_gguf::open::{Kind, Location};

/// Files of `prompts/`, with their texts.
macro_rules! prompts {
    ($($file:literal,)*) => {
        &[$(($file, include_str!(concat!("../../../../prompts/", $file)))),*]
    };
}

/// A new profile is one file in `prompts/` and one line here.
const FILES: &[(&str, &str)] = prompts![
    "assistant.jinja",
    "assistant-ja.jinja",
    "instruct.jinja",
    "instruct-ja.jinja",
    "self-correct.jinja",
    "self-correct-cot.jinja",
    "self-correct-cot-ja.jinja",
    "self-correct-ja.jinja",
    "urial.jinja",
    "urial-1.jinja",
    "urial-1-ja.jinja",
    "urial-8.jinja",
    "urial-8-ja.jinja",
    "urial-help.jinja",
    "urial-help-ja.jinja",
    "urial-ja.jinja",
    "vanilla.jinja",
    "vanilla-ja.jinja",
];

static BUILTIN: LazyLock<Vec<Arc<Profile>>> = LazyLock::new(|| {
    FILES
        .iter()
        .map(|(file, source)| {
            // The files are part of the program, and a test parses each.
            let profile = Profile::parse(file, source).expect("a built-in profile is valid");
            Arc::new(profile)
        })
        .collect()
});

/// The built-in profiles.
pub fn builtin() -> &'static [Arc<Profile>] {
    &BUILTIN
}

/// Whether a profile is a built-in one.
pub fn is_builtin(profile: &Arc<Profile>) -> bool {
    builtin().iter().any(|other| Arc::ptr_eq(profile, other))
}

/// All profiles by name: the built-in ones, overridden by every `NAME.jinja` in `dir`. Other
/// files there are ignored.
///
/// # Errors
/// A file is broken, unreadable, or named differently from its profile; a profile is a variant
/// of one that does not exist; or two variants of one profile are in the same language.
pub fn load(dir: Option<&Path>) -> Result<BTreeMap<String, Arc<Profile>>, ProfileError> {
    Ok(Library::open(dir)?.profiles())
}

/// The built-in profiles, overridden by those of a folder whose files may change.
#[derive(Debug)]
pub struct Library {
    folder: Option<PathBuf>,
    files: BTreeMap<PathBuf, Source>,
    /// Errors of files that are valid by themselves.
    bad_variants: BTreeMap<PathBuf, ProfileError>,
    /// The files' stamps at the last look.
    seen: BTreeMap<PathBuf, Stamp>,
}

/// A profile's file.
#[derive(Debug)]
struct Source {
    stamp: Stamp,
    /// `None` if it could not be read.
    text: Option<String>,
    profile: Result<Arc<Profile>, ProfileError>,
}

/// Metadata that changes with a file, to detect changes without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

impl Library {
    /// Reads the folder, if there is one.
    ///
    /// # Errors
    /// A file is broken, unreadable, or named differently from its profile; a profile is a
    /// variant of one that does not exist; or two variants of one profile are in the same
    /// language.
    pub fn open(folder: Option<&Path>) -> Result<Library, ProfileError> {
        let mut library = Library {
            folder: folder.map(Path::to_owned),
            files: BTreeMap::new(),
            bad_variants: BTreeMap::new(),
            seen: BTreeMap::new(),
        };
        library.read()?;
        let mut broken = library
            .files
            .extract_if(.., |_, source| source.profile.is_err());
        if let Some((_, source)) = broken.next() {
            source.profile?;
        }
        drop(broken);
        match library.bad_variants.pop_first() {
            Some((_, error)) => Err(error),
            None => Ok(library),
        }
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The valid profiles by name. A built-in profile takes the place of a broken file of its
    /// name.
    pub fn profiles(&self) -> BTreeMap<String, Arc<Profile>> {
        let good = |(path, _): &(&PathBuf, &Source)| !self.bad_variants.contains_key(*path);
        let files = self.files.iter().filter(good);
        let own = files.filter_map(|(_, source)| source.profile.as_ref().ok());
        let all = builtin().iter().chain(own);
        all.map(|profile| (profile.name().to_owned(), Arc::clone(profile)))
            .collect()
    }

    /// The files that cannot be used: the expected name of each one's profile, and the error.
    pub fn broken(&self) -> impl Iterator<Item = (String, &ProfileError)> {
        let alone = self
            .files
            .iter()
            .filter_map(|(path, source)| Some((path, source.profile.as_ref().err()?)));
        let all = alone.chain(&self.bad_variants);
        all.map(|(path, error)| (stem(path), error))
    }

    /// Reads all files again. Returns whether the text of any has changed.
    ///
    /// # Errors
    /// The folder cannot be read. Then nothing changes.
    pub fn read(&mut self) -> Result<bool, ProfileError> {
        self.seen = self.scan()?;
        Ok(self.update(true))
    }

    /// Reads files that have changed since they were last read, once two consecutive calls have
    /// seen them unchanged: by then their writer has presumably finished. Returns whether the
    /// text of any has changed.
    ///
    /// # Errors
    /// The folder cannot be read. Then nothing changes.
    pub fn follow(&mut self) -> Result<bool, ProfileError> {
        let now = self.scan()?;
        let settled = now == self.seen;
        self.seen = now;
        let read = self
            .files
            .iter()
            .map(|(path, source)| (path, &source.stamp));
        let differs = !read.eq(self.seen.iter());
        Ok(settled && differs && self.update(false))
    }

    fn scan(&self) -> Result<BTreeMap<PathBuf, Stamp>, ProfileError> {
        let Some(folder) = &self.folder else {
            return Ok(BTreeMap::new());
        };
        let unreadable = |source| ProfileError::Read {
            path: folder.clone(),
            source,
        };
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.extension() == Some(OsStr::new("jinja")) {
                let stamp = Stamp::of(&path);
                files.insert(path, stamp);
            }
        }
        Ok(files)
    }

    /// Accepts the stamps last seen, and reads new and changed files, or all of them if `again`
    /// is set.
    fn update(&mut self, again: bool) -> bool {
        let mut before = std::mem::take(&mut self.files);
        let mut changed = false;
        for (path, &stamp) in &self.seen {
            let mut source = match before.remove(path) {
                Some(source) if source.stamp == stamp && !again => source,
                old => {
                    let text = text_of(path);
                    match old.filter(|old| text.as_ref().ok() == old.text.as_ref()) {
                        Some(old) => old,
                        None => {
                            changed = true;
                            Source::new(path, text)
                        }
                    }
                }
            };
            source.stamp = stamp;
            self.files.insert(path.clone(), source);
        }
        self.bad_variants = self.find_bad_variants();
        changed || !before.is_empty()
    }

    /// Files whose profiles are variants of one that does not exist, or of one that has another
    /// variant among the files in the same language. In the latter case neither is used,
    /// because it is unclear which is meant. A built-in variant gives way to a file's.
    fn find_bad_variants(&self) -> BTreeMap<PathBuf, ProfileError> {
        let exists = |name: &str| {
            // A broken file counts as existing.
            let is_file = self.files.keys().any(|path| stem(path) == name);
            is_file || builtin().iter().any(|profile| profile.name() == name)
        };
        let variants = self.files.iter().filter_map(|(path, source)| {
            let profile = source.profile.as_ref().ok()?;
            Some((path, profile, profile.variant_of()?))
        });
        let variants: Vec<_> = variants.collect();
        let bad = variants.iter().filter_map(|&(path, profile, name)| {
            let mut others = variants.iter().filter(|(other, ..)| *other != path);
            let twin = others.find(|(_, other, _)| other.is_variant(name, profile.language()));
            let problem = match twin {
                _ if !exists(name) => format!("variant_of: there is no profile {name:?}"),
                Some((_, twin, _)) => format!(
                    "variant_of: {name:?} has another variant in the language {:?}, {:?}",
                    profile.language(),
                    twin.name()
                ),
                None => return None,
            };
            let file = path.display().to_string();
            Some((path.clone(), ProfileError::broken(&file, None, problem)))
        });
        bad.collect()
    }
}

impl Source {
    fn new(path: &Path, text: Result<String, ProfileError>) -> Source {
        let (text, profile) = match text {
            Ok(text) => {
                let profile = parse(path, &text);
                (Some(text), profile)
            }
            Err(error) => (None, Err(error)),
        };
        Source {
            stamp: Stamp::default(),
            text,
            profile,
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Stamp {
        // Reading the file will report its error.
        fs::metadata(path).map_or_else(
            |_| Stamp::default(),
            |metadata| Stamp {
                modified: metadata.modified().ok(),
                length: metadata.len(),
            },
        )
    }
}

const KIND: Kind = Kind::new("profiles", MAX_SOURCE_BYTES as u64);

fn text_of(path: &Path) -> Result<String, ProfileError> {
    let text = Location::of(path).read_text(KIND);
    text.map_err(|source| ProfileError::Read {
        path: path.to_owned(),
        source,
    })
}

fn parse(path: &Path, text: &str) -> Result<Arc<Profile>, ProfileError> {
    let file = path.display().to_string();
    let profile = Profile::parse(&file, text)?;
    match name_mismatch(path, &profile) {
        Some(error) => Err(error),
        None => Ok(Arc::new(profile)),
    }
}

/// The error of a file that is named differently from its profile.
fn name_mismatch(path: &Path, profile: &Profile) -> Option<ProfileError> {
    let file = path.display().to_string();
    let problem = format!(
        "the file does not have the name of its profile, {:?}",
        profile.name()
    );
    (profile.name() != stem(path)).then(|| ProfileError::broken(&file, None, problem))
}

/// The profile of a file, or all errors in it, including those of its place in its folder.
pub fn check_file(path: &Path) -> Result<Profile, Vec<ProfileError>> {
    let text = text_of(path).map_err(|error| vec![error])?;
    let file = path.display().to_string();
    let profile = super::check(&file, &text)?;
    let exists = |name: &str| {
        let is_builtin = builtin().iter().any(|profile| profile.name() == name);
        is_builtin || path.with_file_name(format!("{name}.jinja")).is_file()
    };
    let missing = profile.variant_of().filter(|name| !exists(name));
    let missing = missing.map(|name| {
        let problem = format!("variant_of: there is no profile {name:?}");
        ProfileError::broken(&file, None, problem)
    });
    let problems: Vec<_> = name_mismatch(path, &profile)
        .into_iter()
        .chain(missing)
        .collect();
    if problems.is_empty() {
        Ok(profile)
    } else {
        Err(problems)
    }
}

fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_an_error_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.jinja");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let error = Library::open(Some(folder.path())).unwrap_err().to_string();
        assert!(
            error.ends_with("pipe.jinja: it is a pipe, not a file"),
            "{error}"
        );
        fs::remove_file(&pipe).unwrap();
        std::os::unix::fs::symlink("/dev/zero", folder.path().join("zero.jinja")).unwrap();
        let error = Library::open(Some(folder.path())).unwrap_err().to_string();
        assert!(error.ends_with("it is a device, not a file"), "{error}");
    }
}

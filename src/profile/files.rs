//! Where profiles come from: those compiled in, and a folder of the user's own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use super::limits::LONGEST_SOURCE;
use super::{Profile, ProfileError};
use incant_gguf::open::{Kind, Location};

/// Files of `prompts/`, with their texts.
macro_rules! prompts {
    ($($file:literal,)*) => {
        &[$(($file, include_str!(concat!("../../prompts/", $file)))),*]
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

/// The profiles that come with incant.
pub fn builtin() -> &'static [Arc<Profile>] {
    &BUILTIN
}

/// Whether a profile is one of those that come with incant.
pub(crate) fn is_builtin(profile: &Arc<Profile>) -> bool {
    builtin().iter().any(|other| Arc::ptr_eq(profile, other))
}

/// All profiles by name: the built-in ones, and over them every `NAME.jinja` in
/// `dir`, where a file that is broken, unreadable or named otherwise inside is
/// an error; so are a variant of a profile that does not exist, and two variants
/// of one profile in the same language. Other files there are nobody's business.
pub fn load(dir: Option<&Path>) -> Result<BTreeMap<String, Arc<Profile>>, ProfileError> {
    Ok(Library::open(dir)?.profiles())
}

/// The built-in profiles, and over them those of a folder whose files may change.
#[derive(Debug)]
pub struct Library {
    folder: Option<PathBuf>,
    files: BTreeMap<PathBuf, Source>,
    /// What is wrong with files that are sound by themselves.
    bad_variants: BTreeMap<PathBuf, ProfileError>,
    /// What the last look saw of the files.
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

/// What tells that a file has changed, without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

impl Library {
    /// Reads the folder, if there is one.
    ///
    /// # Errors
    /// A file of it is broken, unreadable, or named otherwise than its profile; or a
    /// variant of a profile that does not exist, or one of two in the same language.
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

    /// The profiles by name. What is broken is not among them, but a built-in one of
    /// its name is.
    pub fn profiles(&self) -> BTreeMap<String, Arc<Profile>> {
        let good = |(path, _): &(&PathBuf, &Source)| !self.bad_variants.contains_key(*path);
        let files = self.files.iter().filter(good);
        let own = files.filter_map(|(_, source)| source.profile.as_ref().ok());
        let all = builtin().iter().chain(own);
        all.map(|profile| (profile.name().to_owned(), Arc::clone(profile)))
            .collect()
    }

    /// The files that cannot be used: the name that each should give a profile, and
    /// what is wrong.
    pub fn broken(&self) -> impl Iterator<Item = (String, &ProfileError)> {
        let alone = self
            .files
            .iter()
            .filter_map(|(path, source)| Some((path, source.profile.as_ref().err()?)));
        let all = alone.chain(&self.bad_variants);
        all.map(|(path, error)| (stem(path), error))
    }

    /// Reads all files again. Returns whether any has another text than before.
    ///
    /// # Errors
    /// The folder cannot be read. Then everything stays as it was.
    pub fn read(&mut self) -> Result<bool, ProfileError> {
        self.seen = self.look()?;
        Ok(self.update(true))
    }

    /// Reads the files that have changed since they were read, once two calls in a row
    /// have seen them the same: by then whoever writes them has finished. Returns
    /// whether any has another text than before.
    ///
    /// # Errors
    /// The folder cannot be read. Then everything stays as it was.
    pub fn follow(&mut self) -> Result<bool, ProfileError> {
        let now = self.look()?;
        let settled = now == self.seen;
        self.seen = now;
        let read = self
            .files
            .iter()
            .map(|(path, source)| (path, &source.stamp));
        let differs = !read.eq(self.seen.iter());
        Ok(settled && differs && self.update(false))
    }

    fn look(&self) -> Result<BTreeMap<PathBuf, Stamp>, ProfileError> {
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

    /// Takes over what was seen, and reads what is new: all of it, if `again`.
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

    /// The files whose profiles are variants of one that does not exist, or of one that has
    /// another variant among the files in the same language: nothing says which of the two
    /// is meant, so neither is taken. A built-in variant gives way to a file's.
    fn find_bad_variants(&self) -> BTreeMap<PathBuf, ProfileError> {
        let exists = |name: &str| {
            // One that is broken is no less meant.
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
        // Reading it will show what is wrong with it.
        fs::metadata(path).map_or_else(
            |_| Stamp::default(),
            |metadata| Stamp {
                modified: metadata.modified().ok(),
                length: metadata.len(),
            },
        )
    }
}

/// Files of profiles.
const KIND: Kind = Kind::new("profiles", LONGEST_SOURCE as u64);

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
    match misnamed(path, &profile) {
        Some(error) => Err(error),
        None => Ok(Arc::new(profile)),
    }
}

/// What is wrong with a file's name, if its profile has another.
fn misnamed(path: &Path, profile: &Profile) -> Option<ProfileError> {
    let file = path.display().to_string();
    let problem = format!(
        "the file is named otherwise than its profile, {:?}",
        profile.name()
    );
    (profile.name() != stem(path)).then(|| ProfileError::broken(&file, None, problem))
}

/// The profile of a file, or all that is wrong with it by itself and with its place in its
/// folder.
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
    let problems: Vec<_> = misnamed(path, &profile)
        .into_iter()
        .chain(missing)
        .collect();
    match problems.is_empty() {
        true => Ok(profile),
        false => Err(problems),
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

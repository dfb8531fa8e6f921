//! The arms of the server, and the constant prompt of each.

use std::collections::HashMap;

use anyhow::{Context, ensure};
use incant::runtime::GuidanceOptions;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::repeats::Runs;
use crate::set::Language;

/// The profiles that are asked by default, if the server has them.
const PROFILES: [&str; 7] = [
    "base",
    "turn",
    "urial",
    "urial-help",
    "urial-1",
    "urial-8",
    "assistant",
];

/// The profile that the others are compared with by default.
const BASELINE: &str = "urial";

/// The arms, profiles and adapters of the server.
pub(crate) struct Served {
    arms: Vec<Arm>,
    profiles: HashMap<String, Profile>,
    /// The profile that an adapter was trained with, by its arm.
    trained_with: HashMap<String, String>,
}

/// An arm, as listed in `/v1/models`.
#[derive(Clone, Debug, Deserialize)]
struct Arm {
    id: String,
    root: String,
    profile: Option<String>,
    adapter: Option<String>,
}

/// A profile, as listed in `/v1/profiles`.
#[derive(Clone, Debug, Deserialize)]
struct Profile {
    id: String,
    language: String,
    variant_of: Option<String>,
    prefix: Option<String>,
    default_for: Vec<String>,
}

/// An adapter, as listed in `/v1/adapters`.
#[derive(Debug, Deserialize)]
struct Adapter {
    id: String,
    profile: Option<String>,
}

/// Returns an arm's id without the guidance that may follow it.
fn plain(id: &str) -> &str {
    GuidanceOptions::split(id).map_or(id, |(id, _)| id)
}

/// Requests a list of the API.
fn list<T: DeserializeOwned>(client: &Client, path: &str) -> anyhow::Result<Vec<T>> {
    let mut reply = client.get(path)?;
    serde_json::from_value(reply["data"].take()).with_context(|| path.to_owned())
}

impl Served {
    /// Requests the lists from the server.
    pub(crate) fn by(client: &Client) -> anyhow::Result<Served> {
        let profiles: Vec<Profile> = list(client, "/v1/profiles")?;
        let adapters: Vec<Adapter> = list(client, "/v1/adapters")?;
        Ok(Served {
            arms: list(client, "/v1/models")?,
            profiles: profiles.into_iter().map(|it| (it.id.clone(), it)).collect(),
            trained_with: adapters
                .into_iter()
                .filter_map(|it| Some((it.id, it.profile?)))
                .collect(),
        })
    }

    /// Returns the arm with this id, which guidance may follow.
    fn find(&self, id: &str) -> Option<&Arm> {
        let plain = plain(id);
        self.arms.iter().find(|arm| arm.id == plain)
    }

    /// Returns the arms to ask: the named ones, which the server must have, or the default ones of
    /// its first model and that model's adapters.
    pub(crate) fn choose(&self, named: &[String]) -> anyhow::Result<Vec<String>> {
        if !named.is_empty() {
            for id in named {
                ensure!(self.find(id).is_some(), "the server has no arm {id}");
            }
            return Ok(named.to_vec());
        }
        let root = self.root()?;
        let mut arms = Vec::new();
        for profile in PROFILES {
            let id = format!("{root}@{profile}");
            if self.find(&id).is_some() {
                arms.push(id);
            } else {
                eprintln!("{id}: not served, left out");
            }
        }
        let adapters = self
            .arms
            .iter()
            .filter(|arm| arm.root == root && arm.profile.is_none() && arm.adapter.is_some());
        arms.extend(adapters.map(|arm| arm.id.clone()));
        Ok(arms)
    }

    /// Returns the arm that the others are compared with: the named one, which the server must
    /// have, or the default one, if the server has it.
    pub(crate) fn baseline(&self, named: Option<&String>) -> anyhow::Result<Option<String>> {
        if let Some(id) = named {
            ensure!(self.find(id).is_some(), "the server has no arm {id}");
            return Ok(Some(id.clone()));
        }
        let id = format!("{}@{BASELINE}", self.root()?);
        if self.find(&id).is_none() {
            eprintln!("{id}: not served, so there are no gains over it");
            return Ok(None);
        }
        Ok(Some(id))
    }

    fn root(&self) -> anyhow::Result<&str> {
        let first = self.arms.first().context("the server has no arms")?;
        Ok(&first.root)
    }

    /// Returns the arm to ask questions of a language: with the variant of its profile for that
    /// language, if the server has one.
    pub(crate) fn variant(&self, id: &str, language: Language) -> String {
        let variant = self.find(id).and_then(|arm| {
            let profile = &self.variant_of(arm.profile.as_ref()?, language)?.id;
            let adapter = arm.adapter.as_ref().map(|name| format!("+{name}"));
            let id = format!("{}@{profile}{}", arm.root, adapter.unwrap_or_default());
            self.find(&id)
        });
        let guidance = &id[plain(id).len()..];
        variant.map_or_else(|| id.to_owned(), |arm| arm.id.clone() + guidance)
    }

    /// Returns the variant of a profile for a language; the first by name, if the server has
    /// several.
    fn variant_of(&self, name: &str, language: Language) -> Option<&Profile> {
        let variants = self
            .profiles
            .values()
            .filter(|it| it.variant_of.as_deref() == Some(name) && it.language == language.code());
        variants.min_by(|a, b| a.id.cmp(&b.id))
    }

    /// Returns the runs of an arm's constant prompt, and of the profile named `also` or its variant
    /// for the language.
    pub(crate) fn prompt(
        &self,
        id: &str,
        also: Option<&String>,
        language: Language,
    ) -> anyhow::Result<Runs> {
        let arm = self.find(id).context(format!("no arm {id}"))?;
        let own = arm.profile.as_ref();
        let own = own.or_else(|| self.trained_with.get(&arm.id));
        let own = match own {
            Some(name) => self.profiles.get(name),
            // The default profile follows the question's language.
            None => self
                .profiles
                .values()
                .find(|it| it.default_for.contains(&arm.root))
                .map(|it| self.variant_of(&it.id, language).unwrap_or(it)),
        };
        let also = also
            .map(|name| {
                self.variant_of(name, language)
                    .or_else(|| self.profiles.get(name))
                    .with_context(|| format!("the server has no profile {name}"))
            })
            .transpose()?;
        let texts = own.into_iter().chain(also);
        Ok(Runs::of(texts.filter_map(|it| it.prefix.as_deref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repeats::copies;

    const PREFIX: &str = "one two three four five six seven eight nine";
    const JAPANESE: &str = "空が青いのは光が空気に散らされる";

    fn served() -> Served {
        let arm = |profile: Option<&str>, adapter: Option<&str>| {
            let profile_part = profile.map(|name| format!("@{name}")).unwrap_or_default();
            let adapter_part = adapter.map(|name| format!("+{name}")).unwrap_or_default();
            Arm {
                id: format!("m{profile_part}{adapter_part}"),
                root: "m".into(),
                profile: profile.map(str::to_owned),
                adapter: adapter.map(str::to_owned),
            }
        };
        let profile = |id: &str, of: Option<&str>, prefix: Option<&str>, default_for: &[&str]| {
            let profile = Profile {
                id: id.into(),
                language: if of.is_some() { "ja" } else { "en" }.into(),
                variant_of: of.map(str::to_owned),
                prefix: prefix.map(str::to_owned),
                default_for: default_for.iter().map(|it| (*it).to_owned()).collect(),
            };
            (id.to_owned(), profile)
        };
        Served {
            arms: vec![
                arm(None, None),
                arm(Some("base"), None),
                arm(Some("urial"), None),
                arm(Some("urial-ja"), None),
                arm(None, Some("a")),
                arm(Some("urial"), Some("a")),
                arm(Some("urial-ja"), Some("a")),
            ],
            profiles: HashMap::from([
                profile("base", None, None, &[]),
                profile("urial", None, Some(PREFIX), &["m"]),
                profile("urial-ja", Some("urial"), Some(JAPANESE), &[]),
            ]),
            trained_with: HashMap::from([("m+a".to_owned(), "base".to_owned())]),
        }
    }

    #[test]
    fn by_default_the_arms_are_those_that_are_served_and_the_adapters() {
        let served = served();
        assert_eq!(served.choose(&[]).unwrap(), ["m@base", "m@urial", "m+a"]);
        let named = vec!["m@urial-ja".to_owned()];
        assert_eq!(served.choose(&named).unwrap(), named);
        assert!(served.choose(&["m@none".to_owned()]).is_err());
        assert_eq!(served.baseline(None).unwrap().unwrap(), "m@urial");
    }

    #[test]
    fn japanese_questions_go_to_japanese_profiles() {
        let served = served();
        let variant = |id| served.variant(id, Language::Ja);
        assert_eq!(variant("m@urial"), "m@urial-ja");
        assert_eq!(variant("m@urial+a"), "m@urial-ja+a");
        assert_eq!(variant("m@urial-ja"), "m@urial-ja");
        assert_eq!(variant("m@base"), "m@base");
        assert_eq!(variant("m+a"), "m+a");
        assert_eq!(served.variant("m@urial", Language::En), "m@urial");
    }

    #[test]
    fn the_prompt_is_that_of_the_profile_in_use_and_of_one_that_is_added() {
        let served = served();
        let copied = |id: &str, also: Option<&str>| {
            let also = also.map(str::to_owned);
            let prompt = served.prompt(id, also.as_ref(), Language::En).unwrap();
            copies(PREFIX, &prompt, [])
        };
        assert!(copied("m@urial", None) && copied("m", None));
        assert!(!copied("m@base", None) && copied("m@base", Some("urial")));
        assert!(!copied("m+a", None), "it was trained with @base");
        let unknown = "none".to_owned();
        assert!(served.prompt("m", Some(&unknown), Language::En).is_err());
        let urial = "urial".to_owned();
        for (id, also) in [("m@base", Some(&urial)), ("m", None)] {
            let prompt = served.prompt(id, also, Language::Ja).unwrap();
            assert!(copies(JAPANESE, &prompt, []), "{id}");
            assert!(!copies(PREFIX, &prompt, []), "{id}");
        }
    }
}

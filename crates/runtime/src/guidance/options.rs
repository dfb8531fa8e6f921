//! The options of guidance and mixes, as requests and arms' ids give them.

use std::fmt;

use incant_prompt::profile::GuidanceDefaults;
use incant_sample::DEFAULT_PLAUSIBILITY;

/// The guidance and the mix that are requested for an arm's answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GuidanceOptions {
    /// `None` is the profile's default, and a weight of 0 turns guidance off.
    pub guidance: Option<Guidance>,
    /// The ids of other arms to mix in, each with its weight.
    pub mix: Vec<(String, f32)>,
}

/// The guide that answers are led away from, and how far.
#[derive(Clone, Debug, PartialEq)]
pub struct Guidance {
    /// From 0 to [`MAX_WEIGHT`](incant_sample::MAX_WEIGHT); the guidance scale of others is 1 more.
    pub weight: f32,
    /// The id of the guide's arm; `None` is the arm itself with the question left empty.
    pub against: Option<String>,
    /// The minimum probability of a plausible token, as a share of the most likely one's: above 0,
    /// at most 1.
    pub plausible: f32,
}

impl Guidance {
    /// Creates guidance away from the arm itself with the question left empty.
    pub fn new(weight: f32) -> Guidance {
        Guidance {
            weight,
            against: None,
            plausible: DEFAULT_PLAUSIBILITY,
        }
    }
}

impl GuidanceOptions {
    /// Splits an arm's id from the guidance and mix after it: `ID guidance=0.5`, optionally with
    /// `against=ARM`, `plausible=SHARE` and any number of `mix=ARM*WEIGHT`, each after a space.
    /// Returns `None` if any word after the id is none of these.
    ///
    /// ```
    /// use incant_runtime::GuidanceOptions;
    ///
    /// let (id, options) = GuidanceOptions::split("m@urial guidance=0.5 mix=m+short*0.25").unwrap();
    /// assert_eq!(id, "m@urial");
    /// assert_eq!(options.guidance.unwrap().weight, 0.5);
    /// assert_eq!(options.mix, [("m+short".to_owned(), 0.25)]);
    /// assert_eq!(GuidanceOptions::split("m@urial").unwrap().1, GuidanceOptions::default());
    /// ```
    pub fn split(text: &str) -> Option<(&str, GuidanceOptions)> {
        let keys = [" guidance=", " against=", " plausible=", " mix="];
        let first = keys.iter().filter_map(|key| text.find(key)).min();
        let Some(first) = first else {
            return Some((text, GuidanceOptions::default()));
        };
        let (id, rest) = text.split_at(first);
        let mut options = GuidanceOptions::default();
        let (mut weight, mut against, mut plausible) = (None, None, DEFAULT_PLAUSIBILITY);
        for word in rest.split_whitespace() {
            let (key, value) = word.split_once('=')?;
            match key {
                "guidance" => weight = Some(value.parse().ok()?),
                "against" => against = Some(value.to_owned()),
                "plausible" => plausible = value.parse().ok()?,
                "mix" => {
                    let (arm, weight) = value.rsplit_once('*')?;
                    options.mix.push((arm.to_owned(), weight.parse().ok()?));
                }
                _ => return None,
            }
        }
        match weight {
            Some(weight) => {
                options.guidance = Some(Guidance {
                    weight,
                    against,
                    plausible,
                });
            }
            None if against.is_some() => return None,
            None => {}
        }
        Some((id, options))
    }
}

impl fmt::Display for GuidanceOptions {
    /// Writes the form that [`GuidanceOptions::split`] reads after an id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(guidance) = &self.guidance {
            write!(f, " guidance={}", guidance.weight)?;
            if let Some(against) = &guidance.against {
                write!(f, " against={against}")?;
            }
            if guidance.plausible != DEFAULT_PLAUSIBILITY {
                write!(f, " plausible={}", guidance.plausible)?;
            }
        }
        let mut mix = self.mix.iter();
        mix.try_for_each(|(arm, weight)| write!(f, " mix={arm}*{weight}"))
    }
}

impl From<GuidanceDefaults> for Guidance {
    fn from(defaults: GuidanceDefaults) -> Guidance {
        Guidance {
            weight: defaults.weight,
            against: None,
            plausible: defaults.plausible,
        }
    }
}

//! The sampling parameters that can be set. Unset ones are left to the server.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A sampling parameter.
#[derive(Debug)]
pub struct Field {
    /// Its name in requests.
    pub name: &'static str,
    /// The value in force if neither the request nor the arm sets one.
    pub neutral: &'static str,
    /// Its description.
    pub help: &'static str,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Real(f64, f64),
    Whole(u64),
    Text,
}

/// The parameter of chats that is part of the arms' ids in comparisons.
const GUIDANCE: &str = "guidance";

/// All parameters, in the order of the panel.
pub const FIELDS: &[Field] = &[
    Field {
        name: "temperature",
        neutral: "1",
        help: "0 to 2; 0 always says the likeliest token",
        kind: Kind::Real(0.0, 2.0),
    },
    Field {
        name: "top_p",
        neutral: "1",
        help: "0 to 1; only the likeliest tokens with this probability together",
        kind: Kind::Real(0.0, 1.0),
    },
    Field {
        name: "top_k",
        neutral: "0",
        help: "only this number of the likeliest tokens; 0 for all",
        kind: Kind::Whole(0),
    },
    Field {
        name: "min_p",
        neutral: "0",
        help: "0 to 1; only tokens this likely, relative to the likeliest",
        kind: Kind::Real(0.0, 1.0),
    },
    Field {
        name: "max_tokens",
        neutral: "as long as the context",
        help: "the longest answer",
        kind: Kind::Whole(1),
    },
    Field {
        name: "seed",
        neutral: "drawn anew",
        help: "the same seed gives the same answer",
        kind: Kind::Whole(0),
    },
    Field {
        name: "presence_penalty",
        neutral: "0",
        help: "-2 to 2; against tokens that were said",
        kind: Kind::Real(-2.0, 2.0),
    },
    Field {
        name: "frequency_penalty",
        neutral: "0",
        help: "-2 to 2; against tokens, each time they were said",
        kind: Kind::Real(-2.0, 2.0),
    },
    Field {
        name: "repetition_penalty",
        neutral: "1",
        help: "0.01 to 2; above 1 against tokens that were said or asked",
        kind: Kind::Real(0.01, 2.0),
    },
    Field {
        name: "dry_multiplier",
        neutral: "0",
        help: "0 to 100; above 0 against what continues a repetition",
        kind: Kind::Real(0.0, 100.0),
    },
    Field {
        name: "top_n_sigma",
        neutral: "0",
        help: "0 to 100; only tokens this many deviations below the likeliest; 0 for all",
        kind: Kind::Real(0.0, 100.0),
    },
    Field {
        name: "typical_p",
        neutral: "1",
        help: "0 to 1; only the most expected tokens with this probability together",
        kind: Kind::Real(0.0, 1.0),
    },
    Field {
        name: "xtc_probability",
        neutral: "0",
        help: "0 to 1; how often the likeliest tokens are left out",
        kind: Kind::Real(0.0, 1.0),
    },
    Field {
        name: GUIDANCE,
        neutral: "0",
        help: "0 to 10; away from what the prompt says whatever is asked; in compare, arms have it in their ids",
        kind: Kind::Real(0.0, 10.0),
    },
    Field {
        name: "stop",
        neutral: "none",
        help: "a text that ends the answer",
        kind: Kind::Text,
    },
];

/// The parameters that are set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sampling(Map<String, Value>);

impl Sampling {
    /// Sets a parameter from user input; an empty text leaves it to the server.
    ///
    /// # Errors
    /// The text is not a valid value; the message says what is.
    pub fn set(&mut self, field: &Field, text: &str) -> Result<(), &'static str> {
        let text = text.trim();
        if text.is_empty() {
            self.0.shift_remove(field.name);
            return Ok(());
        }
        let value = match field.kind {
            Kind::Real(low, high) => text
                .parse::<f64>()
                .ok()
                .filter(|value| (low..=high).contains(value))
                .map(|value| json!(value)),
            Kind::Whole(low) => text
                .parse::<u64>()
                .ok()
                .filter(|value| *value >= low)
                .map(|value| json!(value)),
            Kind::Text => Some(json!(text)),
        };
        let value = value.ok_or(field.help)?;
        self.0.insert(field.name.to_owned(), value);
        Ok(())
    }

    /// The value of a parameter as it would be typed.
    pub fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|value| match value.as_str() {
            Some(text) => text.to_owned(),
            None => value.to_string(),
        })
    }

    /// The temperature, if it is set.
    pub fn temperature(&self) -> Option<f64> {
        self.0.get("temperature")?.as_f64()
    }

    /// The seed, if it is set.
    pub fn seed(&self) -> Option<u64> {
        self.0.get("seed")?.as_u64()
    }

    /// Writes the set parameters into a request.
    pub fn write(&self, body: &mut Map<String, Value>) {
        for (name, value) in &self.0 {
            body.insert(name.clone(), value.clone());
        }
    }

    /// The parameters of a comparison, without guidance, which each of its arms sets by itself.
    pub fn of_comparison(&self) -> Sampling {
        let mut set = self.0.clone();
        set.shift_remove(GUIDANCE);
        Sampling(set)
    }

    /// A short list of the set parameters, if there are any.
    pub fn summary(&self) -> Option<String> {
        let set = self.0.keys();
        let set = set.filter_map(|name| Some(format!("{name} {}", self.get(name)?)));
        let set: Vec<String> = set.collect();
        (!set.is_empty()).then(|| set.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_set_is_sent() {
        let mut sampling = Sampling::default();
        sampling.set(&FIELDS[0], "0.5").unwrap();
        sampling.set(&FIELDS[5], "7").unwrap();
        sampling.set(&FIELDS[5], "").unwrap();
        let mut body = Map::new();
        sampling.write(&mut body);
        assert_eq!(Value::Object(body), json!({"temperature": 0.5}));
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_what_would_do() {
        let mut sampling = Sampling::default();
        let refused = sampling.set(&FIELDS[0], "3").unwrap_err();
        assert!(refused.starts_with("0 to 2"), "{refused}");
        assert!(sampling.set(&FIELDS[0], "NaN").is_err());
        assert!(sampling.set(&FIELDS[2], "-1").is_err());
        assert_eq!(sampling, Sampling::default());
    }
}

//! The serialized form of records: the keys of a line, and the forms of messages, prompts and
//! answers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, de};

use incant_prompt::profile::{Message, Role};

/// Unknown keys. Collecting them also keeps serde from accepting a list for an object.
type Rest = BTreeMap<String, Option<IgnoredAny>>;

/// A line as written in the file.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Line {
    pub(super) messages: Option<Vec<Turn>>,
    pub(super) prompt: Option<Said>,
    pub(super) completion: Option<Said>,
    pub(super) chosen: Option<Said>,
    pub(super) rejected: Option<Said>,
    pub(super) text: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

/// A message as written in the file.
#[derive(Deserialize)]
#[serde(expecting = "a message with a role and a content")]
pub(super) struct Turn {
    role: Role,
    content: String,
    weight: Option<f64>,
    #[serde(flatten)]
    rest: Rest,
}

/// A text or a list of messages.
pub(super) enum Said {
    Text(String),
    Turns(Vec<Turn>),
}

impl<'de> Deserialize<'de> for Said {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Said, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Said;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of messages, each with a role and a content")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Said, E> {
                Ok(Said::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, turns: A) -> Result<Said, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(turns)).map(Said::Turns)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// A message, and whether it may be learnt.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) message: Message,
    pub(super) is_learnt: bool,
}

impl Told {
    pub(super) fn new(role: Role, content: impl Into<String>) -> Told {
        Told {
            message: Message::new(role, content),
            is_learnt: true,
        }
    }

    /// Whether both have the same role and text, ignoring surrounding white space.
    pub(super) fn says(&self, other: &Told) -> bool {
        let [one, other] = [self, other].map(|told| &told.message);
        one.role == other.role && one.content.trim() == other.content.trim()
    }
}

impl Turn {
    /// Converts the message at index `at` of the list called `name`.
    fn told(self, name: &str, at: usize) -> Result<Told, String> {
        let is_learnt = match (self.weight, self.role) {
            (None, _) => true,
            (Some(0.0), _) => false,
            (Some(1.0), Role::Assistant) => true,
            (Some(weight), Role::Assistant) => {
                return Err(format!(
                    "{name}[{at}] has the weight {weight}; an assistant's 'weight' is 0 or 1"
                ));
            }
            (Some(weight), role) => {
                return Err(format!(
                    "{name}[{at}] is a message of the role '{}' and has the weight {weight}, but \
                     only the assistant's turns can be learnt: leave its 'weight' out",
                    role.name()
                ));
            }
        };
        Ok(Told {
            message: Message::new(self.role, self.content),
            is_learnt,
        })
    }
}

/// Converts the messages of the list called `name`.
pub(super) fn told(name: &str, turns: Vec<Turn>) -> Result<Vec<Told>, String> {
    let turns = turns.into_iter().enumerate();
    turns.map(|(at, turn)| turn.told(name, at)).collect()
}

impl Said {
    /// The messages under the key `name`. A string is a message of `role`, or a transcript.
    pub(super) fn told(self, name: &str, role: Role) -> Result<Vec<Told>, String> {
        match self {
            Said::Text(text) => {
                Ok(transcript(&text).unwrap_or_else(|| vec![Told::new(role, text)]))
            }
            Said::Turns(turns) => told(name, turns),
        }
    }

    /// The messages of a prompt. A transcript may end with an open turn.
    pub(super) fn prompt(self) -> Result<Vec<Told>, String> {
        let is_text = matches!(self, Said::Text(_));
        let mut prompt = self.told("prompt", Role::User)?;
        let open = |last: &mut Told| {
            is_text && last.message.role == Role::Assistant && last.message.content.is_empty()
        };
        prompt.pop_if(open);
        Ok(prompt)
    }
}

impl Line {
    /// Adds the keys that are ignored.
    pub(super) fn note_unread(&self, unread: &mut BTreeSet<String>) {
        let set = |rest: &Rest| -> Vec<String> {
            let set = rest.iter().filter(|(_, value)| value.is_some());
            set.map(|(key, _)| key.clone()).collect()
        };
        unread.extend(set(&self.rest));
        let turns = |said: &Option<Said>| match said {
            Some(Said::Turns(turns)) => turns.iter().flat_map(|turn| set(&turn.rest)).collect(),
            _ => Vec::new(),
        };
        for (name, said) in [
            ("prompt", &self.prompt),
            ("completion", &self.completion),
            ("chosen", &self.chosen),
            ("rejected", &self.rejected),
        ] {
            let keys = turns(said).into_iter();
            unread.extend(keys.map(|key| format!("{name}[].{key}")));
        }
        for turn in self.messages.iter().flatten() {
            unread.extend(
                set(&turn.rest)
                    .iter()
                    .map(|key| format!("messages[].{key}")),
            );
        }
    }
}

/// The markers of turns in transcripts (Bai et al. 2022, arXiv 2204.05862).
const TURNS: [(&str, Role); 2] = [
    ("\n\nHuman:", Role::User),
    ("\n\nAssistant:", Role::Assistant),
];

/// Parses a transcript. Consecutive turns of one speaker are merged.
pub(super) fn transcript(text: &str) -> Option<Vec<Told>> {
    let next = |text: &str| {
        let found = TURNS
            .iter()
            .filter_map(|&(mark, role)| Some((text.find(mark)?, mark.len(), role)));
        found.min_by_key(|&(at, ..)| at)
    };
    let (mut at, mut mark, mut role) = next(text)?;
    if at != 0 {
        return None;
    }
    let mut rest = text;
    let mut turns: Vec<Told> = Vec::new();
    loop {
        rest = &rest[at + mark..];
        let following = next(rest);
        let said = rest[..following.map_or(rest.len(), |(at, ..)| at)].trim();
        match turns.last_mut().map(|last| &mut last.message) {
            Some(last) if last.role == role => {
                last.content.push_str("\n\n");
                last.content.push_str(said);
            }
            _ => turns.push(Told::new(role, said)),
        }
        match following {
            Some(found) => (at, mark, role) = found,
            None => return Some(turns),
        }
    }
}

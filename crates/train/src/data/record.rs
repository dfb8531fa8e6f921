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
pub(super) struct RawRecord {
    pub(super) messages: Option<Vec<RawMessage>>,
    pub(super) prompt: Option<TextOrMessages>,
    pub(super) completion: Option<TextOrMessages>,
    pub(super) chosen: Option<TextOrMessages>,
    pub(super) rejected: Option<TextOrMessages>,
    pub(super) text: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

/// A message as written in the file.
#[derive(Deserialize)]
#[serde(expecting = "a message with a role and a content")]
pub(super) struct RawMessage {
    role: Role,
    content: String,
    weight: Option<f64>,
    #[serde(flatten)]
    rest: Rest,
}

/// A text or a list of messages.
pub(super) enum TextOrMessages {
    Text(String),
    Messages(Vec<RawMessage>),
}

impl<'de> Deserialize<'de> for TextOrMessages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TextOrMessages, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = TextOrMessages;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of messages, each with a role and a content")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TextOrMessages, E> {
                Ok(TextOrMessages::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, turns: A) -> Result<TextOrMessages, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(turns)).map(TextOrMessages::Messages)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

/// A message, and whether it may be learnt.
#[derive(Clone, Debug)]
pub(super) struct ParsedMessage {
    pub(super) message: Message,
    pub(super) is_learnt: bool,
}

impl ParsedMessage {
    pub(super) fn new(role: Role, content: impl Into<String>) -> ParsedMessage {
        ParsedMessage {
            message: Message::new(role, content),
            is_learnt: true,
        }
    }

    /// Whether both have the same role and text, ignoring surrounding white space.
    pub(super) fn same_text(&self, other: &ParsedMessage) -> bool {
        let [one, other] = [self, other].map(|message| &message.message);
        one.role == other.role && one.content.trim() == other.content.trim()
    }
}

impl RawMessage {
    /// Converts the message at index `at` of the list called `name`.
    fn parse(self, name: &str, at: usize) -> Result<ParsedMessage, String> {
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
        Ok(ParsedMessage {
            message: Message::new(self.role, self.content),
            is_learnt,
        })
    }
}

/// Converts the messages of the list called `name`.
pub(super) fn parse_messages(
    name: &str,
    turns: Vec<RawMessage>,
) -> Result<Vec<ParsedMessage>, String> {
    let turns = turns.into_iter().enumerate();
    turns.map(|(at, message)| message.parse(name, at)).collect()
}

impl TextOrMessages {
    /// The messages under the key `name`. A string is a message of `role`, or a transcript.
    pub(super) fn parse(self, name: &str, role: Role) -> Result<Vec<ParsedMessage>, String> {
        match self {
            TextOrMessages::Text(text) => {
                Ok(transcript(&text).unwrap_or_else(|| vec![ParsedMessage::new(role, text)]))
            }
            TextOrMessages::Messages(turns) => parse_messages(name, turns),
        }
    }

    /// The messages of a prompt. A transcript may end with an open turn.
    pub(super) fn prompt(self) -> Result<Vec<ParsedMessage>, String> {
        let is_text = matches!(self, TextOrMessages::Text(_));
        let mut prompt = self.parse("prompt", Role::User)?;
        let open = |last: &mut ParsedMessage| {
            is_text && last.message.role == Role::Assistant && last.message.content.is_empty()
        };
        prompt.pop_if(open);
        Ok(prompt)
    }
}

impl RawRecord {
    /// Adds the keys that are ignored.
    pub(super) fn collect_ignored_keys(&self, ignored_keys: &mut BTreeSet<String>) {
        let set = |rest: &Rest| -> Vec<String> {
            let set = rest.iter().filter(|(_, value)| value.is_some());
            set.map(|(key, _)| key.clone()).collect()
        };
        ignored_keys.extend(set(&self.rest));
        let turns = |value: &Option<TextOrMessages>| match value {
            Some(TextOrMessages::Messages(turns)) => {
                turns.iter().flat_map(|turn| set(&turn.rest)).collect()
            }
            _ => Vec::new(),
        };
        for (name, value) in [
            ("prompt", &self.prompt),
            ("completion", &self.completion),
            ("chosen", &self.chosen),
            ("rejected", &self.rejected),
        ] {
            let keys = turns(value).into_iter();
            ignored_keys.extend(keys.map(|key| format!("{name}[].{key}")));
        }
        for turn in self.messages.iter().flatten() {
            ignored_keys.extend(
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
pub(super) fn transcript(text: &str) -> Option<Vec<ParsedMessage>> {
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
    let mut turns: Vec<ParsedMessage> = Vec::new();
    loop {
        rest = &rest[at + mark..];
        let following = next(rest);
        let content = rest[..following.map_or(rest.len(), |(at, ..)| at)].trim();
        match turns.last_mut().map(|last| &mut last.message) {
            Some(last) if last.role == role => {
                last.content.push_str("\n\n");
                last.content.push_str(content);
            }
            _ => turns.push(ParsedMessage::new(role, content)),
        }
        match following {
            Some(found) => (at, mark, role) = found,
            None => return Some(turns),
        }
    }
}

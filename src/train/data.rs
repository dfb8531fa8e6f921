//! Files of examples: JSON lines, the kind of each seen from its keys.
//!
//! | keys | what it is |
//! | --- | --- |
//! | `messages` | a conversation; if it ends with the user's turn, a prompt |
//! | `prompt`, `completion` | a prompt and its answer |
//! | `prompt`, `chosen`, `rejected` | a prompt, a better and a worse answer |
//! | `chosen`, `rejected` | the same as whole conversations: lists of messages, or transcripts (`\n\nHuman: … \n\nAssistant: …`) |
//! | `prompt` | a prompt |
//! | `text` | a text that is learnt as it is |
//!
//! Prompts and answers are strings (what the user says, what the assistant says; one that
//! begins with a turn of a transcript is a transcript) or lists of messages. An answer that
//! holds the prompt's turns before its own, as UltraFeedback's do, is taken from where they
//! end. A message may have a `weight`, 0 or 1: turns of weight 0 are read and not learnt.
//!
//! A `prompt` beside `messages`, and `messages` beside an answer or a pair, must say the
//! same; a value of null counts as absent. Other keys are not read, which
//! [`Records::unread`] tells. A file whose name ends in `.gz` is decompressed; a byte order
//! mark is skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, de};

use super::TrainError;
use crate::printable::printable;
use crate::profile::{Message, Role};

/// The line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line's number, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A line that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct DataError {
    /// Where it is.
    pub place: Place,
    /// What is wrong with it, fit for a terminal.
    pub what: String,
}

/// A conversation, of which some turns are to be learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// All messages.
    pub messages: Vec<Message>,
    /// The assistant's turns count from this message on.
    pub from: usize,
    /// Those of them that do not count all the same: their weight is 0.
    pub unlearnt: Vec<usize>,
}

impl Conversation {
    /// Whether a message is one to learn.
    pub fn counts(&self, at: usize) -> bool {
        let is_answer = self.messages[at].role == Role::Assistant;
        is_answer && at >= self.from && !self.unlearnt.contains(&at)
    }
}

/// What one line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A text that is learnt as it is.
    Text(String),
    /// A conversation with at least one turn to learn.
    Conversation(Conversation),
    /// A better and a worse end of a conversation.
    Pair {
        /// The better one.
        chosen: Conversation,
        /// The worse one.
        rejected: Conversation,
    },
    /// A conversation that waits for its answer.
    Prompt(Vec<Message>),
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub place: Place,
    /// What it says.
    pub content: Content,
}

/// What a file holds.
#[derive(Debug)]
pub struct Records {
    /// Its lines but for blank ones.
    pub lines: Vec<Result<Entry, DataError>>,
    /// The keys in it that nothing is read from, such as `score_chosen` and
    /// `messages[].name`; keys whose values are all null are not among them.
    pub unread: BTreeSet<String>,
}

/// Keys that are not known. With these caught, a list never stands for an object.
type Rest = BTreeMap<String, Option<IgnoredAny>>;

/// A line as it is written.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Line {
    messages: Option<Vec<Turn>>,
    prompt: Option<Said>,
    completion: Option<Said>,
    chosen: Option<Said>,
    rejected: Option<Said>,
    text: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

/// A message as it is written.
#[derive(Deserialize)]
#[serde(expecting = "a message with a role and a content")]
struct Turn {
    role: Role,
    content: String,
    weight: Option<f64>,
    #[serde(flatten)]
    rest: Rest,
}

/// A text or a list of messages.
enum Said {
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
struct Told {
    message: Message,
    is_learnt: bool,
}

impl Told {
    fn new(role: Role, content: impl Into<String>) -> Told {
        Told {
            message: Message::new(role, content),
            is_learnt: true,
        }
    }

    /// Whether both say the same, whatever white space is around it.
    fn says(&self, other: &Told) -> bool {
        let [one, other] = [self, other].map(|told| &told.message);
        one.role == other.role && one.content.trim() == other.content.trim()
    }
}

impl Turn {
    fn told(self) -> Result<Told, String> {
        let is_learnt = match (self.weight, self.role) {
            (None | Some(1.0), Role::Assistant) | (None, _) => true,
            (Some(0.0), _) => false,
            (Some(1.0), _) => {
                return Err(
                    "only the assistant's turns can be learnt, others have no weight of \
                            1"
                    .to_owned(),
                );
            }
            (Some(_), _) => return Err("a message's 'weight' is 0 or 1".to_owned()),
        };
        Ok(Told {
            message: Message::new(self.role, self.content),
            is_learnt,
        })
    }
}

fn told(turns: Vec<Turn>) -> Result<Vec<Told>, String> {
    turns.into_iter().map(Turn::told).collect()
}

impl Said {
    /// A string is what `role` says, or a transcript.
    fn told(self, role: Role) -> Result<Vec<Told>, String> {
        match self {
            Said::Text(text) => {
                Ok(transcript(&text).unwrap_or_else(|| vec![Told::new(role, text)]))
            }
            Said::Turns(turns) => told(turns),
        }
    }

    /// What somebody is asked. A transcript may end with a turn that is left open.
    fn prompt(self) -> Result<Vec<Told>, String> {
        let is_text = matches!(self, Said::Text(_));
        let mut prompt = self.told(Role::User)?;
        let open = |last: &mut Told| {
            is_text && last.message.role == Role::Assistant && last.message.content.is_empty()
        };
        prompt.pop_if(open);
        Ok(prompt)
    }
}

impl Line {
    /// Adds the keys that nothing is read from.
    fn note_unread(&self, unread: &mut BTreeSet<String>) {
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

/// Reads the lines of a file; blank ones are skipped.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Records, TrainError> {
    let file = File::open(path).map_err(TrainError::io(path))?;
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let bytes: Box<dyn Read> = match is_packed {
        true => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        false => Box::new(file),
    };
    let file = Arc::new(path.to_owned());
    let mut records = Records {
        lines: Vec::new(),
        unread: BTreeSet::new(),
    };
    for (line, text) in (1..).zip(BufReader::new(bytes).lines()) {
        let place = Place {
            file: Arc::clone(&file),
            line,
        };
        let text = text.map_err(TrainError::io(path))?;
        // Some editors put a byte order mark before the first line.
        let text = match line {
            1 => text.strip_prefix('\u{feff}').unwrap_or(&text),
            _ => &text,
        };
        if text.trim().is_empty() {
            continue;
        }
        let content = content(text, &mut records.unread);
        records.lines.push(match content {
            Ok(content) => Ok(Entry { place, content }),
            Err(what) => Err(DataError { place, what }),
        });
    }
    Ok(records)
}

/// What a line says, or what is wrong with it.
fn content(line: &str, unread: &mut BTreeSet<String>) -> Result<Content, String> {
    if line.trim_start().starts_with('[') {
        return Err(
            "a record is an object, not a list; of a JSON array, write each record in a \
                    line of its own"
                .to_owned(),
        );
    }
    let line: Line = serde_json::from_str(line).map_err(|error| {
        // The line that it names is always the first.
        let text = error.to_string();
        let what = text
            .rsplit_once(" at line ")
            .map_or(&*text, |(what, _)| what);
        format!("column {}: {}", error.column(), printable(what))
    })?;
    line.note_unread(unread);
    let messages = line.messages.map(told).transpose()?;
    let prompt = line.prompt.map(Said::prompt).transpose()?;
    match (
        prompt,
        line.completion,
        line.chosen,
        line.rejected,
        line.text,
    ) {
        (prompt, None, None, None, None) if messages.is_some() || prompt.is_some() => {
            match (messages, prompt) {
                (Some(messages), prompt) => {
                    if prompt.is_some_and(|prompt| place_of(&prompt, &messages).is_none()) {
                        return Err("'messages' does not hold the 'prompt'".to_owned());
                    }
                    whole(messages)
                }
                (None, prompt) => open(prompt.unwrap_or_default()),
            }
        }
        (Some(prompt), Some(completion), None, None, None) => {
            let (whole, from) = answered("completion", prompt, completion)?;
            agree(messages.as_deref(), "completion", &whole)?;
            Ok(Content::Conversation(conversation(whole, from)?))
        }
        (prompt, None, Some(chosen), Some(rejected), None) => {
            pair(messages.as_deref(), prompt, chosen, rejected)
        }
        (None, None, None, None, Some(text)) if messages.is_none() => match text.is_empty() {
            true => Err("'text' is empty".to_owned()),
            false => Ok(Content::Text(text)),
        },
        _ => Err(
            "its keys are not those of any kind: messages; prompt and completion; prompt, \
             chosen and rejected; chosen and rejected; prompt; text"
                .to_owned(),
        ),
    }
}

/// Where in a conversation some turns stand, one after the other.
fn place_of(turns: &[Told], conversation: &[Told]) -> Option<usize> {
    let last = conversation.len().checked_sub(turns.len())?;
    (0..=last).find(|&at| {
        let mut pairs = turns.iter().zip(&conversation[at..]);
        pairs.all(|(one, other)| one.says(other))
    })
}

/// Refuses `messages` beside an answer, unless the conversation with that answer begins
/// with them.
fn agree(messages: Option<&[Told]>, name: &str, whole: &[Told]) -> Result<(), String> {
    match messages {
        Some(messages) if place_of(messages, whole) != Some(0) => {
            Err(format!("'messages' says something else than '{name}'"))
        }
        _ => Ok(()),
    }
}

fn messages(told: Vec<Told>) -> Vec<Message> {
    told.into_iter().map(|told| told.message).collect()
}

/// A conversation whose every turn of the assistant counts, or a prompt.
fn whole(told: Vec<Told>) -> Result<Content, String> {
    match told.last().map(|last| last.message.role) {
        None => Err("'messages' is empty".to_owned()),
        Some(Role::Assistant) => conversation(told, 0).map(Content::Conversation),
        Some(_) => open(told),
    }
}

fn open(told: Vec<Told>) -> Result<Content, String> {
    match told.last().map(|last| last.message.role) {
        Some(Role::User | Role::System) => Ok(Content::Prompt(messages(told))),
        Some(Role::Assistant) => Err("the prompt ends with the assistant's turn".to_owned()),
        None => Err("the prompt is empty".to_owned()),
    }
}

/// `prompt` with the answer called `name`, and where that begins. An answer that has turns
/// of others before its own is a conversation that must hold the prompt, or go on where the
/// prompt does.
fn answered(name: &str, prompt: Vec<Told>, answer: Said) -> Result<(Vec<Told>, usize), String> {
    let answer = answer.told(Role::Assistant)?;
    let first = answer.first().map(|first| first.message.role);
    if first.is_none_or(|role| role == Role::Assistant) {
        let from = prompt.len();
        return Ok(([prompt, answer].concat(), from));
    }
    if let Some(at) = place_of(&prompt, &answer) {
        return Ok((answer, at + prompt.len()));
    }
    let most = prompt.len().min(answer.len());
    let shared = (1..=most).rev().find(|&shared| {
        let end = &prompt[prompt.len() - shared..];
        place_of(end, &answer[..shared]).is_some()
    });
    let Some(shared) = shared else {
        return Err(format!(
            "'{name}' has turns before its answer that are not the prompt's"
        ));
    };
    let from = prompt.len();
    Ok(([&prompt, &answer[shared..]].concat(), from))
}

/// A conversation whose turns of the assistant count from the message `from` on.
fn conversation(told: Vec<Told>, from: usize) -> Result<Conversation, String> {
    match told.last().map(|last| last.message.role) {
        Some(Role::Assistant) if told.len() > from => {}
        _ => return Err("the answer does not end with the assistant's turn".to_owned()),
    }
    let answers = told.iter().enumerate().skip(from);
    let answers = answers.filter(|(_, told)| told.message.role == Role::Assistant);
    let (learnt, unlearnt): (Vec<_>, Vec<_>) = answers.partition(|(_, told)| told.is_learnt);
    if learnt.is_empty() {
        return Err("all its answers have the weight 0".to_owned());
    }
    let unlearnt = unlearnt.into_iter().map(|(at, _)| at).collect();
    Ok(Conversation {
        messages: messages(told),
        from,
        unlearnt,
    })
}

fn pair(
    together: Option<&[Told]>,
    prompt: Option<Vec<Told>>,
    chosen: Said,
    rejected: Said,
) -> Result<Content, String> {
    let [(chosen, after), (rejected, other)] = match prompt {
        Some(prompt) => [
            answered("chosen", prompt.clone(), chosen)?,
            answered("rejected", prompt, rejected)?,
        ],
        None => [(complete(chosen)?, 0), (complete(rejected)?, 0)],
    };
    agree(together, "chosen", &chosen)?;
    // What they share is the prompt, also where another one is named: to learn of a pair
    // is to learn of what tells its sides apart.
    let both = chosen.iter().zip(&rejected);
    let shared = both.take_while(|(a, b)| a.message == b.message).count();
    if shared == chosen.len() && shared == rejected.len() {
        return Err("'chosen' and 'rejected' are the same".to_owned());
    }
    Ok(Content::Pair {
        chosen: conversation(chosen, after.max(shared))?,
        rejected: conversation(rejected, other.max(shared))?,
    })
}

/// A whole conversation: a list of messages, or a transcript.
fn complete(said: Said) -> Result<Vec<Told>, String> {
    match said {
        Said::Turns(turns) => told(turns),
        Said::Text(text) => transcript(&text).ok_or_else(|| {
            "without a 'prompt', 'chosen' and 'rejected' must be lists of messages or begin with \
             a turn, \"\\n\\nHuman: \""
                .to_owned()
        }),
    }
}

/// How turns begin in transcripts (Bai et al. 2022, arXiv 2204.05862).
const TURNS: [(&str, Role); 2] = [
    ("\n\nHuman:", Role::User),
    ("\n\nAssistant:", Role::Assistant),
];

/// The messages of a transcript. Turns of one speaker in a row become one.
fn transcript(text: &str) -> Option<Vec<Told>> {
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

#[cfg(test)]
mod tests;

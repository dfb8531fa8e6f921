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
//! Prompts and answers are strings (what the user says, what the assistant says) or lists
//! of messages. A file whose name ends in `.gz` is decompressed.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use serde::Deserialize;

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

/// A line as it is written. Other keys are for others.
#[derive(Deserialize)]
struct Line {
    messages: Option<Vec<Message>>,
    prompt: Option<Said>,
    completion: Option<Said>,
    chosen: Option<Said>,
    rejected: Option<Said>,
    text: Option<String>,
}

/// A text or a list of messages.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string or a list of messages, each with a role and a content"
)]
enum Said {
    Text(String),
    Messages(Vec<Message>),
}

impl Said {
    /// A string is what `role` says.
    fn messages(self, role: Role) -> Vec<Message> {
        match self {
            Said::Text(text) => vec![Message::new(role, text)],
            Said::Messages(messages) => messages,
        }
    }
}

/// Reads the lines of a file; blank ones are skipped.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Vec<Result<Entry, DataError>>, TrainError> {
    let file = File::open(path).map_err(TrainError::io(path))?;
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let bytes: Box<dyn Read> = match is_packed {
        true => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        false => Box::new(file),
    };
    let file = Arc::new(path.to_owned());
    let mut entries = Vec::new();
    for (line, text) in (1..).zip(BufReader::new(bytes).lines()) {
        let place = Place {
            file: Arc::clone(&file),
            line,
        };
        let text = text.map_err(TrainError::io(path))?;
        if text.trim().is_empty() {
            continue;
        }
        entries.push(match content(&text) {
            Ok(content) => Ok(Entry { place, content }),
            Err(what) => Err(DataError { place, what }),
        });
    }
    Ok(entries)
}

/// What a line says, or what is wrong with it.
fn content(line: &str) -> Result<Content, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| {
        // The line that it names is always the first.
        let text = error.to_string();
        let what = text
            .rsplit_once(" at line ")
            .map_or(&*text, |(what, _)| what);
        format!("column {}: {}", error.column(), printable(what))
    })?;
    match line {
        Line {
            messages: Some(messages),
            prompt: None,
            completion: None,
            chosen: None,
            rejected: None,
            text: None,
        } => whole(messages),
        Line {
            messages: None,
            prompt: Some(prompt),
            completion: Some(completion),
            chosen: None,
            rejected: None,
            text: None,
        } => {
            let prompt = prompt.messages(Role::User);
            Ok(Content::Conversation(answered(&prompt, completion)?))
        }
        Line {
            messages: None,
            prompt,
            completion: None,
            chosen: Some(chosen),
            rejected: Some(rejected),
            text: None,
        } => pair(prompt, chosen, rejected),
        Line {
            messages: None,
            prompt: Some(prompt),
            completion: None,
            chosen: None,
            rejected: None,
            text: None,
        } => open(prompt.messages(Role::User)),
        Line {
            messages: None,
            prompt: None,
            completion: None,
            chosen: None,
            rejected: None,
            text: Some(text),
        } => match text.is_empty() {
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

/// A conversation whose every turn of the assistant counts, or a prompt.
fn whole(messages: Vec<Message>) -> Result<Content, String> {
    match messages.last().map(|last| last.role) {
        None => Err("'messages' is empty".to_owned()),
        Some(Role::Assistant) => Ok(Content::Conversation(Conversation { messages, from: 0 })),
        Some(_) => open(messages),
    }
}

fn open(messages: Vec<Message>) -> Result<Content, String> {
    match messages.last().map(|last| last.role) {
        Some(Role::User | Role::System) => Ok(Content::Prompt(messages)),
        Some(Role::Assistant) => Err("the prompt ends with the assistant's turn".to_owned()),
        None => Err("the prompt is empty".to_owned()),
    }
}

/// `prompt` with an answer, which alone counts.
fn answered(prompt: &[Message], answer: Said) -> Result<Conversation, String> {
    let mut messages = prompt.to_vec();
    messages.extend(answer.messages(Role::Assistant));
    conversation(messages, prompt.len())
}

fn conversation(messages: Vec<Message>, from: usize) -> Result<Conversation, String> {
    match messages.last().map(|last| last.role) {
        Some(Role::Assistant) if messages.len() > from => Ok(Conversation { messages, from }),
        _ => Err("the answer does not end with the assistant's turn".to_owned()),
    }
}

fn pair(prompt: Option<Said>, chosen: Said, rejected: Said) -> Result<Content, String> {
    let (chosen, rejected) = match prompt {
        Some(prompt) => {
            let prompt = prompt.messages(Role::User);
            (answered(&prompt, chosen)?, answered(&prompt, rejected)?)
        }
        None => {
            let [chosen, rejected] = [complete(chosen)?, complete(rejected)?];
            // What they share is the prompt.
            let both = chosen.iter().zip(&rejected);
            let shared = both.take_while(|(a, b)| a == b).count();
            (
                conversation(chosen, shared)?,
                conversation(rejected, shared)?,
            )
        }
    };
    match chosen == rejected {
        true => Err("'chosen' and 'rejected' are the same".to_owned()),
        false => Ok(Content::Pair { chosen, rejected }),
    }
}

/// A whole conversation: a list of messages, or a transcript.
fn complete(said: Said) -> Result<Vec<Message>, String> {
    match said {
        Said::Messages(messages) => Ok(messages),
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
fn transcript(text: &str) -> Option<Vec<Message>> {
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
    let mut messages: Vec<Message> = Vec::new();
    loop {
        rest = &rest[at + mark..];
        let following = next(rest);
        let said = rest[..following.map_or(rest.len(), |(at, ..)| at)].trim();
        match messages.last_mut().filter(|last| last.role == role) {
            Some(last) => {
                last.content.push_str("\n\n");
                last.content.push_str(said);
            }
            None => messages.push(Message::new(role, said)),
        }
        match following {
            Some(found) => (at, mark, role) = found,
            None => return Some(messages),
        }
    }
}

#[cfg(test)]
mod tests;

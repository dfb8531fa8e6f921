//! Files of examples: JSON Lines (JSONL), where the keys of a record determine its kind.
//!
//! | keys | kind |
//! | --- | --- |
//! | `messages` | a conversation; if it ends with the user's turn, a prompt |
//! | `prompt`, `completion` | a prompt and its answer |
//! | `prompt`, `chosen`, `rejected` | a preference pair: a prompt, a better and a worse answer |
//! | `chosen`, `rejected` | the same as whole conversations: lists of messages, or transcripts (`\n\nHuman: … \n\nAssistant: …`) |
//! | `prompt` | a prompt |
//! | `text` | a plain text to learn |
//!
//! Prompts and answers are strings (the user's or the assistant's text; a string that begins
//! with a turn of a transcript is parsed as a transcript) or lists of messages. If an answer
//! repeats the prompt's turns before its own, as UltraFeedback's do, it is taken from where
//! they end. A message may have a `weight`, 0 or 1: turns of weight 0 are read but not learnt.
//!
//! A `prompt` beside `messages`, and `messages` beside an answer or a pair, must agree with
//! each other; null counts as absent. Other keys are ignored and reported in
//! [`Records::ignored_keys`]. A file whose name ends in `.gz` is decompressed; a byte order mark is
//! skipped.

mod interpret;
mod record;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::TrainError;
use incant_prompt::profile::{Message, Role};

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The line number, from 1.
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
    /// The line.
    pub place: Place,
    /// The problem, safe to print to a terminal.
    pub what: String,
}

/// A conversation with turns to learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// All messages.
    pub messages: Vec<Message>,
    /// The assistant's turns count from this message on.
    pub from: usize,
    /// Exceptions among these turns: messages whose weight is 0.
    pub excluded: Vec<usize>,
}

impl Conversation {
    /// Whether a message is to be learnt.
    pub fn counts(&self, at: usize) -> bool {
        let is_answer = self.messages[at].role == Role::Assistant;
        is_answer && at >= self.from && !self.excluded.contains(&at)
    }
}

/// The content of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A plain text to learn.
    Text(String),
    /// A conversation with at least one turn to learn.
    Conversation(Conversation),
    /// A preference pair: two ends of a conversation.
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
    /// The line.
    pub place: Place,
    /// Its content.
    pub content: Content,
}

/// The contents of a file.
#[derive(Debug)]
pub struct Records {
    /// Its lines, without blank ones.
    pub lines: Vec<Result<Entry, DataError>>,
    /// The ignored keys, such as `score_chosen` and `messages[].name`. Keys whose values are
    /// all null are not among them.
    pub ignored_keys: BTreeSet<String>,
    /// The SHA-256 of the file's bytes, in hexadecimal digits.
    pub sha256: String,
}

/// Reads the lines of a file; blank ones are skipped.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Records, TrainError> {
    let file = File::open(path).map_err(TrainError::io(path))?;
    let is_packed = path.extension().is_some_and(|extension| extension == "gz");
    let hash = RefCell::new(Sha256::new());
    let file = Hashed { file, hash: &hash };
    let bytes: Box<dyn Read> = if is_packed {
        Box::new(MultiGzDecoder::new(BufReader::new(file)))
    } else {
        Box::new(file)
    };
    let file = Arc::new(path.to_owned());
    let mut records = Records {
        lines: Vec::new(),
        ignored_keys: BTreeSet::new(),
        sha256: String::new(),
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
        let content = interpret::content(text, &mut records.ignored_keys);
        records.lines.push(match content {
            Ok(content) => Ok(Entry { place, content }),
            Err(what) => Err(DataError { place, what }),
        });
    }
    let digest = hash.take().finalize();
    records.sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(records)
}

/// A file whose bytes are hashed while they are read, because a pipe can be read only once.
struct Hashed<'a> {
    file: File,
    hash: &'a RefCell<Sha256>,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hash.borrow_mut().update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests;

//! What goes in and out of the state machine.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::scroll::Extent;
use crate::keymap::Key;
use crate::session::{Analysis, Listing, Session};
use crate::wire::{Arm, Chunk, CompareChunk, Failure};

/// Something that has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A key was pressed.
    Key(Key),
    /// Text was pasted.
    Paste(String),
    /// The terminal has another size, or time has passed while an answer runs.
    Redraw,
    /// The screen was drawn: how much there is to scroll.
    Measured(Measures),
    /// The server has said whom it serves.
    Arms(Result<Vec<Arm>, Failure>),
    /// The server has said how many tokens fit an arm, or has not.
    Context {
        /// The arm.
        arm: String,
        /// How many, if it can be known.
        tokens: Option<u64>,
    },
    /// A part of an answer has come.
    Chunk {
        /// Of which request.
        request: u64,
        /// The part.
        chunk: Chunk,
    },
    /// A part of a comparison has come.
    CompareChunk {
        /// Of which request.
        request: u64,
        /// The part.
        chunk: CompareChunk,
    },
    /// A request has ended, well or not.
    Ended {
        /// Which.
        request: u64,
        /// How.
        result: Result<(), Failure>,
    },
    /// The saved sessions.
    Sessions(Listing),
    /// What is known of a saved comparison's tokens.
    Analysis {
        /// The comparison's session.
        id: String,
        /// What is known.
        analysis: Box<Analysis>,
    },
    /// A report was written.
    Exported(PathBuf),
    /// Something beside the conversation went wrong.
    Trouble(String),
    /// The program is asked to end.
    Terminate,
}

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask whom the server serves.
    FetchArms {
        /// After this time.
        after: Duration,
    },
    /// Ask how many tokens fit.
    FetchContext {
        /// For this arm.
        arm: String,
    },
    /// Stream a chat completion.
    Chat {
        /// What its events are called by.
        request: u64,
        /// What is asked.
        body: Value,
    },
    /// Stream a comparison.
    Compare {
        /// What its events are called by.
        request: u64,
        /// What is asked.
        body: Value,
    },
    /// End a request.
    Stop {
        /// Which.
        request: u64,
    },
    /// Save a session.
    Save(Box<Session>),
    /// Keep a question for the history.
    Remember(String),
    /// Read the saved sessions.
    ListSessions,
    /// Read what is known of a saved comparison's tokens.
    LoadAnalysis {
        /// Its session.
        id: String,
    },
    /// Copy a text to the clipboard.
    Copy(String),
    /// Write a comparison as a page.
    Export(Box<Value>),
    /// End.
    Quit,
}

/// When something happens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Since the program began.
    pub clock: Duration,
    /// Since 1970.
    pub unix: Duration,
}

/// What the view found when it last drew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// How wide the input is, in cells.
    pub input: usize,
    /// The conversation.
    pub chat: Extent,
    /// The row that each of its messages begins at.
    pub messages: Vec<usize>,
    /// Each pane of the comparison.
    pub panes: Vec<Extent>,
    /// The help screen.
    pub help: Extent,
}

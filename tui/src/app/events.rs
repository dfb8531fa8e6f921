//! Inputs and outputs of the state machine: events and effects.

use std::path::PathBuf;
use std::time::Duration;

use ratatui::layout::{Position, Rect};
use serde_json::Value;

use super::Mode;
use super::scroll::Extent;
use crate::keymap::{Action, Key};
use crate::session::{Analysis, Listing, Session};
use crate::wire::{Arm, Chunk, CompareChunk, Failure, Profile};

/// An event that the state machine handles.
#[derive(Clone, Debug)]
pub enum Event {
    /// A key was pressed.
    Key(Key),
    /// A mouse event.
    Mouse {
        /// The kind of event.
        what: Pointer,
        /// The cell.
        at: Position,
    },
    /// Text was pasted.
    Paste(String),
    /// The terminal was resized, or time has passed while an answer runs.
    Redraw,
    /// The screen was drawn, with these measures.
    Measured(Measures),
    /// The server's list of arms.
    Arms(Result<Vec<Arm>, Failure>),
    /// The server's profiles.
    Profiles(Vec<Profile>),
    /// An arm's context length.
    Context {
        /// The arm.
        arm: String,
        /// The number of tokens, if it is known.
        tokens: Option<u64>,
    },
    /// A chunk of an answer.
    Chunk {
        /// Its request.
        request: u64,
        /// The chunk.
        chunk: Chunk,
    },
    /// A chunk of a comparison.
    CompareChunk {
        /// Its request.
        request: u64,
        /// The chunk.
        chunk: CompareChunk,
    },
    /// A request has ended.
    Ended {
        /// The request.
        request: u64,
        /// Its outcome.
        result: Result<(), Failure>,
    },
    /// The saved sessions.
    Sessions(Listing),
    /// The analysis of a saved comparison's tokens.
    Analysis {
        /// The comparison's session.
        id: String,
        /// The analysis.
        analysis: Box<Analysis>,
    },
    /// A report was written to this file.
    Exported(PathBuf),
    /// An error outside the conversation.
    Error(String),
    /// The program is asked to end.
    Terminate,
}

/// An effect that the driver performs.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Request the list of arms.
    FetchArms {
        /// The delay before.
        after: Duration,
    },
    /// Request an arm's context length.
    FetchContext {
        /// The arm.
        arm: String,
    },
    /// Stream a chat completion.
    Chat {
        /// The id of the request in its events.
        request: u64,
        /// The body of the request.
        body: Value,
    },
    /// Stream a comparison.
    Compare {
        /// The id of the request in its events.
        request: u64,
        /// The body of the request.
        body: Value,
    },
    /// Abort a request.
    Stop {
        /// The request.
        request: u64,
    },
    /// Save a session.
    Save(Box<Session>),
    /// Add a question to the history.
    Remember(String),
    /// Read the saved sessions.
    ListSessions,
    /// Give a saved session a title.
    Rename {
        /// The session.
        id: String,
        /// The title; empty for its first question.
        title: String,
    },
    /// Delete a saved session.
    Delete {
        /// The session.
        id: String,
    },
    /// Read the analysis of a saved comparison's tokens.
    LoadAnalysis {
        /// Its session.
        id: String,
    },
    /// Capture the mouse, or leave it to the terminal.
    Mouse(bool),
    /// Copy a text to the clipboard.
    Copy(String),
    /// Write a comparison as an HTML page.
    Export(Box<Value>),
    /// Quit.
    Quit,
}

/// The time of an event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Since the program began.
    pub clock: Duration,
    /// Since 1970.
    pub unix: Duration,
}

/// Mouse actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// The left button was pressed.
    Click,
    /// The wheel was turned up.
    WheelUp,
    /// The wheel was turned down.
    WheelDown,
}

/// The target of a mouse action on the screen. `top` is the first visible row of scrolled
/// content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The name of a mode.
    Mode(Mode),
    /// A key hint with its action.
    Action(Action),
    /// The conversation.
    Chat {
        /// Its first visible row.
        top: usize,
    },
    /// A pane of the comparison.
    Pane(usize),
    /// The text field.
    Text {
        /// Its first visible row.
        top: usize,
    },
    /// A list.
    List {
        /// Its first visible row.
        top: usize,
    },
    /// A sampling parameter.
    Field(usize),
    /// The help screen.
    Help,
    /// Any other part of a panel, which blocks clicks on elements behind it.
    Panel,
}

/// A pane as it was drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// The area of its text.
    pub text: Rect,
    /// Its height and that of its window.
    pub extent: Extent,
    /// The first visible row.
    pub top: usize,
}

/// Measures of the last drawing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// The width of the input, in cells.
    pub input: usize,
    /// The width of the open panel's text.
    pub panel: usize,
    /// The extent of the conversation.
    pub chat: Extent,
    /// The first row of each of its messages.
    pub messages: Vec<usize>,
    /// Each pane of the comparison.
    pub panes: Vec<Drawn>,
    /// The extent of the help screen.
    pub help: Extent,
    /// Areas and their targets; later ones are on top.
    pub targets: Vec<(Rect, Target)>,
}

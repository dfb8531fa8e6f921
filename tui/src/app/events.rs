//! What goes in and out of the state machine.

use std::path::PathBuf;
use std::time::Duration;

use ratatui::layout::{Position, Rect};
use serde_json::Value;

use super::Mode;
use super::scroll::Extent;
use crate::keymap::{Action, Key};
use crate::session::{Analysis, Listing, Session};
use crate::wire::{Arm, Chunk, CompareChunk, Failure, Profile};

/// Something that has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A key was pressed.
    Key(Key),
    /// The mouse did something.
    Mouse {
        /// What.
        what: Pointer,
        /// In which cell.
        at: Position,
    },
    /// Text was pasted.
    Paste(String),
    /// The terminal has another size, or time has passed while an answer runs.
    Redraw,
    /// The screen was drawn: how much there is to scroll.
    Measured(Measures),
    /// The server has said whom it serves.
    Arms(Result<Vec<Arm>, Failure>),
    /// The server has said what its profiles are.
    Profiles(Vec<Profile>),
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
    /// Give a saved session a title.
    Rename {
        /// Which.
        id: String,
        /// The title; empty for its first question.
        title: String,
    },
    /// Delete a saved session.
    Delete {
        /// Which.
        id: String,
    },
    /// Read what is known of a saved comparison's tokens.
    LoadAnalysis {
        /// Its session.
        id: String,
    },
    /// Take the mouse from the terminal, or leave it there.
    Mouse(bool),
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

/// What the mouse can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// The left button was pressed.
    Click,
    /// The wheel was turned away from the hand.
    WheelUp,
    /// The wheel was turned towards the hand.
    WheelDown,
}

/// What the mouse can mean on the screen. `top` is the first row that is shown
/// of something longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The name of a mode.
    Mode(Mode),
    /// A key and what it does.
    Action(Action),
    /// The conversation.
    Chat {
        /// Its first row.
        top: usize,
    },
    /// A pane of the comparison.
    Pane(usize),
    /// The text that is written.
    Text {
        /// Its first row.
        top: usize,
    },
    /// What a list shows.
    List {
        /// Its first row.
        top: usize,
    },
    /// A parameter of answers.
    Field(usize),
    /// The help screen.
    Help,
    /// A panel where it is nothing else: what is behind it is not meant.
    Panel,
}

/// A pane as it was drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// Its text.
    pub text: Rect,
    /// How much of it there is.
    pub extent: Extent,
    /// The first row that is shown.
    pub top: usize,
}

/// What the view found when it last drew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measures {
    /// How wide the input is, in cells.
    pub input: usize,
    /// How wide the text of the open panel is.
    pub panel: usize,
    /// The conversation.
    pub chat: Extent,
    /// The row that each of its messages begins at.
    pub messages: Vec<usize>,
    /// Each pane of the comparison.
    pub panes: Vec<Drawn>,
    /// The help screen.
    pub help: Extent,
    /// What is where; what lies above comes later.
    pub targets: Vec<(Rect, Target)>,
}

//! One arm's answer in a comparison.

use std::ops::Range;

use serde_json::{Value, json};

use super::clock::Clock;
use super::scroll::Scroll;
use super::{Drawn, Now, compare::Colours, compare::MAX_PANES};
use crate::keymap::Action;
use crate::session::{AnswerAnalysis, Message, Stats};
use crate::wire::{Chunk, Failure, Score, Token, Usage};
use crate::wrap;

/// The shift class of a token, by its rank under another arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// Ranked first.
    Unshifted,
    /// Ranked second or third.
    Marginal,
    /// Ranked lower.
    Shifted,
}

impl Shift {
    fn from_rank(rank: u64) -> Shift {
        match rank {
            0 | 1 => Shift::Unshifted,
            2 | 3 => Shift::Marginal,
            _ => Shift::Shifted,
        }
    }
}

/// An arm's answer, with its tokens.
#[derive(Clone, Debug)]
pub struct Pane {
    /// The arm.
    pub arm: String,
    /// The profile that it answers under, if the server reports it and the id does not name it.
    pub profile: Option<String>,
    /// The text.
    pub text: String,
    /// The tokens received so far.
    pub tokens: Vec<Token>,
    /// The total number of bytes up to and including each token.
    ends: Vec<usize>,
    /// The number of tokens in each class, for each ranking arm.
    tallies: [[usize; 3]; MAX_PANES],
    /// The finish reason.
    pub finish: Option<String>,
    /// The clock of the answer.
    pub clock: Clock,
    /// Why it has no answer, or only a part of one.
    pub error: Option<Failure>,
    /// The scroll position.
    pub scroll: Scroll,
    /// The selected token.
    pub cursor: usize,
    /// Whether the selected token is kept in view, until the pane is scrolled.
    pub keeps_cursor: bool,
    /// The pane's own request, while it runs.
    pub(super) request: Option<u64>,
    /// The statistics of a saved answer.
    earlier: Option<Stats>,
    raw_tokens: Vec<Value>,
    raw_usage: Value,
}

impl Pane {
    pub(super) fn new(arm: &str, now: Now) -> Pane {
        Pane {
            arm: arm.to_owned(),
            profile: None,
            text: String::new(),
            tokens: Vec::new(),
            ends: Vec::new(),
            tallies: [[0; 3]; MAX_PANES],
            finish: None,
            clock: Clock::start(now.clock),
            error: None,
            scroll: Scroll::Follow,
            cursor: 0,
            keeps_cursor: true,
            request: None,
            earlier: None,
            raw_tokens: Vec::new(),
            raw_usage: Value::Null,
        }
    }

    /// A saved answer.
    pub(super) fn from_message(message: Message, now: Now) -> Pane {
        let arm = message.arm.unwrap_or_default();
        Pane {
            profile: message.profile,
            text: message.content,
            finish: message.finish,
            earlier: message.stats,
            scroll: Scroll::From(0),
            ..Pane::new(&arm, now)
        }
    }

    /// The answer as a message to save.
    pub(super) fn message(&self) -> Message {
        let failed = self.error.as_ref().map(|_| "failed".to_owned());
        Message {
            content: self.text.clone(),
            profile: self.profile.clone(),
            finish: failed.or_else(|| self.finish.clone()),
            stats: Some(self.stats()),
            ..Message::answer(Some(self.arm.clone()))
        }
    }

    /// The analysis to save.
    pub(super) fn answer_analysis(&self) -> AnswerAnalysis {
        AnswerAnalysis {
            usage: self.raw_usage.clone(),
            tokens: self.raw_tokens.clone(),
        }
    }

    /// Restores a saved analysis.
    pub(super) fn restore_analysis(&mut self, analysis: AnswerAnalysis) {
        self.raw_usage = analysis.usage;
        self.add_tokens(analysis.tokens);
    }

    /// The statistics of the answer.
    pub fn stats(&self) -> Stats {
        self.earlier.unwrap_or_else(|| self.clock.stats())
    }

    /// Whether no text has arrived and the answer has not ended.
    pub fn is_waiting(&self) -> bool {
        self.text.is_empty() && self.finish.is_none()
    }

    /// Whether the answer is complete.
    pub(super) fn is_complete(&self) -> bool {
        let finish = self.finish.as_deref();
        self.error.is_none() && finish.is_some_and(|why| !["stopped", "failed"].contains(&why))
    }

    pub(super) fn add_text(&mut self, content: &str, now: Now) {
        if !content.is_empty() {
            self.clock.part(now.clock);
            self.text.push_str(content);
        }
    }

    /// Adds tokens in a report's format.
    pub(super) fn add_tokens(&mut self, tokens: Vec<Value>) {
        for token in tokens.iter().filter_map(Token::from_report) {
            let before = self.ends.last().copied().unwrap_or_default();
            self.ends.push(before.saturating_add(token.length()));
            self.tokens.push(token);
            for (arm, tally) in self.tallies.iter_mut().enumerate() {
                if let Some(shift) = shift(self.tokens.last(), arm) {
                    tally[shift as usize] += 1;
                }
            }
        }
        self.raw_tokens.extend(tokens);
    }

    /// Adds a chunk of a chat completion.
    pub(super) fn add_chunk(&mut self, chunk: Chunk, now: Now) {
        self.add_text(&chunk.content, now);
        self.add_tokens(chunk.tokens);
        self.profile = chunk.profile.or(self.profile.take());
        self.clock.usage = chunk.usage.or(self.clock.usage);
        if chunk.finish.is_some() {
            self.finish = chunk.finish;
        }
    }

    pub(super) fn end(&mut self, finish: String, usage: Option<Usage>, raw_usage: Value) {
        self.finish = Some(finish);
        self.clock.usage = usage;
        self.raw_usage = raw_usage;
    }

    /// The range of a token in the text. A token that is part of a character gets the range of
    /// the whole character, or an empty one.
    pub fn place(&self, token: usize) -> Range<usize> {
        let before = token
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        let start = before.map_or(0, |end| self.ceil_char(*end));
        let end = self
            .ends
            .get(token)
            .map_or(start, |end| self.ceil_char(*end));
        start..end
    }

    /// The tokens that overlap a range of the text.
    pub fn tokens_within(&self, range: &Range<usize>) -> Range<usize> {
        let first = self
            .ends
            .partition_point(|end| self.ceil_char(*end) <= range.start);
        let last = self
            .ends
            .partition_point(|end| self.ceil_char(*end) < range.end);
        first..(last + 1).clamp(first, self.ends.len())
    }

    /// The number of bytes of the text that belong to tokens, which arrive a little later.
    pub fn known(&self) -> usize {
        self.ends.last().map_or(0, |end| self.ceil_char(*end))
    }

    /// Rounds a number of bytes up to a character boundary of the text.
    fn ceil_char(&self, bytes: usize) -> usize {
        let bytes = bytes.min(self.text.len());
        self.text.ceil_char_boundary(bytes)
    }

    /// The token that a byte of the text belongs to, or else the last one.
    fn token_at(&self, byte: usize) -> usize {
        let token = self
            .ends
            .partition_point(|end| self.ceil_char(*end) <= byte);
        token.min(self.ends.len().saturating_sub(1))
    }

    /// Returns the scroll position for scrolling from the visible part, regardless of the
    /// selected token.
    pub(super) fn begin_scroll(&mut self, drawn: Drawn) -> &mut Scroll {
        if std::mem::take(&mut self.keeps_cursor) {
            self.scroll = Scroll::From(drawn.top);
        }
        &mut self.scroll
    }

    /// Performs a key's action if it scrolls.
    pub(super) fn scroll_by_key(&mut self, action: Action, drawn: Drawn) {
        let mut scroll = if self.keeps_cursor {
            Scroll::From(drawn.top)
        } else {
            self.scroll
        };
        if scroll.act(action, drawn.extent) {
            self.scroll = scroll;
            self.keeps_cursor = false;
        }
    }

    /// Selects another token.
    pub(super) fn move_to(&mut self, token: usize) {
        self.cursor = token.min(self.tokens.len().saturating_sub(1));
        self.keeps_cursor = true;
    }

    /// Selects the token at a row and column of the text, for the width it is drawn with.
    pub(super) fn select_at(&mut self, row: usize, column: usize, width: usize) {
        let rows = wrap::rows(&self.text, width);
        if let Some(row) = rows.get(row) {
            let place = wrap::place(&self.text, row.clone(), column);
            self.cursor = self.token_at(place);
        }
    }

    /// Selects the token above or below, skipping rows in which none begins.
    pub(super) fn move_vertically(&mut self, by: isize, width: usize) {
        if self.tokens.is_empty() {
            return;
        }
        let here = self.place(self.cursor);
        let rows = wrap::rows(&self.text, width);
        let row_of = |place: usize| rows.partition_point(|row| row.start <= place) - 1;
        let from = row_of(here.start);
        let column = wrap::width(&self.text[rows[from].start..here.start]);
        let mut row = from;
        while let Some(next) = row.checked_add_signed(by).filter(|row| *row < rows.len()) {
            row = next;
            let place = wrap::place(&self.text, rows[row].clone(), column);
            let token = self.token_at(place);
            if row_of(self.place(token).start) == row {
                self.move_to(token);
                return;
            }
        }
    }

    /// The reference's score of a token.
    pub fn score(&self, token: usize, reference: usize) -> Option<&Score> {
        let mut scores = self.tokens.get(token)?.scores.iter();
        scores.find(|score| score.arm == reference)
    }

    /// The shift class of a token under the reference.
    pub fn shift(&self, token: usize, reference: usize) -> Option<Shift> {
        shift(self.tokens.get(token), reference)
    }

    /// Shares of unshifted, marginal and shifted tokens.
    pub fn shares(&self, reference: usize) -> Option<[f64; 3]> {
        let counts = self.tallies.get(reference)?;
        let all: usize = counts.iter().sum();
        let complete = all > 0 && all == self.tokens.len();
        complete.then(|| counts.map(|count| count as f64 / all as f64))
    }

    /// Whether the data for these colours is available.
    pub fn has(&self, colours: Colours, reference: usize) -> bool {
        match colours {
            Colours::None => true,
            Colours::Probability => !self.tokens.is_empty(),
            Colours::Shift => self.score(0, reference).is_some(),
        }
    }

    /// The answer in a report's format.
    pub(super) fn report(&self, arm: usize, temperature: &Value) -> Value {
        json!({
            "arm": arm,
            "index": 0,
            "temperature": temperature,
            "text": self.text,
            "finish_reason": self.finish,
            "usage": self.raw_usage,
            "tokens": self.raw_tokens,
        })
    }
}

/// The shift class of a token under an arm, if there is a score.
fn shift(token: Option<&Token>, arm: usize) -> Option<Shift> {
    let mut scores = token?.scores.iter();
    let score = scores.find(|score| score.arm == arm)?;
    Some(Shift::from_rank(score.rank))
}

impl Token {
    /// Parses a token in a report's format.
    fn from_report(value: &Value) -> Option<Token> {
        serde::Deserialize::deserialize(value).ok()
    }
}

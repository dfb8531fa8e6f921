//! One arm's answer among others.

use std::ops::Range;

use serde_json::{Value, json};

use super::clock::Clock;
use super::scroll::Scroll;
use super::{Drawn, Now, compare::Colours, compare::MOST_PANES};
use crate::keymap::Action;
use crate::session::{Analysed, Message, Stats};
use crate::wire::{Chunk, Failure, Score, Token, Usage};
use crate::wrap;

/// How another arm ranks a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shift {
    /// It would have said the same.
    Unshifted,
    /// It is among its first three.
    Marginal,
    /// It is not.
    Shifted,
}

impl Shift {
    fn of_rank(rank: u64) -> Shift {
        match rank {
            0 | 1 => Shift::Unshifted,
            2 | 3 => Shift::Marginal,
            _ => Shift::Shifted,
        }
    }
}

/// An arm's answer, and what is known of its tokens.
#[derive(Clone, Debug)]
pub struct Pane {
    /// The arm.
    pub arm: String,
    /// The profile that it answers under, where the server says so and the id does not.
    pub profile: Option<String>,
    /// What it says.
    pub text: String,
    /// Its tokens, as far as they have come.
    pub tokens: Vec<Token>,
    /// How many bytes the tokens up to each have, itself included.
    ends: Vec<usize>,
    /// How many tokens each arm ranks, and in which class.
    tallies: [[usize; 3]; MOST_PANES],
    /// Why it ended.
    pub finish: Option<String>,
    /// How it comes.
    pub clock: Clock,
    /// Why it has no answer, or only a part of one.
    pub error: Option<Failure>,
    /// What is on the screen.
    pub scroll: Scroll,
    /// The token that is looked at.
    pub cursor: usize,
    /// Whether it is kept in sight: until something else is scrolled to.
    pub keeps_cursor: bool,
    /// The request of this pane alone, while it runs.
    pub(super) request: Option<u64>,
    /// How it came, if that was another time.
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
            tallies: [[0; 3]; MOST_PANES],
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

    /// An answer that was saved.
    pub(super) fn of_message(message: Message, now: Now) -> Pane {
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

    /// The answer as it is saved.
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

    /// What is saved of its tokens.
    pub(super) fn analysed(&self) -> Analysed {
        Analysed {
            usage: self.raw_usage.clone(),
            tokens: self.raw_tokens.clone(),
        }
    }

    /// Takes back what was saved of its tokens.
    pub(super) fn recall(&mut self, analysed: Analysed) {
        self.raw_usage = analysed.usage;
        self.add_tokens(analysed.tokens);
    }

    /// How it came, or comes.
    pub fn stats(&self) -> Stats {
        self.earlier.unwrap_or_else(|| self.clock.stats())
    }

    /// Whether there is nothing yet of an answer that is to come.
    pub fn is_waiting(&self) -> bool {
        self.text.is_empty() && self.finish.is_none()
    }

    /// Whether it has its whole answer.
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

    /// Adds tokens as a report holds them.
    pub(super) fn add_tokens(&mut self, tokens: Vec<Value>) {
        for token in tokens.iter().filter_map(Token::of_report) {
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

    /// Adds a part of a chat completion.
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

    /// Where a token stands in the text. A part of a character takes the place of the
    /// whole one, or none.
    pub fn place(&self, token: usize) -> Range<usize> {
        let before = token
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        let start = before.map_or(0, |end| self.whole(*end));
        let end = self.ends.get(token).map_or(start, |end| self.whole(*end));
        start..end
    }

    /// The tokens that have a part of a range of the text.
    pub fn tokens_within(&self, range: &Range<usize>) -> Range<usize> {
        let first = self
            .ends
            .partition_point(|end| self.whole(*end) <= range.start);
        let last = self
            .ends
            .partition_point(|end| self.whole(*end) < range.end);
        first..(last + 1).clamp(first, self.ends.len())
    }

    /// How many bytes of the text belong to tokens: they come a little later than it.
    pub fn known(&self) -> usize {
        self.ends.last().map_or(0, |end| self.whole(*end))
    }

    /// So many bytes of the text, and the rest of the character in which that is.
    fn whole(&self, bytes: usize) -> usize {
        let bytes = bytes.min(self.text.len());
        self.text.ceil_char_boundary(bytes)
    }

    /// The token that a byte of the text belongs to, else the last one.
    fn token_at(&self, byte: usize) -> usize {
        let token = self.ends.partition_point(|end| self.whole(*end) <= byte);
        token.min(self.ends.len().saturating_sub(1))
    }

    /// Lets the pane be scrolled from what is shown, wherever the token is that
    /// is looked at.
    pub(super) fn begin_scroll(&mut self, drawn: Drawn) -> &mut Scroll {
        if std::mem::take(&mut self.keeps_cursor) {
            self.scroll = Scroll::From(drawn.top);
        }
        &mut self.scroll
    }

    /// Does what a key asks for, if that is to scroll.
    pub(super) fn scroll_by_key(&mut self, action: Action, drawn: Drawn) {
        let mut scroll = match self.keeps_cursor {
            true => Scroll::From(drawn.top),
            false => self.scroll,
        };
        if scroll.act(action, drawn.extent) {
            self.scroll = scroll;
            self.keeps_cursor = false;
        }
    }

    /// Looks at another token.
    pub(super) fn move_to(&mut self, token: usize) {
        self.cursor = token.min(self.tokens.len().saturating_sub(1));
        self.keeps_cursor = true;
    }

    /// Looks at the token in a row and a column of the text, as wide as it is drawn.
    pub(super) fn look_at(&mut self, row: usize, column: usize, width: usize) {
        let rows = wrap::rows(&self.text, width);
        if let Some(row) = rows.get(row) {
            let place = wrap::place(&self.text, row.clone(), column);
            self.cursor = self.token_at(place);
        }
    }

    /// Looks at the token above or below, over rows in which none begins.
    pub(super) fn climb(&mut self, by: isize, width: usize) {
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

    /// How the reference scores a token.
    pub fn score(&self, token: usize, reference: usize) -> Option<&Score> {
        let mut scores = self.tokens.get(token)?.scores.iter();
        scores.find(|score| score.arm == reference)
    }

    /// Whether the reference would have said a token.
    pub fn shift(&self, token: usize, reference: usize) -> Option<Shift> {
        shift(self.tokens.get(token), reference)
    }

    /// Shares of tokens that are not, marginally and truly shifted.
    pub fn shares(&self, reference: usize) -> Option<[f64; 3]> {
        let counts = self.tallies.get(reference)?;
        let all: usize = counts.iter().sum();
        let complete = all > 0 && all == self.tokens.len();
        complete.then(|| counts.map(|count| count as f64 / all as f64))
    }

    /// Whether colours of this kind can be shown.
    pub fn has(&self, colours: Colours, reference: usize) -> bool {
        match colours {
            Colours::None => true,
            Colours::Probability => !self.tokens.is_empty(),
            Colours::Shift => self.score(0, reference).is_some(),
        }
    }

    /// The answer as a report holds it.
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

/// Whether an arm would have said a token, if it ranks it.
fn shift(token: Option<&Token>, arm: usize) -> Option<Shift> {
    let mut scores = token?.scores.iter();
    let score = scores.find(|score| score.arm == arm)?;
    Some(Shift::of_rank(score.rank))
}

impl Token {
    /// A token as a report holds it.
    fn of_report(value: &Value) -> Option<Token> {
        serde::Deserialize::deserialize(value).ok()
    }
}

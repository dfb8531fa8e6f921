//! One answer: turns its events into pieces of text. No IO, no HTTP.
//!
//! Text is released only when nothing can change it any more: bytes of an unfinished character wait
//! in the decoder, text that could begin a stop string waits in the matcher. A token's
//! log-probabilities wait until all of its text is released, so that an entry never reveals text
//! that is held back, and the joined entries are always the text.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::EngineFailure;
use incant_api::CompletionTokensDetails;
use incant_engine::{Event, FinishReason};
use incant_prompt::text::Tokenizer;
use incant_prompt::text::decode::StreamDecoder;
use incant_prompt::text::stop::StopMatcher;
use incant_sample::TokenLogprobs;

/// The texts of tokens, as an answer needs them.
pub trait Vocabulary: Send + Sync {
    /// Returns the bytes that a generated token adds to the answer; control tokens add none.
    fn bytes(&self, id: u32) -> &[u8];
    /// Returns the bytes that show a token, including control tokens.
    fn display_bytes(&self, id: u32) -> &[u8];
}

impl Vocabulary for Tokenizer {
    fn bytes(&self, id: u32) -> &[u8] {
        self.token_bytes(id)
    }

    fn display_bytes(&self, id: u32) -> &[u8] {
        self.token_text_special(id)
    }
}

/// A prompt to repeat before the answer: each token with the bytes it shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Echo(
    /// Ids with their bytes, in order.
    pub Vec<(u32, Vec<u8>)>,
);

/// A part of an answer that can be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The number of the answer within its request.
    pub index: usize,
    /// Whether it is the answer's first piece.
    pub opens: bool,
    /// The text that is released with it.
    pub text: String,
    /// The tokens generated since the last piece, whether their text is released or not.
    pub ids: Vec<u32>,
    /// The log-probabilities of tokens whose text is released, if requested.
    pub entries: Vec<Entry>,
    /// Set in the answer's last piece.
    pub finish: Option<FinishReason>,
}

/// A token of the answer (or of the echoed prompt) with its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The token.
    pub id: u32,
    /// The bytes that it contributed to the text.
    pub bytes: Vec<u8>,
    /// Characters of the text before it.
    pub offset: usize,
    /// `None` only for a prompt's first token, which nothing precedes.
    pub logprob: Option<f32>,
    /// Its rank by likelihood; `None` likewise.
    pub rank: Option<usize>,
    /// The most likely tokens at its position, best first; the token itself is marked if it is
    /// among them.
    pub top: Vec<Alternative>,
}

/// An alternative to a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// The alternative token.
    pub id: u32,
    /// The bytes that show it, including control tokens.
    pub bytes: Vec<u8>,
    /// Its log-probability.
    pub logprob: f32,
    /// Whether this is the chosen token.
    pub chosen: bool,
}

/// The position of a token's bytes in the decoded text.
#[derive(Clone, Debug)]
struct Place {
    bytes: Vec<u8>,
    /// Characters before the token.
    offset: usize,
    /// The end of the token's bytes, counted in bytes of text.
    end: usize,
    /// The token is released completely once this number of bytes of text is.
    release: usize,
}

/// A token with its log-probabilities, until all of its text is released.
struct PendingToken {
    id: u32,
    place: Place,
    logprobs: Option<TokenLogprobs>,
}

/// The state of one answer.
pub struct Choice<V> {
    index: usize,
    vocabulary: Arc<V>,
    end_tokens: Arc<[u32]>,
    text: Text,
    matcher: StopMatcher,
    /// The echoed prompt's tokens, until their log-probabilities arrive.
    echoed: Vec<(u32, Place)>,
    /// The echoed prompt's text, until the first token.
    head: String,
    pending: VecDeque<PendingToken>,
    /// Tokens generated since the last piece.
    ids: Vec<u32>,
    /// Entries that wait for a piece with text.
    ready: Vec<Entry>,
    /// The range of the decoded text that was sent, in bytes: the text before it was trimmed from
    /// the start of the answer.
    sent: Range<usize>,
    /// The length of the echoed prompt in bytes: the matcher counts from the answer's start.
    prompt: usize,
    opened: bool,
    /// Whether tokens that were trimmed completely from the start have entries too.
    keeps_trimmed: bool,
    generated: usize,
    cached: usize,
    /// Drafted tokens, and those of them that became tokens of the answer.
    drafted: usize,
    accepted: usize,
}

impl<V: Vocabulary> Choice<V> {
    /// Creates the answer number `index` of a request, which ends at any of `end_tokens`, `stop` or
    /// `markers`; `echo` is repeated before it.
    pub fn new(
        index: usize,
        vocabulary: Arc<V>,
        end_tokens: Arc<[u32]>,
        stop: &[String],
        markers: &[String],
        echo: Option<&Echo>,
    ) -> Choice<V> {
        let mut text = Text::default();
        let mut head = String::new();
        // The prompt is not part of the answer: it bypasses the matcher.
        let mut place = |(id, bytes): &(u32, Vec<u8>)| {
            let (place, decoded) = text.push(bytes);
            head.push_str(&decoded);
            (*id, place)
        };
        let echoed = echo
            .map(|echo| echo.0.iter().map(&mut place).collect())
            .unwrap_or_default();
        Choice {
            index,
            vocabulary,
            end_tokens,
            text,
            // Between turns, base models often add more white space than the form has.
            matcher: StopMatcher::new(stop, markers).trim_start(!markers.is_empty()),
            echoed,
            sent: 0..0,
            prompt: head.len(),
            head,
            pending: VecDeque::new(),
            ids: Vec::new(),
            ready: Vec::new(),
            opened: false,
            keeps_trimmed: false,
            generated: 0,
            cached: 0,
            drafted: 0,
            accepted: 0,
        }
    }

    /// Keeps entries without bytes for tokens that were trimmed from the start, so that the first
    /// entries are the first tokens.
    pub(crate) fn keep_trimmed(mut self) -> Choice<V> {
        self.keeps_trimmed = true;
        self
    }

    /// Trims white space from the start of the answer, also if it has no markers. Must be called
    /// before the first event.
    pub(crate) fn trim_start(mut self) -> Choice<V> {
        self.matcher = self.matcher.trim_start(true);
        self
    }

    /// Returns the number of tokens generated so far.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Returns the number of cached prompt tokens, which were not computed again.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Returns the numbers of drafted tokens that were accepted and rejected.
    pub fn drafts(&self) -> CompletionTokensDetails {
        CompletionTokensDetails {
            accepted_prediction_tokens: self.accepted,
            rejected_prediction_tokens: self.drafted - self.accepted,
        }
    }

    /// Advances by one event; returns a piece if anything can be sent.
    ///
    /// # Errors
    /// The event is a failure of the engine.
    pub fn advance(&mut self, event: Event) -> Result<Option<Piece>, EngineFailure> {
        match event {
            Event::Started { cached_tokens, .. } => {
                self.cached = cached_tokens;
                Ok(None)
            }
            Event::Prompt(logprobs) => {
                let echoed = std::mem::take(&mut self.echoed).into_iter().zip(logprobs);
                self.pending
                    .extend(echoed.map(|((id, place), logprobs)| PendingToken {
                        id,
                        place,
                        logprobs,
                    }));
                Ok(None)
            }
            Event::Token { id, logprobs } => Ok(self.token(id, logprobs)),
            Event::Drafted { drafted, accepted } => {
                self.drafted += drafted;
                self.accepted += accepted;
                Ok(None)
            }
            Event::Finished(reason) => Ok(Some(self.end(reason))),
            // Events of followers are reported to another receiver.
            Event::Scored(_) => Ok(None),
            Event::Failed(cause) => Err(EngineFailure(cause)),
        }
    }

    fn token(&mut self, id: u32, logprobs: Option<TokenLogprobs>) -> Option<Piece> {
        self.generated += 1;
        self.ids.push(id);
        let bytes = if self.end_tokens.contains(&id) {
            &[]
        } else {
            self.vocabulary.bytes(id)
        };
        let (place, decoded) = self.text.push(bytes);
        if logprobs.is_some() {
            self.pending.push_back(PendingToken {
                id,
                place,
                logprobs,
            });
        }
        let passed = self.matcher.push(&decoded);
        let text = std::mem::take(&mut self.head) + &passed.text;
        self.note_sent();
        if passed.stopped {
            return Some(self.stop(text));
        }
        self.release();
        let opens = !std::mem::replace(&mut self.opened, true);
        if text.is_empty() && !opens {
            return None;
        }
        let entries = if text.is_empty() {
            Vec::new()
        } else {
            std::mem::take(&mut self.ready)
        };
        Some(Piece {
            index: self.index,
            opens,
            text,
            ids: std::mem::take(&mut self.ids),
            entries,
            finish: None,
        })
    }

    /// Ends the answer as the engine has: all text that was held back is released.
    fn end(&mut self, reason: FinishReason) -> Piece {
        let passed = self.matcher.push(&self.text.finish());
        let mut text = std::mem::take(&mut self.head) + &passed.text;
        if passed.stopped {
            self.note_sent();
            return self.stop(text);
        }
        let rest = self.matcher.finish(reason == FinishReason::Length);
        text += &rest.text;
        self.note_sent();
        if rest.stopped {
            self.settle_sent();
        } else {
            for pending in std::mem::take(&mut self.pending) {
                self.settle(pending);
            }
        }
        self.last(text, reason)
    }

    /// Ends the answer at a stop string.
    fn stop(&mut self, text: String) -> Piece {
        self.settle_sent();
        self.last(text, FinishReason::Stop)
    }

    /// Settles the tokens whose text was sent, truncated where the cut text begins.
    fn settle_sent(&mut self) {
        for mut pending in std::mem::take(&mut self.pending) {
            let over = pending.place.end.saturating_sub(self.sent.end);
            let length = pending.place.bytes.len();
            if over == 0 {
                self.settle(pending);
            } else if over < length {
                pending.place.bytes.truncate(length - over);
                pending.place.end -= over;
                self.settle(pending);
            }
        }
    }

    fn note_sent(&mut self) {
        let Range { start, end } = self.matcher.sent();
        let start = if start > 0 { self.prompt + start } else { 0 };
        self.sent = start..self.prompt + end;
    }

    fn last(&mut self, text: String, reason: FinishReason) -> Piece {
        let opens = !std::mem::replace(&mut self.opened, true);
        let entries = std::mem::take(&mut self.ready);
        Piece {
            index: self.index,
            opens,
            text,
            ids: std::mem::take(&mut self.ids),
            entries,
            finish: Some(reason),
        }
    }

    /// Settles entries whose text is all released.
    fn release(&mut self) {
        while let Some(pending) = self
            .pending
            .pop_front_if(|pending| pending.place.release <= self.sent.end)
        {
            self.settle(pending);
        }
    }

    /// Makes an entry ready to send, without the bytes that were trimmed from the start.
    fn settle(&mut self, mut pending: PendingToken) {
        let Place { bytes, end, .. } = &mut pending.place;
        let before = (self.sent.start + bytes.len()).saturating_sub(*end);
        if before > 0 && before >= bytes.len() && !self.keeps_trimmed {
            return;
        }
        bytes.drain(..before.min(bytes.len()));
        let entry = self.entry(pending);
        self.ready.push(entry);
    }

    fn entry(&self, pending: PendingToken) -> Entry {
        let PendingToken {
            id,
            place,
            logprobs,
        } = pending;
        let alternative = |(other, logprob): (u32, f32)| {
            let chosen = other == id;
            let bytes = if chosen {
                place.bytes.clone()
            } else {
                self.vocabulary.display_bytes(other).to_vec()
            };
            Alternative {
                id: other,
                bytes,
                logprob,
                chosen,
            }
        };
        let (logprob, rank, top) = match logprobs {
            Some(TokenLogprobs { chosen, rank, top }) => (
                Some(chosen),
                Some(rank),
                top.into_iter().map(alternative).collect(),
            ),
            None => (None, None, Vec::new()),
        };
        Entry {
            id,
            bytes: place.bytes,
            // Only ASCII is trimmed: its bytes are characters.
            offset: place.offset.saturating_sub(self.sent.start),
            logprob,
            rank,
            top,
        }
    }
}

/// The decoded text, and the positions of tokens in it.
#[derive(Default)]
struct Text {
    decoder: StreamDecoder,
    /// The last input bytes: at most three, since no more can wait for the end of a character.
    tail: Vec<u8>,
    /// The number of bytes and characters decoded.
    bytes: usize,
    characters: usize,
}

impl Text {
    /// Adds a token; returns its position and the text that it completes.
    fn push(&mut self, bytes: &[u8]) -> (Place, String) {
        let offset = self.characters;
        let decoded = self.decoder.push(bytes);
        self.bytes += decoded.len();
        self.characters += decoded.chars().count();
        self.tail.extend_from_slice(bytes);
        self.tail.drain(..self.tail.len().saturating_sub(3));
        let waiting = unfinished(&self.tail);
        let place = Place {
            bytes: bytes.to_vec(),
            offset,
            end: self.bytes + waiting,
            // The waiting bytes become one character, real or U+FFFD; when its first byte is
            // released, all of it is.
            release: self.bytes + waiting.min(1),
        };
        (place, decoded)
    }

    /// Ends the text: waiting bytes become U+FFFD.
    fn finish(&mut self) -> String {
        let rest = self.decoder.finish();
        self.bytes += rest.len();
        rest
    }
}

/// Returns the number of bytes at the end that begin a character without completing it.
fn unfinished(bytes: &[u8]) -> usize {
    for (back, byte) in (1..=3).zip(bytes.iter().rev()) {
        let length = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 1,
        };
        return if length > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests;

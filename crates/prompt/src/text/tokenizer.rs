//! The public interface of the tokenizer: encoding and decoding.

use std::borrow::Cow;
use std::convert::Infallible;

use super::bpe::Bpe;
use super::limits::{EncodeError, EncodeLimits, LimitCheck, Measure, Output, Unlimited};
use super::occurrences::OccurrenceCache;
use super::special_tokens::{Fragment, SpecialToken, SpecialTokens};
use super::spm::Spm;
use super::vocabulary::{Arena, TokenKind, Vocabulary};

/// Converts text to a model's token ids and back.
///
/// Build it with [`Tokenizer::from_gguf`]. It is immutable: share it in an `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    pub(super) vocabulary: Vocabulary,
    /// The bytes that each token adds to a text.
    pub(super) texts: Arena,
    pub(super) special_tokens: SpecialTokens,
    pub(super) encoder: Encoder,
    pub(super) measure: Measure,
    pub(super) facts: Facts,
    pub(super) occurrence_cache: OccurrenceCache,
}

/// The encoder of text between special tokens.
#[derive(Debug)]
pub(super) enum Encoder {
    Spm(Spm),
    Bpe(Bpe),
}

/// Other facts from the metadata.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) pre: String,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) adds_bos: bool,
    pub(super) adds_eos: bool,
    pub(super) end_tokens: Vec<u32>,
}

/// Whether texts such as `<|im_end|>` stand for control tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// They do.
    Parse,
    /// They are text like any other: the result has no ids of control tokens. Pieces that the
    /// vocabulary defines as text still match.
    Plain,
}

/// How to treat markup that results from merging: text in brackets that the vocabulary has as
/// one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Markup {
    /// It stays a token.
    Kept,
    /// It is replaced by tokens of its parts.
    Broken,
}

impl Tokenizer {
    /// Encodes `text` to the same ids as llama.cpp, without adding BOS and EOS.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let Ok(ids) = self.encode_for(text, special, &Unlimited);
        ids
    }

    /// Like [`encode`](Self::encode), but stops early once `limits` are exceeded, at the latest
    /// at the end of a word. If the text's length alone implies too many tokens, nothing is
    /// encoded at all.
    ///
    /// # Errors
    /// There are more tokens than the limit, or the work was cancelled.
    pub fn encode_within(
        &self,
        text: &str,
        special: Special,
        limits: &EncodeLimits,
    ) -> Result<Vec<u32>, EncodeError> {
        self.encode_for(text, special, limits)
    }

    fn encode_for<L: LimitCheck>(
        &self,
        text: &str,
        special: Special,
        limits: &L,
    ) -> Result<Vec<u32>, L::Error> {
        match special {
            Special::Parse => self.encode_where(text, true, |_, _| true, Markup::Kept, limits),
            Special::Plain => {
                let allowed = |token: &SpecialToken, _| !token.control;
                self.encode_where(text, true, allowed, Markup::Kept, limits)
            }
        }
    }

    /// Like [`encode`](Self::encode), for a text that continues another: no space is put before
    /// it.
    pub fn encode_inside(&self, text: &str, special: Special) -> Vec<u32> {
        let is_parsed = special == Special::Parse;
        let allowed = |token: &SpecialToken, _| is_parsed || !token.control;
        let Ok(ids) = self.encode_where(text, false, allowed, Markup::Kept, &Unlimited);
        ids
    }

    /// Splits a text at the tokens that [`guard_controls`](Self::guard_controls) protects
    /// against: each part with its token, if it is one.
    pub fn split_at_special_tokens<'a>(&self, text: &'a str) -> Vec<(&'a str, Option<u32>)> {
        let mut parts = Vec::new();
        let guarded = |token: &SpecialToken, _| token.guarded;
        let Ok(()) = self.special_tokens.split(text, guarded, |fragment, part| {
            parts.push(match fragment {
                Fragment::Text => (part, None),
                Fragment::Token(id) => (part, Some(id)),
            });
            Ok::<_, Infallible>(())
        });
        parts
    }

    /// Like [`encode`](Self::encode) with [`Special::Parse`], but `guard` marks places: it is
    /// removed, and no control token and no markup is found across a place where it stood.
    /// Apart from that, the ids are those of the text without guards.
    pub fn encode_guarded(&self, text: &str, guard: char) -> Vec<u32> {
        let Ok(ids) = self.encode_guarded_for(text, guard, &Unlimited);
        ids
    }

    /// Like [`encode_guarded`](Self::encode_guarded), but stops early once `limits` are
    /// exceeded.
    ///
    /// # Errors
    /// See [`encode_within`](Self::encode_within).
    pub fn encode_guarded_within(
        &self,
        text: &str,
        guard: char,
        limits: &EncodeLimits,
    ) -> Result<Vec<u32>, EncodeError> {
        self.encode_guarded_for(text, guard, limits)
    }

    fn encode_guarded_for<L: LimitCheck>(
        &self,
        text: &str,
        guard: char,
        limits: &L,
    ) -> Result<Vec<u32>, L::Error> {
        let mut guards = Vec::new();
        let mut clean = String::with_capacity(text.len());
        for part in text.split(guard) {
            clean.push_str(part);
            guards.push(clean.len());
        }
        // The end of the text is not a guard.
        guards.pop();
        let allowed =
            |token: &SpecialToken, start: usize| !(token.guarded && token.spans(start, &guards));
        self.encode_where(&clean, true, allowed, Markup::Broken, limits)
    }

    /// Replaces markup tokens among `ids`, from index `from` on, by tokens of their parts.
    /// Merging can produce markup if the vocabulary has it as text.
    fn break_markup(&self, ids: &mut Vec<u32>, from: usize) {
        if !ids[from..]
            .iter()
            .any(|&id| self.special_tokens.is_markup(id))
        {
            return;
        }
        for id in ids.split_off(from) {
            match self.piece(id).filter(|_| self.special_tokens.is_markup(id)) {
                None => ids.push(id),
                // It has brackets, so that none of its parts is the whole piece.
                Some(piece) => {
                    let begin = piece.chars().next().map_or(0, char::len_utf8);
                    let (first, rest) = piece.split_at(begin);
                    for part in [first, rest] {
                        let Ok(mut found) = self.encode_text(part);
                        self.break_markup(&mut found, 0);
                        ids.append(&mut found);
                    }
                }
            }
        }
    }

    /// Encodes text inside of another one, without looking for special tokens.
    fn encode_text(&self, text: &str) -> Result<Vec<u32>, Infallible> {
        let mut output = Output::new(text, &self.measure, &Unlimited)?;
        self.append_text(text, false, &mut output)?;
        Ok(output.ids)
    }

    /// Appends the ids of text without special tokens.
    fn append_text<L: LimitCheck>(
        &self,
        text: &str,
        first: bool,
        output: &mut Output<'_, L>,
    ) -> Result<(), L::Error> {
        match &self.encoder {
            Encoder::Spm(spm) => spm.encode(&self.vocabulary, text, first, output),
            Encoder::Bpe(bpe) => bpe.encode(&self.vocabulary, text, output),
        }
    }

    /// A lower bound of the number of tokens in `text`, without BOS and EOS, by its length and
    /// that of the longest token: 31 characters in Gemma's vocabulary.
    pub fn least_tokens(&self, text: &str) -> usize {
        self.measure.least_tokens(self.measure.of(text))
    }

    /// Puts `guard` after each character of `text` that a control token or markup could begin
    /// with, even if the rest of the token is missing, because a template may join pieces. The
    /// ids that [`encode_guarded`](Self::encode_guarded) gives for the result, also with more
    /// text around it, contain no such token from within `text`.
    ///
    /// Markup is text to the vocabulary, but in brackets like a control token:
    /// `<start_of_image>`, `<|im_start|>`, `[multimodal]`. HTML tags are text.
    ///
    /// `text` itself should not contain `guard`, which would be lost.
    pub fn guard_controls<'a>(&self, text: &'a str, guard: char) -> Cow<'a, str> {
        let mut guarded = String::new();
        let mut copied = 0;
        for start in self.special_tokens.guarded(text) {
            let first = text[start..].chars().next().map_or(0, char::len_utf8);
            guarded.push_str(&text[copied..start + first]);
            guarded.push(guard);
            copied = start + first;
        }
        if copied == 0 {
            return Cow::Borrowed(text);
        }
        guarded.push_str(&text[copied..]);
        Cow::Owned(guarded)
    }

    /// `first` tells whether the text begins the whole text; later it tells whether the next
    /// fragment does or follows a special token.
    fn encode_where<L: LimitCheck>(
        &self,
        text: &str,
        mut first: bool,
        allowed: impl Fn(&SpecialToken, usize) -> bool,
        markup: Markup,
        limits: &L,
    ) -> Result<Vec<u32>, L::Error> {
        let mut output = Output::new(text, &self.measure, limits)?;
        self.special_tokens.split(text, allowed, |fragment, part| {
            let begins = first;
            first = matches!(fragment, Fragment::Token(_));
            match fragment {
                Fragment::Token(id) => {
                    output.ids.push(id);
                    output.advance(part)
                }
                Fragment::Text => {
                    let from = output.ids.len();
                    self.append_text(part, begins, &mut output)?;
                    if markup == Markup::Broken {
                        self.break_markup(&mut output.ids, from);
                    }
                    Ok(())
                }
            }
        })?;
        Ok(output.ids)
    }

    /// The bytes that a token adds to a text, not necessarily whole characters. Empty for
    /// control, unknown and unused tokens, and for ids outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.texts.get(id).unwrap_or_default()
    }

    /// Like [`token_bytes`](Self::token_bytes), but tokens that add nothing give their piece:
    /// `<|im_end|>`.
    pub fn token_text_special(&self, id: u32) -> &[u8] {
        match self.kind(id) {
            TokenKind::Control | TokenKind::Unknown | TokenKind::Unused => {
                self.piece(id).unwrap_or_default().as_bytes()
            }
            TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte => self.token_bytes(id),
        }
    }

    /// Decodes `ids`; with `special`, control tokens appear as their pieces. Invalid UTF-8
    /// becomes U+FFFD. If encoding puts a space before a text
    /// ([`adds_space_prefix`](Self::adds_space_prefix)), that space is removed.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let mut bytes = Vec::new();
        let mut first = true;
        for &id in ids {
            let text = if special {
                self.token_text_special(id)
            } else {
                self.token_bytes(id)
            };
            let added = first && self.adds_space_prefix() && self.is_text(id);
            bytes.extend_from_slice(match text {
                [b' ', rest @ ..] if added => rest,
                _ => text,
            });
            first = !self.is_text(id);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether a token comes from text rather than from a special token.
    fn is_text(&self, id: u32) -> bool {
        matches!(self.kind(id), TokenKind::Normal | TokenKind::Byte)
    }

    /// A token's text as the vocabulary has it (`▁the`, `Ġthe`, `<0x0A>`).
    pub fn piece(&self, id: u32) -> Option<&str> {
        self.vocabulary.piece(id)
    }

    /// A token's kind; [`TokenKind::Unused`] for ids outside the vocabulary.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.vocabulary.kind(id).unwrap_or(TokenKind::Unused)
    }

    /// Whether each id adds the same text as in another tokenizer. (Control tokens may have
    /// other names.)
    pub fn has_texts_of(&self, other: &Tokenizer) -> bool {
        self.vocab_size() == other.vocab_size() && self.texts == other.texts
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len() as usize
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.facts.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.facts.eos
    }

    /// Whether the model expects BOS before every prompt.
    pub fn adds_bos(&self) -> bool {
        self.facts.adds_bos
    }

    /// Whether the model expects EOS after every text.
    pub fn adds_eos(&self) -> bool {
        self.facts.adds_eos
    }

    /// Whether encoding puts a space before a text (and after each special token).
    pub fn adds_space_prefix(&self) -> bool {
        match &self.encoder {
            Encoder::Spm(spm) => spm.space_prefix,
            Encoder::Bpe(_) => false,
        }
    }

    /// All tokens that end generation: EOS, the ends of a turn and of a message that the
    /// metadata names, and control tokens whose text is a known end. EOS comes first.
    pub fn end_tokens(&self) -> &[u32] {
        &self.facts.end_tokens
    }

    /// The tokenizer's family in GGUF: `llama` or `gpt2`.
    pub fn kind_name(&self) -> &'static str {
        match self.encoder {
            Encoder::Spm(_) => "llama",
            Encoder::Bpe(_) => "gpt2",
        }
    }

    /// The name of the pre-tokenizer in GGUF, `default` if there is none.
    pub fn pre_name(&self) -> &str {
        &self.facts.pre
    }
}

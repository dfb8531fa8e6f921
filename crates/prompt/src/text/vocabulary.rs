//! The pieces of a vocabulary: their texts, kinds, bytes and look-up.

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// The kind of a token; GGUF's `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Ordinary text.
    Normal,
    /// Stands for text that the vocabulary cannot express.
    Unknown,
    /// Structures a prompt (begin, end, turns); never part of a text.
    Control,
    /// Text that always becomes one token, before any merging.
    UserDefined,
    /// Unused: text never becomes it and it adds none.
    Unused,
    /// One byte of a character that has no piece of its own (byte fallback).
    Byte,
}

impl TokenKind {
    /// The kind with this number in a GGUF.
    pub(super) fn from_id(id: i32) -> Option<TokenKind> {
        Some(match id {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }

    /// The kind in words.
    pub fn name(self) -> &'static str {
        match self {
            TokenKind::Normal => "normal",
            TokenKind::Unknown => "unknown",
            TokenKind::Control => "control",
            TokenKind::UserDefined => "user-defined",
            TokenKind::Unused => "unused",
            TokenKind::Byte => "byte",
        }
    }

    /// Whether merging can produce such a token.
    pub(super) fn is_text(self) -> bool {
        matches!(self, TokenKind::Normal | TokenKind::UserDefined)
    }
}

/// Concatenated byte strings: one allocation for a whole vocabulary.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arena {
    bytes: Vec<u8>,
    /// The end of each string.
    ends: Vec<u32>,
}

impl Arena {
    /// Appends a string; `false` if the arena is full (4 GiB).
    #[must_use]
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        match u32::try_from(self.bytes.len()) {
            Ok(end) => self.ends.push(end),
            Err(_) => return false,
        }
        true
    }

    pub(super) fn get(&self, at: u32) -> Option<&[u8]> {
        let at = at as usize;
        let end = *self.ends.get(at)? as usize;
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before]) as usize;
        Some(&self.bytes[start..end])
    }
}

/// All tokens of a model.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pieces: Arena,
    kinds: Vec<TokenKind>,
    by_piece: HashTable<u32>,
    hasher: FixedState,
    longest: usize,
}

impl Vocabulary {
    /// Indexes `pieces`, each of which has a kind. Of equal pieces the last one is found, as in
    /// llama.cpp.
    pub(super) fn new(pieces: Arena, kinds: Vec<TokenKind>) -> Vocabulary {
        let mut vocabulary = Vocabulary {
            pieces,
            by_piece: HashTable::with_capacity(kinds.len()),
            kinds,
            hasher: FixedState::default(),
            longest: 0,
        };
        for id in 0..vocabulary.len() {
            if vocabulary.kind(id).is_some_and(TokenKind::is_text) {
                vocabulary.index(id);
            }
        }
        vocabulary
    }

    fn index(&mut self, id: u32) {
        let Vocabulary { pieces, hasher, .. } = self;
        let piece = pieces.get(id).unwrap_or_default();
        self.longest = self.longest.max(piece.len());
        let hash_of = |id: &u32| hasher.hash_one(pieces.get(*id).unwrap_or_default());
        self.by_piece
            .entry(
                hasher.hash_one(piece),
                |other| pieces.get(*other) == Some(piece),
                hash_of,
            )
            .and_modify(|found| *found = id)
            .or_insert(id);
    }

    pub(super) fn len(&self) -> u32 {
        // Every id is a u32 because the arena's ends are counted on loading.
        self.kinds.len() as u32
    }

    /// The token whose piece is exactly this text, if text can become it.
    pub(super) fn find(&self, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        self.by_piece
            .find(self.hasher.hash_one(text), |&id| {
                self.pieces.get(id) == Some(text)
            })
            .copied()
    }

    /// A token's text as the vocabulary has it.
    pub(super) fn piece(&self, id: u32) -> Option<&str> {
        // Pieces come from strings that were checked to be UTF-8.
        std::str::from_utf8(self.pieces.get(id)?).ok()
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// All tokens: id, kind, piece.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, TokenKind, &str)> {
        self.kinds
            .iter()
            .zip(0..)
            .map(|(&kind, id)| (id, kind, self.piece(id).unwrap_or_default()))
    }
}

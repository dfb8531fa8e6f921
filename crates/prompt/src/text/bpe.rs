//! Byte-level byte-pair encoding (BPE): the bytes of each word, merged by rank.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::limits::{LimitCheck, Output};
use super::merge::{Chain, Merge, Symbol};
use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::Vocabulary;

/// The encoder of a `gpt2` vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    pre_tokenizer: PreTokenizer,
    /// The token of each single byte.
    bytes: Box<[Option<u32>; 256]>,
    /// The merge of two adjacent tokens.
    merges: HashMap<(u32, u32), Merge, FixedState>,
    /// Whether a word that is a piece becomes one token, regardless of the merges.
    whole_words: bool,
}

/// An invalid merge: its index in the list, and the piece that the vocabulary does not have.
#[derive(Debug)]
pub(super) struct BadMerge {
    pub(super) at: usize,
    pub(super) piece: String,
}

impl Bpe {
    /// Resolves `merges` (`left right`, best first) against the vocabulary.
    pub(super) fn new<'a>(
        vocabulary: &Vocabulary,
        merges: impl ExactSizeIterator<Item = &'a str>,
        pre_tokenizer: PreTokenizer,
        whole_words: bool,
    ) -> Result<Bpe, BadMerge> {
        let mut bytes = Box::new([None; 256]);
        for byte in 0..=u8::MAX {
            let mut buffer = [0; 4];
            let piece = letter(byte).encode_utf8(&mut buffer);
            bytes[byte as usize] = vocabulary.find(piece.as_bytes());
        }
        let mut table = HashMap::with_capacity_and_hasher(merges.len(), FixedState::default());
        let mut joined = String::new();
        for (at, merge) in merges.enumerate() {
            let bad = |piece: &str| BadMerge {
                at,
                piece: piece.to_owned(),
            };
            // A space cannot begin a piece in this alphabet, but a merge that is nothing but
            // one is not valid either.
            let (left, right) = merge.split_once(' ').ok_or_else(|| bad(merge))?;
            let find = |piece: &str| vocabulary.find(piece.as_bytes());
            let pair = (
                find(left).ok_or_else(|| bad(left))?,
                find(right).ok_or_else(|| bad(right))?,
            );
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let id = find(&joined).ok_or_else(|| bad(&joined))?;
            // The first of equal merges counts.
            table.entry(pair).or_insert(Merge {
                priority: at as u32,
                id,
            });
        }
        Ok(Bpe {
            pre_tokenizer,
            bytes,
            merges: table,
            whole_words,
        })
    }

    /// Appends the ids of `text`, which has no special tokens.
    pub(super) fn encode<L: LimitCheck>(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        output: &mut Output<'_, L>,
    ) -> Result<(), L::Error> {
        let mut chain = Chain::default();
        let mut letters = String::new();
        self.pre_tokenizer.split(text, |word| {
            if self.whole_words {
                letters.clear();
                letters.extend(word.bytes().map(letter));
                if let Some(id) = vocabulary.find(letters.as_bytes()) {
                    output.ids.push(id);
                    return output.advance(word);
                }
            }
            let mut bytes = word.bytes().peekable();
            while bytes.peek().is_some() {
                chain.clear();
                while let Some(byte) = bytes.next_if(|_| chain.fits(1)) {
                    chain.push(1, self.bytes[byte as usize]);
                }
                let find = |left: &Symbol, right: &Symbol| {
                    self.merges.get(&(left.id()?, right.id()?)).copied()
                };
                chain.merge(find, || output.merged())?;
                // A byte without a token in the vocabulary (SmolLM2's has none for those of
                // rare planes) is left out, as in llama.cpp.
                output.ids.extend(chain.iter().filter_map(Symbol::id));
            }
            output.advance(word)
        })
    }

    /// Whether a byte has a token of its own.
    pub(super) fn has_byte(&self, byte: u8) -> bool {
        self.bytes[byte as usize].is_some()
    }
}

/// The character that stands for a byte in the pieces of a byte-level vocabulary: printable
/// bytes are themselves, the others follow from U+0100 on (the alphabet of OpenAI's GPT-2
/// encoder).
pub(super) fn letter(byte: u8) -> char {
    let offset = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return byte as char,
        0..=0x20 => byte as u32,
        0x7f..=0xa0 => byte as u32 - 0x7f + 0x21,
        0xad => 0x43,
    };
    // U+0100 to U+0143 are all characters.
    char::from_u32(0x100 + offset).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that a character of a piece stands for.
pub(super) fn byte(letter: char) -> Option<u8> {
    Some(match letter as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => code as u8,
        code @ 0x100..=0x120 => (code - 0x100) as u8,
        code @ 0x121..=0x142 => (code - 0x121 + 0x7f) as u8,
        0x143 => 0xad,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_has_a_letter_for_each_byte() {
        for value in 0..=u8::MAX {
            assert_eq!(byte(letter(value)), Some(value));
        }
        // Well-known ones from vocabularies.
        assert_eq!(
            (letter(b' '), letter(b'\n'), letter(b'\t')),
            ('Ġ', 'Ċ', 'ĉ')
        );
        assert_eq!(letter(0x7f), 'ġ');
        assert_eq!(letter(0xad), 'Ń');
        assert_eq!(byte(' '), None);
        assert_eq!(byte('日'), None);
    }
}

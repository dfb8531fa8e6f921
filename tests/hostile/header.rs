//! The ranges of the parts of a valid GGUF header.

use std::ops::Range;

use super::edits::{Edit, Material};

/// The number of elements of an array that are worth changing.
const ELEMENTS: usize = 24;

/// The offsets of the counts of tensors and of metadata entries.
const TENSOR_COUNT: usize = 8;
const ENTRY_COUNT: usize = 16;

/// Replacements for strings of the metadata.
const STRINGS: [&str; 14] = [
    "",
    "\u{1b}[2J\n",
    "llama",
    "qwen2",
    "gemma3",
    "gpt2",
    "yarn",
    "linear",
    "{{ messages[0].content }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "{{ 'x' * 99999999 }}",
    "{{ raise_exception('no') }}",
    "{% if %}",
    "日本\u{202e}語",
];

/// Creates material from the header of a GGUF file: its fields, and edits that leave all other
/// fields unchanged.
pub(super) fn material(file: &[u8]) -> Material {
    let mut reader = Reader { file, at: 24 };
    let count = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    let preamble = vec![0..4, 4..8, TENSOR_COUNT..16, ENTRY_COUNT..24];
    let mut whole = Vec::new();
    let (mut scalars, mut arrays, mut tensors) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count(ENTRY_COUNT) {
        let start = reader.at;
        let key = reader.string();
        let kind = reader.take(4);
        let value = reader.at;
        match reader.number(&kind) {
            8 => {
                let text = reader.string();
                scalars.extend([text[0].clone(), text[1].clone()]);
                whole.extend(STRINGS.map(|new| string(text[0].start..text[1].end, new)));
            }
            9 => {
                let parts = reader.array();
                let range = value..reader.at;
                // An empty array of the same type.
                let kind = &file[range.start..range.start + 4];
                let empty = [kind, &[0; 8]].concat();
                whole.push(Edit::Replace {
                    range,
                    bytes: empty,
                });
                arrays.extend(parts);
            }
            kind => {
                let width = width(kind);
                scalars.push(reader.take(width));
            }
        }
        scalars.extend([key[0].clone(), key[1].clone(), kind]);
        whole.push(without(start..reader.at, ENTRY_COUNT, count(ENTRY_COUNT)));
    }
    for _ in 0..count(TENSOR_COUNT) {
        let start = reader.at;
        let name = reader.string();
        let dims = reader.take(4);
        tensors.extend([name[0].clone(), name[1].clone(), dims.clone()]);
        for _ in 0..reader.number(&dims) {
            tensors.push(reader.take(8));
        }
        // The type and the offset.
        tensors.extend([reader.take(4), reader.take(8)]);
        whole.push(without(start..reader.at, TENSOR_COUNT, count(TENSOR_COUNT)));
    }
    Material {
        bytes: file.to_vec(),
        // Scalars are listed twice because most models differ in their metadata.
        parts: vec![preamble, scalars.clone(), scalars, arrays, tensors],
        words: [
            &[0xff; 8][..],
            &[0; 8],
            b"\x80\xc3",
            b"\x08\0\0\0\0\0\0\0token_em",
        ]
        .map(<[u8]>::to_vec)
        .into(),
        whole,
    }
}

/// Replaces a string together with its length.
fn string(range: Range<usize>, text: &str) -> Edit {
    let bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    Edit::Replace { range, bytes }
}

/// Removes an entry and decrements the count.
fn without(range: Range<usize>, counted_at: usize, count: u64) -> Edit {
    let less = Edit::Write {
        at: counted_at,
        bytes: (count - 1).to_le_bytes().into(),
    };
    Edit::All(vec![Edit::Remove { range }, less])
}

/// The size in bytes of a value of fixed size.
fn width(kind: u64) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    }
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, width: usize) -> Range<usize> {
        self.at += width;
        self.at - width..self.at
    }

    fn number(&self, range: &Range<usize>) -> u64 {
        let mut wide = [0; 8];
        wide[..range.len()].copy_from_slice(&self.file[range.clone()]);
        u64::from_le_bytes(wide)
    }

    /// Returns the ranges of a string's length and its text.
    fn string(&mut self) -> [Range<usize>; 2] {
        let length = self.take(8);
        let text = self.take(self.number(&length) as usize);
        [length, text]
    }

    /// Returns the ranges of an array's type, its length, and its first and last elements.
    fn array(&mut self) -> Vec<Range<usize>> {
        let (kind, length) = (self.take(4), self.take(8));
        let (of, count) = (self.number(&kind), self.number(&length) as usize);
        let mut parts = vec![kind, length];
        for at in 0..count {
            let element = match of {
                8 => self.string().to_vec(),
                of => vec![self.take(width(of))],
            };
            if at < ELEMENTS || at + ELEMENTS >= count {
                parts.extend(element);
            }
        }
        parts
    }
}

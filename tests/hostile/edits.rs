//! Random edits of inputs (mutations).

use std::ops::Range;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The maximum number of edits per input.
pub(super) const MOST_EDITS: usize = 6;

/// The maximum length of random bytes.
const LONGEST_NOISE: usize = 16;

/// A valid input, and the edits worth trying.
#[derive(Clone, Debug, Default)]
pub(super) struct Material {
    pub(super) bytes: Vec<u8>,
    /// The ranges of its parts, in groups that are equally worth changing.
    pub(super) parts: Vec<Vec<Range<usize>>>,
    /// Texts that may be inserted anywhere.
    pub(super) words: Vec<Vec<u8>>,
    /// Edits that leave the rest consistent.
    pub(super) whole: Vec<Edit>,
}

/// One edit. Positions refer to the result of the previous edits, and wrap around at its end.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    Flip {
        at: usize,
        bit: u8,
    },
    Write {
        at: usize,
        bytes: Vec<u8>,
    },
    Insert {
        at: usize,
        bytes: Vec<u8>,
    },
    Replace {
        range: Range<usize>,
        bytes: Vec<u8>,
    },
    Remove {
        range: Range<usize>,
    },
    Copy {
        range: Range<usize>,
        to: usize,
    },
    Swap {
        first: Range<usize>,
        second: Range<usize>,
    },
    Cut {
        at: usize,
    },
    All(Vec<Edit>),
}

/// A random number generator for one seed.
fn random(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Returns the material and the edits of the input with this seed.
pub(super) fn input(materials: &[Material], seed: u64) -> (usize, Vec<Edit>) {
    let mut random = random(seed);
    let material = random.random_range(0..materials.len());
    // Most inputs have few edits: with many, the first error hides the others.
    let edits = random
        .random_range(1..=MOST_EDITS)
        .min(random.random_range(1..=MOST_EDITS));
    let edits = (0..edits).map(|_| Edit::draw(&materials[material], &mut random));
    (material, edits.collect())
}

impl Material {
    /// Creates material from a text, whose parts are its words, quoted strings and lines.
    pub(super) fn text(text: &str, words: &[&str]) -> Material {
        let mut lines = Vec::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            lines.push(at..at + line.len());
            at += line.len();
        }
        let mut tokens: Vec<Range<usize>> = Vec::new();
        for (at, c) in text.char_indices() {
            let word = |c: char| c.is_alphanumeric() || "_-.".contains(c);
            let end = at + c.len_utf8();
            match tokens.last_mut() {
                Some(last) if last.end == at && word(c) && text[last.clone()].chars().all(word) => {
                    last.end = end;
                }
                _ if c.is_whitespace() => {}
                _ => tokens.push(at..end),
            }
        }
        Material {
            bytes: text.as_bytes().to_vec(),
            parts: vec![tokens.clone(), tokens, lines],
            words: words.iter().map(|word| word.as_bytes().to_vec()).collect(),
            whole: Vec::new(),
        }
    }

    /// Chooses a part, or a few bytes anywhere.
    fn part(&self, random: &mut ChaCha8Rng) -> Range<usize> {
        let part = match random.random_ratio(7, 8) {
            true => self
                .parts
                .choose(random)
                .and_then(|group| group.choose(random)),
            false => None,
        };
        part.cloned().unwrap_or_else(|| {
            let at = random.random_range(0..self.bytes.len().max(1));
            at..at + random.random_range(1..64)
        })
    }
}

impl Edit {
    fn draw(material: &Material, random: &mut ChaCha8Rng) -> Edit {
        if !material.whole.is_empty() && random.random_ratio(1, 2) {
            let at = random.random_range(0..material.whole.len());
            return material.whole[at].clone();
        }
        let part = material.part(random);
        match random.random_range(0..12) {
            0 | 1 => Edit::Flip {
                at: random.random_range(part.start..part.end.max(part.start + 1)),
                bit: random.random_range(0..8),
            },
            2..=4 => Edit::Write {
                at: part.start,
                bytes: number(&material.bytes, &part, random),
            },
            5 => {
                let mut bytes = vec![0; random.random_range(1..=LONGEST_NOISE)];
                random.fill(&mut bytes[..]);
                Edit::Write {
                    at: part.start,
                    bytes,
                }
            }
            6 => match material.words.choose(random) {
                Some(word) => Edit::Insert {
                    at: part.start,
                    bytes: word.clone(),
                },
                None => Edit::Insert {
                    at: part.start,
                    bytes: vec![0xff],
                },
            },
            7 => match material.words.choose(random) {
                Some(word) => Edit::Replace {
                    range: part,
                    bytes: word.clone(),
                },
                None => Edit::Remove { range: part },
            },
            8 => Edit::Remove { range: part },
            9 => Edit::Copy {
                range: part,
                to: material.part(random).start,
            },
            10 => Edit::Swap {
                first: part,
                second: material.part(random),
            },
            _ => Edit::Cut { at: part.start },
        }
    }

    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let within = |range: &Range<usize>| {
            let start = range.start % len.max(1);
            start.min(len)..(start + range.len()).min(len)
        };
        match self {
            Edit::Flip { at, bit } => {
                if len > 0 {
                    bytes[at % len] ^= 1 << bit;
                }
            }
            Edit::Write { at, bytes: new } => {
                let range = within(&(*at..at + new.len()));
                bytes[range.clone()].copy_from_slice(&new[..range.len()]);
            }
            Edit::Insert { at, bytes: new } => {
                let at = at % (len + 1);
                bytes.splice(at..at, new.iter().copied());
            }
            Edit::Replace { range, bytes: new } => {
                bytes.splice(within(range), new.iter().copied());
            }
            Edit::Remove { range } => {
                bytes.drain(within(range));
            }
            Edit::Copy { range, to } => {
                let copy = bytes[within(range)].to_vec();
                let to = to % (len + 1);
                bytes.splice(to..to, copy);
            }
            Edit::Swap { first, second } => {
                let (first, second) = (within(first), within(second));
                let (first, second) = match first.start <= second.start {
                    true => (first, second),
                    false => (second, first),
                };
                if first.end <= second.start {
                    let [before, after] = [
                        bytes[first.clone()].to_vec(),
                        bytes[second.clone()].to_vec(),
                    ];
                    bytes.splice(second, before);
                    bytes.splice(first, after);
                }
            }
            Edit::Cut { at } => bytes.truncate(at % len.max(1)),
            Edit::All(edits) => edits.iter().for_each(|edit| edit.apply(bytes)),
        }
    }
}

/// Returns a number at some limit, as wide as `part`, in place of an integer, a float or the
/// digits of a text.
fn number(bytes: &[u8], part: &Range<usize>, random: &mut ChaCha8Rng) -> Vec<u8> {
    let old = bytes.get(part.clone()).unwrap_or_default();
    if !old.is_empty()
        && old
            .iter()
            .all(|byte| byte.is_ascii_digit() || *byte == b'.')
    {
        const NUMBERS: [&str; 12] = [
            "0",
            "-1",
            "1e999",
            "-0",
            "18446744073709551616",
            "9223372036854775807",
            "2147483648",
            "0.1e-400",
            "NaN",
            "4294967295",
            "1e2",
            "00",
        ];
        return NUMBERS[random.random_range(0..NUMBERS.len())]
            .as_bytes()
            .to_vec();
    }
    let mut wide = [0; 8];
    let width = if part.len() > 8 {
        [1, 2, 4, 8][random.random_range(0..4)]
    } else {
        part.len().max(1)
    };
    let known = old.len().min(width);
    wide[..known].copy_from_slice(&old[..known]);
    let old = u64::from_le_bytes(wide);
    let limits = [
        0,
        1,
        u64::MAX,
        1 << 63,
        (1 << 63) - 1,
        1 << 31,
        (1 << 31) - 1,
        u64::from(u32::MAX),
        1 << 28,
        1 << 40,
        1 << 16,
        old.wrapping_add(1),
        old.wrapping_sub(1),
        old.wrapping_mul(2),
        old / 2,
        old.wrapping_add(32),
        u64::from(random.random::<u8>()),
        f32::NAN.to_bits().into(),
        f32::INFINITY.to_bits().into(),
        f32::MIN_POSITIVE.to_bits().into(),
        f32::MAX.to_bits().into(),
        (-1.0f32).to_bits().into(),
    ];
    limits[random.random_range(0..limits.len())].to_le_bytes()[..width].to_vec()
}

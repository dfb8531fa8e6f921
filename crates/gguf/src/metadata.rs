//! The metadata (key-value pairs) of a GGUF file.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::{GgufCause, GgufError};
use super::value::{Array, Strs, Value, ValueType};
use crate::mmap::Map;

/// The metadata of a GGUF file: typed look-ups by key, and all entries in file order.
///
/// Every type has two getters: `get_x` returns `None` for an absent key, `x` is for required
/// keys. Both refuse a key that holds a value of another type, with an error that names the key
/// and the value found: a setting that is not understood must not count as an absent one.
/// A number is accepted in any GGUF type if the requested type can hold the value (an `f64` is
/// rounded to `f32`); see [`Value::integer`], [`Value::float`] and [`Value::boolean`].
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    map: Arc<Map>,
    entries: Vec<Entry>,
    by_key: HashMap<String, usize>,
}

/// One entry as parsed, with the location of its value in the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Stored,
}

/// A validated value, as a range of the file.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    Fixed(ValueType, Range<usize>),
    /// The bytes of the text, without the length prefix.
    String(Range<usize>),
    Array {
        kind: ValueType,
        count: usize,
        bytes: Range<usize>,
    },
}

impl Stored {
    pub(super) fn kind(&self) -> ValueType {
        match self {
            Stored::Fixed(kind, _) => *kind,
            Stored::String(_) => ValueType::String,
            Stored::Array { .. } => ValueType::Array,
        }
    }

    /// The encoded value, as `file` holds it after its type.
    fn encoded(&self, file: &[u8]) -> Option<Vec<u8>> {
        match self {
            Stored::Fixed(_, range) => file.get(range.clone()).map(<[u8]>::to_vec),
            Stored::String(range) => {
                let length = (range.len() as u64).to_le_bytes();
                Some([&length, file.get(range.clone())?].concat())
            }
            Stored::Array { kind, count, bytes } => {
                let (kind, count) = (kind.id().to_le_bytes(), (*count as u64).to_le_bytes());
                Some([&kind, &count[..], file.get(bytes.clone())?].concat())
            }
        }
    }

    /// Describes the value and its type in the file for an error message: `the string "abc…"`,
    /// `the integer -3 (i8)`, …
    pub(super) fn describe(&self, file: &[u8]) -> String {
        let value = self.read(file);
        let value = value.map_or_else(String::new, |value| value.describe());
        match self {
            Stored::Fixed(kind, _) => format!("{value} ({})", kind.name()),
            // The description of the value names its type already.
            Stored::String(_) | Stored::Array { .. } => value,
        }
    }

    /// Reads the value from `file`, which must be the bytes it was parsed from.
    pub(super) fn read<'a>(&self, file: &'a [u8]) -> Option<Value<'a>> {
        match self {
            Stored::Fixed(kind, range) => Value::fixed(*kind, file.get(range.clone())?),
            Stored::String(range) => std::str::from_utf8(file.get(range.clone())?)
                .ok()
                .map(Value::String),
            Stored::Array { kind, count, bytes } => Some(Value::Array(Array::new(
                *kind,
                *count,
                file.get(bytes.clone())?,
            ))),
        }
    }
}

/// Defines an optional getter and a required one.
macro_rules! getters {
    ($($(#[$doc:meta])* $optional:ident, $required:ident: $type:ty = $expected:literal, $read:expr;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// The key holds a value of another type.
            pub fn $optional(&self, key: &str) -> Result<Option<$type>, GgufError> {
                self.optional(key, $expected, $read)
            }

            #[doc = concat!("Like [`", stringify!($optional), "`](Self::", stringify!($optional), ").")]
            ///
            /// # Errors
            /// The key is missing or holds a value of another type.
            pub fn $required(&self, key: &str) -> Result<$type, GgufError> {
                self.required(key, $expected, $read)
            }
        )*
    };
}

impl Metadata {
    pub(super) fn new(
        path: PathBuf,
        map: Arc<Map>,
        entries: Vec<Entry>,
        by_key: HashMap<String, usize>,
    ) -> Metadata {
        Metadata {
            path,
            map,
            entries,
            by_key,
        }
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let entry = &self.entries[*self.by_key.get(key)?];
        entry.value.read(&self.map)
    }

    /// Whether the key is present.
    pub fn contains(&self, key: &str) -> bool {
        self.by_key.contains_key(key)
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Iterates over all entries in file order: key, type, value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, ValueType, Value<'_>)> {
        self.entries.iter().filter_map(|entry| {
            let value = entry.value.read(&self.map)?;
            Some((entry.key.as_str(), entry.value.kind(), value))
        })
    }

    /// Iterates over all entries in file order, with their values encoded as in a file.
    pub(super) fn encoded(&self) -> impl Iterator<Item = (&str, ValueType, Vec<u8>)> {
        self.entries.iter().filter_map(|entry| {
            let bytes = entry.value.encoded(&self.map)?;
            Some((entry.key.as_str(), entry.value.kind(), bytes))
        })
    }

    getters! {
        /// An integer from 0 to 2³² − 1.
        get_u32, u32: u32 = "an unsigned 32-bit integer", |value| value.integer();
        /// An integer from 0 to 2⁶⁴ − 1.
        get_u64, u64: u64 = "an unsigned integer", |value| value.integer();
        /// An integer from −2³¹ to 2³¹ − 1.
        get_i32, i32: i32 = "a 32-bit integer", |value| value.integer();
        /// A 32-bit floating-point number.
        get_f32, f32: f32 = "a 32-bit floating-point number", |value| value.float();
        /// A boolean.
        get_bool, bool: bool = "a boolean", |value| value.boolean();
        /// A string.
        get_str, str: &str = "a string", |value| value.string();
        /// An array of any type.
        get_array, array: Array<'_> = "an array", |value| value.array();
        /// An array of strings, each read from the file when it is iterated.
        get_strs, strs: Strs<'_> = "an array of strings", |value| value.array()?.strs();
        /// An array of floating-point numbers.
        get_f32s, f32s: Vec<f32> = "an array of 32-bit floating-point numbers",
            |value| value.array()?.floats();
        /// An array of integers from −2³¹ to 2³¹ − 1.
        get_i32s, i32s: Vec<i32> = "an array of 32-bit integers",
            |value| value.array()?.integers();
        /// An array of integers from 0 to 2³² − 1.
        get_u32s, u32s: Vec<u32> = "an array of unsigned 32-bit integers",
            |value| value.array()?.integers();
        /// An array of booleans.
        get_bools, bools: Vec<bool> = "an array of booleans",
            |value| value.array()?.iter().map(|value| value.boolean()).collect();
    }

    fn required<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<T, GgufError> {
        self.optional(key, expected, read)?
            .ok_or_else(|| GgufError::new(&self.path, GgufCause::MissingKey(key.to_owned())))
    }

    fn optional<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(&at) = self.by_key.get(key) else {
            return Ok(None);
        };
        let stored = &self.entries[at].value;
        match stored.read(&self.map).and_then(read) {
            Some(value) => Ok(Some(value)),
            None => Err(GgufError::new(
                &self.path,
                GgufCause::WrongType {
                    key: key.to_owned(),
                    expected,
                    found: stored.describe(&self.map),
                },
            )),
        }
    }
}

//! Metadata values of a GGUF file.

/// The type of a metadata value or of an array's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// Floating point, 32 bits.
    F32,
    /// Floating point, 64 bits.
    F64,
    /// A boolean, one byte.
    Bool,
    /// A UTF-8 string.
    String,
    /// An array; only a value's own type, never an element's.
    Array,
}

/// All types; the index of each is its id in the file.
const BY_ID: [ValueType; 13] = [
    ValueType::U8,
    ValueType::I8,
    ValueType::U16,
    ValueType::I16,
    ValueType::U32,
    ValueType::I32,
    ValueType::F32,
    ValueType::Bool,
    ValueType::String,
    ValueType::Array,
    ValueType::U64,
    ValueType::I64,
    ValueType::F64,
];

impl ValueType {
    /// Returns the type with this id in the file.
    pub(super) fn from_id(id: u32) -> Option<ValueType> {
        BY_ID.get(id as usize).copied()
    }

    /// The id of the type in the file.
    pub(super) fn id(self) -> u32 {
        let place = BY_ID.iter().position(|&kind| kind == self);
        place.expect("all types are listed") as u32
    }

    /// The size of a value in bytes, or `None` if it depends on the value.
    pub(super) fn size(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }

    /// The name in the GGUF specification, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F32 => "f32",
            ValueType::F64 => "f64",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
        }
    }
}

/// One metadata value; strings and arrays borrow from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An unsigned integer of any width; [`ValueType`] tells the width.
    Unsigned(u64),
    /// A signed integer of any width.
    Signed(i64),
    /// An `f32`.
    F32(f32),
    /// An `f64`.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    String(&'a str),
    /// An array.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// Reads a value of fixed size from exactly its bytes. Returns `None` for strings and
    /// arrays, whose size is not fixed.
    pub(super) fn fixed(kind: ValueType, bytes: &[u8]) -> Option<Value<'static>> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let bits = u64::from_le_bytes(wide);
        Some(match kind {
            ValueType::U8 | ValueType::U16 | ValueType::U32 | ValueType::U64 => {
                Value::Unsigned(bits)
            }
            ValueType::I8 => Value::Signed((bits as i8).into()),
            ValueType::I16 => Value::Signed((bits as i16).into()),
            ValueType::I32 => Value::Signed((bits as i32).into()),
            ValueType::I64 => Value::Signed(bits as i64),
            ValueType::F32 => Value::F32(f32::from_bits(bits as u32)),
            ValueType::F64 => Value::F64(f64::from_bits(bits)),
            ValueType::Bool => Value::Bool(bits != 0),
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// Returns the value as an integer if it is a whole number within the range of `T`,
    /// whatever its type in the file.
    pub fn integer<T: TryFrom<u64> + TryFrom<i64>>(&self) -> Option<T> {
        let whole = |value: f64| {
            // The bounds are powers of two, so every whole number between them can be cast.
            let fits = value.fract() == 0.0 && (-(2f64.powi(63))..2f64.powi(64)).contains(&value);
            if !fits {
                None
            } else if value < 0.0 {
                T::try_from(value as i64).ok()
            } else {
                T::try_from(value as u64).ok()
            }
        };
        match *self {
            Value::Unsigned(value) => T::try_from(value).ok(),
            Value::Signed(value) => T::try_from(value).ok(),
            Value::F32(value) => whole(value.into()),
            Value::F64(value) => whole(value),
            Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        }
    }

    /// Returns the value as an `f32` if it is a floating-point number, or an integer that an
    /// `f32` holds exactly. An `f64` is rounded to the nearest `f32`; `None` if it is out of
    /// range.
    pub fn float(&self) -> Option<f32> {
        let exact = |value: i128| {
            let float = value as f32;
            (float as i128 == value).then_some(float)
        };
        match *self {
            Value::F32(value) => Some(value),
            Value::F64(value) => {
                let rounded = value as f32;
                (rounded.is_finite() || !value.is_finite()).then_some(rounded)
            }
            Value::Unsigned(value) => exact(value.into()),
            Value::Signed(value) => exact(value.into()),
            Value::Bool(_) | Value::String(_) | Value::Array(_) => None,
        }
    }

    /// Returns the value as a boolean if it is one, or is the integer 0 or 1.
    pub fn boolean(&self) -> Option<bool> {
        match *self {
            Value::Bool(value) => Some(value),
            Value::Unsigned(0) | Value::Signed(0) => Some(false),
            Value::Unsigned(1) | Value::Signed(1) => Some(true),
            _ => None,
        }
    }

    /// Returns the value as a string if it is one.
    pub fn string(&self) -> Option<&'a str> {
        match *self {
            Value::String(value) => Some(value),
            _ => None,
        }
    }

    /// Returns the value as an array if it is one.
    pub fn array(&self) -> Option<Array<'a>> {
        match *self {
            Value::Array(value) => Some(value),
            _ => None,
        }
    }

    /// Describes the value for an error message: `the string "abc…"`, `the integer -3`, …
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Unsigned(value) => format!("the integer {value}"),
            Value::Signed(value) => format!("the integer {value}"),
            Value::F32(value) => format!("the number {value:?}"),
            Value::F64(value) => format!("the number {value:?}"),
            Value::Bool(value) => format!("the boolean {value}"),
            Value::String(value) => {
                let short: String = value.chars().take(32).collect();
                let rest = if short.len() < value.len() { "…" } else { "" };
                format!("the string \"{}{rest}\"", short.escape_debug())
            }
            Value::Array(array) => {
                format!("an array of {} {}", array.len(), array.kind().name())
            }
        }
    }
}

/// An array in the metadata: a range of the file that is decoded element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: ValueType,
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Creates an array from `bytes`, which must hold exactly `count` elements of `kind`; the
    /// parser has validated them, including that every string is UTF-8.
    pub(super) fn new(kind: ValueType, count: usize, bytes: &'a [u8]) -> Array<'a> {
        Array { kind, count, bytes }
    }

    /// The type of the elements.
    pub fn kind(&self) -> ValueType {
        self.kind
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether the array is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Iterates over the elements.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value<'a>> + use<'a> {
        Elements {
            kind: self.kind,
            left: self.count,
            bytes: self.bytes,
        }
    }

    /// Iterates over the elements as strings, if they are strings.
    pub fn strs(&self) -> Option<Strs<'a>> {
        (self.kind == ValueType::String).then_some(Strs {
            left: self.count,
            bytes: self.bytes,
        })
    }

    /// Returns the elements as integers if all of them [fit](Value::integer).
    pub fn integers<T: TryFrom<u64> + TryFrom<i64>>(&self) -> Option<Vec<T>> {
        self.iter().map(|value| value.integer()).collect()
    }

    /// Returns the elements as `f32` if all of them [can be converted](Value::float).
    pub fn floats(&self) -> Option<Vec<f32>> {
        self.iter().map(|value| value.float()).collect()
    }
}

struct Elements<'a> {
    kind: ValueType,
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        match self.kind.size() {
            Some(size) => {
                let (element, rest) = self.bytes.split_at_checked(size)?;
                self.bytes = rest;
                Value::fixed(self.kind, element)
            }
            None => next_string(&mut self.bytes).map(Value::String),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Elements<'_> {}

/// An iterator over the strings of an array.
#[derive(Clone, Debug)]
pub struct Strs<'a> {
    left: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Strs<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        self.left = self.left.checked_sub(1)?;
        next_string(&mut self.bytes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strs<'_> {}

/// Splits one string (its length in eight bytes, then its bytes) off the front.
fn next_string<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (text, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    std::str::from_utf8(text).ok()
}

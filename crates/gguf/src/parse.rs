//! Parses a GGUF file into checked ranges of it.
//!
//! Nothing in the file is trusted: each count is compared with the remaining bytes before
//! anything of its size is allocated, sums and products are checked for overflow, and a tensor
//! is listed only once its range is known to lie inside the file without overlapping another
//! tensor's.

use std::collections::HashMap;
use std::ops::Range;

use super::TensorInfo;
use super::error::GgufCause;
use super::metadata::{Entry, Stored};
use super::types::TensorType;
use super::value::ValueType;

/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// ggml's `GGUF_DEFAULT_ALIGNMENT`.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The format requires a multiple of eight; code that reads tensors in place relies on it.
const MIN_ALIGNMENT: u64 = 8;
/// The smallest size of a metadata entry in bytes: key length, type, one byte of value.
const MIN_ENTRY: u64 = 8 + 4 + 1;
/// The smallest size of a tensor description in bytes: name length, number of dimensions, type,
/// offset.
const MIN_TENSOR: u64 = 8 + 4 + 4 + 8;

/// The parsed header of a file, which does not hold the file itself.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) entries: Vec<Entry>,
    pub(super) by_key: HashMap<String, usize>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) by_name: HashMap<String, usize>,
}

/// Parses and checks everything except the contents of the tensors.
pub(super) fn parse(file: &[u8]) -> Result<Header, GgufCause> {
    let mut reader = Reader { file, at: 0 };
    let version = reader.preamble()?;
    let tensor_count = reader.u64("the tensor count")?;
    let entry_count = reader.u64("the metadata count")?;
    reader.fits(entry_count, MIN_ENTRY, || "metadata entries".to_owned())?;
    reader.fits(tensor_count, MIN_TENSOR, || "tensors".to_owned())?;

    let mut entries: Vec<Entry> = Vec::new();
    let mut by_key = HashMap::new();
    for at in 0..entry_count {
        let key = reader.string(|| format!("the name of metadata entry {at}"))?;
        let key = file_str(file, key).to_owned();
        let value = reader.value(&key)?;
        if by_key.insert(key.clone(), entries.len()).is_some() {
            return Err(GgufCause::DuplicateKey(key));
        }
        entries.push(Entry { key, value });
    }
    let alignment = alignment(file, &entries, &by_key)?;

    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut by_name = HashMap::new();
    for at in 0..tensor_count {
        let tensor = reader.tensor(at)?;
        if by_name.insert(tensor.name.clone(), tensors.len()).is_some() {
            return Err(GgufCause::DuplicateTensor(tensor.name));
        }
        tensors.push(tensor);
    }

    // A file without tensors (only a vocabulary) may end here.
    let data_start = match (reader.at as u64).checked_next_multiple_of(alignment) {
        Some(start) if start <= file.len() as u64 => start as usize,
        _ if tensors.is_empty() => file.len(),
        _ => {
            return Err(GgufCause::Truncated {
                what: "tensor data".to_owned(),
                offset: reader.at as u64,
                needed: alignment,
                len: file.len() as u64,
            });
        }
    };
    place(&mut tensors, data_start, file.len(), alignment)?;
    Ok(Header {
        version,
        entries,
        by_key,
        tensors,
        by_name,
    })
}

fn alignment(
    file: &[u8],
    entries: &[Entry],
    by_key: &HashMap<String, usize>,
) -> Result<u64, GgufCause> {
    let key = "general.alignment";
    let Some(&at) = by_key.get(key) else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let stored = &entries[at].value;
    let value = stored.read(file);
    let Some(alignment) = value.and_then(|value| value.integer::<u64>()) else {
        return Err(GgufCause::WrongType {
            key: key.to_owned(),
            expected: "an unsigned integer",
            found: stored.describe(file),
        });
    };
    if !alignment.is_power_of_two() || alignment < MIN_ALIGNMENT {
        return Err(GgufCause::Alignment(alignment));
    }
    Ok(alignment)
}

/// Converts offsets into the data section to offsets into the file, and refuses tensors that
/// are misaligned, extend past the end or overlap.
fn place(
    tensors: &mut [TensorInfo],
    data_start: usize,
    file_len: usize,
    alignment: u64,
) -> Result<(), GgufCause> {
    for tensor in tensors.iter_mut() {
        if !(tensor.offset as u64).is_multiple_of(alignment) {
            return Err(problem(
                &tensor.name,
                format!(
                    "begins at offset {}, not a multiple of the alignment {alignment}",
                    tensor.offset
                ),
            ));
        }
        let end = tensor
            .offset
            .checked_add(data_start)
            .and_then(|start| start.checked_add(tensor.len));
        match end {
            Some(end) if end <= file_len => tensor.offset += data_start,
            _ => {
                return Err(problem(
                    &tensor.name,
                    format!(
                        "reaches past the end of the file ({} bytes at offset {} of the data, which has {})",
                        tensor.len,
                        tensor.offset,
                        file_len - data_start
                    ),
                ));
            }
        }
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        if pair[0].offset + pair[0].len > pair[1].offset {
            return Err(problem(
                &pair[1].name,
                format!("overlaps tensor `{}`", pair[0].name.escape_debug()),
            ));
        }
    }
    Ok(())
}

fn problem(name: &str, problem: String) -> GgufCause {
    GgufCause::Tensor {
        name: name.to_owned(),
        problem,
    }
}

/// Returns the text of a range that [`Reader::string`] returned.
fn file_str(file: &[u8], range: Range<usize>) -> &str {
    // `string` has validated it; the fallback is never taken.
    std::str::from_utf8(&file[range]).unwrap_or_default()
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// Reads the magic bytes and the version.
    fn preamble(&mut self) -> Result<u32, GgufCause> {
        let magic = &self.file[..self.file.len().min(4)];
        if magic != b"GGUF" {
            return Err(GgufCause::NotGguf(magic.to_vec()));
        }
        self.at = 4;
        match self.u32("the version")? {
            version @ (2 | 3) => Ok(version),
            // A version in the upper half of the word means that the bytes are swapped.
            version if version & 0xffff == 0 && version != 0 => Err(GgufCause::BigEndian),
            version => Err(GgufCause::Version(version)),
        }
    }

    /// Refuses a count of items that take at least `size` bytes each if the rest of the file is
    /// too short for them.
    fn fits(&self, count: u64, size: u64, what: impl FnOnce() -> String) -> Result<(), GgufCause> {
        let left = (self.file.len() - self.at) as u64;
        match count.checked_mul(size) {
            Some(bytes) if bytes <= left => Ok(()),
            _ => Err(GgufCause::Count {
                what: what(),
                count,
                len: self.file.len() as u64,
            }),
        }
    }

    fn take(
        &mut self,
        size: u64,
        what: impl FnOnce() -> String,
    ) -> Result<Range<usize>, GgufCause> {
        let end = (self.at as u64).checked_add(size);
        match end {
            Some(end) if end <= self.file.len() as u64 => {
                let range = self.at..end as usize;
                self.at = range.end;
                Ok(range)
            }
            _ => Err(GgufCause::Truncated {
                what: what(),
                offset: self.at as u64,
                needed: size,
                len: self.file.len() as u64,
            }),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, GgufCause> {
        let range = self.take(4, || what.to_owned())?;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.file[range]);
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self, what: &str) -> Result<u64, GgufCause> {
        let range = self.take(8, || what.to_owned())?;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.file[range]);
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a string and validates that it is UTF-8; returns the range of its text.
    fn string(&mut self, what: impl Fn() -> String) -> Result<Range<usize>, GgufCause> {
        let length = self.take(8, &what)?;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.file[length]);
        let range = self.take(u64::from_le_bytes(bytes), &what)?;
        match std::str::from_utf8(&self.file[range.clone()]) {
            Ok(_) => Ok(range),
            Err(_) => Err(GgufCause::Utf8 { what: what() }),
        }
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType, GgufCause> {
        let id = self.u32("a metadata value's type")?;
        ValueType::from_id(id).ok_or_else(|| GgufCause::ValueType {
            key: key.to_owned(),
            id,
        })
    }

    fn value(&mut self, key: &str) -> Result<Stored, GgufCause> {
        let what = || format!("metadata key `{}`", key.escape_debug());
        let kind = self.value_type(key)?;
        match (kind, kind.size()) {
            (ValueType::Array, _) => self.array(key, what),
            (_, Some(size)) => {
                let range = self.take(size as u64, what)?;
                self.booleans(key, kind, &range)?;
                Ok(Stored::Fixed(kind, range))
            }
            (_, None) => Ok(Stored::String(self.string(what)?)),
        }
    }

    fn array(&mut self, key: &str, what: impl Fn() -> String) -> Result<Stored, GgufCause> {
        let kind = self.value_type(key)?;
        if kind == ValueType::Array {
            return Err(GgufCause::NestedArray(key.to_owned()));
        }
        let count = self.u64("an array's length")?;
        // A string takes at least eight bytes, for its length.
        let size = kind.size().unwrap_or(8) as u64;
        self.fits(count, size, || format!("elements for {}", what()))?;
        let start = self.at;
        if kind == ValueType::String {
            for at in 0..count {
                self.string(|| format!("element {at} of {}", what()))?;
            }
        } else {
            let range = self.take(count * size, what)?;
            self.booleans(key, kind, &range)?;
        }
        Ok(Stored::Array {
            kind,
            count: count as usize,
            bytes: start..self.at,
        })
    }

    fn booleans(&self, key: &str, kind: ValueType, range: &Range<usize>) -> Result<(), GgufCause> {
        let bytes = &self.file[range.clone()];
        if kind == ValueType::Bool && bytes.iter().any(|&byte| byte > 1) {
            return Err(GgufCause::Bool(key.to_owned()));
        }
        Ok(())
    }

    /// Reads one tensor description; its offset is still relative to the data section.
    fn tensor(&mut self, at: u64) -> Result<TensorInfo, GgufCause> {
        let name = self.string(|| format!("the name of tensor {at}"))?;
        let name = file_str(self.file, name).to_owned();
        let what = format!("the description of tensor `{}`", name.escape_debug());
        let dims = self.u32(&what)?;
        if dims > MAX_DIMS {
            return Err(problem(
                &name,
                format!("has {dims} dimensions (at most {MAX_DIMS} are possible)"),
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(self.u64(&what)?);
        }
        let id = self.u32(&what)?;
        let offset = self.u64(&what)?;
        let kind = TensorType::from_id(id).ok_or_else(|| {
            problem(
                &name,
                format!("has the unknown type {id}; a newer format, or a corrupt file"),
            )
        })?;
        let len = size_of(&name, &shape, kind)?;
        let offset = usize::try_from(offset)
            .map_err(|_| problem(&name, format!("begins at the impossible offset {offset}")))?;
        Ok(TensorInfo {
            name,
            // ggml's ne begins with the innermost dimension.
            shape: shape.iter().rev().map(|&dim| dim as usize).collect(),
            kind,
            offset,
            len,
        })
    }
}

/// The size in bytes of the tensor `name`, whose dimensions are given innermost first.
fn size_of(name: &str, dims: &[u64], kind: TensorType) -> Result<usize, GgufCause> {
    if dims.contains(&0) {
        return Err(problem(
            name,
            format!("has a dimension of 0 in its shape {dims:?}"),
        ));
    }
    let (block, bytes) = (kind.block_size() as u64, kind.type_size() as u64);
    let row = dims.first().copied().unwrap_or(1);
    if !row.is_multiple_of(block) {
        return Err(problem(
            name,
            format!(
                "has rows of {row} elements, not a multiple of the {block} in a block of {kind}"
            ),
        ));
    }
    dims.iter()
        .try_fold(1u64, |count, &dim| count.checked_mul(dim))
        .and_then(|count| (count / block).checked_mul(bytes))
        .and_then(|size| usize::try_from(size).ok())
        .filter(|&size| size <= isize::MAX as usize)
        .ok_or_else(|| {
            problem(
                name,
                format!("is impossibly large: {dims:?} elements of {kind}"),
            )
        })
}

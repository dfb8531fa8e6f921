//! Writes GGUF files, version 3.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::atomic::{Access, UNFINISHED, UnfinishedFile};
use super::metadata::Metadata;
use super::types::TensorType;
use super::value::ValueType;

/// The alignment of tensor data in a file that does not specify one.
const ALIGNMENT: u64 = 32;
/// The metadata key that specifies another alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Builds the contents of a file.
#[derive(Debug, Default)]
pub struct Writer {
    entries: Vec<NewEntry>,
    tensors: Vec<NewTensor>,
}

#[derive(Debug)]
struct NewEntry {
    key: String,
    kind: ValueType,
    /// The value, encoded as in a file.
    bytes: Vec<u8>,
}

/// The description of a tensor, which precedes the data.
#[derive(Debug)]
struct NewTensor {
    name: String,
    /// Outermost dimension first.
    shape: Vec<usize>,
    kind: TensorType,
}

impl NewTensor {
    fn len(&self) -> u64 {
        let elements: usize = self.shape.iter().product();
        (elements / self.kind.block_size() * self.kind.type_size()) as u64
    }
}

impl Writer {
    /// An empty file.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds all metadata of another file, except its tensor alignment.
    #[must_use]
    pub fn metadata(mut self, other: &Metadata) -> Writer {
        for (key, kind, bytes) in other.encoded() {
            if key != ALIGNMENT_KEY {
                self.set(key, kind, bytes);
            }
        }
        self
    }

    /// Adds a string to the metadata. This and the methods below replace the value of a key
    /// that is already present.
    #[must_use]
    pub fn text(mut self, key: &str, value: &str) -> Writer {
        let mut bytes = Vec::new();
        string(&mut bytes, value);
        self.set(key, ValueType::String, bytes);
        self
    }

    /// Adds an array of strings to the metadata.
    #[must_use]
    pub fn texts(mut self, key: &str, values: &[String]) -> Writer {
        let mut bytes = Vec::new();
        bytes.extend(ValueType::String.id().to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            string(&mut bytes, value);
        }
        self.set(key, ValueType::Array, bytes);
        self
    }

    /// Adds a floating-point number to the metadata.
    #[must_use]
    pub fn number(mut self, key: &str, value: f32) -> Writer {
        self.set(key, ValueType::F32, value.to_le_bytes().into());
        self
    }

    /// Adds an unsigned integer to the metadata.
    #[must_use]
    pub fn count(mut self, key: &str, value: u32) -> Writer {
        self.set(key, ValueType::U32, value.to_le_bytes().into());
        self
    }

    /// Adds the description of a tensor; the shape begins with the outermost dimension.
    #[must_use]
    pub fn tensor(mut self, name: &str, shape: &[usize], kind: TensorType) -> Writer {
        self.tensors.push(NewTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind,
        });
        self
    }

    /// The size of the data of all tensors in bytes.
    pub fn data_len(&self) -> u64 {
        self.tensors.iter().map(NewTensor::len).sum()
    }

    /// Writes the file at `path` atomically (see [`atomic`](super::atomic)). `data` writes the
    /// bytes of each tensor, in the order in which the tensors were added.
    ///
    /// # Errors
    /// The file cannot be written, or `data` fails.
    ///
    /// # Panics
    /// `data` writes another number of bytes for a tensor than its shape and type require.
    pub fn write<E: From<io::Error>>(
        &self,
        path: &Path,
        mut data: impl FnMut(usize, &mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = UnfinishedFile::create(path, UNFINISHED, Access::Umask)?;
        let mut out = Counted {
            out: BufWriter::new(file.file()),
            written: 0,
        };
        out.write_all(&self.header())?;
        for (index, tensor) in self.tensors.iter().enumerate() {
            pad(&mut out)?;
            let start = out.written;
            data(index, &mut out)?;
            assert_eq!(out.written - start, tensor.len(), "{}", tensor.name);
        }
        out.flush()?;
        drop(out);
        file.commit()?;
        Ok(())
    }

    /// Encodes everything before the tensor data.
    fn header(&self) -> Vec<u8> {
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            string(&mut header, &entry.key);
            header.extend(entry.kind.id().to_le_bytes());
            header.extend(&entry.bytes);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            string(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for &dimension in tensor.shape.iter().rev() {
                header.extend((dimension as u64).to_le_bytes());
            }
            header.extend(tensor.kind.id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = (offset + tensor.len()).next_multiple_of(ALIGNMENT);
        }
        header
    }

    fn set(&mut self, key: &str, kind: ValueType, bytes: Vec<u8>) {
        let entry = NewEntry {
            key: key.to_owned(),
            kind,
            bytes,
        };
        match self.entries.iter_mut().find(|entry| entry.key == key) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }
}

/// A writer that counts the bytes written.
struct Counted<W> {
    out: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn string(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

/// Pads with zeros to the next aligned offset.
fn pad(out: &mut Counted<impl Write>) -> io::Result<()> {
    let missing = out.written.next_multiple_of(ALIGNMENT) - out.written;
    io::copy(&mut io::Read::take(io::repeat(0), missing), out)?;
    Ok(())
}

//! Writing GGUF files, version 3.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::metadata::Metadata;
use super::types::TensorType;
use super::value::ValueType;

/// What tensors' data are aligned to where a file says nothing else.
const ALIGNMENT: u64 = 32;
/// Where a file says something else.
const ALIGNMENT_KEY: &str = "general.alignment";

/// Collects what a file shall hold.
#[derive(Debug, Default)]
pub struct Writer {
    entries: Vec<NewEntry>,
    tensors: Vec<NewTensor>,
}

/// A metadata entry.
#[derive(Debug)]
struct NewEntry {
    key: String,
    kind: ValueType,
    /// The value as files hold it.
    bytes: Vec<u8>,
}

/// What is said of a tensor before its data follow.
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
    /// A file with nothing in it.
    pub fn new() -> Writer {
        Writer::default()
    }

    /// Adds all metadata of another file, but for how its tensors are aligned.
    #[must_use]
    pub fn metadata(mut self, other: &Metadata) -> Writer {
        for (key, kind, bytes) in other.encoded() {
            if key != ALIGNMENT_KEY {
                self.set(key, kind, bytes);
            }
        }
        self
    }

    /// Adds a text to the metadata. A key that is there already gets the new value,
    /// here and below.
    #[must_use]
    pub fn text(mut self, key: &str, value: &str) -> Writer {
        let mut bytes = Vec::new();
        string(&mut bytes, value);
        self.set(key, ValueType::String, bytes);
        self
    }

    /// Adds a list of texts to the metadata.
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

    /// Adds a number to the metadata.
    #[must_use]
    pub fn number(mut self, key: &str, value: f32) -> Writer {
        self.set(key, ValueType::F32, value.to_le_bytes().into());
        self
    }

    /// Adds a whole number to the metadata.
    #[must_use]
    pub fn count(mut self, key: &str, value: u32) -> Writer {
        self.set(key, ValueType::U32, value.to_le_bytes().into());
        self
    }

    /// Announces a tensor; shapes begin with the outermost dimension.
    #[must_use]
    pub fn tensor(mut self, name: &str, shape: &[usize], kind: TensorType) -> Writer {
        self.tensors.push(NewTensor {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind,
        });
        self
    }

    /// Bytes of all tensors' data.
    pub fn data_len(&self) -> u64 {
        self.tensors.iter().map(NewTensor::len).sum()
    }

    /// Writes the file at `path`, all of it or nothing: `data` writes the bytes of
    /// each tensor, in the order in which they were announced.
    ///
    /// # Errors
    /// The file cannot be written, or `data` fails.
    ///
    /// # Panics
    /// A tensor's bytes are not as many as its shape and type ask for.
    pub fn write<E: From<io::Error>>(
        &self,
        path: &Path,
        mut data: impl FnMut(usize, &mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let file = tempfile::Builder::new()
            .prefix(".writing-")
            .tempfile_in(folder.unwrap_or(Path::new(".")))?;
        let mut out = Counted {
            out: BufWriter::new(file.as_file()),
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
        readable(file.as_file())?;
        // Some file systems tell only now that there is no room.
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// All that comes before the tensors' data.
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

/// Counts what is written.
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

/// Temporary files are their owner's alone; a model is for whoever the umask lets.
#[cfg(unix)]
fn readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_: &File) -> io::Result<()> {
    Ok(())
}

fn string(into: &mut Vec<u8>, text: &str) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

/// Goes on to the next aligned place.
fn pad(out: &mut Counted<impl Write>) -> io::Result<()> {
    let missing = out.written.next_multiple_of(ALIGNMENT) - out.written;
    io::copy(&mut io::Read::take(io::repeat(0), missing), out)?;
    Ok(())
}

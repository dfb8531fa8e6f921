//! Writing GGUF files, version 3.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::types::TensorType;
use super::value::ValueType;

/// What tensors' data are aligned to where a file says nothing else.
const ALIGNMENT: u64 = 32;

/// Collects what a file shall hold.
#[derive(Debug, Default)]
pub struct Writer {
    entries: Vec<u8>,
    entry_count: u64,
    tensors: Vec<NewTensor>,
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

    /// Adds a text to the metadata.
    #[must_use]
    pub fn text(mut self, key: &str, value: &str) -> Writer {
        self.entry(key, ValueType::String);
        string(&mut self.entries, value);
        self
    }

    /// Adds a number to the metadata.
    #[must_use]
    pub fn number(mut self, key: &str, value: f32) -> Writer {
        self.entry(key, ValueType::F32);
        self.entries.extend(value.to_le_bytes());
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

    /// Writes the file at `path`, all of it or nothing: `data` gives the bytes of
    /// each tensor, in the order in which they were announced.
    ///
    /// # Errors
    /// The file cannot be written.
    ///
    /// # Panics
    /// A tensor's bytes are not as many as its shape and type ask for.
    pub fn write(&self, path: &Path, mut data: impl FnMut(usize) -> Vec<u8>) -> io::Result<()> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let file = tempfile::Builder::new()
            .prefix(".writing-")
            .tempfile_in(folder.unwrap_or(Path::new(".")))?;
        let mut out = BufWriter::new(file.as_file());
        let mut at = self.write_header(&mut out)?;
        for (index, tensor) in self.tensors.iter().enumerate() {
            at += pad(&mut out, at)?;
            let bytes = data(index);
            assert_eq!(bytes.len() as u64, tensor.len(), "{}", tensor.name);
            out.write_all(&bytes)?;
            at += bytes.len() as u64;
        }
        out.flush()?;
        drop(out);
        let file = file.persist(path).map_err(|error| error.error)?;
        readable(&file)?;
        file.sync_all()
    }

    fn write_header(&self, out: &mut impl Write) -> io::Result<u64> {
        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend(self.entry_count.to_le_bytes());
        header.extend(&self.entries);
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
        out.write_all(&header)?;
        Ok(header.len() as u64)
    }

    fn entry(&mut self, key: &str, kind: ValueType) {
        self.entry_count += 1;
        string(&mut self.entries, key);
        self.entries.extend(kind.id().to_le_bytes());
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

/// Writes what is missing from `at` to the next aligned place, and says how much.
fn pad(out: &mut impl Write, at: u64) -> io::Result<u64> {
    let missing = at.next_multiple_of(ALIGNMENT) - at;
    io::copy(&mut io::Read::take(io::repeat(0), missing), out)
}

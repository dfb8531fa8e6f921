//! Sequences that had to give up their memory for a while.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::sequence::Sequence;
use crate::exec::{Executor, SwapOut};

/// A sequence whose KV is in a file that nobody else sees.
pub(super) struct Swapped {
    sequence: Sequence,
    file: File,
}

/// A sequence that cannot go on, and why.
pub(super) struct Lost {
    pub(super) sequence: Sequence,
    pub(super) why: String,
}

impl Swapped {
    /// Writes a sequence's KV to a file in `folder` and frees its memory. On an
    /// error the sequence is lost, and comes back to be told so.
    pub(super) fn out(
        sequence: Sequence,
        executor: &mut dyn Executor,
        folder: &Path,
    ) -> Result<Swapped, Box<Lost>> {
        let swapped = executor
            .swap_out(sequence.id, SwapOut::Own)
            .map_err(|error| error.to_string())
            .and_then(|bytes| write(folder, &bytes).map_err(|error| error.to_string()));
        match swapped {
            Ok(file) => Ok(Swapped { sequence, file }),
            Err(why) => Err(Box::new(Lost { sequence, why })),
        }
    }

    /// Reads the KV back. On an error the sequence is lost likewise.
    pub(super) fn back(mut self, executor: &mut dyn Executor) -> Result<Sequence, Box<Lost>> {
        let back = read(&mut self.file)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let swapped_in = executor.swap_in(self.sequence.id, &bytes);
                swapped_in.map_err(|error| error.to_string())
            });
        match back {
            Ok(()) => Ok(self.sequence),
            Err(why) => {
                let sequence = self.sequence;
                Err(Box::new(Lost { sequence, why }))
            }
        }
    }

    /// Gives up more: what the sequence shared when it was swapped out and now holds
    /// alone, or what it shares too. Returns whether there was any.
    pub(super) fn give_more(&mut self, part: SwapOut, executor: &mut dyn Executor) -> bool {
        let more = match executor.swap_out(self.sequence.id, part) {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!("a sequence cannot give up more memory: {error}");
                return false;
            }
        };
        match self.file.write_all(&more) {
            Ok(()) => !more.is_empty(),
            Err(error) => {
                // It will be told when it is to come back.
                tracing::error!("a sequence's KV is lost: {error}");
                !more.is_empty()
            }
        }
    }

    pub(super) fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }

    pub(super) fn sequence(&self) -> &Sequence {
        &self.sequence
    }
}

fn write(folder: &Path, bytes: &[u8]) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    // Without a name: it is gone when it is closed, whatever becomes of us.
    let mut file = tempfile::tempfile_in(folder)?;
    file.write_all(bytes)?;
    Ok(file)
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

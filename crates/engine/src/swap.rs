//! Preemption: swaps the KV of sequences to disk when memory runs out.
//!
//! The KV is written to a file and restored bit for bit. If the file cannot be written or read,
//! the KV is lost, and is recomputed when there is memory: the tokens of the sequence are
//! known, and recomputing them gives the same KV.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::sequence::Sequence;
use crate::exec::{ExecError, Executor, SequenceId, SwapOut};

/// The folder to which sequences are swapped out.
pub(super) struct Swap {
    folder: PathBuf,
    /// Whether the last file could be written, so that each change is logged once.
    works: bool,
}

impl Swap {
    /// Creates the folder if it does not exist, tries to write to it, and logs a warning if
    /// that fails.
    pub(super) fn new(folder: PathBuf) -> Swap {
        let tried = write(&folder, b"incant");
        let mut swap = Swap {
            folder,
            works: true,
        };
        swap.note(tried.err().map(|error| error.to_string()));
        swap
    }

    /// Swaps out the KV that a sequence shares with no other.
    pub(super) fn swap_out(
        &mut self,
        mut sequence: Sequence,
        executor: &mut dyn Executor,
    ) -> Swapped {
        sequence.is_parked = false;
        let written = executor
            .swap_out(sequence.id, SwapOut::Own)
            .map_err(|error| error.to_string())
            .and_then(|bytes| write(&self.folder, &bytes).map_err(|error| error.to_string()));
        let mut swapped = Swapped {
            sequence,
            file: None,
        };
        match written {
            Ok(file) => {
                swapped.file = Some(file);
                self.note(None);
            }
            Err(why) => {
                swapped.lose_kv(executor);
                self.note(Some(why));
            }
        }
        swapped
    }

    /// Logs why swapping fails, or that it works again.
    fn note(&mut self, failure: Option<String>) {
        let worked = std::mem::replace(&mut self.works, failure.is_none());
        let folder = self.folder.display();
        match failure {
            Some(why) if worked => tracing::warn!(
                "KV cannot be swapped out to {folder}: {why}. Where --kv-memory does not suffice, \
                 KV is computed again instead, which takes longer; see that the folder can be \
                 written to and has room"
            ),
            None if !worked => tracing::info!("KV is swapped out to {folder} again"),
            _ => {}
        }
    }
}

/// A sequence whose KV is in an anonymous file, or lost.
pub(super) struct Swapped {
    sequence: Sequence,
    /// `None` if the KV is lost.
    file: Option<File>,
}

impl Swapped {
    /// Prepares swapping in; returns the id of the executor's sequence.
    pub(super) fn prepare(
        &mut self,
        cache: &mut Cache,
        executor: &mut dyn Executor,
    ) -> Result<SequenceId, ExecError> {
        if self.file.is_none() {
            let adapter = self.sequence.adapter_id();
            let tokens = self.sequence.recoverable(executor.has_fast_precision());
            let (id, computed) = match cache.find(adapter, tokens, executor)? {
                Some(start) => (executor.fork(start.from, start.tokens)?, start.tokens),
                None => (executor.begin_with_adapter(adapter)?, 0),
            };
            self.sequence.restart(id, computed);
        }
        Ok(self.sequence.id)
    }

    /// Reverts the preparation.
    pub(super) fn revert_preparation(&mut self, executor: &mut dyn Executor) {
        if self.file.is_none() {
            self.lose_kv(executor);
        }
    }

    /// Swaps the sequence in. If its file cannot be read, the KV is lost and the sequence stays
    /// swapped out.
    pub(super) fn swap_in(mut self, executor: &mut dyn Executor) -> Result<Sequence, Box<Swapped>> {
        let Some(file) = &mut self.file else {
            return Ok(self.sequence);
        };
        let back = read(file)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                let swapped_in = executor.swap_in(self.sequence.id, &bytes);
                swapped_in.map_err(|error| error.to_string())
            });
        match back {
            Ok(()) => Ok(self.sequence),
            Err(why) => {
                tracing::warn!("KV that was swapped out is computed again: {why}");
                self.lose_kv(executor);
                Err(Box::new(self))
            }
        }
    }

    /// Swaps out more: the KV that the sequence shared when it was swapped out and now holds
    /// alone, or also KV that it shares. Returns whether there was any.
    pub(super) fn swap_out_more(&mut self, part: SwapOut, executor: &mut dyn Executor) -> bool {
        let Some(file) = &mut self.file else {
            return false;
        };
        let more = match executor.swap_out(self.sequence.id, part) {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!("a sequence cannot give up more memory: {error}");
                return false;
            }
        };
        if let Err(error) = file.write_all(&more) {
            tracing::warn!("KV cannot be swapped out, and is computed again: {error}");
            self.lose_kv(executor);
        }
        !more.is_empty()
    }

    fn lose_kv(&mut self, executor: &mut dyn Executor) {
        self.file = None;
        executor.end(self.sequence.id);
        self.sequence.restart(self.sequence.id, 0);
    }

    pub(super) fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }

    pub(super) fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    pub(super) fn into_sequence(self) -> Sequence {
        self.sequence
    }
}

fn write(folder: &Path, bytes: &[u8]) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    // The file has no name, so it disappears when it is closed, even if the process is killed.
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

//! Adapters are tried before the first request: an adapter that makes a model compute NaN or
//! infinity would fail every request.

use super::super::adapter::{AddAdapterError, Added};
use super::Worker;
use crate::exec::{AdapterId, Chunk, ExecError, Logits, Precision, Wanted};
use incant_model::lora::Lora;

/// The number of tokens an adapter is tried on.
const TRIAL_TOKENS: usize = 16;

impl Worker {
    /// Loads an adapter if a forward pass with it gives finite logits.
    pub(super) fn add_adapter(&mut self, lora: &Lora) -> Result<Added, AddAdapterError> {
        let bytes = self.executor.adapter_bytes(lora);
        let reservation = self.adapter_memory.reserve(bytes)?;
        let id = self.executor.add_adapter(lora)?;
        let tried = match self.is_finite_under(id) {
            Ok(true) => Ok(Added { id, reservation }),
            Ok(false) => Err(match lora.largest_addition() {
                Some((layer, linear)) => AddAdapterError::NotFinite(layer, linear),
                // Without any additions, the base model itself is at fault.
                None => ExecError::Unknown("numbers of the model".to_owned()).into(),
            }),
            Err(error) => Err(error.into()),
        };
        if tried.is_err() {
            self.executor.remove_adapter(id);
        }
        tried
    }

    /// Whether all logits of tokens from the whole vocabulary are finite with an adapter. Swaps
    /// out other sequences if there is too little memory.
    fn is_finite_under(&mut self, id: AdapterId) -> Result<bool, ExecError> {
        let vocab = self.executor.spec().vocab;
        let count = TRIAL_TOKENS.min(self.executor.max_tokens()).min(vocab);
        let tokens = (0..count).map(|at| (at * vocab / count) as u32);
        let tokens: Vec<u32> = tokens.collect();
        let sequence = self.executor.begin_with_adapter(Some(id))?;
        let growth = [(sequence, tokens.len())];
        while !self.free_memory(&growth, self.running.is_empty()) {
            match self.running.len().checked_sub(1) {
                Some(youngest) => self.swap_out(youngest),
                None => break,
            }
        }
        let mut logits = Logits::default();
        let chunk = Chunk {
            sequence,
            tokens: &tokens,
            wanted: Wanted::All,
            precision: Precision::Fast,
        };
        let computed = self.executor.forward_into(&[chunk], &mut logits);
        self.executor.end(sequence);
        computed?;
        let mut rows = (0..logits.rows()).map(|row| logits.row(row));
        Ok(rows.all(|row| row.iter().all(|logit| logit.is_finite())))
    }
}

//! A fake executor without a model, for scheduler tests: it stores the tokens of its sequences,
//! and the next token is a hash of all of them.

use std::sync::{Arc, Mutex};

use safetensors::SafeTensors;

use super::ledger::Ledger;
use super::{
    AdapterId, Chunk, ExecError, Executor, Footprint, KvMemory, Logits, SavedTensor, SequenceId,
    SwapOut, Wanted,
};
use incant_model::DecoderSpec;
use incant_model::lora::Lora;

const VOCAB: usize = 50;

/// The chunks of one step: the number of tokens, and which logits were wanted.
pub(crate) type Step = Vec<(usize, Wanted)>;

/// An executor whose KV holds `capacity` tokens.
#[derive(Debug)]
pub(crate) struct Fake {
    ledger: Ledger<Kv>,
    capacity: usize,
    steps: Arc<Mutex<Vec<Step>>>,
}

#[derive(Clone, Debug, Default)]
struct Kv {
    tokens: Vec<u32>,
    is_swapped_out: bool,
}

/// Returns the token that follows these tokens.
fn next(tokens: &[u32]) -> u32 {
    let hash = blake3::hash(
        &tokens
            .iter()
            .flat_map(|token| token.to_le_bytes())
            .collect::<Vec<_>>(),
    );
    u32::from(hash.as_bytes()[0]) % VOCAB as u32
}

/// Returns the greedy answer to a prompt.
pub(crate) fn answer(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        all.push(next(&all));
    }
    all.split_off(prompt.len())
}

/// Returns a prompt that shares no prefix with other seeds.
pub(crate) fn prompt(seed: usize, tokens: usize) -> Vec<u32> {
    answer(&[(seed % VOCAB) as u32, (seed / VOCAB) as u32], tokens)
}

impl Fake {
    pub(crate) fn new(capacity: usize) -> Fake {
        Fake {
            ledger: Ledger::new(),
            capacity,
            steps: Arc::default(),
        }
    }

    /// Returns the computed batches, step by step.
    pub(crate) fn steps(&self) -> Arc<Mutex<Vec<Step>>> {
        Arc::clone(&self.steps)
    }
}

impl Executor for Fake {
    fn spec(&self) -> &DecoderSpec {
        panic!("there is no model")
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn kv_format(&self) -> String {
        "fake".to_owned()
    }

    fn adapter_bytes(&self, _: &Lora) -> usize {
        0
    }

    fn add_adapter(&mut self, _lora: &Lora) -> Result<AdapterId, ExecError> {
        Err(ExecError::Memory("there are no adapters".to_owned()))
    }

    fn remove_adapter(&mut self, _adapter: AdapterId) {}

    fn begin(&mut self) -> SequenceId {
        self.ledger.add(0, Kv::default())
    }

    fn begin_with_adapter(&mut self, _adapter: Option<AdapterId>) -> Result<SequenceId, ExecError> {
        Ok(self.begin())
    }

    fn fork(&mut self, from: SequenceId, tokens: usize) -> Result<SequenceId, ExecError> {
        self.ledger.check_fork(from, tokens)?;
        let mut kv = self.ledger.sequence(from)?.kv.clone();
        kv.tokens.truncate(tokens);
        Ok(self.ledger.add(tokens, kv))
    }

    fn can_fork(&self, from: SequenceId, tokens: usize) -> bool {
        let from = self.ledger.sequence(from);
        from.is_ok_and(|from| tokens <= from.len && !from.kv.is_swapped_out)
    }

    fn truncate(&mut self, sequence: SequenceId, tokens: usize) -> Result<(), ExecError> {
        self.ledger.check_fork(sequence, tokens)?;
        if !self.can_fork(sequence, tokens) {
            return Err(ExecError::Batch("a sequence is swapped out"));
        }
        self.ledger
            .sequence_mut(sequence)?
            .kv
            .tokens
            .truncate(tokens);
        self.ledger.shorten(sequence, tokens);
        Ok(())
    }

    fn len(&self, sequence: SequenceId) -> Result<usize, ExecError> {
        Ok(self.ledger.sequence(sequence)?.len)
    }

    fn forward_into(&mut self, batch: &[Chunk<'_>], logits: &mut Logits) -> Result<(), ExecError> {
        self.ledger
            .lay_out(batch, VOCAB, false, |_, _| std::cmp::Ordering::Equal)?;
        let growth = batch
            .iter()
            .map(|chunk| (chunk.sequence, chunk.tokens.len()));
        if !self.fits(&growth.collect::<Vec<_>>()) {
            return Err(ExecError::OutOfKvMemory);
        }
        let rows = batch.iter().map(Chunk::wanted_rows).sum();
        let mut rows = logits.reset(rows, VOCAB).chunks_mut(VOCAB);
        for chunk in batch {
            let kv = &mut self.ledger.sequence_mut(chunk.sequence)?.kv;
            if kv.is_swapped_out {
                return Err(ExecError::Batch("a sequence is swapped out"));
            }
            for (at, &token) in chunk.tokens.iter().enumerate() {
                kv.tokens.push(token);
                let is_last = at + 1 == chunk.tokens.len();
                if (chunk.wanted == Wanted::All || chunk.wanted == Wanted::Last && is_last)
                    && let Some(row) = rows.next()
                {
                    row.fill(0.0);
                    row[next(&kv.tokens) as usize] = 5.0;
                }
            }
        }
        self.ledger.grow(batch);
        let step = batch.iter().map(|chunk| (chunk.tokens.len(), chunk.wanted));
        let step = step.collect();
        self.steps.lock().expect("nobody panicked").push(step);
        Ok(())
    }

    fn logits_at(&mut self, _states: &[&[f32]], _ids: &[u32]) -> Result<Vec<Vec<f32>>, ExecError> {
        Err(ExecError::Batch("there are no states"))
    }

    fn end(&mut self, sequence: SequenceId) {
        self.ledger.end(sequence);
    }

    fn kv_memory(&self) -> KvMemory {
        let held = self.ledger.sequences().filter(|one| !one.kv.is_swapped_out);
        KvMemory {
            used: held.map(|one| one.len).sum(),
            capacity: self.capacity,
        }
    }

    fn max_tokens(&self) -> usize {
        self.capacity
    }

    fn fits(&self, growth: &[(SequenceId, usize)]) -> bool {
        let needed = growth.iter().filter_map(|&(id, tokens)| {
            let one = self.ledger.sequence(id).ok()?;
            Some(tokens + if one.kv.is_swapped_out { one.len } else { 0 })
        });
        self.kv_memory().used + needed.sum::<usize>() <= self.capacity
    }

    fn trim(&mut self, _sequence: SequenceId) -> bool {
        false
    }

    fn swap_out(&mut self, sequence: SequenceId, _part: SwapOut) -> Result<Vec<u8>, ExecError> {
        let kv = &mut self.ledger.sequence_mut(sequence)?.kv;
        kv.is_swapped_out = true;
        let tokens = std::mem::take(&mut kv.tokens).into_iter();
        Ok(tokens.flat_map(u32::to_le_bytes).collect())
    }

    fn swap_in(&mut self, sequence: SequenceId, bytes: &[u8]) -> Result<(), ExecError> {
        if !self.fits(&[(sequence, 0)]) {
            return Err(ExecError::OutOfKvMemory);
        }
        let found = self.ledger.sequence_mut(sequence)?;
        let tokens = bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes);
        let tokens: Vec<u32> = tokens.collect();
        if tokens.len() != found.len {
            return Err(ExecError::Saved(
                "it is not what was swapped out".to_owned(),
            ));
        }
        found.kv = Kv {
            tokens,
            is_swapped_out: false,
        };
        Ok(())
    }

    fn save(&self, _sequence: SequenceId) -> Result<Vec<SavedTensor>, ExecError> {
        Err(ExecError::Saved("there are no tensors".to_owned()))
    }

    fn restore(
        &mut self,
        _adapter: Option<AdapterId>,
        _tokens: usize,
        _saved: &SafeTensors<'_>,
    ) -> Result<SequenceId, ExecError> {
        Err(ExecError::Saved("there are no tensors".to_owned()))
    }
}

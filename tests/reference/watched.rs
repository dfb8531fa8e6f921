//! An executor whose every result is compared with the oracle's.

use std::collections::BTreeMap;

use incant::exec::{Chunk, ExecError, Executor, Precision, SequenceId, SwapOut, Wanted};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::plain::Plain;
use super::tiny::Tiny;
use super::{Twice, precision, row_distance};
use crate::support::subjects::Subject;

/// An executor, and its inputs and results so far.
pub(crate) struct Watched {
    plain: Plain,
    pub(crate) executor: Box<dyn Executor>,
    subject: &'static Subject,
    sequences: BTreeMap<SequenceId, Course>,
    /// The swapped-out KV of sequences.
    away: BTreeMap<SequenceId, Vec<u8>>,
    compared: usize,
    error: f64,
}

/// The tokens and results of a sequence.
#[derive(Clone, Default)]
struct Course {
    tokens: Vec<u32>,
    /// The position and logits of each requested row.
    rows: Vec<(usize, Vec<f32>)>,
}

impl Watched {
    pub(crate) fn new(model: &Tiny, subject: &'static Subject) -> Watched {
        let Twice { plain, executor } = Twice::new(model, subject);
        Watched::of(plain, executor, subject)
    }

    pub(crate) fn of(
        plain: Plain,
        executor: Box<dyn Executor>,
        subject: &'static Subject,
    ) -> Watched {
        Watched {
            plain,
            executor,
            subject,
            sequences: BTreeMap::new(),
            away: BTreeMap::new(),
            compared: 0,
            error: 0.0,
        }
    }

    pub(crate) fn begin(&mut self) -> SequenceId {
        let sequence = self.executor.begin();
        self.add(sequence, Vec::new())
    }

    /// Forks a sequence, if that is possible.
    pub(crate) fn try_fork(&mut self, from: SequenceId, tokens: usize) -> Option<SequenceId> {
        let can = self.executor.can_fork(from, tokens);
        match self.executor.fork(from, tokens) {
            Ok(sequence) => {
                assert!(can);
                let tokens = self.sequences[&from].tokens[..tokens].to_vec();
                Some(self.add(sequence, tokens))
            }
            Err(error) => {
                assert!(!can, "{error}");
                None
            }
        }
    }

    /// Forks a sequence, which must be possible.
    pub(crate) fn fork(&mut self, from: SequenceId, tokens: usize) -> SequenceId {
        self.try_fork(from, tokens).expect("can be forked")
    }

    /// Forks a sequence at its end.
    pub(crate) fn fork_all(&mut self, from: SequenceId) -> SequenceId {
        self.fork(from, self.len(from))
    }

    /// Takes back the last tokens of a sequence, if that is possible.
    pub(crate) fn try_truncate(&mut self, sequence: SequenceId, tokens: usize) {
        let can = self.executor.can_fork(sequence, tokens);
        let used = self.executor.kv_memory().used;
        match self.executor.truncate(sequence, tokens) {
            Ok(()) => {
                assert!(can && self.executor.kv_memory().used <= used);
                assert_eq!(self.executor.len(sequence).expect("known"), tokens);
                let course = self.sequences.get_mut(&sequence).expect("begun");
                // The results for these tokens are compared as well.
                let expected = self.plain.logits(&course.tokens);
                let (kept, dropped) = course.rows.drain(..).partition(|(at, _)| *at < tokens);
                course.rows = kept;
                let dropped: Vec<(usize, Vec<f32>)> = dropped;
                for (position, row) in &dropped {
                    self.error = self.error.max(row_distance(row, &expected[*position]));
                }
                self.compared += dropped.len();
                course.tokens.truncate(tokens);
            }
            Err(error) => assert!(!can, "{error}"),
        }
        let longer = self.executor.truncate(sequence, self.len(sequence) + 1);
        assert!(longer.is_err(), "there are fewer tokens");
    }

    fn add(&mut self, sequence: SequenceId, tokens: Vec<u32>) -> SequenceId {
        assert_eq!(self.executor.len(sequence).expect("known"), tokens.len());
        let rows = Vec::new();
        let before = self.sequences.insert(sequence, Course { tokens, rows });
        assert!(before.is_none());
        sequence
    }

    pub(crate) fn step(&mut self, batch: &[(SequenceId, &[u32], Wanted)]) {
        let chunk = |&(sequence, tokens, wanted): &(SequenceId, _, _)| Chunk {
            sequence,
            tokens,
            wanted,
            precision: precision(tokens),
        };
        let chunks: Vec<Chunk<'_>> = batch.iter().map(chunk).collect();
        let logits = self.executor.forward(&chunks).expect("runs");
        let mut rows = (0..logits.rows()).map(|row| logits.row(row).to_vec());
        for chunk in &chunks {
            let course = self.sequences.get_mut(&chunk.sequence).expect("begun");
            course.tokens.extend(chunk.tokens);
            let end = course.tokens.len();
            assert_eq!(self.executor.len(chunk.sequence).expect("known"), end);
            for position in end - chunk.wanted_rows()..end {
                let row = rows.next().expect("a row for each that is wanted");
                course.rows.push((position, row));
            }
        }
        assert!(rows.next().is_none(), "rows that nobody wanted");
    }

    /// Runs one chunk and requests all its logits.
    pub(crate) fn feed(&mut self, sequence: SequenceId, tokens: &[u32]) {
        self.step(&[(sequence, tokens, Wanted::All)]);
    }

    /// Ends a sequence after comparing its results.
    pub(crate) fn end(&mut self, sequence: SequenceId) {
        let course = self.sequences.remove(&sequence).expect("begun");
        if !course.rows.is_empty() {
            let expected = self.plain.logits(&course.tokens);
            for (position, row) in &course.rows {
                self.error = self.error.max(row_distance(row, &expected[*position]));
            }
            self.compared += course.rows.len();
        }
        self.away.remove(&sequence);
        self.executor.end(sequence);
        let len = self.executor.len(sequence);
        assert!(matches!(len, Err(ExecError::Unknown(_))), "{len:?}");
    }

    /// Begins a sequence of `tokens`, possibly after those of another, computed in chunks of
    /// `size`.
    pub(crate) fn computed(
        &mut self,
        after: Option<SequenceId>,
        tokens: &[u32],
        size: usize,
    ) -> SequenceId {
        let sequence = match after {
            Some(after) => self.fork_all(after),
            None => self.begin(),
        };
        for chunk in tokens.chunks(size) {
            self.feed(sequence, chunk);
        }
        sequence
    }

    /// Restores a sequence a second time, from a safetensors file.
    pub(crate) fn restore(&mut self, sequence: SequenceId) -> SequenceId {
        let tokens = self.sequences[&sequence].tokens.clone();
        let saved = self.executor.save(sequence).expect("saves");
        let views = saved.iter().map(|tensor| {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
            (&tensor.name, view.expect("bytes for the shape"))
        });
        let file = safetensors::serialize(views, None).expect("serializes");
        let read = SafeTensors::deserialize(&file).expect("reads");
        let restored = self.executor.restore(None, tokens.len(), &read);
        self.add(restored.expect("restores"), tokens)
    }

    /// Swaps a sequence out, or in again.
    pub(crate) fn swap(&mut self, sequence: SequenceId) {
        let executor = self.executor.as_mut();
        if let Some(bytes) = self.away.remove(&sequence) {
            if !bytes.is_empty() {
                let cut = executor.swap_in(sequence, &bytes[..bytes.len() - 1]);
                assert!(cut.is_err(), "a byte is missing");
            }
            executor.swap_in(sequence, &bytes).expect("swaps in");
            return;
        }
        let before = executor.kv_memory().used;
        let swapped_out = executor.swap_out(sequence, SwapOut::Own);
        let bytes = swapped_out.expect("swaps out");
        if !bytes.is_empty() {
            assert!(executor.kv_memory().used < before);
            let more = executor.swap_out(sequence, SwapOut::Own);
            let more = more.expect("changes nothing");
            assert!(more.is_empty(), "it gave all that was its own");
            assert!(!executor.can_fork(sequence, 0));
            let chunk = Chunk {
                sequence,
                tokens: &[0],
                wanted: Wanted::None,
                precision: Precision::Exact,
            };
            assert!(executor.forward(&[chunk]).is_err());
        }
        self.away.insert(sequence, bytes);
    }

    /// Swaps out more of a swapped-out sequence: KV that it now holds alone, or all.
    pub(crate) fn swap_more(&mut self, sequence: SequenceId, part: SwapOut) {
        let more = self.executor.swap_out(sequence, part).expect("swaps out");
        self.away.get_mut(&sequence).expect("is away").extend(more);
    }

    /// The number of tokens of a sequence.
    pub(crate) fn len(&self, sequence: SequenceId) -> usize {
        self.sequences[&sequence].tokens.len()
    }

    pub(crate) fn sequences(&self) -> Vec<SequenceId> {
        self.sequences.keys().copied().collect()
    }

    /// The swapped-out sequences.
    pub(crate) fn absent(&self) -> Vec<SequenceId> {
        self.away.keys().copied().collect()
    }

    /// The sequences that are not swapped out.
    pub(crate) fn present(&self) -> Vec<SequenceId> {
        let mut sequences = self.sequences();
        sequences.retain(|sequence| !self.away.contains_key(sequence));
        sequences
    }

    /// Compares the remaining results; returns the number of compared rows, and the largest
    /// difference between two logits.
    pub(crate) fn result(mut self) -> (usize, f64) {
        for sequence in self.sequences() {
            self.end(sequence);
        }
        assert_eq!(
            self.executor.kv_memory().used,
            0,
            "nothing holds KV any more"
        );
        (self.compared, self.error)
    }

    /// Compares the remaining results, and fails if any differs.
    pub(crate) fn finish(self, what: &str) {
        let subject = self.subject;
        let (compared, error) = self.result();
        eprintln!("{subject}, {what}: {error:.1e}");
        assert!(compared > 0, "{subject}, {what}: no logits were compared");
        assert!(error <= subject.tolerance, "{subject}, {what}: {error:.2e}");
    }
}

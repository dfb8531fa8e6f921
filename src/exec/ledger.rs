//! What every executor keeps count of: sequences, the segments they stand on,
//! and the ids of both. How KV is held is the executor's own affair.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::{Chunk, ExecError, SegmentId, SequenceId, Wanted};

/// The segments of a chain, the outermost first.
pub(super) type Chain<S> = Vec<(SegmentId, Arc<Segment<S>>)>;

/// Running sequences with KV of type `K`, and segments with KV of type `S`.
#[derive(Debug)]
pub(super) struct Ledger<K, S> {
    sequences: HashMap<SequenceId, Sequence<K, S>>,
    segments: HashMap<SegmentId, Arc<Segment<S>>>,
    next_id: u64,
}

/// A shared, read-only stretch of tokens.
#[derive(Debug)]
pub(super) struct Segment<S> {
    /// The chain that it was made on.
    below: Vec<SegmentId>,
    /// Position of its first token.
    pub(super) start: usize,
    /// How many tokens it stands for.
    pub(super) len: usize,
    pub(super) kv: S,
}

impl<S> Segment<S> {
    /// Position after its last token.
    pub(super) fn end(&self) -> usize {
        self.start + self.len
    }
}

/// How many of a segment's tokens a layer with this window holds: whoever comes
/// after the segment sees no more.
pub(super) fn held(tokens: usize, window: Option<usize>) -> usize {
    window.map_or(tokens, |window| tokens.min(window - 1))
}

/// A running sequence: the segments it stands on and its own suffix.
#[derive(Debug)]
pub(super) struct Sequence<K, S> {
    pub(super) chain: Chain<S>,
    /// Tokens in the suffix.
    pub(super) own: usize,
    /// The suffix.
    pub(super) kv: K,
}

impl<K, S> Sequence<K, S> {
    /// Position of the suffix's first token.
    pub(super) fn start(&self) -> usize {
        self.chain.last().map_or(0, |(_, segment)| segment.end())
    }

    /// How many tokens the sequence holds in all.
    pub(super) fn len(&self) -> usize {
        self.start() + self.own
    }
}

impl<K, S> Ledger<K, S> {
    pub(super) fn new() -> Ledger<K, S> {
        Ledger {
            sequences: HashMap::new(),
            segments: HashMap::new(),
            next_id: 0,
        }
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Begins a sequence on a chain of segments.
    pub(super) fn begin(&mut self, chain: &[SegmentId], kv: K) -> Result<SequenceId, ExecError> {
        let ids = chain;
        let chain = ids
            .iter()
            .map(|id| Ok((*id, Arc::clone(self.segment(*id)?))))
            .collect::<Result<Chain<S>, ExecError>>()?;
        for (depth, (_, segment)) in chain.iter().enumerate() {
            // Elsewhere its keys would stand at the wrong positions.
            if segment.below != ids[..depth] {
                return Err(ExecError::Batch(
                    "a segment follows one that it was not made on",
                ));
            }
        }
        let id = SequenceId(self.fresh_id());
        self.sequences.insert(id, Sequence { chain, own: 0, kv });
        Ok(id)
    }

    pub(super) fn sequence(&self, id: SequenceId) -> Result<&Sequence<K, S>, ExecError> {
        self.sequences
            .get(&id)
            .ok_or_else(|| ExecError::Unknown(format!("sequence {}", id.0)))
    }

    /// A sequence that is known to be there.
    pub(super) fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence<K, S> {
        let sequence = self.sequences.get_mut(&id);
        sequence.expect("the sequence was looked up before")
    }

    /// All sequences.
    pub(super) fn sequences_mut(
        &mut self,
    ) -> impl Iterator<Item = (SequenceId, &mut Sequence<K, S>)> {
        self.sequences
            .iter_mut()
            .map(|(id, sequence)| (*id, sequence))
    }

    /// Counts the tokens of a batch whose KV was written behind the suffixes.
    pub(super) fn grow(&mut self, batch: &[Chunk<'_>]) {
        for chunk in batch {
            self.sequence_mut(chunk.sequence).own += chunk.tokens.len();
        }
    }

    /// Ends a sequence and makes its suffix a segment, with the KV that `kv` makes
    /// of the suffix's and its length. If that fails, nothing has changed.
    pub(super) fn freeze(
        &mut self,
        id: SequenceId,
        kv: impl FnOnce(&mut K, usize) -> Result<S, ExecError>,
    ) -> Result<SegmentId, ExecError> {
        if self.sequence(id)?.own == 0 {
            return Err(ExecError::Batch("an empty sequence cannot be frozen"));
        }
        let sequence = self.sequence_mut(id);
        let segment = Segment {
            below: sequence.chain.iter().map(|(id, _)| *id).collect(),
            start: sequence.start(),
            len: sequence.own,
            kv: kv(&mut sequence.kv, sequence.own)?,
        };
        self.end(id);
        Ok(self.add(segment))
    }

    pub(super) fn end(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    pub(super) fn segment(&self, id: SegmentId) -> Result<&Arc<Segment<S>>, ExecError> {
        self.segments
            .get(&id)
            .ok_or_else(|| ExecError::Unknown(format!("segment {}", id.0)))
    }

    /// A segment that can be saved: one that begins at position 0.
    pub(super) fn first_segment(&self, id: SegmentId) -> Result<&Segment<S>, ExecError> {
        let segment = self.segment(id)?;
        if segment.start > 0 {
            return Err(ExecError::Batch(
                "only a segment that begins at position 0 can be saved",
            ));
        }
        Ok(segment)
    }

    /// Adds a segment that begins at position 0.
    pub(super) fn add_first(&mut self, tokens: usize, kv: S) -> SegmentId {
        self.add(Segment {
            below: Vec::new(),
            start: 0,
            len: tokens,
            kv,
        })
    }

    fn add(&mut self, segment: Segment<S>) -> SegmentId {
        let id = SegmentId(self.fresh_id());
        self.segments.insert(id, Arc::new(segment));
        id
    }

    pub(super) fn release(&mut self, segment: SegmentId) {
        self.segments.remove(&segment);
    }

    /// Lays out a batch. With `prompts_apart`, rows of chunks of one token come
    /// before all others.
    ///
    /// # Errors
    /// An unknown sequence, one that occurs twice, an empty chunk, or a token
    /// that is not in the vocabulary.
    pub(super) fn lay_out(
        &self,
        batch: &[Chunk<'_>],
        vocab: usize,
        prompts_apart: bool,
    ) -> Result<Rows<S>, ExecError> {
        let mut members = Vec::with_capacity(batch.len());
        let mut seen = HashSet::new();
        for chunk in batch {
            let sequence = self.sequence(chunk.sequence)?;
            if !seen.insert(chunk.sequence) {
                return Err(ExecError::Batch("a sequence occurs twice"));
            }
            if chunk.tokens.is_empty() {
                return Err(ExecError::Batch("a chunk holds no token"));
            }
            if chunk.tokens.iter().any(|&token| token as usize >= vocab) {
                return Err(ExecError::Batch("a token is not in the vocabulary"));
            }
            members.push((sequence, chunk));
        }
        if members.is_empty() {
            return Err(ExecError::Batch("it is empty"));
        }
        let is_prompt = |index: usize| prompts_apart && members[index].1.tokens.len() > 1;
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by(|&a, &b| {
            let ids = |index: usize| members[index].0.chain.iter().map(|(id, _)| *id);
            let prompts = is_prompt(a).cmp(&is_prompt(b));
            prompts.then_with(|| ids(a).cmp(ids(b)))
        });

        let mut rows = Rows {
            tokens: Vec::new(),
            positions: Vec::new(),
            wanted: Vec::new(),
            prompts: 0,
            runs: Vec::with_capacity(members.len()),
        };
        let mut first_rows = vec![0; members.len()];
        for &index in &order {
            let (sequence, chunk) = members[index];
            let first = rows.tokens.len();
            first_rows[index] = first;
            rows.tokens.extend_from_slice(chunk.tokens);
            let positions = sequence.len()..sequence.len() + chunk.tokens.len();
            rows.positions.extend(positions);
            rows.runs.push(Run {
                sequence: chunk.sequence,
                rows: first..rows.tokens.len(),
                start: sequence.start(),
                own: sequence.own,
                chain: sequence.chain.clone(),
            });
            if !is_prompt(index) {
                rows.prompts = rows.tokens.len();
            }
        }
        for (chunk, &first) in batch.iter().zip(&first_rows) {
            let of_chunk = first..first + chunk.tokens.len();
            match chunk.wanted {
                Wanted::None => {}
                Wanted::Last => rows.wanted.push(of_chunk.end - 1),
                Wanted::All => rows.wanted.extend(of_chunk),
            }
        }
        Ok(rows)
    }
}

/// The rows of a batch, one per token.
#[derive(Debug)]
pub(super) struct Rows<S> {
    /// Their tokens. Rows stand in the order of their chains, so that all rows
    /// that share a segment stand together.
    pub(super) tokens: Vec<u32>,
    /// Their positions.
    pub(super) positions: Vec<usize>,
    /// Rows whose logits are wanted, in the batch's own order.
    pub(super) wanted: Vec<usize>,
    /// The first row of a prompt, where those are laid out apart.
    pub(super) prompts: usize,
    /// Each chunk, in row order.
    pub(super) runs: Vec<Run<S>>,
}

/// One chunk's rows.
#[derive(Debug)]
pub(super) struct Run<S> {
    pub(super) sequence: SequenceId,
    pub(super) rows: Range<usize>,
    /// Position of the suffix's first token.
    pub(super) start: usize,
    /// Tokens of the suffix before these.
    pub(super) own: usize,
    pub(super) chain: Chain<S>,
}

/// Some runs that stand together, by what is next in their chains.
pub(super) enum Branch<'a, S> {
    /// All of these stand on the segment.
    Shared(&'a Arc<Segment<S>>, Range<usize>),
    /// The chain of this one is at its end.
    Own(usize),
}

impl<S> Rows<S> {
    /// Divides some runs by the segment at `depth` of their chains.
    pub(super) fn branches(
        &self,
        runs: Range<usize>,
        depth: usize,
    ) -> impl Iterator<Item = Branch<'_, S>> {
        let mut next = runs.start;
        std::iter::from_fn(move || {
            let first = next;
            if first == runs.end {
                return None;
            }
            let Some((id, segment)) = self.runs[first].chain.get(depth) else {
                next += 1;
                return Some(Branch::Own(first));
            };
            let same = |run: usize| {
                let at_depth = self.runs[run].chain.get(depth);
                at_depth.is_some_and(|(other, _)| other == id)
            };
            let end = (first..runs.end).find(|&run| !same(run));
            next = end.unwrap_or(runs.end);
            Some(Branch::Shared(segment, first..next))
        })
    }

    /// The rows of some runs that stand together.
    pub(super) fn of_runs(&self, runs: &Range<usize>) -> Range<usize> {
        self.runs[runs.start].rows.start..self.runs[runs.end - 1].rows.end
    }
}

//! An executor whose every answer is held against the oracle's.

use std::collections::BTreeMap;

use incant::exec::{Chunk, Executor, SegmentId, SequenceId, Wanted};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use super::plain::Plain;
use super::tiny::Tiny;
use super::{Twice, row_distance};
use crate::support::subjects::Subject;

/// An executor, and what it has been told and has answered so far.
pub(crate) struct Watched {
    plain: Plain,
    pub(crate) executor: Box<dyn Executor>,
    subject: &'static Subject,
    sequences: BTreeMap<SequenceId, Course>,
    segments: BTreeMap<SegmentId, Stretch>,
    /// The position after each segment there ever was.
    ends: BTreeMap<SegmentId, usize>,
    compared: usize,
    error: f64,
}

/// What a sequence has seen and said.
#[derive(Clone, Default)]
struct Course {
    chain: Vec<SegmentId>,
    /// Its segments' tokens included.
    tokens: Vec<u32>,
    /// Position and logits of each row that was asked for.
    rows: Vec<(usize, Vec<f32>)>,
}

/// A segment's tokens after those of the segments before it.
#[derive(Clone)]
struct Stretch {
    chain: Vec<SegmentId>,
    tokens: Vec<u32>,
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
            segments: BTreeMap::new(),
            ends: BTreeMap::new(),
            compared: 0,
            error: 0.0,
        }
    }

    /// Begins a sequence on `segment` and those before it.
    pub(crate) fn begin(&mut self, segment: Option<SegmentId>) -> SequenceId {
        let below = segment.map(|segment| &self.segments[&segment]);
        let mut chain = below.map_or(Vec::new(), |below| below.chain.clone());
        chain.extend(segment);
        let tokens = below.map_or(Vec::new(), |below| below.tokens.clone());
        let sequence = self.executor.begin(&chain).expect("begins");
        let rows = Vec::new();
        let course = Course {
            chain,
            tokens,
            rows,
        };
        assert!(self.sequences.insert(sequence, course).is_none());
        sequence
    }

    /// Runs a batch.
    pub(crate) fn step(&mut self, batch: &[(SequenceId, &[u32], Wanted)]) {
        let chunk = |&(sequence, tokens, wanted): &(SequenceId, _, _)| Chunk {
            sequence,
            tokens,
            wanted,
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

    /// Runs one chunk and wants all its logits.
    pub(crate) fn feed(&mut self, sequence: SequenceId, tokens: &[u32]) {
        self.step(&[(sequence, tokens, Wanted::All)]);
    }

    /// Ends a sequence after comparing what it said.
    pub(crate) fn end(&mut self, sequence: SequenceId) {
        self.settle(sequence);
        self.executor.end(sequence);
    }

    /// Makes a sequence a segment after comparing what it said.
    pub(crate) fn freeze(&mut self, sequence: SequenceId) -> SegmentId {
        let Course { chain, tokens, .. } = self.settle(sequence);
        let segment = self.executor.freeze(sequence).expect("freezes");
        self.ends.insert(segment, tokens.len());
        self.segments.insert(segment, Stretch { chain, tokens });
        segment
    }

    /// A segment of `tokens`, computed in chunks of `size`, after those below.
    pub(crate) fn segment(
        &mut self,
        below: Option<SegmentId>,
        tokens: &[u32],
        size: usize,
    ) -> SegmentId {
        let sequence = self.begin(below);
        for chunk in tokens.chunks(size) {
            self.feed(sequence, chunk);
        }
        self.freeze(sequence)
    }

    /// The same segment again, by way of a safetensors file.
    pub(crate) fn restore(&mut self, segment: SegmentId) -> SegmentId {
        let stretch = self.segments[&segment].clone();
        let saved = self.executor.save(segment).expect("saves");
        let views = saved.iter().map(|tensor| {
            let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes);
            (&tensor.name, view.expect("bytes for the shape"))
        });
        let file = safetensors::serialize(views, None).expect("serializes");
        let read = SafeTensors::deserialize(&file).expect("reads");
        let restored = self.executor.restore(stretch.tokens.len(), &read);
        let restored = restored.expect("restores");
        self.ends.insert(restored, stretch.tokens.len());
        self.segments.insert(restored, stretch);
        restored
    }

    /// Forgets a segment.
    pub(crate) fn release(&mut self, segment: SegmentId) {
        assert!(self.segments.remove(&segment).is_some());
        self.executor.release(segment);
        assert!(self.executor.begin(&[segment]).is_err());
    }

    /// How many tokens a running sequence holds.
    pub(crate) fn len(&self, sequence: SequenceId) -> usize {
        self.sequences[&sequence].tokens.len()
    }

    /// Whether a running sequence holds tokens beyond its segments'.
    pub(crate) fn has_own_tokens(&self, sequence: SequenceId) -> bool {
        let course = &self.sequences[&sequence];
        let below = course.chain.last();
        course.tokens.len() > below.map_or(0, |below| self.ends[below])
    }

    /// The running sequences.
    pub(crate) fn sequences(&self) -> Vec<SequenceId> {
        self.sequences.keys().copied().collect()
    }

    /// The segments that a sequence can stand on.
    pub(crate) fn segments(&self) -> Vec<SegmentId> {
        let known = |id: &SegmentId| self.segments.contains_key(id);
        let whole = self
            .segments
            .iter()
            .filter(|(_, s)| s.chain.iter().all(known));
        whole.map(|(&id, _)| id).collect()
    }

    /// Whether a segment begins at position 0.
    pub(crate) fn is_first(&self, segment: SegmentId) -> bool {
        self.segments[&segment].chain.is_empty()
    }

    fn settle(&mut self, sequence: SequenceId) -> Course {
        let course = self.sequences.remove(&sequence).expect("begun");
        if !course.rows.is_empty() {
            let expected = self.plain.logits(&course.tokens);
            for (position, row) in &course.rows {
                self.error = self.error.max(row_distance(row, &expected[*position]));
            }
            self.compared += course.rows.len();
        }
        course
    }

    /// Compares what is left; returns how many rows were compared, and the
    /// largest difference between two logits.
    pub(crate) fn result(mut self) -> (usize, f64) {
        for sequence in self.sequences() {
            self.end(sequence);
        }
        (self.compared, self.error)
    }

    /// Compares what is left, and fails where anything differed.
    pub(crate) fn finish(self, what: &str) {
        let subject = self.subject;
        let (compared, error) = self.result();
        eprintln!("{subject}, {what}: {error:.1e}");
        assert!(compared > 0, "{subject}, {what}: no logits were compared");
        assert!(error <= subject.tolerance, "{subject}, {what}: {error:.2e}");
    }
}

//! How a batch is laid out: which rows belong to which sequence, and what each
//! row attends to. Made once per forward pass; every layer uses the same.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::cache::{Segment, Sequence, held};
use crate::exec::{Chunk, ExecError, SegmentId, SequenceId, Wanted};
use crate::kernels::attention::{BLOCK, CHUNK};
use crate::model::DecoderSpec;

/// A batch, laid out.
#[derive(Debug)]
pub(super) struct Plan {
    /// The rows' tokens. Rows stand in the order of their chains, so that all
    /// rows that share a segment stand together.
    pub(super) tokens: Vec<u32>,
    /// The rows' positions.
    pub(super) positions: Vec<usize>,
    /// Rows whose logits are wanted, in the batch's own order.
    pub(super) wanted: Vec<usize>,
    /// The first row of a prompt: a chunk of more than one token. Rows that
    /// decode come before it if they are computed otherwise.
    pub(super) prompts: usize,
    /// Each chunk, in row order.
    pub(super) runs: Vec<Run>,
    /// The runs' rows, cut where a block of their suffix ends.
    pub(super) spans: Vec<Span>,
    /// What rows attend to, per kind of window.
    pub(super) views: HashMap<Option<usize>, View>,
    /// Cosines and sines per rope of the spec: `[row][pair]`.
    pub(super) angles: Vec<(Vec<f32>, Vec<f32>)>,
}

/// One chunk's rows.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) sequence: SequenceId,
    pub(super) rows: Range<usize>,
    /// Position of the suffix's first token.
    pub(super) start: usize,
}

/// Rows of one run whose keys go into the same block.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) run: usize,
    pub(super) rows: Range<usize>,
    /// The block, counted within the suffix.
    pub(super) block: usize,
    /// Place of the first row's token in the block.
    pub(super) place: usize,
}

/// Where keys are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Segment(Arc<Segment>),
    /// The suffix of a run, its new tokens included.
    Own(usize),
}

/// What the rows of a batch attend to in layers with the same window.
#[derive(Debug)]
pub(super) struct View {
    pub(super) window: Option<usize>,
    /// In the order in which a row's results are merged.
    pub(super) pieces: Vec<Piece>,
    /// The largest number of pieces that a row has.
    pub(super) slots: usize,
    /// How many pieces each row has.
    pub(super) slots_of: Vec<usize>,
}

/// A chunk of keys and all rows that may see some of it.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) source: Source,
    pub(super) rows: Range<usize>,
    /// Position of the source's first key.
    pub(super) base: usize,
    /// Keys, counted from `base`.
    pub(super) keys: Range<usize>,
    /// How many pieces these rows have before this one.
    pub(super) slot: usize,
}

impl View {
    /// The keys that a row at `position` sees of a piece, counted from its base.
    pub(super) fn visible(&self, piece: &Piece, position: usize) -> Range<u32> {
        let first = self
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        let within = |at: usize| {
            let at = at.saturating_sub(piece.base);
            at.clamp(piece.keys.start, piece.keys.end) as u32
        };
        within(first)..within(position + 1)
    }
}

impl Plan {
    /// Lays out `batch`.
    ///
    /// # Errors
    /// An unknown sequence, one that occurs twice, an empty chunk, or a token
    /// that is not in the vocabulary.
    pub(super) fn new(
        batch: &[Chunk<'_>],
        sequences: &HashMap<SequenceId, Sequence>,
        spec: &DecoderSpec,
        frequencies: &[Vec<f32>],
        prompts_apart: bool,
    ) -> Result<Plan, ExecError> {
        let mut members = Vec::with_capacity(batch.len());
        let mut seen = HashSet::new();
        for chunk in batch {
            let sequence = sequences
                .get(&chunk.sequence)
                .ok_or_else(|| ExecError::Unknown(format!("sequence {}", chunk.sequence.0)))?;
            if !seen.insert(chunk.sequence) {
                return Err(ExecError::Batch("a sequence occurs twice"));
            }
            if chunk.tokens.is_empty() {
                return Err(ExecError::Batch("a chunk holds no token"));
            }
            let known = |&token: &u32| (token as usize) < spec.vocab;
            if !chunk.tokens.iter().all(known) {
                return Err(ExecError::Batch("a token is not in the vocabulary"));
            }
            members.push((sequence, chunk));
        }
        if members.is_empty() {
            return Err(ExecError::Batch("it is empty"));
        }
        let mut order: Vec<usize> = (0..members.len()).collect();
        let is_prompt = |index: usize| prompts_apart && members[index].1.tokens.len() > 1;
        order.sort_by(|&a, &b| {
            let ids = |index: usize| members[index].0.chain.iter().map(|(id, _)| *id);
            let prompts = is_prompt(a).cmp(&is_prompt(b));
            prompts.then_with(|| ids(a).cmp(ids(b)))
        });

        let mut plan = Plan {
            tokens: Vec::new(),
            positions: Vec::new(),
            prompts: 0,
            wanted: Vec::new(),
            runs: Vec::with_capacity(members.len()),
            spans: Vec::new(),
            views: HashMap::new(),
            angles: Vec::new(),
        };
        let mut first_rows = vec![0; members.len()];
        for &index in &order {
            let (sequence, chunk) = members[index];
            first_rows[index] = plan.tokens.len();
            plan.append(sequence, chunk);
            if !is_prompt(index) {
                plan.prompts = plan.tokens.len();
            }
        }
        for (chunk, &first) in batch.iter().zip(&first_rows) {
            let rows = first..first + chunk.tokens.len();
            match chunk.wanted {
                Wanted::None => {}
                Wanted::Last => plan.wanted.push(rows.end - 1),
                Wanted::All => plan.wanted.extend(rows),
            }
        }
        let chains: Vec<&[(SegmentId, Arc<Segment>)]> = order
            .iter()
            .map(|&index| members[index].0.chain.as_slice())
            .collect();
        for layer in &spec.layers {
            if !plan.views.contains_key(&layer.window) {
                let view = plan.view(&chains, layer.window);
                plan.views.insert(layer.window, view);
            }
        }
        plan.angles = frequencies.iter().map(|of| plan.angles(of)).collect();
        Ok(plan)
    }

    /// How many rows there are.
    pub(super) fn rows(&self) -> usize {
        self.tokens.len()
    }

    fn append(&mut self, sequence: &Sequence, chunk: &Chunk<'_>) {
        let run = self.runs.len();
        let first = self.tokens.len();
        self.tokens.extend_from_slice(chunk.tokens);
        let rows = first..self.tokens.len();
        self.positions
            .extend(sequence.len()..sequence.len() + rows.len());
        let mut row = rows.start;
        while row < rows.end {
            let token = sequence.own + row - rows.start;
            let place = token % BLOCK;
            let end = rows.end.min(row + BLOCK - place);
            self.spans.push(Span {
                run,
                rows: row..end,
                block: token / BLOCK,
                place,
            });
            row = end;
        }
        self.runs.push(Run {
            sequence: chunk.sequence,
            rows,
            start: sequence.start(),
        });
    }

    fn angles(&self, frequencies: &[f32]) -> (Vec<f32>, Vec<f32>) {
        // In f64: at position 30,000 an f32 angle is off by a thousandth.
        let angles = self.positions.iter().flat_map(|&position| {
            frequencies
                .iter()
                .map(move |&frequency| position as f64 * f64::from(frequency))
        });
        angles
            .map(|angle| (angle.cos() as f32, angle.sin() as f32))
            .unzip()
    }

    fn view(&self, chains: &[&[(SegmentId, Arc<Segment>)]], window: Option<usize>) -> View {
        let mut view = View {
            window,
            pieces: Vec::new(),
            slots: 0,
            slots_of: vec![0; self.rows()],
        };
        self.pieces(&mut view, chains, 0..chains.len(), 0);
        view.slots = view.slots_of.iter().copied().max().unwrap_or(0);
        view
    }

    /// Appends what the given runs attend to from depth `depth` of their chains
    /// on.
    fn pieces(
        &self,
        view: &mut View,
        chains: &[&[(SegmentId, Arc<Segment>)]],
        runs: Range<usize>,
        depth: usize,
    ) {
        let mut next = runs.start;
        while next < runs.end {
            let Some((id, segment)) = chains[next].get(depth) else {
                let run = &self.runs[next];
                let end = self.positions[run.rows.end - 1] + 1;
                self.chunks(view, Source::Own(next), run.rows.clone(), run.start..end);
                next += 1;
                continue;
            };
            let same = |run: &usize| {
                chains[*run]
                    .get(depth)
                    .is_some_and(|(other, _)| other == id)
            };
            let end = (next..runs.end).find(|run| !same(run)).unwrap_or(runs.end);
            let rows = self.runs[next].rows.start..self.runs[end - 1].rows.end;
            let base = segment.end() - held(segment.len, view.window);
            let source = Source::Segment(Arc::clone(segment));
            self.chunks(view, source, rows, base..segment.end());
            self.pieces(view, chains, next..end, depth + 1);
            next = end;
        }
    }

    /// Appends those chunks of a stretch that some of the rows see.
    fn chunks(&self, view: &mut View, source: Source, rows: Range<usize>, stretch: Range<usize>) {
        let len = stretch.len();
        for start in (0..len).step_by(CHUNK) {
            let piece = Piece {
                source: source.clone(),
                rows: rows.clone(),
                base: stretch.start,
                keys: start..len.min(start + CHUNK),
                slot: view.slots_of[rows.start],
            };
            let sees = |row: usize| !view.visible(&piece, self.positions[row]).is_empty();
            if rows.clone().any(sees) {
                view.pieces.push(piece);
                view.slots_of[rows.clone()]
                    .iter_mut()
                    .for_each(|slots| *slots += 1);
            }
        }
    }
}

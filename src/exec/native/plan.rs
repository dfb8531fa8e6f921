//! How a batch is laid out: which rows belong to which sequence, and what each
//! row attends to. Made once per forward pass; every layer uses the same.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::cache::Frozen;
use crate::exec::ledger::{Branch, Rows, Segment, held};
use crate::kernels::attention::{BLOCK, CHUNK};
use crate::model::DecoderSpec;

/// A batch, laid out.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rows: Rows<Frozen>,
    /// The runs' rows, cut where a block of their suffix ends.
    pub(super) spans: Vec<Span>,
    /// What rows attend to, per kind of window.
    pub(super) views: HashMap<Option<usize>, View>,
    /// Cosines and sines per rope of the spec: `[row][pair]`.
    pub(super) angles: Vec<(Vec<f32>, Vec<f32>)>,
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
    Segment(Arc<Segment<Frozen>>),
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
    /// Plans a batch that was laid out, for ropes of these frequencies.
    pub(super) fn new(rows: Rows<Frozen>, spec: &DecoderSpec, frequencies: &[Vec<f32>]) -> Plan {
        let mut views = HashMap::new();
        for layer in &spec.layers {
            views
                .entry(layer.window)
                .or_insert_with_key(|window| View::new(&rows, *window));
        }
        let angles = frequencies.iter().map(|of| angles(&rows.positions, of));
        Plan {
            spans: spans(&rows),
            views,
            angles: angles.collect(),
            rows,
        }
    }

    /// How many rows there are.
    pub(super) fn count(&self) -> usize {
        self.rows.tokens.len()
    }
}

fn spans(rows: &Rows<Frozen>) -> Vec<Span> {
    let mut spans = Vec::new();
    for (run, of_run) in rows.runs.iter().enumerate() {
        let Range { start, end } = of_run.rows;
        let mut row = start;
        while row < end {
            let token = of_run.own + row - start;
            let place = token % BLOCK;
            let last = end.min(row + BLOCK - place);
            spans.push(Span {
                run,
                rows: row..last,
                block: token / BLOCK,
                place,
            });
            row = last;
        }
    }
    spans
}

fn angles(positions: &[usize], frequencies: &[f32]) -> (Vec<f32>, Vec<f32>) {
    // In f64: at position 30,000 an f32 angle is off by a thousandth.
    let angles = positions.iter().flat_map(|&position| {
        frequencies
            .iter()
            .map(move |&frequency| position as f64 * f64::from(frequency))
    });
    angles
        .map(|angle| (angle.cos() as f32, angle.sin() as f32))
        .unzip()
}

impl View {
    fn new(rows: &Rows<Frozen>, window: Option<usize>) -> View {
        let mut view = View {
            window,
            pieces: Vec::new(),
            slots: 0,
            slots_of: vec![0; rows.tokens.len()],
        };
        view.add_pieces(rows, 0..rows.runs.len(), 0);
        view.slots = view.slots_of.iter().copied().max().unwrap_or(0);
        view
    }

    /// Adds what the given runs attend to from depth `depth` of their chains on.
    fn add_pieces(&mut self, rows: &Rows<Frozen>, runs: Range<usize>, depth: usize) {
        for branch in rows.branches(runs, depth) {
            match branch {
                Branch::Own(run) => {
                    let of_run = &rows.runs[run];
                    let end = rows.positions[of_run.rows.end - 1] + 1;
                    let keys = of_run.start..end;
                    self.add_chunks(rows, Source::Own(run), of_run.rows.clone(), keys);
                }
                Branch::Shared(segment, runs) => {
                    let base = segment.end() - held(segment.len, self.window);
                    let source = Source::Segment(Arc::clone(segment));
                    self.add_chunks(rows, source, rows.of_runs(&runs), base..segment.end());
                    self.add_pieces(rows, runs, depth + 1);
                }
            }
        }
    }

    /// Adds those chunks of a stretch of keys that some of the rows see.
    fn add_chunks(
        &mut self,
        all: &Rows<Frozen>,
        source: Source,
        rows: Range<usize>,
        stretch: Range<usize>,
    ) {
        let len = stretch.len();
        for start in (0..len).step_by(CHUNK) {
            let piece = Piece {
                source: source.clone(),
                rows: rows.clone(),
                base: stretch.start,
                keys: start..len.min(start + CHUNK),
                slot: self.slots_of[rows.start],
            };
            let sees = |row: usize| !self.visible(&piece, all.positions[row]).is_empty();
            if rows.clone().any(sees) {
                self.pieces.push(piece);
                let slots = &mut self.slots_of[rows.clone()];
                slots.iter_mut().for_each(|slots| *slots += 1);
            }
        }
    }
}

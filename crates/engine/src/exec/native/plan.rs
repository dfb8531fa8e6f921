//! The layout of a batch: which rows belong to which sequence, and which keys each row attends
//! to. Computed once per forward pass and used by every layer.

use std::ops::Range;

use super::cache::{Kv, Table};
use super::layout::Layout;
use super::pages::PagePool;
use crate::exec::ledger::{Rows, Run};
use incant_kernels::attention::{CHUNK, TOKENS_PER_BLOCK};
use incant_model::Rotation;

/// Blocks per chunk.
pub(super) const BLOCKS_PER_CHUNK: usize = CHUNK / TOKENS_PER_BLOCK;

/// The layout of a batch.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) rows: Rows,
    /// The rows of the runs, split at block boundaries.
    pub(super) spans: Vec<Span>,
    /// The offset of each span's page in memory: `[span][group]`.
    pub(super) pages: Vec<usize>,
    /// The keys that rows attend to, by group of layers.
    pub(super) views: Vec<View>,
    /// The cosines and sines for each RoPE of the spec: `[row][pair]`.
    pub(super) angles: Vec<(Vec<f32>, Vec<f32>)>,
}

/// Rows of one run whose keys are written to the same block.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) rows: Range<usize>,
    /// The index of the first row's token in the block.
    pub(super) first_token: usize,
}

/// The keys that the rows of a batch attend to in layers with the same window.
#[derive(Debug)]
pub(super) struct View {
    window: Option<usize>,
    /// In the order in which the partial results of a row are merged.
    pub(super) pieces: Vec<Piece>,
    /// The number of partial results: each piece has one for each of its rows.
    pub(super) partials: usize,
    /// The partial results of each row, in order: row `row` has those from `firsts[row]` to
    /// `firsts[row + 1]`.
    of_rows: Vec<usize>,
    firsts: Vec<usize>,
}

/// A chunk of positions, and the rows that have the same pages there.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) rows: Range<usize>,
    /// The first position of the chunk.
    base: usize,
    /// The offsets of the pages in memory, for the blocks that some row sees.
    pub(super) pages: [usize; BLOCKS_PER_CHUNK],
    /// The blocks that some row sees.
    pub(super) blocks: Range<usize>,
    /// The number of the first row's partial result.
    pub(super) first: usize,
}

impl Piece {
    /// Adds the rows of the next run, which sees these pages of the chunk, if the pages that
    /// both see are the same.
    fn join(
        &mut self,
        run: &Run,
        pages: &[usize; BLOCKS_PER_CHUNK],
        blocks: &Range<usize>,
    ) -> bool {
        let common = self.blocks.start.max(blocks.start)..self.blocks.end.min(blocks.end);
        let joins = self.rows.end == run.rows.start
            // Without common blocks there may be a gap: blocks without a page.
            && common.start < common.end
            && self.pages[common.clone()] == pages[common];
        if joins {
            self.rows.end = run.rows.end;
            self.pages[blocks.clone()].copy_from_slice(&pages[blocks.clone()]);
            self.blocks = self.blocks.start.min(blocks.start)..self.blocks.end.max(blocks.end);
        }
        joins
    }
}

impl View {
    /// Returns the keys of a piece that a row at `position` sees, counted from the first of the
    /// piece.
    pub(super) fn visible(&self, piece: &Piece, position: usize) -> Range<u32> {
        let within = |at: usize| at.saturating_sub(piece.base).min(CHUNK) as u32;
        within(self.first_seen(position))..within(position + 1)
    }

    /// Returns the numbers of a row's partial results, in the order in which they are merged.
    pub(super) fn of_row(&self, row: usize) -> &[usize] {
        &self.of_rows[self.firsts[row]..self.firsts[row + 1]]
    }

    fn first_seen(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

impl Plan {
    /// Plans a laid-out batch, given the KV of its runs' sequences and the RoPEs.
    pub(super) fn new(
        rows: Rows,
        kv: &[&Kv],
        pool: &PagePool,
        layout: &Layout,
        rotations: &[Rotation],
    ) -> Plan {
        let views = layout.groups.iter().enumerate().map(|(index, group)| {
            let tables: Vec<&Table> = kv.iter().map(|kv| &kv.tables[index]).collect();
            View::new(&rows, group.window, |run, block| {
                pool.range(index, tables[run].page(block)).start
            })
        });
        let views = views.collect();
        let (mut spans, mut pages) = (Vec::new(), Vec::new());
        for (run, kv) in rows.runs.iter().zip(kv) {
            let mut row = run.rows.start;
            while row < run.rows.end {
                let token = run.start + row - run.rows.start;
                let first_token = token % TOKENS_PER_BLOCK;
                let end = run.rows.end.min(row + TOKENS_PER_BLOCK - first_token);
                spans.push(Span {
                    rows: row..end,
                    first_token,
                });
                let tables = kv.tables.iter().enumerate();
                pages.extend(tables.map(|(group, table)| {
                    pool.range(group, table.page(token / TOKENS_PER_BLOCK))
                        .start
                }));
                row = end;
            }
        }
        let angles = rotations.iter().map(|of| of.angles(&rows.positions));
        Plan {
            spans,
            pages,
            views,
            angles: angles.collect(),
            rows,
        }
    }

    /// The number of rows.
    pub(super) fn count(&self) -> usize {
        self.rows.tokens.len()
    }
}

impl View {
    /// Computes the view through a window, given a function `page` that returns the offset of
    /// the page of a run's block.
    fn new(rows: &Rows, window: Option<usize>, page: impl Fn(usize, usize) -> usize) -> View {
        let mut view = View {
            window,
            pieces: Vec::new(),
            partials: 0,
            of_rows: Vec::new(),
            firsts: Vec::new(),
        };
        let seen: Vec<Range<usize>> = rows
            .runs
            .iter()
            .map(|run| view.first_seen(run.start)..run.end())
            .collect();
        let first = seen.iter().map(|seen| seen.start).min().unwrap_or(0);
        let end = seen.iter().map(|seen| seen.end).max().unwrap_or(0);
        for base in (first - first % CHUNK..end).step_by(CHUNK) {
            for (index, (run, seen)) in rows.runs.iter().zip(&seen).enumerate() {
                let seen = seen.start.max(base)..seen.end.min(base + CHUNK);
                if !seen.is_empty() {
                    let blocks = (seen.start - base) / TOKENS_PER_BLOCK
                        ..(seen.end - base).div_ceil(TOKENS_PER_BLOCK);
                    let mut pages = [0; BLOCKS_PER_CHUNK];
                    for block in blocks.clone() {
                        pages[block] = page(index, base / TOKENS_PER_BLOCK + block);
                    }
                    view.add(run, base, pages, blocks);
                }
            }
        }
        for piece in &mut view.pieces {
            piece.first = view.partials;
            view.partials += piece.rows.len();
        }
        view.number_by_row(rows.tokens.len());
        view
    }

    fn add(
        &mut self,
        run: &Run,
        base: usize,
        pages: [usize; BLOCKS_PER_CHUNK],
        blocks: Range<usize>,
    ) {
        if let Some(last) = self.pieces.last_mut()
            && last.base == base
            && last.join(run, &pages, &blocks)
        {
            return;
        }
        self.pieces.push(Piece {
            rows: run.rows.clone(),
            base,
            pages,
            blocks,
            first: 0,
        });
    }

    /// Computes which partial results belong to each row.
    fn number_by_row(&mut self, rows: usize) {
        let mut firsts = vec![0; rows + 1];
        for piece in &self.pieces {
            for row in piece.rows.clone() {
                firsts[row + 1] += 1;
            }
        }
        for row in 0..rows {
            firsts[row + 1] += firsts[row];
        }
        let mut next = firsts.clone();
        let mut of_rows = vec![0; self.partials];
        for piece in &self.pieces {
            for row in piece.rows.clone() {
                of_rows[next[row]] = piece.first + row - piece.rows.start;
                next[row] += 1;
            }
        }
        (self.of_rows, self.firsts) = (of_rows, firsts);
    }
}

#[cfg(test)]
mod tests {
    use super::{BLOCKS_PER_CHUNK, Rows, Run, View};
    use crate::exec::SequenceId;

    /// Computes the view of one row for each of some sequences, whose tokens are in pages of
    /// these numbers.
    fn view(tables: &[Vec<usize>], lens: &[usize], window: Option<usize>) -> View {
        let runs = lens.iter().enumerate().map(|(row, len)| Run {
            sequence: SequenceId(row as u64),
            rows: row..row + 1,
            start: len - 1,
        });
        let rows = Rows {
            tokens: vec![0; lens.len()],
            positions: lens.iter().map(|len| len - 1).collect(),
            wanted: Vec::new(),
            states: Vec::new(),
            fast: lens.len(),
            runs: runs.collect(),
        };
        View::new(&rows, window, |run, block| tables[run][block])
    }

    #[test]
    fn sequences_that_share_pages_go_over_them_together() {
        // The sequences share two chunks and differ in the third.
        let shared: Vec<usize> = (0..2 * BLOCKS_PER_CHUNK).collect();
        let own = |page| shared.iter().copied().chain([page]).collect();
        let tables: Vec<Vec<usize>> = vec![own(100), own(101), own(102)];
        let view = view(&tables, &[258, 265, 270], None);
        let rows: Vec<_> = view.pieces.iter().map(|piece| piece.rows.clone()).collect();
        assert_eq!(rows, [0..3, 0..3, 0..1, 1..2, 2..3]);
        assert_eq!(view.partials, 9);
        for row in 0..3 {
            let numbers = view.of_row(row);
            assert_eq!(numbers, [row, 3 + row, 6 + row]);
        }
    }

    #[test]
    fn a_window_hides_whole_pieces_and_leaves_no_hole() {
        // The first row is far ahead of the second: they see disjoint parts of the first chunk.
        let tables: Vec<Vec<usize>> = vec![(0..40).collect(), (0..40).collect()];
        let view = view(&tables, &[160, 20], Some(50));
        let first: Vec<_> = view
            .pieces
            .iter()
            .map(|piece| piece.blocks.clone())
            .collect();
        assert_eq!(first, [6..8, 0..2, 0..2]);
        let seen = |piece: usize, position| view.visible(&view.pieces[piece], position);
        assert_eq!(seen(0, 159), 110..128);
        assert_eq!(seen(1, 19), 0..20);
        assert_eq!(seen(2, 159), 0..32);
    }

    #[test]
    fn a_shorter_sequence_joins_where_it_has_the_same_pages() {
        let tables: Vec<Vec<usize>> = vec![(0..4).collect(), (0..4).collect()];
        let view = view(&tables, &[64, 20], None);
        assert_eq!(view.pieces.len(), 1);
        assert_eq!(view.pieces[0].blocks, 0..4);
        assert_eq!(view.visible(&view.pieces[0], 19), 0..20);
    }
}

//! The layout of a batch: which rows belong to which sequence, which sequences share a segment,
//! and which keys each row may see. Computed once per forward pass and used by every layer.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::adapters::Adapter;
use super::cache::{Kv, Link, Segment};
use super::ops::Angles;
use crate::exec::ledger::{Rows, Run};
use incant_model::DecoderSpec;

/// The layout of a batch.
pub(super) struct Plan {
    pub(super) rows: Rows,
    /// The rows that have adapters.
    pub(super) adapted: Vec<(Range<usize>, Arc<Adapter>)>,
    /// The suffix of each run's sequence.
    pub(super) own: Vec<Own>,
    /// The keys that the rows attend to: covers all rows, in order.
    pub(super) nodes: Vec<Node>,
    /// The cosines and sines for each RoPE of the spec.
    pub(super) angles: Vec<Angles>,
    /// The factor of each row's queries, `[rows, 1]`.
    pub(super) query_scales: Tensor,
}

pub(super) struct Own {
    /// The position of its first token.
    pub(super) start: usize,
    /// The number of tokens it holds before those of the run.
    pub(super) tokens: usize,
    /// The keys of the suffix that the run sees.
    pub(super) views: Views,
}

/// A node of the tree of shared segments.
pub(super) enum Node {
    /// A segment and all rows that attend to it.
    Shared {
        segment: Arc<Segment>,
        rows: Range<usize>,
        /// The position after the last key that any row sees.
        end: usize,
        views: Views,
        /// The keys that these rows attend to after the segment.
        beyond: Vec<Node>,
    },
    /// The suffix of run number `.0`.
    Own(usize),
}

/// A row, relative to a range of keys.
#[derive(Clone, Copy)]
struct Row {
    position: usize,
    /// The position after the last key of the range that belongs to the row.
    end: usize,
}

/// The part of a range of keys that a set of rows sees, for each window size.
pub(super) struct Views(HashMap<Option<usize>, View>);

impl Views {
    fn new(
        spec: &DecoderSpec,
        rows: &[Row],
        keys: &Range<usize>,
        device: &Device,
    ) -> candle_core::Result<Views> {
        let windows: HashSet<Option<usize>> = spec.layers.iter().map(|l| l.window).collect();
        windows
            .into_iter()
            .map(|window| Ok((window, View::new(window, rows, keys, device)?)))
            .collect::<candle_core::Result<_>>()
            .map(Views)
    }

    /// Returns the view of a layer with this window.
    pub(super) fn of(&self, window: Option<usize>) -> &View {
        // There is a view for every window of the spec.
        &self.0[&window]
    }
}

/// The part of a range of keys that a set of rows sees.
pub(super) struct View {
    /// The position of the first key that any row sees. At or after the end of the range, no
    /// row sees any key.
    pub(super) from: usize,
    /// `[rows, keys from `from` on]`, 0 where visible; `None` if every row sees every key.
    pub(super) mask: Option<Tensor>,
}

/// Replaces −∞ in masks: finite, so that a row that sees no key of a range gets weights that
/// become 0, not NaN, when they are merged with its other parts.
const MASKED: f32 = -1e30;

impl View {
    fn new(
        window: Option<usize>,
        rows: &[Row],
        keys: &Range<usize>,
        device: &Device,
    ) -> candle_core::Result<View> {
        let sees = |row: &Row| -> Range<usize> {
            let first = window.map_or(0, |window| (row.position + 1).saturating_sub(window));
            first..row.end.min(row.position + 1)
        };
        let from = rows.iter().map(|row| sees(row).start).min();
        let from = from.unwrap_or(keys.start).max(keys.start);
        let all = rows.iter().all(|row| {
            let seen = sees(row);
            seen.start <= from && keys.end <= seen.end
        });
        if all || from >= keys.end {
            return Ok(View { from, mask: None });
        }
        let mask: Vec<f32> = rows
            .iter()
            .flat_map(|row| {
                let seen = sees(row);
                (from..keys.end).map(move |key| if seen.contains(&key) { 0.0 } else { MASKED })
            })
            .collect();
        let shape = (rows.len(), keys.end - from);
        Ok(View {
            from,
            mask: Some(Tensor::from_vec(mask, shape, device)?),
        })
    }
}

impl Plan {
    /// Plans a laid-out batch, given the KV of its runs' sequences.
    pub(super) fn new(
        rows: Rows,
        kv: &[&Kv],
        spec: &DecoderSpec,
        device: &Device,
    ) -> candle_core::Result<Plan> {
        let own = rows.runs.iter().zip(kv).map(|(run, kv)| {
            let start = kv.start();
            let seen = see(&rows, run, run.end());
            Ok(Own {
                start,
                tokens: run.start - start,
                views: Views::new(spec, &seen, &(start..run.end()), device)?,
            })
        });
        let own = own.collect::<candle_core::Result<_>>()?;
        let tree = Tree {
            rows: &rows,
            kv,
            spec,
            device,
        };
        let nodes = tree.nodes(0..rows.runs.len(), 0)?;
        let angles = spec
            .ropes
            .iter()
            .map(|rope| {
                let rotation = rope.rotation(spec.served_context);
                Angles::new(&rotation, &rows.positions, device)
            })
            .collect::<candle_core::Result<_>>()?;
        let adapted = rows.runs.iter().zip(kv);
        let adapted = adapted
            .filter_map(|(run, kv)| Some((run.rows.clone(), kv.adapter.clone()?)))
            .collect();
        let positions = rows.positions.iter();
        let scales: Vec<f32> = positions.map(|&p| spec.query_scale(p)).collect();
        let count = scales.len();
        Ok(Plan {
            adapted,
            own,
            nodes,
            angles,
            query_scales: Tensor::from_vec(scales, (count, 1), device)?,
            rows,
        })
    }
}

/// The rows of a run, relative to keys that belong to the run up to `end`.
fn see(rows: &Rows, run: &Run, end: usize) -> Vec<Row> {
    let positions = rows.positions[run.rows.clone()].iter();
    positions.map(|&position| Row { position, end }).collect()
}

/// The inputs for finding shared segments.
struct Tree<'a> {
    rows: &'a Rows,
    kv: &'a [&'a Kv],
    spec: &'a DecoderSpec,
    device: &'a Device,
}

impl Tree<'_> {
    fn link(&self, run: usize, depth: usize) -> Option<&Link> {
        self.kv[run].chain.get(depth)
    }

    /// Returns the nodes that some runs attend to, from depth `depth` of their chains on.
    fn nodes(&self, runs: Range<usize>, depth: usize) -> candle_core::Result<Vec<Node>> {
        let mut nodes = Vec::new();
        let mut first = runs.start;
        while first < runs.end {
            let Some(link) = self.link(first, depth) else {
                nodes.push(Node::Own(first));
                first += 1;
                continue;
            };
            let id = link.segment.id;
            let same = |run: usize| self.link(run, depth).is_some_and(|l| l.segment.id == id);
            let end = (first..runs.end).find(|&run| !same(run));
            let sharing = first..end.unwrap_or(runs.end);
            first = sharing.end;
            nodes.push(self.shared(&link.segment, sharing, depth)?);
        }
        Ok(nodes)
    }

    /// Returns the node of a segment that all of these runs have at `depth`.
    fn shared(
        &self,
        segment: &Arc<Segment>,
        runs: Range<usize>,
        depth: usize,
    ) -> candle_core::Result<Node> {
        let mut seen = Vec::new();
        for run in runs.clone() {
            let end = self.link(run, depth).map_or(0, Link::end);
            seen.extend(see(self.rows, &self.rows.runs[run], end));
        }
        let end = seen.iter().map(|row| row.end).max().unwrap_or(0);
        let of_runs = &self.rows.runs[runs.clone()];
        Ok(Node::Shared {
            segment: Arc::clone(segment),
            rows: of_runs[0].rows.start..of_runs[of_runs.len() - 1].rows.end,
            end,
            views: Views::new(self.spec, &seen, &(segment.start..end), self.device)?,
            beyond: self.nodes(runs, depth + 1)?,
        })
    }
}

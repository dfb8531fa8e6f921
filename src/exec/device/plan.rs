//! How a batch is laid out: which rows belong to which sequence, who shares
//! which segment, and what each row may see. Made once per forward pass; every
//! layer uses the same.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::cache::Frozen;
use super::ops::Angles;
use crate::exec::ledger::{Branch, Rows, Segment};
use crate::model::DecoderSpec;

/// A batch, laid out.
pub(super) struct Plan {
    pub(super) rows: Rows<Frozen>,
    /// What each run sees of its sequence's suffix.
    pub(super) own: Vec<Views>,
    /// What the rows attend to: covers all of them, in order.
    pub(super) nodes: Vec<Node>,
    /// Cosines and sines per rope of the spec.
    pub(super) angles: Vec<Angles>,
}

/// A part of the tree of shared segments.
pub(super) enum Node {
    /// A segment and all rows that stand on it.
    Shared {
        segment: Arc<Segment<Frozen>>,
        rows: Range<usize>,
        views: Views,
        /// What these rows attend to beyond the segment.
        beyond: Vec<Node>,
    },
    /// The suffix of run number `.0`.
    Own(usize),
}

/// What a set of rows sees of a stretch of keys, per kind of window.
pub(super) struct Views(HashMap<Option<usize>, View>);

impl Views {
    fn new(
        spec: &DecoderSpec,
        positions: &[usize],
        keys: &Range<usize>,
        device: &Device,
    ) -> candle_core::Result<Views> {
        let windows: HashSet<Option<usize>> = spec.layers.iter().map(|l| l.window).collect();
        windows
            .into_iter()
            .map(|window| Ok((window, View::new(window, positions, keys, device)?)))
            .collect::<candle_core::Result<_>>()
            .map(Views)
    }

    /// The view of a layer with this window.
    pub(super) fn of(&self, window: Option<usize>) -> &View {
        // Made for every window of the spec.
        &self.0[&window]
    }
}

/// What a set of rows sees of a stretch of keys.
pub(super) struct View {
    /// Position of the first key that any row sees. At or past the stretch's
    /// end: none sees anything.
    pub(super) from: usize,
    /// `[rows, keys from `from` on]`, 0 where visible; absent where every row
    /// sees every key.
    pub(super) mask: Option<Tensor>,
}

/// Stands for −∞ in masks: finite, so that a row that sees nothing of a
/// stretch gets weights that the merge with its other parts makes 0, not NaN.
const HIDDEN: f32 = -1e30;

impl View {
    fn new(
        window: Option<usize>,
        positions: &[usize],
        keys: &Range<usize>,
        device: &Device,
    ) -> candle_core::Result<View> {
        let sees = |position: usize| -> Range<usize> {
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            first..position + 1
        };
        let from = positions
            .iter()
            .map(|&position| sees(position).start)
            .min()
            .unwrap_or(keys.start)
            .max(keys.start);
        let all = positions.iter().all(|&position| {
            let seen = sees(position);
            seen.start <= from && keys.end <= seen.end
        });
        if all || from >= keys.end {
            return Ok(View { from, mask: None });
        }
        let mask: Vec<f32> = positions
            .iter()
            .flat_map(|&position| {
                let seen = sees(position);
                (from..keys.end).map(move |key| if seen.contains(&key) { 0.0 } else { HIDDEN })
            })
            .collect();
        let shape = (positions.len(), keys.end - from);
        Ok(View {
            from,
            mask: Some(Tensor::from_vec(mask, shape, device)?),
        })
    }
}

impl Plan {
    /// Plans a batch that was laid out.
    pub(super) fn new(
        rows: Rows<Frozen>,
        spec: &DecoderSpec,
        device: &Device,
    ) -> candle_core::Result<Plan> {
        let views = |of: &Range<usize>, keys: Range<usize>| {
            Views::new(spec, &rows.positions[of.clone()], &keys, device)
        };
        let own = rows
            .runs
            .iter()
            .map(|run| views(&run.rows, run.start..rows.positions[run.rows.end - 1] + 1))
            .collect::<candle_core::Result<_>>()?;
        let nodes = nodes(&rows, &views, 0..rows.runs.len(), 0)?;
        let angles = spec
            .ropes
            .iter()
            .map(|rope| Angles::new(rope, &rows.positions, device))
            .collect::<candle_core::Result<_>>()?;
        Ok(Plan {
            own,
            nodes,
            angles,
            rows,
        })
    }
}

/// What some runs attend to from depth `depth` of their chains on.
fn nodes(
    rows: &Rows<Frozen>,
    views: &impl Fn(&Range<usize>, Range<usize>) -> candle_core::Result<Views>,
    runs: Range<usize>,
    depth: usize,
) -> candle_core::Result<Vec<Node>> {
    rows.branches(runs, depth)
        .map(|branch| match branch {
            Branch::Own(run) => Ok(Node::Own(run)),
            Branch::Shared(segment, runs) => {
                let of_runs = rows.of_runs(&runs);
                Ok(Node::Shared {
                    segment: Arc::clone(segment),
                    views: views(&of_runs, segment.start..segment.end())?,
                    rows: of_runs,
                    beyond: nodes(rows, views, runs, depth + 1)?,
                })
            }
        })
        .collect()
}

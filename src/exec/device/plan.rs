//! How a batch is laid out: which rows belong to which sequence, who shares
//! which segment, and what each row may see. Made once per forward pass; every
//! layer uses the same.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::cache::{Segment, Sequence};
use super::ops::Angles;
use crate::exec::{Chunk, ExecError, SequenceId, Wanted};
use crate::model::DecoderSpec;

/// A batch, laid out.
pub(super) struct Plan {
    /// The rows' tokens. Rows stand in the order of their chains, so that all
    /// rows that share a segment stand together.
    pub(super) tokens: Vec<u32>,
    /// Rows whose logits are wanted, in the batch's own order.
    pub(super) wanted: Vec<u32>,
    /// Each chunk, in row order.
    pub(super) runs: Vec<Run>,
    /// What the rows attend to: covers all of them, in order.
    pub(super) nodes: Vec<Node>,
    /// Cosines and sines per rope of the spec.
    pub(super) angles: Vec<Angles>,
}

/// One chunk's rows.
pub(super) struct Run {
    pub(super) sequence: SequenceId,
    pub(super) rows: Range<usize>,
    /// What its rows see of the sequence's suffix, per window of the spec.
    pub(super) views: Views,
}

/// A part of the tree of shared segments.
pub(super) enum Node {
    /// A segment and all rows that stand on it.
    Shared {
        segment: Arc<Segment>,
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
        positions: &[u32],
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
        positions: &[u32],
        keys: &Range<usize>,
        device: &Device,
    ) -> candle_core::Result<View> {
        let sees = |position: u32| -> Range<usize> {
            let position = position as usize;
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
    /// Lays out `batch`.
    ///
    /// # Errors
    /// An unknown sequence, one that occurs twice, an empty chunk, or a token
    /// that is not in the vocabulary.
    pub(super) fn new(
        batch: &[Chunk<'_>],
        sequences: &HashMap<SequenceId, Sequence>,
        spec: &DecoderSpec,
        device: &Device,
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
            if chunk
                .tokens
                .iter()
                .any(|&token| token as usize >= spec.vocab)
            {
                return Err(ExecError::Batch("a token is not in the vocabulary"));
            }
            members.push((sequence, chunk));
        }
        if members.is_empty() {
            return Err(ExecError::Batch("it is empty"));
        }
        let mut order: Vec<usize> = (0..members.len()).collect();
        order.sort_by(|&a, &b| {
            let ids = |index: usize| members[index].0.chain.iter().map(|(id, _)| *id);
            ids(a).cmp(ids(b))
        });

        let mut tokens = Vec::new();
        let mut positions: Vec<u32> = Vec::new();
        let mut runs = Vec::with_capacity(members.len());
        let mut first_rows = vec![0; members.len()];
        for &index in &order {
            let (sequence, chunk) = members[index];
            let first = tokens.len();
            first_rows[index] = first;
            tokens.extend_from_slice(chunk.tokens);
            let (start, end) = (sequence.len(), sequence.len() + chunk.tokens.len());
            positions.extend(start as u32..end as u32);
            runs.push(Run {
                sequence: chunk.sequence,
                rows: first..tokens.len(),
                views: Views::new(spec, &positions[first..], &(sequence.start()..end), device)?,
            });
        }
        let mut wanted = Vec::new();
        for (chunk, &first) in batch.iter().zip(&first_rows) {
            let rows = first as u32..(first + chunk.tokens.len()) as u32;
            match chunk.wanted {
                Wanted::None => {}
                Wanted::Last => wanted.push(rows.end - 1),
                Wanted::All => wanted.extend(rows),
            }
        }
        let chains: Vec<&[_]> = order
            .iter()
            .map(|&index| members[index].0.chain.as_slice())
            .collect();
        let tree = Tree {
            spec,
            device,
            positions: &positions,
            runs: &runs,
            chains: &chains,
        };
        let nodes = tree.nodes(0..runs.len(), 0)?;
        let angles = spec
            .ropes
            .iter()
            .map(|rope| Angles::new(rope, &positions, device))
            .collect::<Result<_, _>>()?;
        Ok(Plan {
            tokens,
            wanted,
            runs,
            nodes,
            angles,
        })
    }
}

/// What the tree of segments is made from.
struct Tree<'a> {
    spec: &'a DecoderSpec,
    device: &'a Device,
    positions: &'a [u32],
    runs: &'a [Run],
    /// Each run's chain of segments.
    chains: &'a [&'a [(crate::exec::SegmentId, Arc<Segment>)]],
}

impl Tree<'_> {
    /// What the given runs attend to from depth `depth` of their chains on.
    fn nodes(&self, runs: Range<usize>, depth: usize) -> candle_core::Result<Vec<Node>> {
        let mut nodes = Vec::new();
        let mut next = runs.start;
        while next < runs.end {
            let Some((id, segment)) = self.chains[next].get(depth) else {
                nodes.push(Node::Own(next));
                next += 1;
                continue;
            };
            let same = |run: &usize| self.chains[*run].get(depth).is_some_and(|(i, _)| i == id);
            let members = next..(next..runs.end).take_while(same).last().unwrap_or(next) + 1;
            let rows = self.runs[members.start].rows.start..self.runs[members.end - 1].rows.end;
            let positions = &self.positions[rows.clone()];
            let keys = segment.start..segment.end();
            nodes.push(Node::Shared {
                segment: Arc::clone(segment),
                rows,
                views: Views::new(self.spec, positions, &keys, self.device)?,
                beyond: self.nodes(members.clone(), depth + 1)?,
            });
            next = members.end;
        }
        Ok(nodes)
    }
}

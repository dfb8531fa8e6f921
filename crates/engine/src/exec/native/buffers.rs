//! Memory that forward passes work in.

use std::ops::Range;

use incant_kernels::{Activations, BLOCK, Isa, LANES};
use incant_model::DecoderSpec;

/// Memory that forward passes use again and again. It only grows.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The residual stream, `[row][hidden]`.
    pub(super) x: Vec<f32>,
    /// What is to be added to it.
    pub(super) added: Vec<f32>,
    /// Queries, keys and values as projected, `[row][heads…]`.
    pub(super) projected: Vec<f32>,
    /// Queries, ready to be used: `[kv_head][row][head of the group][head_dim]`.
    pub(super) queries: Vec<f32>,
    /// Partial results of attention: `[kv_head][result][head of the group]`.
    pub(super) maxima: Vec<f32>,
    pub(super) sums: Vec<f32>,
    pub(super) values: Vec<f32>,
    /// What stands between the two products of adapters, `[row][width]`.
    pub(super) low: Vec<f32>,
    /// What the down projection takes, as adapters take it.
    pub(super) inner_row: Vec<f32>,
    /// What the projections and the feed-forward part take.
    pub(super) normed: Activations,
    /// What attention's output projection takes.
    pub(super) attended: Activations,
    /// What the down projection takes.
    pub(super) inner: Activations,
    /// Each thread's own.
    pub(super) scratch: Vec<Scratch>,
}

/// What one thread works in.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) panel: Vec<[f32; LANES]>,
    pub(super) other_panel: Vec<[f32; LANES]>,
    pub(super) block: Vec<[f32; BLOCK]>,
    pub(super) row: Vec<f32>,
    pub(super) maxima: Vec<f32>,
    pub(super) sums: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) visible: Vec<Range<u32>>,
}

impl Buffers {
    pub(super) fn new(isa: Isa, threads: usize) -> Buffers {
        Buffers {
            x: Vec::new(),
            added: Vec::new(),
            projected: Vec::new(),
            queries: Vec::new(),
            maxima: Vec::new(),
            sums: Vec::new(),
            values: Vec::new(),
            low: Vec::new(),
            inner_row: Vec::new(),
            normed: Activations::new(isa),
            attended: Activations::new(isa),
            inner: Activations::new(isa),
            scratch: (0..threads).map(|_| Scratch::default()).collect(),
        }
    }

    /// `low` is the width of what stands between the products of adapters; 0 if none
    /// is there.
    pub(super) fn grow(&mut self, spec: &DecoderSpec, rows: usize, partials: usize, low: usize) {
        let (heads, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        grow(&mut self.x, rows * spec.hidden);
        grow(&mut self.added, rows * spec.hidden);
        grow(&mut self.projected, rows * (heads + 2 * kv));
        grow(&mut self.queries, rows * heads);
        grow(&mut self.maxima, partials * spec.heads);
        grow(&mut self.sums, partials * spec.heads);
        grow(&mut self.values, partials * heads);
        grow(&mut self.low, rows * low);
        if low > 0 {
            grow(&mut self.inner_row, rows * spec.feed_forward);
        }
        for scratch in &mut self.scratch {
            if scratch.panel.len() < rows {
                scratch.panel.resize(rows, [0.0; LANES]);
                scratch.other_panel.resize(rows, [0.0; LANES]);
                scratch.block.resize(rows, [0.0; BLOCK]);
            }
            grow(&mut scratch.row, spec.hidden.max(heads));
        }
    }
}

/// Longer if need be, never shorter.
pub(super) fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

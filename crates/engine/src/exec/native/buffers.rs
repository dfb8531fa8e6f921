//! Working memory of forward passes.

use std::ops::Range;

use incant_kernels::{Activations, COLUMNS_PER_BLOCK, Isa, LANES};
use incant_model::DecoderSpec;

/// Buffers that all forward passes reuse. They only grow.
#[derive(Debug)]
pub(super) struct Buffers {
    /// The residual stream, `[row][hidden]`.
    pub(super) x: Vec<f32>,
    /// The output of attention or feed-forward, to be added to `x`.
    pub(super) added: Vec<f32>,
    /// The projected queries, keys and values, `[row][heads…]`.
    pub(super) projected: Vec<f32>,
    /// The queries after norm and RoPE: `[kv_head][row][head of the group][head_dim]`.
    pub(super) queries: Vec<f32>,
    /// The partial results of attention: `[kv_head][result][head of the group]`.
    pub(super) maxima: Vec<f32>,
    pub(super) sums: Vec<f32>,
    pub(super) values: Vec<f32>,
    /// The intermediate elements between the two products of adapters, `[row][width]`.
    pub(super) low: Vec<f32>,
    /// The input of the down projection as f32, for adapters.
    pub(super) inner_row: Vec<f32>,
    /// The input of the projections and of the feed-forward layer.
    pub(super) normed: Activations,
    /// The input of the output projection of attention.
    pub(super) attended: Activations,
    /// The input of the down projection.
    pub(super) inner: Activations,
    /// One for each thread.
    pub(super) scratch: Vec<Scratch>,
}

/// The working memory of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) panel: Vec<[f32; LANES]>,
    pub(super) other_panel: Vec<[f32; LANES]>,
    pub(super) block: Vec<[f32; COLUMNS_PER_BLOCK]>,
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

    /// Grows the buffers for a batch. `low` is the number of intermediate elements per row
    /// between the products of adapters; 0 without adapters.
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
                scratch.block.resize(rows, [0.0; COLUMNS_PER_BLOCK]);
            }
            grow(&mut scratch.row, spec.hidden.max(heads));
        }
    }
}

/// Grows the buffer to `len` if it is shorter.
pub(super) fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

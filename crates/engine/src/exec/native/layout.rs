//! The layout of a KV page: the keys and values of [`TOKENS_PER_BLOCK`] tokens for all
//! layers with the same window.

use std::ops::Range;

use incant_kernels::Isa;
use incant_kernels::attention::{
    Block, TOKENS_PER_BLOCK, key_block_len, read_key, read_value, value_block_len, write_key,
    write_value,
};
use incant_model::DecoderSpec;

/// The layers of a model, grouped by their windows, and the sizes of their KV.
///
/// A page holds one block per layer of its group; a block holds the keys and values of each KV
/// head.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) groups: Vec<Group>,
    /// The group of each layer and its index in the group.
    layers: Vec<(usize, usize)>,
}

/// Layers with the same window, which share pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) window: Option<usize>,
    pub(super) layers: usize,
}

impl Layout {
    pub(super) fn of(spec: &DecoderSpec) -> Layout {
        let mut groups: Vec<Group> = Vec::new();
        let mut layers = Vec::with_capacity(spec.layers.len());
        for layer in &spec.layers {
            let window = layer.window;
            let known = groups.iter().position(|group| group.window == window);
            let group = known.unwrap_or_else(|| {
                groups.push(Group { window, layers: 0 });
                groups.len() - 1
            });
            layers.push((group, groups[group].layers));
            groups[group].layers += 1;
        }
        Layout {
            kv_heads: spec.kv_heads,
            head_dim: spec.head_dim,
            groups,
            layers,
        }
    }

    /// Elements in the block of a layer.
    fn block_len(&self) -> usize {
        self.kv_heads * self.head_len()
    }

    /// Elements in the block of a head.
    fn head_len(&self) -> usize {
        key_block_len(self.head_dim) + value_block_len(self.head_dim)
    }

    /// Elements in a page of a group.
    pub(super) fn page_len(&self, group: usize) -> usize {
        self.groups[group].layers * self.block_len()
    }

    /// Returns the group whose pages hold this layer.
    pub(super) fn group_of(&self, layer: usize) -> usize {
        self.layers[layer].0
    }

    /// Returns the range of a layer's block in its pages.
    pub(super) fn block_of(&self, layer: usize) -> Range<usize> {
        let (_, index) = self.layers[layer];
        index * self.block_len()..(index + 1) * self.block_len()
    }

    /// Returns the group whose page tables show best which sequences share tokens: one without
    /// a window, if there is any.
    pub(super) fn whole_group(&self) -> usize {
        let whole = self.groups.iter().position(|group| group.window.is_none());
        whole.unwrap_or(0)
    }

    /// Returns the keys and values of one head in a layer's block.
    pub(super) fn head<'a>(&self, block: &'a [u16], head: usize) -> Block<'a> {
        let both = &block[head * self.head_len()..][..self.head_len()];
        let (keys, values) = both.split_at(key_block_len(self.head_dim));
        Block { keys, values }
    }

    /// Writes the keys and values of a token, all heads side by side, as token number `token` of a
    /// layer's block.
    pub(super) fn write(
        &self,
        isa: Isa,
        block: &mut [u16],
        token: usize,
        (key, value): (&[f32], &[f32]),
    ) {
        let heads = block.chunks_exact_mut(self.head_len());
        let key = key.chunks_exact(self.head_dim);
        let value = value.chunks_exact(self.head_dim);
        for (both, (key, value)) in heads.zip(key.zip(value)) {
            let (keys, values) = both.split_at_mut(key_block_len(self.head_dim));
            write_key(isa, keys, token, key);
            write_value(isa, values, token, value);
        }
    }

    /// Reads the key and the value of one head.
    pub(super) fn read(
        &self,
        isa: Isa,
        block: &[u16],
        head: usize,
        token: usize,
        (key, value): (&mut [f32], &mut [f32]),
    ) {
        let block = self.head(block, head);
        read_key(isa, block.keys, token, key);
        read_value(isa, block.values, token, value);
    }
}

/// The number of pages that hold `tokens` tokens.
pub(super) fn pages(tokens: usize) -> usize {
    tokens.div_ceil(TOKENS_PER_BLOCK)
}

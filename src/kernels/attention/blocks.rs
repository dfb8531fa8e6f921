//! How keys and values lie in their blocks.

use crate::kernels::isa::Isa;
use crate::kernels::math::{LANES, from_half, to_half};

/// Tokens in a block.
pub const BLOCK: usize = LANES;

/// Numbers in one head's block of keys.
pub fn key_block_len(head_dim: usize) -> usize {
    head_dim * BLOCK
}

/// Numbers in one head's block of values: the dimensions are padded to a
/// multiple of 16.
pub fn value_block_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES) * BLOCK
}

/// Writes one token's key of one head as binary16. `blocks` begins with the
/// head's first block, and `stride` leads from one to the next.
pub fn write_key(isa: Isa, blocks: &mut [u16], stride: usize, token: usize, key: &[f32]) {
    let block = &mut blocks[token / BLOCK * stride..][..key_block_len(key.len())];
    let columns = block.as_chunks_mut::<BLOCK>().0;
    let mut halves = [0; LANES];
    for (columns, key) in columns.chunks_mut(LANES).zip(key.chunks(LANES)) {
        let halves = &mut halves[..key.len()];
        to_half(isa, key, halves);
        for (column, half) in columns.iter_mut().zip(halves) {
            column[token % BLOCK] = *half;
        }
    }
}

/// Reads back what [`write_key`] wrote.
pub fn read_key(isa: Isa, blocks: &[u16], stride: usize, token: usize, key: &mut [f32]) {
    let block = &blocks[token / BLOCK * stride..][..key_block_len(key.len())];
    let columns = block.as_chunks::<BLOCK>().0;
    let mut halves = [0; LANES];
    for (columns, key) in columns.chunks(LANES).zip(key.chunks_mut(LANES)) {
        let halves = &mut halves[..key.len()];
        for (column, half) in columns.iter().zip(halves.iter_mut()) {
            *half = column[token % BLOCK];
        }
        from_half(isa, halves, key);
    }
}

/// Writes one token's value of one head as binary16; `blocks` and `stride` as
/// for [`write_key`].
pub fn write_value(isa: Isa, blocks: &mut [u16], stride: usize, token: usize, value: &[f32]) {
    let block = &mut blocks[token / BLOCK * stride..][..value_block_len(value.len())];
    let groups = block.chunks_mut(LANES * BLOCK);
    for (group, value) in groups.zip(value.chunks(LANES)) {
        let group = &mut group[token % BLOCK * LANES..][..LANES];
        let (used, padding) = group.split_at_mut(value.len());
        to_half(isa, value, used);
        padding.fill(0);
    }
}

/// Reads back what [`write_value`] wrote.
pub fn read_value(isa: Isa, blocks: &[u16], stride: usize, token: usize, value: &mut [f32]) {
    let block = &blocks[token / BLOCK * stride..][..value_block_len(value.len())];
    let groups = block.chunks(LANES * BLOCK);
    for (group, value) in groups.zip(value.chunks_mut(LANES)) {
        from_half(isa, &group[token % BLOCK * LANES..][..value.len()], value);
    }
}

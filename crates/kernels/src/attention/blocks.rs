//! The memory layout of blocks of keys and values.

use crate::isa::Isa;
use crate::math::{LANES, from_half, to_half};

/// Tokens per block.
pub const BLOCK: usize = LANES;

/// Elements in one head's block of keys.
pub fn key_block_len(head_dim: usize) -> usize {
    head_dim * BLOCK
}

/// Elements in one head's block of values: the dimensions are padded to a multiple of 16.
pub fn value_block_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES) * BLOCK
}

/// Writes the key of one head, converted to f16, as token `place` of the block.
pub fn write_key(isa: Isa, block: &mut [u16], place: usize, key: &[f32]) {
    let columns = block[..key_block_len(key.len())].as_chunks_mut::<BLOCK>().0;
    let mut halves = [0; LANES];
    for (columns, key) in columns.chunks_mut(LANES).zip(key.chunks(LANES)) {
        let halves = &mut halves[..key.len()];
        to_half(isa, key, halves);
        for (column, half) in columns.iter_mut().zip(halves) {
            column[place] = *half;
        }
    }
}

/// Reads the key of one head that [`write_key`] wrote.
pub fn read_key(isa: Isa, block: &[u16], place: usize, key: &mut [f32]) {
    let columns = block[..key_block_len(key.len())].as_chunks::<BLOCK>().0;
    let mut halves = [0; LANES];
    for (columns, key) in columns.chunks(LANES).zip(key.chunks_mut(LANES)) {
        let halves = &mut halves[..key.len()];
        for (column, half) in columns.iter().zip(halves.iter_mut()) {
            *half = column[place];
        }
        from_half(isa, halves, key);
    }
}

/// Writes the value of one head, converted to f16, as token `place` of the block.
pub fn write_value(isa: Isa, block: &mut [u16], place: usize, value: &[f32]) {
    let groups = block[..value_block_len(value.len())].chunks_mut(LANES * BLOCK);
    for (group, value) in groups.zip(value.chunks(LANES)) {
        let group = &mut group[place * LANES..][..LANES];
        let (used, padding) = group.split_at_mut(value.len());
        to_half(isa, value, used);
        padding.fill(0);
    }
}

/// Reads the value of one head that [`write_value`] wrote.
pub fn read_value(isa: Isa, block: &[u16], place: usize, value: &mut [f32]) {
    let groups = block[..value_block_len(value.len())].chunks(LANES * BLOCK);
    for (group, value) in groups.zip(value.chunks_mut(LANES)) {
        from_half(isa, &group[place * LANES..][..value.len()], value);
    }
}

//! The memory layout of blocks of keys and values.

use crate::isa::Isa;
use crate::math::{LANES, from_f16, to_f16};

/// Tokens per block.
pub const TOKENS_PER_BLOCK: usize = LANES;

/// Elements in one head's block of keys.
pub fn key_block_len(head_dim: usize) -> usize {
    head_dim * TOKENS_PER_BLOCK
}

/// Elements in one head's block of values: the dimensions are padded to a multiple of 16.
pub fn value_block_len(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES) * TOKENS_PER_BLOCK
}

/// Writes the key of one head, converted to f16, as token `token` of the block.
pub fn write_key(isa: Isa, block: &mut [u16], token: usize, key: &[f32]) {
    let columns = block[..key_block_len(key.len())]
        .as_chunks_mut::<TOKENS_PER_BLOCK>()
        .0;
    let mut elements = [0; LANES];
    for (columns, key) in columns.chunks_mut(LANES).zip(key.chunks(LANES)) {
        let elements = &mut elements[..key.len()];
        to_f16(isa, key, elements);
        for (column, element) in columns.iter_mut().zip(elements) {
            column[token] = *element;
        }
    }
}

/// Reads the key of one head that [`write_key`] wrote.
pub fn read_key(isa: Isa, block: &[u16], token: usize, key: &mut [f32]) {
    let columns = block[..key_block_len(key.len())]
        .as_chunks::<TOKENS_PER_BLOCK>()
        .0;
    let mut elements = [0; LANES];
    for (columns, key) in columns.chunks(LANES).zip(key.chunks_mut(LANES)) {
        let elements = &mut elements[..key.len()];
        for (column, element) in columns.iter().zip(elements.iter_mut()) {
            *element = column[token];
        }
        from_f16(isa, elements, key);
    }
}

/// Writes the value of one head, converted to f16, as token `token` of the block.
pub fn write_value(isa: Isa, block: &mut [u16], token: usize, value: &[f32]) {
    let groups = block[..value_block_len(value.len())].chunks_mut(LANES * TOKENS_PER_BLOCK);
    for (group, value) in groups.zip(value.chunks(LANES)) {
        let group = &mut group[token * LANES..][..LANES];
        let (used, padding) = group.split_at_mut(value.len());
        to_f16(isa, value, used);
        padding.fill(0);
    }
}

/// Reads the value of one head that [`write_value`] wrote.
pub fn read_value(isa: Isa, block: &[u16], token: usize, value: &mut [f32]) {
    let groups = block[..value_block_len(value.len())].chunks(LANES * TOKENS_PER_BLOCK);
    for (group, value) in groups.zip(value.chunks_mut(LANES)) {
        from_f16(isa, &group[token * LANES..][..value.len()], value);
    }
}

//! Packs the blocks of a GGUF file into panels.

use std::ops::Range;

use super::source::Unit;
use super::{Bits, COLUMNS_PER_BLOCK, Codes, Dense, Format, LANES, Packing, Scales};

impl<'a> Packing<'a> {
    /// Returns the source bytes of some panels.
    pub(super) fn source_of(&self, panels: Range<usize>) -> &'a [u8] {
        let row_bytes = self.columns / self.kind.block_size() * self.kind.type_size();
        let rows = panels.start * LANES..self.rows.min(panels.end * LANES);
        &self.source[rows.start * row_bytes..rows.end * row_bytes]
    }

    /// Fills panel `index`, which must be zeroed: rows past the last stay 0.
    pub(super) fn panel(&self, index: usize, panel: &mut [u8]) {
        let first = index * LANES;
        let row_bytes = self.columns / self.kind.block_size() * self.kind.type_size();
        let rows = self.source[first * row_bytes..]
            .chunks_exact(row_bytes)
            .take(LANES);
        debug_assert!(first < self.rows);
        match Format::of(self.kind) {
            Some(Format::Codes(codes)) => self.codes(codes, rows, panel),
            Some(Format::Dense(dense)) => {
                for (lane, row) in rows.enumerate() {
                    dense_row(dense, lane, row, panel);
                }
            }
            None => unreachable!("a packing is made only of types with a format"),
        }
    }

    fn codes<'s>(&self, codes: Codes, rows: impl Iterator<Item = &'s [u8]>, panel: &mut [u8]) {
        let (headers, blocks) = panel.split_at_mut(codes.codes_at(self.columns));
        let (per_header, per_block) = (codes.header_bytes(), codes.code_bytes());
        let mut source = Unit::new();
        for (lane, row) in rows.enumerate() {
            for (unit, bytes) in row.chunks_exact(self.kind.type_size()).enumerate() {
                source.read(self.kind, bytes);
                write_scales(
                    codes,
                    lane,
                    &source,
                    &mut headers[unit * per_header..][..per_header],
                );
                let per_unit = codes.unit() / COLUMNS_PER_BLOCK;
                for (block, codes_of) in source.codes[..codes.unit()]
                    .chunks_exact(COLUMNS_PER_BLOCK)
                    .enumerate()
                {
                    let at = (unit * per_unit + block) * per_block;
                    let codes_of = codes_of.try_into().expect("a chunk of a block's length");
                    write_codes(codes.bits, lane, codes_of, &mut blocks[at..][..per_block]);
                }
            }
        }
    }
}

fn write_scales(codes: Codes, lane: usize, source: &Unit, header: &mut [u8]) {
    let mut write_f16 = |at: usize, value: u16| {
        header[at * LANES + 2 * lane..][..2].copy_from_slice(&value.to_le_bytes());
    };
    match codes.scales {
        Scales::F16 => write_f16(0, source.scale),
        Scales::F16WithMinimum => {
            write_f16(0, source.scale);
            write_f16(2, source.minimum);
        }
        Scales::Super => {
            write_f16(0, source.scale);
            for group in 0..codes.groups() {
                header[(2 + group) * LANES + lane] = source.scales[group];
            }
        }
        Scales::SuperWithMinimum => {
            write_f16(0, source.scale);
            write_f16(2, source.minimum);
            for group in 0..codes.groups() {
                header[(4 + group) * LANES + lane] = source.scales[group];
                header[(4 + codes.groups() + group) * LANES + lane] = source.minima[group];
            }
        }
    }
}

/// Writes the codes of one row of a block into its lane.
fn write_codes(bits: Bits, lane: usize, codes: &[u8; COLUMNS_PER_BLOCK], block: &mut [u8]) {
    let mut word = |index: usize, value: u32| {
        block[4 * (index * LANES + lane)..][..4].copy_from_slice(&value.to_le_bytes());
    };
    if bits == Bits::Eight {
        for (index, four) in codes.chunks_exact(4).enumerate() {
            word(
                index,
                u32::from_le_bytes([four[0], four[2], four[1], four[3]]),
            );
        }
        return;
    }
    for (index, eight) in codes.chunks_exact(8).enumerate() {
        let mut value = 0;
        for (pair, two) in eight.chunks_exact(2).enumerate() {
            value |= u32::from(two[0] & 0xF) << (4 * pair);
            value |= u32::from(two[1] & 0xF) << (4 * pair + 16);
        }
        word(index, value);
    }
    // The bits above the lower four of each code, by pairs of columns.
    let planes = |codes: &[u8], width: usize| {
        let mut value = 0;
        for (pair, two) in codes.chunks_exact(2).enumerate() {
            value |= u32::from(two[0] >> 4) << (width * pair);
            value |= u32::from(two[1] >> 4) << (width * pair + 16);
        }
        value
    };
    match bits {
        Bits::Four | Bits::Eight => {}
        Bits::Five => word(4, planes(codes, 1)),
        Bits::Six => {
            word(4, planes(&codes[..16], 2));
            word(5, planes(&codes[16..], 2));
        }
    }
}

fn dense_row(dense: Dense, lane: usize, row: &[u8], panel: &mut [u8]) {
    let width = dense.width();
    let numbers = row.chunks_exact(width);
    for (column, number) in panel.chunks_exact_mut(width * LANES).zip(numbers) {
        column[width * lane..][..width].copy_from_slice(number);
    }
}

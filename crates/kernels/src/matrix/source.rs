//! Reads one row's unit (32 or 256 columns) from a GGUF block.
//!
//! The layouts are those of ggml's `ggml-common.h`.

use incant_gguf::TensorType;

/// Columns of the longest unit.
const MAX_UNIT_COLUMNS: usize = 256;

/// The codes and scales of one row of one unit, in the order of its columns.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) codes: [u8; MAX_UNIT_COLUMNS],
    /// f16 bits: the scale, or the scale of the scales.
    pub(super) scale: u16,
    /// f16 bits: the minimum, or the scale of the minima; the minimum is added.
    pub(super) minimum: u16,
    /// For each group, the factor of the scale.
    pub(super) scales: [u8; 16],
    /// For each group, the factor of the minimum.
    pub(super) minima: [u8; 16],
}

impl Unit {
    pub(super) fn new() -> Unit {
        Unit {
            codes: [0; MAX_UNIT_COLUMNS],
            scale: 0,
            minimum: 0,
            scales: [0; 16],
            minima: [0; 16],
        }
    }

    pub(super) fn read(&mut self, kind: TensorType, block: &[u8]) {
        let f16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        match kind {
            TensorType::Q4_0 => {
                self.scale = f16_at(0);
                self.nibbles(&block[2..18]);
            }
            TensorType::Q4_1 => {
                (self.scale, self.minimum) = (f16_at(0), f16_at(2));
                self.nibbles(&block[4..20]);
            }
            TensorType::Q5_0 => {
                self.scale = f16_at(0);
                self.nibbles(&block[6..22]);
                self.fifth_bits(&block[2..6]);
            }
            TensorType::Q5_1 => {
                (self.scale, self.minimum) = (f16_at(0), f16_at(2));
                self.nibbles(&block[8..24]);
                self.fifth_bits(&block[4..8]);
            }
            TensorType::Q8_0 => {
                self.scale = f16_at(0);
                for (code, &byte) in self.codes.iter_mut().zip(&block[2..34]) {
                    // Maps −128…127 to 0…255.
                    *code = byte ^ 0x80;
                }
            }
            TensorType::Q2_K => self.q2_k(block),
            TensorType::Q3_K => self.q3_k(block),
            TensorType::Q4_K => {
                (self.scale, self.minimum) = (f16_at(0), f16_at(2) ^ SIGN);
                self.six_bit_scales(&block[4..16]);
                self.long_nibbles(&block[16..144]);
            }
            TensorType::Q5_K => {
                (self.scale, self.minimum) = (f16_at(0), f16_at(2) ^ SIGN);
                self.six_bit_scales(&block[4..16]);
                self.long_nibbles(&block[48..176]);
                let bits = &block[16..48];
                for (part, codes) in self.codes.chunks_exact_mut(32).enumerate() {
                    for (code, bits) in codes.iter_mut().zip(bits) {
                        *code |= (bits >> part & 1) << 4;
                    }
                }
            }
            TensorType::Q6_K => self.q6_k(block),
            _ => unreachable!("only types with a format of codes are packed as codes"),
        }
    }

    /// Reads nibbles: columns 0 to 15 in the lower half of the bytes, 16 to 31 in the upper.
    fn nibbles(&mut self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            self.codes[at] = byte & 0xF;
            self.codes[at + 16] = byte >> 4;
        }
    }

    /// Reads the fifth bit of 32 codes.
    fn fifth_bits(&mut self, bytes: &[u8]) {
        let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        for (at, code) in self.codes[..32].iter_mut().enumerate() {
            *code |= ((bits >> at & 1) << 4) as u8;
        }
    }

    /// Reads nibbles of 64 columns from 32 bytes: the first 32 columns in the lower half.
    fn long_nibbles(&mut self, bytes: &[u8]) {
        for (codes, bytes) in self.codes.chunks_exact_mut(64).zip(bytes.chunks_exact(32)) {
            let (low, high) = codes.split_at_mut(32);
            for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
                *low = byte & 0xF;
                *high = byte >> 4;
            }
        }
    }

    /// Reads eight 6-bit scales and eight 6-bit minima from twelve bytes.
    fn six_bit_scales(&mut self, bytes: &[u8]) {
        for at in 0..4 {
            let (scale, minimum, rest) = (bytes[at], bytes[at + 4], bytes[at + 8]);
            self.scales[at] = scale & 63;
            self.minima[at] = minimum & 63;
            self.scales[at + 4] = rest & 0xF | scale >> 6 << 4;
            self.minima[at + 4] = rest >> 4 | minimum >> 6 << 4;
        }
    }

    fn q2_k(&mut self, block: &[u8]) {
        let f16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
        (self.scale, self.minimum) = (f16_at(80), f16_at(82) ^ SIGN);
        for (at, byte) in block[..16].iter().enumerate() {
            self.scales[at] = byte & 0xF;
            self.minima[at] = byte >> 4;
        }
        for (codes, bytes) in self
            .codes
            .chunks_exact_mut(128)
            .zip(block[16..80].chunks_exact(32))
        {
            for (part, codes) in codes.chunks_exact_mut(32).enumerate() {
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    *code = byte >> (2 * part) & 3;
                }
            }
        }
    }

    fn q3_k(&mut self, block: &[u8]) {
        self.scale = u16::from_le_bytes([block[108], block[109]]);
        let packed = &block[96..108];
        for (at, scale) in self.scales.iter_mut().enumerate() {
            let low = packed[at % 8] >> (4 * (at / 8)) & 0xF;
            let high = packed[8 + at % 4] >> (2 * (at / 4)) & 3;
            // 0…63 stands for −32…31.
            *scale = (low | high << 4).wrapping_sub(32);
        }
        let high_bits = &block[..32];
        for (at, codes) in self.codes.chunks_exact_mut(32).enumerate() {
            let bytes = &block[32 + at / 4 * 32..][..32];
            for ((code, byte), high) in codes.iter_mut().zip(bytes).zip(high_bits) {
                *code = byte >> (2 * (at % 4)) & 3 | (high >> at & 1) << 2;
            }
        }
    }

    fn q6_k(&mut self, block: &[u8]) {
        self.scale = u16::from_le_bytes([block[208], block[209]]);
        self.scales.copy_from_slice(&block[192..208]);
        for (at, codes) in self.codes.chunks_exact_mut(128).enumerate() {
            let low = &block[64 * at..][..64];
            let high = &block[128 + 32 * at..][..32];
            for column in 0..32 {
                let (first, second, high) = (low[column], low[column + 32], high[column]);
                codes[column] = first & 0xF | (high & 3) << 4;
                codes[column + 32] = second & 0xF | (high >> 2 & 3) << 4;
                codes[column + 64] = first >> 4 | (high >> 4 & 3) << 4;
                codes[column + 96] = second >> 4 | high >> 6 << 4;
            }
        }
    }
}

/// The sign bit of an f16: k-quants store minima that are subtracted.
const SIGN: u16 = 0x8000;

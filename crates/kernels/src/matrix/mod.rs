//! Weight matrices, packed (interleaved) for the product kernels.
//!
//! A matrix is cut into *panels* of 16 output rows. Within a panel, a *block* is 32 columns of
//! all 16 rows, laid out so that one vector load gives the same few columns of each row, one
//! row per lane:
//!
//! ```text
//! panel  = headers of all units, padded to 64 bytes, then blocks of codes
//! header = scales of 16 rows, side by side (see `Scales`)
//! 4 bits: [4][16 rows] u32: eight columns, c0 c2 c4 c6 in the lower half from
//!         its lowest bits on, c1 c3 c5 c7 in the upper half
//! 5 bits: the same, then [16 rows] u32: bit s of the lower half is bit 4 of
//!         column 2s, of the upper half that of column 2s + 1
//! 6 bits: the same, then [2][16 rows] u32 for 16 columns each: bits 2s and
//!         2s + 1 of the lower half are bits 4 and 5 of column 2s, …
//! 8 bits: [8][16 rows] u32: four columns, bytes c0 c2 c1 c3
//! dense:  [column][16 rows]
//! ```
//!
//! So a mask and at most one shift give a vector of 16-bit codes in which each lane holds two
//! neighbouring columns: the operand of a multiply-add of pairs (such as VNNI's `vpdpwssd`).

mod format;
mod pack;
mod source;
#[cfg(test)]
pub(super) mod tests;

pub use format::{Bits, COLUMNS_PER_BLOCK, Codes, Dense, Format, LANES, Scales};

use half::{bf16, f16};

use super::math::{Lanes, Plain};
use super::memory::{Allocation, Arena};
use crate::pool::Pool;
use crate::shared::SharedSlice;
use incant_gguf::TensorType;

/// A packed weight matrix, `[rows, columns]`.
#[derive(Debug)]
pub struct Matrix {
    format: Format,
    rows: usize,
    columns: usize,
    padded: usize,
    panel_bytes: usize,
    bytes: Allocation,
}

/// A matrix that is being packed, panel by panel.
struct Packing<'a> {
    kind: TensorType,
    rows: usize,
    columns: usize,
    source: &'a [u8],
}

impl Matrix {
    /// Creates an empty matrix for weights of type `kind` in memory of `arena`, and the
    /// [`Packing`] that fills it. Returns `None` if no format holds the type.
    ///
    /// # Errors
    /// The memory cannot be allocated.
    ///
    /// # Panics
    /// The length of `source` does not match the shape.
    fn for_packing<'a>(
        kind: TensorType,
        rows: usize,
        columns: usize,
        source: &'a [u8],
        arena: &mut Arena,
    ) -> std::io::Result<Option<(Matrix, Packing<'a>)>> {
        let Some(format) = Format::of(kind) else {
            return Ok(None);
        };
        let row_bytes = columns / kind.block_size() * kind.type_size();
        assert_eq!(source.len(), rows * row_bytes, "the source has the shape");
        let padded = columns.next_multiple_of(format.unit());
        let panel_bytes = format.panel_bytes(padded);
        let bytes = arena.zeroed(rows.div_ceil(LANES) * panel_bytes)?;
        let matrix = Matrix {
            format,
            rows,
            columns,
            padded,
            panel_bytes,
            bytes,
        };
        let packing = Packing {
            kind,
            rows,
            columns,
            source,
        };
        Ok(Some((matrix, packing)))
    }

    /// Packs a whole matrix in memory of `arena`, with all threads of `pool`. It calls
    /// `packed` with the bytes of `source` that are no longer needed, so that the caller can
    /// release them: both copies never have to be in memory at once. Returns `None` if no format
    /// holds the type.
    ///
    /// # Errors
    /// The memory cannot be allocated.
    ///
    /// # Panics
    /// The length of `source` does not match the shape.
    pub fn pack_in(
        arena: &mut Arena,
        pool: &Pool,
        kind: TensorType,
        rows: usize,
        columns: usize,
        source: &[u8],
        packed: impl Fn(&[u8]) + Sync,
    ) -> std::io::Result<Option<Matrix>> {
        let packing = Matrix::for_packing(kind, rows, columns, source, arena)?;
        let Some((mut matrix, packing)) = packing else {
            return Ok(None);
        };
        let panels = matrix.panels();
        let panel_bytes = matrix.panel_bytes;
        let memory = SharedSlice::from(&mut *matrix.bytes);
        // Enough panels for each task to be worth claiming.
        let at_once = (1 << 18) / panel_bytes.max(1) + 1;
        pool.run(|worker| {
            worker.each(panels.div_ceil(at_once), |task| {
                let panels = task * at_once..panels.min((task + 1) * at_once);
                for panel in panels.clone() {
                    let bytes = panel * panel_bytes..(panel + 1) * panel_bytes;
                    // SAFETY: each panel is packed once.
                    packing.panel(panel, unsafe { memory.slice_mut(bytes) });
                }
                packed(packing.source_of(panels));
            });
        });
        // Releases the pages that two tasks shared.
        packed(source);
        Ok(Some(matrix))
    }

    /// Packs a whole matrix on this thread, in an allocation of its own.
    ///
    /// # Errors
    /// The memory cannot be allocated.
    pub fn pack(
        kind: TensorType,
        rows: usize,
        columns: usize,
        source: &[u8],
    ) -> std::io::Result<Option<Matrix>> {
        let arena = &mut Arena::default();
        let packing = Matrix::for_packing(kind, rows, columns, source, arena)?;
        let Some((mut matrix, packing)) = packing else {
            return Ok(None);
        };
        for (index, panel) in matrix.panels_mut().enumerate() {
            packing.panel(index, panel);
        }
        Ok(Some(matrix))
    }

    /// The storage format of the elements.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The number of output rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of input columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The number of input columns including the padding.
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// The number of panels.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// The size of all panels in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn panel(&self, index: usize) -> &[u8] {
        &self.bytes[index * self.panel_bytes..][..self.panel_bytes]
    }

    /// Iterates over all panels, to be filled.
    fn panels_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.bytes.chunks_exact_mut(self.panel_bytes)
    }

    /// Dequantizes one row into `out`, which takes `columns` elements.
    ///
    /// # Panics
    /// There is no such row, or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "a row fits");
        let panel = self.panel(row / LANES);
        let lane = row % LANES;
        match self.format {
            Format::Codes(codes) => self.coded_row(codes, panel, lane, out),
            Format::Dense(dense) => dense_row(dense, panel, lane, out),
        }
    }

    fn coded_row(&self, codes: Codes, panel: &[u8], lane: usize, out: &mut [f32]) {
        let (headers, blocks) = panel.split_at(codes.codes_at(self.padded));
        let mut scales = UnitScales::new();
        for (unit, out) in out.chunks_mut(codes.unit()).enumerate() {
            scales.read(Plain, codes, &headers[unit * codes.header_bytes()..]);
            for (block, out) in out.chunks_mut(COLUMNS_PER_BLOCK).enumerate() {
                let block = unit * codes.unit() / COLUMNS_PER_BLOCK + block;
                let bytes = &blocks[block * codes.code_bytes()..][..codes.code_bytes()];
                for (column, out) in out.iter_mut().enumerate() {
                    let code = f32::from(code(codes.bits, bytes, column, lane) - codes.zero);
                    let group = (block * COLUMNS_PER_BLOCK % codes.unit() + column) / codes.group;
                    let minimum = scales.minima[group][lane];
                    *out = code.mul_add(scales.scales[group][lane], minimum);
                }
            }
        }
    }
}

/// Returns one code of a block.
pub(super) fn code(bits: Bits, block: &[u8], column: usize, lane: usize) -> i16 {
    let word = |index: usize| {
        let at = 4 * (index * LANES + lane);
        u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
    };
    // Odd columns are in the upper half of a word.
    let upper = column % 2 * 16;
    let nibble = || word(column / 8) >> (upper + 4 * (column % 8 / 2)) & 0xF;
    let code = match bits {
        Bits::Four => nibble(),
        Bits::Five => nibble() | (word(4) >> (upper + column / 2) & 1) << 4,
        Bits::Six => {
            let plane = word(4 + column / 16);
            nibble() | (plane >> (upper + column % 16 / 2 * 2) & 3) << 4
        }
        Bits::Eight => word(column / 4) >> (upper + 8 * (column % 4 / 2)) & 0xFF,
    };
    code as i16
}

/// Reads 16 little-endian 16-bit words.
#[inline(always)]
pub(super) fn read_u16s(bytes: &[u8; 2 * LANES]) -> [u16; LANES] {
    let bytes = bytes.as_chunks::<2>().0;
    std::array::from_fn(|lane| u16::from_le_bytes(bytes[lane]))
}

/// The maximum number of groups per unit.
pub(super) const MAX_GROUPS: usize = 16;

/// The scales and minima of one unit, as f32.
#[repr(align(64))]
pub(super) struct UnitScales {
    pub(super) scales: [[f32; LANES]; MAX_GROUPS],
    pub(super) minima: [[f32; LANES]; MAX_GROUPS],
}

impl UnitScales {
    pub(super) fn new() -> UnitScales {
        UnitScales {
            scales: [[0.0; LANES]; MAX_GROUPS],
            minima: [[0.0; LANES]; MAX_GROUPS],
        }
    }

    /// Reads the header of a unit.
    #[inline(always)]
    pub(super) fn read(&mut self, lanes: impl Lanes, codes: Codes, header: &[u8]) {
        let f16_row = |at: usize| {
            let bytes = header[at..at + 2 * LANES].try_into();
            let mut numbers = [0.0; LANES];
            let bits = read_u16s(bytes.expect("a slice of that length"));
            lanes.store(lanes.load_f16(&bits), &mut numbers);
            numbers
        };
        let row = |at: usize| -> &[u8; LANES] {
            let bytes = header[at..at + LANES].try_into();
            bytes.expect("a slice of that length")
        };
        match codes.scales {
            Scales::F16 => self.scales[0] = f16_row(0),
            Scales::F16WithMinimum => {
                self.scales[0] = f16_row(0);
                self.minima[0] = f16_row(2 * LANES);
            }
            Scales::Super => {
                let scale = f16_row(0);
                for group in 0..codes.groups() {
                    let factors = row((2 + group) * LANES);
                    for lane in 0..LANES {
                        let factor = f32::from(factors[lane] as i8);
                        self.scales[group][lane] = factor * scale[lane];
                    }
                }
            }
            Scales::SuperWithMinimum => {
                let (scale, minimum) = (f16_row(0), f16_row(2 * LANES));
                for group in 0..codes.groups() {
                    let scales = row((4 + group) * LANES);
                    let minima = row((4 + codes.groups() + group) * LANES);
                    for lane in 0..LANES {
                        self.scales[group][lane] = f32::from(scales[lane]) * scale[lane];
                        self.minima[group][lane] = f32::from(minima[lane]) * minimum[lane];
                    }
                }
            }
        }
    }
}

fn dense_row(dense: Dense, panel: &[u8], lane: usize, out: &mut [f32]) {
    let width = dense.width();
    for (column, out) in out.iter_mut().enumerate() {
        let bytes = &panel[width * (column * LANES + lane)..][..width];
        *out = match dense {
            Dense::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Dense::BF16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Dense::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        };
    }
}

//! Activations: the rows that weights are multiplied with, in the order in which kernels read
//! them.

mod rounding;

use super::super::isa::{Isa, Tier};
#[cfg(target_arch = "x86_64")]
use super::super::math::{Avx2, Avx512};
use super::super::math::{Plain, dispatch};
use super::super::matrix::{COLUMNS_PER_BLOCK, Format, Matrix};
use super::{BlockHalfSums, PAIRS, Tile, tile};
use rounding::{round, round_body, to_bf16};

/// The forms of activations that a set of matrices needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ActivationForms {
    /// As 16-bit codes; rows of prompts as bf16 if AMX is used.
    codes: bool,
    /// As f32.
    dense: bool,
}

impl ActivationForms {
    /// Whether some matrices need f32 activations.
    pub(super) fn dense(self) -> bool {
        self.dense
    }

    /// Returns the forms that `matrices` need together.
    pub fn of<'a>(matrices: impl IntoIterator<Item = &'a Matrix>) -> ActivationForms {
        let mut forms = ActivationForms::default();
        for matrix in matrices {
            match matrix.format() {
                Format::Codes(_) => forms.codes = true,
                Format::Dense(_) => forms.dense = true,
            }
        }
        forms
    }
}

/// Rows of activations: 16-bit codes with a scale for each 32, or f32, or both.
///
/// Rows are cut into tiles that are as tall as the registers allow, the same tiles for every
/// block:
///
/// ```text
/// codes:  [block][tile][pair of columns][row of the tile]
/// dense:  [block][tile][column][row of the tile]
/// scales: [block][row]       sums: [block][row]
/// ```
///
/// With AMX, the rows of prompts, which come last, are rounded to bf16 in tiles of 16 rows:
/// `[tile][block][16 rows][column]`.
#[derive(Debug)]
pub struct Activations {
    isa: Isa,
    rows: usize,
    /// Rows before the first prompt row, if prompt rows are treated differently; else all rows.
    plain: usize,
    columns: usize,
    forms: ActivationForms,
    /// The first row and height of each tile of the plain rows, and of all rows.
    tiles: Vec<(usize, usize)>,
    dense_tiles: Vec<(usize, usize)>,
    codes: Vec<u32>,
    scales: Vec<f32>,
    sums: Vec<BlockHalfSums>,
    dense: Vec<f32>,
    bf16: Vec<u16>,
}

/// Rows per AMX tile.
pub(super) const TILE_ROWS: usize = 16;

impl Activations {
    /// Creates activations without rows, for kernels of `isa`.
    pub fn new(isa: Isa) -> Activations {
        Activations {
            isa,
            rows: 0,
            plain: 0,
            columns: 0,
            forms: ActivationForms::default(),
            tiles: Vec::new(),
            dense_tiles: Vec::new(),
            codes: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
            dense: Vec::new(),
            bf16: Vec::new(),
        }
    }

    /// Changes the shape to `rows` rows, of which those from `prompts` on are prompt rows. The
    /// contents are undefined until they are written; the allocation only grows.
    pub fn reset(&mut self, rows: usize, prompts: usize, columns: usize, forms: ActivationForms) {
        (self.rows, self.columns, self.forms) = (rows, columns, forms);
        self.plain = match self.isa.tier() {
            Tier::Amx => prompts.min(rows),
            _ => rows,
        };
        cut(&mut self.tiles, self.plain, max_tile_rows(self.isa));
        cut(&mut self.dense_tiles, rows, max_tile_rows(self.isa));
        let blocks = columns.div_ceil(COLUMNS_PER_BLOCK);
        if forms.codes && self.plain < rows {
            let tiles = (rows - self.plain).div_ceil(TILE_ROWS);
            grow(
                &mut self.bf16,
                tiles * TILE_ROWS * blocks * COLUMNS_PER_BLOCK,
                0,
            );
        }
        if forms.codes {
            grow(&mut self.codes, self.plain * blocks * PAIRS, 0);
            grow(&mut self.scales, self.plain * blocks, 0.0);
            grow(
                &mut self.sums,
                self.plain * blocks,
                BlockHalfSums::default(),
            );
        }
        if forms.dense {
            grow(&mut self.dense, rows * blocks * COLUMNS_PER_BLOCK, 0.0);
        }
    }

    /// Writes all rows.
    ///
    /// # Panics
    /// The length of `x` does not match the shape.
    pub fn fill(&mut self, x: &[f32]) {
        assert_eq!(x.len(), self.rows * self.columns, "the lengths fit");
        let (isa, rows) = (self.isa, self);
        dispatch!(isa, |_, rows: &mut Activations, x: &[f32]| rows
            .fill_body(x));
    }

    #[inline(always)]
    fn fill_body(&mut self, x: &[f32]) {
        let columns = self.columns;
        let values = |row: usize, block: usize| -> [f32; COLUMNS_PER_BLOCK] {
            let x = &x[row * columns..]
                [block * COLUMNS_PER_BLOCK..columns.min((block + 1) * COLUMNS_PER_BLOCK)];
            match x.try_into() {
                Ok(values) => values,
                Err(_) => {
                    let mut padded = [0.0; COLUMNS_PER_BLOCK];
                    padded[..x.len()].copy_from_slice(x);
                    padded
                }
            }
        };
        let blocks = 0..columns.div_ceil(COLUMNS_PER_BLOCK);
        if self.forms.codes {
            for &(first, height) in &self.tiles {
                for block in blocks.clone() {
                    let at = block * self.plain + first;
                    let tile = &mut self.codes[at * PAIRS..][..height * PAIRS];
                    let scales = &mut self.scales[at..][..height];
                    let sums = &mut self.sums[at..][..height];
                    for (place, (scale, sums)) in scales.iter_mut().zip(sums).enumerate() {
                        let mut codes = [0; PAIRS];
                        (*scale, *sums) = round_body(&values(first + place, block), &mut codes);
                        for (pairs, code) in tile.chunks_exact_mut(height).zip(codes) {
                            pairs[place] = code;
                        }
                    }
                }
            }
        }
        if self.forms.codes && self.plain < self.rows {
            let len = blocks.len() * TILE_ROWS * COLUMNS_PER_BLOCK;
            for row in self.plain..self.rows {
                let number = row - self.plain;
                let (tile, place) = (number / TILE_ROWS, number % TILE_ROWS);
                let tile = &mut self.bf16[tile * len..][..len];
                let lines = tile
                    .chunks_exact_mut(COLUMNS_PER_BLOCK)
                    .skip(place)
                    .step_by(TILE_ROWS);
                for (block, line) in blocks.clone().zip(lines) {
                    for (element, value) in line.iter_mut().zip(values(row, block)) {
                        *element = to_bf16(value);
                    }
                }
            }
        }
        if self.forms.dense {
            for &(first, height) in &self.dense_tiles {
                for block in blocks.clone() {
                    let at = (block * self.rows + first) * COLUMNS_PER_BLOCK;
                    let tile = &mut self.dense[at..][..height * COLUMNS_PER_BLOCK];
                    for place in 0..height {
                        let values = values(first + place, block);
                        for (numbers, value) in tile.chunks_exact_mut(height).zip(values) {
                            numbers[place] = value;
                        }
                    }
                }
            }
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The allocated size in bytes.
    pub fn bytes(&self) -> usize {
        4 * self.codes.capacity()
            + 4 * self.scales.capacity()
            + size_of::<BlockHalfSums>() * self.sums.capacity()
            + 4 * self.dense.capacity()
            + 2 * self.bf16.capacity()
    }

    /// The number of rows that are not computed by AMX.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn plain_rows(&self) -> usize {
        self.plain
    }

    /// The first row and height of each tile of the plain rows.
    pub(super) fn tiles(&self) -> &[(usize, usize)] {
        &self.tiles
    }

    /// The first row and height of each tile of all rows.
    pub(super) fn dense_tiles(&self) -> &[(usize, usize)] {
        &self.dense_tiles
    }

    #[inline(always)]
    pub(super) fn tile(&self, block: usize, first: usize, height: usize) -> Tile<'_> {
        let at = block * self.plain + first;
        Tile {
            codes: &self.codes[at * PAIRS..][..height * PAIRS],
            scales: &self.scales[at..at + height],
            sums: &self.sums[at..at + height],
        }
    }

    #[inline(always)]
    pub(super) fn dense_tile(&self, block: usize, first: usize, height: usize) -> &[f32] {
        &self.dense[(block * self.rows + first) * COLUMNS_PER_BLOCK..][..height * COLUMNS_PER_BLOCK]
    }

    /// Returns all tiles of bf16, and the number of elements of each.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn bf16_tiles(&self) -> (&[u16], usize) {
        let len = self.columns.div_ceil(COLUMNS_PER_BLOCK) * COLUMNS_PER_BLOCK * TILE_ROWS;
        let tiles = (self.rows - self.plain).div_ceil(TILE_ROWS);
        (&self.bf16[..tiles * len], len)
    }

    /// Returns a writer for several threads at once, each of which writes its own rows.
    pub fn writer(&mut self) -> Writer<'_> {
        Writer {
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            sums: self.sums.as_mut_ptr(),
            dense: self.dense.as_mut_ptr(),
            bf16: self.bf16.as_mut_ptr(),
            rows: self,
        }
    }
}

/// Cuts `rows` rows into the smallest number of tiles of about the same height.
fn cut(tiles: &mut Vec<(usize, usize)>, rows: usize, max_rows: usize) {
    let count = rows.div_ceil(max_rows);
    tiles.clear();
    let mut first = 0;
    for tile in 0..count {
        let height = rows / count + usize::from(tile < rows % count);
        tiles.push((first, height));
        first += height;
    }
}

/// Returns the tile of a row. The first tiles may be one row taller than the rest.
fn tile_of(tiles: &[(usize, usize)], row: usize) -> (usize, usize) {
    let guess = row / tiles[0].1;
    let (first, height) = tiles[guess.min(tiles.len() - 1)];
    if row < first + height {
        (first, height)
    } else {
        tiles[guess + 1]
    }
}

/// Grows the vector to `len` if it is shorter.
fn grow<T: Clone>(vector: &mut Vec<T>, len: usize, value: T) {
    if vector.len() < len {
        vector.resize(len, value);
    }
}

/// Writes rows of [`Activations`] from several threads.
pub struct Writer<'a> {
    rows: &'a Activations,
    codes: *mut u32,
    scales: *mut f32,
    sums: *mut BlockHalfSums,
    dense: *mut f32,
    bf16: *mut u16,
}

// SAFETY: the elements of a row belong to that row alone, and `write` requires its callers to
// keep rows apart.
unsafe impl Send for Writer<'_> {}
// SAFETY: as above.
unsafe impl Sync for Writer<'_> {}

impl Writer<'_> {
    /// Writes row `row`.
    ///
    /// # Safety
    /// No other thread may write or read the same row at the same time.
    ///
    /// # Panics
    /// There is no such row, or the length of `values` is not the row width.
    pub unsafe fn write(&self, row: usize, values: &[f32]) {
        assert_eq!(values.len(), self.rows.columns, "a row fits");
        for (block, values) in values.chunks(COLUMNS_PER_BLOCK).enumerate() {
            // SAFETY: the caller's obligation.
            unsafe { self.write_block(row, block, values) };
        }
    }

    /// Writes the 32 columns of block `block` of row `row`; the last block may be shorter.
    ///
    /// # Safety
    /// No other thread may write or read the same block of the row at the same time.
    ///
    /// # Panics
    /// There is no such row or block, or the length of `values` is not that of the block.
    pub unsafe fn write_block(&self, row: usize, block: usize, values: &[f32]) {
        let rows = self.rows;
        let columns = rows
            .columns
            .saturating_sub(block * COLUMNS_PER_BLOCK)
            .min(COLUMNS_PER_BLOCK);
        assert!(
            row < rows.rows && columns > 0 && values.len() == columns,
            "a block fits"
        );
        let mut padded = [0.0; COLUMNS_PER_BLOCK];
        let values: &[f32; COLUMNS_PER_BLOCK] = match values.try_into() {
            Ok(values) => values,
            Err(_) => {
                padded[..columns].copy_from_slice(values);
                &padded
            }
        };
        // SAFETY (of all blocks below): `reset` has allocated these elements, and they belong
        // to this block and row alone.
        if rows.forms.codes && row < rows.plain {
            let (first, height) = tile_of(&rows.tiles, row);
            let at = block * rows.plain + row;
            let mut codes = [0; PAIRS];
            let (scale, sums) = round(rows.isa, values, &mut codes);
            // SAFETY: see above.
            unsafe {
                self.scales.add(at).write(scale);
                self.sums.add(at).write(sums);
                let tile = (block * rows.plain + first) * PAIRS;
                let codes_at = self.codes.add(tile + row - first);
                for (pair, codes) in codes.into_iter().enumerate() {
                    codes_at.add(pair * height).write(codes);
                }
            }
        }
        if rows.forms.dense {
            let (first, height) = tile_of(&rows.dense_tiles, row);
            let tile = (block * rows.rows + first) * COLUMNS_PER_BLOCK + row - first;
            for (column, &value) in values.iter().enumerate() {
                // SAFETY: see above.
                unsafe { self.dense.add(tile + column * height).write(value) };
            }
        }
        if rows.forms.codes && row >= rows.plain {
            let (tile, place) = (
                (row - rows.plain) / TILE_ROWS,
                (row - rows.plain) % TILE_ROWS,
            );
            let blocks = rows.columns.div_ceil(COLUMNS_PER_BLOCK);
            let at = ((tile * blocks + block) * TILE_ROWS + place) * COLUMNS_PER_BLOCK;
            for (column, &value) in values.iter().enumerate() {
                // SAFETY: see above.
                unsafe { self.bf16.add(at + column).write(to_bf16(value)) };
            }
        }
    }

    /// Returns the rows, to be multiplied with.
    ///
    /// # Safety
    /// No thread may write while the result is in use.
    pub unsafe fn activations(&self) -> &Activations {
        self.rows
    }
}

/// The height of the tallest tile of the kernels of `isa`.
pub(super) fn max_tile_rows(isa: Isa) -> usize {
    match isa.tier() {
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => tile::max_tile_rows::<Avx2>(),
        #[cfg(target_arch = "x86_64")]
        Tier::Avx512 | Tier::Amx => tile::max_tile_rows::<Avx512>(),
        _ => tile::max_tile_rows::<Plain>(),
    }
}

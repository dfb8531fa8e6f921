//! Converts the rows of a tensor.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::thread;

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use half::f16;

use super::{Addition, Change, QuantizeError};
use crate::{Weight, candle_dtype};
use incant_gguf::TensorType;
use incant_kernels::Matrix;

/// The approximate number of elements that a thread processes at a time.
const ELEMENTS_PER_TASK: usize = 1 << 20;

/// Passes the bytes of all rows to `out`, in order and in pieces, each with the source bytes
/// that it was converted from.
pub(super) fn each(
    change: &Change<'_>,
    weight: Weight<'_>,
    mut out: impl FnMut(&[u8], &[u8]) -> Result<(), QuantizeError>,
) -> Result<(), QuantizeError> {
    let height = (ELEMENTS_PER_TASK / weight.columns).max(1);
    let mut pieces = (0..weight.rows).step_by(height).map(|start| {
        let rows = start..weight.rows.min(start + height);
        (rows.clone(), weight.cut(rows).data)
    });
    if change.is_copied() {
        return pieces.try_for_each(|(_, source)| out(source, source));
    }
    let pieces: Vec<(Range<usize>, &[u8])> = pieces.collect();
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    for pieces in pieces.chunks(threads) {
        let done: Vec<_> = thread::scope(|scope| {
            let work = |rows: Range<usize>| scope.spawn(move || changed(change, weight, rows));
            let working: Vec<_> = pieces.iter().map(|(rows, _)| work(rows.clone())).collect();
            working
                .into_iter()
                .map(thread::ScopedJoinHandle::join)
                .collect()
        });
        for ((_, source), bytes) in pieces.iter().zip(done) {
            let bytes = bytes.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            out(source, &bytes)?;
        }
    }
    Ok(())
}

/// Converts some rows to their new type, after merging the additions.
fn changed(
    change: &Change<'_>,
    weight: Weight<'_>,
    rows: Range<usize>,
) -> Result<Vec<u8>, QuantizeError> {
    let mut numbers = unpacked(weight.cut(rows.clone()))?;
    for addition in &change.additions {
        addition.add(rows.start, &mut numbers);
    }
    let most = match change.kind {
        TensorType::F32 | TensorType::BF16 => f32::MAX,
        // The scales of all other types are f16.
        _ => f16::MAX.to_f32(),
    };
    let fits = |number: &&f32| number.abs() <= most;
    // NaN does not fit either.
    if let Some(&number) = numbers.iter().find(|number| !fits(number)) {
        return Err(QuantizeError::Element {
            name: weight.name.to_owned(),
            number,
            kind: change.kind,
        });
    }
    let shape = (rows.len(), weight.columns);
    Ok(quantized(numbers, shape, change.kind))
}

/// Dequantizes the rows of a matrix.
fn unpacked(weight: Weight<'_>) -> Result<Vec<f32>, QuantizeError> {
    let Weight {
        kind,
        rows,
        columns,
        data,
        ..
    } = weight;
    let matrix = Matrix::pack(kind, rows, columns, data)?;
    let matrix = matrix.expect("the weights' types were checked");
    let mut numbers = vec![0.0; rows * columns];
    for (row, numbers) in numbers.chunks_exact_mut(columns).enumerate() {
        matrix.row(row, numbers);
    }
    Ok(numbers)
}

fn quantized(numbers: Vec<f32>, shape: (usize, usize), kind: TensorType) -> Vec<u8> {
    let kind = candle_dtype(kind).expect("a type that weights are written in");
    let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu);
    let tensor = tensor.and_then(|tensor| QTensor::quantize(&tensor, kind));
    let tensor = tensor.expect("the rows are whole blocks");
    tensor.data().expect("it is on the CPU").into_owned()
}

impl Addition<'_> {
    /// Adds to the rows that are in `numbers`, which holds the rows of the tensor from `start`
    /// on.
    fn add(&self, start: usize, numbers: &mut [f32]) {
        let part = self.part;
        let mut product = vec![0.0f32; part.inputs];
        for (row, numbers) in numbers.chunks_exact_mut(part.inputs).enumerate() {
            let Some(row) = (start + row).checked_sub(self.first) else {
                continue;
            };
            if row >= part.outputs {
                break;
            }
            product.fill(0.0);
            let b = &part.b[row * part.rank..][..part.rank];
            for (&b, a) in b.iter().zip(part.a.chunks_exact(part.inputs)) {
                for (product, a) in product.iter_mut().zip(a) {
                    *product += b * a;
                }
            }
            for (number, product) in numbers.iter_mut().zip(&product) {
                *number += part.scale * product;
            }
        }
    }
}

//! Combines named A and B matrices, from files of any format, to additions to linear layers.

use std::collections::BTreeMap;

use super::error::Cause;
use super::naming::Side;
use super::{Linear, LowRank, MAX_RANK};
use crate::DecoderSpec;
use incant_gguf::TensorType;
use incant_kernels::Matrix;

/// A matrix as stored in a file.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) name: &'a str,
    pub(super) shape: &'a [usize],
    pub(super) kind: TensorType,
    pub(super) data: &'a [u8],
}

/// The matrices of a file, by module.
#[derive(Default)]
pub(super) struct Pairs<'a>(pub(super) BTreeMap<String, Pair<'a>>);

#[derive(Clone, Copy, Default)]
pub(super) struct Pair<'a> {
    a: Option<Stored<'a>>,
    b: Option<Stored<'a>>,
}

/// The number of elements that an adapter may still have.
#[derive(Clone, Copy)]
pub(super) struct ElementBudget(pub(super) usize);

impl ElementBudget {
    fn take(&mut self, numbers: usize) -> Result<(), Cause> {
        self.0 = self.0.checked_sub(numbers).ok_or(Cause::OverBudget)?;
        Ok(())
    }
}

impl<'a> Pairs<'a> {
    /// Adds a matrix to its pair.
    pub(super) fn add(
        &mut self,
        module: &str,
        side: Side,
        stored: Stored<'a>,
    ) -> Result<(), Cause> {
        let pair = self.0.entry(module.to_owned()).or_default();
        let slot = match side {
            Side::A => &mut pair.a,
            Side::B => &mut pair.b,
        };
        match slot.replace(stored) {
            Some(other) => Err(Cause::Twice {
                name: other.name.to_owned(),
            }),
            None => Ok(()),
        }
    }
}

impl Pair<'_> {
    /// The number of rows of B: the outputs of the module.
    pub(super) fn outputs(&self) -> usize {
        let shape = self.b.map_or(&[][..], |b| b.shape);
        shape.first().copied().unwrap_or(0)
    }

    /// Returns the additions to `linears`, which the module holds one after the other. `scale`
    /// computes the scale from the rank. `missing` returns the name of a missing matrix of the
    /// pair. The elements are deducted from `budget`.
    pub(super) fn additions(
        &self,
        linears: &[Linear],
        spec: &DecoderSpec,
        scale: impl FnOnce(usize) -> Result<f32, Cause>,
        permute: bool,
        missing: impl Fn(Side) -> String,
        budget: &mut ElementBudget,
    ) -> Result<Vec<(Linear, LowRank)>, Cause> {
        let lacks = |side| Cause::Missing {
            name: missing(side),
        };
        let a = self.a.ok_or_else(|| lacks(Side::A))?;
        let b = self.b.ok_or_else(|| lacks(Side::B))?;
        let shapes = linears.iter().map(|linear| linear.shape(spec));
        let outputs = shapes.clone().map(|[outputs, _]| outputs).sum::<usize>();
        let inputs = linears[0].shape(spec)[1];
        let rank = match a.shape {
            &[rank, width] if width == inputs && (1..=MAX_RANK).contains(&rank) => rank,
            _ => return Err(wrong_shape(&a, &format!("[1 to {MAX_RANK}, {inputs}]"))),
        };
        if b.shape != [outputs, rank] {
            return Err(wrong_shape(&b, &format!("[{outputs}, {rank}]")));
        }
        let scale = scale(rank)?;
        // Each of several fused linear layers gets its own copy of A.
        budget.take(rank * (inputs * linears.len() + outputs))?;
        let (a, b) = (numbers(&a)?, numbers(&b)?);
        let mut rest = &b[..];
        let parts = linears.iter().zip(shapes).map(|(&linear, [outputs, _])| {
            let (b, after) = rest.split_at(outputs * rank);
            rest = after;
            let heads = linear.permuted_heads(spec).filter(|_| permute);
            let part = LowRank {
                rank,
                inputs,
                outputs,
                a: a.clone(),
                b: heads.map_or_else(|| b.to_vec(), |head| interleave_pairs(b, rank, head)),
                scale,
            };
            (linear, part)
        });
        Ok(parts.collect())
    }
}

/// Reorders the rows of each head for GGUF: the first row, the first of the second half, and so
/// on.
fn interleave_pairs(b: &[f32], rank: usize, head: usize) -> Vec<f32> {
    let heads = b.chunks_exact(head * rank);
    let rows = heads.flat_map(|rows| {
        let (first, second) = rows.split_at(head / 2 * rank);
        let pairs = first.chunks_exact(rank).zip(second.chunks_exact(rank));
        pairs.flat_map(|(first, second)| [first, second])
    });
    rows.flatten().copied().collect()
}

/// Reads the elements of a matrix, which must all be finite.
fn numbers(stored: &Stored<'_>) -> Result<Vec<f32>, Cause> {
    let (rows, columns) = (stored.shape[0], stored.shape[1]);
    let packed = Matrix::pack(stored.kind, rows, columns, stored.data);
    let packed = packed.map_err(|error| Cause::Io {
        file: "no memory",
        error,
    })?;
    let packed = packed.ok_or_else(|| Cause::Type {
        name: stored.name.to_owned(),
        kind: stored.kind.to_string(),
    })?;
    let mut numbers = vec![0.0; rows * columns];
    for (row, numbers) in numbers.chunks_exact_mut(columns).enumerate() {
        packed.row(row, numbers);
    }
    if numbers.iter().all(|number| number.is_finite()) {
        Ok(numbers)
    } else {
        Err(Cause::NotFinite {
            name: stored.name.to_owned(),
        })
    }
}

/// Computes the scale of a product: alpha over rank, or over its square root (rsLoRA).
pub(super) fn scale(alpha: f64, rank: usize, use_rslora: bool) -> Result<f32, Cause> {
    let rank_scale = if use_rslora {
        (rank as f64).sqrt()
    } else {
        rank as f64
    };
    let scale = (alpha / rank_scale) as f32;
    if scale.is_finite() {
        Ok(scale)
    } else {
        Err(Cause::Scale { alpha, rank })
    }
}

fn wrong_shape(stored: &Stored<'_>, expected: &str) -> Cause {
    Cause::Shape {
        name: stored.name.to_owned(),
        found: stored.shape.to_vec(),
        expected: expected.to_owned(),
    }
}

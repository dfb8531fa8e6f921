//! The tensors of saved KV: for each layer the keys and the values,
//! `[kv_heads, tokens, head_dim]` each.

use safetensors::{Dtype, SafeTensors};

use super::{ExecError, SavedTensor};

/// Creates the tensors of a layer from its keys and its values.
pub(super) fn layer(
    index: usize,
    dtype: Dtype,
    shape: &[usize],
    [keys, values]: [Vec<u8>; 2],
) -> [SavedTensor; 2] {
    [("k", keys), ("v", values)].map(|(side, bytes)| SavedTensor {
        name: name(index, side),
        shape: shape.to_vec(),
        dtype,
        bytes,
    })
}

/// Returns the bytes of a layer's keys and values.
///
/// # Errors
/// They are missing, or have another type or shape.
pub(super) fn read<'a>(
    saved: &SafeTensors<'a>,
    index: usize,
    dtype: Dtype,
    shape: &[usize],
) -> Result<[&'a [u8]; 2], ExecError> {
    let side = |side| {
        let name = name(index, side);
        let view = saved
            .tensor(&name)
            .map_err(|error| ExecError::Saved(format!("{name}: {error}")))?;
        if view.dtype() != dtype || view.shape() != shape {
            return Err(ExecError::Saved(format!(
                "{name} is {:?} {:?}, expected {dtype:?} {shape:?}",
                view.dtype(),
                view.shape()
            )));
        }
        Ok(view.data())
    };
    Ok([side("k")?, side("v")?])
}

fn name(layer: usize, side: &str) -> String {
    format!("layers.{layer}.{side}")
}

//! Exports adapters as GGUF files, for other engines.

use std::io;
use std::path::Path;

use super::naming::Side;
use super::{Lora, LowRank, PROFILE_KEY};
use crate::DecoderSpec;
use incant_gguf::{TensorType, Writer};

impl Lora {
    /// Writes the adapter as a GGUF file for the model that `spec` describes.
    ///
    /// The format has a single alpha, and the scale is alpha over rank. Alpha is chosen to be
    /// exact for the first linear layer; for layers with another scale, the remaining factor is
    /// multiplied into B.
    ///
    /// # Errors
    /// The file cannot be written, or the model's own file holds fused matrices of several
    /// linear layers: then the format cannot express the addition to one of them.
    pub fn export(&self, spec: &DecoderSpec, path: &Path) -> io::Result<()> {
        if spec.fused_qkv || spec.fused_gate {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "files of this architecture keep several linear layers in one matrix",
            ));
        }
        let alpha_of = |part: &LowRank| part.scale * part.rank as f32;
        let mut alphas = self.additions().map(|(_, _, part)| alpha_of(part));
        // An alpha of 0 would mean a scale of 1.
        let alpha = alphas.find(|&alpha| alpha != 0.0).unwrap_or(1.0);
        let mut writer = Writer::new()
            .text("general.type", "adapter")
            .text("general.architecture", spec.architecture)
            .text("adapter.type", "lora")
            .number("adapter.lora.alpha", alpha);
        if let Some(profile) = self.profile() {
            writer = writer.text(PROFILE_KEY, profile);
        }
        let mut tensors = Vec::new();
        for (layer, linear, part) in self.additions() {
            for side in [Side::A, Side::B] {
                let (suffix, shape) = match side {
                    Side::A => ("lora_a", [part.rank, part.inputs]),
                    Side::B => ("lora_b", [part.outputs, part.rank]),
                };
                let name = format!("blk.{layer}.{}.{suffix}", linear.tensor());
                writer = writer.tensor(&name, &shape, TensorType::F32);
                tensors.push((part, side));
            }
        }
        writer.write(path, |index, out| {
            let (part, side) = tensors[index];
            let (numbers, factor) = match side {
                Side::A => (&part.a, 1.0),
                Side::B => (&part.b, alpha_of(part) / alpha),
            };
            let numbers = numbers.iter().map(|number| number * factor);
            let bytes: Vec<u8> = numbers.flat_map(f32::to_le_bytes).collect();
            out.write_all(&bytes)
        })
    }
}

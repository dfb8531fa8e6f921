//! Reads adapters from GGUF files, as written by llama.cpp's converter.
//!
//! The metadata hold `general.type = adapter` and `adapter.type = lora`; a tensor
//! `blk.0.attn_q.weight.lora_a` of shape `[rank, inputs]` is paired with one that ends in
//! `lora_b`, of shape `[outputs, rank]`. Rows are in the order of the model's own file. A
//! single alpha applies to all pairs; 0 or an absent alpha means a scale of 1.

use super::error::Cause;
use super::naming::{self, Side};
use super::pairs::{self, ElementBudget, Pairs, Stored};
use super::{Linear, Lora};
use crate::DecoderSpec;
use incant_gguf::Gguf;
use incant_gguf::open::{Kind, Location};

pub(super) fn read(
    location: &Location,
    spec: &DecoderSpec,
    mut budget: ElementBudget,
) -> Result<Lora, Cause> {
    let file = location.file(Kind::ADAPTER).map_err(Cause::Open)?;
    let file = Gguf::of_file(file, location.path())?;
    file.check_whole()?;
    let metadata = file.metadata();
    for (key, wanted) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = metadata.get_str(key)?.unwrap_or_default();
        if found != wanted {
            return Err(Cause::Kind {
                key,
                value: found.to_owned(),
            });
        }
    }
    let architecture = metadata.str("general.architecture")?;
    if architecture != spec.architecture {
        return Err(Cause::Architecture {
            adapter: architecture.to_owned(),
            model: spec.architecture,
        });
    }
    if metadata.contains("adapter.alora.invocation_tokens") {
        return Err(Cause::Unsupported("an activated LoRA".to_owned()));
    }
    let alpha = metadata.get_f32("adapter.lora.alpha")?.unwrap_or(0.0);
    let scale = |rank| match alpha {
        0.0 => Ok(1.0),
        alpha => pairs::scale(f64::from(alpha), rank, false),
    };

    let mut pairs = Pairs::default();
    for info in file.tensors() {
        let (_, _, side) = naming::of_gguf(&info.name)?;
        let module = &info.name[..info.name.len() - ".lora_a".len()];
        let stored = Stored {
            name: &info.name,
            shape: &info.shape,
            kind: info.kind,
            data: file.tensor(&info.name)?.data,
        };
        pairs.add(module, side, stored)?;
    }
    let mut parts = Vec::new();
    for (module, pair) in &pairs.0 {
        let name = |side| match side {
            Side::A => format!("{module}.lora_a"),
            Side::B => format!("{module}.lora_b"),
        };
        let any = name(Side::A);
        let (layer, tensor, _) = naming::of_gguf(&any)?;
        if layer >= spec.layers.len() {
            return Err(Cause::Layer {
                name: any,
                layer,
                layers: spec.layers.len(),
            });
        }
        let linears = Linear::of_tensor(tensor, pair.outputs(), spec);
        let linears = linears.ok_or_else(|| Cause::Unknown { name: any.clone() })?;
        let additions = pair.additions(linears, spec, scale, false, name, &mut budget)?;
        parts.extend(
            additions
                .into_iter()
                .map(|(linear, part)| (layer, linear, part)),
        );
    }
    let profile = metadata.get_str(super::PROFILE_KEY)?.map(str::to_owned);
    Lora::new(spec, parts, profile)
}

//! Adapters written as PEFT saves them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::{Linear, Lora, LowRank, PROFILE_KEY, pairs};
use crate::model::DecoderSpec;

/// What a PEFT directory says of an adapter beside its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// Rows of A.
    pub rank: usize,
    /// What the product is scaled by, over the rank.
    pub alpha: f64,
    /// Over the rank's root (rsLoRA) instead.
    pub stabilized: bool,
    /// The model that it is for.
    pub base_model: String,
}

impl PeftConfig {
    /// What the product is multiplied by.
    pub fn scale(&self) -> f32 {
        pairs::scale(self.alpha, self.rank, self.stabilized).unwrap_or(0.0)
    }
}

impl Lora {
    /// Writes a PEFT directory into `folder`, which is there: `adapter_config.json` and
    /// `adapter_model.safetensors`. Ranks and scales that differ from the configuration's
    /// go into its patterns.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save_peft(
        &self,
        spec: &DecoderSpec,
        config: &PeftConfig,
        folder: &Path,
    ) -> io::Result<()> {
        let (mut ranks, mut alphas) = (serde_json::Map::new(), serde_json::Map::new());
        let mut modules: Vec<&str> = Vec::new();
        let mut tensors = Vec::new();
        for (layer, linear, part) in self.parts() {
            let (name, rank) = (linear.module(), part.rank);
            let last = name.rsplit('.').next().unwrap_or(name);
            if !modules.contains(&last) {
                modules.push(last);
            }
            let key = format!("layers.{layer}.{name}");
            if rank != config.rank {
                ranks.insert(key.clone(), json!(rank));
            }
            let root = match config.stabilized {
                true => (rank as f64).sqrt(),
                false => rank as f64,
            };
            let usual = PeftConfig {
                rank,
                ..config.clone()
            };
            if usual.scale() != part.scale {
                alphas.insert(key, json!(f64::from(part.scale) * root));
            }
            let module = format!("base_model.model.model.layers.{layer}.{name}");
            let b = in_peft_order(part, linear, spec);
            tensors.push((
                format!("{module}.lora_A.weight"),
                [rank, part.inputs],
                bytes(&part.a),
            ));
            tensors.push((
                format!("{module}.lora_B.weight"),
                [part.outputs, rank],
                bytes(&b),
            ));
        }
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": config.base_model,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "use_rslora": config.stabilized,
            "target_modules": modules,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": null,
        });
        let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        if let Some(profile) = self.profile() {
            metadata.insert(PROFILE_KEY.to_owned(), profile.to_owned());
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
            view.map(|view| (name.as_str(), view))
        });
        let views = views
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        let file = safetensors::serialize(views, Some(metadata)).map_err(io::Error::other)?;
        fs::write(folder.join("adapter_model.safetensors"), file)?;
        let config = serde_json::to_string_pretty(&config)?;
        fs::write(folder.join("adapter_config.json"), config + "\n")
    }
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// B with the rows of each head in the order in which PEFT keeps them.
fn in_peft_order(part: &LowRank, linear: Linear, spec: &DecoderSpec) -> Vec<f32> {
    match linear.permuted_heads(spec) {
        Some(head) => pairs::halves_together(&part.b, part.rank, head),
        None => part.b.clone(),
    }
}

//! Saves adapters as PEFT directories.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use super::naming::Side;
use super::{Linear, Lora, LowRank, PROFILE_KEY, peft};
use crate::DecoderSpec;

impl Lora {
    /// Writes the adapter into the existing `folder` as PEFT does, in f32: reading it gives the
    /// same adapter. `base` is the name of its model.
    ///
    /// The configuration holds the first rank and scale; others become `rank_pattern` and
    /// `alpha_pattern`. A scale is written as alpha over rank, whatever its origin. Linear
    /// layers that a checkpoint fuses in one matrix are written separately, although PEFT
    /// itself would not find them in such a checkpoint.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, spec: &DecoderSpec, base: &str, folder: &Path) -> io::Result<()> {
        let config = serde_json::to_string_pretty(&self.config(base))?;
        write(&folder.join(peft::CONFIG), (config + "\n").as_bytes())?;

        let tensors = self.additions().flat_map(|(layer, linear, part)| {
            let module = module(layer, linear);
            let b = match linear.permuted_heads(spec) {
                Some(head) => split_into_halves(&part.b, part.rank, head),
                None => part.b.clone(),
            };
            let sides = [
                (Side::A, [part.rank, part.inputs], bytes(&part.a)),
                (Side::B, [part.outputs, part.rank], bytes(&b)),
            ];
            sides.map(|(side, shape, bytes)| (peft::tensor_name(&module, side), shape, bytes))
        });
        let tensors: Vec<_> = tensors.collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes);
            view.map(|view| (name.as_str(), view))
        });
        let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        if let Some(profile) = self.profile() {
            metadata.insert(PROFILE_KEY.to_owned(), profile.to_owned());
        }
        let file = views
            .collect::<Result<Vec<_>, _>>()
            .and_then(|views| safetensors::serialize(views, Some(metadata)))
            .map_err(io::Error::other)?;
        write(&folder.join(peft::TENSORS), &with_sorted_metadata(file)?)
    }

    fn config(&self, base: &str) -> Value {
        let mut kinds = self
            .additions()
            .map(|(_, _, part)| (part.rank, alpha(part)));
        let (rank, scale) = kinds.next().unwrap_or((1, 1.0));
        let (mut ranks, mut alphas) = (Map::new(), Map::new());
        for (layer, linear, part) in self.additions() {
            let module = module(layer, linear);
            if part.rank != rank {
                ranks.insert(module.clone(), json!(part.rank));
            }
            if alpha(part) != scale {
                alphas.insert(module, json!(alpha(part)));
            }
        }
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": scale,
            "use_rslora": false,
            "rank_pattern": ranks,
            "alpha_pattern": alphas,
            "target_modules": self.targets(),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "modules_to_save": null,
        })
    }

    /// Returns the modules that it adds to: by their last name components if all layers have
    /// them, else by their full names.
    fn targets(&self) -> Vec<String> {
        let mut layers: BTreeMap<Linear, Vec<usize>> = BTreeMap::new();
        for (layer, linear, _) in self.additions() {
            layers.entry(linear).or_default().push(layer);
        }
        let targets = layers.into_iter().flat_map(|(linear, layers)| {
            if layers.len() == self.layers() {
                vec![linear.target().to_owned()]
            } else {
                layers
                    .into_iter()
                    .map(|layer| module(layer, linear))
                    .collect()
            }
        });
        targets.collect()
    }
}

/// The full name of a linear layer's module.
fn module(layer: usize, linear: Linear) -> String {
    format!("model.layers.{layer}.{}", linear.module())
}

/// Returns the alpha that gives the scale when divided by the rank; exact, so that reading
/// gives the same scale.
fn alpha(part: &LowRank) -> f64 {
    f64::from(part.scale) * part.rank as f64
}

/// Reorders the rows of each head from GGUF to PEFT: the first of all pairs, then the second of
/// all pairs.
fn split_into_halves(b: &[f32], rank: usize, head: usize) -> Vec<f32> {
    let heads = b.chunks_exact(head * rank);
    let rows = heads.flat_map(|rows| {
        let pairs = || rows.chunks_exact(2 * rank).map(|pair| pair.split_at(rank));
        let first = pairs().map(|(first, _)| first);
        first.chain(pairs().map(|(_, second)| second))
    });
    rows.flatten().copied().collect()
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// Sorts the metadata of a safetensors file by key. The format's own writer takes them from a
/// hash map, so the same adapter would give different files.
fn with_sorted_metadata(mut file: Vec<u8>) -> io::Result<Vec<u8>> {
    let cut = || io::Error::other("a safetensors file begins with a header");
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(cut)?;
    let length = u64::from_le_bytes(*length) as usize;
    let header = rest.get(..length).ok_or_else(cut)?;
    let mut header: Map<String, Value> = serde_json::from_slice(header)?;
    if let Some(Value::Object(metadata)) = header.get_mut("__metadata__") {
        metadata.sort_keys();
    }
    let header = serde_json::to_vec(&header)?;
    // The header is padded with spaces up to the start of the data.
    let place = &mut file[8..8 + length];
    let (text, space) = place.split_at_mut_checked(header.len()).ok_or_else(cut)?;
    text.copy_from_slice(&header);
    space.fill(b' ');
    Ok(file)
}

/// Writes a file and syncs it to disk.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, LayerSpec, RopeSpec, RopeStyle};

    fn spec(style: RopeStyle) -> DecoderSpec {
        DecoderSpec {
            architecture: "llama",
            vocab: 8,
            hidden: 8,
            feed_forward: 12,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            context: 16,
            served_context: 16,
            norm_eps: 1e-5,
            attention_scale: 0.5,
            temperature: None,
            attention_cap: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: None,
            activation: Activation::Silu,
            qkv_bias: false,
            qk_norm: None,
            pre_norms: true,
            post_norms: false,
            fused_qkv: false,
            fused_gate: false,
            tied_embeddings: true,
            ropes: vec![RopeSpec {
                base: 1e4,
                dims: 4,
                scale: 1.0,
                factors: None,
                long: None,
                magnitude: 1.0,
                style,
            }],
            layers: vec![
                LayerSpec {
                    window: None,
                    rope: 0,
                };
                2
            ],
        }
    }

    fn part(spec: &DecoderSpec, linear: Linear, rank: usize, scale: f32) -> LowRank {
        let [outputs, inputs] = linear.shape(spec);
        let numbers = |count: usize, from: f32| (0..count).map(|n| from + n as f32 / 7.0).collect();
        LowRank {
            rank,
            inputs,
            outputs,
            a: numbers(rank * inputs, -1.0),
            b: numbers(outputs * rank, 2.0),
            scale,
        }
    }

    fn saved(lora: &Lora, spec: &DecoderSpec) -> (tempfile::TempDir, Value) {
        let folder = tempfile::tempdir().unwrap();
        lora.save(spec, "some/model", folder.path()).unwrap();
        let config = std::fs::read(folder.path().join(peft::CONFIG)).unwrap();
        (folder, serde_json::from_slice(&config).unwrap())
    }

    #[test]
    fn what_is_saved_is_read_again_to_the_last_bit() {
        for style in [RopeStyle::Halves, RopeStyle::Pairs] {
            let spec = spec(style);
            // The square root of 3 and one third are not exact in binary.
            let scales = [3f32.sqrt(), 1.0 / 3.0];
            let parts = (0..2).flat_map(|layer| {
                let spec = &spec;
                Linear::ALL.map(|linear| (layer, linear, part(spec, linear, 3, scales[layer])))
            });
            let lora = Lora::new(&spec, parts, Some("turn".to_owned())).unwrap();
            let (folder, config) = saved(&lora, &spec);
            assert_eq!(Lora::read(folder.path(), &spec).unwrap(), lora);
            assert_eq!(config["base_model_name_or_path"], "some/model");
            let targets = config["target_modules"].as_array().unwrap();
            assert_eq!(targets.len(), Linear::ALL.len());
            assert_eq!(targets[0], "q_proj");
        }
    }

    #[test]
    fn the_same_adapter_is_the_same_file() {
        let spec = spec(RopeStyle::Halves);
        let parts = [(0, Linear::Query, part(&spec, Linear::Query, 2, 2.0))];
        let lora = Lora::new(&spec, parts, Some("turn".to_owned())).unwrap();
        let files = || {
            let (folder, _) = saved(&lora, &spec);
            [peft::CONFIG, peft::TENSORS]
                .map(|name| std::fs::read(folder.path().join(name)).unwrap())
        };
        let first = files();
        // Two entries of a hash map appear in random order.
        for _ in 0..20 {
            assert!(files() == first);
        }
        let (_, header) = safetensors::SafeTensors::read_metadata(&first[1]).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()[PROFILE_KEY], "turn");
    }

    #[test]
    fn layers_and_ranks_that_differ_are_written_so() {
        let spec = spec(RopeStyle::Halves);
        let parts = [
            (0, Linear::Query, part(&spec, Linear::Query, 2, 2.0)),
            (0, Linear::Down, part(&spec, Linear::Down, 4, 2.0)),
            (1, Linear::Down, part(&spec, Linear::Down, 4, 1.0)),
        ];
        let lora = Lora::new(&spec, parts, None).unwrap();
        let (folder, config) = saved(&lora, &spec);
        assert_eq!(Lora::read(folder.path(), &spec).unwrap(), lora);
        assert_eq!(
            config["target_modules"],
            json!(["model.layers.0.self_attn.q_proj", "down_proj"])
        );
        assert_eq!(config["rank_pattern"]["model.layers.1.mlp.down_proj"], 4);
        // 2 · 4 and 1 · 4; the first layer's 2 · 2 is that of the configuration.
        assert_eq!(config["lora_alpha"], 4.0);
        assert_eq!(
            config["alpha_pattern"],
            json!({"model.layers.0.mlp.down_proj": 8.0})
        );
    }

    #[test]
    fn rows_of_pairs_are_put_as_peft_has_them() {
        // One head of four rows of one element.
        assert_eq!(
            split_into_halves(&[0.0, 2.0, 1.0, 3.0], 1, 4),
            [0.0, 1.0, 2.0, 3.0]
        );
    }
}

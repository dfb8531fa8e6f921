//! Reads PEFT adapters: a directory with `adapter_config.json` (including rsLoRA,
//! `rank_pattern`, `alpha_pattern`) and `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;

use regex::{Regex, RegexBuilder};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::Value;

use super::error::Cause;
use super::naming::{self, Side};
use super::pairs::{self, ElementBudget, Pairs, Stored};
use super::{Linear, Lora};
use crate::DecoderSpec;
use incant_gguf::TensorType;
use incant_gguf::mmap::Map;
use incant_gguf::open::{Kind, Location};

/// The names of the files of an adapter.
pub const FILES: [&str; 2] = [CONFIG, TENSORS];

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// The maximum number of patterns in a configuration, more than a model has linear layers, and
/// the maximum size of a compiled pattern in bytes: most patterns are literal names.
const MAX_PATTERNS: usize = 4096;
const MAX_PATTERN_BYTES: usize = 64 << 10;

/// The settings in `adapter_config.json` that affect the result. Other settings that affect it
/// are in `rest`, and refused.
#[derive(Deserialize)]
struct Config {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    rank_pattern: Option<serde_json::Map<String, Value>>,
    #[serde(default)]
    alpha_pattern: Option<serde_json::Map<String, Value>>,
    #[serde(default)]
    target_modules: Option<Value>,
    #[serde(flatten)]
    rest: HashMap<String, Value>,
}

/// Settings with which an adapter is more than low-rank additions to linear layers, and their
/// names. They are off when null, false, empty or `none`.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("use_dora", "DoRA"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "a block-diagonal LoRA"),
    ("alora_invocation_tokens", "an activated LoRA"),
    ("lora_bias", "biases of LoRA"),
    ("bias", "trained biases"),
    ("modules_to_save", "modules that are trained as a whole"),
    ("trainable_token_indices", "trained embeddings"),
    (
        "target_parameters",
        "adapted parameters outside of linear layers",
    ),
    ("layer_replication", "repeated layers"),
    ("fan_in_fan_out", "transposed weights"),
    ("kasa_config", "KaSA"),
    ("arrow_config", "Arrow"),
    ("monteclora_config", "a Monte Carlo LoRA"),
];

/// Initialisations that change the frozen weights too; PEFT can convert such adapters when it
/// saves them.
const CHANGED_WEIGHTS: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

pub(super) fn read(
    folder: &Location,
    spec: &DecoderSpec,
    mut budget: ElementBudget,
) -> Result<Lora, Cause> {
    let config = read_config(folder)?;
    let tensors = folder.join(TENSORS).file(Kind::ADAPTER);
    let map = match tensors.and_then(Map::of) {
        Ok(map) => map,
        Err(error)
            if error.kind() == ErrorKind::NotFound
                && folder.join("adapter_model.bin").open().is_ok() =>
        {
            return Err(Cause::Pickle);
        }
        Err(error) => {
            return Err(Cause::Io {
                file: TENSORS,
                error,
            });
        }
    };
    let (_, header) = SafeTensors::read_metadata(&map)?;
    let profile = header.metadata().as_ref();
    let profile = profile.and_then(|metadata| metadata.get(super::PROFILE_KEY).cloned());
    let tensors = SafeTensors::deserialize(&map)?;
    let shapes: BTreeMap<String, Vec<usize>> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec()))
        .collect();
    let mut found = Pairs::default();
    for (name, shape) in &shapes {
        let (module, side) = naming::of_peft(name)?;
        let view = tensors.tensor(name)?;
        let stored = Stored {
            name,
            shape,
            kind: tensor_type(name, view.dtype())?,
            data: view.data(),
        };
        found.add(module, side, stored)?;
    }

    let scales = Scales::new(&config)?;
    let mut parts = Vec::new();
    for (module, pair) in &found.0 {
        let name = |side| tensor_name(module, side);
        let unknown = || Cause::Unknown {
            name: name(Side::A),
        };
        let (layer, local) = naming::in_layer(module).ok_or_else(unknown)?;
        let linears = Linear::of_module(local).ok_or_else(unknown)?;
        if layer >= spec.layers.len() {
            return Err(Cause::Layer {
                name: name(Side::A),
                layer,
                layers: spec.layers.len(),
            });
        }
        let scale = |rank| scales.of(module, rank);
        let additions = pair.additions(linears, spec, scale, true, name, &mut budget)?;
        parts.extend(
            additions
                .into_iter()
                .map(|(linear, part)| (layer, linear, part)),
        );
    }
    let lora = Lora::new(spec, parts, profile)?;
    check_complete(&config, &found, spec)?;
    Ok(lora)
}

fn read_config(folder: &Location) -> Result<Config, Cause> {
    let text = folder.join(CONFIG).read(Kind::ADAPTER_CONFIG);
    let text = text.map_err(|error| Cause::Io {
        file: CONFIG,
        error,
    })?;
    // Some editors insert a byte order mark.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let config: Config = serde_json::from_slice(text).map_err(Cause::Config)?;
    if config.peft_type != "LORA" {
        return Err(Cause::Kind {
            key: "peft_type",
            value: config.peft_type,
        });
    }
    for (key, what) in UNSUPPORTED {
        if config.rest.get(*key).is_some_and(is_on) {
            return Err(Cause::Unsupported(format!("{what} ('{key}')")));
        }
    }
    let start = config.rest.get("init_lora_weights").and_then(Value::as_str);
    let start = start.unwrap_or_default();
    if CHANGED_WEIGHTS.iter().any(|name| start.starts_with(name)) {
        return Err(Cause::Unsupported(format!(
            "it adds to weights that were changed when its training began \
             ('init_lora_weights': '{}')",
            start.escape_debug()
        )));
    }
    Ok(config)
}

fn is_on(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::String(text) => text != "none",
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
        Value::Number(_) => true,
    }
}

/// The scales of the modules.
struct Scales {
    rank: usize,
    alpha: f64,
    use_rslora: bool,
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
}

impl Scales {
    fn new(config: &Config) -> Result<Scales, Cause> {
        Ok(Scales {
            rank: config.r,
            alpha: config.lora_alpha,
            use_rslora: config.use_rslora,
            ranks: patterns("rank_pattern", config.rank_pattern.as_ref())?,
            alphas: patterns("alpha_pattern", config.alpha_pattern.as_ref())?,
        })
    }

    fn of(&self, module: &str, rank: usize) -> Result<f32, Cause> {
        let of = |patterns: &[(Regex, f64)]| {
            let found = patterns
                .iter()
                .find(|(pattern, _)| pattern.is_match(module));
            found.map(|(_, value)| *value)
        };
        let expected = of(&self.ranks).unwrap_or(self.rank as f64);
        if expected != rank as f64 {
            return Err(Cause::Unsupported(format!(
                "'{}' has rank {rank}, but the configuration says {expected}",
                module.escape_debug()
            )));
        }
        pairs::scale(
            of(&self.alphas).unwrap_or(self.alpha),
            rank,
            self.use_rslora,
        )
    }
}

/// Compiles patterns. As in PEFT, a pattern matches a module's whole name, or the part after
/// one of its dots; the first matching pattern applies.
fn patterns(
    key: &str,
    patterns: Option<&serde_json::Map<String, Value>>,
) -> Result<Vec<(Regex, f64)>, Cause> {
    let wrong =
        |pattern: &str| Cause::Unsupported(format!("'{}' in {key}", pattern.escape_debug()));
    if patterns.is_some_and(|patterns| patterns.len() > MAX_PATTERNS) {
        return Err(Cause::Unsupported(format!(
            "{key} has more than {MAX_PATTERNS} patterns"
        )));
    }
    let patterns = patterns.into_iter().flatten().map(|(pattern, value)| {
        let regex = RegexBuilder::new(&format!(r"^(?:.*\.)?(?:{pattern})$"))
            .size_limit(MAX_PATTERN_BYTES)
            .build();
        let value = value.as_f64().ok_or_else(|| wrong(pattern))?;
        Ok((regex.map_err(|_| wrong(pattern))?, value))
    });
    patterns.collect()
}

/// Checks that each layer has all modules that the configuration lists by name.
fn check_complete(config: &Config, found: &Pairs<'_>, spec: &DecoderSpec) -> Result<(), Cause> {
    let chosen = ["layers_to_transform", "exclude_modules"];
    if chosen
        .iter()
        .any(|key| config.rest.get(*key).is_some_and(is_on))
    {
        return Ok(());
    }
    let Some(Value::Array(targets)) = &config.target_modules else {
        return Ok(());
    };
    let Some(any) = found.0.keys().next() else {
        return Ok(());
    };
    let root = any.split_once("layers.").map_or("", |(root, _)| root);
    for target in targets.iter().filter_map(Value::as_str) {
        let is_target = |module: &&&str| module.ends_with(&format!(".{target}"));
        for module in Linear::MODULES.iter().filter(is_target) {
            for layer in 0..spec.layers.len() {
                let module = format!("{root}layers.{layer}.{module}");
                if !found.0.contains_key(&module) {
                    return Err(Cause::Missing {
                        name: tensor_name(&module, Side::A),
                    });
                }
            }
        }
    }
    Ok(())
}

pub(super) fn tensor_name(module: &str, side: Side) -> String {
    let side = match side {
        Side::A => "lora_A",
        Side::B => "lora_B",
    };
    format!("base_model.model.{module}.{side}.weight")
}

fn tensor_type(name: &str, dtype: Dtype) -> Result<TensorType, Cause> {
    match dtype {
        Dtype::F32 => Ok(TensorType::F32),
        Dtype::F16 => Ok(TensorType::F16),
        Dtype::BF16 => Ok(TensorType::BF16),
        other => Err(Cause::Type {
            name: name.to_owned(),
            kind: format!("{other:?}"),
        }),
    }
}

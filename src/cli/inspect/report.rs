//! Collects all data of `incant inspect`, to be printed or serialized.

use std::collections::BTreeMap;

use incant::gguf::{Array, Gguf, TensorInfo, TensorType, Value, ValueType};
use incant::model::{DecoderSpec, arch};
use incant::text::{TokenKind, Tokenizer};
use serde::{Serialize, Serializer};

use super::machine::Memory;

/// The number of array elements that are shown; the others are only counted.
const SHOWN_ELEMENTS: usize = 4;

/// The number of tokens that KV is estimated for.
const KV_TOKENS: usize = 1000;

/// Bytes per KV element, in f16.
const KV_WIDTH: usize = 2;

/// A file's contents and memory needs. Sizes are in bytes.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) file: String,
    pub(super) version: u32,
    pub(super) size: u64,
    pub(super) fingerprint: String,
    pub(super) parameters: u64,
    #[serde(serialize_with = "by_key")]
    pub(super) metadata: Vec<Entry>,
    pub(super) types: Vec<TypeUse>,
    #[serde(serialize_with = "either")]
    pub(super) tokenizer: Result<TokenizerFacts, Problem>,
    pub(super) chat_template: Option<String>,
    pub(super) parts: Vec<PartUse>,
    #[serde(serialize_with = "either")]
    pub(super) kv: Result<KvUse, Problem>,
    pub(super) machine: Option<Memory>,
    pub(super) widths: Vec<Width>,
    pub(super) tensors: Vec<Tensor>,
}

/// The reason why an item is not in the report.
#[derive(Serialize)]
pub(super) struct Problem {
    pub(super) problem: String,
}

/// Serializes the item, or the problem in its place.
fn either<T: Serialize, S: Serializer>(
    found: &Result<T, Problem>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match found {
        Ok(found) => found.serialize(serializer),
        Err(problem) => problem.serialize(serializer),
    }
}

/// Serializes the metadata as an object.
fn by_key<S: Serializer>(entries: &[Entry], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|entry| (&entry.key, entry)))
}

/// A metadata entry.
#[derive(Serialize)]
pub(super) struct Entry {
    #[serde(skip)]
    pub(super) key: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// The value; of an array, its first elements.
    pub(super) value: serde_json::Value,
    /// An array's full length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) length: Option<usize>,
}

/// The tensors of one type.
#[derive(Serialize)]
pub(super) struct TypeUse {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) bits_per_weight: f64,
    pub(super) tensors: usize,
    pub(super) elements: u64,
    pub(super) bytes: u64,
}

#[derive(Serialize)]
pub(super) struct TokenizerFacts {
    pub(super) model: &'static str,
    pub(super) pre: String,
    pub(super) vocab_size: usize,
    /// The number of tokens of each kind that occurs.
    pub(super) kinds: BTreeMap<&'static str, usize>,
    pub(super) bos: Option<TokenName>,
    pub(super) eos: Option<TokenName>,
    pub(super) adds_bos: bool,
    pub(super) adds_eos: bool,
    pub(super) adds_space_prefix: bool,
    pub(super) end_tokens: Vec<TokenName>,
}

#[derive(Serialize)]
pub(super) struct TokenName {
    pub(super) id: u32,
    pub(super) piece: String,
}

/// The tensors of one part of the model.
#[derive(Serialize)]
pub(super) struct PartUse {
    pub(super) part: Role,
    pub(super) tensors: usize,
    pub(super) elements: u64,
    pub(super) bytes: u64,
}

/// The part of the model that a tensor belongs to, by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Role {
    Embeddings,
    Attention,
    FeedForward,
    Norms,
    #[serde(rename = "head")]
    LmHead,
    Other,
}

/// The memory of keys and values in f16.
#[derive(Serialize)]
pub(super) struct KvUse {
    /// Bytes for a sequence of 1,000 tokens.
    pub(super) per_1000_tokens: u64,
    /// The maximum context that the model was made for, with its memory.
    pub(super) context: usize,
    pub(super) at_full_context: u64,
    /// The number of layers with sliding-window attention, which keep only the last tokens.
    pub(super) windowed_layers: usize,
    pub(super) window: Option<usize>,
}

/// The memory that the weights would take at a width.
#[derive(Serialize)]
pub(super) struct Width {
    pub(super) bits: u32,
    /// The GGUF type of the estimate, including block scales.
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) bytes: u64,
    /// The share of the machine's memory, if that is known.
    pub(super) share_of_memory: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct Tensor {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) shape: Vec<usize>,
    pub(super) part: Role,
    pub(super) offset: usize,
    pub(super) bytes: usize,
}

impl Report {
    pub(super) fn of(gguf: &Gguf) -> Report {
        let machine = Memory::read();
        let problem = |error: &dyn std::error::Error| Problem {
            // The report names the file already.
            problem: error
                .to_string()
                .trim_start_matches(&format!("{}: ", gguf.path().display()))
                .to_owned(),
        };
        Report {
            file: gguf.path().display().to_string(),
            version: gguf.version(),
            size: gguf.file_len() as u64,
            fingerprint: gguf
                .fingerprint()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            parameters: gguf.tensors().map(|tensor| tensor.elements() as u64).sum(),
            metadata: metadata(gguf),
            types: types(gguf),
            tokenizer: Tokenizer::from_gguf(gguf)
                .map(|tokenizer| tokenizer_facts(&tokenizer))
                .map_err(|error| problem(&error)),
            chat_template: gguf
                .metadata()
                .get_str("tokenizer.chat_template")
                // A value of another type is shown with the metadata.
                .unwrap_or_default()
                .map(str::to_owned),
            parts: parts(gguf),
            kv: arch::read(gguf)
                .map(|spec| kv(&spec))
                .map_err(|error| problem(&error)),
            machine,
            widths: widths(gguf, machine),
            tensors: gguf.tensors().map(tensor).collect(),
        }
    }
}

fn metadata(gguf: &Gguf) -> Vec<Entry> {
    let entries = gguf.metadata().iter();
    entries
        .map(|(key, kind, value)| {
            let (kind, value, length) = match value {
                Value::Array(array) => (
                    format!("array of {}", array.kind().name()),
                    serde_json::Value::Array(first(array)),
                    Some(array.len()),
                ),
                value => (kind.name().to_owned(), json(value), None),
            };
            Entry {
                key: key.to_owned(),
                kind,
                value,
                length,
            }
        })
        .collect()
}

/// Returns an array's first elements; all of a short one.
fn first(array: Array<'_>) -> Vec<serde_json::Value> {
    let all = array.len() <= 2 * SHOWN_ELEMENTS;
    let shown = if all { array.len() } else { SHOWN_ELEMENTS };
    array.iter().take(shown).map(json).collect()
}

fn json(value: Value<'_>) -> serde_json::Value {
    match value {
        Value::Unsigned(value) => value.into(),
        Value::Signed(value) => value.into(),
        // Converted through the shortest decimal form: 1e-6, not 9.999999974752427e-7.
        Value::F32(value) => value.to_string().parse::<f64>().unwrap_or(f64::NAN).into(),
        Value::F64(value) => value.into(),
        Value::Bool(value) => value.into(),
        Value::String(value) => value.into(),
        // Nested arrays do not occur, and entries are taken apart before.
        Value::Array(array) => first(array).into(),
    }
}

fn types(gguf: &Gguf) -> Vec<TypeUse> {
    let mut uses: BTreeMap<TensorType, TypeUse> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let entry = uses.entry(tensor.kind).or_insert_with(|| TypeUse {
            kind: tensor.kind.name(),
            bits_per_weight: tensor.kind.bits_per_weight(),
            tensors: 0,
            elements: 0,
            bytes: 0,
        });
        entry.tensors += 1;
        entry.elements += tensor.elements() as u64;
        entry.bytes += tensor.len as u64;
    }
    let mut uses: Vec<TypeUse> = uses.into_values().collect();
    uses.sort_by_key(|entry| std::cmp::Reverse(entry.bytes));
    uses
}

fn tokenizer_facts(tokenizer: &Tokenizer) -> TokenizerFacts {
    let name = |id| TokenName {
        id,
        piece: tokenizer.piece(id).unwrap_or_default().to_owned(),
    };
    let mut kinds = BTreeMap::new();
    for id in 0..tokenizer.vocab_size() {
        let kind: TokenKind = tokenizer.kind(id as u32);
        *kinds.entry(kind.name()).or_default() += 1;
    }
    TokenizerFacts {
        model: tokenizer.kind_name(),
        pre: tokenizer.pre_name().to_owned(),
        vocab_size: tokenizer.vocab_size(),
        kinds,
        bos: tokenizer.bos().map(name),
        eos: tokenizer.eos().map(name),
        adds_bos: tokenizer.adds_bos(),
        adds_eos: tokenizer.adds_eos(),
        adds_space_prefix: tokenizer.adds_space_prefix(),
        end_tokens: tokenizer.end_tokens().iter().copied().map(name).collect(),
    }
}

fn parts(gguf: &Gguf) -> Vec<PartUse> {
    let mut parts: BTreeMap<Role, PartUse> = BTreeMap::new();
    for tensor in gguf.tensors() {
        let part = role(&tensor.name);
        let entry = parts.entry(part).or_insert(PartUse {
            part,
            tensors: 0,
            elements: 0,
            bytes: 0,
        });
        entry.tensors += 1;
        entry.elements += tensor.elements() as u64;
        entry.bytes += tensor.len as u64;
    }
    parts.into_values().collect()
}

/// Returns the part that a tensor belongs to, by GGUF's naming of tensors.
fn role(name: &str) -> Role {
    let local = match name
        .strip_prefix("blk.")
        .and_then(|name| name.split_once('.'))
    {
        Some((_, local)) => local,
        None => name,
    };
    let stem = local.split('.').next().unwrap_or(local);
    match stem {
        _ if stem.ends_with("_norm") => Role::Norms,
        "token_embd" | "position_embd" | "token_types" => Role::Embeddings,
        "output" => Role::LmHead,
        _ if stem.starts_with("attn_") => Role::Attention,
        _ if stem.starts_with("ffn_") => Role::FeedForward,
        _ => Role::Other,
    }
}

fn kv(spec: &DecoderSpec) -> KvUse {
    let windows = || spec.layers.iter().filter_map(|layer| layer.window);
    KvUse {
        per_1000_tokens: spec.kv_bytes(KV_TOKENS, KV_WIDTH) as u64,
        context: spec.context,
        at_full_context: spec.kv_bytes(spec.context, KV_WIDTH) as u64,
        windowed_layers: windows().count(),
        window: windows().max(),
    }
}

/// Returns the size of the weights at 32, 16, 8 and 4 bits: matrices in the plainest type of that
/// width, vectors (norms, biases) at 32 bits, as converters write them.
fn widths(gguf: &Gguf, machine: Option<Memory>) -> Vec<Width> {
    let types = [
        (32, TensorType::F32),
        (16, TensorType::BF16),
        (8, TensorType::Q8_0),
        (4, TensorType::Q4_0),
    ];
    types
        .map(|(bits, kind)| {
            let bytes_of = |tensor: &TensorInfo| {
                let matrix = tensor.shape.len() > 1;
                let kind = if matrix { kind } else { TensorType::F32 };
                tensor.elements() as f64 * kind.bits_per_weight() / 8.0
            };
            let bytes = gguf.tensors().map(bytes_of).sum::<f64>() as u64;
            Width {
                bits,
                kind: kind.name(),
                bytes,
                share_of_memory: machine.map(|memory| bytes as f64 / memory.total as f64),
            }
        })
        .into()
}

fn tensor(info: &TensorInfo) -> Tensor {
    Tensor {
        name: info.name.clone(),
        kind: info.kind.name(),
        shape: info.shape.clone(),
        part: role(&info.name),
        offset: info.offset,
        bytes: info.len,
    }
}

impl Entry {
    /// Whether the value is a string.
    pub(super) fn is_string(&self) -> bool {
        self.kind == ValueType::String.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_told_apart_by_name() {
        let is = |name, part: Role| assert!(role(name) == part, "{name}");
        is("token_embd.weight", Role::Embeddings);
        is("output.weight", Role::LmHead);
        is("output_norm.weight", Role::Norms);
        is("blk.0.attn_q.weight", Role::Attention);
        is("blk.11.attn_q.bias", Role::Attention);
        is("blk.0.attn_q_norm.weight", Role::Norms);
        is("blk.0.attn_output.weight", Role::Attention);
        is("blk.0.post_ffw_norm.weight", Role::Norms);
        is("blk.0.ffn_down.weight", Role::FeedForward);
        is("rope_freqs.weight", Role::Other);
    }
}

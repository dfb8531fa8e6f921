//! Tokenizers: the reference's ids, round trips, guards, and invalid metadata.
//!
//! The reference's recordings are in `INCANT_SHARED`; without them, their test prints a line.

mod encoding;
mod guards;

use std::sync::OnceLock;

use incant::gguf::Gguf;
use incant::text::Tokenizer;

use crate::build::{Builder, Item};
use crate::support;

const MODELS: [&str; 3] = [
    "gemma-3-270m",
    "smollm2-135m-instruct",
    "qwen2.5-coder-0.5b-instruct",
];

/// The tokenizers of the real models, by name.
fn models() -> &'static [(&'static str, Tokenizer)] {
    static LOADED: OnceLock<Vec<(&str, Tokenizer)>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let load = |model| {
            let gguf = Gguf::open(&support::model(model)).expect("opens");
            (model, Tokenizer::from_gguf(&gguf).expect("has a tokenizer"))
        };
        MODELS.into_iter().map(load).collect()
    })
}

fn build(builder: &Builder) -> Result<Tokenizer, String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), builder.bytes()).expect("written");
    let gguf = Gguf::open(file.path()).expect("a good file");
    Tokenizer::from_gguf(&gguf).map_err(|error| {
        let line = error.to_string();
        assert!(!line.contains('\n'), "{line:?}");
        let path = format!("{}: ", file.path().display());
        line.strip_prefix(&path).expect("names the file").to_owned()
    })
}

/// A SentencePiece vocabulary: `<s>` 0, `</s>` 1, `<unk>` 2, the 256 bytes from 3, then
/// `pieces` with their scores and types.
fn spm(pieces: &[(&str, f32, i32)]) -> Builder {
    let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut texts = vec!["<s>", "</s>", "<unk>"];
    texts.extend(bytes.iter().map(String::as_str));
    texts.extend(pieces.iter().map(|piece| piece.0));
    let mut scores = vec![0.0; 259];
    scores.extend(pieces.iter().map(|piece| piece.1));
    let mut types = vec![3, 3, 2];
    types.extend([6; 256]);
    types.extend(pieces.iter().map(|piece| piece.2));
    Builder::new()
        .with("tokenizer.ggml.model", Item::Str("llama"))
        .with("tokenizer.ggml.tokens", Item::Strs(&texts))
        .with("tokenizer.ggml.scores", Item::F32s(&scores))
        .with("tokenizer.ggml.token_type", Item::I32s(&types))
        .with("tokenizer.ggml.bos_token_id", Item::U32(0))
        .with("tokenizer.ggml.eos_token_id", Item::U32(1))
        .with("tokenizer.ggml.unknown_token_id", Item::U32(2))
}

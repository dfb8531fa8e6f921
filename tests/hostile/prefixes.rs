//! Saved prefixes: a file is used only if it holds what was computed.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use incant::exec::{Chunk, Executor, Precision, SequenceId, Wanted};
use incant::gguf::Gguf;
use incant::kv::PrefixStore;

use super::edits::Material;
use super::{Target, fuzz};
use crate::reference::tiny::{Tiny, tokens};
use crate::support::subjects;

const INPUTS: u64 = 3000;

/// A prefix of several pages.
const TOKENS: usize = 40;

#[test]
fn saved_prefixes_do_no_harm() {
    fuzz(
        "hostile::prefixes::saved_prefixes_do_no_harm",
        INPUTS,
        Prefixes::new,
    );
}

struct Prefixes {
    materials: Vec<Material>,
    _folder: tempfile::TempDir,
    store: PrefixStore,
    path: PathBuf,
    tokens: Vec<u32>,
    executor: Mutex<Box<dyn Executor>>,
    /// The logits after the true prefix.
    expected: Vec<f32>,
}

impl Prefixes {
    fn new() -> Prefixes {
        let model = Tiny::gemma3();
        let file = model.written(&model.tensors());
        let gguf = Gguf::open(file.path()).expect("a sound model");
        let mut executor = subjects::native().load_with(&gguf, Some(4 << 20));
        let folder = tempfile::tempdir().expect("a folder");
        let store = PrefixStore::new(folder.path(), gguf.fingerprint(), executor.kv_format());
        let tokens = tokens(1, TOKENS);
        let sequence = executor.begin();
        let prompt = Chunk {
            sequence,
            tokens: &tokens,
            wanted: Wanted::None,
            precision: Precision::Fast,
        };
        executor.forward(&[prompt]).expect("there is room");
        let saved = executor.save(sequence).expect("it is there");
        let expected = next(&mut *executor, sequence);
        executor.end(sequence);
        store.save_later(&tokens, saved);
        let path = store.path(&tokens);
        let since = Instant::now();
        while !path.exists() {
            assert!(since.elapsed() < Duration::from_secs(60), "it is saved");
            std::thread::sleep(Duration::from_millis(5));
        }
        let bytes = std::fs::read(&path).expect("it is there");
        Prefixes {
            materials: vec![material(bytes)],
            _folder: folder,
            store,
            path,
            tokens,
            executor: Mutex::new(executor),
            expected,
        }
    }
}

/// Creates material from a file: the length of its header, the words of the header, the data.
pub(super) fn material(bytes: Vec<u8>) -> Material {
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let text = str::from_utf8(&bytes[8..8 + header]).expect("JSON");
    let words = [
        "null",
        "{}",
        "[]",
        "\"F32\"",
        "\"F16\"",
        "\"BF16\"",
        "-1",
        "1e9",
        "\"layers.0.k\"",
        "18446744073709551615",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
        "\\ud800",
        "\u{1b}",
    ];
    let mut material = Material::text(text, &words);
    for part in material.parts.iter_mut().flatten() {
        *part = part.start + 8..part.end + 8;
    }
    let data = 8 + header;
    let numbers = (0..64).map(|at| data + at * (bytes.len() - data) / 64);
    material.parts[2].push(0..8);
    material.parts.push(numbers.map(|at| at..at + 2).collect());
    Material { bytes, ..material }
}

/// Returns the logits after one more token.
fn next(executor: &mut dyn Executor, sequence: SequenceId) -> Vec<f32> {
    let chunk = Chunk {
        sequence,
        tokens: &[7],
        wanted: Wanted::Last,
        precision: Precision::Exact,
    };
    let logits = executor.forward(&[chunk]).expect("there is room");
    logits.row(0).to_vec()
}

impl Target for Prefixes {
    fn materials(&self) -> &[Material] {
        &self.materials
    }

    fn take(&self, _: usize, input: &[u8]) -> Result<bool, String> {
        std::fs::write(&self.path, input).expect("written");
        let mut executor = self.executor.lock().expect("no panics");
        let Some(sequence) = self.store.load(&self.tokens, None, &mut **executor) else {
            return match executor.kv_memory().used {
                0 => Ok(false),
                used => Err(format!("{used} bytes of KV are lost")),
            };
        };
        let same = executor.len(sequence).is_ok_and(|len| len == TOKENS)
            && next(&mut **executor, sequence) == self.expected;
        executor.end(sequence);
        match same {
            true => Ok(true),
            false => Err("a prefix was believed that is another".to_owned()),
        }
    }
}

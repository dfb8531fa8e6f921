//! Adapters: a changed one is refused with one line, or the model computes with it.

use std::path::{Path, PathBuf};

use incant::engine::{AddAdapterError, Engine, EngineOptions};
use incant::lora::Lora;
use incant::model::DecoderSpec;
use incant::open::Location;
use tempfile::TempDir;

use super::edits::{Edit, Material};
use super::{Target, fuzz, header, prefixes, refused_in_a_line};
use crate::lora::fixtures::Fixture;
use crate::support::subjects;

const INPUTS: u64 = 3000;

/// More elements than any of the unmodified adapters has.
const MAX_BYTES: usize = 1 << 20;

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const GGUF: &str = "adapter.gguf";

/// Values to insert into a configuration.
const WORDS: [&str; 14] = [
    "null",
    "true",
    "-1",
    "1e400",
    "1e308",
    "18446744073709551615",
    "\"LORA\"",
    "\"\u{1b}[2J\"",
    "{\"q_proj\": 1e38}",
    "{\"(a{999}){999}\": 4}",
    "{\"(?:\\\\w{200}){200}\": 4, \".*\": 4}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\"all-linear\"",
    "\\ud800",
];

#[test]
fn adapters_do_no_harm() {
    let test = "hostile::adapters::adapters_do_no_harm";
    fuzz(test, INPUTS, Adapters::new);
}

struct Adapters {
    /// The configuration, the tensors, and both as one GGUF file.
    materials: Vec<Material>,
    folder: TempDir,
    spec: DecoderSpec,
    engine: Engine,
    // Held because its file is mapped.
    _fixture: Fixture,
}

impl Adapters {
    fn new() -> Adapters {
        let fixture = Fixture::new("llama");
        let spec = fixture.spec();
        let executor = subjects::native().load_with(&fixture.gguf(), Some(4 << 20));
        let engine = Engine::start(executor, EngineOptions::default()).expect("a thread");
        let folder = tempfile::tempdir().expect("a folder");
        let source = fixture.path("patterns");
        let gguf = folder.path().join(GGUF);
        let lora = fixture.lora("patterns");
        lora.export(&spec, &gguf).expect("written");
        let read = |path: &Path| std::fs::read(path).expect("it is there");
        let config = String::from_utf8(read(&source.join(CONFIG))).expect("a text");
        let gguf = read(&gguf);
        let materials = vec![
            Material::text(&config, &WORDS),
            with_numbers(prefixes::material(read(&source.join(TENSORS)))),
            with_numbers(header::material(&gguf)),
        ];
        let adapters = Adapters {
            materials,
            folder,
            spec,
            engine,
            _fixture: fixture,
        };
        for (at, material) in adapters.materials.iter().enumerate() {
            let taken = adapters.take(at, &material.bytes);
            assert_eq!(taken, Ok(true), "sound as it is");
        }
        adapters
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Adds edits that replace elements at the end of the bytes with values beyond what any model
/// can compute with.
fn with_numbers(mut material: Material) -> Material {
    let len = material.bytes.len();
    let places = (1..32).map(|at| len - at * 64);
    let huge = [f32::MAX, 1e30, -1e20, f32::INFINITY, f32::NAN, 1e-45];
    let numbers = places.zip(huge.into_iter().cycle());
    material
        .whole
        .extend(numbers.map(|(at, number)| Edit::Write {
            at,
            bytes: number.to_le_bytes().repeat(8),
        }));
    material
}

impl Target for Adapters {
    fn materials(&self) -> &[Material] {
        &self.materials
    }

    fn take(&self, material: usize, input: &[u8]) -> Result<bool, String> {
        let name = match material {
            2 => GGUF,
            _ => "peft",
        };
        let peft = self.path("peft");
        std::fs::create_dir_all(&peft).expect("a folder");
        for (at, file) in [CONFIG, TENSORS].into_iter().enumerate() {
            let bytes = match at == material {
                true => input,
                false => &self.materials[at].bytes,
            };
            std::fs::write(peft.join(file), bytes).expect("written");
        }
        if name == GGUF {
            std::fs::write(self.path(GGUF), input).expect("written");
        }
        let location = Location::within(self.folder.path(), Path::new(name));
        let location = location.expect("the folder is there");
        let lora = match Lora::read_at(&location, &self.spec, MAX_BYTES) {
            Ok(lora) => lora,
            Err(error) => return refused_in_a_line(&error),
        };
        match self.engine.add_adapter(lora) {
            Ok(_) => Ok(true),
            Err(error @ AddAdapterError::NotFinite(..)) => refused_in_a_line(&error),
            Err(error) => Err(format!("it cannot be tried: {error}")),
        }
    }
}

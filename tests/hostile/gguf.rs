//! GGUF files: headers of real models, and complete tiny models that are run.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use incant::engine::{EngineOptions, Event, GenerateRequest};
use incant::gguf::Gguf;
use incant::model::arch;
use incant::profile::{ChatTemplate, Message, Role};
use incant::runtime::{LoadOptions, Model, Runtime};
use incant::sample::SamplingParams;
use incant::text::{Special, Tokenizer};
use tempfile::NamedTempFile;

use super::edits::{Edit, Material};
use super::{Target, fuzz, header, refused, refused_in_a_line};
use crate::build::{Builder, Item};
use crate::reference::tiny::Tiny;
use crate::support::fixtures::{greedy, load_options};
use crate::support::{self, subjects};

/// The number of inputs for each real model's header, and for all tiny models together.
const OF_EACH_HEADER: u64 = 1000;
const OF_TINY_MODELS: u64 = 3000;

/// A text with many constructs that tokenizers treat specially.
const TEXT: &str =
    "Hello,  world!\n<|im_start|>user\u{fdd0} naïve 日本語 🙂 <s></s><0x0A>\t1234 ''s";

#[test]
fn a_header_like_gemmas_does_no_harm() {
    header_of(
        "gemma-3-270m",
        "hostile::gguf::a_header_like_gemmas_does_no_harm",
    );
}

#[test]
fn a_header_like_smollm2s_does_no_harm() {
    let test = "hostile::gguf::a_header_like_smollm2s_does_no_harm";
    header_of("smollm2-135m-instruct", test);
}

#[test]
fn a_header_like_qwens_does_no_harm() {
    let test = "hostile::gguf::a_header_like_qwens_does_no_harm";
    header_of("qwen2.5-coder-0.5b-instruct", test);
}

fn header_of(model: &str, test: &str) {
    fuzz(test, OF_EACH_HEADER, || Header::of(&support::model(model)));
}

#[test]
fn tiny_models_do_no_harm_when_they_are_run() {
    let test = "hostile::gguf::tiny_models_do_no_harm_when_they_are_run";
    fuzz(test, OF_TINY_MODELS, TinyModels::new);
}

#[test]
fn sizes_beyond_all_numbers_are_refused() {
    let sound = Tiny::llama();
    let huge = Tiny {
        heads: 1 << 31,
        kv_heads: 1 << 31,
        head_dim: 1 << 16,
        layers: 64,
        ..sound.clone()
    };
    let file = huge.written(&sound.tensors());
    let gguf = Gguf::open(file.path()).expect("a sound header");
    let spec = arch::read(&gguf).expect("sound as far as metadata goes");
    assert_eq!(spec.kv_bytes(spec.context, 2), usize::MAX);
    for subject in subjects::both() {
        let loaded = subject.backend.load(&gguf, &spec, None);
        let error = loaded.err().expect("the weights have other shapes");
        assert!(error.to_string().contains("has shape"), "{error}");
    }
}

/// Reads the model description of a file, including its tokenizer and chat template.
fn read(path: &Path) -> Result<bool, String> {
    let gguf = match Gguf::open(path) {
        Ok(gguf) => gguf,
        Err(error) => return refused_in_a_line(&error),
    };
    gguf.fingerprint();
    let values = gguf
        .metadata()
        .iter()
        .map(|(key, _, value)| key.len() + format!("{value:?}").len().min(1));
    assert!(values.sum::<usize>() < gguf.file_len());
    for tensor in gguf.tensors() {
        let view = gguf
            .tensor(&tensor.name)
            .map_err(|error| error.to_string())?;
        assert_eq!(view.data.len(), tensor.len);
    }
    match arch::read(&gguf) {
        Ok(spec) => {
            // The same computation as in `incant inspect`.
            spec.kv_bytes(spec.context, 2);
        }
        Err(error) => _ = refused_in_a_line(&error)?,
    }
    let tokenizer = match Tokenizer::from_gguf(&gguf) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return refused_in_a_line(&error),
    };
    for special in [Special::Parse, Special::Plain] {
        let ids = tokenizer.encode(TEXT, special);
        for shown in [false, true] {
            tokenizer.decode(&ids, shown);
        }
    }
    let guarded = tokenizer.guard_controls(TEXT, '\u{fdd1}');
    tokenizer.encode_guarded(&guarded, '\u{fdd1}');
    let Ok(Some(template)) = gguf.metadata().get_str("tokenizer.chat_template") else {
        return Ok(true);
    };
    let piece = |id: Option<u32>| id.and_then(|id| tokenizer.piece(id));
    let template = ChatTemplate::new(template, piece(tokenizer.bos()), piece(tokenizer.eos()));
    let rendered = template.and_then(|template| {
        let messages = [
            Message::new(Role::System, "Be brief."),
            Message::new(Role::User, TEXT),
        ];
        template.render(&messages, &str::to_owned)
    });
    rendered.map_or_else(|error| refused(&error), |_| Ok(true))
}

/// The header of a real model, before data that is all zeros and sparse on disk.
struct Header {
    materials: Vec<Material>,
    data: u64,
    file: NamedTempFile,
}

impl Header {
    fn of(model: &Path) -> Header {
        let gguf = Gguf::open(model).expect("a sound model");
        let data_at = gguf
            .tensors()
            .map(|tensor| tensor.offset)
            .min()
            .expect("it has tensors");
        let data = (gguf.file_len() - data_at) as u64;
        let mut bytes = vec![0; data_at];
        std::io::Read::read_exact(&mut File::open(model).expect("it is there"), &mut bytes)
            .expect("it is as long");
        let material = header::material(&bytes);
        // The last one is truncated at the end of the header.
        let materials = vec![material; 4];
        Header {
            materials,
            data,
            file: NamedTempFile::with_suffix(".gguf").expect("a temporary file"),
        }
    }
}

impl Target for Header {
    fn materials(&self) -> &[Material] {
        &self.materials
    }

    fn take(&self, material: usize, input: &[u8]) -> Result<bool, String> {
        let data = if material + 1 < self.materials.len() {
            self.data
        } else {
            0
        };
        let mut file = File::create(self.file.path()).expect("it can be written");
        file.write_all(input).expect("written");
        file.set_len(input.len() as u64 + data).expect("a hole");
        read(self.file.path())
    }
}

/// Tiny models of all architectures, some of odd sizes, which are loaded and run.
struct TinyModels {
    materials: Vec<Material>,
    file: NamedTempFile,
    options: LoadOptions,
}

impl TinyModels {
    fn new() -> TinyModels {
        let odd = Tiny {
            hidden: 30,
            feed_forward: 7,
            heads: 3,
            kv_heads: 1,
            head_dim: 10,
            rope_linear: Some(2.0),
            rope_factors: true,
            ..Tiny::llama()
        };
        let models: Vec<Tiny> = Tiny::all().into_iter().chain([odd]).collect();
        let options = LoadOptions {
            kv_memory: None,
            engine: EngineOptions {
                slots: 2,
                ..EngineOptions::default()
            },
            ..load_options()
        };
        TinyModels {
            materials: models.iter().map(whole).collect(),
            file: NamedTempFile::with_suffix(".gguf").expect("a temporary file"),
            options,
        }
    }
}

/// Creates material from the file of a tiny model: its header, and elements of its weights.
pub(super) fn whole(model: &Tiny) -> Material {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let file = Builder::new().with("tokenizer.chat_template", Item::Str(template));
    let bytes = model.continued(file, &model.tensors()).bytes();
    let mut material = header::material(&bytes);
    let first = bytes.len() / 3;
    let weights = (0..64).map(|at| first + at * (bytes.len() - first) / 64 / 4 * 4);
    let weights: Vec<_> = weights.map(|at| at..at + 4).collect();
    // NaN or infinity, from some element on.
    material
        .whole
        .extend(weights.iter().map(|weight| Edit::Write {
            at: weight.start,
            bytes: f32::NAN.to_le_bytes().repeat(64),
        }));
    material.parts.push(weights);
    material
}

impl Target for TinyModels {
    fn materials(&self) -> &[Material] {
        &self.materials
    }

    fn take(&self, material: usize, input: &[u8]) -> Result<bool, String> {
        let path: PathBuf = self.file.path().to_owned();
        std::fs::write(&path, input).expect("written");
        read(&path)?;
        let mut options = self.options.clone();
        // Half of them with the default memory.
        options.kv_memory = material.is_multiple_of(2).then_some(1 << 20);
        match Model::load("tiny", &path, &options) {
            Ok(model) => answer(model).map(|()| true),
            Err(error) => refused(&error),
        }
    }
}

/// Chats with a model as a server would.
fn answer(model: Model) -> Result<(), String> {
    let runtime = Runtime::new();
    runtime.loaded(vec![Arc::new(model)]);
    for arm in ["tiny", "tiny@base"] {
        let arm = runtime.arm(arm).map_err(|error| error.to_string())?;
        let prompt = match arm.chat(&[Message::new(Role::User, "Hi")]) {
            Ok(prompt) => prompt,
            Err(error) => {
                refused(&error)?;
                continue;
            }
        };
        let tokens = prompt.prefix.as_ref().map_or(0, |prefix| prefix.ids.len()) + prompt.ids.len();
        if tokens == 0 || tokens + 8 > arm.context() {
            continue;
        }
        let request = GenerateRequest {
            prefix: prompt.prefix,
            end_tokens: arm.end_tokens(),
            sampling: SamplingParams {
                logit_bias: Vec::new(),
                seed: Some(1),
                top_k: 40,
                ..SamplingParams::default()
            },
            logprobs: Some(3),
            prompt_logprobs: Some(0),
            ..greedy(&prompt.ids, 8)
        };
        let generations = arm
            .submit(incant::engine::Client::default(), vec![request])
            .map_err(|error| error.to_string())?;
        for mut generation in generations {
            loop {
                match generation.blocking_next() {
                    Some(Event::Finished(_) | Event::Failed(_)) => break,
                    Some(_) => {}
                    None => return Err("the engine has died".to_owned()),
                }
            }
        }
    }
    Ok(())
}

//! Rewriting models with weights of another type.

use std::path::PathBuf;
use std::process::{Command, Output};

use candle_core::quantized::GgmlDType;
use incant::gguf::{Gguf, TensorType};
use incant::model::arch;
use incant::quantize::{Rewrite, Target};
use tempfile::TempDir;

use crate::build::Item;
use crate::lora::fixtures::Fixture;
use crate::reference::tiny::{Tiny, Weight};
use crate::support::subjects;

/// Each type, with the relative root mean square error of uniform values from −1 to 1 in it, as
/// expected from the step between two codes.
const TYPES: [(TensorType, GgmlDType, f64); 13] = [
    (TensorType::F32, GgmlDType::F32, 0.0),
    (TensorType::F16, GgmlDType::F16, step(1.0 / 2048.0)),
    (TensorType::BF16, GgmlDType::BF16, step(1.0 / 256.0)),
    (TensorType::Q8_0, GgmlDType::Q8_0, step(1.0 / 127.0)),
    (TensorType::Q4_0, GgmlDType::Q4_0, step(1.0 / 8.0)),
    (TensorType::Q4_1, GgmlDType::Q4_1, step(2.0 / 15.0)),
    (TensorType::Q5_0, GgmlDType::Q5_0, step(1.0 / 16.0)),
    (TensorType::Q5_1, GgmlDType::Q5_1, step(2.0 / 31.0)),
    (TensorType::Q2_K, GgmlDType::Q2K, step(2.0 / 3.0)),
    (TensorType::Q3_K, GgmlDType::Q3K, step(1.0 / 4.0)),
    (TensorType::Q4_K, GgmlDType::Q4K, step(2.0 / 15.0)),
    (TensorType::Q5_K, GgmlDType::Q5K, step(2.0 / 31.0)),
    (TensorType::Q6_K, GgmlDType::Q6K, step(1.0 / 32.0)),
];

/// Rounding to steps has the error `step / √12`; the root mean square of the values is
/// `1 / √3`.
const fn step(step: f64) -> f64 {
    step / 2.0
}

/// A source file, and a folder for the files written from it.
struct Source {
    folder: TempDir,
    path: PathBuf,
}

impl Source {
    fn new(model: &Tiny) -> Source {
        Source::of(&model.file(&model.tensors()).bytes())
    }

    fn of(bytes: &[u8]) -> Source {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).expect("written");
        Source { folder, path }
    }

    fn written(&self, kind: TensorType) -> Gguf {
        let gguf = Gguf::open(&self.path).expect("a good file");
        let spec = arch::read(&gguf).expect("a supported model");
        let target = Target::Type(kind);
        let rewrite = Rewrite::new(&gguf, &spec, target, None).expect("all there");
        let path = self.folder.path().join("written.gguf");
        rewrite.write(&path, |_, _| {}).expect("written");
        Gguf::open(&path).expect("a good file")
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("incant"));
        command.args(args).current_dir(self.folder.path());
        command.env("INCANT_MODELS", self.folder.path());
        command.output().expect("incant starts")
    }

    /// Runs a command that must succeed, and returns its standard output.
    fn stdout(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command that must fail without leaving a file behind, and returns its single
    /// line.
    fn refusal(&self, args: &[&str]) -> String {
        let files = || {
            std::fs::read_dir(self.folder.path())
                .expect("a folder")
                .count()
        };
        let before = files();
        let output = self.run(args);
        assert!(!output.status.success(), "{args:?}: {output:?}");
        assert_eq!(files(), before, "nothing is left");
        let line = String::from_utf8(output.stderr).expect("text");
        assert_eq!(line.trim_end().lines().count(), 1, "{line}");
        line.trim_end().to_owned()
    }
}

fn root_mean_square(numbers: impl ExactSizeIterator<Item = f32>) -> f64 {
    let count = numbers.len() as f64;
    let squares = numbers.map(|number| f64::from(number).powi(2));
    (squares.sum::<f64>() / count).sqrt()
}

#[test]
fn every_type_can_be_loaded_and_loses_what_its_steps_lose() {
    let model = Tiny {
        layers: 1,
        ..Tiny::llama().wide()
    };
    let source = Source::new(&model);
    let tensors = model.tensors();
    for (kind, candle, error) in TYPES {
        let written = source.written(kind);
        for subject in subjects::both() {
            subject.load(&written);
        }
        for (name, weight) in &tensors {
            let found = written.tensor(name).expect("is there");
            let is_outer = ["token_embd.weight", "output.weight"].contains(&name.as_str());
            let (kind, candle) = match weight.shape.len() {
                1 => (TensorType::F32, GgmlDType::F32),
                _ if is_outer && kind.block_size() == 256 => (TensorType::Q6_K, GgmlDType::Q6K),
                _ => (kind, candle),
            };
            let expected = Weight::new(&weight.shape, candle, weight.values.clone());
            assert_eq!((found.info.kind, &found.info.shape), (kind, &weight.shape));
            assert!(found.data == expected.bytes, "{name} as {kind}");
        }
        let weight = &tensors["blk.0.ffn_up.weight"];
        let stored = Weight::new(&weight.shape, candle, weight.values.clone());
        let pairs = weight.values.iter().zip(&stored.values);
        let lost = root_mean_square(pairs.map(|(exact, stored)| exact - stored));
        let lost = lost / root_mean_square(weight.values.iter().copied());
        eprintln!("{kind}: {lost:.4}, by its steps {error:.4}");
        assert!(lost <= 1.3 * error, "{kind}: {lost}");
    }
}

#[test]
fn metadata_stays_but_for_what_says_the_type() {
    let model = Tiny::llama();
    let file = crate::build::Builder::new()
        .with("general.alignment", Item::U32(64))
        .with("general.file_type", Item::U32(0))
        .with("general.tags", Item::Strs(&["one", "two"]));
    let file = model.continued(file, &model.tensors());
    let source = Source::of(&file.bytes());
    let before = Gguf::open(&source.path).expect("a good file");
    let after = source.written(TensorType::Q8_0);
    let entries = |gguf: &Gguf, leave_out: &[&str]| -> Vec<String> {
        let entries = gguf.metadata().iter();
        let kept = entries.filter(|(key, ..)| !leave_out.contains(key));
        kept.map(|entry| format!("{entry:?}")).collect()
    };
    // The new file has the default alignment.
    let changed = ["general.alignment", "general.file_type"];
    let new = ["general.file_type", "general.quantization_version"];
    assert_eq!(entries(&after, &new), entries(&before, &changed));
    assert_eq!(after.metadata().u32("general.file_type").unwrap(), 7);
    assert_eq!(
        after
            .metadata()
            .u32("general.quantization_version")
            .unwrap(),
        2
    );
}

#[test]
fn rows_that_are_not_whole_blocks_take_another_type_and_one_is_told() {
    let source = Source::new(&Tiny {
        feed_forward: 80,
        layers: 1,
        ..Tiny::llama()
    });
    let told = source.stdout(&["quantize", "model.gguf", "out.gguf", "--type", "q4_k"]);
    let (first, rest) = told.split_once('\n').expect("several lines");
    let bytes = source
        .folder
        .path()
        .join("out.gguf")
        .metadata()
        .unwrap()
        .len();
    let size = format!("out.gguf: {:.1} kB", bytes as f64 / 1e3);
    assert!(first.ends_with(&size), "{first}");
    assert_eq!(
        rest,
        "tensors: 3 F32, 1 F16, 6 Q5_0, 2 Q8_0\n\
         3 are as they were\n\
         note: output.weight takes Q6_K, as it loses most by few bits\n\
         note: token_embd.weight takes Q6_K, as it loses most by few bits\n\
         note: 1 take F16 for Q4_K: their rows are not whole blocks of 256\n\
         note: 6 take Q5_0 for Q4_K: their rows are not whole blocks of 256\n\
         note: 2 take Q8_0 for Q6_K: their rows are not whole blocks of 256\n"
    );
    let told = source.stdout(&["quantize", "out.gguf", "again.gguf", "--type", "F16"]);
    assert!(
        told.ends_with("note: 6 Q5_0, 2 Q8_0 were quantized before: what that lost stays lost\n"),
        "{told}"
    );
}

#[test]
fn export_merges_an_adapter_into_its_model() {
    let fixture = Fixture::new("llama");
    let source = Source::of(&std::fs::read(fixture.file()).expect("a fixture"));
    let adapter = fixture.path("plain").display().to_string();
    let export = ["export", "--adapter", &adapter, "--model", "model.gguf"];
    let told = source.stdout(&[&export[..], &["--merge", "out.gguf", "--type", "Q8_0"]].concat());
    let (_, rest) = told.split_once('\n').expect("several lines");
    // Rows of 48 are not a multiple of the block size of 32.
    assert_eq!(
        rest,
        "tensors: 5 F32, 2 F16, 14 Q8_0\n\
         the adapter is merged into 14\n\
         5 are as they were\n\
         note: 2 take F16 for Q8_0: their rows are not whole blocks of 32\n\
         note: the adapter does not name its form of turns: the file has no chat template, \
         so programs that serve it choose a form of their own\n"
    );
    // Weights of few bits are rounded to few bits again.
    let told = source.stdout(&["quantize", "model.gguf", "few.gguf", "--type", "Q4_0"]);
    assert!(!told.contains("--type F16 or Q8_0"), "{told}");
    let export_few = ["export", "--adapter", &adapter, "--model", "few.gguf"];
    let merge = ["--merge", "out.gguf", "--force"];
    let told = source.stdout(&[&export_few[..], &merge].concat());
    assert!(
        told.contains("12 Q8_0") && !told.contains("a second time"),
        "{told}"
    );
    for (kind, keeps_less) in [("same", true), ("Q8_0", false)] {
        let args = ["--merge", "out.gguf", "--force", "--type", kind];
        let told = source.stdout(&[&export_few[..], &args].concat());
        assert_eq!(
            told.contains("--type F16 or Q8_0 keeps more"),
            keeps_less,
            "{told}"
        );
    }
    let told = source.run(&[&export[..], &["--gguf", "a.gguf", "--type", "F16"]].concat());
    let told = String::from_utf8(told.stderr).expect("text");
    assert!(
        told.contains("'--gguf <FILE.gguf>' cannot be used with '--type <TYPE>'"),
        "{told}"
    );
    assert!(!source.folder.path().join("a.gguf").exists());
    let told = source.run(&export);
    let told = String::from_utf8(told.stderr).expect("text");
    assert!(
        told.contains("--gguf <FILE.gguf>|--merge <FILE.gguf>"),
        "{told}"
    );
}

#[test]
fn a_file_that_is_there_is_replaced_only_by_force_and_as_a_whole() {
    let source = Source::new(&Tiny::llama());
    let path = source.folder.path().join("out.gguf");
    std::fs::write(&path, "precious").expect("it is new");
    let precious = || std::fs::read(&path).expect("it is there") == b"precious";
    let quantize = ["quantize", "model.gguf", "out.gguf", "--type"];
    let told = source.refusal(&[&quantize[..], &["Q8_0"]].concat());
    assert!(
        told.ends_with("out.gguf is there already: --force replaces it"),
        "{told}"
    );
    assert!(precious());
    // A failing run leaves the file unchanged, too.
    let mut tensors = Tiny::llama().tensors();
    let name = "blk.1.ffn_down.weight";
    let mut values = tensors[name].values.clone();
    values[700] = 7e4;
    let weight = Weight::new(&[64, 96], GgmlDType::F32, values);
    tensors.insert(name.to_owned(), weight);
    let broken = Tiny::llama().file(&tensors).bytes();
    std::fs::write(source.folder.path().join("broken.gguf"), broken).expect("it is new");
    let told = source.refusal(&[
        "quantize",
        "broken.gguf",
        "out.gguf",
        "--type",
        "F16",
        "--force",
    ]);
    assert!(told.contains("cannot be written as F16"), "{told}");
    assert!(precious());
    source.stdout(&[&quantize[..], &["Q8_0", "--force"]].concat());
    assert!(!precious());
    // The model itself, by another name of its file, is never overwritten, not even with force.
    let link = source.folder.path().join("link.gguf");
    std::fs::hard_link(source.folder.path().join("model.gguf"), link).expect("it is new");
    let told = source.refusal(&[
        "quantize",
        "model.gguf",
        "link.gguf",
        "--type",
        "Q8_0",
        "--force",
    ]);
    assert!(told.ends_with("would be written over itself"), "{told}");
}

/// Compares this mixture with a file that llama.cpp has written as Q4_K_M.
#[test]
fn mixtures_choose_the_types_that_llama_cpp_does() {
    let path = crate::support::model("gemma-3-270m");
    let gguf = incant::gguf::Gguf::open(&path).expect("a model");
    let spec = incant::model::arch::read(&gguf).expect("a known architecture");
    let target = "Q4_K_M".parse().expect("a mixture");
    let rewrite = incant::quantize::Rewrite::new(&gguf, &spec, target, None).expect("it is whole");
    for change in rewrite.tensors() {
        assert_eq!(change.kind, change.tensor.kind, "{}", change.tensor.name);
    }
}

#[test]
fn what_cannot_be_written_is_told_in_a_line_and_leaves_nothing() {
    let mut tensors = Tiny::llama().tensors();
    let name = "blk.1.ffn_down.weight";
    let mut values = tensors[name].values.clone();
    values[700] = 7e4;
    tensors.insert(
        name.to_owned(),
        Weight::new(&[64, 96], GgmlDType::F32, values),
    );
    let source = Source::of(&Tiny::llama().file(&tensors).bytes());
    let quantize =
        |file: &str, kind| source.refusal(&["quantize", "model.gguf", file, "--type", kind]);
    let told = quantize("out.gguf", "F16");
    let why =
        "out.gguf: tensor 'blk.1.ffn_down.weight' holds 70000, which cannot be written as F16";
    assert!(told.ends_with(why), "{told}");
    let told = quantize("model.gguf", "Q8_0");
    assert!(
        told.ends_with("model.gguf would be written over itself"),
        "{told}"
    );
    let told = quantize("no/out.gguf", "Q8_0");
    assert!(told.contains("there is no folder"), "{told}");

    // A type that cannot be dequantized.
    tensors.remove(name);
    let bytes = 64 * 96 / 32 * TensorType::IQ4_NL.type_size();
    let file = Tiny::llama().file(&tensors);
    let file = file.tensor(name, &[96, 64], TensorType::IQ4_NL.id(), vec![0; bytes]);
    let source = Source::of(&file.bytes());
    let told = source.refusal(&["quantize", "model.gguf", "out.gguf", "--type", "Q8_0"]);
    let why = "tensor 'blk.1.ffn_down.weight' has weights of type IQ4_NL, which is not supported";
    assert!(told.contains(why), "{told}");
}

//! The trainable model, on tiny models of every architecture: it computes the same as the
//! executors, and its gradients equal finite differences.

mod divergences;

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor, Var};
use incant::exec::native::{Pool, threads_to_use};
use incant::exec::{Chunk, Precision, Wanted};
use incant::gguf::Gguf;
use incant::kernels::{Isa, Tier};
use incant::lora::{Linear, Lora, LowRank};
use incant::model::{DecoderSpec, arch};
use incant::train::model::{AdapterInit, AdapterSettings, Model};
use incant::train::{Batch, Sample, Student, Target};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::reference::tiny::{self, Tiny, Weight};
use crate::support::subjects;

const RANK: usize = 3;

/// An adapter of random elements for all linear layers, so that A has gradients too.
fn random_adapter(spec: &DecoderSpec, size: f32) -> Lora {
    let mut random = ChaCha8Rng::seed_from_u64(8);
    let mut parts = Vec::new();
    for layer in 0..spec.layers.len() {
        for linear in Linear::ALL {
            let [outputs, inputs] = linear.shape(spec);
            let mut numbers = |count: usize| {
                (0..count)
                    .map(|_| random.random_range(-size..size))
                    .collect()
            };
            let part = LowRank {
                rank: RANK,
                inputs,
                outputs,
                a: numbers(RANK * inputs),
                b: numbers(RANK * outputs),
                scale: 2.0,
            };
            parts.push((layer, linear, part));
        }
    }
    Lora::of_additions(spec, parts, None).expect("an adapter")
}

/// A random adapter for some linear layers of the last layer only.
fn partial_adapter(spec: &DecoderSpec, size: f32) -> Lora {
    let whole = random_adapter(spec, size);
    let parts = whole.additions().filter(|&(layer, linear, _)| {
        layer + 1 == spec.layers.len() && [Linear::Query, Linear::Down].contains(&linear)
    });
    let parts = parts.map(|(layer, linear, part)| (layer, linear, part.clone()));
    Lora::of_additions(spec, parts, None).expect("an adapter")
}

/// The best instruction set that does not round training rows to bf16.
fn exact() -> Isa {
    let mut all = Isa::all().into_iter();
    let exact = all.rfind(|isa| isa.tier() != Tier::Amx);
    exact.expect("every processor runs plain code")
}

/// A model, with the data that it borrows.
struct Subject {
    gguf: Gguf,
    spec: DecoderSpec,
    _file: tempfile::NamedTempFile,
}

impl Subject {
    fn new(tiny: &Tiny) -> Subject {
        let file = tiny.written(&tiny.tensors());
        let gguf = Gguf::open(file.path()).expect("a good file");
        let spec = arch::read(&gguf).expect("a supported model");
        Subject {
            gguf,
            spec,
            _file: file,
        }
    }

    fn model(&self, from: Option<Lora>, recompute: bool) -> Model {
        self.model_on(exact(), from, recompute)
    }

    fn model_on(&self, isa: Isa, from: Option<Lora>, recompute: bool) -> Model {
        let pool = Pool::new(threads_to_use(Some(2))).expect("threads");
        let settings = AdapterSettings {
            init: match from {
                Some(lora) => AdapterInit::Existing(lora),
                None => AdapterInit::New {
                    rank: RANK,
                    scale: 2.0,
                    targets: Linear::ALL.to_vec(),
                    seed: 1,
                },
            },
            base_model: "tiny".to_owned(),
            profile: Some("urial".to_owned()),
        };
        Model::load(&self.gguf, isa, &pool, settings, recompute).expect("it can be trained")
    }

    /// Computes the log-probabilities of the target tokens with the device executor.
    fn by_executor(&self, batch: &Batch, lora: Option<&Lora>) -> Vec<f32> {
        let mut executor = subjects::reference().load(&self.gguf);
        let adapter = lora.map(|lora| executor.add_adapter(lora).expect("it fits"));
        let mut found = Vec::new();
        for sample in &batch.sequences {
            let sequence = executor.begin_with_adapter(adapter).expect("it is there");
            let chunk = Chunk {
                sequence,
                tokens: &sample.tokens,
                wanted: Wanted::All,
                precision: Precision::Exact,
            };
            let logits = executor.forward(&[chunk]).expect("it runs");
            for (place, &token) in sample.tokens.iter().enumerate().skip(1) {
                if sample.counts[place] {
                    found.push(incant::sample::logprobs(logits.row(place - 1), token, 0).chosen);
                }
            }
        }
        found
    }
}

/// Sequences of different lengths, of which some tokens are targets. The last ones share
/// prefixes with others.
fn batch() -> Batch {
    let sample = |tokens: Vec<u32>, first: usize| Sample {
        counts: (0..tokens.len())
            .map(|at| at >= first && at % 5 != 3)
            .collect(),
        tokens,
    };
    let (first, third) = (tiny::tokens(1, 23), tiny::tokens(3, 40));
    let other_end = |from: &[u32], seed| [from, &tiny::tokens(seed, 12)].concat();
    Batch {
        sequences: vec![
            sample(first.clone(), 4),
            sample(tiny::tokens(2, 9), 1),
            sample(third.clone(), 20),
            sample(other_end(&first[..14], 4), 10),
            sample(other_end(&third[..30], 5), 30),
            sample(third[..25].to_vec(), 1),
        ],
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor
        .flatten_all()
        .and_then(|flat| flat.to_vec1())
        .expect("numbers")
}

/// A loss that depends on all log-probabilities.
fn loss(student: &dyn Student, batch: &Batch) -> Tensor {
    let logprobs = student.logprobs(batch).expect("it runs");
    let weights: Vec<f32> = (0..logprobs.elem_count())
        .map(|i| (i % 7) as f32 / 7.0)
        .collect();
    let weights = Tensor::new(weights, &Device::Cpu).expect("numbers");
    let sum = (logprobs * weights).and_then(|terms| terms.sum_all());
    sum.expect("a sum")
}

fn value(tensor: &Tensor) -> f64 {
    f64::from(tensor.to_scalar::<f32>().expect("a number"))
}

/// Returns the slope of `f` as one variable moves along its gradient, by finite differences,
/// and by the gradient itself.
fn slopes(var: &Var, gradient: &Tensor, step: f64, f: impl Fn() -> f64) -> (f64, f64) {
    let before = var.as_tensor().copy().expect("a copy");
    let length = value(&gradient.sqr().and_then(|s| s.sum_all()).expect("a sum")).sqrt();
    let moved = |by: f64| {
        let direction = (gradient * (by / length)).expect("numbers");
        var.set(&(&before + direction).expect("numbers"))
            .expect("the same shape");
        f()
    };
    let slope = (moved(step) - moved(-step)) / (2.0 * step);
    var.set(&before).expect("the same shape");
    (slope, length)
}

#[test]
fn it_computes_what_executors_compute() {
    for tiny in Tiny::all() {
        let subject = Subject::new(&tiny);
        let lora = random_adapter(&subject.spec, 0.1);
        let fresh = subject.model(None, false);
        let adapted = subject.model(Some(lora.clone()), false);
        for (model, lora) in [(fresh, None), (adapted, Some(&lora))] {
            let found = numbers(&model.logprobs(&batch()).expect("it runs"));
            let without_gradients = model
                .without_gradients()
                .logprobs(&batch())
                .expect("it runs");
            assert!(
                !without_gradients.track_op(),
                "it keeps what nobody asks for"
            );
            assert_eq!(numbers(&without_gradients), found);
            let expected = subject.by_executor(&batch(), lora);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                let apart = (found - expected).abs();
                assert!(
                    apart <= 2e-3,
                    "{}: {found} and {expected}",
                    tiny.architecture
                );
            }
        }
    }
}

#[test]
fn every_a_and_b_has_the_gradient_that_differences_have() {
    for tiny in Tiny::all() {
        // Quantized to integers, small steps would be rounded away.
        let tiny = Tiny {
            weights: GgmlDType::F32,
            ..tiny
        };
        let subject = Subject::new(&tiny);
        let whole = random_adapter(&subject.spec, 0.2);
        let partial = partial_adapter(&subject.spec, 0.2);
        let variables = 2 * 7 * subject.spec.layers.len();
        for (lora, variables) in [(whole, variables), (partial, 2 * 2)] {
            let model = subject.model(Some(lora), false);
            let gradients = loss(&model, &batch()).backward().expect("it can go back");
            assert_eq!(model.variables().len(), variables);
            for (name, var) in model.variables() {
                let gradient = gradients
                    .get(var)
                    .unwrap_or_else(|| panic!("{name} has none"));
                let f = || value(&loss(&model, &batch()));
                let (slope, length) = slopes(var, gradient, 1e-2, f);
                let apart = (slope - length).abs() / length.max(1e-3);
                assert!(
                    apart < 0.02,
                    "{} {name}: {slope} and {length}",
                    tiny.architecture
                );
            }
        }
    }
}

/// The Euclidean norm.
fn length(numbers: impl IntoIterator<Item = f32>) -> f32 {
    numbers.into_iter().map(|n| n * n).sum::<f32>().sqrt()
}

/// The relative difference: the norm of the differences over that of `expected`.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(a, b)| a - b);
    length(differences) / length(expected.iter().copied())
}

/// Returns the log-probabilities, and all gradients of their loss.
fn learnt(model: &Model) -> (Vec<f32>, Vec<f32>) {
    let gradients = loss(model, &batch()).backward().expect("it can go back");
    let variables = model.variables().iter();
    let of = variables.flat_map(|(_, var)| numbers(gradients.get(var).expect("a gradient")));
    let logprobs = model.logprobs(&batch()).expect("it runs");
    (numbers(&logprobs), of.collect())
}

/// AMX rounds weights, rows and gradients to the 8 bits of bf16, like training in bf16.
#[test]
fn bf16_changes_little() {
    let Some(isa) = Isa::all().into_iter().find(|isa| isa.tier() == Tier::Amx) else {
        println!("NOT RUN: there is no AMX");
        return;
    };
    for tiny in Tiny::all() {
        let tiny = Tiny {
            weights: GgmlDType::Q8_0,
            ..tiny
        };
        let subject = Subject::new(&tiny);
        let lora = random_adapter(&subject.spec, 0.2);
        let [exact, rounded] =
            [exact(), isa].map(|isa| learnt(&subject.model_on(isa, Some(lora.clone()), false)));
        let name = &tiny.architecture;
        let (logprobs, gradients) = (apart(&rounded.0, &exact.0), apart(&rounded.1, &exact.1));
        println!("{name}: {logprobs} and {gradients}");
        assert!(rounded != exact, "{name}: AMX is not used");
        assert!(logprobs < 1e-2, "{name}: {logprobs}");
        assert!(gradients < 0.1, "{name}: {gradients}");
    }
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() {
    let subject = Subject::new(&Tiny::gemma3());
    let lora = random_adapter(&subject.spec, 0.2);
    let model = subject.model(Some(lora), false);
    let learnt = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("threads").install(|| learnt(&model))
    };
    let one = learnt(1);
    assert_eq!(learnt(1), one, "it is the same every time");
    // Sums are divided differently, and gradients are rounded to 14 bits: a difference in the
    // last bit of a sum can become a whole step of that rounding.
    for threads in [3, 7] {
        let apart = apart(&learnt(threads).1, &one.1);
        assert!(apart <= 1e-3, "{threads}: {apart}");
    }
}

#[test]
fn a_layer_that_is_computed_again_has_the_same_gradients() {
    for tiny in [Tiny::gemma3(), Tiny::llama()] {
        let subject = Subject::new(&tiny);
        let lora = random_adapter(&subject.spec, 0.2);
        let learnt = |recompute| learnt(&subject.model(Some(lora.clone()), recompute));
        assert_eq!(learnt(false), learnt(true));
    }
}

/// Dequantizes the tensors.
fn expand(tensors: &BTreeMap<String, Weight>) -> BTreeMap<String, Weight> {
    let expand =
        |weight: &Weight| Weight::new(&weight.shape, GgmlDType::F32, weight.values.clone());
    let tensors = tensors.iter();
    tensors
        .map(|(name, weight)| (name.clone(), expand(weight)))
        .collect()
}

#[test]
fn packed_weights_have_the_gradients_of_their_expansion() {
    for kind in [
        GgmlDType::Q8_0,
        GgmlDType::Q4_0,
        GgmlDType::Q4K,
        GgmlDType::Q6K,
    ] {
        let packed = Tiny {
            weights: kind,
            ..Tiny::llama().wide()
        };
        let tensors = packed.tensors();
        let expanded = Tiny {
            weights: GgmlDType::F32,
            ..packed.clone()
        };
        // The elements that the packed ones stand for.
        let gradients = |tiny: &Tiny, file: tempfile::NamedTempFile| -> Vec<f32> {
            let gguf = Gguf::open(file.path()).expect("a good file");
            let spec = arch::read(&gguf).expect("a supported model");
            let subject = Subject {
                spec,
                gguf,
                _file: file,
            };
            let lora = random_adapter(&subject.spec, 0.1);
            assert_eq!(tiny.layers, subject.spec.layers.len());
            learnt(&subject.model(Some(lora), false)).1
        };
        let found = gradients(&packed, packed.written(&tensors));
        let expected = gradients(&expanded, expanded.written(&expand(&tensors)));
        let apart = apart(&found, &expected);
        assert!(apart <= 1e-3, "{kind:?}: {apart}");
    }
}

#[test]
fn what_is_saved_is_served_as_it_was_trained() {
    // A model whose rows PEFT keeps in another order, and one with the same order.
    for tiny in [Tiny::llama(), Tiny::gemma3()] {
        let subject = Subject::new(&tiny);
        let lora = random_adapter(&subject.spec, 0.1);
        let model = subject.model(Some(lora), false);
        let folder = tempfile::tempdir().expect("a folder");
        model.save(folder.path()).expect("it can be written");
        let read = Lora::read(folder.path(), &subject.spec).expect("a good adapter");
        assert_eq!(read.profile(), Some("urial"));
        let found = numbers(&model.logprobs(&batch()).expect("it runs"));
        for (found, served) in found.iter().zip(subject.by_executor(&batch(), Some(&read))) {
            assert!((found - served).abs() <= 2e-3, "{found} and {served}");
        }
    }
}

//! Benchmarks of the kernels, one by one, for every available instruction set:
//! `cargo bench --bench kernels`.

#![expect(unsafe_code)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use incant::gguf::TensorType;
use incant::kernels::attention::{self, Block, CHUNK, KvChunk, Partials, TOKENS_PER_BLOCK};
use incant::kernels::product::Inputs;
use incant::kernels::{ActivationForms, Activations, Isa, LANES, Matrix, math, product};
use incant::model::{Activation, RopeStyle};

const TYPES: [TensorType; 7] = [
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q8_0,
    TensorType::Q4_K,
    TensorType::Q6_K,
    TensorType::F16,
];

/// Returns pseudo-random numbers between −1 and 1, always the same ones.
fn numbers(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Returns weights of arbitrary bits: only finite scales matter, and 0x2c2c is about 0.07.
fn weights(kind: TensorType, rows: usize, columns: usize) -> Matrix {
    let bytes = rows * columns / kind.block_size() * kind.type_size();
    let matrix = Matrix::pack(kind, rows, columns, &vec![0x2c; bytes]);
    matrix.expect("memory").expect("a format")
}

fn activations(isa: Isa, matrix: &Matrix, rows: usize, prompts: usize) -> Activations {
    let mut activations = Activations::new(isa);
    activations.reset(
        rows,
        prompts,
        matrix.columns(),
        ActivationForms::of([matrix]),
    );
    let writer = activations.writer();
    for row in 0..rows {
        // SAFETY: one thread.
        unsafe { writer.write(row, &numbers(matrix.columns())) };
    }
    activations
}

/// Measures matrix products on one thread, with weights in the L2 cache: the compute cost.
fn products(criterion: &mut Criterion) {
    const ROWS: usize = 256;
    const COLUMNS: usize = 1024;
    for kind in TYPES {
        let matrix = weights(kind, ROWS, COLUMNS);
        let mut group = criterion.benchmark_group(format!("product/{kind}"));
        for isa in Isa::all() {
            for (rows, prompts) in [(1, 1), (8, 8), (64, 0)] {
                let macs = ROWS * COLUMNS * rows;
                group.throughput(Throughput::Elements(macs as u64));
                let activations = activations(isa, &matrix, rows, prompts);
                let mut out = vec![[0.0; LANES]; rows];
                group.bench_function(BenchmarkId::new(isa.to_string(), rows), |bencher| {
                    bencher.iter(|| {
                        for panel in 0..matrix.panels() {
                            product::panel(isa, &matrix, panel, &activations, &mut out);
                        }
                    });
                });
            }
        }
        group.finish();
    }
}

/// Measures a training step's matrix products, forward and backward: many rows on one thread.
fn training(criterion: &mut Criterion) {
    const ROWS: usize = 512;
    for kind in [TensorType::Q8_0, TensorType::Q5_0, TensorType::Q4_K] {
        let mut group = criterion.benchmark_group(format!("training/{kind}"));
        for (outputs, inputs) in [(1024, 768), (768, 2048)] {
            let matrix = weights(kind, outputs, inputs);
            let (mut x, mut y) = (numbers(ROWS * inputs), numbers(ROWS * outputs));
            let macs = ROWS * outputs * inputs;
            group.throughput(Throughput::Elements(macs as u64));
            let shape = format!("{inputs}x{outputs}");
            group.bench_function(BenchmarkId::new("forward", &shape), |bencher| {
                bencher.iter(|| {
                    let inputs = Inputs::new(Isa::best(), [&matrix], &x);
                    inputs.multiply(&matrix, 0..matrix.panels(), &mut y);
                });
            });
            group.bench_function(BenchmarkId::new("backward", &shape), |bencher| {
                bencher.iter(|| {
                    x.fill(0.0);
                    product::backward(Isa::best(), &matrix, 0..matrix.panels(), &y, &mut x);
                });
            });
        }
        group.finish();
    }
}

/// Measures attention: queries of a prompt or of a few sequences over one chunk of keys.
fn attend(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for head_dim in [64, 256] {
        let (key_len, value_len) = (
            attention::key_block_len(head_dim),
            attention::value_block_len(head_dim),
        );
        let mut keys = vec![0; CHUNK / TOKENS_PER_BLOCK * key_len];
        let mut values = vec![0; CHUNK / TOKENS_PER_BLOCK * value_len];
        for token in 0..CHUNK {
            let (isa, number) = (Isa::best(), numbers(head_dim));
            let (block, place) = (token / TOKENS_PER_BLOCK, token % TOKENS_PER_BLOCK);
            attention::write_key(isa, &mut keys[block * key_len..], place, &number);
            attention::write_value(isa, &mut values[block * value_len..], place, &number);
        }
        let chunk = KvChunk {
            blocks: std::array::from_fn(|block| Block {
                keys: &keys[block * key_len..],
                values: &values[block * value_len..],
            }),
            head_dim,
        };
        for isa in Isa::all() {
            for rows in [4, 64] {
                let queries = numbers(rows * head_dim);
                let visible = vec![0..CHUNK as u32; rows];
                let (mut maxima, mut sums) = (vec![0.0; rows], vec![0.0; rows]);
                let mut out = vec![0.0; rows * head_dim];
                let macs = 2 * rows * head_dim * CHUNK;
                group.throughput(Throughput::Elements(macs as u64));
                let name = format!("{rows}x{head_dim}");
                group.bench_function(BenchmarkId::new(isa.to_string(), name), |bencher| {
                    bencher.iter(|| {
                        let mut partials = Partials {
                            maxima: &mut maxima,
                            sums: &mut sums,
                            values: &mut out,
                        };
                        attention::attend(isa, &chunk, &queries, &visible, None, &mut partials);
                    });
                });
            }
        }
    }
    group.finish();
}

fn element_wise(criterion: &mut Criterion) {
    const WIDTH: usize = 2048;
    let mut group = criterion.benchmark_group("element-wise");
    group.throughput(Throughput::Elements(WIDTH as u64));
    let (x, y) = (numbers(WIDTH), numbers(WIDTH));
    for isa in Isa::all() {
        let mut out = x.clone();
        group.bench_function(BenchmarkId::new("norm", isa), |bencher| {
            bencher.iter(|| math::rms_norm(isa, &x, &y, 1e-6, &mut out));
        });
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let name = format!("{activation:?}");
            group.bench_function(BenchmarkId::new(name, isa), |bencher| {
                bencher.iter(|| {
                    out.copy_from_slice(&x);
                    math::gated(isa, activation, &mut out, &y);
                });
            });
        }
        group.bench_function(BenchmarkId::new("rope", isa), |bencher| {
            let (cos, sin) = (&x[..WIDTH / 2], &y[..WIDTH / 2]);
            bencher.iter(|| math::rope(isa, RopeStyle::Halves, &mut out, cos, sin));
        });
    }
    group.finish();
}

criterion_group!(kernels, products, training, attend, element_wise);
criterion_main!(kernels);

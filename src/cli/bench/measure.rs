//! The measurements of prefill and decoding, and the roofline bounds that they are compared with.

use std::time::Instant;

use incant::exec::{Backend, Chunk, ExecError, Executor, Precision, SequenceId, Wanted};
use incant::kernels::roofline;
use incant::model::DecoderSpec;
use serde::Serialize;

/// The number of decode steps that are measured.
pub(super) const STEPS: usize = 24;
/// Prompts run in chunks of this many tokens, as when serving.
const CHUNK: usize = 512;
/// More bytes than any cache holds.
const WORKING_SET: usize = 256 << 20;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measured {
    pub(super) batch: usize,
    pub(super) depth: usize,
    /// Per sequence.
    pub(super) tokens: usize,
    /// The median.
    pub(super) seconds: f64,
}

/// One model, ready to be measured.
pub(super) struct Bench {
    executor: Box<dyn Executor>,
    repeat: usize,
    /// The state of the generator of random tokens.
    state: u64,
}

impl Bench {
    pub(super) fn new(executor: Box<dyn Executor>, repeat: usize) -> Bench {
        Bench {
            executor,
            repeat,
            state: 1,
        }
    }

    /// Returns random tokens: their values do not affect the time.
    fn tokens(&mut self, count: usize) -> Vec<u32> {
        let vocab = self.executor.spec().vocab as u64;
        let mut next = || {
            self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1);
            ((self.state >> 33) % vocab) as u32
        };
        (0..count).map(|_| next()).collect()
    }

    fn feed(&mut self, sequence: SequenceId, tokens: &[u32]) -> Result<(), ExecError> {
        let chunks = tokens.len().div_ceil(CHUNK);
        for (index, tokens) in tokens.chunks(CHUNK).enumerate() {
            let wanted = if index + 1 == chunks {
                Wanted::Last
            } else {
                Wanted::None
            };
            let chunk = Chunk {
                sequence,
                tokens,
                wanted,
                precision: Precision::Fast,
            };
            self.executor.forward(&[chunk])?;
        }
        Ok(())
    }

    /// Measures the prefill of a prompt, including the logits of its last token.
    pub(super) fn prefill(&mut self, tokens: usize) -> Result<Measured, ExecError> {
        let mut seconds = Vec::with_capacity(self.repeat);
        // The first round is a warm-up that is not measured.
        for round in 0..=self.repeat {
            let text = self.tokens(tokens);
            let sequence = self.executor.begin();
            let started = Instant::now();
            self.feed(sequence, &text)?;
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
            self.executor.end(sequence);
        }
        Ok(Measured {
            batch: 1,
            depth: 0,
            tokens,
            seconds: median(seconds),
        })
    }

    /// Measures decode steps of `batch` sequences, a token each per step, after a shared context.
    pub(super) fn decode(&mut self, batch: usize, depth: usize) -> Result<Measured, ExecError> {
        let context = self.executor.begin();
        let text = self.tokens(depth);
        self.feed(context, &text)?;
        let mut seconds = Vec::with_capacity(self.repeat);
        for round in 0..=self.repeat {
            let sequences = (0..batch)
                .map(|_| self.executor.fork(context, depth))
                .collect::<Result<Vec<_>, _>>()?;
            let text = self.tokens(batch * STEPS);
            let started = Instant::now();
            for tokens in text.chunks_exact(batch) {
                let chunk = |(&sequence, token)| Chunk {
                    sequence,
                    tokens: std::slice::from_ref(token),
                    wanted: Wanted::Last,
                    precision: Precision::Exact,
                };
                let chunks: Vec<Chunk<'_>> = sequences.iter().zip(tokens).map(chunk).collect();
                self.executor.forward(&chunks)?;
            }
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
            for sequence in sequences {
                self.executor.end(sequence);
            }
        }
        self.executor.end(context);
        Ok(Measured {
            batch,
            depth,
            tokens: STEPS,
            seconds: median(seconds),
        })
    }
}

/// Returns the median. `values` must not be empty.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

/// The machine's limits (roofline model).
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Limits {
    /// The bandwidth of reading memory, with all threads.
    pub(super) bytes_per_second: f64,
    /// The rate of multiply-adds of 16-bit numbers, with all threads.
    pub(super) macs_per_second: f64,
}

impl Limits {
    /// Measures the limits, for the native executor.
    pub(super) fn measure(backend: &Backend) -> anyhow::Result<Option<Limits>> {
        let Backend::Native { isa, pool } = backend else {
            return Ok(None);
        };
        let threads = pool.threads();
        let mut memory = incant::kernels::Arena::default().zeroed(WORKING_SET)?;
        // Untouched memory would be a single page of zeros, mapped again and again.
        memory.fill(1);
        let parts = 16 * threads;
        let part = WORKING_SET / parts;
        let mut reading = Vec::new();
        let mut multiplying = Vec::new();
        for _ in 0..5 {
            let started = Instant::now();
            pool.run(|worker| {
                worker.each(parts, |index| {
                    std::hint::black_box(roofline::read(*isa, &memory[index * part..][..part]));
                });
            });
            reading.push((part * parts) as f64 / started.elapsed().as_secs_f64());
        }
        const ROUNDS: usize = 200_000;
        for _ in 0..5 {
            let started = Instant::now();
            let done = std::sync::atomic::AtomicU64::new(0);
            pool.run(|worker| {
                worker.each(4 * threads, |_| {
                    let macs = roofline::multiply_add(*isa, ROUNDS);
                    done.fetch_add(macs, std::sync::atomic::Ordering::Relaxed);
                });
            });
            multiplying.push(done.into_inner() as f64 / started.elapsed().as_secs_f64());
        }
        Ok(Some(Limits {
            bytes_per_second: reading.into_iter().fold(0.0, f64::max),
            macs_per_second: multiplying.into_iter().fold(0.0, f64::max),
        }))
    }
}

/// The cost of running a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost<'a> {
    spec: &'a DecoderSpec,
    /// Bytes of weights that a step reads.
    weights: usize,
}

impl<'a> Cost<'a> {
    pub(super) fn new(spec: &'a DecoderSpec, weights: usize) -> Cost<'a> {
        Cost { spec, weights }
    }

    /// Returns the multiply-adds of the layers' matrices per token.
    fn layers(&self) -> usize {
        let spec = self.spec;
        let heads = 2 * (spec.heads + spec.kv_heads) * spec.head_dim;
        spec.layers.len() * spec.hidden * (heads + 3 * spec.feed_forward)
    }

    /// Returns the multiply-adds of the LM head per token.
    fn lm_head(&self) -> usize {
        self.spec.vocab * self.spec.hidden
    }

    /// Returns the multiply-adds of attention for a token that attends to `depth` others.
    fn attention(&self, depth: usize) -> usize {
        let seen = |window: Option<usize>| window.map_or(depth, |window| depth.min(window));
        let seen: usize = self
            .spec
            .layers
            .iter()
            .map(|layer| seen(layer.window))
            .sum();
        2 * seen * self.spec.heads * self.spec.head_dim
    }

    /// Returns the bound on a prompt's tokens per second, and the limit that sets it.
    pub(super) fn prefill(&self, tokens: usize, limits: &Limits) -> (f64, &'static str) {
        let attention: usize = (0..tokens).map(|depth| self.attention(depth)).sum();
        let macs = tokens * self.layers() + self.lm_head() + attention;
        bound(limits, tokens, macs, self.weights)
    }

    /// Returns the bound on the tokens per second of `batch` sequences that share a context of
    /// `depth` tokens, and the limit that sets it.
    pub(super) fn decode(
        &self,
        batch: usize,
        depth: usize,
        limits: &Limits,
    ) -> (f64, &'static str) {
        let macs = batch * (self.layers() + self.lm_head() + self.attention(depth));
        // The shared context is read once per step, in f16.
        let context = self.spec.kv_bytes(depth, 2);
        bound(limits, batch, macs, self.weights + context)
    }
}

fn bound(limits: &Limits, tokens: usize, macs: usize, bytes: usize) -> (f64, &'static str) {
    let computing = macs as f64 / limits.macs_per_second;
    let reading = bytes as f64 / limits.bytes_per_second;
    let by = if computing > reading {
        "multiply-adds"
    } else {
        "memory"
    };
    (tokens as f64 / computing.max(reading), by)
}

/// Returns the peak memory of this process (`VmHWM`) in bytes.
pub(super) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

use half::f16;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Keys and values of one head within blocks, with garbage wherever nothing was written.
struct Memory {
    head_dim: usize,
    keys: Vec<u16>,
    values: Vec<u16>,
    /// Rounded to f16: tokens × head_dim.
    exact_keys: Vec<f32>,
    exact_values: Vec<f32>,
}

impl Memory {
    fn random(isa: Isa, seed: u64, tokens: usize, head_dim: usize) -> Memory {
        // NaN, which would show up in any result that uses it.
        const GARBAGE: u16 = 0x7e00;
        let blocks = tokens.div_ceil(TOKENS_PER_BLOCK);
        let mut random = numbers(seed);
        let mut memory = Memory {
            head_dim,
            keys: vec![GARBAGE; blocks * (key_block_len(head_dim) + 10)],
            values: vec![GARBAGE; blocks * (value_block_len(head_dim) + 20)],
            exact_keys: random(tokens * head_dim),
            exact_values: random(tokens * head_dim),
        };
        for token in 0..tokens {
            let numbers = token * head_dim..(token + 1) * head_dim;
            let (block, offset) = (token / TOKENS_PER_BLOCK, token % TOKENS_PER_BLOCK);
            let key = &mut memory.exact_keys[numbers.clone()];
            let to = &mut memory.keys[block * (key_block_len(head_dim) + 10)..];
            write_key(isa, to, offset, key);
            key.iter_mut().for_each(round);
            let value = &mut memory.exact_values[numbers];
            let to = &mut memory.values[block * (value_block_len(head_dim) + 20)..];
            write_value(isa, to, offset, value);
            value.iter_mut().for_each(round);
        }
        memory
    }

    fn block(&self, block: usize) -> Option<Block<'_>> {
        Some(Block {
            keys: self
                .keys
                .get(block * (key_block_len(self.head_dim) + 10)..)?,
            values: self
                .values
                .get(block * (value_block_len(self.head_dim) + 20)..)?,
        })
    }

    /// Returns the chunk that begins with block number `first`; blocks past the end are empty.
    fn chunk(&self, first: usize) -> KvChunk<'_> {
        KvChunk {
            blocks: std::array::from_fn(|at| self.block(first + at).unwrap_or_default()),
            head_dim: self.head_dim,
        }
    }

    /// Computes attention by its definition, in f64.
    fn reference(&self, query: &[f32], visible: &Range<u32>, cap: Option<f32>) -> Vec<f64> {
        let head_dim = self.head_dim;
        let row = |all: &[f32], token: usize| -> Vec<f64> {
            let row = &all[token * head_dim..][..head_dim];
            row.iter().map(|x| f64::from(*x)).collect()
        };
        let mut out = vec![0.0; head_dim];
        let mut sum = 0.0;
        for token in visible.start as usize..visible.end as usize {
            let key = row(&self.exact_keys, token);
            let score: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum();
            let score = cap.map_or(score, |cap| {
                let cap = f64::from(cap);
                cap * (score / cap).tanh()
            });
            sum += score.exp();
            for (out, value) in out.iter_mut().zip(row(&self.exact_values, token)) {
                *out += score.exp() * value;
            }
        }
        if sum > 0.0 {
            out.iter_mut().for_each(|out| *out /= sum);
        }
        out
    }
}

fn round(x: &mut f32) {
    *x = f16::from_f32(*x).to_f32();
}

/// Returns a generator of random numbers from -1 to 1.
fn numbers(seed: u64) -> impl FnMut(usize) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    move |count| (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// Partial results that own their buffers.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    maxima: Vec<f32>,
    sums: Vec<f32>,
    values: Vec<f32>,
}

impl Owned {
    /// Creates the partial results of rows that have seen no keys.
    fn new(rows: usize, head_dim: usize) -> Owned {
        Owned {
            maxima: vec![f32::NEG_INFINITY; rows],
            sums: vec![0.0; rows],
            values: vec![0.0; rows * head_dim],
        }
    }

    fn partials(&mut self) -> Partials<'_> {
        Partials {
            maxima: &mut self.maxima,
            sums: &mut self.sums,
            values: &mut self.values,
        }
    }

    fn bits(&self) -> Vec<u32> {
        let all = self.maxima.iter().chain(&self.sums).chain(&self.values);
        all.map(|x| x.to_bits()).collect()
    }
}

/// Calls [`attend`] once, for the chunk that begins with block number `first`. `visible` counts
/// from the first token of the memory.
fn chunk(
    isa: Isa,
    memory: &Memory,
    first: usize,
    queries: &[f32],
    visible: &[Range<u32>],
    cap: Option<f32>,
) -> Owned {
    let mut out = Owned::new(visible.len(), memory.head_dim);
    out.values.fill(f32::NAN);
    let (chunk, visible) = (memory.chunk(first), within(first, visible));
    attend(isa, &chunk, queries, &visible, cap, &mut out.partials());
    out
}

/// Returns the visible keys relative to the chunk that begins with block number `first`.
fn within(first: usize, visible: &[Range<u32>]) -> Vec<Range<u32>> {
    let first = (first * TOKENS_PER_BLOCK) as u32;
    let at = |token: u32| token.saturating_sub(first).min(CHUNK as u32);
    visible
        .iter()
        .map(|seen| at(seen.start)..at(seen.end))
        .collect()
}

/// Computes attention by merging all chunks.
fn attention(
    isa: Isa,
    memory: &Memory,
    queries: &[f32],
    visible: &[Range<u32>],
    cap: Option<f32>,
) -> Owned {
    let tokens = memory.exact_keys.len() / memory.head_dim;
    let mut whole = Owned::new(visible.len(), memory.head_dim);
    for start in (0..tokens).step_by(CHUNK) {
        let mut part = chunk(isa, memory, start / TOKENS_PER_BLOCK, queries, visible, cap);
        merge(isa, &mut whole.partials(), &part.partials());
    }
    whole
}

/// Tokens, the head dimension, a seed, a soft cap, and the visible keys of each row.
#[derive(Clone, Debug)]
struct Case {
    tokens: usize,
    head_dim: usize,
    seed: u64,
    cap: Option<f32>,
    visible: Vec<Range<u32>>,
}

fn cases() -> impl Strategy<Value = Case> {
    let tokens = prop_oneof![1usize..40, 1usize..300];
    let head_dims = prop_oneof![(1usize..20).prop_map(|x| 2 * x), Just(64), Just(128)];
    // One cap that cuts most scores, and one that cuts few.
    let caps = prop_oneof![2 => Just(None), 1 => Just(Some(0.3)), 1 => Just(Some(3.0))];
    let sizes = (tokens, head_dims, any::<u64>(), caps, 1usize..16);
    sizes.prop_flat_map(|(tokens, head_dim, seed, cap, rows)| {
        let end = tokens as u32;
        let range = (0..=end, 0..=end).prop_map(|(a, b)| a.min(b)..a.max(b));
        let visible = prop_oneof![
            // The last tokens of a prompt; sliding windows; arbitrary ranges.
            Just(
                (0..rows as u32)
                    .map(|row| 0..end.saturating_sub(row))
                    .collect()
            ),
            Just(
                (0..rows as u32)
                    .map(|row| {
                        let end = end.saturating_sub(row);
                        end.saturating_sub(20)..end
                    })
                    .collect()
            ),
            prop::collection::vec(range, rows),
        ];
        visible.prop_map(move |visible| Case {
            tokens,
            head_dim,
            seed,
            cap,
            visible,
        })
    })
}

impl Case {
    fn memory(&self, isa: Isa) -> Memory {
        Memory::random(isa, self.seed, self.tokens, self.head_dim)
    }

    fn queries(&self) -> Vec<f32> {
        // Scaled as in models: larger scores would have larger rounding errors.
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let queries = numbers(!self.seed)(self.visible.len() * self.head_dim);
        queries.into_iter().map(|query| query * scale).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn attention_is_what_its_definition_says(case in cases()) {
        let isa = Isa::best();
        let (memory, queries) = (case.memory(isa), case.queries());
        let whole = attention(isa, &memory, &queries, &case.visible, case.cap);
        for (row, visible) in case.visible.iter().enumerate() {
            let numbers = row * case.head_dim..(row + 1) * case.head_dim;
            let mut out = vec![f32::NAN; case.head_dim];
            finish(isa, whole.sums[row], &whole.values[numbers.clone()], &mut out);
            let expected = memory.reference(&queries[numbers], visible, case.cap);
            for (out, expected) in out.iter().zip(expected) {
                prop_assert!((f64::from(*out) - expected).abs() < 3e-6, "{} {}", out, expected);
            }
        }
    }

    #[test]
    fn every_set_gives_the_same_bits(case in cases()) {
        let mut all = Vec::new();
        for isa in Isa::all() {
            let memory = case.memory(isa);
            all.push((isa, attention(isa, &memory, &case.queries(), &case.visible, case.cap)));
        }
        for (isa, whole) in &all {
            prop_assert_eq!(whole.bits(), all[0].1.bits(), "{}", isa);
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_in_company(case in cases()) {
        let isa = Isa::best();
        let (memory, queries) = (case.memory(isa), case.queries());
        let mut together = attention(isa, &memory, &queries, &case.visible, case.cap);
        for (row, visible) in case.visible.iter().enumerate() {
            let query = &queries[row * case.head_dim..][..case.head_dim];
            let alone = attention(isa, &memory, query, std::slice::from_ref(visible), case.cap);
            let mut together = together.partials();
            let row = together.rows(row..row + 1);
            let row = Owned {
                maxima: row.maxima.to_vec(),
                sums: row.sums.to_vec(),
                values: row.values.to_vec(),
            };
            prop_assert_eq!(row.bits(), alone.bits());
        }
    }

    #[test]
    fn written_blocks_are_read_unchanged(case in cases()) {
        for isa in Isa::all() {
            let memory = case.memory(isa);
            let block = |token| memory.block(token / TOKENS_PER_BLOCK).expect("it was written");
            let mut read = vec![f32::NAN; case.head_dim];
            let exact = memory.exact_keys.chunks(case.head_dim);
            for (token, exact) in exact.enumerate() {
                read_key(isa, block(token).keys, token % TOKENS_PER_BLOCK, &mut read);
                prop_assert_eq!(&read[..], exact);
            }
            let exact = memory.exact_values.chunks(case.head_dim);
            for (token, exact) in exact.enumerate() {
                read_value(isa, block(token).values, token % TOKENS_PER_BLOCK, &mut read);
                prop_assert_eq!(&read[..], exact);
            }
        }
    }
}

#[test]
fn a_row_that_sees_nothing_changes_nothing() {
    for isa in Isa::all() {
        let memory = Memory::random(isa, 1, 50, 24);
        let queries = numbers(2)(2 * 24);
        let mut seen = chunk(isa, &memory, 0, &queries, &[0..50, 7..31], None);
        let mut blind = chunk(isa, &memory, 0, &queries, &[0..0, 30..30], None);
        assert_eq!(blind, Owned::new(2, 24));

        let before = seen.bits();
        merge(isa, &mut seen.partials(), &blind.partials());
        assert_eq!(seen.bits(), before);
        merge(isa, &mut blind.partials(), &seen.partials());
        assert_eq!(blind.bits(), before);
    }
}

#[test]
fn large_scores_do_not_overflow() {
    for isa in Isa::all() {
        let memory = Memory::random(isa, 3, 300, 16);
        // So large that a single key dominates each row.
        let queries: Vec<f32> = numbers(4)(7 * 16).iter().map(|x| x * 1e4).collect();
        let whole = attention(isa, &memory, &queries, &vec![0..300; 7], None);
        for row in 0..7 {
            let query = &queries[row * 16..][..16];
            let score = |token: usize| -> f32 {
                let key = &memory.exact_keys[token * 16..][..16];
                query.iter().zip(key).map(|(q, k)| q * k).sum()
            };
            let best = (0..300).max_by(|a, b| score(*a).total_cmp(&score(*b)));
            let best = best.expect("there are keys");
            let mut out = [0.0; 16];
            finish(
                isa,
                whole.sums[row],
                &whole.values[row * 16..][..16],
                &mut out,
            );
            for (out, value) in out.iter().zip(&memory.exact_values[best * 16..][..16]) {
                assert!((out - value).abs() < 1e-3, "{out} {value}");
            }
        }
    }
}

/// The tiles for wide registers have shapes of their own. The machine may not have such
/// registers, so these lanes exercise those shapes.
#[test]
fn tiles_for_wide_registers_give_the_same_bits() {
    let isa = Isa::all()[0];
    let memory = Memory::random(isa, 5, 200, 34);
    for rows in 1..=13 {
        let queries = numbers(rows as u64)(rows * 34);
        let visible: Vec<_> = (0..rows as u32).map(|row| 3 * row..150 + row).collect();
        let narrow = chunk(isa, &memory, 1, &queries, &visible, Some(2.0));
        let mut wide = Owned::new(rows, 34);
        let (chunk, visible) = (memory.chunk(1), within(1, &visible));
        let mut out = wide.partials();
        let cap = Some(2.0);
        tile::attend(wide_lanes::Wide, &chunk, &queries, &visible, cap, &mut out);
        assert_eq!(wide.bits(), narrow.bits(), "{rows} rows");
    }
}

/// Plain lanes that claim to be wide.
mod wide_lanes {
    use crate::math::{LANES, Lanes, Plain};

    #[derive(Clone, Copy)]
    pub(super) struct Wide;

    impl Lanes for Wide {
        type Vector = <Plain as Lanes>::Vector;
        const MAX_TILE_ROWS: usize = 6;
        const WIDE: bool = true;

        fn zero(self) -> Self::Vector {
            Plain.zero()
        }

        fn splat(self, x: f32) -> Self::Vector {
            Plain.splat(x)
        }

        fn load(self, from: &[f32; LANES]) -> Self::Vector {
            Plain.load(from)
        }

        fn load_f16(self, from: &[u16; LANES]) -> Self::Vector {
            Plain.load_f16(from)
        }

        fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector {
            Plain.mul_add(a, b, c)
        }

        fn store(self, x: Self::Vector, to: &mut [f32; LANES]) {
            Plain.store(x, to);
        }

        fn store_f16(self, x: Self::Vector, to: &mut [u16; LANES]) {
            Plain.store_f16(x, to);
        }

        fn prefetch(self, at: *const u16) {
            Plain.prefetch(at);
        }
    }
}

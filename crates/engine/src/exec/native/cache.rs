//! The paged KV cache: page tables of sequences, with copy-on-write pages and swapping.

use std::collections::HashSet;
use std::sync::Arc;

use half::f16;
use safetensors::{Dtype, SafeTensors};

use super::adapters::Adapter;
use super::layout::{Layout, pages};
use super::pages::{PageId, PagePool};
use crate::exec::{ExecError, SavedTensor, SwapOut, saved};
use incant_kernels::Isa;
use incant_kernels::attention::TOKENS_PER_BLOCK;
use incant_model::DecoderSpec;

/// The number of tokens before a sliding window that [`Kv::trim`] keeps, so that a sequence can
/// still be forked shortly before its end: an answer that is sent back as part of a
/// conversation often ends a few tokens earlier.
const WINDOW_SLACK: usize = 64;

/// The size of the header of a swapped-out page, in bytes.
const RECORD_HEADER_BYTES: usize = 2 * size_of::<u32>();

/// The number of tokens of a step that [`max_tokens`] assumes.
const ASSUMED_STEP_TOKENS: usize = 512;

/// The KV of a sequence, and the adapter with which it is computed.
#[derive(Debug)]
pub(super) struct Kv {
    pub(super) adapter: Option<Arc<Adapter>>,
    /// One page table per group of layers.
    pub(super) tables: Vec<Table>,
}

/// The page table of one group.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// The first token that is held; earlier tokens were released.
    first: usize,
    /// The pages, starting with the one that holds `first`.
    pages: Vec<PageId>,
}

impl Table {
    /// Returns the page that holds block number `block` of the sequence.
    pub(super) fn page(&self, block: usize) -> PageId {
        self.pages[block - self.skipped()]
    }

    /// The number of released pages at the beginning.
    fn skipped(&self) -> usize {
        self.first / TOKENS_PER_BLOCK
    }

    pub(super) fn pages(&self) -> &[PageId] {
        &self.pages
    }

    fn is_swapped_out(&self) -> bool {
        self.pages.contains(&PageId::SWAPPED)
    }
}

impl Kv {
    pub(super) fn new(layout: &Layout, adapter: Option<Arc<Adapter>>) -> Kv {
        Kv {
            adapter,
            tables: vec![Table::default(); layout.groups.len()],
        }
    }

    pub(super) fn is_swapped_out(&self) -> bool {
        self.tables.iter().any(Table::is_swapped_out)
    }

    /// Whether the KV needed to continue after the first `tokens` tokens is complete.
    pub(super) fn can_fork(&self, layout: &Layout, tokens: usize) -> bool {
        let mut groups = self.tables.iter().zip(&layout.groups);
        !self.is_swapped_out()
            && groups.all(|(table, group)| {
                let first = group.window.map_or(0, |window| first_seen(tokens, window));
                table.first <= first
            })
    }

    /// Forks the KV of the first `tokens` tokens; all pages are shared.
    pub(super) fn fork(&self, pool: &mut PagePool, tokens: usize) -> Kv {
        let mut tables = self.tables.clone();
        for (group, table) in tables.iter_mut().enumerate() {
            let kept = pages(tokens).saturating_sub(table.skipped());
            table.pages.truncate(kept);
            for &page in &table.pages {
                pool.share(group, page);
            }
        }
        Kv {
            adapter: self.adapter.clone(),
            tables,
        }
    }

    /// Releases the pages after the first `tokens` tokens.
    pub(super) fn truncate(&mut self, pool: &mut PagePool, tokens: usize) {
        for (group, table) in self.tables.iter_mut().enumerate() {
            let kept = pages(tokens).saturating_sub(table.skipped());
            for page in table.pages.drain(kept.min(table.pages.len())..) {
                pool.release(group, page);
            }
            // Another holder of the last page may have more of its tokens.
            if let Some(&last) = table.pages.last()
                && !pool.is_shared(group, last)
            {
                let blocks = table.skipped() + table.pages.len() - 1;
                pool.fill(group, last, tokens - blocks * TOKENS_PER_BLOCK);
            }
        }
    }

    /// Releases all pages.
    pub(super) fn release(self, pool: &mut PagePool) {
        for (group, table) in self.tables.into_iter().enumerate() {
            for page in table.pages {
                if page != PageId::SWAPPED {
                    pool.release(group, page);
                }
            }
        }
    }

    /// Releases pages that no sliding window reaches from the end of `len` tokens, except for
    /// some slack. Returns whether there were any.
    pub(super) fn trim(&mut self, pool: &mut PagePool, layout: &Layout, len: usize) -> bool {
        let mut any = false;
        for (index, group) in layout.groups.iter().enumerate() {
            let Some(window) = group.window else {
                continue;
            };
            let table = &mut self.tables[index];
            let first = first_seen(len, window + WINDOW_SLACK) / TOKENS_PER_BLOCK;
            let count = first.saturating_sub(table.skipped()).min(table.pages.len());
            if count == 0 || table.is_swapped_out() {
                continue;
            }
            for page in table.pages.drain(..count) {
                pool.release(index, page);
            }
            table.first = (table.skipped() + count) * TOKENS_PER_BLOCK;
            any = true;
        }
        any
    }

    /// Adds to `needed`, for each group, the pages that `growth` more tokens may take,
    /// including copies of shared pages and swapped-out pages.
    pub(super) fn count_needed(
        &self,
        pool: &PagePool,
        len: usize,
        growth: usize,
        needed: &mut [usize],
    ) {
        for (group, table) in self.tables.iter().enumerate() {
            let held = table.skipped() + table.pages.len();
            let swapped = table.pages.iter().filter(|&&p| p == PageId::SWAPPED);
            // The first sequence to append to a shared page does so in place, but which one
            // that is becomes known only later, so a copy is counted for each.
            let last = table.pages.last().copied();
            let copied = growth > 0
                && !len.is_multiple_of(TOKENS_PER_BLOCK)
                && last.is_some_and(|p| p != PageId::SWAPPED && pool.is_shared(group, p));
            needed[group] +=
                pages(len + growth).saturating_sub(held) + swapped.count() + usize::from(copied);
        }
    }

    /// Provides pages for `growth` tokens after the first `len`, which no other sequence reads;
    /// a shared last page is copied (copy-on-write).
    pub(super) fn grow(
        &mut self,
        pool: &mut PagePool,
        len: usize,
        growth: usize,
    ) -> Result<(), ExecError> {
        let end = len + growth;
        for (group, table) in self.tables.iter_mut().enumerate() {
            let own = len % TOKENS_PER_BLOCK;
            if own > 0
                && let Some(last) = table.pages.last_mut()
                && !pool.may_append(group, *last, own)
            {
                let copy = pool.take(group)?;
                pool.copy(group, *last, copy);
                pool.release(group, *last);
                *last = copy;
            }
            while table.skipped() + table.pages.len() < pages(end) {
                table.pages.push(pool.take(group)?);
            }
            for block in table.skipped().max(len / TOKENS_PER_BLOCK)..pages(end) {
                pool.fill(
                    group,
                    table.page(block),
                    TOKENS_PER_BLOCK.min(end - block * TOKENS_PER_BLOCK),
                );
            }
        }
        Ok(())
    }

    /// Releases pages and returns their contents: each after its group and its index in the
    /// table.
    pub(super) fn swap_out(&mut self, pool: &mut PagePool, part: SwapOut) -> Vec<u8> {
        let goes = |pool: &PagePool, group: usize, page: PageId| {
            page != PageId::SWAPPED && (part == SwapOut::All || !pool.is_shared(group, page))
        };
        // Reserve everything at once: growing the buffer gradually would take twice the memory.
        let len = |(group, table): (usize, &Table)| {
            let pages = table.pages.iter().filter(|page| goes(pool, group, **page));
            pages.count() * (RECORD_HEADER_BYTES + size_of::<u16>() * pool.page_len(group))
        };
        let mut bytes = Vec::with_capacity(self.tables.iter().enumerate().map(len).sum());
        for (group, table) in self.tables.iter_mut().enumerate() {
            for (place, page) in table.pages.iter_mut().enumerate() {
                if !goes(pool, group, *page) {
                    continue;
                }
                for number in [group, place] {
                    bytes.extend((number as u32).to_le_bytes());
                }
                let numbers = pool.page(group, *page);
                bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                pool.release(group, *page);
                *page = PageId::SWAPPED;
            }
        }
        bytes
    }

    /// Restores the swapped-out pages of a sequence of `len` tokens.
    pub(super) fn swap_in(
        &mut self,
        pool: &mut PagePool,
        layout: &Layout,
        len: usize,
        bytes: &[u8],
    ) -> Result<(), ExecError> {
        let mut needed = vec![0; self.tables.len()];
        self.count_needed(pool, len, 0, &mut needed);
        if !pool.fits(&needed) {
            return Err(ExecError::OutOfKvMemory);
        }
        let pages = self.records(layout, bytes);
        let wrong = || ExecError::Saved("it is not what was swapped out".to_owned());
        let pages = pages.ok_or_else(wrong)?;
        if pages.len() != needed.iter().sum::<usize>() {
            return Err(wrong());
        }
        for (group, place, numbers) in pages {
            let table = &mut self.tables[group];
            let page = pool.take(group)?;
            table.pages[place] = page;
            let elements = numbers.as_chunks().0;
            for (to, element) in pool.page_mut(group, page).iter_mut().zip(elements) {
                *to = u16::from_le_bytes(*element);
            }
            let before = (table.skipped() + place) * TOKENS_PER_BLOCK;
            pool.fill(group, page, TOKENS_PER_BLOCK.min(len - before));
        }
        Ok(())
    }

    /// Parses swapped-out pages: the group of each, its index in the table, and its bytes.
    /// `None` if they are not exactly the swapped-out pages of this sequence.
    fn records<'a>(
        &self,
        layout: &Layout,
        bytes: &'a [u8],
    ) -> Option<Vec<(usize, usize, &'a [u8])>> {
        let mut records = Vec::new();
        let mut seen = HashSet::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (group, after) = rest.split_first_chunk()?;
            let (place, after) = after.split_first_chunk()?;
            let [group, place] = [group, place].map(|n| u32::from_le_bytes(*n) as usize);
            let table = self.tables.get(group)?;
            let (numbers, after) = after.split_at_checked(2 * layout.page_len(group))?;
            let swapped = table.pages.get(place) == Some(&PageId::SWAPPED);
            if !swapped || !seen.insert((group, place)) {
                return None;
            }
            records.push((group, place, numbers));
            rest = after;
        }
        Some(records)
    }

    /// Returns the KV needed to continue after these `len` tokens.
    pub(super) fn save(
        &self,
        pool: &PagePool,
        layout: &Layout,
        isa: Isa,
        spec: &DecoderSpec,
        len: usize,
    ) -> Vec<SavedTensor> {
        let mut saved = Vec::with_capacity(2 * spec.layers.len());
        let (mut key, mut value) = (vec![0.0; spec.head_dim], vec![0.0; spec.head_dim]);
        for (index, layer) in spec.layers.iter().enumerate() {
            let first = layer.window.map_or(0, |window| first_seen(len, window));
            let table = &self.tables[layout.group_of(index)];
            let [mut keys, mut values] = [(); 2].map(|()| Vec::new());
            for head in 0..spec.kv_heads {
                for token in first..len {
                    let page =
                        pool.page(layout.group_of(index), table.page(token / TOKENS_PER_BLOCK));
                    let block = &page[layout.block_of(index)];
                    let to = (&mut key[..], &mut value[..]);
                    layout.read(isa, block, head, token % TOKENS_PER_BLOCK, to);
                    push_f16s(&mut keys, &key);
                    push_f16s(&mut values, &value);
                }
            }
            let shape = [spec.kv_heads, len - first, spec.head_dim];
            saved.extend(saved::layer(index, Dtype::F16, &shape, [keys, values]));
        }
        saved
    }

    /// Restores the saved KV of `len` tokens.
    pub(super) fn restore(
        pool: &mut PagePool,
        layout: &Layout,
        isa: Isa,
        spec: &DecoderSpec,
        len: usize,
        tensors: &SafeTensors<'_>,
    ) -> Result<Kv, ExecError> {
        let mut kv = Kv::new(layout, None);
        for (table, group) in kv.tables.iter_mut().zip(&layout.groups) {
            let first = group.window.map_or(0, |window| first_seen(len, window));
            table.first = first;
        }
        let restored = kv.read(pool, layout, isa, spec, len, tensors);
        match restored {
            Ok(()) => Ok(kv),
            Err(error) => {
                kv.release(pool);
                Err(error)
            }
        }
    }

    fn read(
        &mut self,
        pool: &mut PagePool,
        layout: &Layout,
        isa: Isa,
        spec: &DecoderSpec,
        len: usize,
        tensors: &SafeTensors<'_>,
    ) -> Result<(), ExecError> {
        self.grow(pool, 0, len)?;
        let width = spec.kv_heads * spec.head_dim;
        let (mut key, mut value) = (vec![0.0; width], vec![0.0; width]);
        for (index, layer) in spec.layers.iter().enumerate() {
            let first = layer.window.map_or(0, |window| first_seen(len, window));
            let held = len - first;
            let shape = [spec.kv_heads, held, spec.head_dim];
            let [keys, values] = saved::read(tensors, index, Dtype::F16, &shape)?;
            let group = layout.group_of(index);
            for token in first..len {
                for head in 0..spec.kv_heads {
                    let from = (head * held + token - first) * spec.head_dim;
                    let to = head * spec.head_dim..(head + 1) * spec.head_dim;
                    read_f16s(keys, from, &mut key[to.clone()]);
                    read_f16s(values, from, &mut value[to]);
                }
                let page = pool.page_mut(group, self.tables[group].page(token / TOKENS_PER_BLOCK));
                let block = &mut page[layout.block_of(index)];
                layout.write(isa, block, token % TOKENS_PER_BLOCK, (&key, &value));
            }
        }
        Ok(())
    }
}

/// The first position visible from position `at` through a sliding window.
fn first_seen(at: usize, window: usize) -> usize {
    (at + 1).saturating_sub(window)
}

/// The maximum number of tokens of one sequence in this pool, up to `most`.
pub(super) fn max_tokens(pool: &PagePool, layout: &Layout, most: usize) -> usize {
    let fits = |tokens: usize| {
        let needed = layout.groups.iter().map(|group| {
            let seen = group
                .window
                .map(|window| window + WINDOW_SLACK + ASSUMED_STEP_TOKENS + TOKENS_PER_BLOCK);
            pages(tokens.min(seen.unwrap_or(tokens)))
        });
        pool.could_hold(&needed.collect::<Vec<_>>())
    };
    let (mut fit, mut not) = (0, most + 1);
    while fit + 1 < not {
        let middle = fit.midpoint(not);
        if fits(middle) {
            fit = middle;
        } else {
            not = middle;
        }
    }
    fit
}

/// Appends elements that have been read from f16, as f16.
fn push_f16s(bytes: &mut Vec<u8>, numbers: &[f32]) {
    bytes.extend(numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()));
}

/// Reads f16 elements from index `first` on.
fn read_f16s(bytes: &[u8], first: usize, out: &mut [f32]) {
    let elements = bytes[2 * first..].chunks_exact(2);
    for (out, element) in out.iter_mut().zip(elements) {
        *out = f16::from_le_bytes([element[0], element[1]]).to_f32();
    }
}

//! The page pool of the paged KV cache: one budget, handed out in reference-counted pages that
//! sequences share.
//!
//! Pages of different groups of layers differ in size, so the budget is cut into *slabs*; a
//! group takes a slab when it needs pages and returns it when all pages of the slab are free.

use std::collections::BTreeSet;
use std::ops::Range;

use super::layout::Layout;
use crate::exec::{ExecError, KvMemory};
use incant_kernels::attention::TOKENS_PER_BLOCK;
use incant_kernels::shared::SharedSlice;
use incant_kernels::{Allocation, Arena};

/// The minimum size of a slab in bytes, if the budget allows.
const MIN_SLAB_BYTES: usize = 2 << 20;

/// The minimum number of slabs, if slabs of that size can hold a page.
const MIN_SLABS: usize = 16;

/// The number of a page in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageId(u32);

impl PageId {
    /// Marks a swapped-out page in a table.
    pub(super) const SWAPPED: PageId = PageId(u32::MAX);
}

#[derive(Debug)]
pub(super) struct PagePool {
    memory: Allocation,
    /// Elements per slab.
    slab_len: usize,
    slabs: Vec<Slab>,
    free_slabs: Vec<u32>,
    groups: Vec<GroupPages>,
}

#[derive(Clone, Debug, Default)]
struct Slab {
    /// The indices of its free pages, while a group owns it.
    free: Vec<u32>,
}

#[derive(Debug)]
struct GroupPages {
    /// Elements per page.
    page_len: usize,
    per_slab: usize,
    /// The slabs of the group with free pages. The first ones are used first, so that the last
    /// ones may become free.
    open: BTreeSet<u32>,
    free: usize,
    used: usize,
    /// Indexed by page number.
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The number of tables that hold the page (reference count).
    holders: u32,
    /// The number of tokens written, by the holder that wrote most.
    filled: u8,
}

impl PagePool {
    /// Creates the pages for a budget of `capacity` bytes.
    ///
    /// # Errors
    /// The memory cannot be allocated, or the budget cannot hold a page of each group.
    pub(super) fn new(layout: &Layout, capacity: usize) -> Result<PagePool, ExecError> {
        let lens = (0..layout.groups.len()).map(|group| layout.page_len(group));
        let lens: Vec<usize> = lens.collect();
        let largest = lens.iter().copied().max().unwrap_or(1);
        let capacity = capacity / size_of::<u16>();
        let wanted = (MIN_SLAB_BYTES / size_of::<u16>()).min(capacity / MIN_SLABS);
        let slab_len = wanted.div_ceil(largest).max(1) * largest;
        let slabs = capacity / slab_len;
        if slabs < lens.len() {
            return Err(ExecError::Memory(format!(
                "memory for KV of {} bytes is too little: a page takes {}",
                capacity * size_of::<u16>(),
                largest * size_of::<u16>(),
            )));
        }
        let memory = Arena::default()
            .zeroed(slabs * slab_len * size_of::<u16>())
            .map_err(|error| ExecError::Memory(format!("no memory for KV: {error}")))?;
        let groups = lens.into_iter().map(|page_len| GroupPages {
            page_len,
            per_slab: slab_len / page_len,
            open: BTreeSet::new(),
            free: 0,
            used: 0,
            states: Vec::new(),
        });
        Ok(PagePool {
            memory,
            slab_len,
            slabs: vec![Slab::default(); slabs],
            free_slabs: (0..slabs as u32).rev().collect(),
            groups: groups.collect(),
        })
    }

    /// The used and the maximum memory.
    pub(super) fn usage(&self) -> KvMemory {
        let used = |group: &GroupPages| group.used * group.page_len;
        KvMemory {
            used: self.groups.iter().map(used).sum::<usize>() * size_of::<u16>(),
            capacity: self.slabs.len() * self.slab_len * size_of::<u16>(),
        }
    }

    /// Elements in a page of a group.
    pub(super) fn page_len(&self, group: usize) -> usize {
        self.groups[group].page_len
    }

    /// Whether the needed number of pages of each group can be taken.
    pub(super) fn fits(&self, needed: &[usize]) -> bool {
        let slabs = self.groups.iter().zip(needed).map(|(group, &needed)| {
            let more = needed.saturating_sub(group.free);
            more.div_ceil(group.per_slab)
        });
        slabs.sum::<usize>() <= self.free_slabs.len()
    }

    /// Whether the needed number of pages of each group could be taken if all pages were free.
    pub(super) fn could_hold(&self, needed: &[usize]) -> bool {
        let slabs = self.groups.iter().zip(needed);
        let slabs = slabs.map(|(group, &needed)| needed.div_ceil(group.per_slab));
        slabs.sum::<usize>() <= self.slabs.len()
    }

    /// Takes a free page.
    ///
    /// # Errors
    /// No page is free.
    pub(super) fn take(&mut self, group: usize) -> Result<PageId, ExecError> {
        let pages = &mut self.groups[group];
        let slab = match pages.open.first() {
            Some(&slab) => slab,
            None => {
                let slab = self.free_slabs.pop().ok_or(ExecError::OutOfKvMemory)?;
                self.slabs[slab as usize].free = (0..pages.per_slab as u32).rev().collect();
                pages.open.insert(slab);
                pages.free += pages.per_slab;
                slab
            }
        };
        let free = &mut self.slabs[slab as usize].free;
        let place = free.pop().ok_or(ExecError::OutOfKvMemory)?;
        if free.is_empty() {
            pages.open.remove(&slab);
        }
        pages.free -= 1;
        pages.used += 1;
        let page = slab * pages.per_slab as u32 + place;
        if pages.states.len() <= page as usize {
            pages.states.resize(page as usize + 1, State::default());
        }
        pages.states[page as usize] = State {
            holders: 1,
            filled: 0,
        };
        Ok(PageId(page))
    }

    /// Increments the reference count of a page.
    pub(super) fn share(&mut self, group: usize, page: PageId) {
        self.groups[group].states[page.0 as usize].holders += 1;
    }

    /// Decrements the reference count of a page; at zero the page is freed.
    pub(super) fn release(&mut self, group: usize, page: PageId) {
        let pages = &mut self.groups[group];
        let state = &mut pages.states[page.0 as usize];
        state.holders -= 1;
        if state.holders > 0 {
            return;
        }
        let per_slab = pages.per_slab as u32;
        let (slab, place) = (page.0 / per_slab, page.0 % per_slab);
        let free = &mut self.slabs[slab as usize].free;
        if free.is_empty() {
            pages.open.insert(slab);
        }
        free.push(place);
        pages.free += 1;
        pages.used -= 1;
        if free.len() == pages.per_slab {
            free.clear();
            pages.open.remove(&slab);
            pages.free -= pages.per_slab;
            self.free_slabs.push(slab);
        }
    }

    /// Whether several tables hold a page.
    pub(super) fn is_shared(&self, group: usize, page: PageId) -> bool {
        self.groups[group].states[page.0 as usize].holders > 1
    }

    /// Whether a holder that has `own` tokens of a page may write the next one in place: no
    /// other holder has written or can see a token there.
    pub(super) fn may_append(&self, group: usize, page: PageId, own: usize) -> bool {
        let state = self.groups[group].states[page.0 as usize];
        state.holders == 1 || usize::from(state.filled) == own
    }

    /// Records that the first `filled` tokens of a page are written.
    pub(super) fn fill(&mut self, group: usize, page: PageId, filled: usize) {
        debug_assert!(filled <= TOKENS_PER_BLOCK);
        self.groups[group].states[page.0 as usize].filled = filled as u8;
    }

    /// Returns the range of a page in the memory of the pool.
    pub(super) fn range(&self, group: usize, page: PageId) -> Range<usize> {
        let pages = &self.groups[group];
        let (slab, place) = (
            page.0 as usize / pages.per_slab,
            page.0 as usize % pages.per_slab,
        );
        let start = slab * self.slab_len + place * pages.page_len;
        start..start + pages.page_len
    }

    /// Returns the elements of a page.
    pub(super) fn page(&self, group: usize, page: PageId) -> &[u16] {
        let range = self.range(group, page);
        &self.memory.as_u16()[range]
    }

    /// Returns the elements of a page, mutably.
    pub(super) fn page_mut(&mut self, group: usize, page: PageId) -> &mut [u16] {
        let range = self.range(group, page);
        &mut self.memory.as_u16_mut()[range]
    }

    /// Copies the elements of a page.
    pub(super) fn copy(&mut self, group: usize, from: PageId, to: PageId) {
        let (from, to) = (self.range(group, from), self.range(group, to));
        self.memory.as_u16_mut().copy_within(from, to.start);
    }

    /// Returns all memory of the pool, for several threads.
    pub(super) fn shared(&mut self) -> SharedSlice<'_, u16> {
        SharedSlice::from(self.memory.as_u16_mut())
    }
}

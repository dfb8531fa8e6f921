//! Memory for KV: one budget, given out in pages that sequences share.
//!
//! Pages of different groups of layers have different sizes, so the budget is
//! cut into *slabs*; a group takes a slab when it needs pages and gives it back
//! when the last of them is free.

use std::collections::BTreeSet;
use std::ops::Range;

use super::layout::Layout;
use crate::exec::{ExecError, KvMemory};
use incant_kernels::attention::BLOCK;
use incant_kernels::shared::SharedSlice;
use incant_kernels::{Arena, Pages};

/// A slab is at least this large where the budget allows.
const SLAB: usize = 2 << 20;

/// The budget is cut into at least so many slabs, if they hold a page at all.
const LEAST_SLABS: usize = 16;

/// A page of a group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageId(u32);

impl PageId {
    /// Stands in a table for a page that was swapped out.
    pub(super) const SWAPPED: PageId = PageId(u32::MAX);
}

/// All pages of an executor.
#[derive(Debug)]
pub(super) struct PagePool {
    memory: Pages,
    /// Numbers in a slab.
    slab_len: usize,
    slabs: Vec<Slab>,
    free_slabs: Vec<u32>,
    groups: Vec<GroupPages>,
}

/// A piece of the budget.
#[derive(Clone, Debug, Default)]
struct Slab {
    /// Its free pages while a group has it, by their places.
    free: Vec<u32>,
}

/// The pages of a group.
#[derive(Debug)]
struct GroupPages {
    /// Numbers in a page.
    page_len: usize,
    per_slab: usize,
    /// Its slabs that have free pages. The first ones are used first, so that the
    /// last ones may become free.
    open: BTreeSet<u32>,
    free: usize,
    used: usize,
    /// By page number.
    states: Vec<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How many tables hold the page.
    holders: u32,
    /// Tokens written, by whichever holder wrote most.
    filled: u8,
}

impl PagePool {
    /// Pages for a budget of so many bytes.
    ///
    /// # Errors
    /// The system has no room, or the budget holds no page of each group.
    pub(super) fn new(layout: &Layout, capacity: usize) -> Result<PagePool, ExecError> {
        let lens = (0..layout.groups.len()).map(|group| layout.page_len(group));
        let lens: Vec<usize> = lens.collect();
        let largest = lens.iter().copied().max().unwrap_or(1);
        let capacity = capacity / size_of::<u16>();
        let wanted = (SLAB / size_of::<u16>()).min(capacity / LEAST_SLABS);
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

    /// Memory in use and in all.
    pub(super) fn usage(&self) -> KvMemory {
        let used = |group: &GroupPages| group.used * group.page_len;
        KvMemory {
            used: self.groups.iter().map(used).sum::<usize>() * size_of::<u16>(),
            capacity: self.slabs.len() * self.slab_len * size_of::<u16>(),
        }
    }

    /// Numbers in a page of a group.
    pub(super) fn page_len(&self, group: usize) -> usize {
        self.groups[group].page_len
    }

    /// Whether so many pages of each group can be taken.
    pub(super) fn has_room(&self, needed: &[usize]) -> bool {
        let slabs = self.groups.iter().zip(needed).map(|(group, &needed)| {
            let more = needed.saturating_sub(group.free);
            more.div_ceil(group.per_slab)
        });
        slabs.sum::<usize>() <= self.free_slabs.len()
    }

    /// Whether so many pages of each group could be taken if all were free.
    pub(super) fn could_hold(&self, needed: &[usize]) -> bool {
        let slabs = self.groups.iter().zip(needed);
        let slabs = slabs.map(|(group, &needed)| needed.div_ceil(group.per_slab));
        slabs.sum::<usize>() <= self.slabs.len()
    }

    /// A page that nobody else holds.
    ///
    /// # Errors
    /// There is none left.
    pub(super) fn take(&mut self, group: usize) -> Result<PageId, ExecError> {
        let pages = &mut self.groups[group];
        let slab = match pages.open.first() {
            Some(&slab) => slab,
            None => {
                let slab = self.free_slabs.pop().ok_or(ExecError::NoRoom)?;
                self.slabs[slab as usize].free = (0..pages.per_slab as u32).rev().collect();
                pages.open.insert(slab);
                pages.free += pages.per_slab;
                slab
            }
        };
        let free = &mut self.slabs[slab as usize].free;
        let place = free.pop().ok_or(ExecError::NoRoom)?;
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

    /// Counts one more holder of a page.
    pub(super) fn share(&mut self, group: usize, page: PageId) {
        self.groups[group].states[page.0 as usize].holders += 1;
    }

    /// Counts one holder less; a page that nobody holds is free.
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

    /// Whether a holder that has `own` of a page's tokens may write the next one in
    /// place: nobody else has one there, or could be looking at it.
    pub(super) fn may_append(&self, group: usize, page: PageId, own: usize) -> bool {
        let state = self.groups[group].states[page.0 as usize];
        state.holders == 1 || usize::from(state.filled) == own
    }

    /// Notes that the first `filled` tokens of a page are written.
    pub(super) fn fill(&mut self, group: usize, page: PageId, filled: usize) {
        debug_assert!(filled <= BLOCK);
        self.groups[group].states[page.0 as usize].filled = filled as u8;
    }

    /// Where a page's numbers lie in the memory.
    pub(super) fn range(&self, group: usize, page: PageId) -> Range<usize> {
        let pages = &self.groups[group];
        let (slab, place) = (
            page.0 as usize / pages.per_slab,
            page.0 as usize % pages.per_slab,
        );
        let start = slab * self.slab_len + place * pages.page_len;
        start..start + pages.page_len
    }

    /// A page's numbers.
    pub(super) fn page(&self, group: usize, page: PageId) -> &[u16] {
        let range = self.range(group, page);
        &self.memory.halves()[range]
    }

    /// The same, to be written.
    pub(super) fn page_mut(&mut self, group: usize, page: PageId) -> &mut [u16] {
        let range = self.range(group, page);
        &mut self.memory.halves_mut()[range]
    }

    /// Copies a page.
    pub(super) fn copy(&mut self, group: usize, from: PageId, to: PageId) {
        let (from, to) = (self.range(group, from), self.range(group, to));
        self.memory.halves_mut().copy_within(from, to.start);
    }

    /// All of the memory, for several threads.
    pub(super) fn shared(&mut self) -> SharedSlice<'_, u16> {
        SharedSlice::from(self.memory.halves_mut())
    }
}

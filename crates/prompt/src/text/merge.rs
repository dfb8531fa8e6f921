//! The merge loop of byte-pair encoding (BPE), shared by both tokenizer families.
//!
//! A text starts as a chain of its smallest symbols. The best pair of adjacent symbols is
//! merged repeatedly until no pair can be: a heap holds the candidates, so that n symbols take
//! O(n log n) however long the text is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// Stands for "no token" and "no neighbour".
const NONE: u32 = u32::MAX;

/// A part of the text: one token, or a character without a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// Its start, in bytes.
    start: u32,
    /// Its length in bytes; 0 once it has been merged into its left neighbour.
    len: u32,
    id: u32,
    left: u32,
    right: u32,
}

impl Symbol {
    pub(super) fn id(&self) -> Option<u32> {
        (self.id != NONE).then_some(self.id)
    }

    /// Its byte range in the text.
    pub(super) fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }

    /// The byte range that it and its right neighbour cover.
    pub(super) fn range_with(&self, right: &Symbol) -> Range<usize> {
        self.start as usize..(right.start + right.len) as usize
    }
}

/// The merge of two adjacent symbols.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    /// The lowest goes first; of equals, the leftmost.
    pub(super) priority: u32,
    /// The token of both together.
    pub(super) id: u32,
}

/// A chain of symbols.
#[derive(Default, Debug)]
pub(super) struct Chain {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

/// A possible merge of a symbol and its right neighbour. The order of the fields is the order
/// of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: u32,
    /// The length of both symbols together when this was found. Symbols only ever grow, so a
    /// different sum now means that one of them has changed.
    len: u32,
    id: u32,
}

impl Chain {
    /// Empties the chain, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Whether there is space for a symbol of `len` bytes: places are 32 bits wide, to keep the
    /// chain of a long text small.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.end() as usize + len < NONE as usize
    }

    /// Appends a symbol of `len` bytes, for which there must be [space](Self::fits).
    pub(super) fn push(&mut self, len: usize, id: Option<u32>) {
        let at = self.symbols.len() as u32;
        let start = self.end();
        self.symbols.push(Symbol {
            start,
            len: len as u32,
            id: id.unwrap_or(NONE),
            // The first has no left neighbour, which an index that is never valid represents.
            left: at.wrapping_sub(1),
            right: at + 1,
        });
    }

    /// The end of the text so far.
    fn end(&self) -> u32 {
        let last = self.symbols.last();
        last.map_or(0, |last| last.start + last.len)
    }

    /// Merges until `find` returns no merge for any two neighbours, or until `merged`, which is
    /// called after each merge, fails.
    pub(super) fn merge<E>(
        &mut self,
        find: impl Fn(&Symbol, &Symbol) -> Option<Merge>,
        mut merged: impl FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right, &find);
        }
        while let Some(Reverse(candidate)) = self.queue.pop() {
            let left = self.symbols[candidate.left as usize];
            // The last symbol has none; one that was merged into another may point anywhere.
            let Some(&right) = self.symbols.get(left.right as usize) else {
                continue;
            };
            if left.len == 0 || right.len == 0 || left.len + right.len != candidate.len {
                continue;
            }
            self.symbols[left.right as usize].len = 0;
            let grown = &mut self.symbols[candidate.left as usize];
            grown.len = candidate.len;
            grown.id = candidate.id;
            grown.right = right.right;
            if let Some(after) = self.symbols.get_mut(right.right as usize) {
                after.left = candidate.left;
            }
            self.consider(left.left, candidate.left, &find);
            self.consider(candidate.left, right.right, &find);
            merged()?;
        }
        Ok(())
    }

    /// The remaining symbols, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn consider(
        &mut self,
        left: u32,
        right: u32,
        find: impl Fn(&Symbol, &Symbol) -> Option<Merge>,
    ) {
        let (Some(first), Some(second)) = (
            self.symbols.get(left as usize),
            self.symbols.get(right as usize),
        ) else {
            return;
        };
        if let Some(merge) = find(first, second) {
            self.queue.push(Reverse(Candidate {
                priority: merge.priority,
                left,
                len: first.len + second.len,
                id: merge.id,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Merges single bytes by a list of pairs, best first; returns the texts.
    fn run(text: &str, merges: &[&str]) -> Vec<String> {
        let mut chain = Chain::default();
        for _ in text.bytes() {
            chain.push(1, None);
        }
        let find = |left: &Symbol, right: &Symbol| {
            let joined = &text[left.range_with(right)];
            let at = merges.iter().position(|&merge| merge == joined)?;
            Some(Merge {
                priority: at as u32,
                id: 0,
            })
        };
        let Ok(()) = chain.merge(find, || Ok::<_, Infallible>(()));
        let symbols = chain.iter();
        symbols
            .map(|symbol| text[symbol.range()].to_owned())
            .collect()
    }

    #[test]
    fn the_best_pair_goes_first() {
        assert_eq!(run("abc", &["ab", "bc"]), ["ab", "c"]);
        assert_eq!(run("abc", &["bc", "ab"]), ["a", "bc"]);
        assert_eq!(run("abcd", &["bc", "ab", "cd", "bcd"]), ["a", "bcd"]);
    }

    #[test]
    fn of_equal_pairs_the_leftmost_goes_first() {
        assert_eq!(run("aaa", &["aa"]), ["aa", "a"]);
        assert_eq!(run("aaaaa", &["aa", "aaaa"]), ["aaaa", "a"]);
    }

    #[test]
    fn merging_ends_when_somebody_has_had_enough() {
        let mut chain = Chain::default();
        (0..1000).for_each(|_| chain.push(1, None));
        let any = |_: &Symbol, _: &Symbol| Some(Merge { priority: 0, id: 0 });
        let mut merges = 0;
        let ended = chain.merge(any, || {
            merges += 1;
            if merges < 10 { Ok(()) } else { Err("enough") }
        });
        assert_eq!((ended, merges), (Err("enough"), 10));
        assert_eq!(chain.iter().count(), 990);
    }

    #[test]
    fn an_empty_text_has_no_symbols() {
        assert!(run("", &["a"]).is_empty());
    }
}

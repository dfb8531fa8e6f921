//! The merge loop that both tokenizer families share.
//!
//! A text begins as a chain of its smallest symbols. The best pair of
//! neighbours is merged, again and again, until no pair can be: a heap holds
//! the candidates, so that n symbols take O(n log n) however long the text is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Stands for "no token" and "no neighbour".
const NONE: u32 = u32::MAX;

/// A stretch of the text: one token, or a character that is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// Where it begins, in bytes.
    pub(super) start: usize,
    /// Its length in bytes; 0 once it has been merged into its left neighbour.
    pub(super) len: usize,
    id: u32,
    left: usize,
    right: usize,
}

impl Symbol {
    /// Its token.
    pub(super) fn id(&self) -> Option<u32> {
        (self.id != NONE).then_some(self.id)
    }
}

/// What two neighbours become.
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

/// A possible merge. The order of the fields is the order of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: usize,
    right: usize,
    /// Both symbols' bytes together when this was found. Symbols only ever
    /// grow, so a different sum now means that one of them has changed.
    len: usize,
    id: u32,
}

impl Chain {
    /// Empties the chain, keeping its memory.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol of `len` bytes.
    pub(super) fn push(&mut self, len: usize, id: Option<u32>) {
        let at = self.symbols.len();
        let start = self.symbols.last().map_or(0, |last| last.start + last.len);
        self.symbols.push(Symbol {
            start,
            len,
            id: id.unwrap_or(NONE),
            // The first has no left neighbour: an index that is never one.
            left: at.wrapping_sub(1),
            right: at + 1,
        });
    }

    /// Merges until `find` knows no merge for any two neighbours.
    pub(super) fn merge(&mut self, find: impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
        for right in 1..self.symbols.len() {
            self.consider(right - 1, right, &find);
        }
        while let Some(Reverse(candidate)) = self.queue.pop() {
            let (left, right) = (self.symbols[candidate.left], self.symbols[candidate.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != candidate.len {
                continue;
            }
            self.symbols[candidate.right].len = 0;
            let merged = &mut self.symbols[candidate.left];
            merged.len = candidate.len;
            merged.id = candidate.id;
            merged.right = right.right;
            if let Some(after) = self.symbols.get_mut(right.right) {
                after.left = candidate.left;
            }
            self.consider(left.left, candidate.left, &find);
            self.consider(candidate.left, right.right, &find);
        }
    }

    /// The symbols that are left, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn consider(
        &mut self,
        left: usize,
        right: usize,
        find: impl Fn(&Symbol, &Symbol) -> Option<Merge>,
    ) {
        let (Some(first), Some(second)) = (self.symbols.get(left), self.symbols.get(right)) else {
            return;
        };
        if let Some(merge) = find(first, second) {
            self.queue.push(Reverse(Candidate {
                priority: merge.priority,
                left,
                right,
                len: first.len + second.len,
                id: merge.id,
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Merges single bytes by a list of pairs, first is best; returns the texts.
    fn run(text: &str, merges: &[&str]) -> Vec<String> {
        let mut chain = Chain::default();
        for _ in text.bytes() {
            chain.push(1, None);
        }
        chain.merge(|left, right| {
            let joined = &text[left.start..right.start + right.len];
            let at = merges.iter().position(|&merge| merge == joined)?;
            Some(Merge {
                priority: at as u32,
                id: 0,
            })
        });
        chain
            .iter()
            .map(|symbol| text[symbol.start..symbol.start + symbol.len].to_owned())
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
    fn an_empty_text_has_no_symbols() {
        assert!(run("", &["a"]).is_empty());
    }
}

//! A radix tree over token ids: the index of the prefix cache, with least-recently-used
//! eviction.
//!
//! Each entry stands for a sequence of tokens below a *root* and holds a value. A lookup
//! returns the entries of a root that share the longest common prefix with some tokens; entries
//! are never shared between roots. Eviction takes the least recently used entries first,
//! whatever their root; pinned entries are exempt.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// The maximum number of entries below the end of a lookup that it examines. They share the
/// same tokens; one of them may still hold KV that another has released.
const MAX_EXAMINED: usize = 8;

/// Identifies an entry as long as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(usize);

/// An entry that a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The entry.
    pub handle: Handle,
    /// The number of tokens it shares with the lookup.
    pub shared: usize,
    /// The total number of its tokens.
    pub tokens: usize,
}

/// A radix tree for each root; `R` identifies the roots.
#[derive(Debug)]
pub struct Tree<R, T> {
    nodes: Vec<Node<T>>,
    roots: HashMap<R, usize>,
    /// Unused indices in `nodes`.
    free: Vec<usize>,
    /// The nodes of unpinned entries in order of their last use; of entries used at the same
    /// time, longer ones come first.
    by_use: BTreeSet<(u64, Reverse<usize>, usize)>,
    clock: u64,
}

#[derive(Debug)]
struct Node<T> {
    /// `None` for a root.
    parent: Option<usize>,
    /// The tokens from the parent to this node.
    edge: Vec<u32>,
    /// The number of tokens from the root to this node.
    depth: usize,
    /// The children, by the first token of their edges.
    children: BTreeMap<u32, usize>,
    entry: Option<Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    value: T,
    used: u64,
    pinned: bool,
}

impl<R: Copy + Eq + Hash, T> Default for Tree<R, T> {
    fn default() -> Self {
        Tree::new()
    }
}

impl<R: Copy + Eq + Hash, T> Tree<R, T> {
    /// Creates a tree without entries.
    pub fn new() -> Tree<R, T> {
        Tree {
            nodes: Vec::new(),
            roots: HashMap::new(),
            free: Vec::new(),
            by_use: BTreeSet::new(),
            clock: 0,
        }
    }

    /// Adds an entry and marks it as used most recently.
    ///
    /// # Errors
    /// There is already an entry for these tokens, which is marked as used. The error returns
    /// the value.
    pub fn insert(
        &mut self,
        root: R,
        tokens: &[u32],
        value: T,
        pinned: bool,
    ) -> Result<Handle, (Handle, T)> {
        let node = self.node_at(root, tokens);
        let handle = Handle(node);
        if self.nodes[node].entry.is_some() {
            if pinned {
                self.pin(handle);
            }
            self.touch(handle);
            return Err((handle, value));
        }
        self.nodes[node].entry = Some(Entry {
            value,
            used: 0,
            pinned,
        });
        self.touch(handle);
        Ok(handle)
    }

    /// Returns the entries that share the longest prefix with `tokens`, best first, followed by
    /// those that are themselves a prefix of `tokens`, longest first.
    pub fn find(&self, root: R, tokens: &[u32]) -> Vec<Found> {
        let Some(&root) = self.roots.get(&root) else {
            return Vec::new();
        };
        let mut path = vec![root];
        let mut shared = 0;
        // Descend to the node below which every entry shares the most tokens.
        let mut below = root;
        while let Some(&child) = tokens
            .get(shared)
            .and_then(|token| self.nodes[below].children.get(token))
        {
            let edge = &self.nodes[child].edge;
            let same = common(edge, &tokens[shared..]);
            shared += same;
            below = child;
            if same < edge.len() {
                break;
            }
            path.push(child);
        }
        let mut found = Vec::new();
        let mut open = vec![below];
        while let Some(node) = open.pop() {
            if found.len() == MAX_EXAMINED || shared == 0 {
                break;
            }
            found.extend(self.found(node, shared));
            open.extend(self.nodes[node].children.values().rev());
        }
        let before = path.iter().rev().filter(|&&node| node != below);
        found.extend(before.filter_map(|&node| self.found(node, self.nodes[node].depth)));
        found
    }

    fn found(&self, node: usize, shared: usize) -> Option<Found> {
        self.nodes[node].entry.as_ref().map(|_| Found {
            handle: Handle(node),
            shared,
            tokens: self.nodes[node].depth,
        })
    }

    /// Returns the value of an entry.
    pub fn get(&self, handle: Handle) -> &T {
        &self.entry(handle).value
    }

    /// Returns the value of an entry, mutably.
    pub fn get_mut(&mut self, handle: Handle) -> &mut T {
        &mut self.entry_mut(handle).value
    }

    /// Marks an entry and all entries that are prefixes of it as used.
    pub fn touch(&mut self, handle: Handle) {
        self.clock += 1;
        let mut node = handle.0;
        loop {
            let depth = Reverse(self.nodes[node].depth);
            if let Some(entry) = &mut self.nodes[node].entry {
                self.by_use.remove(&(entry.used, depth, node));
                entry.used = self.clock;
                if !entry.pinned {
                    self.by_use.insert((entry.used, depth, node));
                }
            }
            let Some(parent) = self.nodes[node].parent else {
                return;
            };
            node = parent;
        }
    }

    /// Exempts an entry from eviction.
    pub fn pin(&mut self, handle: Handle) {
        let depth = Reverse(self.nodes[handle.0].depth);
        let entry = self.entry_mut(handle);
        entry.pinned = true;
        let used = entry.used;
        self.by_use.remove(&(used, depth, handle.0));
    }

    /// Allows an entry to be evicted again, according to its last use.
    pub fn unpin(&mut self, handle: Handle) {
        let depth = Reverse(self.nodes[handle.0].depth);
        let entry = self.entry_mut(handle);
        entry.pinned = false;
        let used = entry.used;
        self.by_use.insert((used, depth, handle.0));
    }

    /// Whether an entry is exempt from eviction.
    pub fn is_pinned(&self, handle: Handle) -> bool {
        self.entry(handle).pinned
    }

    /// Iterates over the unpinned entries, least recently used first.
    pub fn by_use(&self) -> impl Iterator<Item = Handle> {
        self.by_use.iter().map(|&(_, _, node)| Handle(node))
    }

    /// Returns the least recently used pinned entry.
    pub fn oldest_pinned(&self) -> Option<Handle> {
        let pinned = self.handles().filter(|&handle| self.is_pinned(handle));
        pinned.min_by_key(|&handle| self.entry(handle).used)
    }

    /// Iterates over all entries.
    pub fn handles(&self) -> impl Iterator<Item = Handle> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(node, at)| at.entry.is_some().then_some(Handle(node)))
    }

    /// Removes an entry and returns its value.
    pub fn remove(&mut self, handle: Handle) -> T {
        let depth = Reverse(self.nodes[handle.0].depth);
        let entry = self.nodes[handle.0].entry.take();
        let entry = entry.expect("a handle names an entry that is kept");
        self.by_use.remove(&(entry.used, depth, handle.0));
        self.prune(handle.0);
        entry.value
    }

    /// Removes all entries below a root and returns their values.
    pub fn remove_root(&mut self, root: R) -> Vec<T> {
        let Some(&root_node) = self.roots.get(&root) else {
            return Vec::new();
        };
        let mut handles = Vec::new();
        let mut open = vec![root_node];
        while let Some(node) = open.pop() {
            open.extend(self.nodes[node].children.values());
            handles.extend(self.nodes[node].entry.is_some().then_some(Handle(node)));
        }
        let values = handles.into_iter().map(|handle| self.remove(handle));
        let values = values.collect();
        self.roots.remove(&root);
        self.free.push(root_node);
        values
    }

    fn entry(&self, handle: Handle) -> &Entry<T> {
        let entry = self.nodes[handle.0].entry.as_ref();
        entry.expect("a handle names an entry that is kept")
    }

    fn entry_mut(&mut self, handle: Handle) -> &mut Entry<T> {
        let entry = self.nodes[handle.0].entry.as_mut();
        entry.expect("a handle names an entry that is kept")
    }

    /// Returns the node of exactly these tokens below a root, creating it if necessary.
    fn node_at(&mut self, root: R, tokens: &[u32]) -> usize {
        let (mut node, mut at) = (self.root(root), 0);
        while at < tokens.len() {
            let Some(&child) = self.nodes[node].children.get(&tokens[at]) else {
                return self.add(node, tokens[at..].to_vec());
            };
            let same = common(&self.nodes[child].edge, &tokens[at..]);
            at += same;
            node = if same < self.nodes[child].edge.len() {
                self.split(child, same)
            } else {
                child
            };
        }
        node
    }

    /// Returns the node of a root, creating it if necessary.
    fn root(&mut self, root: R) -> usize {
        if let Some(&node) = self.roots.get(&root) {
            return node;
        }
        let node = self.place(None, Vec::new());
        self.roots.insert(root, node);
        node
    }

    /// Adds a child node.
    fn add(&mut self, parent: usize, edge: Vec<u32>) -> usize {
        let first = edge[0];
        let place = self.place(Some(parent), edge);
        self.nodes[parent].children.insert(first, place);
        place
    }

    /// Stores a new node at an unused index.
    fn place(&mut self, parent: Option<usize>, edge: Vec<u32>) -> usize {
        let before = parent.map_or(0, |parent| self.nodes[parent].depth);
        let node = Node {
            parent,
            depth: before + edge.len(),
            edge,
            children: BTreeMap::new(),
            entry: None,
        };
        match self.free.pop() {
            Some(place) => {
                self.nodes[place] = node;
                place
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Splits the edge to `child` after `tokens` tokens and returns the new node.
    fn split(&mut self, child: usize, tokens: usize) -> usize {
        let rest = self.nodes[child].edge.split_off(tokens);
        let edge = std::mem::replace(&mut self.nodes[child].edge, rest);
        let parent = self.nodes[child].parent.expect("an edge leads to it");
        let middle = self.add(parent, edge);
        let first = self.nodes[child].edge[0];
        self.nodes[middle].children.insert(first, child);
        self.nodes[child].parent = Some(middle);
        middle
    }

    /// Removes a node that has become useless, then ancestors that become useless by that.
    fn prune(&mut self, mut node: usize) {
        while self.nodes[node].entry.is_none()
            && let Some(parent) = self.nodes[node].parent
        {
            let mut children = self.nodes[node].children.values();
            match (children.next().copied(), children.next()) {
                (Some(_), Some(_)) => return,
                // A node with a single child and no entry is merged with the child.
                (Some(child), None) => {
                    let mut edge = std::mem::take(&mut self.nodes[node].edge);
                    self.nodes[parent].children.insert(edge[0], child);
                    edge.append(&mut self.nodes[child].edge);
                    self.nodes[child].edge = edge;
                    self.nodes[child].parent = Some(parent);
                    self.nodes[node].children.clear();
                    self.free.push(node);
                    return;
                }
                (None, _) => {
                    let first = self.nodes[node].edge[0];
                    self.nodes[parent].children.remove(&first);
                    self.free.push(node);
                    node = parent;
                }
            }
        }
    }
}

/// Returns the length of the common prefix of two sequences.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_common_beginning_is_found() {
        let mut tree = Tree::new();
        tree.insert((), &[1, 2, 3, 4], "long", false).unwrap();
        tree.insert((), &[1, 2], "short", false).unwrap();
        tree.insert((), &[9], "other", false).unwrap();
        let found = |tokens: &[u32]| -> Vec<(&str, usize, usize)> {
            let found = tree.find((), tokens).into_iter();
            found
                .map(|found| (*tree.get(found.handle), found.shared, found.tokens))
                .collect()
        };
        assert_eq!(found(&[1, 2, 3, 7]), [("long", 3, 4), ("short", 2, 2)]);
        assert_eq!(found(&[1, 2, 3, 4, 5]), [("long", 4, 4), ("short", 2, 2)]);
        assert_eq!(found(&[1, 5]), [("short", 1, 2), ("long", 1, 4)]);
        assert_eq!(found(&[1, 2, 8]), [("short", 2, 2), ("long", 2, 4)]);
        assert_eq!(found(&[7]), []);
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn what_was_used_least_recently_comes_first_and_branches_before_their_stem() {
        let mut tree = Tree::new();
        let stem = tree.insert((), &[1, 2], 'a', false).unwrap();
        let old = tree.insert((), &[1, 2, 3], 'b', false).unwrap();
        let new = tree.insert((), &[1, 2, 4], 'c', false).unwrap();
        assert_eq!(tree.by_use().collect::<Vec<_>>(), [old, new, stem]);
        tree.touch(old);
        assert_eq!(tree.by_use().collect::<Vec<_>>(), [new, old, stem]);
        assert_eq!(tree.oldest_pinned(), None);
        tree.pin(new);
        assert_eq!(tree.by_use().collect::<Vec<_>>(), [old, stem]);
        assert_eq!(tree.oldest_pinned(), Some(new));
        let taken = tree.insert((), &[1, 2], 'd', false);
        assert_eq!(taken, Err((stem, 'd')));
        assert_eq!(tree.by_use().collect::<Vec<_>>(), [old, stem]);
    }

    /// An operation on a tree.
    #[derive(Clone, Debug)]
    enum Change {
        Insert(u8, Vec<u32>),
        Remove(u8, Vec<u32>),
        RemoveRoot(u8),
    }

    fn tokens() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0u32..3, 0..8)
    }

    proptest! {
        #[test]
        fn a_tree_finds_what_a_list_finds(
            changes in prop::collection::vec(
                prop_oneof![
                    9 => (0u8..3, tokens()).prop_map(|(root, at)| Change::Insert(root, at)),
                    3 => (0u8..3, tokens()).prop_map(|(root, at)| Change::Remove(root, at)),
                    1 => (0u8..3).prop_map(Change::RemoveRoot),
                ],
                0..60,
            ),
            questions in prop::collection::vec((0u8..3, tokens()), 20),
        ) {
            let mut tree = Tree::new();
            let mut list: HashMap<(u8, Vec<u32>), Handle> = HashMap::new();
            for change in changes {
                match change {
                    Change::Insert(root, tokens) => {
                        let entry = (root, tokens.clone());
                        let inserted = tree.insert(root, &tokens, entry.clone(), false);
                        prop_assert_eq!(inserted.is_err(), list.contains_key(&entry));
                        if let Ok(handle) = inserted {
                            list.insert(entry, handle);
                        }
                    }
                    Change::Remove(root, tokens) => {
                        let entry = (root, tokens);
                        if let Some(handle) = list.remove(&entry) {
                            prop_assert_eq!(tree.remove(handle), entry);
                        }
                    }
                    Change::RemoveRoot(root) => {
                        let removed = tree.remove_root(root);
                        prop_assert!(removed.iter().all(|entry| list.contains_key(entry)));
                        let before = list.len();
                        list.retain(|(of, _), _| *of != root);
                        prop_assert_eq!(removed.len(), before - list.len());
                    }
                }
            }
            prop_assert_eq!(tree.handles().count(), list.len());
            prop_assert_eq!(tree.by_use().count(), list.len());
            for (entry, handle) in &list {
                prop_assert_eq!(tree.get(*handle), entry);
            }
            // The tree has no superfluous nodes.
            prop_assert!(tree.nodes.len() - tree.free.len() <= 2 * list.len() + 3);
            for (root, question) in questions {
                let found = tree.find(root, &question);
                let own = list.keys().filter(|(of, _)| *of == root);
                let best = own.map(|(_, tokens)| common(tokens, &question)).max();
                let best = best.filter(|&best| best > 0);
                prop_assert_eq!(found.iter().map(|f| f.shared).filter(|&s| s > 0).max(), best);
                prop_assert!(found.is_sorted_by(|a, b| a.shared >= b.shared));
                for found in found {
                    let (of, tokens) = tree.get(found.handle);
                    prop_assert_eq!(*of, root);
                    prop_assert_eq!(found.tokens, tokens.len());
                    prop_assert_eq!(found.shared, common(tokens, &question));
                }
            }
        }
    }
}

//! Finds special tokens in a text.
//!
//! llama.cpp looks for one token after the other, longest first, each from left to right in the
//! parts that earlier ones have left over. So a token counts if it overlaps no longer one, nor
//! an equally long one that comes before it. This module does the same in one pass: every place
//! of the text is put into a queue with the longest token that begins there, and is put back
//! with the next shorter one if that token is not accepted. The queue holds the places of one
//! cluster at a time: those whose tokens could overlap.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::ops::Range;

use aho_corasick::{AhoCorasick, Anchored, BuildError, Input, MatchKind, StartKind};

use super::markup::is_markup;
use super::vocabulary::{TokenKind, Vocabulary};

/// The special tokens of a vocabulary.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    /// Longest first, then by id. The automaton's patterns are in this order.
    tokens: Vec<SpecialToken>,
    automaton: AhoCorasick,
    /// The first bytes of all special tokens.
    begins: Box<[bool; 256]>,
    /// The first bytes of all control tokens and markup.
    begins_guarded: Box<[bool; 256]>,
    /// The ids of markup.
    markup: HashSet<u32>,
}

/// A token that is searched for in the raw text.
#[derive(Debug)]
pub(super) struct SpecialToken {
    id: u32,
    len: usize,
    /// Whether it is more than text: a control token or the unknown token.
    pub(super) control: bool,
    /// Whether a user's text must not become it: a control token or markup.
    pub(super) guarded: bool,
    /// Whether its text is one character.
    single: bool,
    /// The longest other special token that is a prefix of it.
    shorter: Option<usize>,
}

impl SpecialToken {
    /// Whether the token at `start` would span one of `guards`, places in the text in ascending
    /// order. A guard cannot be inside a single character, so right after it counts as well.
    pub(super) fn spans(&self, start: usize, guards: &[usize]) -> bool {
        let end = start + self.len;
        let next = guards.partition_point(|&guard| guard <= start);
        guards
            .get(next)
            .is_some_and(|&guard| guard < end || (self.single && guard == end))
    }
}

/// The kind of a part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment {
    /// A special token.
    Token(u32),
    /// Text between special tokens, never empty.
    Text,
}

/// The places of a text where tokens begin that could overlap, each with its longest token.
#[derive(Default)]
struct Cluster {
    /// By token and place.
    queue: BinaryHeap<Reverse<(usize, usize)>>,
    /// From the start of the first token to the last possible end.
    range: Range<usize>,
}

impl SpecialTokens {
    /// Collects control, unknown and user-defined tokens.
    pub(super) fn new(vocabulary: &Vocabulary) -> Result<SpecialTokens, BuildError> {
        let mut found: Vec<(&str, u32, bool)> = vocabulary
            .iter()
            .filter(|(_, _, piece)| !piece.is_empty())
            .filter_map(|(id, kind, piece)| match kind {
                TokenKind::Control | TokenKind::Unknown => Some((piece, id, true)),
                TokenKind::UserDefined => Some((piece, id, false)),
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => None,
            })
            .collect();
        found.sort_unstable_by_key(|&(piece, id, _)| (Reverse(piece.len()), id));

        let mut by_piece = HashMap::new();
        for (at, &(piece, ..)) in found.iter().enumerate() {
            by_piece.entry(piece).or_insert(at);
        }
        let mut begins = Box::new([false; 256]);
        let mut begins_guarded = Box::new([false; 256]);
        let tokens = found
            .iter()
            .map(|&(piece, id, control)| {
                let guarded = control || is_markup(piece);
                let first = piece.as_bytes()[0] as usize;
                begins[first] = true;
                begins_guarded[first] |= guarded;
                let shorter = (1..piece.len())
                    .rev()
                    .filter_map(|len| by_piece.get(piece.get(..len)?).copied())
                    .next();
                SpecialToken {
                    id,
                    len: piece.len(),
                    control,
                    guarded,
                    single: piece.chars().nth(1).is_none(),
                    shorter,
                }
            })
            .collect();
        let markup = found
            .iter()
            .filter(|(piece, _, control)| !control && is_markup(piece));
        let markup = markup.map(|&(_, id, _)| id).collect();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(StartKind::Anchored)
            .build(found.iter().map(|(piece, ..)| piece))?;
        Ok(SpecialTokens {
            tokens,
            automaton,
            begins,
            begins_guarded,
            markup,
        })
    }

    /// Splits `text` at its special tokens, those that `allowed` accepts at their place, and
    /// calls `each` with the parts in order, until it fails.
    pub(super) fn split<'a, E>(
        &self,
        text: &'a str,
        allowed: impl Fn(&SpecialToken, usize) -> bool,
        mut each: impl FnMut(Fragment, &'a str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut done = 0;
        let mut cluster = Cluster::default();
        let mut hand_out = |cluster: &mut Cluster| {
            for (part, id) in self.accepted(cluster, &allowed) {
                if part.start > done {
                    each(Fragment::Text, &text[done..part.start])?;
                }
                done = part.end;
                each(Fragment::Token(id), &text[part])?;
            }
            Ok(done)
        };
        for start in self.places(text) {
            let Some(at) = self.next(self.longest_at(text, start), start, &allowed) else {
                continue;
            };
            if start >= cluster.range.end {
                hand_out(&mut cluster)?;
                cluster.range.start = start;
            }
            cluster.range.end = cluster.range.end.max(start + self.tokens[at].len);
            cluster.queue.push(Reverse((at, start)));
        }
        let done = hand_out(&mut cluster)?;
        if done < text.len() {
            each(Fragment::Text, &text[done..])
        } else {
            Ok(())
        }
    }

    /// The accepted tokens of a cluster and their ranges, in order; empties the cluster.
    fn accepted(
        &self,
        cluster: &mut Cluster,
        allowed: &impl Fn(&SpecialToken, usize) -> bool,
    ) -> Vec<(Range<usize>, u32)> {
        let first = cluster.range.start;
        let mut taken = vec![false; cluster.range.len()];
        let mut accepted = Vec::new();
        while let Some(Reverse((at, start))) = cluster.queue.pop() {
            let token = &self.tokens[at];
            let end = start + token.len;
            // Accepted tokens are at least as long, so they cover one end of this token if they
            // overlap it at all.
            if taken[start - first] {
                continue;
            }
            if taken[end - 1 - first] {
                if let Some(at) = self.next(token.shorter, start, allowed) {
                    cluster.queue.push(Reverse((at, start)));
                }
                continue;
            }
            taken[start - first..end - first].fill(true);
            accepted.push((start..end, token.id));
        }
        accepted.sort_unstable_by_key(|(part, _)| part.start);
        accepted
    }

    /// The ids of all tokens that are searched for.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.tokens.iter().map(|token| token.id)
    }

    /// The places in `text` where control tokens and markup could begin, in ascending order,
    /// even if the rest of the token is missing, since a template may remove text in between.
    pub(super) fn guarded<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        let bytes = text.bytes().enumerate();
        bytes.filter_map(|(at, byte)| self.begins_guarded[byte as usize].then_some(at))
    }

    /// Whether a token is markup that the vocabulary has as text.
    pub(super) fn is_markup(&self, id: u32) -> bool {
        self.markup.contains(&id)
    }

    /// The places of `text` whose byte is the first of some special token.
    fn places<'a>(&'a self, text: &'a str) -> impl Iterator<Item = usize> + 'a {
        let bytes = text.bytes().enumerate();
        bytes.filter_map(|(at, byte)| self.begins[byte as usize].then_some(at))
    }

    /// The longest special token that begins at `start`.
    fn longest_at(&self, text: &str, start: usize) -> Option<usize> {
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        Some(self.automaton.find(input)?.pattern().as_usize())
    }

    /// The first allowed token in a chain of tokens, each of which is a prefix of the one
    /// before.
    fn next(
        &self,
        mut at: Option<usize>,
        start: usize,
        allowed: &impl Fn(&SpecialToken, usize) -> bool,
    ) -> Option<usize> {
        while let Some(token) = at.map(|at| &self.tokens[at]) {
            if allowed(token, start) {
                return at;
            }
            at = token.shorter;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::super::vocabulary::Arena;
    use super::*;

    /// Pieces that begin with `<` are control tokens, the others user-defined.
    fn special_tokens(pieces: &[&str]) -> SpecialTokens {
        let mut arena = Arena::default();
        let mut kinds = Vec::new();
        for piece in pieces {
            assert!(arena.push(piece.as_bytes()));
            kinds.push(if piece.starts_with('<') {
                TokenKind::Control
            } else {
                TokenKind::UserDefined
            });
        }
        SpecialTokens::new(&Vocabulary::new(arena, kinds)).expect("builds")
    }

    /// The text with each special token in brackets.
    fn show(special_tokens: &SpecialTokens, pieces: &[&str], text: &str) -> String {
        let mut shown = String::new();
        let show = |fragment, part: &str| {
            match fragment {
                Fragment::Token(id) => {
                    assert_eq!(pieces[id as usize], part);
                    shown += &format!("[{part}]");
                }
                Fragment::Text => shown += part,
            }
            Ok::<_, Infallible>(())
        };
        let Ok(()) = special_tokens.split(text, |_, _| true, show);
        shown
    }

    /// llama.cpp's algorithm, literally: token by token, longest first.
    fn reference(pieces: &[&str], text: &str) -> String {
        let mut order: Vec<&str> = pieces.to_vec();
        order.sort_by_key(|piece| Reverse(piece.len()));
        let mut parts: Vec<(bool, String)> = vec![(false, text.to_owned())];
        for piece in order {
            let mut next = Vec::new();
            for (special, part) in parts {
                if special {
                    next.push((true, part));
                    continue;
                }
                for (at, between) in part.split(piece).enumerate() {
                    if at > 0 {
                        next.push((true, piece.to_owned()));
                    }
                    next.push((false, between.to_owned()));
                }
            }
            parts = next;
        }
        let shown = parts.iter().map(|(special, part)| {
            if *special {
                format!("[{part}]")
            } else {
                part.clone()
            }
        });
        shown.collect()
    }

    #[test]
    fn the_longest_token_wins_wherever_it_stands() {
        let pieces = ["abc", "bcde", "de", "c"];
        let special_tokens = special_tokens(&pieces);
        assert_eq!(show(&special_tokens, &pieces, "abcde"), "a[bcde]");
        assert_eq!(show(&special_tokens, &pieces, "abcd"), "[abc]d");
        assert_eq!(show(&special_tokens, &pieces, "xcxdex"), "x[c]x[de]x");
    }

    #[test]
    fn runs_are_cut_from_the_left() {
        let pieces = ["aa", "aaa", "aaaa"];
        let special_tokens = special_tokens(&pieces);
        assert_eq!(show(&special_tokens, &pieces, "aaaaaaa"), "[aaaa][aaa]");
        assert_eq!(show(&special_tokens, &pieces, "aaaaa"), "[aaaa]a");
    }

    proptest::proptest! {
        #[test]
        fn matches_are_those_of_a_search_token_by_token(
            pieces in proptest::collection::hash_set("[ab<]{1,4}", 1..8),
            text in "[ab<]{0,24}",
        ) {
            let mut pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            pieces.sort();
            let special_tokens = special_tokens(&pieces);
            proptest::prop_assert_eq!(show(&special_tokens, &pieces, &text), reference(&pieces, &text));
        }
    }
}

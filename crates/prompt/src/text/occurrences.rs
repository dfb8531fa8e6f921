//! Finds the token sequences in which a text can occur.
//!
//! A text occurs in a token that contains it, and in a sequence of tokens whose first one ends
//! with the text's beginning and whose others are the encoding of its rest. Other tokenizations
//! are not searched: a model nearly always writes as encoding does.

use std::sync::{Arc, Mutex, PoisonError};

use super::tokenizer::{Special, Tokenizer};

/// How many lists of texts are cached: the default, those of a few profiles, and those of the
/// latest clients.
const MAX_CACHED_LISTS: usize = 8;

/// A set of first tokens with the common tokens that complete a text after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// The possible first tokens, in ascending order.
    pub heads: Vec<u32>,
    /// The tokens that follow; empty if the first contains the whole text.
    pub tail: Vec<u32>,
}

/// A cache of the latest lists of texts, the newest last.
#[derive(Debug, Default)]
pub(super) struct OccurrenceCache(Mutex<Vec<List>>);

/// Texts, and their occurrences.
type List = (Vec<String>, Arc<[Occurrence]>);

impl Tokenizer {
    /// The occurrences of `texts`, none of them empty, in tokens. Control tokens count by their
    /// piece. This reads the whole vocabulary once for each text, unless the list is in the
    /// cache.
    pub fn occurrences(&self, texts: &[String]) -> Arc<[Occurrence]> {
        let lists = &self.occurrence_cache.0;
        let lock = || lists.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock()
            .iter()
            .find(|(known, _)| known == texts)
            .map(|(_, found)| Arc::clone(found));
        if let Some(found) = known {
            return found;
        }
        let found: Arc<[Occurrence]> = texts
            .iter()
            .flat_map(|text| self.occurrences_of(text))
            .collect();
        let mut lists = lock();
        if lists.len() >= MAX_CACHED_LISTS {
            lists.remove(0);
        }
        lists.push((texts.to_vec(), Arc::clone(&found)));
        found
    }

    fn occurrences_of(&self, text: &str) -> Vec<Occurrence> {
        let bytes = text.as_bytes();
        // Indexed by the number of the text's first bytes that a token ends with; the last
        // entry is for tokens that contain the whole text.
        let mut heads = vec![Vec::new(); bytes.len() + 1];
        for id in 0..self.vocab_size() as u32 {
            let token = self.token_text_special(id);
            let firsts = token.iter().enumerate();
            let firsts = firsts.filter(|&(_, byte)| *byte == bytes[0]);
            let ends = firsts.map(|(at, _)| &token[at..]);
            if ends.clone().any(|end| end.starts_with(bytes)) {
                heads[bytes.len()].push(id);
            } else {
                for end in ends.filter(|end| bytes.starts_with(end)) {
                    heads[end.len()].push(id);
                }
            }
        }
        let whole = self.encode_inside(text, Special::Plain);
        let rest = |count: usize| match text.get(count..) {
            Some(rest) => Some(self.encode_inside(rest, Special::Plain)),
            // Within a character: only the boundary between two tokens can be there.
            None => {
                let mut before = 0;
                let first = whole.iter().position(|&id| {
                    let here = before == count;
                    before += self.token_text_special(id).len();
                    here
                });
                first.map(|first| whole[first..].to_vec())
            }
        };
        let occurrences = heads.into_iter().enumerate();
        let occurrences = occurrences.filter(|(_, heads)| !heads.is_empty());
        let occurrences = occurrences
            .filter_map(|(count, heads)| rest(count).map(|tail| Occurrence { heads, tail }));
        occurrences.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use incant_gguf::Gguf;

    /// Byte-level BPE over a few tokens with one merge, from a minimal GGUF file.
    fn tokenizer() -> Tokenizer {
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        fn string(out: &mut Vec<u8>, text: &str) {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        }
        // Ċ is a newline; æ, Ĺ and ¥ are the bytes of 日.
        let tokens = ["a", "b", ":", "Ċ", "aĊ", "Ċ:b", "æ", "Ĺ", "¥", "#", "##"];
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(4u64.to_le_bytes());
        for (key, value) in [("model", "gpt2"), ("pre", "gpt-2")] {
            string(&mut file, &format!("tokenizer.ggml.{key}"));
            file.extend(STRING.to_le_bytes());
            string(&mut file, value);
        }
        for (key, values) in [("tokens", &tokens[..]), ("merges", &["# #"])] {
            string(&mut file, &format!("tokenizer.ggml.{key}"));
            file.extend(ARRAY.to_le_bytes());
            file.extend(STRING.to_le_bytes());
            file.extend((values.len() as u64).to_le_bytes());
            for value in values {
                string(&mut file, value);
            }
        }
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), file).unwrap();
        Tokenizer::from_gguf(&Gguf::open(path.path()).unwrap()).unwrap()
    }

    fn occurrences(tokenizer: &Tokenizer, text: &str) -> Vec<(Vec<u32>, Vec<u32>)> {
        let found = tokenizer.occurrences(&[text.to_owned()]);
        let found = found.iter();
        found
            .map(|one| (one.heads.clone(), one.tail.clone()))
            .collect()
    }

    #[test]
    fn a_text_is_found_within_tokens_and_across_them() {
        let tokenizer = tokenizer();
        let found = |text| occurrences(&tokenizer, text);
        assert_eq!(found("\n"), [(vec![3, 4, 5], vec![])]);
        assert_eq!(found("\n:"), [(vec![3, 4], vec![2]), (vec![5], vec![])]);
        assert_eq!(found("##"), [(vec![9], vec![9]), (vec![10], vec![])]);
        // Two tokens of the rest, and a head with two of the three.
        let three = [(vec![9, 10], vec![10]), (vec![10], vec![9])];
        assert_eq!(found("###"), three);
        assert_eq!(found("日"), [(vec![6], vec![7, 8])]);
    }

    #[test]
    fn the_last_lists_are_remembered() {
        let tokenizer = tokenizer();
        let list = |text: &str| tokenizer.occurrences(&[text.to_owned()]);
        let first = list("a");
        for other in 0..MAX_CACHED_LISTS - 1 {
            list(&"b".repeat(1 + other));
        }
        assert!(Arc::ptr_eq(&first, &list("a")));
        list(":");
        assert!(!Arc::ptr_eq(&first, &list("a")));
        assert_eq!(first, list("a"));
    }
}

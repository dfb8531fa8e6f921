//! Binds profiles to a model: encodes their prefixes with its tokenizer.

use std::sync::Arc;

use super::LoadError;
use incant_engine::Prefix;
use incant_prompt::profile::Profile;
use incant_prompt::text::{Special, Tokenizer};

/// The maximum number of bytes (and tokens) at the end of a prefix that may be encoded together
/// with the text after it.
const MAX_UNSTABLE: usize = 32;

/// The minimum number of bytes at the end of a prefix that are encoded together with possible
/// continuations, to see whether those change them.
const MIN_PROBED: usize = 8 * MAX_UNSTABLE;

/// A profile and its prefix, encoded with a model's tokenizer.
#[derive(Clone, Debug)]
pub struct BoundProfile {
    profile: Arc<Profile>,
    prefix: Option<Arc<Prefix>>,
    tail: String,
    whole: Option<Arc<Prefix>>,
}

impl BoundProfile {
    /// Encodes a profile's prefix so that its tokens are the same whatever text follows: a model
    /// that reads the whole text at once gets the same tokens as one that reuses the prefix. Some
    /// tokenizers split the text before a line break or space differently depending on the text
    /// after it. The part of the prefix where that happens, a few characters at its end, is left to
    /// be encoded with the text that follows.
    pub(super) fn new(
        model: &str,
        profile: &Arc<Profile>,
        tokenizer: &Tokenizer,
    ) -> Result<BoundProfile, LoadError> {
        let text = profile.prefix();
        let encode = |text: &str| tokenizer.encode(text, Special::Parse);
        let mut ids = encode(text);
        let (bytes, tokens) = stable_boundary(text, &ids, tokenizer);
        let end = &text[bytes..];
        let mut end_ids = ids.split_off(tokens);
        for probe in profile.probes()? {
            let followed = encode(&format!("{end}{probe}"));
            let pairs = end_ids.iter().zip(&followed);
            let same = pairs.take_while(|(a, b)| a == b).count();
            end_ids.truncate(same);
        }
        // A space that the tokenizer puts before the text is not part of it.
        let added = usize::from(tokenizer.adds_space_prefix());
        let mut stable = None;
        for _ in 0..=MAX_UNSTABLE {
            let bytes = bytes_of(&end_ids, tokenizer);
            let cut = end.split_at_checked(bytes.saturating_sub(added));
            if let Some((before, after)) = cut.filter(|(before, _)| encode(before) == end_ids) {
                stable = Some((before, after));
                break;
            }
            end_ids.pop();
        }
        let Some((_, tail)) = stable.filter(|(_, tail)| tail.len() <= MAX_UNSTABLE) else {
            return Err(LoadError::PrefixDepends {
                profile: profile.name().to_owned(),
                model: model.to_owned(),
            });
        };
        ids.append(&mut end_ids);
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let prefix = |ids: Vec<u32>| {
            (!ids.is_empty()).then(|| {
                Arc::new(Prefix {
                    ids: bos.into_iter().chain(ids).collect(),
                })
            })
        };
        let whole: Vec<u32> = ids.iter().copied().chain(encode(tail)).collect();
        Ok(BoundProfile {
            profile: Arc::clone(profile),
            tail: tail.to_owned(),
            whole: prefix(whole),
            prefix: prefix(ids),
        })
    }

    /// Returns the profile.
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// Returns the part of its prefix whose tokens do not depend on the text that follows,
    /// including BOS if the model expects it; `None` if there is none.
    pub fn prefix(&self) -> Option<&Arc<Prefix>> {
        self.prefix.as_ref()
    }

    /// Returns the rest of the prefix's text, usually empty: it is encoded together with the turns
    /// that follow.
    pub fn tail(&self) -> &str {
        &self.tail
    }

    /// Returns the tokens of the whole prefix, for a continuation that is not a turn of its form.
    pub fn whole(&self) -> Option<&Arc<Prefix>> {
        self.whole.as_ref()
    }
}

/// Returns the numbers of bytes and tokens before the last paragraph that starts at least
/// [`MIN_PROBED`] bytes before the text's end and is encoded as if it stood alone. No tokenizer looks
/// farther back, so only this paragraph must be encoded for each probe. If there is no such
/// paragraph, both are 0.
fn stable_boundary(text: &str, ids: &[u32], tokenizer: &Tokenizer) -> (usize, usize) {
    let last = text.floor_char_boundary(text.len().saturating_sub(MIN_PROBED));
    let begins = text[..last].rfind("\n\n").map_or(0, |at| at + 2);
    let end = tokenizer.encode(&text[begins..], Special::Parse);
    let tokens = ids.len().saturating_sub(end.len());
    let alone = ids[tokens..] == end
        && bytes_of(&ids[..tokens], tokenizer) == begins
        && !tokenizer.adds_space_prefix();
    if alone { (begins, tokens) } else { (0, 0) }
}

/// Returns the length of the tokens' text.
fn bytes_of(ids: &[u32], tokenizer: &Tokenizer) -> usize {
    let texts = ids.iter().map(|&id| tokenizer.token_text_special(id));
    texts.map(<[u8]>::len).sum()
}

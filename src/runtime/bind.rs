//! A profile in a model's tokens.

use std::sync::Arc;

use super::LoadError;
use incant_engine::Prefix;
use incant_prompt::profile::Profile;
use incant_prompt::text::{Special, Tokenizer};

/// The most bytes (and tokens) at the end of a prefix that may be encoded with
/// what follows.
const MOST_UNSTABLE: usize = 32;

/// At least so many bytes at the end of a prefix are encoded together with what
/// could follow it, to see whether that changes them.
const PROBED: usize = 8 * MOST_UNSTABLE;

/// A profile and its prefix in a model's tokens.
#[derive(Clone, Debug)]
pub struct BoundProfile {
    profile: Arc<Profile>,
    prefix: Option<Arc<Prefix>>,
    tail: String,
    whole: Option<Arc<Prefix>>,
}

impl BoundProfile {
    /// Encodes a profile's prefix such that its tokens are the same whatever
    /// follows: a model that saw the whole text at once would see the same tokens as
    /// one that reuses the prefix. Some tokenizers cut the text before a line break
    /// or space by what comes after it; the part of the prefix where that happens,
    /// a few characters at its end, is left to be encoded with what follows.
    pub(super) fn new(
        model: &str,
        profile: &Arc<Profile>,
        tokenizer: &Tokenizer,
    ) -> Result<BoundProfile, LoadError> {
        let text = profile.prefix();
        let encode = |text: &str| tokenizer.encode(text, Special::Parse);
        let mut ids = encode(text);
        let (bytes, tokens) = steady(text, &ids, tokenizer);
        let end = &text[bytes..];
        let mut end_ids = ids.split_off(tokens);
        for probe in profile.probes()? {
            let followed = encode(&format!("{end}{probe}"));
            let pairs = end_ids.iter().zip(&followed);
            let same = pairs.take_while(|(a, b)| a == b).count();
            end_ids.truncate(same);
        }
        // Where the encoding puts a space before the text, it is not the text's.
        let added = usize::from(tokenizer.adds_space_prefix());
        let mut stable = None;
        for _ in 0..=MOST_UNSTABLE {
            let bytes = bytes_of(&end_ids, tokenizer);
            let cut = end.split_at_checked(bytes.saturating_sub(added));
            if let Some((before, after)) = cut.filter(|(before, _)| encode(before) == end_ids) {
                stable = Some((before, after));
                break;
            }
            end_ids.pop();
        }
        let Some((_, tail)) = stable.filter(|(_, tail)| tail.len() <= MOST_UNSTABLE) else {
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

    /// The profile.
    pub fn profile(&self) -> &Arc<Profile> {
        &self.profile
    }

    /// The part of its prefix whose tokens do not depend on what follows, BOS
    /// included where the model asks for one; `None` if there is none.
    pub fn prefix(&self) -> Option<&Arc<Prefix>> {
        self.prefix.as_ref()
    }

    /// The rest of the prefix's text, most often empty: it is encoded together
    /// with the turns that follow.
    pub fn tail(&self) -> &str {
        &self.tail
    }

    /// All of the prefix, for what continues it without being part of its form.
    pub fn whole(&self) -> Option<&Arc<Prefix>> {
        self.whole.as_ref()
    }
}

/// The bytes and tokens before the last paragraph that has at least [`PROBED`] bytes
/// from its beginning to the text's end, where it is encoded as if it stood alone.
/// No tokenizer looks farther back to cut what comes after it; that saves encoding all
/// of the text once for each probe. Where there is no such paragraph, nothing comes
/// before.
fn steady(text: &str, ids: &[u32], tokenizer: &Tokenizer) -> (usize, usize) {
    let last = text.floor_char_boundary(text.len().saturating_sub(PROBED));
    let begins = text[..last].rfind("\n\n").map_or(0, |at| at + 2);
    let end = tokenizer.encode(&text[begins..], Special::Parse);
    let tokens = ids.len().saturating_sub(end.len());
    let alone = ids[tokens..] == end
        && bytes_of(&ids[..tokens], tokenizer) == begins
        && !tokenizer.adds_space_prefix();
    match alone {
        true => (begins, tokens),
        false => (0, 0),
    }
}

/// How much text tokens stand for.
fn bytes_of(ids: &[u32], tokenizer: &Tokenizer) -> usize {
    let texts = ids.iter().map(|&id| tokenizer.token_text_special(id));
    texts.map(<[u8]>::len).sum()
}

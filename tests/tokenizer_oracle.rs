//! Tokenizers against independent implementations, on random text: the `tokenizers` crate for
//! byte-level BPE, and the plainest possible loop for SentencePiece BPE.

use std::collections::HashMap;
use std::sync::OnceLock;

use incant::gguf::Gguf;
use incant::text::{Special, TokenKind, Tokenizer};
use proptest::prelude::*;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::support;

/// Qwen 2's pre-tokenizer pattern from its own tokenizer file, including the lookahead.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

struct Pair {
    ours: Tokenizer,
    theirs: tokenizers::Tokenizer,
}

/// The byte-level models, each with the crate's tokenizer.
fn byte_level() -> &'static [Pair] {
    static PAIRS: OnceLock<Vec<Pair>> = OnceLock::new();
    PAIRS.get_or_init(|| {
        ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"]
            .iter()
            .map(|model| pair(&Gguf::open(&support::model(model)).expect("opens")))
            .collect()
    })
}

fn pair(gguf: &Gguf) -> Pair {
    let ours = Tokenizer::from_gguf(gguf).expect("has a tokenizer");
    let metadata = gguf.metadata();
    let pieces = metadata.strs("tokenizer.ggml.tokens").unwrap();
    let vocabulary: Vocab = pieces.map(str::to_owned).zip(0..).collect();
    let merges = metadata.strs("tokenizer.ggml.merges").unwrap();
    let merges = merges
        .map(|merge| merge.split_once(' ').expect("two pieces"))
        .map(|(left, right)| (left.to_owned(), right.to_owned()))
        .collect();
    let model = BPE::builder()
        .vocab_and_merges(vocabulary, merges)
        .build()
        .expect("the crate reads it");
    let stages: Vec<PreTokenizerWrapper> = match ours.pre_name() {
        "smollm" => vec![
            Digits::new(true).into(),
            ByteLevel::new(false, true, true).into(),
        ],
        "qwen2" => {
            let pattern = SplitPattern::Regex(QWEN2.to_owned());
            let words = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            vec![
                words.expect("the pattern compiles").into(),
                ByteLevel::new(false, true, false).into(),
            ]
        }
        other => panic!("no second opinion on {other}"),
    };
    let mut theirs = tokenizers::Tokenizer::new(model);
    theirs.with_pre_tokenizer(Some(Sequence::new(stages)));
    Pair { ours, theirs }
}

/// Merges the best pair of neighbours until there is none, examining every pair each time.
fn plain_merges(text: &str, score: impl Fn(&str) -> Option<f32>) -> Vec<&str> {
    let mut ends: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 0..ends.len() {
            let start = if at == 0 { 0 } else { ends[at - 1] };
            let end = ends.get(at + 1).copied().unwrap_or(text.len());
            if let Some(score) = score(&text[start..end])
                && best.is_none_or(|(most, _)| score > most)
            {
                best = Some((score, at));
            }
        }
        let Some((_, at)) = best else { break };
        ends.remove(at);
    }
    let mut start = 0;
    ends.push(text.len());
    let parts = ends
        .iter()
        .map(|&end| &text[std::mem::replace(&mut start, end)..end]);
    parts.collect()
}

/// Gemma's tokenizer and its scores by piece.
fn gemma() -> &'static (Tokenizer, HashMap<String, f32>) {
    static GEMMA: OnceLock<(Tokenizer, HashMap<String, f32>)> = OnceLock::new();
    GEMMA.get_or_init(|| {
        let gguf = Gguf::open(&support::model("gemma-3-270m")).expect("opens");
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("has a tokenizer");
        let scores = gguf.metadata().f32s("tokenizer.ggml.scores").unwrap();
        let scores = scores
            .into_iter()
            .zip(0..)
            .filter(|&(_, id)| tokenizer.kind(id) == TokenKind::Normal)
            .map(|(score, id)| (tokenizer.piece(id).unwrap().to_owned(), score))
            .collect();
        (tokenizer, scores)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn byte_level_ids_are_those_of_the_tokenizers_crate(
        // U+017F and U+212A are excluded: the crate folds them to s and k in contractions, the
        // reference does not.
        parts in prop::collection::vec(
            "[a-zA-Z]{1,9}|[ \t]{1,4}|[\r\n]{1,3}|'[a-zA-Z]{1,2}|[0-9]{1,5}|[!-/:-@\\[-`{-~]{1,3}|[à-ÿ]{1,4}|[ぁ-ん一-三]{1,4}|[\u{300}-\u{30f}\u{a0}\u{3000}\u{200b}]|[٠-٩½Ⅷ]|[😀-😏]",
            0..12,
        )
    ) {
        let text = parts.concat();
        for pair in byte_level() {
            let theirs = pair.theirs.encode_fast(text.as_str(), false).expect("it encodes");
            prop_assert_eq!(
                pair.ours.encode(&text, Special::Plain),
                theirs.get_ids(),
                "{}: {:?}", pair.ours.pre_name(), text
            );
        }
    }

    #[test]
    fn sentencepiece_ids_are_those_of_the_plainest_loop(
        // No runs of white space: the vocabulary defines those as pieces.
        text in "[a-z]{1,6}( [a-zA-Z]{1,12}|[0-9]{1,3}|[,.;:!?]|[à-ÿ]{1,3}|[ぁ-ん]{1,6}|[一-龠]{1,4}){0,10}"
    ) {
        let (tokenizer, scores) = gemma();
        let escaped = text.replace(' ', "▁");
        let parts = plain_merges(&escaped, |piece| scores.get(piece).copied());
        let ids = tokenizer.encode(&text, Special::Plain);
        // Characters without a piece have become bytes.
        let mut pieces: Vec<String> = Vec::new();
        let mut bytes = Vec::new();
        for id in ids {
            match tokenizer.kind(id) {
                TokenKind::Byte => bytes.extend(tokenizer.token_bytes(id)),
                _ => pieces.push(tokenizer.piece(id).unwrap().to_owned()),
            }
            if let Ok(character) = std::str::from_utf8(&bytes)
                && !bytes.is_empty()
            {
                pieces.push(character.to_owned());
                bytes.clear();
            }
        }
        prop_assert_eq!(pieces, parts);
    }
}

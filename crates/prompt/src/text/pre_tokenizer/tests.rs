use proptest::prelude::*;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, SplitDelimiterBehavior,
};

use super::*;

fn words(pre: &str, text: &str) -> Vec<String> {
    let mut words = Vec::new();
    PreTokenizer::named(pre)
        .expect("supported")
        .split(text, |word| {
            words.push(word.to_owned());
            Ok::<_, std::convert::Infallible>(())
        })
        .expect("it cannot fail");
    assert_eq!(words.concat(), text);
    words
}

#[test]
fn every_supported_name_compiles() {
    for (pre, _) in NAMES {
        assert!(PreTokenizer::named(pre).is_some(), "{pre}");
    }
    assert!(PreTokenizer::named("mamba").is_none());
    assert!(NAMES.is_sorted_by_key(|(name, _)| name));
}

#[test]
fn white_space_gives_its_last_character_to_the_word() {
    assert_eq!(words("gpt-2", "a   b  "), ["a", "  ", " b", "  "]);
    assert_eq!(words("gpt-2", "a\n\n\nb"), ["a", "\n\n", "\n", "b"]);
    assert_eq!(words("gpt-2", "a b"), ["a", " b"]);
    assert_eq!(words("llama-bpe", "a \n\n  b"), ["a", " \n\n", " ", " b"]);
    assert_eq!(
        words("qwen2", "a\t\tb!\n\nc"),
        ["a", "\t", "\tb", "!\n\n", "c"]
    );
    assert_eq!(
        words("gpt-2", "a\u{3000}\u{3000}b"),
        ["a", "\u{3000}", "\u{3000}", "b"]
    );
}

#[test]
fn numbers_are_grouped_as_the_model_wants() {
    assert_eq!(words("gpt-2", "x 12345"), ["x", " 12345"]);
    assert_eq!(words("llama-bpe", "x 12345"), ["x", " ", "123", "45"]);
    assert_eq!(words("dbrx", "x 12345"), ["x", " ", "123", "45"]);
    assert_eq!(words("gpt-4o", "x 12345"), ["x", " ", "123", "45"]);
    assert_eq!(words("qwen2", "x 123"), ["x", " ", "1", "2", "3"]);
    assert_eq!(words("tekken", "x 123"), ["x", " ", "1", "2", "3"]);
    assert_eq!(words("smollm", "x  12"), ["x", "  ", "1", "2"]);
    assert_eq!(words("refact", "x  12"), ["x", "  ", "1", "2"]);
    assert_eq!(words("default", "x 12345."), ["x", " ", "123", "45", "."]);
}

#[test]
fn contractions_are_words() {
    assert_eq!(words("gpt-2", "it's IT'S"), ["it", "'s", " IT", "'", "S"]);
    assert_eq!(words("llama-bpe", "it's IT'S"), ["it", "'s", " IT", "'S"]);
    assert_eq!(words("gpt-4o", "it's IT'S"), ["it's", " IT'S"]);
    assert_eq!(words("tekken", "it's"), ["it", "'s"]);
}

#[test]
fn capital_letters_begin_words_where_the_model_wants() {
    for pre in ["tekken", "gpt-4o"] {
        assert_eq!(
            words(pre, "fooBar HTTPServer"),
            ["foo", "Bar", " HTTPServer"]
        );
        assert_eq!(words(pre, "ÉcoleÀ"), ["École", "À"]);
    }
    assert_eq!(words("dbrx", "fooBar"), ["fooBar"]);
    assert_eq!(words("tekken", "a//\nb"), ["a", "//\n", "b"]);
}

/// The patterns of some tokenizers as their own files write them, including lookaheads.
#[rustfmt::skip]
const ORIGINALS: [(&str, &str); 6] = [
    ("gpt-2", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
    ("llama-bpe", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ("dbrx", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ("qwen2", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ("tekken", r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ("gpt-4o", r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
];

/// The result of the `tokenizers` crate.
fn originally(pattern: &Split, text: &str) -> Vec<String> {
    let mut parts = PreTokenizedString::from(text);
    pattern.pre_tokenize(&mut parts).expect("it splits");
    let parts = parts.get_splits(OffsetReferential::Original, OffsetType::Byte);
    parts
        .into_iter()
        .map(|(part, ..)| part.to_owned())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn words_are_those_of_the_original_patterns(
        // U+017F and U+212A are left out, as in the tests of whole tokenizers.
        parts in prop::collection::vec(
            "[a-zA-Z]{1,9}|[ \t]{1,4}|[\r\n]{1,3}|'[a-zA-Z]{1,2}|[0-9]{1,5}|[!-/:-@\\[-`{-~]{1,3}|[à-ÿÀ-Þ]{1,4}|[α-ωΑ-Ρ]{1,4}|ǅ|[ʰ-ʸ]{1,2}|[ぁ-ん一-三]{1,4}|[\u{300}-\u{30f}\u{a0}\u{3000}\u{200b}]|[٠-٩½Ⅷ]|[😀-😏]",
            0..12,
        )
    ) {
        let text = parts.concat();
        for (pre, pattern) in ORIGINALS {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            let pattern = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            let expected = originally(&pattern.expect("it compiles"), &text);
            prop_assert_eq!(words(pre, &text), expected, "{}: {:?}", pre, text);
        }
    }
}

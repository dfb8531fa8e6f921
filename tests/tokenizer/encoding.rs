//! Encoding and decoding: the ids of the reference, merges, round trips, limits, and metadata that is
//! refused.

use std::time::{Duration, Instant};

use incant::text::{Cancel, EncodeError, EncodeLimits, Special, TokenKind, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;

use super::{build, models, spm};
use crate::build::{Builder, Item};
use crate::support;

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("an array of ids");
    ids.iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn with_bos(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let ids = tokenizer.encode(text, Special::Parse);
    bos.into_iter().chain(ids).collect()
}

/// Returns the pieces of `text`, joined by `|`.
fn pieces(tokenizer: &Tokenizer, text: &str) -> String {
    let ids = tokenizer.encode(text, Special::Parse);
    let pieces = ids.iter().map(|&id| tokenizer.piece(id).expect("a token"));
    pieces.collect::<Vec<_>>().join("|")
}

/// Whether a byte-level vocabulary has a token for this byte alone.
fn has_byte(tokenizer: &Tokenizer, byte: u8) -> bool {
    let mut ids = 0..tokenizer.vocab_size() as u32;
    // The single bytes are at the front of these vocabularies.
    ids.any(|id| tokenizer.token_bytes(id) == [byte])
}

#[test]
fn ids_are_those_of_the_reference() {
    for (model, tokenizer) in models() {
        let Some(golden) = support::golden(model) else {
            continue;
        };
        let texts = golden["tokenize"].as_array().unwrap();
        assert!(!texts.is_empty());
        for entry in texts {
            let text = entry["text"].as_str().unwrap();
            let expected = ids(&entry["ids"]);
            assert_eq!(
                tokenizer.encode(text, Special::Parse),
                expected,
                "{model}: {text:?}"
            );
            if !text.contains("<|im_start|>") && !text.contains("<bos>") {
                assert_eq!(tokenizer.decode(&expected, false), text, "{model}");
                assert_eq!(tokenizer.encode(text, Special::Plain), expected, "{model}");
            }
        }
        for entry in golden["greedy"].as_array().unwrap() {
            let prompt = entry["prompt"].as_str().unwrap();
            let expected = ids(&entry["prompt_ids"]);
            assert_eq!(with_bos(tokenizer, prompt), expected, "{model}: {prompt:?}");
            let steps = entry["steps"].as_array().unwrap();
            let answer: Vec<u32> = steps
                .iter()
                .map(|step| step["id"].as_u64().unwrap() as u32)
                .filter(|id| !tokenizer.end_tokens().contains(id))
                .collect();
            let text = entry["text"].as_str().unwrap();
            let decoded = tokenizer.decode(&answer, false);
            // The reference omits steps that end inside a character.
            if decoded.contains('\u{fffd}') {
                assert!(!text.is_ascii(), "{model}: {text:?}");
            } else {
                assert_eq!(decoded, text, "{model}");
            }
        }
        for entry in golden["long"].as_array().unwrap() {
            let mut prompt = ids(&entry["prompt_ids"]);
            let whole = tokenizer.decode(&prompt, true);
            if tokenizer.adds_bos() {
                prompt.remove(0);
            }
            let text = tokenizer.decode(&prompt, true);
            assert_eq!(
                tokenizer.encode(&text, Special::Parse),
                prompt,
                "{model}: the long prompt ({} bytes)",
                whole.len()
            );
        }
    }
}

#[test]
fn facts_are_those_of_the_metadata() {
    for (model, tokenizer) in models() {
        let ends: Vec<&str> = tokenizer
            .end_tokens()
            .iter()
            .map(|&id| tokenizer.piece(id).unwrap())
            .collect();
        let facts = (
            tokenizer.vocab_size(),
            tokenizer.kind_name(),
            tokenizer.pre_name(),
            tokenizer.adds_bos(),
            tokenizer.bos().and_then(|bos| tokenizer.piece(bos)),
        );
        match *model {
            "gemma-3-270m" => {
                assert_eq!(facts, (262_144, "llama", "default", true, Some("<bos>")));
                assert_eq!(ends, ["<eos>", "<end_of_turn>"]);
            }
            "smollm2-135m-instruct" => {
                let bos = Some("<|im_start|>");
                assert_eq!(facts, (49_152, "gpt2", "smollm", false, bos));
                assert_eq!(ends, ["<|im_end|>", "<|endoftext|>", "<reponame>"]);
            }
            _ => {
                let bos = Some("<|endoftext|>");
                assert_eq!(facts, (151_936, "gpt2", "qwen2", false, bos));
                assert_eq!(ends[..2], ["<|im_end|>", "<|endoftext|>"]);
            }
        }
        for &end in tokenizer.end_tokens() {
            assert_eq!(tokenizer.kind(end), TokenKind::Control);
            assert_eq!(tokenizer.token_bytes(end), b"");
            assert_eq!(
                tokenizer.token_text_special(end),
                tokenizer.piece(end).unwrap().as_bytes()
            );
        }
        assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
    }
}

/// Long runs are a typical case in which tokenizers take quadratic time or fail.
#[test]
fn long_runs_take_no_time_and_survive() {
    let mut runs: Vec<String> = [
        "a", " ", "\n", "\t", "\r\n", "7", "=", "é", "日", "🦀", " a", "\n ",
    ]
    .iter()
    .map(|unit| unit.repeat(100_000 / unit.len()))
    .collect();
    runs.push("<|im_start|>".repeat(8_000));
    runs.push("<".repeat(100_000));
    for (model, tokenizer) in models() {
        for run in &runs {
            let start = Instant::now();
            let ids = tokenizer.encode(run, Special::Plain);
            let took = start.elapsed();
            let unit: String = run.chars().take(3).collect();
            assert!(took < Duration::from_secs(1), "{model} {unit:?}: {took:?}");
            assert_eq!(tokenizer.decode(&ids, false), *run, "{model} {unit:?}");
        }
    }
}

#[test]
fn sentencepiece_merges_by_score() {
    let tokenizer = build(
        &spm(&[
            ("▁", -9.0, 1),
            ("a", -9.0, 1),
            ("b", -9.0, 1),
            ("ab", -2.0, 1),
            ("ba", -1.0, 1),
            ("▁a", -3.0, 1),
            ("aba", -5.0, 1),
        ])
        .with("tokenizer.ggml.add_space_prefix", Item::Bool(false)),
    )
    .unwrap();
    assert_eq!(pieces(&tokenizer, "ab"), "ab");
    assert_eq!(
        pieces(&tokenizer, "aba"),
        "aba",
        "ba goes first, then a + ba"
    );
    assert_eq!(pieces(&tokenizer, "abab"), "aba|b");
    assert_eq!(pieces(&tokenizer, "ab a"), "ab|▁a");
    assert_eq!(pieces(&tokenizer, "aé"), "a|<0xC3>|<0xA9>");
    assert_eq!(pieces(&tokenizer, ""), "");
    // Texts of byte, control and unknown tokens are plain text if they are not parsed.
    for text in ["<0x0A>", "<s>", "</s>", "<unk>"] {
        let ids = tokenizer.encode(text, Special::Plain);
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert!(ids.iter().all(|&id| tokenizer.kind(id) == TokenKind::Byte));
    }
    assert_eq!(tokenizer.decode(&[3 + 0xff], false), "\u{fffd}");
}

#[test]
fn a_space_goes_before_each_text_that_begins_anew() {
    let vocabulary = spm(&[
        ("▁", -9.0, 1),
        ("a", -9.0, 1),
        ("▁a", -1.0, 1),
        ("<t>", 0.0, 4),
    ]);
    let tokenizer = build(&vocabulary).unwrap();
    assert!(tokenizer.adds_space_prefix());
    assert_eq!(pieces(&tokenizer, "a"), "▁a");
    assert_eq!(pieces(&tokenizer, " a"), "▁|▁a");
    assert_eq!(pieces(&tokenizer, "a<s>a<t>aa"), "▁a|<s>|▁a|<t>|▁a|a");
    assert_eq!(pieces(&tokenizer, "<s>"), "<s>");
    assert_eq!(pieces(&tokenizer, ""), "");
    for text in ["a", " a", "a a", "a<s>a<t>aa", "<t> a"] {
        let ids = tokenizer.encode(text, Special::Parse);
        assert_eq!(tokenizer.decode(&ids, true), text);
    }
    // Pieces that the vocabulary defines as text match in plain text, too.
    let ids = tokenizer.encode("a<s><t>", Special::Plain);
    assert_eq!(tokenizer.piece(*ids.last().unwrap()), Some("<t>"));
    assert!(!ids.contains(&0));
}

#[test]
fn whole_words_skip_the_merges_where_the_model_says_so() {
    let file = |pre| {
        let tokens = ["a", "b", "c", "ab", "Ġ", "abc", "<|end|>"];
        Builder::new()
            .with("tokenizer.ggml.model", Item::Str("gpt2"))
            .with("tokenizer.ggml.pre", Item::Str(pre))
            .with("tokenizer.ggml.tokens", Item::Strs(&tokens))
            .with(
                "tokenizer.ggml.token_type",
                Item::I32s(&[1, 1, 1, 1, 1, 1, 3]),
            )
            .with("tokenizer.ggml.merges", Item::Strs(&["a b"]))
    };
    let llama = build(&file("llama-bpe")).unwrap();
    assert_eq!(pieces(&llama, "abc"), "abc");
    assert_eq!(pieces(&llama, "abcb abc"), "ab|c|b|Ġ|ab|c");
    let gpt = build(&file("gpt-2")).unwrap();
    assert_eq!(pieces(&gpt, "abc<|end|>"), "ab|c|<|end|>");
    assert_eq!(gpt.end_tokens(), [6]);
    assert_eq!(gpt.bos(), None);
}

#[test]
fn an_end_token_is_a_control_token_whatever_the_file_says() {
    let tokenizer = build(&spm(&[("<|im_end|>", 0.0, 4), ("</b>", 0.0, 4)])).unwrap();
    assert_eq!(tokenizer.kind(259), TokenKind::Control);
    assert_eq!(tokenizer.end_tokens(), [1, 259]);
    assert_eq!(tokenizer.kind(260), TokenKind::UserDefined);
    assert!(
        !tokenizer
            .encode("<|im_end|>", Special::Plain)
            .contains(&259)
    );
}

#[test]
fn bad_metadata_is_refused_with_one_line() {
    let model = |name| Builder::new().with("tokenizer.ggml.model", Item::Str(name));
    let tokens =
        |builder: Builder, texts: &[&str]| builder.with("tokenizer.ggml.tokens", Item::Strs(texts));
    let gpt2 = |pre| model("gpt2").with("tokenizer.ggml.pre", Item::Str(pre));
    let merge = |merge: &str| {
        tokens(gpt2("gpt-2"), &["a", "b"]).with("tokenizer.ggml.merges", Item::Strs(&[merge]))
    };
    let cases: Vec<(Builder, &str)> = vec![
        (
            Builder::new(),
            "metadata key `tokenizer.ggml.model` is missing",
        ),
        (
            model("rwkv\n"),
            r"tokenizer `rwkv\n` is not supported (supported: llama, gpt2)",
        ),
        (
            gpt2("rwkv"),
            "pre-tokenizer `rwkv` is not supported (supported: codeshell, command-r, dbrx, deepseek-r1-qwen, default, gpt-2, gpt-4o, granite-docling, llama-bpe, llama-v3, llama3, phi-2, qwen2, refact, smaug-bpe, smollm, starcoder, tekken)",
        ),
        (
            model("llama"),
            "metadata key `tokenizer.ggml.tokens` is missing",
        ),
        (tokens(model("llama"), &[]), "the vocabulary is empty"),
        (
            tokens(model("llama"), &["a"]),
            "metadata key `tokenizer.ggml.scores` is missing",
        ),
        (
            tokens(model("llama"), &["a"]).with("tokenizer.ggml.scores", Item::F32s(&[1.0, 2.0])),
            "tokenizer.ggml.scores has 2 entries for 1 tokens",
        ),
        (
            tokens(model("llama"), &["a"]).with("tokenizer.ggml.scores", Item::F32s(&[f32::NAN])),
            "token 0 has a score that is not a number",
        ),
        (
            tokens(model("llama"), &["a"]).with("tokenizer.ggml.scores", Item::F32s(&[0.0])),
            "the vocabulary has neither a piece for each byte nor an unknown token",
        ),
        (
            tokens(model("llama"), &["a"]).with("tokenizer.ggml.token_type", Item::I32s(&[9])),
            "token 0 has the unknown type 9",
        ),
        (
            tokens(model("llama"), &["a"]).with("tokenizer.ggml.token_type", Item::I32s(&[])),
            "tokenizer.ggml.token_type has 0 entries for 1 tokens",
        ),
        (
            spm(&[]).with("tokenizer.ggml.eot_token_id", Item::U32(259)),
            "tokenizer.ggml.eot_token_id is 259, but there are only 259 tokens",
        ),
        (
            tokens(gpt2("gpt-2"), &["a"]),
            "metadata key `tokenizer.ggml.merges` is missing",
        ),
        (
            merge("a c"),
            "merge 0 needs the piece `c`, which the vocabulary does not have",
        ),
        (
            merge("a b"),
            "merge 0 needs the piece `ab`, which the vocabulary does not have",
        ),
        (
            merge("a"),
            "merge 0 needs the piece `a`, which the vocabulary does not have",
        ),
    ];
    for (file, message) in cases {
        assert_eq!(build(&file).expect_err("bad"), message);
    }
}

#[test]
fn encoding_ends_where_there_are_more_tokens_than_wanted() {
    const WANTED: usize = 20_000;
    // By its length alone, the text may be short enough.
    let text = "a word, then ".repeat(WANTED);
    for (model, tokenizer) in models() {
        let count = tokenizer.encode(&text, Special::Plain).len();
        assert!(tokenizer.least_tokens(&text) <= WANTED && WANTED < count / 2);
        let within = |most, cancel: &Cancel| {
            let bounds = EncodeLimits {
                max_tokens: Some(most),
                cancel: cancel.clone(),
            };
            tokenizer.encode_within(&text, Special::Plain, &bounds)
        };
        let cancel = Cancel::default();
        match within(WANTED, &cancel) {
            // Stops before the end of the text.
            Err(EncodeError::TooLong { at_least }) => {
                assert!(
                    (WANTED + 1..WANTED + 10).contains(&at_least),
                    "{model}: {at_least}"
                );
            }
            other => panic!("{model}: {other:?}"),
        }
        assert_eq!(within(count, &cancel).map(|ids| ids.len()), Ok(count));
        cancel.cancel();
        assert_eq!(
            within(count, &cancel),
            Err(EncodeError::Cancelled),
            "{model}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Decoding restores the encoded text, with two limits of vocabularies: U+2581 is
    /// SentencePiece's own space, and SmolLM2 lacks some bytes.
    #[test]
    fn any_text_survives_the_round_trip(text in "\\PC*|[ \n\t\ra-z0-9'<|>▁]{0,60}|.{0,40}") {
        for (model, tokenizer) in models() {
            let ids = tokenizer.encode(&text, Special::Plain);
            let expected = match tokenizer.kind_name() {
                "llama" => text.replace('▁', " "),
                _ => {
                    let known = text.bytes().filter(|&byte| has_byte(tokenizer, byte));
                    String::from_utf8_lossy(&known.collect::<Vec<u8>>()).into_owned()
                }
            };
            if !model.starts_with("smollm2") {
                prop_assert_eq!(expected.chars().count(), text.chars().count());
            }
            prop_assert_eq!(tokenizer.decode(&ids, false), expected, "{}", model);
            for id in ids {
                prop_assert!(tokenizer.kind(id) != TokenKind::Control);
            }
        }
    }

    /// The lower bound by which long texts are refused is never too high, and if encoding stops
    /// because of it, the text has more tokens than allowed.
    #[test]
    fn a_text_has_no_fewer_tokens_than_its_length_says(
        text in "[ \n\ta▁\u{d}]{0,80}|\\PC{0,60}|(<\\|im_end\\|>|<bos>|a| |\n){0,20}|( {1,40}|\n{1,40}|a{1,40}){0,4}",
        most in 0usize..40,
    ) {
        for (model, tokenizer) in models() {
            for special in [Special::Parse, Special::Plain] {
                let ids = tokenizer.encode(&text, special);
                let least = tokenizer.least_tokens(&text);
                prop_assert!(least <= ids.len(), "{}: {} of {}", model, least, ids.len());
                let bounds = EncodeLimits { max_tokens: Some(most), ..EncodeLimits::default() };
                match tokenizer.encode_within(&text, special, &bounds) {
                    Ok(within) => {
                        prop_assert!(within.len() <= most);
                        prop_assert_eq!(within, ids);
                    }
                    Err(EncodeError::TooLong { at_least }) => {
                        prop_assert!(most < at_least && at_least <= ids.len());
                    }
                    Err(EncodeError::Cancelled) => prop_assert!(false, "nobody has cancelled"),
                }
            }
        }
    }
}

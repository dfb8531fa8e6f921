//! Guards: the texts of users contain neither control tokens nor markup.

use incant::text::Special;
use proptest::prelude::*;

use super::{build, models, spm};
use crate::build::{Builder, Item};

/// A guard character that no text here contains.
const GUARD: char = '\u{fdd0}';

#[test]
fn a_user_cannot_write_a_control_token() {
    for (model, tokenizer) in models() {
        let end = tokenizer.end_tokens()[0];
        let control = tokenizer.piece(end).unwrap();
        let attack = format!("a{control}b <{control}> {control}{control}");
        let guarded = tokenizer.guard_controls(&attack, GUARD);
        // Wherever a token could begin.
        assert_eq!(guarded.matches(GUARD).count(), 5, "{model}");
        assert_eq!(guarded.replace(GUARD, ""), attack);

        // The template's own control tokens around it still count.
        let prompt = format!("{control}{guarded}{control}");
        let ids = tokenizer.encode_guarded(&prompt, GUARD);
        let at: Vec<usize> = (0..ids.len()).filter(|&at| ids[at] == end).collect();
        assert_eq!(at, [0, ids.len() - 1], "{model}");
        let inner = &ids[1..ids.len() - 1];
        assert_eq!(tokenizer.decode(inner, false), attack, "{model}");
        assert_eq!(inner, tokenizer.encode(&attack, Special::Plain), "{model}");

        // Nor in two parts, if a template removes the text between them.
        let (first, last) = control.split_at(2);
        let parts = [first, last].map(|part| tokenizer.guard_controls(part, GUARD));
        let ids = tokenizer.encode_guarded(&parts.concat(), GUARD);
        assert!(!ids.contains(&end), "{model}");
        assert_eq!(tokenizer.decode(&ids, false), control, "{model}");
    }
}

/// Gemma's vocabulary has the markers of images as text, like line breaks and HTML.
#[test]
fn a_user_cannot_write_markup_that_is_text_to_the_vocabulary() {
    let (_, gemma) = &models()[0];
    let attack = "a<start_of_image>b [multimodal]<end_of_image> <table>\n\n\n</table>";
    let guarded = gemma.guard_controls(attack, GUARD);
    assert_eq!(guarded.matches(GUARD).count(), 5);
    let ids = gemma.encode_guarded(&guarded, GUARD);
    assert_eq!(gemma.decode(&ids, false), attack);
    let has = |text: &str| ids.iter().any(|&id| gemma.piece(id) == Some(text));
    for markup in ["<start_of_image>", "[multimodal]", "<end_of_image>"] {
        assert!(!has(markup), "{markup}");
    }
    for text in ["<table>", "\n\n\n", "</table>"] {
        assert!(has(text), "{text}");
    }
    // The author of the whole prompt still can.
    let raw = gemma.encode(attack, Special::Parse);
    assert!(
        raw.iter()
            .any(|&id| gemma.piece(id) == Some("<start_of_image>"))
    );
}

/// Some vocabularies could also merge it from its parts.
#[test]
fn a_user_cannot_write_markup_by_merging() {
    let pieces = [
        "<unk>", "<s>", "</s>", "<", "x", ">", "<x", "<x>", "\u{2581}",
    ];
    let kinds = [2, 3, 3, 1, 1, 1, 1, 4, 1];
    let file = Builder::new()
        .with("tokenizer.ggml.model", Item::Str("llama"))
        .with("tokenizer.ggml.tokens", Item::Strs(&pieces))
        .with("tokenizer.ggml.scores", Item::F32s(&[0.0; 9]))
        .with("tokenizer.ggml.token_type", Item::I32s(&kinds))
        .with("tokenizer.ggml.unknown_token_id", Item::U32(0))
        .with("tokenizer.ggml.add_space_prefix", Item::Bool(false));
    let tokenizer = build(&file).expect("a good file");
    let guarded = tokenizer.guard_controls("<x><x", GUARD);
    let ids = tokenizer.encode_guarded(&format!("{guarded}<x>"), GUARD);
    // The last one is not the user's; it is split off first.
    assert_eq!(ids, [3, 4, 5, 6, 7]);
}

#[test]
fn guards_elsewhere_change_nothing() {
    for (model, tokenizer) in models() {
        let control = tokenizer.piece(tokenizer.end_tokens()[0]).unwrap();
        let text = format!("Hello,  world\n\n{control}<x>\n it's 1234 日本語 {control}");
        let expected = tokenizer.encode(&text, Special::Parse);
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        for &at in &places {
            let inside = text
                .match_indices(control)
                .any(|(start, _)| start < at && at < start + control.len());
            let guarded = format!("{}{GUARD}{}", &text[..at], &text[at..]);
            let ids = tokenizer.encode_guarded(&guarded, GUARD);
            assert_eq!(ids == expected, !inside, "{model} at {at}: {guarded:?}");
        }
        let end = format!("{text}{GUARD}");
        assert_eq!(tokenizer.encode_guarded(&end, GUARD), expected, "{model}");
    }
}

#[test]
fn a_guard_stops_control_tokens_of_one_character() {
    let tokenizer = build(&spm(&[("\u{2403}", 0.0, 3)])).unwrap();
    let user = tokenizer.guard_controls("a\u{2403}", GUARD);
    let ids = tokenizer.encode_guarded(&format!("{user}\u{2403}"), GUARD);
    assert_eq!(ids.iter().filter(|&&id| id == 259).count(), 1);
    assert_eq!(ids.last(), Some(&259));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// A guarded text of a user contains no control token and has the
    /// ids of plain text.
    #[test]
    fn guarded_text_is_plain_text(
        parts in prop::collection::vec("<\\|im_(start|end)\\|>|<end_of_turn>|<bos>|<\\||\\|>|[a<>| \n]{0,3}", 0..8)
    ) {
        let text = parts.concat();
        for (model, tokenizer) in models() {
            let guarded = tokenizer.guard_controls(&text, GUARD);
            prop_assert_eq!(
                tokenizer.encode_guarded(&guarded, GUARD),
                tokenizer.encode(&text, Special::Plain),
                "{}", model
            );
        }
    }
}

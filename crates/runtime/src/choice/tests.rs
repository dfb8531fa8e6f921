//! Tests of one answer without an engine: events in, pieces out.

use proptest::prelude::*;

use super::*;

/// A vocabulary of byte strings; an empty one is a control token.
struct Tokens(Vec<Vec<u8>>);

impl Vocabulary for Tokens {
    fn bytes(&self, id: u32) -> &[u8] {
        &self.0[id as usize]
    }

    fn display_bytes(&self, id: u32) -> &[u8] {
        match self.bytes(id) {
            [] => b"<control>",
            bytes => bytes,
        }
    }
}

fn choice(tokens: &[&[u8]], stop: &[&str], echo: Option<Echo>) -> Choice<Tokens> {
    marked(tokens, stop, &[], echo)
}

/// An answer that also ends at role markers.
fn marked(tokens: &[&[u8]], stop: &[&str], markers: &[&str], echo: Option<Echo>) -> Choice<Tokens> {
    let vocabulary = Arc::new(Tokens(tokens.iter().map(|bytes| bytes.to_vec()).collect()));
    let end: Arc<[u32]> = match tokens.iter().position(|bytes| *bytes == b"<end>") {
        Some(end) => Arc::new([end as u32]),
        None => Arc::new([]),
    };
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let (stop, markers): (Vec<String>, Vec<String>) = (owned(stop), owned(markers));
    Choice::new(0, vocabulary, end, &stop, &markers, echo.as_ref())
}

fn scored(id: usize) -> Option<TokenLogprobs> {
    // The position in the answer doubles as the score, so that mix-ups show.
    Some(TokenLogprobs {
        chosen: -(id as f32),
        rank: 1,
        top: vec![(0, -0.5)],
    })
}

/// Generates all tokens in turn; returns all pieces, the last of which ends the answer.
fn run(mut choice: Choice<Tokens>, tokens: usize, reason: FinishReason) -> Vec<Piece> {
    let token = |id: usize| Event::Token {
        id: id as u32,
        logprobs: scored(id),
    };
    let events = (0..tokens).map(token).chain([Event::Finished(reason)]);
    let mut pieces = Vec::new();
    for event in events {
        pieces.extend(choice.advance(event).unwrap());
        if pieces.last().is_some_and(|piece| piece.finish.is_some()) {
            return pieces;
        }
    }
    panic!("the answer did not end: {pieces:?}");
}

fn text(pieces: &[Piece]) -> String {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

fn entries(pieces: &[Piece]) -> Vec<Entry> {
    pieces
        .iter()
        .flat_map(|piece| piece.entries.clone())
        .collect()
}

fn joined(entries: &[Entry]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.bytes.clone())
        .collect()
}

/// Entries never run ahead of the text they belong to.
fn check_no_entry_runs_ahead(pieces: &[Piece]) {
    for end in 1..=pieces.len() {
        let (text, entries) = (text(&pieces[..end]), joined(&entries(&pieces[..end])));
        assert!(
            text.as_bytes().starts_with(&entries),
            "{entries:?} is ahead of {text:?}"
        );
    }
}

#[test]
fn the_first_token_opens_even_if_it_shows_nothing() {
    let pieces = run(
        choice(&[b"\xe2", b"\x82\xac", b"!"], &[], None),
        3,
        FinishReason::Length,
    );
    let opened: Vec<(bool, &str)> = pieces
        .iter()
        .map(|piece| (piece.opens, piece.text.as_str()))
        .collect();
    assert_eq!(
        opened,
        [(true, ""), (false, "€"), (false, "!"), (false, "")]
    );
    assert_eq!(pieces[3].finish, Some(FinishReason::Length));
}

#[test]
fn an_answer_of_no_tokens_opens_and_ends_at_once() {
    let pieces = run(choice(&[], &[], None), 0, FinishReason::Length);
    assert_eq!(pieces.len(), 1);
    assert!(pieces[0].opens && pieces[0].finish == Some(FinishReason::Length));
}

#[test]
fn a_stop_text_split_over_tokens_leaks_neither_as_text_nor_as_tokens() {
    let tokens: [&[u8]; 5] = [b"Hi", b" the", b"re #", b"# E", b"ND more"];
    let pieces = run(choice(&tokens, &["## END"], None), 5, FinishReason::Length);
    check_no_entry_runs_ahead(&pieces);
    assert_eq!(text(&pieces), "Hi there ");
    let shown: Vec<Vec<u8>> = entries(&pieces)
        .into_iter()
        .map(|entry| entry.bytes)
        .collect();
    assert_eq!(shown, [b"Hi".to_vec(), b" the".to_vec(), b"re ".to_vec()]);
    assert_eq!(pieces.last().unwrap().finish, Some(FinishReason::Stop));
}

#[test]
fn a_cut_token_keeps_its_score_and_its_name_among_the_alternatives() {
    let pieces = run(choice(&[b"ab#c"], &["#"], None), 1, FinishReason::Length);
    let expected = Entry {
        id: 0,
        bytes: b"ab".to_vec(),
        offset: 0,
        logprob: Some(0.0),
        rank: Some(1),
        top: vec![Alternative {
            id: 0,
            bytes: b"ab".to_vec(),
            logprob: -0.5,
            chosen: true,
        }],
    };
    assert_eq!(entries(&pieces), [expected]);
}

#[test]
fn tokens_that_are_trimmed_from_the_start_can_have_entries_without_bytes() {
    let tokens: [&[u8]; 4] = [b"\n", b" \n", b"  Hi", b"!"];
    let bytes = |choice| {
        let entries = entries(&run(choice, 4, FinishReason::Length));
        let shown = entries.into_iter().map(|entry| (entry.id, entry.bytes));
        shown.collect::<Vec<_>>()
    };
    let marked = || marked(&tokens, &[], &["# Q"], None);
    let shown = [(2, b"Hi".to_vec()), (3, b"!".to_vec())];
    assert_eq!(bytes(marked()), shown);
    let mut all = vec![(0, Vec::new()), (1, Vec::new())];
    all.extend(shown);
    assert_eq!(bytes(marked().keep_trimmed()), all);
}

#[test]
fn what_only_began_like_a_stop_text_is_given_at_the_end() {
    let pieces = run(
        choice(&[b"a", b"#", b"#"], &["###"], None),
        3,
        FinishReason::Length,
    );
    check_no_entry_runs_ahead(&pieces);
    assert_eq!(text(&pieces), "a##");
    assert_eq!(joined(&entries(&pieces)), b"a##");
    assert_eq!(pieces.last().unwrap().finish, Some(FinishReason::Length));
}

#[test]
fn a_stop_character_split_over_tokens_leaves_no_half() {
    let pieces = run(
        choice(&[b"a", b"\xf0\x9f", b"\x98\x80b"], &["😀"], None),
        3,
        FinishReason::Length,
    );
    check_no_entry_runs_ahead(&pieces);
    assert_eq!(text(&pieces), "a");
    assert_eq!(joined(&entries(&pieces)), b"a");
}

#[test]
fn a_turn_is_trimmed_in_its_text_and_in_its_tokens() {
    let tokens: [&[u8]; 6] = [b"\n", b" \n", b"  Hi", b" you.", b"\n\n#", b" Query:\nMore"];
    let choice = marked(&tokens, &[], &["# Query:"], None);
    let pieces = run(choice, 6, FinishReason::Length);
    check_no_entry_runs_ahead(&pieces);
    assert_eq!(text(&pieces), "Hi you.");
    let entries = entries(&pieces);
    let shown: Vec<(&[u8], usize)> = entries
        .iter()
        .map(|entry| (entry.bytes.as_slice(), entry.offset))
        .collect();
    assert_eq!(shown, [(&b"Hi"[..], 0), (&b" you."[..], 2)]);
    assert_eq!(pieces.last().unwrap().finish, Some(FinishReason::Stop));
}

#[test]
fn an_end_token_is_an_entry_without_text() {
    let pieces = run(choice(&[b"a", b"<end>"], &[], None), 2, FinishReason::Stop);
    assert_eq!(text(&pieces), "a");
    let entries = entries(&pieces);
    assert_eq!(entries.len(), 2);
    assert_eq!(
        (
            entries[1].bytes.as_slice(),
            entries[1].offset,
            entries[1].logprob
        ),
        (&b""[..], 1, Some(-1.0))
    );
}

#[test]
fn a_control_token_is_named_among_alternatives_and_silent_when_chosen() {
    // The alternative of every token is token 0, a control token here.
    let pieces = run(choice(&[b"", b"a"], &[], None), 2, FinishReason::Length);
    let entries = entries(&pieces);
    assert_eq!(text(&pieces), "a");
    assert_eq!(
        (
            entries[0].bytes.as_slice(),
            entries[0].top[0].bytes.as_slice()
        ),
        (&b""[..], &b""[..])
    );
    assert_eq!(entries[1].top[0].bytes, b"<control>");
}

#[test]
fn an_unfinished_character_at_the_end_becomes_a_replacement() {
    let pieces = run(
        choice(&[b"a", b"\xf0\x9f"], &[], None),
        2,
        FinishReason::Length,
    );
    assert_eq!(text(&pieces), "a\u{fffd}");
    assert_eq!(joined(&entries(&pieces)), b"a\xf0\x9f");
}

#[test]
fn offsets_count_characters_and_a_part_of_one_points_at_it() {
    let tokens: [&[u8]; 4] = ["né".as_bytes(), b"\xe2\x82", b"\xac!", b"x"];
    let pieces = run(choice(&tokens, &[], None), 4, FinishReason::Length);
    let offsets: Vec<usize> = entries(&pieces).iter().map(|entry| entry.offset).collect();
    assert_eq!(offsets, [0, 2, 2, 4]);
}

#[test]
fn an_echoed_prompt_comes_with_the_first_token_and_cannot_stop_the_answer() {
    let echo = Echo(vec![
        (9, b"".to_vec()),
        (9, b"a stop ".to_vec()),
        (9, b"\xe2\x82".to_vec()),
    ]);
    let mut choice = choice(&[b"\xac", b"b stop"], &["stop"], Some(echo));
    assert_eq!(
        choice.advance(Event::Started {
            cached_tokens: 2,
            from_disk: false,
        }),
        Ok(None)
    );
    let prompt = Event::Prompt(vec![None, scored(7), scored(8)]);
    assert_eq!(
        choice.advance(prompt),
        Ok(None),
        "nothing before the first token"
    );
    let pieces = run(choice, 2, FinishReason::Length);
    check_no_entry_runs_ahead(&pieces);
    assert!(pieces[0].opens);
    assert_eq!(
        pieces[0].text, "a stop €",
        "a character may begin in the prompt and end in the answer"
    );
    assert_eq!(text(&pieces), "a stop €b ");
    let entries = entries(&pieces);
    let logprobs: Vec<Option<f32>> = entries.iter().map(|entry| entry.logprob).collect();
    assert_eq!(
        logprobs,
        [None, Some(-7.0), Some(-8.0), Some(0.0), Some(-1.0)]
    );
    assert_eq!(
        entries.iter().map(|entry| entry.offset).collect::<Vec<_>>(),
        [0, 0, 7, 7, 8]
    );
    assert_eq!(joined(&entries), "a stop €b ".as_bytes());
}

#[test]
fn a_failure_is_the_servers_fault() {
    let mut choice = choice(&[], &[], None);
    let failed = choice.advance(Event::Failed("out of memory".into()));
    assert_eq!(failed, Err(EngineFailure("out of memory".to_owned())));
}

#[test]
fn without_log_probabilities_there_are_no_entries() {
    let mut choice = choice(&[b"a"], &[], Some(Echo(vec![(0, b"p".to_vec())])));
    let token = choice
        .advance(Event::Token {
            id: 0,
            logprobs: None,
        })
        .unwrap()
        .unwrap();
    let end = choice
        .advance(Event::Finished(FinishReason::Length))
        .unwrap()
        .unwrap();
    assert_eq!(
        (token.text.as_str(), token.entries.len(), end.entries.len()),
        ("pa", 0, 0)
    );
    assert_eq!(choice.generated(), 1);
}

proptest! {
    /// However the bytes of a text are split into tokens, the text, the joined entries and the end
    /// are the same.
    #[test]
    fn chunking_changes_nothing(
        body in "[ab#é😀\n]{0,40}",
        stop in proptest::option::of("[ab#é😀\n]{1,4}"),
        mut cuts in proptest::collection::vec(0usize..200, 0..40),
    ) {
        let bytes = body.as_bytes();
        cuts.iter_mut().for_each(|cut| *cut %= bytes.len() + 1);
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let tokens: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        let stops: Vec<&str> = stop.as_deref().into_iter().collect();
        let pieces = run(choice(&tokens, &stops, None), tokens.len(), FinishReason::Length);

        let at = stop.as_deref().and_then(|stop| body.find(stop));
        let expected = &body[..at.unwrap_or(body.len())];
        prop_assert_eq!(text(&pieces), expected);
        prop_assert_eq!(joined(&entries(&pieces)), expected.as_bytes());
        let reason = if at.is_some() { FinishReason::Stop } else { FinishReason::Length };
        prop_assert_eq!(pieces.last().unwrap().finish, Some(reason));
        prop_assert_eq!(pieces.iter().filter(|piece| piece.opens).count(), 1);
        check_no_entry_runs_ahead(&pieces);
        for entry in entries(&pieces) {
            prop_assert!(entry.offset <= expected.chars().count());
        }
    }

    /// The same, if a role marker ends the answer and its start is trimmed.
    #[test]
    fn chunking_changes_nothing_in_a_turn(
        body in "(a|b|é|😀| |#|#a|#ab|\n#ab|\n\n|\n|\n```\n){0,20}",
        mut cuts in proptest::collection::vec(0usize..200, 0..40),
    ) {
        let bytes = body.as_bytes();
        cuts.iter_mut().for_each(|cut| *cut %= bytes.len() + 1);
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let tokens: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        let whole = run(marked(&[bytes], &[], &["#ab"], None), 1, FinishReason::Length);
        let choice = marked(&tokens, &[], &["#ab"], None);
        let pieces = run(choice, tokens.len(), FinishReason::Length);
        prop_assert_eq!(text(&pieces), text(&whole));
        prop_assert_eq!(joined(&entries(&pieces)), text(&whole).into_bytes());
        prop_assert_eq!(pieces.last().unwrap().finish, whole.last().unwrap().finish);
        check_no_entry_runs_ahead(&pieces);
        if !body.contains("#a") {
            prop_assert_eq!(text(&pieces), body.trim_start());
        }
    }

    /// Even bytes that are not valid UTF-8 all become entries.
    #[test]
    fn any_bytes_end_up_as_entries(tokens in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..4), 0..12)) {
        let tokens: Vec<&[u8]> = tokens.iter().map(Vec::as_slice).collect();
        let pieces = run(choice(&tokens, &[], None), tokens.len(), FinishReason::Length);
        prop_assert_eq!(joined(&entries(&pieces)), tokens.concat());
        prop_assert_eq!(text(&pieces), String::from_utf8_lossy(&tokens.concat()).into_owned());
    }
}

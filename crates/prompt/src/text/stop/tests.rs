mod reference;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use reference::{in_code, reference};

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// Pushes the pieces and returns the whole text, and whether it was stopped. Also checks that
/// the reported positions match the sent text.
fn run(matcher: StopMatcher, pieces: &[&str]) -> (String, bool) {
    let mut matcher = matcher;
    let whole = pieces.concat();
    let mut sent = String::new();
    let mut stopped = false;
    for piece in pieces {
        let output = matcher.push(piece);
        sent += &output.text;
        assert_eq!(output.emitted, matcher.sent().end);
        assert_eq!(whole[matcher.sent()], sent);
        assert!(output.stopped || !stopped);
        assert!(!stopped || output.text.is_empty());
        stopped = output.stopped;
    }
    let rest = matcher.finish(true).text;
    assert!(!stopped || rest.is_empty());
    sent += &rest;
    assert_eq!(whole[matcher.sent()], sent);
    (sent, stopped)
}

fn stops(texts: &[&str]) -> StopMatcher {
    StopMatcher::new(&strings(texts), &[])
}

fn markers(texts: &[&str]) -> StopMatcher {
    StopMatcher::new(&[], &strings(texts))
}

fn stopped(text: &str) -> (String, bool) {
    (text.to_owned(), true)
}

fn whole(text: &str) -> (String, bool) {
    (text.to_owned(), false)
}

#[test]
fn a_stop_string_and_what_follows_is_cut() {
    assert_eq!(run(stops(&["END"]), &["one END two"]), stopped("one "));
    assert_eq!(
        run(stops(&["END"]), &["one E", "N", "D two"]),
        stopped("one ")
    );
    assert_eq!(run(stops(&["END"]), &["END"]), stopped(""));
    assert_eq!(run(stops(&["END"]), &["one EN", "d"]), whole("one ENd"));
    assert_eq!(run(stops(&["END"]), &["one EN"]), whole("one EN"));
    assert_eq!(run(stops(&["。"]), &["はい", "。", "次"]), stopped("はい"));
}

#[test]
fn nothing_is_dropped_without_stops() {
    assert_eq!(
        run(stops(&[]), &["one\n", "\n", "# Query:"]),
        whole("one\n\n# Query:")
    );
    assert_eq!(run(stops(&[""]), &["one"]), whole("one"));
}

#[test]
fn a_stop_string_may_begin_within_itself() {
    assert_eq!(run(stops(&["aab"]), &["a", "a", "a", "b"]), stopped("a"));
    assert_eq!(run(stops(&["abab!"]), &["aba", "bab!"]), stopped("ab"));
}

#[test]
fn the_first_complete_stop_string_wins() {
    // "b" is complete before "abc" could be.
    assert_eq!(run(stops(&["abc", "b"]), &["xabc"]), stopped("xa"));
    // Both end at once: the one that starts first.
    assert_eq!(run(stops(&["c", "abc"]), &["xabc"]), stopped("x"));
}

#[test]
fn what_cannot_begin_a_stop_is_sent_at_once() {
    let mut matcher = stops(&["\n\n", "STOP"]);
    assert_eq!(matcher.push("a\n").text, "a");
    assert_eq!(matcher.push("b STO").text, "\nb ");
    assert_eq!(matcher.push("S").text, "STO");
    assert_eq!(matcher.finish(true).text, "S");
}

#[test]
fn what_comes_after_the_stop_is_dropped() {
    let mut matcher = stops(&["."]);
    let first = matcher.push("Yes. No");
    assert_eq!(
        (first.text.as_str(), first.stopped, first.emitted),
        ("Yes", true, 3)
    );
    let second = matcher.push("more");
    assert_eq!(
        (second.text.as_str(), second.stopped, second.emitted),
        ("", true, 3)
    );
    assert_eq!(matcher.finish(true).text, "");
    assert_eq!(matcher.sent(), 0..3);
}

#[test]
fn a_marker_ends_the_answer_with_its_blank_lines() {
    let matcher = || markers(&["# Query:", "# Answer:"]);
    for text in [
        "Sure.\n\n# Query:\nNext",
        "Sure.\n# Answer:",
        "Sure.\r\n\r\n# Query:",
        "Sure.\n \n\t\n\n# Query:",
    ] {
        assert_eq!(run(matcher(), &[text]), stopped("Sure."), "{text:?}");
    }
    // The spaces that end a line of text are text.
    assert_eq!(run(matcher(), &["Sure. \n# Query:"]), stopped("Sure. "));
    assert_eq!(run(matcher(), &["# Query:"]), stopped(""));
    assert_eq!(run(matcher(), &[" \n\n# Query:"]), stopped(""));
}

#[test]
fn a_marker_counts_only_at_the_start_of_a_line() {
    for text in [
        "It says # Query: here",
        "a\n # Query:",
        "a\n# Quer:\n\n",
        "a\n## Query:",
        "a\n# query:",
    ] {
        assert_eq!(
            run(markers(&["# Query:"]), &[text]),
            whole(text),
            "{text:?}"
        );
    }
}

#[test]
fn a_marker_in_a_code_block_is_code() {
    let text = "Use this:\n```markdown\n\n# Query:\n```\nDone.";
    assert_eq!(run(markers(&["# Query:"]), &[text]), whole(text));
    let text = "~~~~\n```\n~~~\n# Query:";
    assert_eq!(run(markers(&["# Query:"]), &[text]), whole(text));
    assert_eq!(
        run(
            markers(&["# Query:"]),
            &["```\n# Query:\n```\n\n# Query:\n"]
        ),
        stopped("```\n# Query:\n```")
    );
    // Not a fence: its info string has a backtick.
    assert_eq!(
        run(markers(&["# Query:"]), &["``` a`\n# Query:\n"]),
        stopped("``` a`")
    );
}

#[test]
fn a_turn_that_begins_in_an_open_code_block_is_cut() {
    let matcher = || markers(&["# Q:", "# A:"]);
    let code = "Sure:\n```python\nx = 1";
    // A second header shows that it is the next turn.
    for header in ["\n\n# Q:\n", "\n \n\t\n# Q: \t\n", "\r\n\r\n# Q:\r\n"] {
        let text = format!("{code}{header}Why?\n\n# A:\nSo.\n```\n");
        assert_eq!(run(matcher(), &[&text]), stopped(code), "{text:?}");
    }
    // So does the end of the answer.
    for rest in [
        "# Q:",
        "# Q: ",
        "# Q:\n",
        "# Q:\nWhy?",
        "# Q:\nWhy?\n\n# A:",
    ] {
        let text = format!("{code}\n\n{rest}");
        assert_eq!(run(matcher(), &[&text]), whole(code), "{text:?}");
    }
    // A comment is code, whether the block is closed in the end or not.
    for rest in ["# Q: why?", "#A:", "# A:b", " # A:", "y = 2 # A:"] {
        let text = format!("{code}\n\n{rest}\n\n{rest}\nprint(x)");
        assert_eq!(run(matcher(), &[&text]), whole(&text), "{text:?}");
    }
    let text = format!("{code}\n# A:\nprint(x)\n# A:\n");
    assert_eq!(run(matcher(), &[&text]), whole(&text));
    for fence in ["\n```", "\n``` \nDone."] {
        let text = format!("{code}\n\n# A:\nprint(x){fence}");
        assert_eq!(run(matcher(), &[&text]), whole(&text));
    }
    // Another block begins anew.
    let text = "```\na\n\n# A:\n```\n\n```\nb\n\n# A:\n```";
    assert_eq!(run(matcher(), &[text]), whole(text));
    // A stop string that comes after the header also ends the answer at the header.
    let text = format!("{code}\n\n# Q:\nWhy? END");
    let both = StopMatcher::new(&strings(&["END"]), &strings(&["# Q:"]));
    assert_eq!(run(both, &[&text]), stopped(code));
}

#[test]
fn a_marker_that_the_end_of_the_answer_cuts_short_is_cut() {
    let matcher = || markers(&["# Question:", "# 質問:"]);
    for begun in ["# Q", "# Question", "# 質"] {
        assert_eq!(run(matcher(), &["Sure.\n\n", begun]), whole("Sure."));
        let code = format!("```\na\n\n{begun}");
        assert_eq!(run(matcher(), &[&code]), whole("```\na"));
    }
    for text in [
        "Sure.\n\n#",
        "Sure.\n\n# ",
        "Sure.\n\n# Qu?",
        "It is a # Question",
        "```\na\n# Q",
    ] {
        assert_eq!(run(matcher(), &[text]), whole(text), "{text:?}");
    }
    // A partial marker is text if the answer ends by itself or has nothing else.
    let mut ended = matcher();
    assert_eq!(ended.push("Sure.\n\n# Q").text, "Sure.");
    assert_eq!(ended.finish(false).text, "\n\n# Q");
    assert_eq!(run(markers(&["A:", "B:"]), &["A"]), whole("A"));
    assert_eq!(run(markers(&["A:"]).trim_start(true), &["\nA"]), whole("A"));
    // The beginning of a stop string is text.
    assert_eq!(
        run(stops(&["# Question:"]), &["a\n# Quest"]),
        whole("a\n# Quest")
    );
}

#[test]
fn code_is_held_from_a_header_until_the_block_is_closed() {
    let mut matcher = markers(&["# A:"]);
    assert_eq!(matcher.push("```\nx = 1\n").text, "```\nx = 1");
    assert_eq!(matcher.push("\n# A").text, "");
    assert_eq!(matcher.push(":\nprint(x)\n").text, "");
    assert_eq!(matcher.push("```\n").text, "\n\n# A:\nprint(x)\n```");
    assert_eq!(matcher.push("\n`").text, "\n\n`");
}

#[test]
fn a_stop_string_counts_in_a_code_block_too() {
    assert_eq!(
        run(stops(&["\n\n"]), &["```\na\n\nb\n```"]),
        stopped("```\na")
    );
}

#[test]
fn a_marker_may_be_a_closing_fence() {
    let form = || markers(&["```\n\n# Query:"]);
    assert_eq!(run(form(), &["Yes.\n```\n\n# Query:"]), stopped("Yes."));
    let text = "```\na\n```\n\n# Query:";
    assert_eq!(run(form(), &[text]), whole(text));
}

#[test]
fn blank_lines_wait_for_a_marker() {
    let mut matcher = markers(&["# Query:"]);
    assert_eq!(matcher.push("one two\n").text, "one two");
    assert_eq!(matcher.push("\n# Que").text, "");
    assert_eq!(matcher.push("st").text, "\n\n# Quest");
    assert_eq!(matcher.push("\n```\n").text, "\n```");
    assert_eq!(matcher.push("# Query:\n").text, "\n# Query:");
    assert_eq!(matcher.push("```\n").text, "\n```");
    assert_eq!(matcher.finish(true).text, "\n");
}

#[test]
fn the_start_is_trimmed_if_asked_for() {
    let trimmed = |texts: &[&str]| stops(texts).trim_start(true);
    assert_eq!(run(trimmed(&[]), &["\n", " ", " a b"]), whole("a b"));
    assert_eq!(run(trimmed(&["\n"]), &["\n\na", "\nb"]), stopped("a"));
    // An ideographic space begins a Japanese paragraph.
    assert_eq!(run(trimmed(&[]), &[" \u{3000}はい"]), whole("\u{3000}はい"));
    assert_eq!(run(stops(&[]), &["\n a"]), whole("\n a"));
    assert_eq!(
        run(markers(&["# Q"]).trim_start(true), &[" \n # Q"]),
        stopped("")
    );

    let mut matcher = trimmed(&[]);
    assert_eq!(matcher.push(" \n").emitted, 2);
    assert_eq!(matcher.sent(), 2..2);
    assert_eq!(matcher.push(" a").emitted, 4);
    assert_eq!(matcher.sent(), 3..4);
}

/// Text with many fences, blank lines, markers and parts of them.
fn text() -> impl Strategy<Value = Vec<String>> {
    let piece = prop_oneof![
        Just("```\n"),
        Just("\n```\n"),
        Just("~~~"),
        Just("`"),
        Just("    "),
        Just("\n"),
        Just("\n\n"),
        Just("\r\n"),
        Just(" "),
        Just("\t"),
        Just("# Q:"),
        Just("\n# Q:"),
        Just("\n# "),
        Just("#"),
        Just(" Q"),
        Just("Q:"),
        Just(":"),
        Just("a"),
        Just("b"),
        Just("ab"),
        Just("aab"),
        Just("é"),
        Just("は"),
        Just("````"),
    ];
    vec(piece.prop_map(str::to_owned), 0..24)
}

fn stop_strings() -> impl Strategy<Value = Vec<String>> {
    let stop = prop_oneof![
        Just("\n\n".to_owned()),
        Just("# Q:a".to_owned()),
        Just("は".to_owned()),
        Just(" ".to_owned()),
        "[ab]{2,5}",
        "[ab\n#]{2,4}",
    ];
    vec(stop, 0..3)
}

fn marker_strings() -> impl Strategy<Value = Vec<String>> {
    let marker = prop_oneof![
        3 => Just("# Q:"),
        1 => Just("#"),
        1 => Just("aa"),
        1 => Just("```\n\n# Q:"),
        1 => Just("\n# Q:"),
        1 => Just(" a"),
    ];
    vec(marker.prop_map(str::to_owned), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_result_is_that_of_the_whole_text(
        text in text(), stops in stop_strings(), markers in marker_strings(), trim: bool,
    ) {
        let pieces: Vec<&str> = text.iter().map(String::as_str).collect();
        let expected = reference(&text.concat(), &stops, &markers, trim);
        let matcher = StopMatcher::new(&stops, &markers).trim_start(trim);
        let whole = text.concat();
        prop_assert_eq!(&run(matcher.clone(), &pieces), &expected);
        prop_assert_eq!(&run(matcher.clone(), &[&whole]), &expected);
        let characters: Vec<String> = whole.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        prop_assert_eq!(&run(matcher, &characters), &expected);
    }

    /// With one string to search for: of several, one may keep another from being completed.
    #[test]
    fn only_what_may_be_cut_is_held(
        text in text(), stops in stop_strings(), markers in marker_strings(), of_client: bool,
    ) {
        let (stops, markers) = if of_client { (stops, vec![]) } else { (vec![], markers) };
        let stops: Vec<String> = stops.into_iter().take(1).collect();
        let markers: Vec<String> = markers.into_iter().take(1).collect();
        let Some(full) = stops.iter().chain(&markers).next() else {
            return Ok(());
        };
        let rests: Vec<&str> = full.char_indices().map(|(at, _)| &full[at..]).collect();
        let endings: Vec<String> = ["", "\n"]
            .iter()
            .flat_map(|line_break| rests.iter().map(move |rest| format!("{line_break}{rest}")))
            .collect();
        let next_header = format!("\n\n{full}\n");
        let endings: Vec<String> = endings
            .iter()
            .flat_map(|ending| [ending.clone(), format!("{ending}{next_header}")])
            .chain([next_header.clone()])
            .collect();

        let mut matcher = StopMatcher::new(&stops, &markers);
        let mut pushed = String::new();
        for piece in text {
            pushed += &piece;
            if matcher.push(&piece).stopped {
                break;
            }
            // Some continuation must cut all that is held.
            let sent = matcher.sent().end;
            let may_be_cut = endings.iter().any(|ending| {
                let (kept, stopped) = reference(&format!("{pushed}{ending}"), &stops, &markers, false);
                stopped && kept.len() <= sent
            });
            // A marker that begins with a fence is not a header in the block that it closes:
            // its beginning is held in vain there.
            let in_vain = full.starts_with("```") && in_code(&pushed[..sent]);
            prop_assert!(sent == pushed.len() || may_be_cut || in_vain, "{pushed:?} {sent}");
        }
    }
}

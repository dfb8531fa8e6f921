use std::fs;
use std::io::Write;

use super::*;

fn content(line: &str) -> Result<Content, String> {
    super::interpret::content(line, &mut BTreeSet::new())
}

fn user(text: &str) -> Message {
    Message::new(Role::User, text)
}

fn assistant(text: &str) -> Message {
    Message::new(Role::Assistant, text)
}

#[test]
fn the_kind_of_a_line_is_seen_from_its_keys() {
    let both = |from| Conversation {
        messages: vec![user("Hi"), assistant("Hello!")],
        from,
        excluded: Vec::new(),
    };
    let messages =
        r#"[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]"#;
    assert_eq!(
        content(&format!(r#"{{"messages": {messages}, "id": 7}}"#)),
        Ok(Content::Conversation(both(0)))
    );
    assert_eq!(
        content(r#"{"prompt": "Hi", "completion": "Hello!"}"#),
        Ok(Content::Conversation(both(1)))
    );
    let prompt = r#"[{"role": "user", "content": "Hi"}]"#;
    let answer = r#"[{"role": "assistant", "content": "Hello!"}]"#;
    assert_eq!(
        content(&format!(
            r#"{{"prompt": {prompt}, "completion": {answer}}}"#
        )),
        Ok(Content::Conversation(both(1)))
    );
    let pair = Content::Pair {
        chosen: both(1),
        rejected: Conversation {
            messages: vec![user("Hi"), assistant("No.")],
            from: 1,
            excluded: Vec::new(),
        },
    };
    assert_eq!(
        content(r#"{"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}"#),
        Ok(pair.clone())
    );
    let rejected = messages.replace("Hello!", "No.");
    assert_eq!(
        content(&format!(
            r#"{{"chosen": {messages}, "rejected": {rejected}}}"#
        )),
        Ok(pair)
    );
    for line in [
        format!(r#"{{"messages": {prompt}}}"#),
        r#"{"prompt": "Hi"}"#.to_owned(),
    ] {
        assert_eq!(content(&line), Ok(Content::Prompt(vec![user("Hi")])));
    }
    assert_eq!(
        content(r#"{"text": "Once"}"#),
        Ok(Content::Text("Once".to_owned()))
    );
}

#[test]
fn transcripts_are_conversations_whose_ends_differ() {
    let chosen =
        r"\n\nHuman: a?\n\nAssistant: b\n\nHuman: c\n\nHuman: d\n\nAssistant: good:\n\n- 1";
    let rejected = r"\n\nHuman: a?\n\nAssistant: b\n\nHuman: c\n\nHuman: d\n\nAssistant: ";
    let line = format!(r#"{{"chosen": "{chosen}", "rejected": "{rejected}"}}"#);
    let said = |last: &str| Conversation {
        messages: vec![user("a?"), assistant("b"), user("c\n\nd"), assistant(last)],
        from: 3,
        excluded: Vec::new(),
    };
    assert_eq!(
        content(&line),
        Ok(Content::Pair {
            chosen: said("good:\n\n- 1"),
            rejected: said(""),
        })
    );
}

/// A JSON list of messages; the first letter of a turn is its role: `s`, `u` or `a`.
fn list(turns: &[&str]) -> String {
    let turns = turns.iter().map(|turn| {
        let role = match turn.split_at(1) {
            ("s", _) => "system",
            ("u", _) => "user",
            _ => "assistant",
        };
        format!(r#"{{"role": "{role}", "content": "{}"}}"#, &turn[1..])
    });
    format!("[{}]", turns.collect::<Vec<_>>().join(", "))
}

/// All messages of a conversation, and the indices of those that count.
fn learnt(conversation: &Conversation) -> (Vec<&str>, Vec<usize>) {
    let messages = conversation.messages.iter().map(|m| &*m.content);
    let counted = (0..conversation.messages.len()).filter(|&at| conversation.counts(at));
    (messages.collect(), counted.collect())
}

#[track_caller]
fn sides(line: &str) -> [(Vec<String>, Vec<usize>); 2] {
    let Content::Pair { chosen, rejected } = content(line).expect(line) else {
        panic!("{line} is no pair");
    };
    [chosen, rejected].map(|side| {
        let (messages, counted) = learnt(&side);
        (messages.into_iter().map(str::to_owned).collect(), counted)
    })
}

#[test]
fn the_prompts_turns_within_an_answer_are_taken_once() {
    let pair = |prompt: &str, chosen: &str, rejected: &str| {
        sides(&format!(
            r#"{{"prompt": {prompt}, "chosen": {chosen}, "rejected": {rejected}}}"#
        ))
    };
    let [plain, answers] = [
        pair(r#""q""#, r#""good""#, r#""bad""#),
        pair(&list(&["uq"]), &list(&["agood"]), &list(&["abad"])),
    ];
    assert_eq!(plain[0], (vec!["q".to_owned(), "good".to_owned()], vec![1]));
    assert_eq!(answers, plain);
    // UltraFeedback's format.
    let whole = [list(&["uq", "agood"]), list(&["uq", "abad"])];
    assert_eq!(pair(r#""q""#, &whole[0], &whole[1]), plain);
    assert_eq!(pair(r#"" q\n""#, &whole[0], &whole[1]), plain);
    assert_eq!(pair(&list(&["uq"]), &whole[0], &whole[1]), plain);
    // One side of each kind.
    assert_eq!(pair(r#""q""#, &whole[0], r#""bad""#), plain);
    // Transcripts.
    let transcript = |answer: &str| format!(r#""\n\nHuman: q\n\nAssistant: {answer}""#);
    assert_eq!(
        pair(r#""q""#, &transcript("good"), &transcript("bad")),
        plain
    );
    let open = r#""\n\nHuman: q\n\nAssistant:""#;
    assert_eq!(pair(open, &transcript("good"), &transcript("bad")), plain);
    assert_eq!(pair(open, r#""good""#, r#""bad""#), plain);
    // A plain text is an answer, whatever it begins with.
    let [chosen, _] = pair(r#""q""#, r#""q: good""#, r#""q: bad""#);
    assert_eq!(chosen.0, ["q", "q: good"]);

    // A system message on either side.
    let [chosen, rejected] = pair(
        r#""q""#,
        &list(&["sbe kind", "uq", "agood"]),
        &list(&["sbe kind", "uq", "abad"]),
    );
    assert_eq!(chosen.0, ["be kind", "q", "good"]);
    assert_eq!((chosen.1, rejected.1), (vec![2], vec![2]));
    let [chosen, _] = pair(&list(&["sbe kind", "uq"]), &whole[0], &whole[1]);
    assert_eq!(chosen.0, ["be kind", "q", "good"]);

    // More turns: the prompt is the first, the last or all of the questions.
    let more = ["uq", "aso", "uand", "agood"];
    let worse = ["uq", "aso", "uand", "abad"];
    for prompt in [r#""q""#.to_owned(), r#""and""#.to_owned(), list(&more[..3])] {
        let [chosen, rejected] = pair(&prompt, &list(&more), &list(&worse));
        assert_eq!(
            chosen,
            (more.map(|turn| turn[1..].to_owned()).into(), vec![3])
        );
        assert_eq!(rejected.1, [3]);
    }
    let [chosen, _] = pair(&list(&more[..3]), &list(&more[2..]), &list(&worse[2..]));
    assert_eq!(chosen.0, ["q", "so", "and", "good"]);

    let line = format!(r#"{{"prompt": "q", "completion": {}}}"#, whole[0]);
    let plain = content(r#"{"prompt": "q", "completion": "good"}"#);
    assert_eq!(content(&line), plain);
    let line = format!(
        r#"{{"prompt": "q", "completion": {0}, "messages": {0}}}"#,
        whole[0]
    );
    assert_eq!(content(&line), plain);
}

#[test]
fn messages_beside_others_say_the_same() {
    let [good, bad] = [list(&["uq", "agood"]), list(&["uq", "abad"])];
    let pair = format!(r#""prompt": "q", "chosen": {good}, "rejected": {bad}"#);
    let plain = sides(&format!("{{{pair}}}"));
    assert_eq!(sides(&format!(r#"{{{pair}, "messages": {good}}}"#)), plain);
    let asked = list(&["uq"]);
    assert_eq!(sides(&format!(r#"{{{pair}, "messages": {asked}}}"#)), plain);
    assert_eq!(
        sides(&format!(r#"{{{pair}, "messages": null, "text": null}}"#)),
        plain
    );
    // As in UltraChat.
    let line = format!(r#"{{"prompt": "q", "prompt_id": "7", "messages": {good}}}"#);
    let Ok(Content::Conversation(conversation)) = content(&line) else {
        panic!("{line} is a conversation");
    };
    assert_eq!(learnt(&conversation), (vec!["q", "good"], vec![1]));
}

#[test]
fn turns_of_weight_0_are_not_learnt() {
    let turn = |role: &str, content: &str, weight: &str| {
        format!(r#"{{"role": "{role}", "content": "{content}", "weight": {weight}}}"#)
    };
    let of = |first: &str, last: &str| {
        let turns = [
            turn("user", "a", "null"),
            turn("assistant", "b", first),
            turn("user", "c", "0"),
            turn("assistant", "d", last),
        ];
        let line = format!(r#"{{"messages": [{}]}}"#, turns.join(", "));
        match content(&line) {
            Ok(Content::Conversation(conversation)) => learnt(&conversation).1,
            other => panic!("{line}: {other:?}"),
        }
    };
    assert_eq!(of("0", "1"), [3]);
    assert_eq!(of("1", "0.0"), [1]);
    assert_eq!(of("1.0", "null"), [1, 3]);
    let side = |answer: &str, weight| {
        format!(
            "[{}, {}]",
            turn("user", "a", "0"),
            turn("assistant", answer, weight)
        )
    };
    let line = format!(
        r#"{{"chosen": {}, "rejected": {}}}"#,
        side("b", "0"),
        side("c", "1")
    );
    assert!(content(&line).unwrap_err().contains("the weight 0"));
}

#[test]
fn keys_that_nothing_is_read_from_are_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.jsonl");
    let line = r#"{"prompt": "a", "completion": [{"role": "assistant", "content": "b", "name": "x", "refusal": null}], "score": 7, "tools": null}"#;
    let other =
        r#"{"messages": [{"role": "user", "content": "b", "name": "x"}], "id": {"a": [1]}}"#;
    fs::write(&path, [line, line, other].join("\n")).unwrap();
    let records = read(&path).unwrap();
    assert!(records.lines.iter().all(Result::is_ok));
    let ignored_keys: Vec<String> = records.ignored_keys.into_iter().collect();
    assert_eq!(
        ignored_keys,
        ["completion[].name", "id", "messages[].name", "score"]
    );
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.jsonl");
    fs::write(
        &path,
        "\u{feff}{\"text\": \"a\"}\r\n{\"text\": \"\u{feff}b\"}\r\n",
    )
    .unwrap();
    let lines = read(&path).unwrap().lines.into_iter();
    let texts: Vec<Content> = lines.map(|line| line.unwrap().content).collect();
    let expected = ["a", "\u{feff}b"].map(|text| Content::Text(text.to_owned()));
    assert_eq!(texts, expected);
}

#[test]
fn what_cannot_be_used_is_told_in_one_line() {
    for (line, told) in [
        ("{", "column 1: EOF while parsing an object"),
        (r#"{"text": 7}"#, "column 10: invalid type"),
        (
            r#"{"prompt": 1, "completion": "x"}"#,
            "expected a string or a list of messages",
        ),
        (r#"{"messages": []}"#, "'messages' is empty"),
        (r#"{"text": ""}"#, "'text' is empty"),
        // A list must not be accepted as an object with positional keys.
        (
            r#"[null, "What?", "That.", null, null, null]"#,
            "a record is an object, not a list",
        ),
        (
            r#" [{"text": "a"}]"#,
            "write each record in a line of its own",
        ),
        (r#"[]"#, "a record is an object, not a list"),
        ("7", "expected an object"),
        ("null", "expected an object"),
        (
            r#"{"messages": [["user", "a"], ["assistant", "b"]]}"#,
            "expected a message with a role and a content",
        ),
        (
            r#"{"prompt": [["user", "a"]], "completion": "b"}"#,
            "expected a message with a role and a content",
        ),
        (r#"{"text": "a", "text": "b"}"#, "duplicate field `text`"),
        (
            r#"{"prompt": "a", "chosen": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}], "rejected": "d"}"#,
            "'chosen' has turns before its answer that are not the prompt's",
        ),
        (
            r#"{"prompt": "a", "messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}"#,
            "'messages' does not contain the 'prompt'",
        ),
        (
            r#"{"prompt": "a", "chosen": "b", "rejected": "c", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}"#,
            "'messages' does not agree with 'chosen'",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}"#,
            "messages[1] has the weight 0.5; an assistant's 'weight' is 0 or 1",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}]}"#,
            "messages[0] is a message of the role 'user' and has the weight 1, but only the \
             assistant's turns can be learnt: leave its 'weight' out",
        ),
        (
            r#"{"prompt": [{"role": "system", "content": "a", "weight": 0.5}, {"role": "user", "content": "b"}], "completion": "c"}"#,
            "prompt[0] is a message of the role 'system' and has the weight 0.5",
        ),
        (
            r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}"#,
            "all its answers have the weight 0",
        ),
        (r#"{"prompt": []}"#, "the prompt is empty"),
        (
            r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#,
            "are the same",
        ),
        (
            r#"{"prompt": "a", "completion": []}"#,
            "'completion' does not end with the assistant's turn",
        ),
        (
            r#"{"chosen": "b", "rejected": "c"}"#,
            "must be lists of messages or begin",
        ),
        (
            r#"{"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}"#,
            "'chosen' does not end with the assistant's turn",
        ),
        (r#"{"prompt": "a", "chosen": "b"}"#, "its keys are not"),
        (r#"{"question": "a"}"#, "its keys are not"),
        (
            r#"{"messages": [{"role": "\u001b[2J", "content": "x"}]}"#,
            "\\u{1b}[2J",
        ),
    ] {
        let error = content(line).unwrap_err();
        assert!(error.contains(told), "{line}: {error}");
        assert!(!error.contains(['\n', '\u{1b}']), "{error}");
    }
}

/// A side of a pair that has nothing of its own.
#[test]
fn a_side_without_an_answer_of_its_own_is_named() {
    let told = |prompt: Option<&str>, chosen: &str, rejected: &str| {
        let prompt = prompt.map(|prompt| format!(r#""prompt": {prompt}, "#));
        let prompt = prompt.unwrap_or_default();
        content(&format!(
            r#"{{{prompt}"chosen": {chosen}, "rejected": {rejected}}}"#
        ))
        .unwrap_err()
    };
    let [short, long] = [list(&["uq", "aso"]), list(&["uq", "aso", "uand", "agood"])];
    let transcript = |turns: &str| format!(r#""{turns}""#);
    let [open, more] = [
        transcript(r"\n\nHuman: q\n\nAssistant: so"),
        transcript(r"\n\nHuman: q\n\nAssistant: so\n\nHuman: and\n\nAssistant: good"),
    ];
    for (short, long) in [(&short, &long), (&open, &more)] {
        for prompt in [None, Some(r#""q""#)] {
            let found = told(prompt, long, short);
            assert!(
                found.starts_with("'chosen' begins with all of 'rejected'"),
                "{found}"
            );
            let found = told(prompt, short, long);
            assert!(
                found.starts_with("'rejected' begins with all of 'chosen'"),
                "{found}"
            );
        }
    }
    // All of the prompt, its beginning, its middle or its end.
    let prompt = list(&["sbe kind", "uq", "aso", "uand"]);
    for part in [
        prompt.clone(),
        list(&["sbe kind", "uq", "aso"]),
        list(&["uq", "aso"]),
        list(&["uand"]),
    ] {
        let found = told(Some(&prompt), &list(&["agood"]), &part);
        let expected = "'rejected' has only turns of the prompt and no answer to it";
        assert_eq!(found, expected, "{part}");
        let found = told(Some(&prompt), &part, &list(&["agood"]));
        assert!(found.starts_with("'chosen' has only turns"), "{found}");
    }
    // A repeated question with the answer that it had before counts as an answer.
    let again = list(&["uq", "aso", "uq"]);
    let [chosen, _] = sides(&format!(
        r#"{{"prompt": {again}, "chosen": {short}, "rejected": "no"}}"#
    ));
    assert_eq!(chosen.0, ["q", "so", "q", "so"]);
    // One answer may be a prefix of the other.
    let [chosen, rejected] = sides(r#"{"prompt": "q", "chosen": "so good", "rejected": "so"}"#);
    assert_eq!((chosen.1, rejected.1), (vec![1], vec![1]));
}

#[test]
fn an_error_names_the_file_and_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.jsonl");
    fs::write(&path, "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\nno\n").unwrap();
    let entries = read(&path).unwrap().lines;
    let lines: Vec<usize> = entries.iter().flatten().map(|e| e.place.line).collect();
    assert_eq!(lines, [1, 3]);
    let error = entries.into_iter().find_map(Result::err).unwrap();
    let told = error.to_string();
    assert!(told.contains("mine.jsonl:4: column "), "{told}");

    let missing = read(&folder.path().join("other.jsonl")).unwrap_err();
    assert!(missing.to_string().contains("other.jsonl: "), "{missing}");
}

#[test]
fn a_packed_file_is_read_like_a_plain_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.jsonl.gz");
    let file = fs::File::create(&path).unwrap();
    let mut packer = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    packer.write_all(b"{\"text\": \"a\"}\n").unwrap();
    packer.finish().unwrap();
    let packed = read(&path).unwrap();
    // The hash is of the compressed file.
    let digest = Sha256::digest(fs::read(&path).unwrap());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(packed.sha256, digest);
    let entries: Vec<Entry> = packed.lines.into_iter().flatten().collect();
    assert_eq!(entries[0].content, Content::Text("a".to_owned()));
}

#[test]
fn a_file_is_known_by_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.jsonl");
    fs::write(&path, "abc").unwrap();
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(read(&path).unwrap().sha256, expected);
}

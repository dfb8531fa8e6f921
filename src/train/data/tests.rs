use std::fs;
use std::io::Write;

use super::*;

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
    };
    assert_eq!(
        content(&line),
        Ok(Content::Pair {
            chosen: said("good:\n\n- 1"),
            rejected: said(""),
        })
    );
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
        (r#"{"prompt": []}"#, "the prompt is empty"),
        (
            r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#,
            "are the same",
        ),
        (
            r#"{"prompt": "a", "completion": []}"#,
            "does not end with the assistant's turn",
        ),
        (
            r#"{"chosen": "b", "rejected": "c"}"#,
            "must be lists of messages or begin",
        ),
        (
            r#"{"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}"#,
            "does not end with the assistant's turn",
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

#[test]
fn an_error_names_the_file_and_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.jsonl");
    fs::write(&path, "{\"text\": \"a\"}\n\n{\"text\": \"b\"}\nno\n").unwrap();
    let entries = read(&path).unwrap();
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
    let entries: Vec<Entry> = read(&path).unwrap().into_iter().flatten().collect();
    assert_eq!(entries[0].content, Content::Text("a".to_owned()));
}

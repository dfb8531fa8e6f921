//! Profiles and chat templates as clients see them.

use std::path::Path;
use std::sync::Arc;

use incant::profile::{
    self, ChatTemplate, Message, Profile, ProfileError, Rendering, Role, markers,
};
use proptest::prelude::*;

fn user(content: &str) -> Message {
    Message::new(Role::User, content)
}

fn assistant(content: &str) -> Message {
    Message::new(Role::Assistant, content)
}

fn system(content: &str) -> Message {
    Message::new(Role::System, content)
}

fn turns(profile: &Profile, messages: &[Message]) -> String {
    profile.turns(messages, &str::to_owned).unwrap()
}

#[test]
fn every_profile_in_prompts_is_built_in() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("prompts");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jinja")
        })
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let mut names: Vec<&str> = profile::builtin()
        .iter()
        .map(|profile| profile.name())
        .collect();
    names.sort();
    assert_eq!(names, files);
}

/// The first marker starts a question and the second an answer; this test checks that every
/// built-in profile keeps that order.
#[test]
fn a_built_in_prefix_is_made_of_whole_turns() {
    for profile in profile::builtin() {
        let [query, answer, ..] = profile.markers() else {
            panic!("{}: too few markers", profile.name());
        };
        let count = |marker: &String| {
            profile
                .prefix()
                .lines()
                .filter(|line| *line == marker)
                .count()
        };
        assert_eq!(count(query), count(answer), "{}", profile.name());
        assert!(count(query) >= profile.shots(), "{}", profile.name());
        // The first turn starts on a new line, after a blank one, so that no tokenizer merges
        // the end of the prefix with it.
        assert!(profile.prefix().ends_with("\n\n"), "{}", profile.name());
        assert!(!profile.prefix().ends_with("\n\n\n"), "{}", profile.name());
        for probe in profile.probes().unwrap() {
            assert!(probe.starts_with('#'), "{}: {probe:?}", profile.name());
            assert!(
                probe.ends_with(&format!("{answer}\n")),
                "{}",
                profile.name()
            );
        }
    }
}

/// The number in the front matter counts conversations: each starts with a question that does
/// not continue the previous one, which only a human can tell. So it is repeated here.
#[test]
fn each_built_in_profile_is_there_in_english_and_in_japanese() {
    let profiles = profile::load(None).unwrap();
    let shots = [
        ("assistant", 9, 12),
        ("instruct", 0, 0),
        ("self-correct", 3, 3),
        ("self-correct-cot", 3, 3),
        ("urial", 3, 3),
        ("urial-1", 1, 1),
        ("urial-8", 8, 8),
        ("urial-help", 3, 3),
        ("vanilla", 3, 3),
    ];
    assert_eq!(profiles.len(), 2 * shots.len());
    for (name, english, japanese) in shots {
        let variants = [
            (name.to_owned(), "en", None, english),
            (format!("{name}-ja"), "ja", Some(name), japanese),
        ];
        for (name, language, variant_of, shots) in variants {
            let profile = &profiles[&name];
            assert_eq!(
                (profile.shots(), profile.language(), profile.variant_of()),
                (shots, language, variant_of),
                "{name}"
            );
            assert!(!profile.title().is_empty() && !profile.description().is_empty());
        }
    }
    for name in ["assistant", "assistant-ja"] {
        let profile = &profiles[name];
        assert_eq!(examples(profile).len(), profile.shots(), "{name}");
    }
}

/// The examples of a built-in profile: questions and answers.
fn examples(profile: &Profile) -> Vec<(String, String)> {
    let [query, answer, ..] = profile.markers() else {
        panic!("{}: too few markers", profile.name());
    };
    let begins = format!("{query}\n");
    let parts = profile.prefix().split(&begins).skip(1);
    parts
        .map(|part| {
            let (asked, answered) = part.split_once(&format!("\n\n{answer}\n")[..]).unwrap();
            (asked.to_owned(), answered.trim_end().to_owned())
        })
        .collect()
}

/// A comparison of two profiles must show the effect of their examples, and nothing else.
#[test]
fn profiles_of_a_language_differ_only_in_what_they_show() {
    let profiles = profile::load(None).unwrap();
    let messages = [
        system("Be kind."),
        user("Hi"),
        assistant("Hello!"),
        user("Bye"),
    ];
    for suffix in ["", "-ja"] {
        let of = |name: &str| &profiles[&format!("{name}{suffix}")];
        let urial = of("urial");
        for name in ["instruct", "urial-1", "urial-8", "urial-help", "vanilla"] {
            assert_eq!(
                turns(of(name), &messages),
                turns(urial, &messages),
                "{name}"
            );
        }
        let questions = |name: &str| -> Vec<String> {
            let (asked, _) = examples(of(name))
                .into_iter()
                .unzip::<_, _, Vec<_>, Vec<_>>();
            asked
        };
        assert_eq!(questions("vanilla"), questions("urial"));
        let instruction = |name: &str| {
            let (instruction, _) = of(name).prefix().split_once("\n\n").unwrap();
            instruction.to_owned()
        };
        for name in ["urial-1", "urial-8", "vanilla"] {
            assert_eq!(instruction(name), instruction("urial"), "{name}");
        }
        assert!(instruction("instruct").starts_with(&instruction("urial")));
        let shown = examples(of("urial-8"));
        assert!(
            examples(of("urial-1"))
                .iter()
                .all(|one| shown.contains(one))
        );
    }
}

#[test]
fn the_self_correcting_profiles_ask_with_every_question() {
    let profiles = profile::load(None).unwrap();
    for (name, answer) in [
        ("self-correct", None),
        ("self-correct-ja", None),
        ("self-correct-cot", Some("**Final answer:** ")),
        ("self-correct-cot-ja", Some("**結論:** ")),
    ] {
        let profile = &profiles[name];
        let turn = turns(profile, &[user("Hi")]);
        let request = turn.split("\n\n").nth(1).unwrap();
        for (asked, answered) in examples(profile) {
            assert!(
                asked.ends_with(&format!("\n\n{request}")),
                "{name}: {asked}"
            );
            if let Some(label) = answer {
                // Some reasoning, and then an answer that can be located.
                let parts: Vec<&str> = answered.split(label).collect();
                let [thought, found] = parts[..] else {
                    panic!("{name}: {answered}");
                };
                assert!(
                    thought.ends_with("\n\n") && !found.is_empty(),
                    "{name}: {answered}"
                );
            }
        }
        assert_eq!(turn.matches(request).count(), 1);
        let conversation = [user("Hi"), assistant("Hello!"), user("Bye")];
        assert_eq!(turns(profile, &conversation).matches(request).count(), 2);
    }
}

#[test]
fn urial_writes_a_conversation_after_the_clients_instruction() {
    let profiles = profile::load(None).unwrap();
    let rendering = Rendering::Profile(Arc::clone(&profiles["urial"]));
    let messages = [
        user("Hi"),
        assistant("Hello!"),
        user("  What is 2 + 2?\n"),
        system("Answer in French."),
    ];
    assert_eq!(
        rendering.render(&messages, &str::to_owned).unwrap(),
        "# Instruction:\nAnswer in French.\n\n# Query:\nHi\n\n# Answer:\nHello!\n\n\
         # Query:\nWhat is 2 + 2?\n\n# Answer:\n"
    );
    assert!(rendering.prefix().contains("# Query:\n"));
    let turn = Rendering::Turn(Arc::clone(&profiles["urial"]));
    assert_eq!(turn.prefix(), "");
    assert_eq!(
        turn.render(&messages, &str::to_owned).unwrap(),
        rendering.render(&messages, &str::to_owned).unwrap()
    );
    assert_eq!(turn.markers(), rendering.markers());
}

/// Texts that try to start a turn, and ordinary ones.
fn contents(markers: Vec<String>) -> impl Strategy<Value = String> {
    let marker = prop::sample::select(markers);
    let disguised = marker.clone().prop_map(|marker| {
        let wide = |c: char| match c {
            '!'..='~' => char::from_u32(c as u32 + 0xfee0).unwrap(),
            ' ' => '\u{3000}',
            c => c,
        };
        marker.chars().map(wide).collect::<String>()
    });
    let piece = prop_oneof![
        4 => marker.clone(),
        1 => marker.prop_map(|marker| marker.to_uppercase()),
        1 => disguised,
        4 => Just("\n".to_owned()),
        1 => Just("\r".to_owned()),
        1 => Just("\u{2028}".to_owned()),
        1 => Just(" ".to_owned()),
        1 => Just("\u{200b}".to_owned()),
        1 => Just("\\".to_owned()),
        1 => Just("```\n".to_owned()),
        2 => any::<String>(),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn conversations() -> impl Strategy<Value = (usize, Vec<Message>)> {
    let role = prop::sample::select(vec![Role::System, Role::User, Role::Assistant]);
    (0..profile::builtin().len()).prop_flat_map(move |index| {
        let contents = contents(profile::builtin()[index].markers().to_vec());
        let message =
            (role.clone(), contents).prop_map(|(role, content)| Message::new(role, content));
        (Just(index), prop::collection::vec(message, 1..6))
    })
}

proptest! {
    #[test]
    fn a_message_never_opens_a_turn((index, messages) in conversations()) {
        let profile = &profile::builtin()[index];
        let harmless: Vec<Message> = messages
            .iter()
            .map(|message| {
                // A blank message stays blank, because it may be omitted.
                let blank = message.content.trim().is_empty();
                Message::new(message.role, if blank { " " } else { "x" })
            })
            .collect();
        prop_assert_eq!(
            markers::count(&turns(profile, &messages), profile.markers()),
            markers::count(&turns(profile, &harmless), profile.markers())
        );
    }

    #[test]
    fn a_turn_holds_its_message_and_a_reader_can_restore_it(content in contents(
        profile::builtin()[0].markers().to_vec()
    )) {
        let profile = &profile::builtin()[0];
        let turns = turns(profile, &[user(&content)]);
        let written = turns
            .strip_prefix("# Question:\n")
            .and_then(|rest| rest.strip_suffix("\n\n# Answer:\n"))
            .unwrap();
        let escaped = markers::escape(&content, profile.markers());
        prop_assert_eq!(written, escaped.trim());
        prop_assert_eq!(markers::unescape(&escaped, profile.markers()), content);
    }
}

const OWN: &str = "+++\nname = \"own\"\ntitle = \"Own\"\ndescription = \"A user's\"\n\
    language = \"en\"\nshots = 0\nversion = 1\nmarkers = [\"Q:\"]\n+++\n\
    {% block prefix %}{% endblock %}\n\
    {% block turns %}\n{% for m in messages %}\nQ: {{ m.content }}\n{% endfor %}\nA: {% endblock %}\n";

#[test]
fn a_folder_adds_profiles_and_replaces_built_in_ones() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("own.jinja", OWN);
    write("urial.jinja", &OWN.replace("\"own\"", "\"urial\""));
    write("README.md", "not a profile");
    let profiles = profile::load(Some(folder.path())).unwrap();
    assert_eq!(profiles["own"].title(), "Own");
    assert_eq!(profiles["urial"].title(), "Own");
    assert_eq!(profiles["urial-ja"].language(), "ja");
    assert_eq!(turns(&profiles["own"], &[user("hi")]), "Q: hi\nA: ");
}

/// A user's profile that is a variant of another.
fn variant(name: &str, language: &str, of: &str) -> String {
    let language = format!("language = {language:?}\nvariant_of = {of:?}");
    OWN.replace("\"own\"", &format!("{name:?}"))
        .replace("language = \"en\"", &language)
}

#[test]
fn a_folder_can_hold_variants_of_its_own_and_of_built_in_profiles() {
    let load = |variants: &[(&str, &str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(format!("{name}.jinja")), text).unwrap();
        };
        write("own", OWN);
        for (name, language, of) in variants {
            write(name, &variant(name, language, of));
        }
        profile::load(Some(folder.path())).map_err(|error| error.to_string())
    };
    let profiles = load(&[
        ("eigen", "ja", "own"),
        ("egen", "sv", "own"),
        ("mine", "ja", "urial"),
    ])
    .unwrap();
    assert_eq!(profiles["eigen"].variant_of(), Some("own"));
    assert_eq!(profiles["mine"].variant_of(), Some("urial"));
    assert_eq!(profiles["urial-ja"].variant_of(), Some("urial"));

    let error = load(&[("eigen", "ja", "nobody")]).unwrap_err();
    assert!(
        error.contains("eigen.jinja: variant_of: there is no profile \"nobody\""),
        "{error}"
    );
    let twins = [("eigen", "ja", "own"), ("zelf", "JA", "own")];
    let error = load(&twins).unwrap_err();
    assert!(
        error.contains("eigen.jinja: variant_of: \"own\" has another variant")
            && error.contains("\"zelf\""),
        "{error}"
    );
}

#[test]
fn a_broken_file_in_the_folder_stops_the_start() {
    let error_of = |name: &str, text: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), text).unwrap();
        profile::load(Some(folder.path())).unwrap_err().to_string()
    };
    let error = error_of("own.jinja", OWN.replace("{% endfor %}", "").as_bytes());
    assert!(
        error.contains("own.jinja:") && error.contains("syntax error"),
        "{error}"
    );
    let error = error_of("other.jinja", OWN.as_bytes());
    assert!(
        error.contains("does not have the name of its profile, \"own\""),
        "{error}"
    );
    let error = error_of("own.jinja", b"\xff\xfe");
    assert!(
        error.contains("cannot read") && error.contains("own.jinja"),
        "{error}"
    );
    let missing = profile::load(Some(Path::new("no-such-folder"))).unwrap_err();
    assert!(matches!(missing, ProfileError::Read { .. }));
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Some("<|endoftext|>"), Some("<|im_end|>")).unwrap()
}

fn render(template: &ChatTemplate, messages: &[Message]) -> String {
    template.render(messages, &str::to_owned).unwrap()
}

#[test]
fn smollm2s_template_renders_as_transformers_renders_it() {
    let template = template(include_str!("fixtures/chat-template-smollm2.jinja"));
    assert_eq!(
        render(
            &template,
            &[user("Hi  <b>\n"), assistant("Hello."), user("Bye")]
        ),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
         Face<|im_end|>\n<|im_start|>user\nHi  <b>\n<|im_end|>\n<|im_start|>assistant\nHello.\
         <|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        render(&template, &[system("Be brief."), user("Hi")]),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn qwen25s_template_renders_as_transformers_renders_it() {
    let template = template(include_str!("fixtures/chat-template-qwen2.5.jinja"));
    assert_eq!(
        render(&template, &[user("Hi"), assistant("Hello."), user("Bye")]),
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful \
         assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.\
         <|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        render(
            &template,
            &[
                system("Be brief."),
                user("Hi"),
                system("Still brief."),
                user("Go on")
            ]
        ),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>system\nStill brief.<|im_end|>\n<|im_start|>user\nGo on<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

//! Tests of lists and settings.

use super::*;
use crate::sampling::FIELDS;

#[test]
fn an_arm_is_found_by_parts_of_its_name() {
    let mut story = Story::ready();
    story.press(&["f3"]);
    story.write("UR");
    story.press(&["enter"]);
    assert!(story.app.panel.is_none());
    let (_, body) = story.ask("one");
    assert_eq!(body["model"], "m@urial");
}

#[test]
fn a_key_adds_guidance_to_an_arm_and_takes_it_away() {
    let mut story = Story::ready();
    story.press(&["f3"]);
    story.write("UR");
    story.press(&["alt-g", "enter"]);
    let (_, body) = story.ask("one");
    assert_eq!(body["model"], "m@urial guidance=0.5");
    assert!(story.app.notice.is_none());
    let (request, _) = story.asked();
    story.end(request);
    // It is in the list as long as it is chosen.
    story.press(&["f3", "alt-g", "enter"]);
    let (_, body) = story.ask("two");
    assert_eq!(body["model"], "m@urial");
}

#[test]
fn an_id_with_guidance_can_be_written_out_and_compared() {
    let mut story = Story::ready();
    story.press(&["f2", "f3"]);
    // The chosen arms are marked already.
    story.press(&["down", "tab", "up"]);
    story.write("m@urial guidance=1.5");
    story.press(&["tab", "enter"]);
    story.press(&["f4"]);
    story.write("0.7");
    story.press(&["esc"]);
    let (_, body) = story.ask("one");
    let arms = body["arms"].as_array().unwrap();
    assert_eq!(arms.last().unwrap(), "m@urial guidance=1.5");
    assert_eq!(arms.first().unwrap(), "m");
}

#[test]
fn guidance_is_sent_in_chat_and_is_the_arms_own_in_compare() {
    let mut story = Story::ready();
    let place = FIELDS.iter().position(|field| field.name == "guidance");
    let place = place.expect("it can be set");
    story.press(&["f4"]);
    story.press(&vec!["down"; place]);
    story.write("0.5");
    story.press(&["down", "esc"]);
    let (request, body) = story.ask("one");
    assert_eq!(body["guidance"], 0.5);
    story.end(request);
    story.press(&["f2"]);
    let (_, body) = story.ask("two");
    assert_eq!(body["guidance"], Value::Null);
}

#[test]
fn leaving_the_list_changes_nothing() {
    let mut story = Story::ready();
    story.press(&["f3", "down", "esc"]);
    let (_, body) = story.ask("one");
    assert_eq!(body["model"], "m");
}

#[test]
fn marked_arms_are_compared_in_the_order_of_marking() {
    let mut story = Story::ready();
    story.press(&["f2", "f3", "tab", "tab"]);
    // The chosen arms are marked already.
    story.press(&["down", "tab", "down", "tab"]);
    story.press(&["up", "up", "tab", "tab", "enter"]);
    let (_, body) = story.ask("one");
    assert_eq!(body["arms"], json!(["m@urial", "m"]));
}

#[test]
fn a_fifth_arm_is_not_marked() {
    let mut story = Story::begin();
    story.serve(&["a", "b", "c", "d", "e"]);
    story.press(&["f2", "f3"]);
    story.press(&["down", "down", "tab", "down", "tab", "down", "tab"]);
    assert!(story.notice().contains('4'));
    story.press(&["enter"]);
    assert_eq!(story.app.compare.chosen, ["a", "b", "c", "d"]);
}

#[test]
fn parameters_that_are_set_are_sent_and_kept() {
    let mut story = Story::ready();
    story.press(&["f4"]);
    story.write("0.7");
    story.press(&["down", "down", "down", "down"]);
    story.write("50");
    story.press(&["esc"]);
    let (_, body) = story.ask("one");
    assert_eq!(body["temperature"], 0.7);
    assert_eq!(body["max_tokens"], 50);
    assert!(story.saved().unwrap().head.sampling.summary().is_some());
}

#[test]
fn a_value_that_will_not_do_is_refused_where_it_is_typed() {
    let mut story = Story::ready();
    story.press(&["f4"]);
    story.write("9");
    story.press(&["down"]);
    let Some(Panel::Sampling { at, refused, .. }) = &story.app.panel else {
        panic!("it is open")
    };
    assert_eq!(*at, 0);
    assert!(refused.is_some_and(|why| why.contains("0 to 2")));
}

#[test]
fn a_value_that_will_not_do_is_not_dropped_by_leaving() {
    let mut story = Story::ready();
    story.press(&["f4"]);
    story.write("9");
    for key in ["esc", "f4", "f1", "ctrl-c"] {
        story.press(&[key]);
        let Some(Panel::Sampling { value, refused, .. }) = &story.app.panel else {
            panic!("{key} closed it")
        };
        assert_eq!(value.text(), "9");
        assert!(refused.is_some_and(|why| why.contains("0 to 2")), "{key}");
    }
    story.press(&["backspace", "esc"]);
    assert!(story.app.panel.is_none());
}

#[test]
fn what_is_in_force_is_told_where_nothing_is_set() {
    let mut story = Story::begin();
    let arm = |sampling: Value| Arm {
        id: "m".into(),
        sampling: sampling.as_object().cloned(),
        ..Arm::default()
    };
    let told = |story: &Story| {
        FIELDS[..2]
            .iter()
            .map(|field| story.app.effective_value(field))
            .collect()
    };
    story.happen(Event::Arms(Ok(vec![arm(json!({"temperature": 0.25}))])));
    let all: Vec<String> = told(&story);
    assert_eq!(all, ["0.25 (the arm's own)", "1 (the server's default)"]);
    story.press(&["f2"]);
    let all: Vec<String> = told(&story);
    assert_eq!(all, ["0 (in comparisons)", "1 (in comparisons)"]);
    story.press(&["f2"]);
    story.happen(Event::Arms(Ok(vec![arm(Value::Null)])));
    let all: Vec<String> = told(&story);
    assert_eq!(all, ["left to the server"; 2]);
}

#[test]
fn the_system_message_goes_before_all_others() {
    let mut story = Story::ready();
    story.press(&["f6"]);
    story.write("Be brief.");
    story.press(&["enter"]);
    let (_, body) = story.ask("one");
    let first = json!({"role": "system", "content": "Be brief."});
    assert_eq!(body["messages"][0], first);
}

fn found(sessions: &[Session]) -> Event {
    Event::Sessions(Listing {
        sessions: sessions.to_vec(),
        broken: Vec::new(),
    })
}

#[test]
fn a_comparison_is_found_and_opened_with_its_colours() {
    let mut story = Story::ready();
    story.press(&["f2"]);
    story.comparison();
    let mut compared = story.saved().expect("it is saved").clone();
    let analysis = Box::new(compared.analysis.take().expect("with its tokens"));
    let id = compared.head.id.clone();
    story.exchange_elsewhere();

    story.press(&["f7"]);
    story.happen(found(&[compared]));
    story.write("sure");
    story.press(&["enter"]);
    assert_eq!(story.app.mode, Mode::Compare);
    let loads = Effect::LoadAnalysis { id: id.clone() };
    assert_eq!(story.effects, [loads]);
    let compare = &story.app.compare;
    assert_eq!(compare.question, "one");
    assert_eq!(compare.panes[1].text, "Sure é");
    assert_eq!(compare.chosen, ["m@base", "m"]);
    assert_eq!(compare.panes[1].shift(0, 0), None);

    story.happen(Event::Analysis { id, analysis });
    let pane = &story.app.compare.panes[1];
    assert_eq!(pane.shift(0, 0), Some(Shift::Shifted));
    // The report and another answer to the same question work as before.
    story.press(&["f10"]);
    assert!(matches!(story.effects[..], [Effect::Export(_)]));
    story.press(&["f5"]);
    let (_, body) = story.asked();
    assert_eq!(body["messages"][0]["content"], "one");
}

#[test]
fn a_session_whose_arm_is_no_longer_served_is_shown_and_says_so() {
    let mut story = Story::ready();
    let session = Session {
        head: crate::session::Head {
            arm: Some("gone@urial".into()),
            ..Default::default()
        },
        messages: vec![crate::session::Message::user("one")],
        analysis: None,
    };
    story.press(&["f7"]);
    story.happen(found(&[session]));
    story.press(&["enter"]);
    assert_eq!(story.said(), ["> one"]);
    assert!(
        story.notice().contains("gone@urial; F3"),
        "{}",
        story.notice()
    );
    // The server may know it all the same.
    let (_, body) = story.ask("two");
    assert_eq!(body["model"], "gone@urial");
}

#[test]
fn tokens_of_a_comparison_that_is_no_longer_shown_do_nothing() {
    let mut story = Story::ready();
    story.press(&["f2"]);
    story.comparison();
    let saved = story.saved().expect("it is saved").clone();
    let analysis = Box::new(saved.analysis.expect("with its tokens"));
    story.press(&["ctrl-n"]);
    assert_eq!(story.app.mode, Mode::Compare);
    let id = saved.head.id;
    story.happen(Event::Analysis { id, analysis });
    assert!(story.app.compare.panes.is_empty());
}

#[test]
fn sessions_are_searched_in_all_their_text_and_opened() {
    let mut story = Story::ready();
    story.exchange("about cats", "They purr.");
    let cats = story.app.chat.session.clone();
    story.press(&["ctrl-n"]);
    story.exchange("about dogs", "They bark.");
    let dogs = story.app.chat.session.clone();
    story.press(&["ctrl-o"]);
    assert_eq!(story.effects, [Effect::ListSessions]);
    story.happen(found(&[dogs, cats]));
    story.write("PURR");
    story.press(&["enter"]);
    assert_eq!(story.said(), ["> about cats", "They purr."]);
    let (_, body) = story.ask("more");
    assert_eq!(body["messages"].as_array().unwrap().len(), 3);
}

#[test]
fn a_session_is_named_in_the_list() {
    let mut story = Story::ready();
    story.exchange("one", "1");
    let session = story.app.chat.session.clone();
    let id = session.head.id.clone();
    story.press(&["f7"]);
    story.happen(found(&[session]));
    story.press(&["alt-r", "ctrl-u"]);
    story.write("about cats");
    story.press(&["enter"]);
    let title = "about cats".to_owned();
    assert_eq!(
        story.effects,
        [Effect::Rename { id, title }, Effect::ListSessions]
    );
    assert!(matches!(
        story.app.panel,
        Some(Panel::Sessions { all: None, .. })
    ));
    // An open session keeps its name when it is saved again.
    story.press(&["esc"]);
    story.exchange("two", "2");
    assert_eq!(story.saved().expect("it is saved").title(), "about cats");
}

#[test]
fn a_name_that_is_left_is_not_given() {
    let mut story = Story::ready();
    story.exchange("one", "1");
    let session = story.app.chat.session.clone();
    story.press(&["f7"]);
    story.happen(found(&[session]));
    story.press(&["alt-r"]);
    story.write("x");
    story.press(&["esc"]);
    assert_eq!(story.effects, [Effect::ListSessions]);
}

#[test]
fn a_session_is_deleted_by_pressing_its_key_twice() {
    let mut story = Story::ready();
    story.exchange("about cats", "They purr.");
    let cats = story.app.chat.session.clone();
    story.press(&["ctrl-n"]);
    story.exchange("about dogs", "They bark.");
    let dogs = story.app.chat.session.clone();
    story.press(&["f7"]);
    story.happen(found(&[dogs.clone(), cats.clone()]));
    story.press(&["alt-d"]);
    assert_eq!(story.effects, []);
    assert!(story.notice().contains("about dogs"), "{}", story.notice());
    // The second press must be for the session that was named.
    story.press(&["down", "alt-d"]);
    assert_eq!(story.effects, []);
    story.press(&["alt-d"]);
    let id = cats.head.id;
    assert_eq!(story.effects, [Effect::Delete { id }, Effect::ListSessions]);
    assert_eq!(story.said().len(), 2);
    // The open session is not saved again.
    story.happen(found(std::slice::from_ref(&dogs)));
    story.press(&["up", "alt-d", "alt-d"]);
    assert_eq!(story.said(), Vec::<String>::new());
    assert_ne!(story.app.chat.session.head.id, dogs.head.id);
}

#[test]
fn a_found_session_shows_the_line_that_was_found() {
    let session = Session {
        messages: vec![
            crate::session::Message::user("about cats"),
            crate::session::Message::user(
                "first\n  They Purr.  \npurr\nso many characters behind it",
            ),
        ],
        ..Session::default()
    };
    let line = |text: &str| {
        let mut picker = Picker::default();
        picker.insert(text);
        matching_line(&session, &picker)
    };
    assert_eq!(line("purr").as_deref(), Some("They Purr."));
    assert_eq!(line("CATS purr").as_deref(), Some("They Purr."));
    assert_eq!(line("behind").as_deref(), Some("… characters behind it"));
    assert_eq!(line("cats"), None);
    assert_eq!(line(""), None);
}

#[test]
fn arms_are_found_by_the_language_of_their_profile() {
    let mut story = Story::ready();
    let profile = Profile {
        id: "urial".into(),
        language: "ja".into(),
        title: "日本語".into(),
        ..Profile::default()
    };
    story.happen(Event::Profiles(vec![profile]));
    story.press(&["f3"]);
    story.write("日本語");
    story.press(&["enter"]);
    assert_eq!(story.app.chat.session.head.arm.as_deref(), Some("m@urial"));
}

#[test]
fn sessions_that_arrive_after_the_list_was_left_do_nothing() {
    let mut story = Story::ready();
    story.press(&["ctrl-o", "esc"]);
    story.happen(found(&[]));
    assert!(story.app.panel.is_none());
}

#[test]
fn help_opens_and_closes_with_its_key_and_takes_no_text() {
    let mut story = Story::ready();
    story.press(&["f1"]);
    story.write("x");
    assert!(matches!(story.app.panel, Some(Panel::Help(_))));
    story.press(&["f1"]);
    assert!(story.app.panel.is_none());
    assert_eq!(story.app.input.text(), "");
}

#[test]
fn one_panels_key_opens_it_from_another() {
    let mut story = Story::ready();
    story.press(&["f1", "f4"]);
    assert!(matches!(story.app.panel, Some(Panel::Sampling { .. })));
}

#[test]
fn pasted_lines_go_into_the_question() {
    let mut story = Story::ready();
    story.happen(Event::Paste("a\r\n\tb".into()));
    story.press(&["enter"]);
    let (_, body) = story.asked();
    assert_eq!(body["messages"][0]["content"], "a\n\tb");
}

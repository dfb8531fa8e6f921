//! Tests of chat mode.

use super::*;

#[test]
fn a_question_is_asked_of_the_first_arm_with_all_that_was_said() {
    let mut story = Story::ready();
    story.exchange("one", "1");
    let (_, body) = story.ask("two");
    assert_eq!(body["model"], "m");
    assert_eq!(body["stream"], true);
    let messages = json!([
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "two"},
    ]);
    assert_eq!(body["messages"], messages);
}

#[test]
fn a_parameter_that_is_not_set_is_not_sent() {
    let mut story = Story::ready();
    let (_, body) = story.ask("one");
    assert_eq!(body.get("temperature"), None);
    assert_eq!(body.get("seed"), None);
}

#[test]
fn an_answer_is_saved_with_how_it_came() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    assert_eq!(story.saved().unwrap().messages.len(), 1);
    story.say(request, "a");
    story.say(request, "b");
    story.end(request);
    let saved = story.saved().expect("the answer is saved");
    let answer = &saved.messages[1];
    assert_eq!(answer.content, "ab");
    assert_eq!(answer.arm.as_deref(), Some("m"));
    let stats = answer.stats.unwrap();
    assert_eq!(stats.usage.unwrap().cached_tokens, Some(9));
    assert_eq!(stats.to_first, Some(0.1));
    assert_eq!(stats.per_second, Some(20.0));
}

#[test]
fn the_profile_of_an_answer_is_saved_with_it() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    let chunk = Chunk {
        content: "a".into(),
        profile: Some("urial-ja".into()),
        ..Chunk::default()
    };
    story.happen(Event::Chunk { request, chunk });
    assert_eq!(story.app.answering(), "m (urial-ja)");
    story.end(request);
    let saved = story.saved().expect("the answer is saved");
    assert_eq!(saved.messages[1].profile.as_deref(), Some("urial-ja"));
}

#[test]
fn an_empty_question_is_not_asked() {
    let mut story = Story::ready();
    story.write("  ");
    story.press(&["enter"]);
    assert_eq!(story.effects, []);
}

#[test]
fn a_second_question_waits_until_the_answer_has_ended() {
    let mut story = Story::ready();
    story.ask("one");
    story.write("two");
    story.press(&["enter"]);
    assert_eq!(story.effects, []);
    assert_eq!(story.app.input.text(), "two");
    assert!(story.notice().contains("running"));
}

#[test]
fn a_stopped_answer_keeps_what_was_said_and_hears_no_more() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    story.say(request, "so far");
    story.press(&["esc"]);
    assert_eq!(story.effects[0], Effect::Stop { request });
    let finish = &story.saved().unwrap().messages[1].finish;
    assert_eq!(finish.as_deref(), Some("stopped"));
    story.say(request, " and more");
    assert_eq!(story.said(), ["> one", "so far"]);
    assert!(!story.app.is_busy());
}

#[test]
fn an_answer_stopped_before_it_began_leaves_the_question_to_be_asked_again() {
    let mut story = Story::ready();
    story.ask("one");
    story.press(&["esc"]);
    assert_eq!(story.said(), ["> one"]);
    story.press(&["f5"]);
    let (_, body) = story.asked();
    assert_eq!(
        body["messages"],
        json!([{"role": "user", "content": "one"}])
    );
}

#[test]
fn a_servers_error_is_shown_as_it_is() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    story.fail(request, 400, "`temperature` must be 0 to 2.");
    let error = story.app.chat.error.as_ref().unwrap();
    assert_eq!(error.to_string(), "400: `temperature` must be 0 to 2.");
    assert_eq!(story.said(), ["> one"]);
}

#[test]
fn a_selected_answer_that_never_began_is_no_longer_selected() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    story.press(&["alt-up"]);
    story.fail(request, 500, "out of memory");
    story.press(&["alt-e"]);
    assert_eq!(story.app.input.text(), "one");
}

#[test]
fn an_answer_that_breaks_off_keeps_what_was_said() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    story.say(request, "half");
    story.fail(request, 500, "out of memory");
    assert_eq!(story.said(), ["> one", "half"]);
    assert!(story.app.chat.error.is_some());
}

#[test]
fn regenerating_replaces_the_answer() {
    let mut story = Story::ready();
    story.exchange("one", "bad");
    story.press(&["ctrl-r"]);
    let (request, body) = story.asked();
    assert_eq!(body["messages"].as_array().unwrap().len(), 1);
    story.say(request, "good");
    story.end(request);
    assert_eq!(story.said(), ["> one", "good"]);
}

#[test]
fn all_answers_to_a_question_are_kept_and_paged_through() {
    let mut story = Story::ready();
    story.exchange("one", "a");
    for text in ["b", "c"] {
        story.press(&["f5"]);
        let (request, _) = story.asked();
        story.say(request, text);
        story.end(request);
    }
    assert_eq!(story.said(), ["> one", "c"]);
    story.press(&["alt-,", "alt-,"]);
    assert_eq!(story.said(), ["> one", "a"]);
    let saved = &story.saved().expect("the choice is saved").messages[1];
    assert_eq!((saved.variant, saved.variants.len()), (0, 2));
    // Later messages continue from the answer that is shown.
    story.press(&["alt-.", "alt-.", "alt-.", "alt-,"]);
    let (_, body) = story.ask("two");
    assert_eq!(body["messages"][1]["content"], "b");
    assert_eq!(body["messages"].as_array().unwrap().len(), 3);
}

#[test]
fn without_another_answer_there_is_nothing_to_page_through() {
    let mut story = Story::ready();
    story.exchange("one", "a");
    story.press(&["alt-,"]);
    assert_eq!(story.said(), ["> one", "a"]);
    assert!(story.notice().contains("F5"), "{}", story.notice());
}

#[test]
fn an_answer_is_asked_for_again_so_that_it_can_be_another() {
    let set = |story: &mut Story, field: usize, value: &str| {
        let sampling = &mut story.app.chat.session.head.sampling;
        sampling
            .set(&crate::sampling::FIELDS[field], value)
            .unwrap();
    };
    let again = |prepare: &dyn Fn(&mut Story)| {
        let mut story = Story::ready();
        prepare(&mut story);
        story.exchange("one", "a");
        story.press(&["f5"]);
        let (_, body) = story.asked();
        let asked = (body["temperature"].clone(), body["seed"].clone());
        (asked, !story.notice().is_empty())
    };
    // At temperature 0, set or the arm's own, and if it is unknown.
    let sampled = ((json!(0.7), Value::Null), true);
    assert_eq!(again(&|story| set(story, 0, "0")), sampled);
    assert_eq!(again(&|_| {}), sampled);
    let own = |temperature: Value| {
        move |story: &mut Story| {
            let arm = Arm {
                id: "m".into(),
                sampling: json!({"temperature": temperature}).as_object().cloned(),
                ..Arm::default()
            };
            story.happen(Event::Arms(Ok(vec![arm])));
        }
    };
    assert_eq!(again(&own(json!(0.0))), sampled);
    // If answers differ by themselves nothing is changed.
    assert_eq!(again(&own(json!(0.5))), ((Value::Null, Value::Null), false));
    assert_eq!(
        again(&|story| set(story, 0, "0.3")),
        ((json!(0.3), Value::Null), false)
    );
    let seeded = again(&|story| {
        set(story, 0, "0.3");
        set(story, 5, "7");
    });
    assert_eq!(seeded, ((json!(0.3), json!(8)), true));
}

#[test]
fn an_answer_that_broke_off_is_asked_for_as_before_and_not_kept() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    story.say(request, "half");
    story.fail(request, 500, "out of memory");
    story.press(&["f5"]);
    let (request, body) = story.asked();
    assert_eq!(body.get("temperature"), None);
    story.say(request, "whole");
    story.end(request);
    let answer = &story.saved().expect("it is saved").messages[1];
    assert_eq!(
        (answer.content.as_str(), answer.variants.len()),
        ("whole", 0)
    );
}

#[test]
fn a_regeneration_that_fails_brings_the_old_answer_back() {
    let mut story = Story::ready();
    story.exchange("one", "old");
    story.press(&["f5"]);
    let (request, _) = story.asked();
    story.fail(request, 429, "busy");
    assert_eq!(story.said(), ["> one", "old"]);
}

#[test]
fn an_edited_question_forgets_what_came_after_but_not_on_disk() {
    let mut story = Story::ready();
    story.exchange("one", "1");
    story.exchange("two", "2");
    let before = story.app.chat.session.head.id.clone();
    story.press(&["alt-up", "alt-up", "alt-up", "alt-e"]);
    assert_eq!(story.app.input.text(), "one");
    assert_eq!(story.app.chat.editing, Some(0));
    let (_, body) = story.ask("!");
    assert_eq!(
        body["messages"],
        json!([{"role": "user", "content": "one!"}])
    );
    assert_ne!(story.saved().unwrap().head.id, before);
    assert!(
        story.notice().contains("stays saved (F7)"),
        "{}",
        story.notice()
    );
}

#[test]
fn escape_ends_editing_and_clears_the_input() {
    let mut story = Story::ready();
    story.exchange("one", "1");
    story.press(&["alt-e", "esc"]);
    assert_eq!(story.app.input.text(), "");
    assert_eq!(story.app.chat.editing, None);
    story.ask("two");
    assert_eq!(story.said(), ["> one", "1", "> two", ""]);
}

#[test]
fn the_selected_message_is_copied_else_the_last_answer() {
    let mut story = Story::ready();
    story.exchange("one", "**1**");
    story.press(&["ctrl-y"]);
    assert_eq!(story.effects, [Effect::Copy("**1**".into())]);
    story.press(&["alt-up", "alt-up", "ctrl-y"]);
    assert_eq!(story.effects, [Effect::Copy("one".into())]);
}

#[test]
fn the_whole_session_is_copied_as_markdown() {
    let mut story = Story::ready();
    story.exchange("one", "# 1\n");
    story.press(&["alt-y"]);
    let copied = "**You**\n\none\n\n**m**\n\n# 1\n\n".to_owned();
    assert_eq!(story.effects, [Effect::Copy(copied)]);
}

#[test]
fn questions_come_back_from_history() {
    let mut story = Story::with(Start {
        history: vec!["long ago".into()],
        ..Start::default()
    });
    story.serve(&["m"]);
    story.exchange("one", "1");
    story.press(&["up", "up"]);
    assert_eq!(story.app.input.text(), "long ago");
    story.press(&["down"]);
    assert_eq!(story.app.input.text(), "one");
}

#[test]
fn a_question_waits_for_a_server_that_is_still_loading() {
    let mut story = Story::with(Start {
        question: Some("one".into()),
        ..Start::default()
    });
    let loading = Failure::answered(503, r#"{"error": {"message": "loading"}}"#);
    story.happen(Event::Arms(Err(loading)));
    assert!(matches!(story.effects[0], Effect::FetchArms { after } if !after.is_zero()));
    assert_eq!(story.app.arms, Arms::Waiting(Some("loading".into())));
    story.serve(&["m"]);
    let (_, body) = story.asked();
    assert_eq!(body["messages"][0]["content"], "one");
}

#[test]
fn a_question_is_not_lost_when_there_is_no_server() {
    let mut story = Story::begin();
    story.happen(Event::Arms(Err(Failure::local("refused"))));
    story.write("one");
    story.press(&["enter"]);
    assert!(matches!(story.effects[..], [.., Effect::FetchArms { .. }]));
    // Text typed in the meantime is not lost either.
    story.write("two");
    story.happen(Event::Arms(Err(Failure::local("cannot reach x: refused"))));
    assert_eq!(story.app.input.text(), "one\ntwo");
    let notice = story.app.notice.as_ref().expect("it is told");
    assert!(notice.is_error && notice.text.starts_with("cannot reach x: refused"));
    assert!(notice.text.contains("Enter tries again"), "{}", notice.text);
}

#[test]
fn an_arm_that_is_not_served_is_told_at_once() {
    let mut story = Story::with(Start {
        arm: Some("gone".into()),
        ..Start::default()
    });
    story.serve(&["m"]);
    assert!(story.notice().contains("gone"), "{}", story.notice());
}

#[test]
fn what_went_wrong_before_stays_on_the_screen_until_a_key_does_something() {
    let mut story = Story::with(Start {
        error: Some("the default keys are used".into()),
        ..Start::default()
    });
    story.serve(&["m"]);
    story.write("one");
    assert_eq!(story.notice(), "the default keys are used");
    story.press(&["enter"]);
    assert_eq!(story.notice(), "");
}

#[test]
fn ctrl_c_stops_then_clears_then_quits() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    story.write("draft");
    story.press(&["ctrl-c"]);
    assert_eq!(story.effects, [Effect::Stop { request }]);
    story.press(&["ctrl-c"]);
    assert_eq!(story.app.input.text(), "");
    story.press(&["ctrl-c"]);
    assert_eq!(story.effects, [Effect::Quit]);
}

#[test]
fn ctrl_d_deletes_to_the_right_and_quits_where_nothing_is_written() {
    let mut story = Story::ready();
    story.write("ab");
    story.press(&["home", "ctrl-d"]);
    assert_eq!(story.app.input.text(), "b");
    story.press(&["ctrl-d"]);
    assert_eq!((story.app.input.text(), &story.effects[..]), ("", &[][..]));
    story.press(&["delete", "f7", "ctrl-d"]);
    assert!(!story.effects.contains(&Effect::Quit));
    story.press(&["esc", "ctrl-d"]);
    assert_eq!(story.effects, [Effect::Quit]);
}

#[test]
fn whoever_quits_while_an_answer_runs_keeps_what_was_said() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    story.say(request, "half");
    story.press(&["ctrl-q"]);
    assert_eq!(story.saved().unwrap().messages[1].content, "half");
    assert_eq!(story.effects.last(), Some(&Effect::Quit));
}

#[test]
fn a_new_session_has_another_name_and_the_same_settings() {
    let mut story = Story::ready();
    story.exchange("one", "1");
    let before = story.app.chat.session.head.clone();
    story.press(&["ctrl-n"]);
    let after = &story.app.chat.session.head;
    assert_ne!(after.id, before.id);
    assert_eq!(after.arm, before.arm);
    assert_eq!(story.said(), Vec::<String>::new());
    assert_eq!(story.notice(), "a new session, with m as before");
    story.press(&["f6"]);
    story.write("Be brief.");
    story.press(&["enter", "f4"]);
    story.write("0.5");
    story.press(&["esc", "ctrl-n"]);
    let kept = "a new session, with m, the system message, temperature 0.5 as before";
    assert_eq!(story.notice(), kept);
}

#[test]
fn the_profile_that_will_answer_is_known_before_it_does() {
    let mut story = Story::ready();
    let profile = |id: &str, default_for: &[&str]| Profile {
        id: id.into(),
        default_for: default_for
            .iter()
            .map(|model| (*model).to_owned())
            .collect(),
        ..Profile::default()
    };
    let profiles = vec![profile("urial", &[]), profile("assistant", &["m"])];
    story.happen(Event::Profiles(profiles));
    assert_eq!(story.app.answering(), "m (assistant)");
    let named = |id: &str| story.app.profile(id).map(|profile| profile.id.as_str());
    assert_eq!(named("m@urial guidance=1"), Some("urial"));
    assert_eq!(named("m@base"), None);
    assert_eq!(named("other"), None);
}

#[test]
fn the_context_is_asked_for_once_where_the_list_does_not_say_it() {
    let mut story = Story::ready();
    let asked = Effect::FetchContext { arm: "m".into() };
    assert_eq!(story.effects, [asked]);
    let (arm, tokens) = ("m".to_owned(), Some(100));
    story.happen(Event::Context { arm, tokens });
    assert_eq!(story.app.chat.context(), Some(100));
    story.serve(&["m"]);
    assert_eq!(story.effects, []);
}

#[test]
fn what_was_scrolled_back_to_stays_while_the_answer_goes_on() {
    let mut story = Story::ready();
    let (request, _) = story.ask("one");
    let rows = |rows| Measures {
        chat: Extent { rows, height: 10 },
        ..Measures::default()
    };
    story.happen(Event::Measured(rows(100)));
    story.press(&["pageup"]);
    let scroll = story.app.chat.scroll;
    story.say(request, "more");
    story.happen(Event::Measured(rows(200)));
    assert_eq!(story.app.chat.scroll.top(rows(200).chat), 81);
    assert_eq!(story.app.chat.scroll, scroll);
    story.press(&["ctrl-end"]);
    assert_eq!(story.app.chat.scroll, Scroll::Follow);
}

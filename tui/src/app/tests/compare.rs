//! Tests of compare mode.

use super::*;

/// In compare mode, with an arm that was trained to chat.
fn ready() -> Story {
    let mut story = Story::begin();
    story.serve(&["m", "m@base", "m@urial", "other", "other-instruct"]);
    story.press(&["f2"]);
    story
}

fn token(text: &str, scores: Value) -> Value {
    json!({
        "id": 1, "token": text, "bytes": text.as_bytes(), "logprob": -0.5, "rank": 1,
        "top_logprobs": [{"token": text, "logprob": -0.5}], "scores": scores,
    })
}

fn score(arm: usize, rank: u64) -> Value {
    json!([{"arm": arm, "logprob": -2.0, "rank": rank, "kl": 0.5, "top_logprobs": []}])
}

impl Story {
    fn compare(&mut self, request: u64, event: Value) {
        let chunk = crate::wire::compare_chunk(&event.to_string()).unwrap();
        self.happen(Event::CompareChunk { request, chunk });
    }

    /// A complete comparison of two arms.
    pub(super) fn comparison(&mut self) -> u64 {
        let (request, _) = self.ask("one");
        let settings = json!({"reference": 0, "temperature": [0.0]});
        self.compare(
            request,
            json!({"begin": {"arms": [{}, {}], "settings": settings}}),
        );
        for (arm, text) in [(0, "Yes"), (1, "Sure é")] {
            self.compare(request, json!({"delta": {"arm": arm, "content": text}}));
        }
        let tokens = [token("Yes", score(1, 1))];
        self.compare(request, json!({"tokens": {"arm": 0, "tokens": tokens}}));
        let tokens = [token("Sure", score(0, 9)), token(" é", score(0, 2))];
        self.compare(request, json!({"tokens": {"arm": 1, "tokens": tokens}}));
        for arm in [0, 1] {
            let usage = json!({"prompt_tokens": 4, "completion_tokens": 2});
            let end = json!({"arm": arm, "finish_reason": "stop", "usage": usage});
            self.compare(request, json!({"end": end}));
        }
        self.compare(request, json!({"summary": {"pairs": [], "removed": []}}));
        let result = Ok(());
        self.happen(Event::Ended { request, result });
        request
    }
}

#[test]
fn the_base_the_model_as_it_chats_and_a_tuned_one_are_compared_unless_others_are_chosen() {
    let mut story = ready();
    let (_, body) = story.ask("one");
    assert_eq!(body["arms"], json!(["m@base", "m", "other-instruct"]));
    assert_eq!(body["analysis"], true);
    assert_eq!(
        body["messages"],
        json!([{"role": "user", "content": "one"}])
    );
    assert!(body["seed"].is_u64());
}

#[test]
fn an_arm_under_an_adapter_is_the_tuned_one() {
    let mut story = Story::begin();
    story.serve(&["m", "m+lora", "m@base", "m@urial", "other-instruct"]);
    assert_eq!(story.app.compare.chosen, ["m@base", "m", "m+lora"]);
}

#[test]
fn a_set_seed_is_the_seed_of_all() {
    let mut story = ready();
    let sampling = &mut story.app.chat.session.head.sampling;
    sampling.set(&crate::sampling::FIELDS[5], "7").unwrap();
    let (_, body) = story.ask("one");
    assert_eq!(body["seed"], 7);
}

#[test]
fn tokens_know_their_place_and_their_shift() {
    let mut story = ready();
    story.comparison();
    let pane = &story.app.compare.panes[1];
    assert_eq!([pane.place(0), pane.place(1)], [0..4, 4..7]);
    assert_eq!(pane.tokens_within(&(0..4)), 0..1);
    assert_eq!(pane.tokens_within(&(3..5)), 0..2);
    assert_eq!(pane.tokens_within(&(4..7)), 1..2);
    assert_eq!(pane.shift(0, 0), Some(Shift::Shifted));
    assert_eq!(pane.shift(1, 0), Some(Shift::Marginal));
    assert_eq!(pane.shares(0), Some([0.0, 0.5, 0.5]));
}

#[test]
fn parts_of_a_character_do_not_cut_it() {
    let mut story = ready();
    let (request, _) = story.ask("one");
    story.compare(request, json!({"delta": {"arm": 0, "content": "日本"}}));
    let bytes = "日本".as_bytes();
    let parts = [&bytes[..2], &bytes[2..3], &bytes[3..]].map(|bytes| {
        let mut part = token("", json!([]));
        part["bytes"] = json!(bytes);
        part
    });
    story.compare(request, json!({"tokens": {"arm": 0, "tokens": parts}}));
    let pane = &story.app.compare.panes[0];
    let places = [0, 1, 2].map(|token| pane.place(token));
    assert_eq!(places, [0..3, 3..3, 3..6]);
}

#[test]
fn tab_goes_through_the_panes_and_back_to_the_input() {
    let mut story = ready();
    story.comparison();
    story.press(&["tab", "tab"]);
    assert_eq!(story.app.compare.focus, Some(1));
    story.press(&["right", "right", "right"]);
    assert_eq!(story.app.compare.panes[1].cursor, 1);
    story.press(&["left"]);
    assert_eq!(story.app.compare.panes[1].cursor, 0);
    story.press(&["backtab", "backtab"]);
    assert_eq!(story.app.compare.focus, None);
}

#[test]
fn who_writes_in_a_pane_writes_in_the_input() {
    let mut story = ready();
    story.comparison();
    story.press(&["tab"]);
    story.write("x");
    assert_eq!(story.app.compare.focus, None);
    assert_eq!(story.app.input.text(), "x");
}

#[test]
fn a_promoted_answer_goes_on_in_chat_with_its_arm() {
    let mut story = ready();
    story.comparison();
    story.press(&["tab", "tab", "f9"]);
    assert_eq!(story.app.mode, Mode::Chat);
    assert_eq!(story.said(), ["> one", "Sure é"]);
    assert!(story.saved().is_some());
    let (_, body) = story.ask("two");
    assert_eq!(body["model"], "m");
    assert_eq!(body["messages"].as_array().unwrap().len(), 3);
}

#[test]
fn a_complete_comparison_is_exported_as_a_report() {
    let mut story = ready();
    let (request, _) = story.ask("zero");
    story.press(&["f10"]);
    assert_eq!(story.effects, []);
    story.fail(request, 500, "x");
    story.comparison();
    story.press(&["f10"]);
    let [Effect::Export(report)] = &story.effects[..] else {
        panic!("{:?}", story.effects)
    };
    assert_eq!(report["format"], 1);
    let answers = &report["prompts"][0]["answers"];
    assert_eq!(answers[1]["text"], "Sure é");
    assert_eq!(answers[1]["tokens"][0]["scores"][0]["rank"], 9);
    assert_eq!(report["prompts"][0]["messages"][0]["content"], "one");
}

#[test]
fn what_is_complete_of_a_stopped_comparison_is_exported() {
    let mut story = ready();
    let (request, _) = story.ask("one");
    let settings = json!({"reference": 0, "temperature": [0.0]});
    story.compare(
        request,
        json!({"begin": {"arms": [{}, {}, {}], "settings": settings}}),
    );
    story.compare(request, json!({"delta": {"arm": 0, "content": "half"}}));
    story.compare(request, json!({"delta": {"arm": 1, "content": "Yes"}}));
    let end = json!({"arm": 1, "finish_reason": "stop", "usage": {}});
    story.compare(request, json!({"end": end}));
    assert!(!story.app.compare.is_exportable());
    story.press(&["esc", "f10"]);
    let [Effect::Export(report)] = &story.effects[..] else {
        panic!("{:?}", story.effects)
    };
    let answers = report["prompts"][0]["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 1);
    assert_eq!(
        (&answers[0]["arm"], &answers[0]["text"]),
        (&json!(1), &json!("Yes"))
    );
    assert_eq!(report["summary"], Value::Null);
}

#[test]
fn asking_again_at_temperature_0_says_that_nothing_will_change() {
    let mut story = ready();
    story.comparison();
    story.press(&["f5"]);
    assert!(story.notice().contains("F4"), "{}", story.notice());
}

#[test]
fn a_server_that_cannot_compare_is_asked_for_each_arm_alone() {
    let mut story = ready();
    let (request, together) = story.ask("one");
    story.fail(request, 404, "File Not Found");
    let asked: Vec<_> = story.effects.clone();
    assert_eq!(asked.len(), 3);
    let mut seeds = Vec::new();
    for effect in &asked {
        let Effect::Chat { body, .. } = effect else {
            panic!("{effect:?}")
        };
        assert_eq!(body["temperature"], 0.0);
        seeds.push(body["seed"].clone());
    }
    assert_eq!(seeds, vec![together["seed"].clone(); 3]);
    assert!(story.notice().contains("no shift"), "{}", story.notice());
    let Effect::Chat { request, .. } = asked[1] else {
        unreachable!("all of them were chats")
    };
    story.say(request, "hello");
    story.end(request);
    assert_eq!(story.app.compare.panes[1].text, "hello");
    story.press(&["ctrl-s"]);
    assert!(story.notice().contains("/v1/compare"), "{}", story.notice());
}

#[test]
fn an_unknown_arm_is_an_error_and_no_missing_endpoint() {
    let mut story = ready();
    let (request, _) = story.ask("one");
    let body = json!({"error": {"message": "no x", "code": "model_not_found"}});
    let result = Err(Failure::answered(404, &body.to_string()));
    story.happen(Event::Ended { request, result });
    assert_eq!(story.effects, []);
    assert!(story.app.compare.error.is_some());
}

#[test]
fn stopping_stops_every_pane() {
    let mut story = ready();
    story.app.compares = false;
    story.ask("one");
    story.press(&["esc"]);
    let stops = story.effects.iter();
    let stops = stops.filter(|effect| matches!(effect, Effect::Stop { .. }));
    assert_eq!(stops.count(), 3);
    assert!(!story.app.is_busy());
    let finish = &story.app.compare.panes[2].finish;
    assert_eq!(finish.as_deref(), Some("stopped"));
}

#[test]
fn a_comparison_is_saved_when_it_has_ended_or_was_stopped() {
    let mut story = ready();
    let (request, _) = story.ask("one");
    assert_eq!(story.saved(), None);
    story.compare(request, json!({"delta": {"arm": 1, "content": "half"}}));
    story.press(&["esc"]);
    let saved = story.saved().expect("something was said");
    assert_eq!(saved.title(), "one");
    let answer = &saved.messages[2];
    assert_eq!(answer.content, "half");
    assert_eq!(answer.finish.as_deref(), Some("stopped"));
    let stopped = saved.head.id.clone();
    story.comparison();
    assert_ne!(story.saved().expect("it has ended").head.id, stopped);
}

#[test]
fn a_comparison_in_which_nothing_was_said_is_not_saved() {
    let mut story = ready();
    let (request, _) = story.ask("one");
    story.fail(request, 500, "out of memory");
    assert_eq!(story.saved(), None);
}

#[test]
fn arms_that_were_asked_alone_are_saved_together_with_their_probabilities() {
    let mut story = ready();
    story.app.compares = false;
    story.app.compare.chosen.truncate(2);
    story.ask("one");
    let requests: Vec<u64> = story
        .app
        .compare
        .panes
        .iter()
        .filter_map(|pane| pane.request)
        .collect();
    let chunk = Chunk {
        content: "Yes".into(),
        tokens: vec![token("Yes", json!([]))],
        ..Chunk::default()
    };
    for request in &requests {
        let (request, chunk) = (*request, chunk.clone());
        story.happen(Event::Chunk { request, chunk });
    }
    story.end(requests[0]);
    assert_eq!(story.saved(), None);
    story.end(requests[1]);
    let analysis = story.saved().expect("all have ended").analysis.as_ref();
    let answers = &analysis.expect("with its tokens").answers;
    assert_eq!(answers[1].tokens[0]["logprob"], -0.5);
}

#[test]
fn a_comparison_of_another_server_is_shown_as_it_was_and_asked_as_this_one_can() {
    let mut story = ready();
    story.app.compares = false;
    story.ask("one");
    let (request, _) = story.asked();
    story.say(request, "Yes");
    story.press(&["esc"]);
    let session = story.saved().expect("something was said").clone();

    let mut story = ready();
    story.press(&["f7"]);
    let sessions = vec![session];
    story.happen(Event::Sessions(Listing {
        sessions,
        ..Listing::default()
    }));
    story.press(&["enter"]);
    assert!(story.app.compare.separate_requests);
    assert_eq!(story.app.compare.colours, Colours::Probability);
    story.press(&["f5"]);
    assert!(matches!(story.effects[..], [Effect::Compare { .. }]));
}

#[test]
fn colours_go_round() {
    let mut story = ready();
    let mut seen = Vec::new();
    for _ in 0..3 {
        story.press(&["f8"]);
        seen.push(story.app.compare.colours);
    }
    assert_eq!(seen, [Colours::Probability, Colours::None, Colours::Shift]);
}

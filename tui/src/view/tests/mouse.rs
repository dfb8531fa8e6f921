//! Mouse actions on drawn content.

use ratatui::layout::Position;

use super::*;
use crate::app::{Effect, Panel, Pointer};
use crate::session::{Head, Listing, Session};

impl Scene {
    /// A mouse action at the place of a text on the screen.
    fn point(&mut self, what: Pointer, text: &str) {
        let screen = self.screen();
        let found = screen.lines().enumerate().find_map(|(row, line)| {
            let column = line.find(text)?;
            Some((Span::raw(&line[..column]).width(), row))
        });
        let (column, row) = found.unwrap_or_else(|| panic!("no {text}:\n{screen}"));
        let at = Position::new(column as u16, row as u16);
        self.happen(Event::Mouse { what, at });
    }

    fn click(&mut self, text: &str) {
        self.point(Pointer::Click, text);
    }
}

#[test]
fn the_wheel_scrolls_the_conversation_and_reaching_its_end_follows_it() {
    let mut scene = Scene::new(80, 20);
    for number in 0..30 {
        scene.exchange(&format!("Question {number}"), ANSWER);
    }
    let end = scene.screen();
    for _ in 0..3 {
        scene.point(Pointer::WheelUp, "▍");
    }
    let above = scene.screen();
    assert_ne!(above, end);
    assert!(above.contains("Question 29"), "{above}");
    for _ in 0..3 {
        scene.point(Pointer::WheelDown, "▍");
    }
    assert_eq!(scene.screen(), end);
}

#[test]
fn the_wheel_scrolls_the_pane_under_the_pointer_alone() {
    let mut scene = Scene::new(80, 24);
    compared(&mut scene);
    let long = "\n\nmore".repeat(30);
    scene.compare(&[
        json!({"delta": {"arm": 0, "content": format!("{long} the end")}}),
        json!({"delta": {"arm": 1, "content": format!("{long} the end")}}),
    ]);
    for _ in 0..60 {
        scene.point(Pointer::WheelUp, "╮╭");
    }
    let screen = scene.screen();
    assert!(screen.contains("The capital"), "{screen}");
    assert!(!screen.contains("It is Paris"), "{screen}");
    assert!(screen.contains("the end"), "{screen}");
}

#[test]
fn a_pane_that_keys_go_to_scrolls_away_from_its_token_and_comes_back_to_it() {
    let mut scene = Scene::new(80, 24);
    compared(&mut scene);
    let long = "\n\nmore".repeat(30);
    scene.compare(&[json!({"delta": {"arm": 1, "content": format!("{long} the end")}})]);
    scene.press(&["tab", "tab"]);
    let screen = scene.screen();
    assert!(screen.contains("It is Paris"), "{screen}");
    scene.press(&["pagedown"]);
    let screen = scene.screen();
    assert!(!screen.contains("It is Paris"), "{screen}");
    scene.press(&["right"]);
    let screen = scene.screen();
    assert!(screen.contains("It is Paris"), "{screen}");
    assert!(screen.contains("token 2 of 3"), "{screen}");
}

#[test]
fn a_click_looks_at_the_token_under_it() {
    let mut scene = Scene::new(80, 24);
    compared(&mut scene);
    scene.click("Paris.");
    assert_eq!(scene.app.compare.focus, Some(1));
    let screen = scene.screen();
    assert!(screen.contains("token 3 of 3"), "{screen}");
    scene.click("ask all of them");
    scene.click("ask all of them");
    assert_eq!(scene.app.compare.focus, Some(1));
}

#[test]
fn up_and_down_go_to_the_token_above_and_below() {
    let mut scene = Scene::new(80, 24);
    compared(&mut scene);
    let line = |text: &str| json!({"token": text, "bytes": text.as_bytes(), "logprob": -0.5});
    scene.compare(&[
        json!({"delta": {"arm": 1, "content": "\n\nYes. No."}}),
        json!({"tokens": {"arm": 1, "tokens": [
            line(". "), line("\n\n"), line("Yes"), line(". "), line("No."),
        ]}}),
    ]);
    scene.press(&["tab", "tab", "right"]);
    scene.screen();
    scene.press(&["down"]);
    assert_eq!(scene.app.compare.panes[1].cursor, 5);
    scene.press(&["down"]);
    assert_eq!(scene.app.compare.panes[1].cursor, 5);
    scene.press(&["up"]);
    assert_eq!(scene.app.compare.panes[1].cursor, 0);
}

#[test]
fn a_click_puts_the_cursor_into_the_text_that_is_written() {
    let mut scene = Scene::new(80, 24);
    scene.write("one three");
    scene.click("three");
    scene.write("two ");
    assert_eq!(scene.app.input.text(), "one two three");
}

#[test]
fn a_click_on_a_message_selects_it_and_another_lets_go_of_it() {
    let mut scene = Scene::new(80, 24);
    scene.exchange("One?", "1");
    scene.exchange("Two?", "2");
    scene.click("Two?");
    assert_eq!(scene.app.chat.selected, Some(2));
    scene.click("Two?");
    assert_eq!(scene.app.chat.selected, None);
}

#[test]
fn clicks_go_to_modes_and_do_what_is_offered() {
    let mut scene = Scene::new(80, 24);
    scene.click(" Compare ");
    assert_eq!(scene.app.mode, Mode::Compare);
    scene.click(" Chat ");
    assert_eq!(scene.app.mode, Mode::Chat);
    scene.click("F4 sampling");
    assert!(matches!(scene.app.panel, Some(Panel::Sampling { .. })));
    scene.click("seed");
    scene.write("7");
    scene.click("Esc done");
    assert!(scene.app.panel.is_none());
    assert_eq!(scene.app.chat.session.head.sampling.seed(), Some(7));
}

#[test]
fn a_click_chooses_an_arm_and_nothing_behind_the_list() {
    let mut scene = Scene::new(80, 24);
    scene.press(&["f3"]);
    scene.click("search");
    assert!(scene.app.panel.is_some());
    scene.click("gemma-3-270m@base");
    assert!(scene.app.panel.is_none());
    let arm = scene.app.chat.session.head.arm.as_deref();
    assert_eq!(arm, Some("gemma-3-270m@base"));
}

#[test]
fn clicks_mark_the_arms_to_compare() {
    let mut scene = Scene::new(80, 24);
    scene.press(&["f2", "f3"]);
    scene.click("gemma-3-270m@instruct");
    scene.click("Enter done");
    let chosen = &scene.app.compare.chosen;
    assert!(
        chosen.iter().any(|arm| arm == "gemma-3-270m@instruct"),
        "{chosen:?}"
    );
}

#[test]
fn a_click_opens_a_saved_session_that_the_wheel_has_come_to() {
    let mut scene = Scene::new(80, 24);
    let session = |number: usize| Session {
        head: Head {
            id: number.to_string(),
            ..Head::default()
        },
        messages: vec![Message::user(format!("question {number}"))],
        analysis: None,
    };
    scene.press(&["f7"]);
    scene.happen(Event::Sessions(Listing {
        sessions: (0..50).map(session).collect(),
        broken: Vec::new(),
    }));
    for _ in 0..40 {
        scene.point(Pointer::WheelDown, "question");
    }
    scene.click("question 30");
    assert_eq!(scene.app.chat.session.head.id, "30");
}

#[test]
fn the_mouse_can_be_left_to_the_terminal_and_taken_back() {
    let mut scene = Scene::new(80, 24);
    let mut press = || {
        let key = Key::parse("f12").expect("a key");
        let effects = scene.app.handle(Event::Key(key), Now::default());
        (effects, scene.screen())
    };
    let (effects, screen) = press();
    assert_eq!(effects, [Effect::Mouse(false)]);
    assert!(screen.contains("F12 takes it back"), "{screen}");
    assert_eq!(press().0, [Effect::Mouse(true)]);
}

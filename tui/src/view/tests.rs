//! Snapshots of the screen.

mod any;
mod mouse;
mod small;

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier};
use serde_json::json;

use super::*;
use crate::app::{Event, Now, Start};
use crate::keymap::ENTRIES;
use crate::keymap::{Key, Keymap};
use crate::session::{Message, Stats};
use crate::wire::{Arm, Failure, Usage, compare_chunk};

/// A program and a screen.
struct Scene {
    app: App,
    view: View,
    terminal: Terminal<TestBackend>,
    request: u64,
}

impl Scene {
    fn new(width: u16, height: u16) -> Scene {
        let (app, _) = App::new(Keymap::default(), Start::default(), Now::default());
        let mut scene = Scene {
            app,
            view: View::default(),
            terminal: Terminal::new(TestBackend::new(width, height)).unwrap(),
            request: 0,
        };
        let arm = |profile: &str| Arm {
            id: format!("gemma-3-270m@{profile}"),
            root: Some("gemma-3-270m".into()),
            profile: Some(profile.into()),
            context: Some(32768),
            ..Arm::default()
        };
        let arms = ["urial", "base", "instruct"].map(arm).to_vec();
        scene.happen(Event::Arms(Ok(arms)));
        scene
    }

    fn happen(&mut self, event: Event) {
        let clock = Duration::from_millis(500);
        let now = Now { clock, unix: clock };
        for effect in self.app.handle(event, now) {
            if let crate::app::Effect::Chat { request, .. }
            | crate::app::Effect::Compare { request, .. } = effect
            {
                self.request = request;
            }
        }
    }

    fn press(&mut self, keys: &[&str]) {
        for key in keys {
            let key = Key::parse(key).expect("a key");
            self.happen(Event::Key(key));
        }
    }

    fn write(&mut self, text: &str) {
        self.happen(Event::Paste(text.into()));
    }

    fn ask(&mut self, text: &str) {
        self.write(text);
        self.press(&["enter"]);
    }

    /// A complete answer, with round numbers.
    fn exchange(&mut self, question: &str, answer: &str) {
        let messages = &mut self.app.chat.session.messages;
        messages.push(Message::user(question));
        messages.push(Message {
            content: answer.into(),
            finish: Some("stop".into()),
            stats: Some(Stats {
                to_first: Some(0.25),
                per_second: Some(40.0),
                usage: Some(Usage {
                    prompt_tokens: 800,
                    completion_tokens: 41,
                    cached_tokens: Some(752),
                }),
            }),
            ..Message::answer(Some("gemma-3-270m@urial".into()))
        });
    }

    fn compare(&mut self, events: &[serde_json::Value]) {
        let request = self.request;
        for event in events {
            let chunk = compare_chunk(&event.to_string()).unwrap();
            self.happen(Event::CompareChunk { request, chunk });
        }
    }

    fn buffer(&mut self) -> Buffer {
        let (view, app) = (&mut self.view, &self.app);
        let mut measures = Measures::default();
        let drawn = self
            .terminal
            .draw(|frame| measures = view.draw(app, frame))
            .unwrap();
        let buffer = drawn.buffer.clone();
        self.happen(Event::Measured(measures));
        buffer
    }

    /// The characters on the screen, without the empty cells behind wide ones.
    fn screen(&mut self) -> String {
        let buffer = self.buffer();
        let width = usize::from(buffer.area.width);
        let rows = buffer.content.chunks(width).map(|row| {
            let mut text = String::new();
            let mut hidden = 0;
            for cell in row {
                if hidden == 0 {
                    text.push_str(cell.symbol());
                    hidden = Span::raw(cell.symbol()).width();
                }
                hidden = hidden.saturating_sub(1);
            }
            text.trim_end().to_owned() + "\n"
        });
        rows.collect()
    }
}

const ANSWER: &str = "Of course! Here is one:\n\n```rust\nfn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n```\n\n\
    - It **adds** two numbers.\n- 日本語の説明もあります。\n";

#[test]
fn a_first_screen_says_what_can_be_done() {
    insta::assert_snapshot!(Scene::new(80, 24).screen());
}

#[test]
fn a_conversation_shows_markdown_and_how_answers_came() {
    let mut scene = Scene::new(80, 24);
    scene.exchange("A function in Rust, please.", ANSWER);
    insta::assert_snapshot!(scene.screen());
}

#[test]
fn a_wide_screen_keeps_lines_readable() {
    let mut scene = Scene::new(130, 16);
    scene.exchange("Why?", &"many words ".repeat(15));
    insta::assert_snapshot!(scene.screen());
}

#[test]
fn what_a_server_does_not_say_is_a_dash() {
    let mut scene = Scene::new(80, 12);
    scene.exchange("Hi", "Hello");
    let stats = scene.app.chat.session.messages[1].stats.as_mut().unwrap();
    stats.usage = None;
    scene.app.chat.contexts.clear();
    let screen = scene.screen();
    assert!(screen.contains("context — of —"), "{screen}");
    assert!(
        screen.contains("~40.0 tokens/s · tokens — · cached —"),
        "{screen}"
    );
}

#[test]
fn an_answer_that_does_not_go_on_can_be_told_from_one_that_has_ended() {
    let mut scene = Scene::new(80, 12);
    scene.ask("Hi");
    assert!(scene.screen().contains("waiting 0.0 s"));
    let chunk = crate::wire::Chunk {
        content: "Hel".into(),
        ..Default::default()
    };
    let request = scene.request;
    scene.happen(Event::Chunk { request, chunk });
    let now = Now {
        clock: Duration::from_secs(9),
        ..Now::default()
    };
    scene.app.handle(Event::Redraw, now);
    let buffer = scene.buffer();
    let row: String = (0..40).map(|column| buffer[(column, 6)].symbol()).collect();
    assert!(row.contains("8.5 s so far"), "{row}");
}

#[test]
fn code_is_in_colours_that_can_be_read_on_black() {
    let mut scene = Scene::new(80, 24);
    scene.exchange("Code, please.", ANSWER);
    let buffer = scene.buffer();
    let colours: Vec<Color> = buffer.content.iter().map(|cell| cell.fg).collect();
    assert!(
        colours.contains(&Color::LightBlue),
        "the function has a colour"
    );
    assert!(!colours.contains(&Color::Blue));
}

#[test]
fn which_of_several_answers_is_shown_stands_below_it() {
    let mut scene = Scene::new(80, 14);
    scene.exchange("Hi", "Hello");
    let messages = &mut scene.app.chat.session.messages;
    let answer = messages.pop().unwrap();
    messages.push(Message {
        variants: vec![answer.clone()],
        variant: 1,
        ..answer
    });
    let screen = scene.screen();
    assert!(screen.contains("answer 2 of 2 · "), "{screen}");
    assert!(screen.contains("Alt+, other answers"), "{screen}");
}

#[test]
fn arms_are_listed_with_what_their_profiles_are() {
    let mut scene = Scene::new(80, 24);
    let profile = crate::wire::Profile {
        id: "urial".into(),
        title: "In-context assistant".into(),
        description: "Three short conversations make a base model answer.".into(),
        language: "en".into(),
        default_for: Vec::new(),
    };
    scene.happen(Event::Profiles(vec![profile]));
    scene.press(&["f3"]);
    let screen = scene.screen();
    assert!(screen.contains("en · In-context assistant"), "{screen}");
    assert!(
        screen.contains("Three short conversations make"),
        "{screen}"
    );
}

#[test]
fn a_report_is_offered_where_there_is_something_to_export() {
    let mut scene = Scene::new(110, 24);
    compared(&mut scene);
    scene.press(&["esc"]);
    let screen = scene.screen();
    assert!(!screen.contains("F10 report"), "{screen}");
    scene.app.compare.panes[1].finish = Some("stop".into());
    let screen = scene.screen();
    assert!(screen.contains("F10 report"), "{screen}");
    // The visible tokens are counted.
    assert!(screen.contains(" 3 tokens"), "{screen}");
}

#[test]
fn a_pasted_tab_is_shown_as_spaces_and_the_cursor_stands_behind_it() {
    let mut scene = Scene::new(40, 12);
    scene.write("a\tb");
    let screen = scene.screen();
    assert!(screen.contains("│ a    b"), "{screen}");
    scene.terminal.backend_mut().assert_cursor_position((8, 9));
}

#[test]
fn an_error_stands_below_the_question() {
    let mut scene = Scene::new(60, 14);
    scene.ask("Hi");
    let body = r#"{"error": {"message": "`max_tokens` must be at least 1 and at most 32768."}}"#;
    let (request, result) = (scene.request, Err(Failure::answered(400, body)));
    scene.happen(Event::Ended { request, result });
    insta::assert_snapshot!(scene.screen());
}

#[test]
fn japanese_wraps_in_the_input_and_the_cursor_stands_behind_it() {
    let mut scene = Scene::new(34, 14);
    scene.write("日本語の文章を書いて、絵文字👨‍👩‍👧も使います。");
    insta::assert_snapshot!(scene.screen());
    scene
        .terminal
        .backend_mut()
        .assert_cursor_position((14, 11));
}

#[test]
fn a_long_session_shows_the_same_lines_wherever_it_is_scrolled_to() {
    let mut scene = Scene::new(80, 20);
    for number in 0..30 {
        scene.exchange(&format!("Question {number}"), ANSWER);
    }
    let end = scene.screen();
    assert!(end.contains("日本語の説明"), "{end}");
    scene.press(&["ctrl-home"]);
    let begin = scene.screen();
    assert!(begin.contains("Question 0"), "{begin}");
    for _ in 0..100 {
        scene.press(&["pagedown"]);
    }
    assert_eq!(scene.screen(), end);
}

#[test]
fn a_selected_message_is_scrolled_to() {
    let mut scene = Scene::new(80, 20);
    for number in 0..5 {
        scene.exchange(&format!("Question {number}"), ANSWER);
    }
    scene.screen();
    scene.press(&["alt-up"; 8]);
    let screen = scene.screen();
    assert!(screen.contains("Question 1"), "{screen}");
}

/// Two arms; the second generates one token that the first would not have.
fn compared(scene: &mut Scene) {
    scene.press(&["f2"]);
    scene.app.compare.chosen.truncate(2);
    compare_chosen(scene, &json!([{}, {}]));
}

/// A comparison of the chosen arms, with this metadata from the server.
fn compare_chosen(scene: &mut Scene, arms: &serde_json::Value) {
    scene.ask("What is the capital of France?");
    scene.app.compare.seed = 7;
    let alternatives = json!([
        {"token": " Paris", "logprob": -0.1},
        {"token": "\n", "logprob": -3.0},
    ]);
    let token = |text: &str, logprob: f64, arm: usize, rank: usize| {
        json!({
            "id": 1, "token": text, "bytes": text.as_bytes(), "logprob": logprob, "rank": 1,
            "top_logprobs": alternatives,
            "scores": [{
                "arm": arm, "logprob": -4.0, "rank": rank, "kl": 1.25,
                "top_logprobs": [{"token": "The", "logprob": -0.4}],
            }],
        })
    };
    let settings = json!({"reference": 0, "temperature": [0.0]});
    scene.compare(&[
        json!({"begin": {"arms": arms, "settings": settings}}),
        json!({"delta": {"arm": 0, "content": "The capital of France is"}}),
        json!({"delta": {"arm": 1, "content": "It is Paris. "}}),
        json!({"tokens": {"arm": 1, "tokens": [
            token("It", -0.2, 0, 9), token(" is", -0.01, 0, 2), token(" Paris", -3.5, 0, 1),
        ]}}),
    ]);
}

#[test]
fn arms_stand_side_by_side() {
    let mut scene = Scene::new(80, 24);
    compared(&mut scene);
    insta::assert_snapshot!(scene.screen());
}

#[test]
fn panes_say_who_is_guided_and_which_profile_answers() {
    let titles = |width: u16| {
        let mut scene = Scene::new(width, 14);
        scene.press(&["f2"]);
        scene.app.compare.chosen = vec![
            "gemma-3-270m".into(),
            "gemma-3-270m@urial guidance=0.5".into(),
        ];
        let arms = json!([{"rendered_by": "urial-ja"}, {"guidance": "guidance=0.5"}]);
        compare_chosen(&mut scene, &arms);
        scene.screen()
    };
    let wide = titles(120);
    for text in [
        "1/2 gemma-3-270m (urial-ja) (reference) ",
        "2/2 gemma-3-270m@urial guidance=0.5 ",
        "33% shifted, measured without guidance ",
    ] {
        assert!(wide.contains(text), "{text} in {wide}");
    }
    let narrow = titles(72);
    for text in [
        "1/2 … (urial-ja) (reference) ",
        "2/2 …@urial guidance=0.5 ",
        "33% shifted (unguided)",
    ] {
        assert!(narrow.contains(text), "{text} in {narrow}");
    }
}

#[test]
fn the_title_names_the_profile_that_the_last_answer_came_from() {
    let mut scene = Scene::new(80, 16);
    let answered = |scene: &mut Scene, arm: &str, profile: Option<&str>| {
        scene.app.chat.session.head.arm = Some(arm.into());
        scene.exchange("Why?", "Because.");
        let messages = &mut scene.app.chat.session.messages;
        let last = messages.last_mut().unwrap();
        last.arm = Some(arm.into());
        last.profile = profile.map(str::to_owned);
        scene.screen().lines().next().unwrap().to_owned()
    };
    let title = answered(&mut scene, "gemma-3-270m", Some("urial-ja"));
    assert!(title.contains("gemma-3-270m (urial-ja)"), "{title}");
    // If the id names it, and for another server.
    for (arm, profile) in [("gemma-3-270m@urial", Some("urial")), ("gpt", None)] {
        let title = answered(&mut scene, arm, profile);
        assert!(title.contains(arm) && !title.contains('('), "{title}");
    }
}

#[test]
fn on_a_narrow_screen_arms_stand_below_each_other() {
    let mut scene = Scene::new(50, 24);
    compared(&mut scene);
    insta::assert_snapshot!(scene.screen());
}

#[test]
fn the_token_that_is_looked_at_shows_what_else_could_have_been_said() {
    let mut scene = Scene::new(80, 24);
    compared(&mut scene);
    scene.press(&["tab", "tab", "right", "right"]);
    insta::assert_snapshot!(scene.screen());
}

#[test]
fn tokens_have_the_colours_of_their_shift_or_of_their_probability() {
    let mut scene = Scene::new(80, 24);
    compared(&mut scene);
    // The beginning of the second pane's text.
    let words = [(42, 3), (45, 3), (48, 3)];
    let styles = |scene: &mut Scene| {
        let buffer = scene.buffer();
        words.map(|place| {
            let cell = &buffer[place];
            (cell.fg, cell.modifier.contains(Modifier::UNDERLINED))
        })
    };
    let plain = (Color::Reset, false);
    let shifted = (Color::Red, true);
    assert_eq!(styles(&mut scene), [shifted, (Color::Yellow, false), plain]);
    scene.press(&["f8"]);
    assert_eq!(styles(&mut scene), [plain, plain, shifted]);
    scene.press(&["f8"]);
    assert_eq!(styles(&mut scene), [plain, plain, plain]);
}

#[test]
fn the_help_screen_names_every_action_and_its_keys() {
    let mut scene = Scene::new(80, 100);
    scene.press(&["f1"]);
    let screen = scene.screen();
    for entry in ENTRIES {
        assert!(screen.contains(entry.name), "{}", entry.name);
        for key in scene.app.keymap.keys(entry.action) {
            assert!(screen.contains(&key), "{key}");
        }
    }
}

#[test]
fn panels_fit_a_small_screen() {
    let mut scene = Scene::new(80, 24);
    scene.press(&["f3"]);
    insta::assert_snapshot!("arms", scene.screen());
    scene.press(&["f4", "down"]);
    insta::assert_snapshot!("sampling", scene.screen());
    scene.press(&["f1"]);
    insta::assert_snapshot!("help", scene.screen());
}

#[test]
fn nothing_breaks_at_any_size() {
    for width in [1, 5, 30, 31, 50, 80, 200] {
        for height in [1, 5, 10, 11, 24, 60] {
            for keys in [
                &["f1"][..],
                &["f3"],
                &["f4"],
                &["f6"],
                &["f7"],
                &["tab", "tab"],
            ] {
                let mut scene = Scene::new(width, height);
                scene.exchange("日本語", ANSWER);
                scene.screen();
                compared(&mut scene);
                scene.press(keys);
                scene.screen();
            }
        }
    }
}

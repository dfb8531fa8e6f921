//! How long a frame takes in a session of ten thousand lines while an answer is streamed:
//! `cargo run --release -p incant-tui --example frames`.

use std::io;
use std::time::Instant;

use incant_tui::app::{App, Effect, Event, Now, Start};
use incant_tui::keymap::{Key, Keymap};
use incant_tui::session::Message;
use incant_tui::view::View;
use incant_tui::wire::{Arm, Chunk};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};

/// An answer of twenty lines, with most of what Markdown has.
const ANSWER: &str = "## 見出し\n\nSome *text* with `code` and **more** of it, long enough that it \
    has to be wrapped on a screen of a hundred columns, and some 日本語の文章もここにあります。\n\n\
    1. one\n2. two\n3. three\n\n```rust\n/// Adds.\nfn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n```\n\n\
    | a | b |\n|---|---|\n| 1 | two |\n\n> quoted\n";

const PIECES: usize = 400;

fn main() {
    let (mut app, _) = App::new(Keymap::default(), Start::default(), Now::default());
    let arm = Arm {
        id: "m".into(),
        context: Some(1),
        ..Arm::default()
    };
    app.handle(Event::Arms(Ok(vec![arm])), Now::default());
    let messages = &mut app.chat.session.messages;
    for _ in 0..500 {
        messages.push(Message::user("A question?"));
        let mut answer = Message::answer(None);
        answer.content = ANSWER.into();
        messages.push(answer);
    }
    app.handle(Event::Paste("More.".into()), Now::default());
    let enter = Key::parse("enter").expect("a key");
    let effects = app.handle(Event::Key(enter), Now::default());
    let request = effects.iter().find_map(|effect| match effect {
        Effect::Chat { request, .. } => Some(*request),
        _ => None,
    });
    let request = request.expect("it was asked");

    let viewport = Viewport::Fixed(Rect::new(0, 0, 120, 50));
    let backend = CrosstermBackend::new(io::sink());
    let mut terminal = Terminal::with_options(backend, TerminalOptions { viewport })
        .expect("nothing is read of it");
    let mut view = View::default();
    let mut rows = 0;
    let mut frame = |app: &mut App| {
        let began = Instant::now();
        let drawn = terminal.draw(|frame| rows = view.draw(app, frame).chat.rows);
        drawn.expect("a sink takes everything");
        began.elapsed()
    };
    let first = frame(&mut app);

    // A long answer, in pieces as tokens come.
    let answer = ANSWER.repeat(8);
    let characters: Vec<char> = answer.chars().collect();
    let mut times = Vec::new();
    for piece in characters.chunks(characters.len().div_ceil(PIECES)) {
        let began = Instant::now();
        let chunk = Chunk {
            content: piece.iter().collect(),
            ..Chunk::default()
        };
        app.handle(Event::Chunk { request, chunk }, Now::default());
        frame(&mut app);
        times.push(began.elapsed());
    }
    times.sort();
    let (median, late) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("{rows} lines: first frame {first:?}, then median {median:?}, 99% {late:?}");
}

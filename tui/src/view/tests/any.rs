//! Random sequences of keys, clicks, texts, answers and sizes.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};
use ratatui::layout::Position;

use super::*;
use crate::app::{Effect, Pointer};
use crate::session::Listing;
use crate::wire::Chunk;

const TEXTS: [&str; 6] = [
    "a few words",
    "日本語の文章。",
    "👩🏽‍🚀👨‍👩‍👧",
    "\n\n",
    "```rust\nfn a() {}\n",
    "| a | b |\n|---|---|\n| 1 | 二 |\n",
];

/// A program, its running requests, and its saved sessions.
struct World {
    scene: Scene,
    chats: VecDeque<u64>,
    comparisons: VecDeque<u64>,
    saved: Listing,
}

impl World {
    fn happen(&mut self, event: Event) {
        for effect in self.scene.app.handle(event, Now::default()) {
            match effect {
                Effect::Chat { request, .. } => self.chats.push_back(request),
                Effect::Compare { request, .. } => self.comparisons.push_back(request),
                Effect::Save(session) => {
                    let saved = &mut self.saved.sessions;
                    saved.retain(|old| old.head.id != session.head.id);
                    saved.push(*session);
                }
                Effect::ListSessions => {
                    let listing = self.saved.clone();
                    self.happen(Event::Sessions(listing));
                }
                Effect::LoadAnalysis { id } => {
                    let mut sessions = self.saved.sessions.iter();
                    let found = sessions.find(|session| session.head.id == id);
                    let analysis = found.and_then(|session| session.analysis.clone());
                    let analysis = Box::new(analysis.expect("it is saved with it"));
                    self.happen(Event::Analysis { id, analysis });
                }
                _ => {}
            }
        }
    }

    /// A random step, chosen by these numbers.
    fn step(&mut self, what: u8, one: u16, other: u16) {
        let (one, other) = (usize::from(one), usize::from(other));
        let text = TEXTS[one % TEXTS.len()];
        match what {
            0..5 => {
                let entry = &ENTRIES[one % ENTRIES.len()];
                let key = Key::parse(entry.keys[0]).expect("a test parses all of them");
                self.happen(Event::Key(key));
            }
            5 | 6 => {
                let size = self.scene.terminal.size().unwrap();
                let at = Position::new(one as u16 % size.width, other as u16 % size.height);
                let kinds = [Pointer::Click, Pointer::WheelUp, Pointer::WheelDown];
                let what = kinds[(one + other) % 3];
                self.happen(Event::Mouse { what, at });
            }
            7 => self.happen(Event::Paste(text.into())),
            8 => {
                let (width, height) = (1 + one as u16 % 120, 1 + other as u16 % 40);
                self.scene.terminal.backend_mut().resize(width, height);
            }
            9 => {
                if let Some(request) = self.chats.front().copied() {
                    let chunk = Chunk {
                        content: text.into(),
                        ..Chunk::default()
                    };
                    self.happen(Event::Chunk { request, chunk });
                }
            }
            10 => {
                if let Some(request) = self.comparisons.front().copied() {
                    let arm = other % 4;
                    let token = json!({"token": text, "bytes": text.as_bytes(), "logprob": -1.0,
                        "scores": [{"arm": one % 4, "logprob": -1.0, "rank": 5,
                            "kl": 0.1, "top_logprobs": []}]});
                    for event in [
                        json!({"delta": {"arm": arm, "content": text}}),
                        json!({"tokens": {"arm": arm, "tokens": [token]}}),
                    ] {
                        let chunk = compare_chunk(&event.to_string()).unwrap();
                        self.happen(Event::CompareChunk { request, chunk });
                    }
                }
            }
            _ => {
                let chats = self.chats.pop_front();
                if let Some(request) = chats.or_else(|| self.comparisons.pop_front()) {
                    let result = match other % 2 {
                        0 => Ok(()),
                        _ => Err(Failure::answered(404, text)),
                    };
                    self.happen(Event::Ended { request, result });
                }
            }
        }
        let buffer = self.scene.buffer();
        assert_eq!(buffer.area.as_size(), self.scene.terminal.size().unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_events_breaks_the_program(
        steps in vec((0..12_u8, any::<u16>(), any::<u16>()), 1..300),
    ) {
        let mut world = World {
            scene: Scene::new(80, 24),
            chats: VecDeque::new(),
            comparisons: VecDeque::new(),
            saved: Listing::default(),
        };
        for (what, one, other) in steps {
            world.step(what, one, other);
        }
    }
}

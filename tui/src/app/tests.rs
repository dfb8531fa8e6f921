//! User stories, as sequences of events.

mod chat;
mod compare;
mod panels;

use std::time::Duration;

use crossterm::event::KeyEvent;
use serde_json::{Value, json};

use super::*;
use crate::session::{Listing, Role, Session};
use crate::wire::{Chunk, Profile, Usage};

/// The program, and its latest effects.
struct Story {
    app: App,
    effects: Vec<Effect>,
    clock: Duration,
}

impl Story {
    /// A program that has just started.
    fn begin() -> Story {
        Story::with(Start::default())
    }

    fn with(start: Start) -> Story {
        let (app, effects) = App::new(Keymap::default(), start, Now::default());
        Story {
            app,
            effects,
            clock: Duration::ZERO,
        }
    }

    /// A program that knows the arms.
    fn ready() -> Story {
        let mut story = Story::begin();
        story.serve(&["m", "m@base", "m@urial"]);
        story
    }

    fn serve(&mut self, ids: &[&str]) {
        let arms = ids.iter().map(|id| Arm {
            id: (*id).to_owned(),
            root: id.split('@').next().map(str::to_owned),
            profile: id.split('@').nth(1).map(str::to_owned),
            ..Arm::default()
        });
        let arms = Ok(arms.collect());
        self.happen(Event::Arms(arms));
    }

    fn happen(&mut self, event: Event) {
        self.clock += Duration::from_millis(100);
        let now = Now {
            clock: self.clock,
            unix: Duration::from_secs(1_800_000_000) + self.clock,
        };
        self.effects = self.app.handle(event, now);
    }

    fn press(&mut self, keys: &[&str]) {
        for key in keys {
            let key = Key::parse(key).expect("a key");
            self.happen(Event::Key(key));
        }
    }

    fn write(&mut self, text: &str) {
        for character in text.chars() {
            let code = crossterm::event::KeyCode::Char(character);
            self.happen(Event::Key(Key::from(KeyEvent::from(code))));
        }
    }

    /// Sends a question; returns the request and its body.
    fn ask(&mut self, question: &str) -> (u64, Value) {
        self.write(question);
        self.press(&["enter"]);
        self.asked()
    }

    /// The request among the latest effects.
    fn asked(&self) -> (u64, Value) {
        let asked = self.effects.iter().find_map(|effect| match effect {
            Effect::Chat { request, body } | Effect::Compare { request, body } => {
                Some((*request, body.clone()))
            }
            _ => None,
        });
        asked.unwrap_or_else(|| panic!("nothing was asked: {:?}", self.effects))
    }

    fn saved(&self) -> Option<&Session> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Save(session) => Some(&**session),
            _ => None,
        })
    }

    fn say(&mut self, request: u64, text: &str) {
        let chunk = Chunk {
            content: text.to_owned(),
            ..Chunk::default()
        };
        self.happen(Event::Chunk { request, chunk });
    }

    fn end(&mut self, request: u64) {
        let chunk = Chunk {
            finish: Some("stop".into()),
            usage: Some(Usage {
                prompt_tokens: 10,
                completion_tokens: 3,
                cached_tokens: Some(9),
            }),
            ..Chunk::default()
        };
        self.happen(Event::Chunk { request, chunk });
        let result = Ok(());
        self.happen(Event::Ended { request, result });
    }

    fn fail(&mut self, request: u64, status: u16, message: &str) {
        let body = json!({"error": {"message": message}}).to_string();
        let result = Err(Failure::answered(status, &body));
        self.happen(Event::Ended { request, result });
    }

    /// A question with its answer.
    fn exchange(&mut self, question: &str, answer: &str) {
        let (request, _) = self.ask(question);
        self.say(request, answer);
        self.end(request);
    }

    /// Another comparison and a conversation, so that nothing of the last one is left.
    fn exchange_elsewhere(&mut self) {
        self.press(&["ctrl-n", "f2"]);
        self.exchange("about cats", "They purr.");
    }

    /// The messages, with `>` before questions.
    fn said(&self) -> Vec<String> {
        let messages = self.app.chat.session.messages.iter();
        messages
            .map(|message| match message.role {
                Role::User => format!("> {}", message.content),
                Role::Assistant => message.content.clone(),
            })
            .collect()
    }

    fn notice(&self) -> &str {
        self.app.notice.as_ref().map_or("", |notice| &notice.text)
    }
}

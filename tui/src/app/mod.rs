//! The program's state machine, without terminal, network and disk: [`App::handle`] takes an
//! event and returns effects. It performs no IO, so that every behaviour can be tested as a
//! sequence of events.

mod chat;
mod clock;
mod compare;
mod editor;
mod events;
mod history;
mod mouse;
mod pane;
mod panels;
mod picker;
mod saved;
mod scroll;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use chat::Chat;
pub use clock::Clock;
pub use compare::{Colours, Compare, MAX_PANES};
pub use editor::Editor;
pub use events::{Drawn, Effect, Event, Measures, Now, Pointer, Target};
pub use history::History;
pub use pane::{Pane, Shift};
pub use panels::{Panel, matching_line, matching_sessions};
pub use picker::Picker;
pub use scroll::{Extent, Scroll};

use crate::keymap::{Action, Key, Keymap};
use crate::wire::{Arm, Failure, Profile, plain_id, with_profile};

/// The delay before retrying a server that is still loading.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The mode of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A conversation with one arm.
    Chat,
    /// Several arms side by side.
    Compare,
}

/// The arms that the server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arms {
    /// Not known yet; with the server's message if it has given a reason.
    Waiting(Option<String>),
    /// The known arms.
    Known(Vec<Arm>),
    /// The request failed.
    Failed(Failure),
}

/// A line about the last action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The line.
    pub text: String,
    /// Whether it is an error.
    pub is_error: bool,
}

/// The initial parameters of the program.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The arm that answers; the first of the server's list by default.
    pub arm: Option<String>,
    /// A question to begin with.
    pub question: Option<String>,
    /// Earlier questions, the oldest first.
    pub history: Vec<String>,
    /// The file of key bindings.
    pub keys: PathBuf,
    /// An error at startup.
    pub error: Option<String>,
}

/// The program's whole state.
#[derive(Clone, Debug)]
pub struct App {
    /// The key bindings.
    pub keymap: Keymap,
    /// The file of key bindings.
    pub keys: PathBuf,
    /// The mode of the screen.
    pub mode: Mode,
    /// The input field.
    pub input: Editor,
    /// The arms that the server offers.
    pub arms: Arms,
    /// The profiles, if the server reports them.
    pub profiles: Vec<Profile>,
    /// The conversation.
    pub chat: Chat,
    /// The comparison.
    pub compare: Compare,
    /// The open panel.
    pub panel: Option<Panel>,
    /// A line about the last action.
    pub notice: Option<Notice>,
    /// Whether the server has an endpoint for comparisons, as far as is known.
    pub compares: bool,
    /// Whether the program captures the mouse.
    pub mouse: bool,
    /// The time of the last event.
    pub now: Now,
    history: History,
    measures: Measures,
    /// A question that waits until the arms are known.
    waiting: Option<String>,
    requests: u64,
}

impl App {
    /// The initial state, and the first effects.
    pub fn new(keymap: Keymap, start: Start, now: Now) -> (App, Vec<Effect>) {
        let mouse = keymap.mouse();
        let notice = start.error.map(|text| {
            let is_error = true;
            Notice { text, is_error }
        });
        let app = App {
            keymap,
            keys: start.keys,
            mouse,
            compares: true,
            mode: Mode::Chat,
            input: Editor::default(),
            arms: Arms::Waiting(None),
            profiles: Vec::new(),
            chat: Chat::new(start.arm, now),
            compare: Compare::default(),
            panel: None,
            notice,
            now,
            history: History::new(start.history),
            measures: Measures {
                input: 76,
                ..Measures::default()
            },
            waiting: start.question,
            requests: 0,
        };
        let after = Duration::ZERO;
        (app, vec![Effect::Mouse(mouse), Effect::FetchArms { after }])
    }

    /// Handles an event; returns the effects to perform.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        self.now = now;
        match event {
            Event::Key(key) => self.key(key),
            Event::Mouse { what, at } => self.mouse(what, at),
            Event::Paste(text) => self.write(&text),
            Event::Redraw => Vec::new(),
            Event::Measured(measures) => {
                self.measures = measures;
                Vec::new()
            }
            Event::Arms(arms) => self.receive_arms(arms),
            Event::Profiles(profiles) => {
                self.profiles = profiles;
                Vec::new()
            }
            Event::Context { arm, tokens } => {
                self.chat.contexts.insert(arm, tokens);
                Vec::new()
            }
            Event::Chunk { request, chunk } => {
                if !self.chat_chunk(request, &chunk) {
                    self.pane_chunk(request, chunk);
                }
                Vec::new()
            }
            Event::CompareChunk { request, chunk } => {
                self.compare_chunk(request, chunk);
                Vec::new()
            }
            Event::Ended { request, result } => self.ended(request, result),
            Event::Sessions(listing) => {
                if let Some(Panel::Sessions { all, .. }) = &mut self.panel {
                    *all = Some(listing);
                }
                Vec::new()
            }
            Event::Analysis { id, analysis } => {
                self.restore_analysis(&id, *analysis);
                Vec::new()
            }
            Event::Exported(path) => self.notify(format!("saved {}", path.display())),
            Event::Error(text) => self.report_error(text),
            Event::Terminate => self.quit(),
        }
    }

    /// Whether an answer runs, so that the time display must be updated.
    pub fn is_busy(&self) -> bool {
        self.chat.is_running() || self.compare.is_running()
    }

    /// The question that waits for the server to be ready, if any.
    pub fn waiting(&self) -> Option<&str> {
        self.waiting.as_deref()
    }

    /// The arms, as far as they are known.
    pub fn known_arms(&self) -> &[Arm] {
        match &self.arms {
            Arms::Known(arms) => arms,
            _ => &[],
        }
    }

    /// The arm with this id, with or without options such as guidance.
    pub fn known_arm(&self, id: &str) -> Option<&Arm> {
        let plain = plain_id(id);
        self.known_arms().iter().find(|arm| arm.id == plain)
    }

    /// The profile that an arm answers under, as far as the server reports it: the one that its
    /// id names, or its model's default.
    pub fn profile(&self, id: &str) -> Option<&Profile> {
        let arm = self.known_arm(id)?;
        let is_plain = arm.root.as_ref() == Some(&arm.id);
        let mut profiles = self.profiles.iter();
        profiles.find(|profile| match &arm.profile {
            Some(name) => profile.id == *name,
            None => is_plain && profile.default_for.contains(&arm.id),
        })
    }

    /// The answering arm and its profile, as far as they are known.
    pub fn answering(&self) -> String {
        let Some(arm) = self.chat.session.head.arm.as_deref() else {
            return String::new();
        };
        let last = self.chat.last_profile();
        let default = self.profile(arm).map(|profile| profile.id.as_str());
        with_profile(arm, last.or(default))
    }

    fn key(&mut self, key: Key) -> Vec<Effect> {
        match self.keymap.action(key) {
            Some(action) => self.perform(action),
            None => match key.character() {
                Some(character) => self.write(character.encode_utf8(&mut [0; 4])),
                None => Vec::new(),
            },
        }
    }

    /// Performs a key's action.
    fn perform(&mut self, action: Action) -> Vec<Effect> {
        self.notice = None;
        if self.panel.is_some() {
            self.act_in_panel(action)
        } else {
            self.act(action)
        }
    }

    fn write(&mut self, text: &str) -> Vec<Effect> {
        match &mut self.panel {
            Some(panel) => panel.insert(text),
            None => {
                self.compare.focus = None;
                self.input.insert(text);
            }
        }
        Vec::new()
    }

    /// Performs an action while no panel is open.
    fn act(&mut self, action: Action) -> Vec<Effect> {
        match action {
            Action::Help | Action::Arms | Action::Sampling | Action::System | Action::Sessions => {
                self.open(action)
            }
            Action::SwitchMode => self.switch_mode(),
            Action::NewSession => self.new_session(),
            Action::Mouse => self.switch_mouse(),
            Action::Quit => self.quit(),
            Action::DeleteOrQuit if self.input.text().is_empty() => self.quit(),
            Action::DeleteOrQuit => self.act(Action::DeleteForward),
            Action::Interrupt => match (self.is_busy(), self.input.is_blank()) {
                (true, _) => self.stop(),
                (false, false) => {
                    self.input.take();
                    Vec::new()
                }
                (false, true) => self.quit(),
            },
            Action::Stop if self.is_busy() => self.stop(),
            Action::Stop => {
                self.chat.deselect(&mut self.input);
                self.compare.focus = None;
                Vec::new()
            }
            Action::Send => self.send(),
            action => match self.mode {
                Mode::Chat => self.act_in_chat(action),
                Mode::Compare => self.act_in_compare(action),
            },
        }
    }

    /// Performs an action that neither chat nor compare handles.
    fn act_on_input(&mut self, action: Action) -> Vec<Effect> {
        let done = self.input.act(action, self.measures.input);
        match action {
            Action::Up if !done => self.history.back(&mut self.input),
            Action::Down if !done => self.history.forward(&mut self.input),
            _ => {}
        }
        Vec::new()
    }

    fn send(&mut self) -> Vec<Effect> {
        if self.input.is_blank() {
            return Vec::new();
        }
        if self.is_busy() {
            return self.notify("an answer is running; stop it first".into());
        }
        let question = self.input.take();
        let mut effects = Vec::new();
        if self.history.add(&question) {
            effects.push(Effect::Remember(question.clone()));
        }
        effects.extend(self.ask(question));
        effects
    }

    /// Sends a question as soon as the arms are known.
    fn ask(&mut self, question: String) -> Vec<Effect> {
        match &self.arms {
            Arms::Known(_) => match self.mode {
                Mode::Chat => self.ask_in_chat(question),
                Mode::Compare => self.ask_in_compare(question),
            },
            Arms::Waiting(_) => {
                self.waiting = Some(question);
                Vec::new()
            }
            Arms::Failed(_) => {
                self.waiting = Some(question);
                self.arms = Arms::Waiting(None);
                let after = Duration::ZERO;
                vec![Effect::FetchArms { after }]
            }
        }
    }

    fn receive_arms(&mut self, arms: Result<Vec<Arm>, Failure>) -> Vec<Effect> {
        match arms {
            Ok(arms) => {
                self.chat.set_arms(&arms);
                self.compare
                    .set_arms(&arms, self.chat.session.head.arm.as_deref());
                let were_known = matches!(self.arms, Arms::Known(_));
                self.arms = Arms::Known(arms);
                if !were_known {
                    self.warn_of_missing_arms();
                }
                let mut effects = self.fetch_context();
                if let Some(question) = self.waiting.take() {
                    effects.extend(self.ask(question));
                }
                effects
            }
            // A server that is loading its models will be ready later.
            Err(failure) if failure.status == Some(503) => {
                self.arms = Arms::Waiting(Some(failure.message));
                vec![Effect::FetchArms { after: RETRY_DELAY }]
            }
            Err(failure) => {
                if let Some(question) = self.waiting.take() {
                    let key = self.keymap.hint(Action::Send).unwrap_or_default();
                    self.report_error(format!(
                        "{failure}. Your question stays below; {key} tries again."
                    ));
                    // Text that was typed in the meantime stays too.
                    let since = self.input.take();
                    self.input = Editor::with(&question);
                    if !since.is_empty() {
                        self.input.insert("\n");
                        self.input.insert(&since);
                    }
                }
                self.arms = Arms::Failed(failure);
                Vec::new()
            }
        }
    }

    /// Warns if the chosen arms are not in the server's list. The server may know them all the
    /// same.
    fn warn_of_missing_arms(&mut self) {
        let Arms::Known(known) = &self.arms else {
            return;
        };
        let asked = match self.mode {
            Mode::Chat => self.chat.session.head.arm.as_slice(),
            Mode::Compare => &self.compare.chosen,
        };
        let missing = |arm: &&String| known.iter().all(|known| known.id != plain_id(arm));
        if let Some(arm) = asked.iter().find(missing) {
            let key = self.keymap.hint(Action::Arms).unwrap_or_default();
            let text = format!("the server does not list {arm}; {key} chooses others");
            self.report_error(text);
        }
    }

    fn ended(&mut self, request: u64, result: Result<(), Failure>) -> Vec<Effect> {
        if self.chat.runs(request) {
            self.chat_ended(result)
        } else {
            self.compare_ended(request, result)
        }
    }

    /// Stops all running requests.
    fn stop(&mut self) -> Vec<Effect> {
        let mut effects = self.stop_chat();
        effects.extend(self.stop_compare());
        effects
    }

    fn switch_mode(&mut self) -> Vec<Effect> {
        self.mode = match self.mode {
            Mode::Chat => Mode::Compare,
            Mode::Compare => Mode::Chat,
        };
        Vec::new()
    }

    fn quit(&mut self) -> Vec<Effect> {
        let mut effects = self.stop();
        effects.push(Effect::Quit);
        effects
    }

    fn next_request(&mut self) -> u64 {
        self.requests += 1;
        self.requests
    }

    fn notify(&mut self, text: String) -> Vec<Effect> {
        let is_error = false;
        self.notice = Some(Notice { text, is_error });
        Vec::new()
    }

    fn report_error(&mut self, text: String) -> Vec<Effect> {
        let is_error = true;
        self.notice = Some(Notice { text, is_error });
        Vec::new()
    }
}

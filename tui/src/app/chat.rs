//! The conversation with one arm.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::clock::Clock;
use super::editor::Editor;
use super::scroll::Scroll;
use super::{App, Effect, Now};
use crate::keymap::Action;
use crate::session::{Head, Message, Role, Session};
use crate::wire::{Arm, Chunk, Failure, Usage};

/// The temperature for another answer, if the last one's would give the same again.
const VARIANT_TEMPERATURE: f64 = 0.7;

/// The finish reason of a broken answer.
const FAILED: &str = "failed";

/// The state of a conversation.
#[derive(Clone, Debug)]
pub struct Chat {
    /// The messages; while an answer runs it is the last one.
    pub session: Session,
    /// Why the last question has no answer, or only a part of one.
    pub error: Option<Failure>,
    /// The message to copy or edit.
    pub selected: Option<usize>,
    /// The question that is being edited.
    pub editing: Option<usize>,
    /// The scroll position.
    pub scroll: Scroll,
    /// The context length of each arm that was asked for it.
    pub contexts: HashMap<String, Option<u64>>,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    request: u64,
    clock: Clock,
    finish: Option<String>,
    /// The answer that this one replaces, to be restored if nothing arrives.
    replaced: Option<Message>,
}

impl Chat {
    pub(super) fn new(arm: Option<String>, now: Now) -> Chat {
        Chat {
            session: Session {
                head: Head { arm, ..head(now) },
                ..Session::default()
            },
            error: None,
            selected: None,
            editing: None,
            scroll: Scroll::Follow,
            contexts: HashMap::new(),
            running: None,
        }
    }

    /// Whether an answer runs.
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// The clock of the running answer.
    pub fn clock(&self) -> Option<&Clock> {
        self.running.as_ref().map(|running| &running.clock)
    }

    /// Token usage of the last answer.
    pub fn usage(&self) -> Option<Usage> {
        let messages = self.session.messages.iter().rev();
        let answer = messages.filter_map(|message| message.stats).next()?;
        answer.usage
    }

    /// The profile of the arm's last answer, if the server reported it.
    pub fn last_profile(&self) -> Option<&str> {
        let messages = self.session.messages.iter().rev();
        let mut answers = messages.filter(|message| message.role == Role::Assistant);
        let last = answers.find(|answer| answer.profile.is_some())?;
        let same = last.arm == self.session.head.arm;
        last.profile.as_deref().filter(|_| same)
    }

    /// The arm's context length in tokens, if it is known.
    pub fn context(&self) -> Option<u64> {
        let arm = self.session.head.arm.as_ref()?;
        self.contexts.get(arm).copied().flatten()
    }

    pub(super) fn runs(&self, request: u64) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|running| running.request == request)
    }

    /// Chooses the first arm, unless one was chosen.
    pub(super) fn set_arms(&mut self, arms: &[Arm]) {
        if self.session.head.arm.is_none() {
            self.session.head.arm = arms.first().map(|arm| arm.id.clone());
        }
        for arm in arms {
            if arm.context.is_some() {
                self.contexts.insert(arm.id.clone(), arm.context);
            }
        }
    }

    /// Removes an answer that never began, and restores the one it was to replace.
    fn restore_replaced(&mut self, replaced: Option<Message>) {
        let messages = &mut self.session.messages;
        messages.pop();
        messages.extend(replaced);
        let count = messages.len();
        self.selected = self.selected.filter(|place| *place < count);
    }

    /// Ends selecting and editing.
    pub(super) fn deselect(&mut self, input: &mut Editor) {
        self.selected = None;
        if self.editing.take().is_some() {
            input.take();
        }
    }

    /// Shows another session in place of this one.
    pub(super) fn replace(&mut self, session: Session) {
        self.session = session;
        self.error = None;
        self.selected = None;
        self.editing = None;
        self.scroll = Scroll::Follow;
    }

    /// Selects a message, or deselects it if it was selected.
    pub(super) fn select_at(&mut self, place: usize) {
        let there = place < self.session.messages.len();
        self.selected = (there && self.selected != Some(place)).then_some(place);
    }

    /// The message that an action applies to: the selected one, or else the last of `role`.
    fn target_message(&self, role: Role) -> Option<usize> {
        let messages = &self.session.messages;
        let last = messages.iter().rposition(|message| message.role == role);
        self.selected.or(last)
    }

    fn request(&self) -> Value {
        let head = &self.session.head;
        let mut messages = Vec::new();
        if !head.system.trim().is_empty() {
            messages.push(json!({"role": "system", "content": head.system}));
        }
        let said = self.session.messages.iter();
        messages
            .extend(said.map(|message| json!({"role": message.role, "content": message.content})));
        let mut body = json!({
            "model": head.arm,
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(fields) = body.as_object_mut() {
            head.sampling.write(fields);
        }
        body
    }
}

/// The metadata of a session that begins now.
pub(super) fn head(now: Now) -> Head {
    let milliseconds = i64::try_from(now.unix.as_millis()).unwrap_or_default();
    let time = jiff::Timestamp::from_millisecond(milliseconds).unwrap_or_default();
    Head {
        id: time.strftime("%Y%m%d-%H%M%S-%3f").to_string(),
        created: now.unix.as_secs(),
        ..Head::default()
    }
}

impl App {
    pub(super) fn act_in_chat(&mut self, action: Action) -> Vec<Effect> {
        let extent = self.measures.chat;
        let scroll = &mut self.chat.scroll;
        match action {
            Action::Regenerate => return self.regenerate(),
            Action::VariantBefore => return self.show_variant(-1),
            Action::VariantAfter => return self.show_variant(1),
            Action::Edit => return self.edit(),
            Action::Copy => return self.copy(),
            Action::CopyAll => {
                self.notify("copied the session".into());
                return vec![Effect::Copy(self.chat.session.markdown())];
            }
            Action::SelectUp => self.select(-1),
            Action::SelectDown => self.select(1),
            Action::ScrollUp | Action::ScrollDown | Action::ScrollTop | Action::ScrollBottom => {
                _ = scroll.act(action, extent)
            }
            action => return self.act_on_input(action),
        }
        Vec::new()
    }

    pub(super) fn ask_in_chat(&mut self, question: String) -> Vec<Effect> {
        if let Some(place) = self.chat.editing.take() {
            // The earlier conversation stays on disk, as another session.
            let id = head(self.now).id;
            self.chat.session.head.id = id;
            self.chat.session.messages.truncate(place);
            let key = self.keymap.hint(Action::Sessions).unwrap_or_default();
            self.notify(format!(
                "this continues as a new session; the original one stays saved ({key})"
            ));
        }
        self.chat.session.messages.push(Message::user(question));
        let body = self.chat.request();
        self.answer(body, None)
    }

    /// Requests an answer to the conversation. It replaces `replaced`, or becomes another
    /// variant of it.
    fn answer(&mut self, body: Value, replaced: Option<Message>) -> Vec<Effect> {
        let request = self.next_request();
        let chat = &mut self.chat;
        chat.error = None;
        chat.selected = None;
        chat.scroll = Scroll::Follow;
        let saved = Box::new(chat.session.clone());
        let mut answer = Message::answer(chat.session.head.arm.clone());
        let earlier = replaced.clone().map(Message::into_variants);
        answer.variants = earlier.unwrap_or_default();
        // Broken answers are not kept.
        answer
            .variants
            .retain(|answer| answer.finish.as_deref() != Some(FAILED));
        answer.variant = answer.variants.len();
        chat.session.messages.push(answer);
        chat.running = Some(Running {
            request,
            clock: Clock::start(self.now.clock),
            finish: None,
            replaced,
        });
        vec![Effect::Save(saved), Effect::Chat { request, body }]
    }

    /// Handles a chunk of an answer; returns `false` if it does not belong to this
    /// conversation.
    pub(super) fn chat_chunk(&mut self, request: u64, chunk: &Chunk) -> bool {
        let chat = &mut self.chat;
        let running = chat.running.as_mut();
        let Some(running) = running.filter(|running| running.request == request) else {
            return false;
        };
        if !chunk.content.is_empty() {
            running.clock.part(self.now.clock);
            if let Some(answer) = chat.session.messages.last_mut() {
                answer.content.push_str(&chunk.content);
            }
        }
        if chunk.profile.is_some()
            && let Some(answer) = chat.session.messages.last_mut()
        {
            answer.profile.clone_from(&chunk.profile);
        }
        running.clock.usage = chunk.usage.or(running.clock.usage);
        if chunk.finish.is_some() {
            running.finish.clone_from(&chunk.finish);
        }
        true
    }

    pub(super) fn chat_ended(&mut self, result: Result<(), Failure>) -> Vec<Effect> {
        let chat = &mut self.chat;
        let Some(running) = chat.running.take() else {
            return Vec::new();
        };
        let failed = result.is_err();
        chat.error = result.err();
        let nothing = running.clock.is_waiting();
        if failed && nothing {
            chat.restore_replaced(running.replaced);
        } else if let Some(answer) = chat.session.messages.last_mut() {
            answer.finish = if failed {
                Some(FAILED.into())
            } else {
                running.finish
            };
            answer.stats = Some(running.clock.stats());
        }
        vec![Effect::Save(Box::new(chat.session.clone()))]
    }

    pub(super) fn stop_chat(&mut self) -> Vec<Effect> {
        let Some(running) = &mut self.chat.running else {
            return Vec::new();
        };
        let request = running.request;
        let mut effects = vec![Effect::Stop { request }];
        if running.clock.is_waiting() {
            let running = self.chat.running.take();
            let replaced = running.and_then(|running| running.replaced);
            self.chat.restore_replaced(replaced);
        } else {
            running.finish = Some("stopped".into());
            effects.extend(self.chat_ended(Ok(())));
        }
        effects
    }

    fn regenerate(&mut self) -> Vec<Effect> {
        if self.is_busy() {
            return self.notify("an answer is running; stop it first".into());
        }
        let messages = &mut self.chat.session.messages;
        let replaced = messages.pop_if(|last| last.role == Role::Assistant);
        if messages.is_empty() {
            return self.notify("there is no question yet".into());
        }
        let mut body = self.chat.request();
        let answered = replaced
            .as_ref()
            .filter(|answer| answer.finish.as_deref() != Some(FAILED));
        if let Some(answer) = answered {
            let count = answer.variants.len() as u64 + 1;
            self.vary(&mut body, count);
        }
        self.answer(body, replaced)
    }

    /// Changes a request that would give the same answer again, after `count` answers, and
    /// tells the user.
    fn vary(&mut self, body: &mut Value, count: u64) {
        let set = &self.chat.session.head.sampling;
        let temperature = set.temperature().or_else(|| self.own_temperature());
        let key = self.keymap.hint(Action::Sampling).unwrap_or_default();
        let mut changed = Vec::new();
        if temperature.is_none_or(|temperature| temperature == 0.0) {
            body["temperature"] = json!(VARIANT_TEMPERATURE);
            changed.push(format!("temperature {VARIANT_TEMPERATURE}"));
        }
        if let Some(seed) = set.seed() {
            let seed = seed.wrapping_add(count);
            body["seed"] = json!(seed);
            changed.push(format!("seed {seed}"));
        }
        if !changed.is_empty() {
            let changed = changed.join(" and ");
            self.notify(format!(
                "another answer with {changed}, or it would be the same; {key} sets others"
            ));
        }
    }

    /// The arm's default temperature, if the server reports it.
    fn own_temperature(&self) -> Option<f64> {
        let arm = self.known_arm(self.chat.session.head.arm.as_deref()?)?;
        let own = arm.sampling.as_ref()?.get("temperature");
        Some(own.and_then(Value::as_f64).unwrap_or(1.0))
    }

    /// Shows an answer before or after the last one, to the same question.
    fn show_variant(&mut self, by: isize) -> Vec<Effect> {
        if self.chat.is_running() {
            return self.notify("an answer is running; stop it first".into());
        }
        let messages = &mut self.chat.session.messages;
        let last = messages.pop_if(|last| !last.variants.is_empty());
        let Some(last) = last else {
            let key = self.keymap.hint(Action::Regenerate).unwrap_or_default();
            return self.notify(format!(
                "there is no other answer to this; {key} asks for one"
            ));
        };
        let place = last.variant.saturating_add_signed(by);
        messages.push(last.with_variant(place));
        self.chat.error = None;
        vec![Effect::Save(Box::new(self.chat.session.clone()))]
    }

    fn edit(&mut self) -> Vec<Effect> {
        if self.chat.is_running() {
            return self.notify("an answer is running; stop it first".into());
        }
        let Some(place) = self.chat.target_message(Role::User) else {
            return self.notify("there is no question yet".into());
        };
        // Editing an answer means editing the question before it.
        let questions = &self.chat.session.messages[..=place];
        let place = questions
            .iter()
            .rposition(|message| message.role == Role::User);
        if let Some(place) = place {
            self.input = Editor::with(&self.chat.session.messages[place].content);
            self.chat.editing = Some(place);
            self.chat.selected = Some(place);
        }
        Vec::new()
    }

    fn copy(&mut self) -> Vec<Effect> {
        let Some(place) = self.chat.target_message(Role::Assistant) else {
            return self.notify("there is nothing to copy yet".into());
        };
        let text = self.chat.session.messages[place].content.clone();
        self.notify(format!("copied {} characters", text.chars().count()));
        vec![Effect::Copy(text)]
    }

    fn select(&mut self, by: isize) {
        let count = self.chat.session.messages.len();
        let from = self.chat.selected.unwrap_or(count);
        self.chat.selected = from
            .checked_add_signed(by)
            .or(self.chat.selected)
            .filter(|place| *place < count);
        let start = self
            .chat
            .selected
            .and_then(|place| self.measures.messages.get(place));
        if let Some(start) = start {
            self.chat.scroll = Scroll::From(*start);
        }
    }

    /// Requests the arm's context length, unless it is known.
    pub(super) fn fetch_context(&mut self) -> Vec<Effect> {
        let arm = self.chat.session.head.arm.clone();
        let arm = arm.filter(|arm| !self.chat.contexts.contains_key(arm));
        arm.map(|arm| Effect::FetchContext { arm })
            .into_iter()
            .collect()
    }
}

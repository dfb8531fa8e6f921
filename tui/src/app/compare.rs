//! Several arms that answer the same question, side by side.

use serde_json::{Map, Value, json};

use super::chat::head;
use super::pane::Pane;
use super::{App, Effect, Mode};
use crate::keymap::Action;
use crate::session::{Analysis, Head, Message, Session};
use crate::wire::{Arm, Chunk, CompareChunk, Failure};

/// Maximum number of arms on the screen.
pub const MAX_PANES: usize = 4;

/// The number of alternatives to request for each token.
const ALTERNATIVES: u64 = 10;

/// The meaning of token colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Colours {
    /// Whether the reference would have generated them.
    #[default]
    Shift,
    /// Their probability.
    Probability,
    /// No colours.
    None,
}

impl Colours {
    fn next(self) -> Colours {
        match self {
            Colours::Shift => Colours::Probability,
            Colours::Probability => Colours::None,
            Colours::None => Colours::Shift,
        }
    }
}

/// The state of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Compare {
    /// The arms for the next question.
    pub chosen: Vec<String>,
    /// The question.
    pub question: String,
    /// The answers.
    pub panes: Vec<Pane>,
    /// The index of the reference, if the server compares.
    pub reference: usize,
    /// The seed that reproduces the answers.
    pub seed: u64,
    /// The meaning of token colours.
    pub colours: Colours,
    /// The pane that keys go to; `None` for the input.
    pub focus: Option<usize>,
    /// Why there are no answers.
    pub error: Option<Failure>,
    /// Whether each arm was sent its own request, because the server has no endpoint for
    /// comparisons.
    pub separate_requests: bool,
    /// The metadata to save, and the settings of the request.
    pub(super) head: Head,
    pub(super) analysis: Analysis,
    pub(super) running: Option<u64>,
}

impl Compare {
    /// Whether answers run.
    pub fn is_running(&self) -> bool {
        self.running.is_some() || self.panes.iter().any(|pane| pane.request.is_some())
    }

    /// Moves the focus to a pane, with its token in view, or to the input.
    fn focus_on(&mut self, pane: Option<usize>) {
        self.focus = pane;
        if let Some(pane) = pane {
            self.panes[pane].keeps_cursor = true;
        }
    }

    /// Other arms that influence a pane's answer, if the server reports them. Scores are those
    /// of the arm without them.
    pub fn guidance(&self, pane: usize) -> Option<&str> {
        self.analysis.arms[pane]["guidance"].as_str()
    }

    /// Chooses arms that are worth comparing, unless some were chosen.
    pub(super) fn set_arms(&mut self, arms: &[Arm], chat: Option<&str>) {
        if !self.chosen.is_empty() {
            return;
        }
        let of_chat = arms.iter().find(|arm| Some(arm.id.as_str()) == chat);
        let Some(first) = of_chat.or(arms.first()) else {
            return;
        };
        let root = first.root.as_ref().unwrap_or(&first.id);
        let named = |id: &str| arms.iter().find(|arm| arm.id == id);
        let base = named(&format!("{root}@base"));
        // A model that was trained to chat: under an adapter, or beside this one.
        let adapted = |arm: &&Arm| arm.id.starts_with(&format!("{root}+"));
        let another = |arm: &&Arm| {
            let is_instruct = arm.id.contains("instruct") || arm.id.contains("-it");
            arm.profile.is_none() && arm.root.as_ref() != Some(root) && is_instruct
        };
        let tuned = arms.iter().find(adapted);
        let tuned = tuned.or_else(|| arms.iter().find(another));
        // Between them the model as it chats by default.
        let best = [base, named(root), tuned].into_iter().flatten();
        let mut chosen: Vec<String> = best.map(|arm| arm.id.clone()).collect();
        let mut others = arms.iter().map(|arm| &arm.id);
        while chosen.len() < 2
            && let Some(id) = others.next()
        {
            if !chosen.contains(id) {
                chosen.push(id.clone());
            }
        }
        self.chosen = chosen;
    }

    /// The messages of the request.
    fn messages(&self) -> Vec<Value> {
        let system = self.head.system.trim();
        let system = (!system.is_empty()).then(|| json!({"role": "system", "content": system}));
        let mut messages: Vec<Value> = system.into_iter().collect();
        messages.push(json!({"role": "user", "content": self.question}));
        messages
    }

    /// Whether there is anything to export: a complete answer, in a comparison that has ended.
    pub fn is_exportable(&self) -> bool {
        let ended = !self.is_running() && !self.analysis.arms.is_null();
        ended && self.panes.iter().any(Pane::is_complete)
    }

    /// The report of the complete answers, with the summary if all are complete.
    fn report(&self) -> Option<Value> {
        if !self.is_exportable() {
            return None;
        }
        let Analysis {
            arms,
            settings,
            summary,
            ..
        } = &self.analysis;
        let panes = self.panes.iter().enumerate();
        let panes = panes.filter(|(_, pane)| pane.is_complete());
        let temperature = &settings["temperature"][0];
        let answers: Vec<Value> = panes
            .map(|(arm, pane)| pane.report(arm, temperature))
            .collect();
        Some(json!({
            "format": 1,
            "incant": env!("CARGO_PKG_VERSION"),
            "created": self.head.created,
            "settings": settings,
            "arms": arms,
            "prompts": [{"messages": self.messages(), "prompt": null, "answers": answers}],
            "summary": summary,
            "sampling": [],
        }))
    }
}

impl App {
    pub(super) fn act_in_compare(&mut self, action: Action) -> Vec<Effect> {
        let count = self.compare.panes.len();
        let focus = self.compare.focus;
        match action {
            Action::Next if count > 0 => {
                let next = focus.map_or(0, |pane| pane + 1);
                self.compare.focus_on((next < count).then_some(next));
            }
            Action::Previous if count > 0 => {
                self.compare.focus_on(focus.unwrap_or(count).checked_sub(1));
            }
            Action::Colours => self.compare.colours = self.compare.colours.next(),
            Action::Promote => return self.promote(),
            Action::Export => return self.export(),
            Action::Regenerate if !self.compare.question.is_empty() && !self.is_busy() => {
                let question = self.compare.question.clone();
                let set = &self.chat.session.head.sampling;
                if set.temperature().unwrap_or_default() == 0.0 {
                    let key = self.keymap.hint(Action::Sampling).unwrap_or_default();
                    self.notify(format!(
                        "at temperature 0 the answers are the same again; {key} sets another"
                    ));
                }
                return self.ask_in_compare(question);
            }
            Action::Copy if count > 0 => {
                let pane = &self.compare.panes[focus.unwrap_or(0)];
                let text = pane.text.clone();
                self.notify(format!("copied the answer of {}", pane.arm));
                return vec![Effect::Copy(text)];
            }
            Action::CopyAll if count > 0 => {
                self.notify("copied the comparison".into());
                return vec![Effect::Copy(self.compare.session().markdown())];
            }
            action => match focus {
                Some(pane) => self.act_in_pane(pane, action),
                None => return self.scroll_panes_or_write(action),
            },
        }
        Vec::new()
    }

    fn act_in_pane(&mut self, place: usize, action: Action) {
        let drawn = self.measures.panes.get(place).copied().unwrap_or_default();
        let width = usize::from(drawn.text.width);
        let pane = &mut self.compare.panes[place];
        let has_tokens = !pane.tokens.is_empty();
        match action {
            Action::Left => pane.move_to(pane.cursor.saturating_sub(1)),
            Action::Right => pane.move_to(pane.cursor + 1),
            Action::LineStart => pane.move_to(0),
            Action::LineEnd => pane.move_to(usize::MAX),
            Action::Up if has_tokens => pane.move_vertically(-1, width),
            Action::Down if has_tokens => pane.move_vertically(1, width),
            action => pane.scroll_by_key(action, drawn),
        }
    }

    fn scroll_panes_or_write(&mut self, action: Action) -> Vec<Effect> {
        let scrolls = matches!(
            action,
            Action::ScrollUp | Action::ScrollDown | Action::ScrollTop | Action::ScrollBottom
        );
        if !scrolls {
            return self.act_on_input(action);
        }
        let drawn = self.measures.panes.iter();
        for (pane, drawn) in self.compare.panes.iter_mut().zip(drawn) {
            pane.scroll_by_key(action, *drawn);
        }
        Vec::new()
    }

    pub(super) fn ask_in_compare(&mut self, question: String) -> Vec<Effect> {
        if self.compare.chosen.is_empty() {
            return self.report_error("the server lists no arms to compare".into());
        }
        let set = &self.chat.session.head;
        let drawn = u64::from(self.now.unix.subsec_nanos());
        let seed = set.sampling.seed().unwrap_or(drawn);
        let head = Head {
            system: set.system.clone(),
            sampling: set.sampling.clone(),
            ..head(self.now)
        };
        let old = std::mem::take(&mut self.compare);
        let panes = old.chosen.iter().map(|arm| Pane::new(arm, self.now));
        self.compare = Compare {
            panes: panes.collect(),
            chosen: old.chosen,
            colours: old.colours,
            separate_requests: !self.compares,
            question,
            seed,
            head,
            ..Compare::default()
        };
        if self.compare.separate_requests {
            self.request_each()
        } else {
            self.request_together()
        }
    }

    fn request_together(&mut self) -> Vec<Effect> {
        let request = self.next_request();
        self.compare.running = Some(request);
        let mut body = Map::new();
        self.chat
            .session
            .head
            .sampling
            .of_comparison()
            .write(&mut body);
        body.insert("arms".into(), json!(self.compare.chosen));
        body.insert("messages".into(), json!(self.compare.messages()));
        body.insert("seed".into(), json!(self.compare.seed));
        body.insert("analysis".into(), json!(true));
        body.insert("top_logprobs".into(), json!(ALTERNATIVES));
        body.insert("stream".into(), json!(true));
        let body = Value::Object(body);
        vec![Effect::Compare { request, body }]
    }

    /// Sends each arm its own request, with an endpoint that all servers have.
    fn request_each(&mut self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for place in 0..self.compare.panes.len() {
            let request = self.next_request();
            let pane = &mut self.compare.panes[place];
            pane.request = Some(request);
            let mut body = Map::new();
            // The default of servers that compare.
            body.insert("temperature".into(), json!(0.0));
            self.chat
                .session
                .head
                .sampling
                .of_comparison()
                .write(&mut body);
            body.insert("model".into(), json!(pane.arm));
            body.insert("messages".into(), json!(self.compare.messages()));
            body.insert("seed".into(), json!(self.compare.seed));
            body.insert("logprobs".into(), json!(true));
            body.insert("top_logprobs".into(), json!(ALTERNATIVES));
            body.insert("stream".into(), json!(true));
            body.insert("stream_options".into(), json!({"include_usage": true}));
            let body = Value::Object(body);
            effects.push(Effect::Chat { request, body });
        }
        effects
    }

    /// Handles a chunk of an answer to an arm's own request.
    pub(super) fn pane_chunk(&mut self, request: u64, chunk: Chunk) {
        let mut panes = self.compare.panes.iter_mut();
        if let Some(pane) = panes.find(|pane| pane.request == Some(request)) {
            pane.add_chunk(chunk, self.now);
        }
    }

    pub(super) fn compare_chunk(&mut self, request: u64, chunk: CompareChunk) {
        let compare = &mut self.compare;
        if compare.running != Some(request) {
            return;
        }
        match chunk {
            CompareChunk::Begin { arms, settings } => {
                compare.reference = settings["reference"].as_u64().unwrap_or_default() as usize;
                for (place, pane) in compare.panes.iter_mut().enumerate() {
                    let profile = arms[place]["rendered_by"].as_str();
                    pane.profile = profile.map(str::to_owned);
                }
                compare.analysis.arms = arms;
                compare.analysis.settings = settings;
            }
            CompareChunk::Delta { arm, content } => {
                if let Some(pane) = compare.panes.get_mut(arm) {
                    pane.add_text(&content, self.now);
                }
            }
            CompareChunk::Tokens { arm, tokens } => {
                if let Some(pane) = compare.panes.get_mut(arm) {
                    pane.add_tokens(tokens);
                }
            }
            CompareChunk::End {
                arm,
                finish,
                usage,
                raw_usage,
            } => {
                if let Some(pane) = compare.panes.get_mut(arm) {
                    pane.end(finish, usage, raw_usage);
                }
            }
            CompareChunk::Summary(summary) => compare.analysis.summary = summary,
            CompareChunk::Other => {}
        }
    }

    pub(super) fn compare_ended(
        &mut self,
        request: u64,
        result: Result<(), Failure>,
    ) -> Vec<Effect> {
        let compare = &mut self.compare;
        let error = result.err();
        if compare.running == Some(request) {
            compare.running = None;
            let missing = error.as_ref().is_some_and(Failure::is_missing);
            if missing && compare.analysis.arms.is_null() {
                self.compares = false;
                compare.separate_requests = true;
                compare.colours = Colours::Probability;
                let why =
                    "no shift: this server has no /v1/compare; each arm gets a request of its own";
                self.notify(why.into());
                return self.request_each();
            }
            compare.error = error;
        } else {
            let mut panes = compare.panes.iter_mut();
            if let Some(pane) = panes.find(|pane| pane.request == Some(request)) {
                pane.request = None;
                pane.error = error;
            }
        }
        self.save_compared()
    }

    pub(super) fn stop_compare(&mut self) -> Vec<Effect> {
        let compare = &mut self.compare;
        let mut requests: Vec<u64> = compare.running.take().into_iter().collect();
        for pane in &mut compare.panes {
            requests.extend(pane.request.take());
        }
        if requests.is_empty() {
            return Vec::new();
        }
        for pane in &mut compare.panes {
            pane.finish.get_or_insert("stopped".into());
        }
        let stops = requests.into_iter();
        let mut effects: Vec<Effect> = stops.map(|request| Effect::Stop { request }).collect();
        effects.extend(self.save_compared());
        effects
    }

    /// Continues one arm's answer in chat.
    fn promote(&mut self) -> Vec<Effect> {
        let Some(pane) = self.compare.panes.get(self.compare.focus.unwrap_or(0)) else {
            return self.notify("there is no answer to continue from yet".into());
        };
        let answer = pane.message();
        let arm = Some(pane.arm.clone());
        let mut effects = self.stop();
        let old = &self.chat.session.head;
        let (system, sampling) = (old.system.clone(), old.sampling.clone());
        let session = Session {
            head: Head {
                arm,
                system,
                sampling,
                ..head(self.now)
            },
            messages: vec![Message::user(self.compare.question.clone()), answer],
            analysis: None,
        };
        self.chat.replace(session.clone());
        self.mode = Mode::Chat;
        effects.push(Effect::Save(Box::new(session)));
        effects.extend(self.fetch_context());
        effects
    }

    fn export(&mut self) -> Vec<Effect> {
        if self.compare.separate_requests {
            let why = "no report: there are no scores, as the server has no /v1/compare";
            return self.report_error(why.into());
        }
        match self.compare.report() {
            Some(report) => vec![Effect::Export(Box::new(report))],
            None => self.notify("there is no complete answer to export yet".into()),
        }
    }
}

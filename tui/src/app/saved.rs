//! Opening of saved sessions, and saving of comparisons.

use super::chat::head;
use super::compare::{Colours, Compare};
use super::pane::Pane;
use super::{App, Effect, Mode, Now};
use crate::session::{Analysis, Comparison, Head, Message, Session};

impl Compare {
    /// The comparison as a session to save.
    pub(super) fn session(&self) -> Session {
        let arms = self.panes.iter().map(|pane| pane.arm.clone()).collect();
        let comparison = Comparison {
            arms,
            reference: self.reference,
            seed: self.seed,
            separate_requests: self.separate_requests,
        };
        let mut messages = vec![Message::user(self.question.clone())];
        messages.extend(self.panes.iter().map(Pane::message));
        Session {
            head: Head {
                compare: Some(comparison),
                ..self.head.clone()
            },
            messages,
            analysis: Some(Analysis {
                answers: self.panes.iter().map(Pane::answer_analysis).collect(),
                ..self.analysis.clone()
            }),
        }
    }

    /// A saved comparison, without the analysis of its tokens.
    fn from_session(session: Session, comparison: Comparison, now: Now) -> Compare {
        let mut messages = session.messages.into_iter();
        let question = messages.next().map(|message| message.content);
        Compare {
            chosen: comparison.arms,
            question: question.unwrap_or_default(),
            panes: messages
                .map(|answer| Pane::from_message(answer, now))
                .collect(),
            reference: comparison.reference,
            seed: comparison.seed,
            separate_requests: comparison.separate_requests,
            head: session.head,
            ..Compare::default()
        }
    }
}

impl App {
    /// Saves a comparison that has ended and has text.
    pub(super) fn save_compared(&self) -> Vec<Effect> {
        let said = |pane: &Pane| !pane.text.is_empty();
        if !self.compare.is_running() && self.compare.panes.iter().any(said) {
            vec![Effect::Save(Box::new(self.compare.session()))]
        } else {
            Vec::new()
        }
    }

    /// Shows a saved session, with its settings.
    pub(super) fn open_session(&mut self, mut session: Session) -> Vec<Effect> {
        let mut effects = self.stop();
        match session.head.compare.take() {
            None => {
                self.chat.replace(session);
                self.mode = Mode::Chat;
                effects.extend(self.fetch_context());
            }
            Some(comparison) => {
                let id = session.head.id.clone();
                let settings = &mut self.chat.session.head;
                settings.system.clone_from(&session.head.system);
                settings.sampling.clone_from(&session.head.sampling);
                let colours = match (comparison.separate_requests, self.compare.colours) {
                    (true, Colours::Shift) => Colours::Probability,
                    (_, colours) => colours,
                };
                self.compare = Compare {
                    colours,
                    ..Compare::from_session(session, comparison, self.now)
                };
                self.mode = Mode::Compare;
                effects.push(Effect::LoadAnalysis { id });
            }
        }
        self.warn_of_missing_arms();
        effects
    }

    /// Restores the analysis of the comparison that is shown.
    pub(super) fn restore_analysis(&mut self, id: &str, mut analysis: Analysis) {
        if self.compare.head.id != id || self.compare.is_running() {
            return;
        }
        let answers = std::mem::take(&mut analysis.answers);
        for (pane, answer) in self.compare.panes.iter_mut().zip(answers) {
            pane.restore_analysis(answer);
        }
        self.compare.analysis = analysis;
    }

    /// Begins a new session in the current mode; settings stay, which the user is told.
    pub(super) fn new_session(&mut self) -> Vec<Effect> {
        let effects = self.stop();
        self.clear_session(self.mode);
        let head = &self.chat.session.head;
        let mut kept: Vec<String> = match self.mode {
            Mode::Chat => head.arm.iter().cloned().collect(),
            Mode::Compare => vec!["the arms".into()],
        };
        if !head.system.is_empty() {
            kept.push("the system message".into());
        }
        kept.extend(head.sampling.summary());
        let kept = kept.join(", ");
        self.notify(format!("a new session, with {kept} as before"));
        effects
    }

    /// Empties a mode's session.
    pub(super) fn clear_session(&mut self, mode: Mode) {
        match mode {
            Mode::Chat => {
                let old = &self.chat.session.head;
                let head = Head {
                    arm: old.arm.clone(),
                    system: old.system.clone(),
                    sampling: old.sampling.clone(),
                    ..head(self.now)
                };
                self.chat.replace(Session {
                    head,
                    ..Session::default()
                });
            }
            Mode::Compare => {
                let old = std::mem::take(&mut self.compare);
                self.compare = Compare {
                    chosen: old.chosen,
                    colours: old.colours,
                    ..Compare::default()
                };
            }
        }
    }
}

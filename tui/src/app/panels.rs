//! Panels over the conversation: lists, settings, help.

use std::collections::HashSet;

use super::editor::Editor;
use super::picker::Picker;
use super::scroll::Scroll;
use super::{App, Effect, Mode, compare::MAX_PANES};
use crate::keymap::Action;
use crate::sampling::{FIELDS, Field, Sampling};
use crate::session::{Listing, Session};
use crate::wire::{Arm, plain_id};
use crate::wrap;

/// The open panel.
#[derive(Clone, Debug)]
pub enum Panel {
    /// Help on keys.
    Help(Scroll),
    /// The list of arms.
    Arms {
        /// The list.
        picker: Picker,
        /// In compare mode: the marked arms, in their order.
        marked: Vec<String>,
    },
    /// The sampling parameters.
    Sampling {
        /// The index of the selected one.
        at: usize,
        /// The value that is being typed.
        value: Editor,
        /// Why the value is invalid.
        refused: Option<&'static str>,
    },
    /// The system message.
    System(Editor),
    /// The saved sessions.
    Sessions {
        /// The list.
        picker: Picker,
        /// All sessions; `None` while they are read.
        all: Option<Listing>,
        /// The session that is deleted if the key is pressed again.
        confirming_delete: Option<String>,
    },
    /// The title of a saved session.
    Rename {
        /// The session.
        id: String,
        /// Its title.
        title: Editor,
    },
}

impl Panel {
    /// Inserts text, if the panel has a text field.
    pub(super) fn insert(&mut self, text: &str) {
        match self {
            Panel::Help(_) => {}
            Panel::Arms { picker, .. } | Panel::Sessions { picker, .. } => picker.insert(text),
            Panel::Sampling { value, .. } => value.insert(&text.replace('\n', " ")),
            Panel::System(editor) => editor.insert(text),
            Panel::Rename { title, .. } => title.insert(&text.replace('\n', " ")),
        }
    }
}

/// The option that the key for guidance appends to an arm's id.
const GUIDANCE: &str = " guidance=0.5";

/// The id that is typed in full in the search line: a known arm's, with options.
fn written_arm(arms: &[Arm], picker: &Picker) -> Option<String> {
    let text = picker.filter.text().trim();
    let plain = plain_id(text);
    let is_known = arms.iter().any(|arm| arm.id == plain);
    (is_known && plain != text).then(|| text.to_owned())
}

/// The number of characters shown before a match.
const CONTEXT_CHARS: usize = 12;

/// The first line of a session that contains the search text, from a little before the match;
/// `None` if the title contains it.
pub fn matching_line(session: &Session, picker: &Picker) -> Option<String> {
    let text = picker.filter.text().to_lowercase();
    let title = session.title().to_lowercase();
    let mut missing = text.split_whitespace().filter(|word| !title.contains(word));
    let word = missing.next()?;
    let messages = session.messages.iter();
    let lines = messages.flat_map(|message| message.content.lines());
    let mut matches = lines.filter_map(|line| {
        let (line, lower) = (line.trim(), line.trim().to_lowercase());
        let at = lower[..lower.find(word)?].chars().count();
        Some((line, at.saturating_sub(CONTEXT_CHARS)))
    });
    Some(match matches.next()? {
        (line, 0) => line.to_owned(),
        (line, from) => "…".chars().chain(line.chars().skip(from)).collect(),
    })
}

/// The sessions that match the search: all their text is searched, and the word `compare` finds
/// comparisons.
pub fn matching_sessions<'a>(all: &'a [Session], picker: &Picker) -> Vec<&'a Session> {
    let matches = all.iter().filter(|session| {
        let mut text = session.markdown();
        text.push_str(&session.head.title);
        text.push(' ');
        text.push_str(session.head.arm.as_deref().unwrap_or_default());
        text.push_str(match session.head.compare {
            Some(_) => " compare",
            None => " chat",
        });
        picker.matches(&text)
    });
    matches.collect()
}

impl App {
    /// The ids that the list of arms shows: the one that is typed in full, then those that
    /// match; for chosen or `marked` arms also those with guidance, which no server lists.
    pub fn matching_arms(&self, picker: &Picker, marked: &[String]) -> Vec<String> {
        let known = self.known_arms();
        let written = written_arm(known, picker);
        let chosen = match self.mode {
            Mode::Chat => self.chat.session.head.arm.as_slice(),
            Mode::Compare => marked,
        };
        let guided = chosen.iter().filter(|id| plain_id(id) != id.as_str());
        let all = guided.chain(known.iter().map(|arm| &arm.id));
        let written = written.into_iter();
        let all = written.chain(all.filter(|id| self.arm_matches(picker, id)).cloned());
        let mut seen = HashSet::new();
        all.filter(|id| seen.insert(id.clone())).collect()
    }

    /// Whether the search text occurs in an arm's id or in its profile's language or title.
    fn arm_matches(&self, picker: &Picker, id: &str) -> bool {
        if picker.filter.is_blank() || picker.matches(id) {
            return true;
        }
        let profile = self.profile(id);
        profile.is_some_and(|profile| {
            picker.matches(&format!("{id} {} {}", profile.language, profile.title))
        })
    }

    /// Describes the value in force of a parameter that is not set.
    pub fn effective_value(&self, field: &Field) -> String {
        let arm = self.chat.session.head.arm.as_deref();
        let own = arm.and_then(|arm| self.known_arm(arm)?.sampling.as_ref());
        let (value, whose) = match (self.mode, own) {
            (Mode::Compare, _) if field.name == "temperature" => ("0".into(), "in comparisons"),
            (Mode::Compare, _) if self.compares => (field.neutral.into(), "in comparisons"),
            (Mode::Chat, Some(own)) => match own.get(field.name) {
                Some(value) => (value.to_string(), "the arm's own"),
                None => (field.neutral.to_owned(), "the server's default"),
            },
            _ => return "left to the server".into(),
        };
        format!("{value} ({whose})")
    }

    /// Opens a panel.
    pub(super) fn open(&mut self, action: Action) -> Vec<Effect> {
        let head = &self.chat.session.head;
        let mut effects = Vec::new();
        self.panel = match action {
            Action::Help => Some(Panel::Help(Scroll::From(0))),
            Action::Arms => {
                let marked = match self.mode {
                    Mode::Chat => Vec::new(),
                    Mode::Compare => self.compare.chosen.clone(),
                };
                // The server's list may have changed.
                let after = std::time::Duration::ZERO;
                effects.push(Effect::FetchArms { after });
                Some(Panel::Arms {
                    picker: Picker::default(),
                    marked,
                })
            }
            Action::Sampling => Some(sampling(&head.sampling, 0)),
            Action::System => Some(Panel::System(Editor::with(&head.system))),
            Action::Sessions => {
                effects.push(Effect::ListSessions);
                Some(sessions())
            }
            _ => None,
        };
        effects
    }

    /// Performs a key's action while a panel is open.
    pub(super) fn act_in_panel(&mut self, action: Action) -> Vec<Effect> {
        let action = match action {
            Action::DeleteOrQuit => Action::DeleteForward,
            other => other,
        };
        match action {
            Action::Quit => return self.quit(),
            Action::Mouse => return self.switch_mouse(),
            Action::Help | Action::Arms | Action::Sampling | Action::System | Action::Sessions => {
                return self.open_or_close(action);
            }
            _ => {}
        }
        let Some(mut panel) = self.panel.take() else {
            return Vec::new();
        };
        // An invalid value is reported before the panel can be left.
        let (keep, effects) = self.act_on(&mut panel, action);
        if keep && self.panel.is_none() {
            self.panel = Some(panel);
        }
        effects
    }

    /// A panel's own key closes it again.
    fn open_or_close(&mut self, action: Action) -> Vec<Effect> {
        let open = match &self.panel {
            Some(Panel::Help(_)) => Some(Action::Help),
            Some(Panel::Arms { .. }) => Some(Action::Arms),
            Some(Panel::Sampling { .. }) => Some(Action::Sampling),
            Some(Panel::System(_)) => Some(Action::System),
            Some(Panel::Sessions { .. } | Panel::Rename { .. }) => Some(Action::Sessions),
            None => None,
        };
        if open == Some(action) {
            self.act_in_panel(Action::Stop)
        } else {
            let mut effects = self.act_in_panel(Action::Stop);
            if self.panel.is_none() {
                effects.extend(self.open(action));
            }
            effects
        }
    }

    /// Returns whether the panel stays, and the effects.
    fn act_on(&mut self, panel: &mut Panel, action: Action) -> (bool, Vec<Effect>) {
        let closes = matches!(action, Action::Stop | Action::Interrupt);
        match panel {
            Panel::Help(scroll) => {
                let extent = self.measures.help;
                scroll.act(action, extent);
                (!closes && action != Action::Send, Vec::new())
            }
            Panel::Arms { .. } | Panel::Sessions { .. } if closes => (false, Vec::new()),
            Panel::Arms { picker, marked } => self.act_on_arms(picker, marked, action),
            Panel::Sessions {
                picker,
                all,
                confirming_delete,
            } => {
                let confirming_delete = confirming_delete.take();
                let all = all.as_ref().map_or(&[][..], |all| &all.sessions);
                let found = matching_sessions(all, picker);
                let here = found.get(picker.at).copied();
                match (action, here) {
                    (Action::Send, Some(session)) => {
                        let session = session.clone();
                        (false, self.open_session(session))
                    }
                    (Action::Rename, Some(session)) => {
                        *panel = Panel::Rename {
                            id: session.head.id.clone(),
                            title: Editor::with(session.title()),
                        };
                        (true, Vec::new())
                    }
                    (Action::Delete, Some(session)) => {
                        let id = session.head.id.clone();
                        let title = session.title().to_owned();
                        self.delete(panel, id, &title, confirming_delete)
                    }
                    _ => {
                        picker.act(action, found.len());
                        (true, Vec::new())
                    }
                }
            }
            Panel::Rename { id, title } => {
                if !closes && action != Action::Send {
                    if action != Action::Newline {
                        title.act(action, usize::MAX);
                    }
                    return (true, Vec::new());
                }
                let mut effects = Vec::new();
                if action == Action::Send {
                    let (id, title) = (std::mem::take(id), title.text().trim().to_owned());
                    for head in [&mut self.chat.session.head, &mut self.compare.head] {
                        if head.id == id {
                            head.title.clone_from(&title);
                        }
                    }
                    effects.push(Effect::Rename { id, title });
                }
                effects.push(Effect::ListSessions);
                *panel = sessions();
                (true, effects)
            }
            Panel::Sampling { at, value, refused } => {
                let moves = match action {
                    Action::Up => Some(at.saturating_sub(1)),
                    Action::Down | Action::Send => Some((*at + 1).min(FIELDS.len() - 1)),
                    _ if closes => Some(*at),
                    _ => None,
                };
                let Some(to) = moves else {
                    if action != Action::Newline {
                        value.act(action, usize::MAX);
                    }
                    *refused = None;
                    return (true, Vec::new());
                };
                let settings = &mut self.chat.session.head.sampling;
                let set = settings.set(&FIELDS[*at], value.text());
                match set {
                    Err(why) => *refused = Some(why),
                    Ok(()) if closes => return (false, Vec::new()),
                    Ok(()) => *panel = sampling(settings, to),
                }
                (true, Vec::new())
            }
            Panel::System(editor) => {
                if closes || action == Action::Send {
                    let system = editor.text().trim().to_owned();
                    self.chat.session.head.system = system;
                    return (false, Vec::new());
                }
                editor.act(action, self.measures.panel);
                (true, Vec::new())
            }
        }
    }

    /// Deletes a session, if the key is pressed for it a second time.
    fn delete(
        &mut self,
        panel: &mut Panel,
        id: String,
        title: &str,
        asked: Option<String>,
    ) -> (bool, Vec<Effect>) {
        let is_open = [&self.chat.session.head.id, &self.compare.head.id].contains(&&id);
        if is_open && self.is_busy() {
            let why = "an answer is running in it; stop it first";
            return (true, self.notify(why.into()));
        }
        let Panel::Sessions {
            confirming_delete, ..
        } = panel
        else {
            return (true, Vec::new());
        };
        if asked.as_ref() != Some(&id) {
            *confirming_delete = Some(id);
            let key = self.keymap.hint(Action::Delete).unwrap_or_default();
            let why = format!("{key} again deletes “{}”", wrap::shortened(title, 40));
            return (true, self.report_error(why));
        }
        // A session that stays on the screen would be saved again.
        if self.chat.session.head.id == id {
            self.clear_session(Mode::Chat);
        }
        if self.compare.head.id == id {
            self.clear_session(Mode::Compare);
        }
        self.notify(format!("deleted “{}”", wrap::shortened(title, 40)));
        (true, vec![Effect::Delete { id }, Effect::ListSessions])
    }

    fn act_on_arms(
        &mut self,
        picker: &mut Picker,
        marked: &mut Vec<String>,
        action: Action,
    ) -> (bool, Vec<Effect>) {
        let found = self.matching_arms(picker, marked);
        let here = found.get(picker.at).cloned();
        match (action, self.mode) {
            (Action::Next, Mode::Compare) => {
                let Some(here) = here else {
                    return (true, Vec::new());
                };
                match marked.iter().position(|id| *id == here) {
                    Some(place) => _ = marked.remove(place),
                    None if marked.len() < MAX_PANES => marked.push(here),
                    None => _ = self.notify(format!("{MAX_PANES} arms fit the screen at most")),
                }
                (true, Vec::new())
            }
            (Action::Send, Mode::Compare) => {
                self.compare.chosen = if marked.is_empty() {
                    here.into_iter().collect()
                } else {
                    std::mem::take(marked)
                };
                (false, Vec::new())
            }
            (Action::Send, Mode::Chat) => {
                let Some(here) = here else {
                    return (true, Vec::new());
                };
                self.chat.session.head.arm = Some(here);
                (false, self.fetch_context())
            }
            (Action::Guide, _) => {
                if let Some(here) = here {
                    let plain = plain_id(&here);
                    let other = if plain == here {
                        format!("{here}{GUIDANCE}")
                    } else {
                        plain.to_owned()
                    };
                    picker.filter = Editor::with(&other);
                    let found = self.matching_arms(picker, marked);
                    let place = found.iter().position(|id| *id == other);
                    picker.at = place.unwrap_or(0);
                }
                (true, Vec::new())
            }
            (action, _) => {
                let count = found.len();
                picker.act(action, count);
                (true, Vec::new())
            }
        }
    }
}

/// The list of saved sessions, while it is read.
fn sessions() -> Panel {
    Panel::Sessions {
        picker: Picker::default(),
        all: None,
        confirming_delete: None,
    }
}

/// The panel of parameters, with one of them selected.
fn sampling(settings: &Sampling, at: usize) -> Panel {
    let value = settings.get(FIELDS[at].name).unwrap_or_default();
    Panel::Sampling {
        at,
        value: Editor::with(&value),
        refused: None,
    }
}

//! A list with a text that narrows it.

use super::editor::Editor;
use crate::keymap::Action;

/// Where someone is in a list.
#[derive(Clone, Debug, Default)]
pub struct Picker {
    /// What is searched for.
    pub filter: Editor,
    /// The place among what is found.
    pub at: usize,
}

impl Picker {
    /// Moves, or edits what is searched for. `found` is how many there are.
    pub fn act(&mut self, action: Action, found: usize) {
        let last = found.saturating_sub(1);
        match action {
            Action::Up => self.at = self.at.saturating_sub(1),
            Action::Down => self.at = (self.at + 1).min(last),
            Action::ScrollUp => self.at = self.at.saturating_sub(10),
            Action::ScrollDown => self.at = (self.at + 10).min(last),
            Action::ScrollTop => self.at = 0,
            Action::ScrollBottom => self.at = last,
            Action::Newline => {}
            action => {
                if self.filter.act(action, usize::MAX) {
                    self.at = 0;
                }
            }
        }
    }

    /// Adds to what is searched for.
    pub fn insert(&mut self, text: &str) {
        self.filter.insert(&text.replace('\n', " "));
        self.at = 0;
    }

    /// Whether a text has all the words that are searched for, in any case.
    pub fn matches(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let wanted = self.filter.text().to_lowercase();
        wanted.split_whitespace().all(|word| text.contains(word))
    }
}

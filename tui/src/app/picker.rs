//! A list with a search text that filters it.

use super::editor::Editor;
use crate::keymap::Action;

/// The search text and position of a list.
#[derive(Clone, Debug, Default)]
pub struct Picker {
    /// The search text.
    pub filter: Editor,
    /// The index among the matches.
    pub at: usize,
}

impl Picker {
    /// Moves, or edits the search text. `found` is the number of matches.
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

    /// Adds to the search text.
    pub fn insert(&mut self, text: &str) {
        self.filter.insert(&text.replace('\n', " "));
        self.at = 0;
    }

    /// Whether a text contains all words of the search text, ignoring case.
    pub fn matches(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let wanted = self.filter.text().to_lowercase();
        wanted.split_whitespace().all(|word| text.contains(word))
    }
}

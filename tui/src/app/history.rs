//! The history of questions, like a shell's.

use super::editor::Editor;

/// The questions of this and earlier sessions, and the position in them.
#[derive(Clone, Debug, Default)]
pub struct History {
    questions: Vec<String>,
    at: Option<usize>,
    draft: String,
}

impl History {
    /// A history of these questions, the oldest first.
    pub fn new(questions: Vec<String>) -> History {
        History {
            questions,
            ..History::default()
        }
    }

    /// Adds a question; returns `false` if it equals the last one.
    pub fn add(&mut self, question: &str) -> bool {
        self.at = None;
        if self.questions.last().is_some_and(|last| last == question) {
            return false;
        }
        self.questions.push(question.to_owned());
        true
    }

    /// Shows the previous question.
    pub fn back(&mut self, input: &mut Editor) {
        let at = self.at.unwrap_or(self.questions.len());
        let Some(before) = at.checked_sub(1) else {
            return;
        };
        if self.at.is_none() {
            self.draft = input.text().to_owned();
        }
        self.at = Some(before);
        *input = Editor::with(&self.questions[before]);
    }

    /// Shows the next question; after the last one the unsent draft.
    pub fn forward(&mut self, input: &mut Editor) {
        let Some(at) = self.at else {
            return;
        };
        let next = at + 1;
        self.at = (next < self.questions.len()).then_some(next);
        *input = match self.at {
            Some(at) => Editor::with(&self.questions[at]),
            None => Editor::with(&std::mem::take(&mut self.draft)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_there_again_after_looking_back() {
        let mut history = History::new(vec!["one".into()]);
        history.add("two");
        let mut input = Editor::with("dra");
        history.back(&mut input);
        history.back(&mut input);
        history.back(&mut input);
        assert_eq!(input.text(), "one");
        history.forward(&mut input);
        assert_eq!(input.text(), "two");
        history.forward(&mut input);
        assert_eq!(input.text(), "dra");
    }

    #[test]
    fn the_same_question_twice_is_kept_once() {
        let mut history = History::default();
        assert!(history.add("one"));
        assert!(!history.add("one"));
    }
}

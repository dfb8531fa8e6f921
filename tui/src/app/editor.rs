//! A text editor. It moves and deletes by grapheme cluster: an emoji family is one character,
//! and so is a letter with its accent.

use unicode_segmentation::UnicodeSegmentation;

use crate::keymap::Action;
use crate::wrap;

/// A text and its cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Editor {
    text: String,
    cursor: usize,
}

impl Editor {
    /// An editor with a text, the cursor at its end.
    pub fn with(text: &str) -> Editor {
        let mut editor = Editor::default();
        editor.insert(text);
        editor
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the text is empty or only white space.
    pub fn is_blank(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// Removes and returns the text.
    pub fn take(&mut self) -> String {
        self.cursor = 0;
        std::mem::take(&mut self.text)
    }

    /// Inserts a text at the cursor.
    pub fn insert(&mut self, text: &str) {
        let text = wrap::harmless(&text.replace("\r\n", "\n").replace('\r', "\n"));
        self.text.insert_str(self.cursor, &text);
        self.cursor += text.len();
    }

    /// Row and column of the cursor, if rows are `width` cells wide.
    pub fn position(&self, width: usize) -> (usize, usize) {
        let rows = wrap::rows(&self.text, width);
        let row = rows.partition_point(|row| row.start <= self.cursor) - 1;
        let column = wrap::width(&self.text[rows[row].start..self.cursor]);
        // Spaces may extend beyond the edge, the cursor does not.
        (row, column.min(width.saturating_sub(1)))
    }

    /// Performs a key's action; returns `false` if it had no effect, such as moving up from the
    /// first row.
    pub fn act(&mut self, action: Action, width: usize) -> bool {
        let before = (self.cursor, self.text.len());
        match action {
            Action::Left => self.cursor = self.previous(),
            Action::Right => self.cursor = self.next(),
            Action::WordLeft => self.cursor = self.word_before(),
            Action::WordRight => self.cursor = self.word_after(),
            Action::LineStart => self.cursor = self.line_start(),
            Action::LineEnd => self.cursor = self.line_end(),
            Action::Up => self.move_vertically(width, -1),
            Action::Down => self.move_vertically(width, 1),
            Action::DeleteBack => self.delete_from(self.previous()),
            Action::DeleteForward => self.delete_to(self.next()),
            Action::DeleteWord => self.delete_from(self.word_before()),
            Action::DeleteToStart => self.delete_from(self.line_start()),
            Action::DeleteToEnd => self.delete_to(self.line_end()),
            Action::Newline => self.insert("\n"),
            _ => return false,
        }
        before != (self.cursor, self.text.len())
    }

    /// Moves the cursor to a row and column, or the nearest place.
    pub fn click(&mut self, row: usize, column: usize, width: usize) {
        let rows = wrap::rows(&self.text, width);
        let row = rows[row.min(rows.len() - 1)].clone();
        self.cursor = wrap::place(&self.text, row, column);
    }

    fn previous(&self) -> usize {
        let before = &self.text[..self.cursor];
        before
            .grapheme_indices(true)
            .next_back()
            .map_or(0, |(at, _)| at)
    }

    fn next(&self) -> usize {
        let mut after = self.text[self.cursor..].graphemes(true);
        self.cursor + after.next().map_or(0, str::len)
    }

    fn word_before(&self) -> usize {
        let words = self.text[..self.cursor].split_word_bound_indices();
        let mut words = words.rev().skip_while(|(_, word)| word.trim().is_empty());
        words.next().map_or(0, |(at, _)| at)
    }

    fn word_after(&self) -> usize {
        let words = self.text[self.cursor..].split_word_bound_indices();
        let mut words = words.skip_while(|(_, word)| word.trim().is_empty());
        words
            .next()
            .map_or(self.text.len(), |(at, word)| self.cursor + at + word.len())
    }

    fn line_start(&self) -> usize {
        self.text[..self.cursor].rfind('\n').map_or(0, |at| at + 1)
    }

    fn line_end(&self) -> usize {
        let after = &self.text[self.cursor..];
        self.cursor + after.find('\n').unwrap_or(after.len())
    }

    fn delete_from(&mut self, start: usize) {
        self.text.replace_range(start..self.cursor, "");
        self.cursor = start;
    }

    fn delete_to(&mut self, end: usize) {
        self.text.replace_range(self.cursor..end, "");
    }

    /// Moves to the same column of another row, or the nearest place.
    fn move_vertically(&mut self, width: usize, by: isize) {
        let rows = wrap::rows(&self.text, width);
        let (row, column) = self.position(width);
        let Some(target) = row.checked_add_signed(by).and_then(|row| rows.get(row)) else {
            return;
        };
        self.cursor = wrap::place(&self.text, target.clone(), column);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str, actions: &[Action]) -> (String, usize) {
        let mut editor = Editor::with(text);
        for action in actions {
            editor.act(*action, 10);
        }
        (editor.text, editor.cursor)
    }

    #[test]
    fn a_family_of_emoji_is_deleted_at_once() {
        assert_eq!(typed("a👨‍👩‍👧", &[Action::DeleteBack]), ("a".into(), 1));
    }

    #[test]
    fn an_accent_goes_with_its_letter() {
        assert_eq!(
            typed("cafe\u{301}", &[Action::DeleteBack]),
            ("caf".into(), 3)
        );
    }

    #[test]
    fn left_steps_over_a_whole_japanese_character() {
        assert_eq!(typed("日本", &[Action::Left]), ("日本".into(), 3));
        assert_eq!(
            typed("日本", &[Action::Left, Action::DeleteBack]),
            ("本".into(), 0)
        );
    }

    #[test]
    fn a_word_is_deleted_with_the_spaces_behind_it() {
        assert_eq!(
            typed("one two  ", &[Action::DeleteWord]),
            ("one ".into(), 4)
        );
    }

    #[test]
    fn the_cursor_of_wide_characters_stands_in_cells() {
        assert_eq!(Editor::with("日本").position(10), (0, 4));
        assert_eq!(Editor::with("日本語の文章").position(5), (2, 4));
    }

    #[test]
    fn up_keeps_the_column_over_wide_characters() {
        let mut editor = Editor::with("日本語\nabcd");
        assert!(editor.act(Action::Up, 10));
        assert_eq!(editor.position(10), (0, 4));
        assert!(!editor.act(Action::Up, 10));
    }

    #[test]
    fn a_click_puts_the_cursor_before_the_character_under_it() {
        let mut editor = Editor::with("日本語\nabcd");
        for (row, column, position) in [(0, 3, (0, 2)), (1, 9, (1, 4)), (7, 0, (1, 0))] {
            editor.click(row, column, 10);
            assert_eq!(editor.position(10), position);
        }
    }

    #[test]
    fn home_and_end_stay_in_the_line() {
        assert_eq!(typed("one\ntwo", &[Action::LineStart]).1, 4);
        assert_eq!(
            typed(
                "one\ntwo",
                &[Action::Up, Action::LineStart, Action::LineEnd]
            )
            .1,
            3
        );
        assert_eq!(
            typed("one\ntwo", &[Action::DeleteToStart]),
            ("one\n".into(), 4)
        );
    }

    #[test]
    fn a_pasted_tab_stays_a_tab_and_is_as_wide_as_it_looks() {
        let mut editor = Editor::with("if x:\n\treturn");
        assert_eq!(editor.text(), "if x:\n\treturn");
        assert_eq!(editor.position(20), (1, 10));
        editor.act(Action::LineStart, 20);
        editor.act(Action::Right, 20);
        assert_eq!(editor.position(20), (1, 4));
        editor.act(Action::DeleteBack, 20);
        assert_eq!(editor.text(), "if x:\nreturn");
    }

    #[test]
    fn pasted_lines_keep_their_ends_and_lose_control_characters() {
        let mut editor = Editor::default();
        editor.insert("a\r\nb\x1b[2J");
        assert_eq!(editor.text(), "a\nb[2J");
    }
}

//! Makes untrusted text safe to show: a model's output, the contents or name of a file, a client's
//! input (terminal escape injection, bidirectional overrides).

use std::borrow::Cow;

/// The number of characters of an untrusted value that an error or log line repeats.
const MAX_EXCERPT: usize = 200;

/// Returns `text`, or the first 200 characters of a longer one and an ellipsis: for errors and log
/// lines, which must not grow with untrusted input.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_EXCERPT) {
        Some((end, _)) => Cow::Owned(format!("{}\u{2026}", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Returns whether a terminal acts on a character instead of showing it: C0 and C1 control
/// characters, except for tabs and line ends, and bidirectional controls, which change the
/// direction of the text around them, so that it reads as something else.
pub fn is_terminal_control(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        other => other.is_control(),
    }
}

/// Returns `text` with every control character escaped, such as `\u{1b}`. Windows line ends become
/// plain line ends.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_terminal_control) {
        return Cow::Borrowed(text);
    }
    let mut stream = Stream::default();
    let mut shown = stream.push(text);
    shown.push_str(&stream.finish());
    Cow::Owned(shown)
}

/// Applies [`printable`] to a text that arrives in pieces. Each character that could begin or end
/// an escape sequence is escaped by itself, so it does not matter where a sequence is split.
#[derive(Debug, Default)]
pub struct Stream {
    /// Whether the last character was a carriage return; the next one tells whether it belongs to a
    /// line end.
    returned: bool,
}

impl Stream {
    /// Returns the next piece, safe to show.
    pub fn push(&mut self, piece: &str) -> String {
        let mut shown = String::with_capacity(piece.len() + 8);
        for character in piece.chars() {
            if std::mem::take(&mut self.returned) && character != '\n' {
                shown.push_str("\\r");
            }
            match character {
                '\r' => self.returned = true,
                control if is_terminal_control(control) => shown.extend(control.escape_default()),
                plain => shown.push(plain),
            }
        }
        shown
    }

    /// Returns the rest of the text after its end.
    pub fn finish(&mut self) -> String {
        if std::mem::take(&mut self.returned) {
            "\\r".to_owned()
        } else {
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_text_the_beginning_is_told() {
        let (short, long) = ("語".repeat(200), "語".repeat(100_000));
        assert_eq!(excerpt(&short), short);
        assert_eq!(excerpt(&long), short + "\u{2026}");
        assert_eq!(excerpt(""), "");
    }

    #[test]
    fn commands_to_a_terminal_become_escapes() {
        assert_eq!(
            printable("日本\n\t語 👩\u{200d}🚀"),
            "日本\n\t語 👩\u{200d}🚀"
        );
        assert_eq!(
            printable("a\u{1b}[2J\u{9b}\u{7f}"),
            "a\\u{1b}[2J\\u{9b}\\u{7f}"
        );
        assert_eq!(
            printable("\u{202e}txt.exe\u{2069}"),
            "\\u{202e}txt.exe\\u{2069}"
        );
    }

    #[test]
    fn a_carriage_return_stays_only_as_a_part_of_a_line_end() {
        assert_eq!(printable("one\r\ntwo\rthree\r"), "one\ntwo\\rthree\\r");
    }

    #[test]
    fn it_does_not_matter_where_a_text_is_cut() {
        let text = "a\u{1b}]52;c;cm0gLXJm\u{7}b\r\n\u{9b}31m\r\r\n\u{2067}ش\u{1b}[0m\tc\r";
        let whole = printable(text);
        let characters: Vec<char> = text.chars().collect();
        for size in 1..=characters.len() {
            let mut stream = Stream::default();
            let pieces = characters.chunks(size);
            let pieces = pieces.map(|piece| stream.push(&piece.iter().collect::<String>()));
            let shown: String = pieces.collect();
            assert_eq!(shown + &stream.finish(), whole, "cut by {size}");
        }
        assert!(!whole.contains(is_terminal_control));
    }
}

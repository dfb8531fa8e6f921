//! Terminal output of all commands. All of it passes through here, so that no text of a model, a
//! server or a file can inject escape sequences into the terminal.

use std::io::{self, ErrorKind, IsTerminal, Write};

use incant::printable::{self, is_terminal_control, printable};
use serde::Serialize;
use unicode_width::UnicodeWidthStr;

/// Writes `text` to standard output. If the reader has closed the pipe (`| head`), the command ends
/// quietly.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut pieces = Pieces::stdout();
    pieces.push(text)?;
    pieces.end()
}

/// Writes a line to standard error, for a person.
pub(crate) fn eprint_safe(line: &str) {
    eprintln!("{}", printable(line));
}

/// Writes a text as it is generated: to a terminal without escape sequences, to a file or a pipe
/// byte by byte as it is. If the reader has closed the pipe, further output is discarded: that is
/// no failure.
pub(crate) struct Pieces<W> {
    out: W,
    terminal: Option<printable::Stream>,
    reader_has_left: bool,
}

impl Pieces<io::StdoutLock<'static>> {
    /// Writes to standard output.
    pub(crate) fn stdout() -> Self {
        let out = io::stdout().lock();
        let is_terminal = out.is_terminal();
        Pieces::new(out, is_terminal)
    }
}

impl<W: Write> Pieces<W> {
    fn new(out: W, is_terminal: bool) -> Self {
        let terminal = is_terminal.then(printable::Stream::default);
        Pieces {
            out,
            terminal,
            reader_has_left: false,
        }
    }

    /// Writes and flushes the next piece.
    pub(crate) fn push(&mut self, piece: &str) -> io::Result<()> {
        match &mut self.terminal {
            Some(stream) => {
                let shown = stream.push(piece);
                self.write(&shown)
            }
            None => self.write(piece),
        }
    }

    /// Ends the text.
    pub(crate) fn end(mut self) -> io::Result<()> {
        match &mut self.terminal {
            Some(stream) => {
                let rest = stream.finish();
                self.write(&rest)
            }
            None => Ok(()),
        }
    }

    /// Ends the text and its last line.
    pub(crate) fn end_line(mut self) -> io::Result<()> {
        self.push("\n")?;
        self.end()
    }

    /// Returns whether the reader has closed the pipe.
    pub(crate) fn reader_has_left(&self) -> bool {
        self.reader_has_left
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if self.reader_has_left {
            return Ok(());
        }
        let written = self.out.write_all(text.as_bytes());
        match written.and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.reader_has_left = true;
                Ok(())
            }
            written => written,
        }
    }
}

/// Formats a value as indented JSON that is safe for a terminal, with a line end.
pub(crate) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(escape_json(&serde_json::to_string_pretty(value)?) + "\n")
}

/// Escapes the characters of JSON that a terminal would take for control characters; the JSON means
/// the same.
pub(crate) fn escape_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        // JSON has such characters only in strings, and all of them are below U+10000.
        if is_terminal_control(character) {
            text.push_str(&format!("\\u{:04x}", u32::from(character)))
        } else {
            text.push(character)
        }
    }
    text
}

/// The alignment of a column's cells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Lays out `rows` in columns that are two spaces apart, each line indented by two. Cells have
/// their width on a terminal: a CJK character takes two columns.
pub(crate) fn table(aligns: &[Align], rows: &[Vec<String>]) -> String {
    let mut widths = vec![0; aligns.len()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.width());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, &width), align) in row.iter().zip(&widths).zip(aligns) {
            let padding = " ".repeat(width - cell.width());
            line.push_str("  ");
            match align {
                Align::Left => line.extend([cell.as_str(), &padding]),
                Align::Right => line.extend([&padding, cell.as_str()]),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Formats a size in bytes for people, in decimal units.
pub(crate) fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        1e9.. => format!("{:.2} GB", bytes / 1e9),
        1e6.. => format!("{:.1} MB", bytes / 1e6),
        1e3.. => format!("{:.1} kB", bytes / 1e3),
        _ => format!("{bytes} B"),
    }
}

/// Formats a whole number with its digits in groups of three.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Makes text from a file safe for a terminal: control characters are escaped, and text beyond
/// `limit` characters becomes an ellipsis.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    let mut shown: String = text.chars().take(limit).flat_map(visible).collect();
    if text.chars().nth(limit).is_some() {
        shown.push('…');
    }
    shown
}

/// Returns a character, escaped if a terminal would act on it or hide it.
pub(crate) fn visible(c: char) -> impl Iterator<Item = char> {
    let escaped = c.escape_debug();
    // `escape_debug` also escapes quotes and backslashes, which are harmless.
    let plain = matches!(c, '\'' | '"' | '\\').then_some(c);
    let rest = plain.is_none().then_some(escaped).into_iter().flatten();
    plain.into_iter().chain(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_what_is_seen() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned(), "x".to_owned()],
            vec!["日本".to_owned(), "22".to_owned(), String::new()],
        ];
        assert_eq!(
            table(&[Align::Left, Align::Right, Align::Left], &rows),
            "  a      1  x\n  日本  22\n"
        );
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(262_144), "262,144");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(253_115_648), "253.1 MB");
        assert_eq!(size(2_000_000_000), "2.00 GB");
    }

    #[test]
    fn a_terminal_gets_no_commands_and_a_file_every_byte() {
        let pieces = ["a\u{1b}", "[2J\u{202e}b\r", "\n\tc\u{9b}"];
        let written = |is_terminal| {
            let mut bytes = Vec::new();
            let mut out = Pieces::new(&mut bytes, is_terminal);
            for piece in pieces {
                out.push(piece).unwrap();
            }
            out.end().unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(written(true), "a\\u{1b}[2J\\u{202e}b\n\tc\\u{9b}");
        assert_eq!(written(false), pieces.concat());
    }

    #[test]
    fn a_reader_that_leaves_is_no_failure() {
        struct Left;
        impl Write for Left {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Pieces::new(Left, false);
        assert!(!out.reader_has_left());
        out.push("a").unwrap();
        assert!(out.reader_has_left());
        out.end_line().unwrap();
    }

    #[test]
    fn json_means_the_same_and_holds_no_commands() {
        let value = ["\u{1b}\u{7f}\u{9b}", "\u{202e}日本\t\n"];
        let text = json(&value).unwrap();
        assert!(!text.contains(is_terminal_control), "{text:?}");
        assert_eq!(serde_json::from_str::<[String; 2]>(&text).unwrap(), value);
    }

    #[test]
    fn text_from_a_file_cannot_reach_the_terminal() {
        assert_eq!(clip("a\"b\\\u{1b}[31m\n", 80), "a\"b\\\\u{1b}[31m\\n");
        assert_eq!(clip("日本語", 2), "日本…");
        assert_eq!(clip("日本語", 3), "日本語");
    }
}

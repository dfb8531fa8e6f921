//! What the commands that print tables share.

use std::io::{self, ErrorKind, Write};

use unicode_width::UnicodeWidthStr;

/// Writes `text` to standard output. A reader that has left (`| head`) ends
/// the command quietly.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Where a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Lays `rows` out in columns that are two spaces apart, each line indented by
/// two. Cells are measured as a terminal shows them: a CJK character takes two
/// places.
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

/// A size in bytes as people read it, in decimal units.
pub(crate) fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        1e9.. => format!("{:.2} GB", bytes / 1e9),
        1e6.. => format!("{:.1} MB", bytes / 1e6),
        1e3.. => format!("{:.1} kB", bytes / 1e3),
        _ => format!("{bytes} B"),
    }
}

/// A whole number with its digits in groups of three.
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

/// Text out of a file, safe for a terminal: control characters are escaped,
/// and what is longer than `limit` characters ends in an ellipsis.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    let mut shown: String = text.chars().take(limit).flat_map(visible).collect();
    if text.chars().nth(limit).is_some() {
        shown.push('…');
    }
    shown
}

/// A character, escaped if a terminal would act on it or hide it.
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
    fn text_from_a_file_cannot_reach_the_terminal() {
        assert_eq!(clip("a\"b\\\u{1b}[31m\n", 80), "a\"b\\\\u{1b}[31m\\n");
        assert_eq!(clip("日本語", 2), "日本…");
        assert_eq!(clip("日本語", 3), "日本語");
    }
}

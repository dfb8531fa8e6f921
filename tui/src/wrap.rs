//! Wraps text to a width in terminal cells, at the places where Unicode allows a line break, so
//! that Japanese wraps between characters and English between words, and never within a
//! grapheme cluster.

use std::ops::Range;

use ratatui::style::Style;
use ratatui::text::{Line, Span};
use unicode_linebreak::linebreaks;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// The replacement of a tab.
const TAB: &str = "    ";

/// Maximum bytes of a growing line that are wrapped again when text is added.
const LONG: usize = 16 << 10;

/// A text that is safe to print on a terminal: tabs become spaces, and control characters are
/// removed, except for line ends.
pub fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' => clean.push_str(TAB),
            command if is_command(command) => {}
            shown => clean.push(shown),
        }
    }
    clean
}

/// A text without characters that a terminal interprets as commands. Tabs stay.
pub fn harmless(text: &str) -> String {
    text.chars().filter(|c| !is_command(*c)).collect()
}

/// Whether a terminal acts on a character instead of displaying it: control characters other
/// than tabs and line ends, and bidirectional formatting characters.
fn is_command(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        other => other.is_control(),
    }
}

/// The width of a text in cells, without line ends.
pub fn width(text: &str) -> usize {
    let parts = text.split('\t');
    let tabs = text.matches('\t').count();
    parts.map(UnicodeWidthStr::width).sum::<usize>() + tabs * TAB.len()
}

/// The rows of a text, as ranges of bytes. Line ends are in no row; spaces at the end of a row
/// belong to it and may extend beyond the width.
///
/// There is always at least one row: the empty text has an empty one.
pub fn rows(text: &str, width: usize) -> Vec<Range<usize>> {
    let width = width.max(2);
    let mut rows = Vec::new();
    let mut start = 0;
    for line in text.split('\n') {
        wrap_line(line, start, width, &mut rows);
        start += line.len() + 1;
    }
    rows
}

/// The rows of a text that grows at its end; only its last line is wrapped again.
#[derive(Clone, Debug, Default)]
pub struct GrowingRows {
    width: usize,
    text: String,
    rows: Vec<Range<usize>>,
    #[cfg(test)]
    wrapped: usize,
}

impl GrowingRows {
    /// The rows of a text, as [`rows`] finds them.
    pub fn update(&mut self, text: &str, width: usize) -> &[Range<usize>] {
        if self.width != width || !text.starts_with(&self.text) {
            self.rows.clear();
            self.text.clear();
            self.width = width;
        }
        if self.rows.is_empty() || self.text.len() < text.len() {
            let from = self.loose();
            self.rows
                .truncate(self.rows.partition_point(|row| row.start < from));
            self.text.push_str(&text[self.text.len()..]);
            let added = rows(&text[from..], width).into_iter();
            self.rows
                .extend(added.map(|row| from + row.start..from + row.end));
            #[cfg(test)]
            {
                self.wrapped += text.len() - from;
            }
        }
        &self.rows
    }

    /// The start of the rows that more text can change: that of the last line, or a place
    /// within it if it is long.
    fn loose(&self) -> usize {
        let window = self
            .text
            .floor_char_boundary(self.text.len().saturating_sub(LONG));
        match self.text[window..].rfind('\n') {
            Some(end) => window + end + 1,
            None if window == 0 => 0,
            None => {
                let middle = self.text.len() - LONG / 2;
                let row = self.rows.partition_point(|row| row.start <= middle);
                self.rows
                    .get(row.saturating_sub(1))
                    .map_or(0, |row| row.start)
            }
        }
    }
}

/// The byte of a row at a column in cells; the row's end if it is shorter.
pub fn place(text: &str, row: Range<usize>, column: usize) -> usize {
    let mut used = 0;
    let mut place = row.start;
    for grapheme in text[row].graphemes(true) {
        used += width(grapheme);
        if used > column {
            break;
        }
        place += grapheme.len();
    }
    place
}

fn wrap_line(line: &str, offset: usize, width: usize, rows: &mut Vec<Range<usize>>) {
    if self::width(line) <= width {
        rows.push(offset..offset + line.len());
        return;
    }
    let mut row = 0;
    let mut used = 0;
    let mut from = 0;
    for (to, _) in linebreaks(line) {
        let piece = &line[from..to];
        let whole = self::width(piece);
        // Spaces before a break need no room.
        let solid = piece.trim_end();
        let needed = self::width(solid);
        if used + needed > width && used > 0 {
            rows.push(offset + row..offset + from);
            row = from;
            used = 0;
        }
        if needed > width {
            for (at, grapheme) in piece.grapheme_indices(true) {
                let cells = self::width(grapheme);
                if used + cells > width && at < solid.len() {
                    rows.push(offset + row..offset + from + at);
                    row = from + at;
                    used = 0;
                }
                used += cells;
            }
        } else {
            used += whole;
        }
        from = to;
    }
    rows.push(offset + row..offset + line.len());
}

/// Wraps text in several styles. `first` precedes the first row, `rest` the others; both count
/// as part of the width.
pub fn styled(
    spans: &[(String, Style)],
    width: usize,
    first: &Span<'static>,
    rest: &Span<'static>,
) -> Vec<Line<'static>> {
    let text: String = spans.iter().map(|(text, _)| text.as_str()).collect();
    let indent = first.width().max(rest.width());
    let mut marks = Vec::with_capacity(spans.len());
    let mut end = 0;
    for (text, style) in spans {
        marks.push((end..end + text.len(), *style));
        end += text.len();
    }
    let rows = rows(&text, width.saturating_sub(indent));
    let line = |(index, row): (usize, Range<usize>)| {
        let before = if index == 0 { first } else { rest };
        let mut line = Line::default();
        if !before.content.is_empty() {
            line.push_span(before.clone());
        }
        line.spans.extend(cut(&text, &marks, row));
        line
    };
    rows.into_iter().enumerate().map(line).collect()
}

/// The part of a text in `row`, in the styles of `marks` (in order, without overlap).
pub fn cut(text: &str, marks: &[(Range<usize>, Style)], row: Range<usize>) -> Vec<Span<'static>> {
    // The edge of the screen would cut off a row's trailing spaces anyway.
    let row = row.start..row.start + text[row].trim_end_matches(' ').len();
    let begin = marks.partition_point(|(range, _)| range.end <= row.start);
    let within = marks[begin..]
        .iter()
        .take_while(|(range, _)| range.start < row.end);
    within
        .map(|(range, style)| {
            let part = range.start.max(row.start)..range.end.min(row.end);
            Span::styled(text[part].to_owned(), *style)
        })
        .collect()
}

/// A text truncated to a width in cells, with an ellipsis if anything is missing.
pub fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    if width == 0 {
        return String::new();
    }
    let mut short = String::new();
    let mut used = 1;
    for grapheme in text.graphemes(true) {
        used += grapheme.width();
        if used > width {
            break;
        }
        short.push_str(grapheme);
    }
    short + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(text: &str, width: usize) -> Vec<&str> {
        rows(text, width)
            .into_iter()
            .map(|row| &text[row])
            .collect()
    }

    #[test]
    fn words_stay_whole() {
        assert_eq!(
            wrapped("the quick brown fox", 9),
            ["the quick ", "brown fox"]
        );
    }

    #[test]
    fn a_word_that_is_too_long_is_cut() {
        assert_eq!(wrapped("ab cdefghij k", 4), ["ab ", "cdef", "ghij ", "k"]);
    }

    #[test]
    fn japanese_wraps_between_characters_of_two_cells_each() {
        assert_eq!(wrapped("日本語の文章", 5), ["日本", "語の", "文章"]);
    }

    #[test]
    fn a_full_stop_does_not_begin_a_row() {
        assert_eq!(wrapped("日本語。", 6), ["日本", "語。"]);
    }

    #[test]
    fn a_family_of_emoji_is_not_cut() {
        let family = "👨‍👩‍👧‍👦";
        let text = format!("{family}{family}");
        assert_eq!(wrapped(&text, 3), [family, family]);
    }

    #[test]
    fn a_tab_takes_four_cells_and_stays_a_tab() {
        assert_eq!(width("\ta\t"), 9);
        assert_eq!(wrapped("\tab\tcd", 8), ["\tab\t", "cd"]);
        assert_eq!(place("\tab", 0..3, 2), 0);
        assert_eq!(place("\tab", 0..3, 5), 2);
        assert_eq!(harmless("a\tb\u{1b}c\n"), "a\tbc\n");
    }

    #[test]
    fn a_growing_text_has_the_rows_of_the_whole_one() {
        let text =
            "the quick brown fox\n\n日本語の文章。 a-b cdefghijklmnopqrstuvwxyz\tx\n".repeat(4);
        for size in [1, 2, 7, 40] {
            let mut growing = GrowingRows::default();
            let mut begun = String::new();
            let characters: Vec<char> = text.chars().collect();
            for piece in characters.chunks(size) {
                begun.extend(piece);
                assert_eq!(growing.update(&begun, 12), rows(&begun, 12), "{begun:?}");
            }
            assert_eq!(growing.update(&begun, 9), rows(&begun, 9));
            assert_eq!(growing.update("other", 9), rows("other", 9));
            assert_eq!(growing.update("", 9), rows("", 9));
        }
    }

    #[test]
    fn the_work_for_a_growing_text_grows_with_what_is_added() {
        for (piece, line) in [
            ("some words ", 70),
            ("x", usize::MAX),
            ("word ", usize::MAX),
        ] {
            let mut growing = GrowingRows::default();
            let mut text = String::new();
            let mut since = 0;
            let updates = 2000;
            for _ in 0..updates {
                // Several pieces per update, as between two frames.
                for _ in 0..20 {
                    text.push_str(piece);
                    since += piece.len();
                    if since >= line {
                        text.push('\n');
                        since = 0;
                    }
                }
                growing.update(&text, 80);
            }
            let most = text.len() + updates * LONG.min(line.saturating_add(piece.len()));
            assert!(growing.wrapped <= most, "{piece:?}: {}", growing.wrapped);
        }
    }

    #[test]
    fn empty_lines_are_rows() {
        assert_eq!(wrapped("a\n\nb\n", 10), ["a", "", "b", ""]);
    }

    #[test]
    fn styles_go_on_over_a_break() {
        let bold = Style::new().bold();
        let spans = [
            ("one ".to_owned(), Style::new()),
            ("two three".into(), bold),
        ];
        let lines = styled(&spans, 8, &Span::raw("- "), &Span::raw("  "));
        let shown: Vec<String> = lines.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["- one", "  two", "  three"]);
        assert_eq!(lines[1].spans[1].style, bold);
        assert_eq!(lines[2].spans[1].style, bold);
    }

    #[test]
    fn a_shortened_text_fits_in_cells() {
        assert_eq!(shortened("日本語", 5), "日本…");
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abc", 0), "");
    }

    #[test]
    fn control_characters_are_not_shown() {
        assert_eq!(printable("a\x1b[31m\tb\r\n"), "a[31m    b\n");
        assert_eq!(printable("\u{9b}31m\u{202e}abc\u{2066}"), "31mabc");
    }
}

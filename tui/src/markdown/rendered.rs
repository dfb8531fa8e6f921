//! Incremental layout of a Markdown text that grows at its end, like a streamed answer: the
//! cost of added text depends on its own length and that of the block it belongs to, not on the
//! length of the text before.

use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Tag};
use ratatui::text::Line;

use super::{blocks, lay_out};
use crate::wrap;

/// Maximum bytes of a growing block that are laid out again when text is added; longer blocks
/// are laid out in parts.
const LONG: usize = 16 << 10;

/// A Markdown text laid out for a width.
#[derive(Debug, Default)]
pub struct Rendered {
    width: usize,
    source: String,
    /// The source in printable form, which ranges of blocks refer to.
    clean: String,
    blocks: Vec<Block>,
    /// The number of blocks that no further text can change.
    firm: usize,
    tail: Tail,
    /// Total bytes parsed as Markdown.
    #[cfg(test)]
    parsed: usize,
}

/// The text after the firm blocks.
#[derive(Debug, Default)]
struct Tail {
    from: usize,
    /// If it begins within a code block: the line that opens the block, with its line end.
    opening: String,
    /// Whether it begins within a block.
    is_part: bool,
}

#[derive(Debug)]
struct Block {
    range: Range<usize>,
    /// The row of its first line: there is an empty row between blocks, but none between parts
    /// of a block.
    row: usize,
    lines: Vec<Line<'static>>,
    is_code: bool,
}

impl Rendered {
    /// Lays the text out, unless it already is.
    pub fn update(&mut self, text: &str, width: usize) {
        if self.width == width && self.source == text {
            return;
        }
        if self.width == width && text.starts_with(&self.source) {
            self.finalize_long_tail();
        } else {
            *self = Rendered {
                width,
                ..Rendered::default()
            };
        }
        let added = &text[self.source.len()..];
        self.clean.push_str(&wrap::printable(added));
        self.source.push_str(added);
        let old = self.blocks.split_off(self.firm);
        self.lay_out_tail(self.clean.len(), old);
        // A last line that continues can still belong to the block before it.
        let last = self.blocks.last();
        let whole_line = last.is_some_and(|last| self.clean[last.range.start..].contains('\n'));
        let loose = if whole_line { 1 } else { 2 };
        self.finalize_blocks(self.blocks.len().saturating_sub(loose));
    }

    /// Lays a text out verbatim, without parsing it as Markdown.
    pub fn update_plain(&mut self, text: &str, width: usize) {
        if self.width == width && self.source == text {
            return;
        }
        let clean = wrap::printable(text);
        let rows = wrap::rows(&clean, width).into_iter();
        let lines = rows.map(|row| Line::from(clean[row].to_owned())).collect();
        *self = Rendered {
            width,
            source: text.to_owned(),
            blocks: vec![Block {
                range: 0..clean.len(),
                row: 0,
                lines,
                is_code: false,
            }],
            clean,
            ..Rendered::default()
        };
    }

    /// The number of lines.
    pub fn height(&self) -> usize {
        self.blocks.last().map_or(0, Block::end)
    }

    /// The lines in a range.
    pub fn lines(&self, range: Range<usize>) -> Vec<Line<'static>> {
        let mut shown = Vec::with_capacity(range.len());
        let first = self
            .blocks
            .partition_point(|block| block.end() <= range.start);
        let blocks = self.blocks[first..].iter();
        for block in blocks.take_while(|block| block.row < range.end) {
            let at = range.start + shown.len();
            shown.resize(shown.len() + block.row.saturating_sub(at), Line::default());
            let from = range.start.saturating_sub(block.row);
            let to = (range.end - block.row).min(block.lines.len());
            shown.extend_from_slice(&block.lines[from..to]);
        }
        // The range can end between two blocks.
        let end = range.end.min(self.height());
        shown.resize(end.saturating_sub(range.start), Line::default());
        shown
    }

    /// Lays out the tail up to a position; unchanged blocks of `old` are reused.
    fn lay_out_tail(&mut self, end: usize, old: Vec<Block>) {
        let (from, opening) = (self.tail.from, self.tail.opening.clone());
        let mut is_part = self.tail.is_part;
        let tail = opening.clone() + &self.clean[from..end];
        #[cfg(test)]
        {
            self.parsed += tail.len();
        }
        let place = |at: usize| from + at.saturating_sub(opening.len());
        let mut old = old.into_iter();
        for (range, events) in blocks(&tail) {
            let range = place(range.start)..place(range.end);
            let row = match self.blocks.last() {
                Some(last) => last.end() + usize::from(!is_part),
                None => 0,
            };
            is_part = false;
            let is_code = matches!(
                events.first(),
                Some(Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(_))))
            );
            let kept = old.next().filter(|block| block.range == range);
            let lines = match kept {
                Some(block) => block.lines,
                None => lay_out(events, self.width),
            };
            self.blocks.push(Block {
                range,
                row,
                lines,
                is_code,
            });
        }
    }

    /// Marks the first `count` blocks as firm: no further text can change them.
    fn finalize_blocks(&mut self, count: usize) {
        if count <= self.firm {
            return;
        }
        self.firm = count;
        let start = self.blocks.get(count).map(|block| block.range.start);
        let start = start.unwrap_or(self.clean.len());
        // Text before it on its line is indentation, which is significant.
        let from = self.clean[..start].rfind('\n').map_or(0, |end| end + 1);
        self.tail = Tail {
            from,
            ..Tail::default()
        };
    }

    /// Marks most of a long tail as firm.
    fn finalize_long_tail(&mut self) {
        if self.clean.len() - self.tail.from <= 2 * LONG {
            return;
        }
        self.finalize_blocks(self.blocks.len().saturating_sub(1));
        if self.clean.len() - self.tail.from <= LONG {
            return;
        }
        let cut = self.place_to_cut();
        let opening = match self.blocks.last() {
            Some(last) if last.is_code => {
                if self.tail.opening.is_empty() {
                    first_line(&self.clean[last.range.start..]).to_owned() + "\n"
                } else {
                    self.tail.opening.clone()
                }
            }
            _ => String::new(),
        };
        self.blocks.truncate(self.firm);
        self.lay_out_tail(cut, Vec::new());
        self.firm = self.blocks.len();
        self.tail = Tail {
            from: cut,
            opening,
            is_part: true,
        };
    }

    /// The place to cut a long tail: preferably before a line that is not indented, so that
    /// lists and code keep their form.
    fn place_to_cut(&self) -> usize {
        let from = self.tail.from;
        let end = self.clean.floor_char_boundary(self.clean.len() - LONG / 2);
        let text = &self.clean[from..end];
        let lines = text.match_indices('\n').map(|(at, _)| at + 1);
        let plain = |at: &usize| text[*at..].starts_with(|next: char| !next.is_whitespace());
        let place = lines.clone().rev().find(plain);
        let place = place.or_else(|| lines.clone().next_back());
        let place = place.or_else(|| text.rfind(' ').map(|at| at + 1));
        from + place.unwrap_or(text.len())
    }
}

impl Block {
    /// The row after its last line.
    fn end(&self) -> usize {
        self.row + self.lines.len()
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\nA *paragraph* that\ngoes on\n***\n**bold** with\n- item\n- other\n\n  \
        more\n    1. one\n    2. two\n\n```rust\nfn a() {\n\n}\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n\
        Heading\n===\n    code\n\n> quoted\nlazy\n\n日本語の文章。\n";

    fn shown(rendered: &Rendered) -> Vec<String> {
        let lines = rendered.lines(0..rendered.height());
        lines.iter().map(ToString::to_string).collect()
    }

    fn whole(text: &str) -> Rendered {
        let mut rendered = Rendered::default();
        rendered.update(text, 40);
        rendered
    }

    #[test]
    fn a_growing_text_is_laid_out_as_the_whole_one() {
        let text = TEXT.repeat(3);
        let characters: Vec<char> = text.chars().collect();
        for size in [1, 3, 50] {
            let mut growing = Rendered::default();
            let mut begun = String::new();
            for piece in characters.chunks(size) {
                begun.extend(piece);
                growing.update(&begun, 40);
                assert_eq!(shown(&growing), shown(&whole(&begun)), "{begun:?}");
            }
        }
    }

    #[test]
    fn any_window_shows_its_lines() {
        let rendered = whole(TEXT);
        let all = shown(&rendered);
        for from in 0..all.len() {
            for to in from..=all.len() + 2 {
                let lines = rendered.lines(from..to);
                let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
                assert_eq!(lines, all[from..to.min(all.len())], "{from}..{to}");
            }
        }
    }

    #[test]
    fn the_work_for_a_growing_text_grows_with_what_is_added() {
        let code = "    let number = 1;\n";
        for (begin, piece) in [
            ("", "word "),
            ("", "x"),
            ("", "line\n\n"),
            ("```\nfn main() {\n", code),
            ("", "- item of a list\n"),
            ("| a | b |\n|---|---|\n", "| 1 | 2 |\n"),
            ("", "> quoted\n"),
        ] {
            let mut rendered = Rendered::default();
            let mut text = begin.to_owned();
            let updates = 400;
            for _ in 0..updates {
                text.push_str(&piece.repeat(2000 / piece.len()));
                rendered.update(&text, 80);
            }
            let most = 2 * text.len() + updates * 3 * LONG;
            assert!(rendered.parsed <= most, "{piece:?}: {}", rendered.parsed);
            assert!(text.len() > 20 * LONG);
        }
    }

    #[test]
    fn a_long_block_of_code_stays_code_and_a_long_list_a_list() {
        let line = "    let number = 1; // *no* emphasis\n";
        let mut rendered = Rendered::default();
        let mut text = "```rust\n".to_owned();
        for _ in 0..20 {
            text.push_str(&line.repeat(100));
            rendered.update(&text, 80);
        }
        text.push_str("```\nbehind\n");
        rendered.update(&text, 80);
        let lines = shown(&rendered);
        assert!(rendered.blocks.len() > 3, "it was laid out in parts");
        assert_eq!(lines.len(), 2000 + 2);
        assert!(
            lines[..2000]
                .iter()
                .all(|shown| shown.ends_with(line.trim_end()))
        );
        assert_eq!(lines[2001], "behind");

        let mut rendered = Rendered::default();
        let mut text = String::new();
        for number in 1..=3000 {
            text.push_str(&format!("{number}. an item\n      - of two\n"));
            if number % 50 == 0 {
                rendered.update(&text, 80);
            }
        }
        let lines = shown(&rendered);
        assert!(rendered.blocks.len() > 3, "it was laid out in parts");
        assert_eq!(lines.len(), 6000);
        assert_eq!(lines[5998..], ["3000. an item", "      • of two"]);
    }
}

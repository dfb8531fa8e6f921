//! Renders Markdown as lines of a terminal, in the user's own colours.
//!
//! An answer grows at its end while it is streamed, so [`Rendered`] caches the lines of each
//! top-level block, and parses and lays out only the part that may have changed.

mod highlight;
mod inline;
mod rendered;
mod table;
#[cfg(test)]
mod tests;

use std::ops::Range;

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};

use crate::wrap;
pub use highlight::warm_up;
use inline::Inline;
pub use rendered::Rendered;
use table::Table;

/// The top-level blocks of a text, with their events.
fn blocks(text: &str) -> Vec<(Range<usize>, Vec<Event<'_>>)> {
    let options =
        Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_TASKLISTS;
    let mut blocks: Vec<(Range<usize>, Vec<Event<'_>>)> = Vec::new();
    let mut depth = 0;
    for (event, range) in Parser::new_ext(text, options).into_offset_iter() {
        if depth == 0 {
            blocks.push((range, Vec::new()));
        }
        match event {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth -= 1,
            _ => {}
        }
        if let Some((_, events)) = blocks.last_mut() {
            events.push(event);
        }
    }
    blocks
}

fn lay_out(events: Vec<Event<'_>>, width: usize) -> Vec<Line<'static>> {
    let mut layout = Layout {
        width,
        lines: Vec::new(),
        inline: Inline::default(),
        prefix: Vec::new(),
        marker: None,
        lists: Vec::new(),
        code: None,
        table: None,
    };
    for event in events {
        layout.event(event);
    }
    layout.flush();
    layout.lines
}

/// The state of laying out a block.
struct Layout {
    width: usize,
    lines: Vec<Line<'static>>,
    /// The paragraph so far.
    inline: Inline,
    /// The prefix of each line: quotes and indents.
    prefix: Vec<Span<'static>>,
    /// The prefix of the next line instead of its indent: a list's marker.
    marker: Option<Span<'static>>,
    /// The open lists, with the next number.
    lists: Vec<Option<u64>>,
    /// The open code block: its language and its text.
    code: Option<(String, String)>,
    table: Option<Table>,
}

impl Layout {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => match &mut self.code {
                Some((_, code)) => code.push_str(&text),
                None => self.inline.text(&text),
            },
            Event::Code(code) => self.inline.code(&code),
            Event::SoftBreak => self.inline.text(" "),
            Event::HardBreak => self.inline.text("\n"),
            Event::Rule => self.push(vec![Span::styled(
                "─".repeat(self.available_width()),
                dim(),
            )]),
            Event::TaskListMarker(done) => {
                self.inline.text(if done { "[x] " } else { "[ ] " });
            }
            // HTML, formulas and footnotes are shown as source.
            Event::Html(text) | Event::InlineHtml(text) => self.inline.text(&text),
            Event::InlineMath(text) | Event::DisplayMath(text) => self.inline.text(&text),
            Event::FootnoteReference(text) => self.inline.text(&text),
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Paragraph => self.separate(),
            Tag::Heading { level, .. } => {
                self.separate();
                self.inline.heading(level);
            }
            Tag::BlockQuote(_) => {
                self.separate();
                self.prefix.push(Span::styled("│ ", dim()));
            }
            Tag::CodeBlock(kind) => {
                self.separate();
                let language = match kind {
                    CodeBlockKind::Fenced(info) => info.split([' ', ',']).next().map(str::to_owned),
                    CodeBlockKind::Indented => None,
                };
                self.code = Some((language.unwrap_or_default(), String::new()));
            }
            Tag::List(first) => {
                self.flush();
                if self.lists.is_empty() {
                    self.separate();
                }
                self.lists.push(first);
            }
            Tag::Item => {
                let sign = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}. ", *number - 1)
                    }
                    _ => "• ".to_owned(),
                };
                self.prefix
                    .push(Span::raw(" ".repeat(Span::raw(&sign).width())));
                self.marker = Some(Span::styled(sign, Style::new().fg(Color::Cyan)));
            }
            Tag::Table(_) => {
                self.separate();
                self.table = Some(Table::default());
            }
            tag => self.inline.start(&tag),
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph | TagEnd::HtmlBlock => self.flush(),
            TagEnd::Heading(_) => {
                self.flush();
                self.inline.plain();
            }
            TagEnd::BlockQuote(_) => {
                self.flush();
                self.prefix.pop();
            }
            TagEnd::Item => {
                self.flush();
                // An empty item has its marker nevertheless.
                if self.marker.is_some() {
                    self.push(Vec::new());
                }
                self.prefix.pop();
            }
            TagEnd::List(_) => _ = self.lists.pop(),
            TagEnd::CodeBlock => {
                if let Some((language, code)) = self.code.take() {
                    self.code_block(&language, &code);
                }
            }
            TagEnd::TableCell => {
                if let Some(table) = &mut self.table {
                    table.cell(self.inline.take());
                }
            }
            TagEnd::TableHead | TagEnd::TableRow => {
                if let Some(table) = &mut self.table {
                    table.end_row();
                }
            }
            TagEnd::Table => {
                if let Some(table) = self.table.take() {
                    for line in table.lines(self.available_width()) {
                        self.push(line);
                    }
                }
            }
            tag => self.inline.end(&tag),
        }
    }

    fn code_block(&mut self, language: &str, code: &str) {
        let code = code.strip_suffix('\n').unwrap_or(code);
        let bar = Span::styled("▏ ", dim());
        let width = self.available_width();
        for spans in highlight::lines(language, code) {
            // Long code lines are wrapped, so that nothing is hidden.
            for line in wrap::styled(&spans, width, &bar, &bar) {
                self.push(line.spans);
            }
        }
    }

    /// Writes the paragraph so far.
    fn flush(&mut self) {
        let spans = self.inline.take();
        if spans.is_empty() {
            return;
        }
        let none = Span::default();
        for line in wrap::styled(&spans, self.available_width(), &none, &none) {
            self.push(line.spans);
        }
    }

    /// Adds an empty line between blocks within a block, but not after a list's marker.
    fn separate(&mut self) {
        self.flush();
        let first = self.lines.is_empty() || self.marker.is_some();
        if !first {
            self.lines.push(Line::from(self.prefix.clone()));
        }
    }

    /// Writes a line after its prefix.
    fn push(&mut self, spans: Vec<Span<'static>>) {
        let mut line = self.prefix.clone();
        if let (Some(marker), Some(last)) = (self.marker.take(), line.last_mut()) {
            *last = marker;
        }
        line.extend(spans);
        self.lines.push(Line::from(line));
    }

    fn available_width(&self) -> usize {
        let before: usize = self.prefix.iter().map(Span::width).sum();
        self.width.saturating_sub(before).max(10)
    }
}

fn dim() -> Style {
    Style::new().dim()
}

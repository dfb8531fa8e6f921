//! The styled text of a paragraph.

use pulldown_cmark::{HeadingLevel, Tag, TagEnd};
use ratatui::style::{Color, Modifier, Style};

/// Collects text; nested emphasis adds up.
#[derive(Debug, Default)]
pub(super) struct Inline {
    spans: Vec<(String, Style)>,
    emphasis: usize,
    strong: usize,
    strike: usize,
    heading: Option<HeadingLevel>,
    links: Vec<String>,
}

impl Inline {
    pub(super) fn text(&mut self, text: &str) {
        let style = self.style();
        self.spans.push((text.to_owned(), style));
    }

    pub(super) fn code(&mut self, text: &str) {
        let style = self.style().fg(Color::Yellow);
        self.spans.push((text.to_owned(), style));
    }

    pub(super) fn heading(&mut self, level: HeadingLevel) {
        self.heading = Some(level);
    }

    /// Ends a heading.
    pub(super) fn plain(&mut self) {
        self.heading = None;
    }

    pub(super) fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::Emphasis => self.emphasis += 1,
            Tag::Strong => self.strong += 1,
            Tag::Strikethrough => self.strike += 1,
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => {
                self.links.push(dest_url.to_string());
            }
            _ => {}
        }
    }

    pub(super) fn end(&mut self, tag: &TagEnd) {
        match tag {
            TagEnd::Emphasis => self.emphasis -= 1,
            TagEnd::Strong => self.strong -= 1,
            TagEnd::Strikethrough => self.strike -= 1,
            TagEnd::Link | TagEnd::Image => {
                let address = self.links.pop().unwrap_or_default();
                let said = self.spans.last().map(|(text, _)| text.as_str());
                if said != Some(&address) {
                    let dim = Style::new().dim();
                    self.spans.push((format!(" ({address})"), dim));
                }
            }
            _ => {}
        }
    }

    pub(super) fn take(&mut self) -> Vec<(String, Style)> {
        std::mem::take(&mut self.spans)
    }

    fn style(&self) -> Style {
        let mut style = Style::new();
        for (on, modifier) in [
            (self.emphasis > 0, Modifier::ITALIC),
            (self.strong > 0, Modifier::BOLD),
            (self.strike > 0, Modifier::CROSSED_OUT),
            (self.heading.is_some(), Modifier::BOLD),
            (self.heading == Some(HeadingLevel::H1), Modifier::UNDERLINED),
        ] {
            if on {
                style = style.add_modifier(modifier);
            }
        }
        if !self.links.is_empty() {
            style = style.fg(Color::LightBlue).underlined();
        }
        style
    }
}

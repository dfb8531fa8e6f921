//! The conversation. Each message is laid out once for a width; while an answer is streamed,
//! only its last block is laid out again.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::{MAX_TEXT_WIDTH, dim, empty, format, red};
use crate::app::{App, Extent, Measures, Target};
use crate::keymap::Action;
use crate::markdown::Rendered;
use crate::session::{Message, Role};
use crate::wrap;

/// The laid-out messages of a conversation.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    bodies: Vec<Rendered>,
}

impl Transcript {
    pub(super) fn draw(
        &mut self,
        app: &App,
        frame: &mut Frame<'_>,
        area: Rect,
        measures: &mut Measures,
    ) {
        let area = Rect {
            x: area.x + 1,
            width: area.width.saturating_sub(2),
            ..area
        };
        let messages = &app.chat.session.messages;
        let width = usize::from(area.width).min(MAX_TEXT_WIDTH);
        let end = self.end(app, width);
        if messages.is_empty() && app.chat.error.is_none() {
            let lines = empty::chat(app, width);
            let height = (lines.len() as u16).min(area.height);
            let middle = Rect {
                y: area.y + (area.height - height) / 2,
                height,
                ..area
            };
            frame.render_widget(Paragraph::new(lines), middle);
            return;
        }
        self.bodies.resize_with(messages.len(), Rendered::default);
        let mut starts = Vec::with_capacity(messages.len());
        let mut rows = 0;
        for (message, body) in messages.iter().zip(&mut self.bodies) {
            match message.role {
                Role::User => body.update_plain(&message.content, width),
                Role::Assistant => body.update(&message.content, width),
            }
            starts.push(rows);
            // Author, text, statistics, an empty line.
            rows += 1 + body.height() + usize::from(message.role == Role::Assistant) + 1;
        }
        let extent = Extent {
            rows: rows + end.len(),
            height: usize::from(area.height),
        };
        let top = app.chat.scroll.top(extent);
        let bottom = top + extent.height;
        let first = starts
            .partition_point(|start| *start <= top)
            .saturating_sub(1);
        let mut lines = Vec::with_capacity(extent.height);
        let shown = starts.iter().enumerate().take(messages.len()).skip(first);
        for (place, &start) in shown.take_while(|(_, start)| **start < bottom) {
            let window = top.max(start) - start..bottom - start;
            self.message(app, place, window, width, &mut lines);
        }
        let from = top.saturating_sub(rows);
        lines.extend(end.into_iter().skip(from));
        lines.truncate(extent.height);
        frame.render_widget(Paragraph::new(lines), area);
        measures.targets.push((area, Target::Chat { top }));
        measures.chat = extent;
        measures.messages = starts;
    }

    /// The rows of a message that are in the window.
    fn message(
        &self,
        app: &App,
        place: usize,
        window: std::ops::Range<usize>,
        width: usize,
        lines: &mut Vec<Line<'static>>,
    ) {
        let message = &app.chat.session.messages[place];
        let body = &self.bodies[place];
        let height = body.height();
        if window.contains(&0) {
            lines.push(speaker(message, app.chat.selected == Some(place)));
        }
        let from = window.start.saturating_sub(1).min(height);
        let to = (window.end - 1).min(height);
        lines.extend(body.lines(from..to));
        let mut row = 1 + height;
        if message.role == Role::Assistant {
            if window.contains(&row) {
                lines.push(Line::styled(footer(app, place, message, width), dim()));
            }
            row += 1;
        }
        if window.contains(&row) {
            lines.push(Line::default());
        }
    }

    /// The end of the conversation: why the last message has no answer.
    fn end(&self, app: &App, width: usize) -> Vec<Line<'static>> {
        let Some(failure) = &app.chat.error else {
            return Vec::new();
        };
        let text = wrap::printable(&failure.to_string());
        let sign = Span::styled("✗ ", red());
        let mut lines = wrap::styled(&[(text, red())], width, &sign, &Span::raw("  "));
        if let Some(key) = app.keymap.hint(Action::Regenerate) {
            lines.push(Line::styled(format!("  {key} asks again."), dim()));
        }
        lines
    }
}

fn speaker(message: &Message, selected: bool) -> Line<'static> {
    let (name, colour) = match message.role {
        Role::User => ("You", Color::Cyan),
        Role::Assistant => (message.arm.as_deref().unwrap_or("Assistant"), Color::Green),
    };
    let style = Style::new().fg(colour).bold();
    let style = if selected { style.reversed() } else { style };
    Line::styled(format!("▍{name}"), style)
}

fn footer(app: &App, place: usize, message: &Message, width: usize) -> String {
    let last = place + 1 == app.chat.session.messages.len();
    match (app.chat.clock().filter(|_| last), &message.stats) {
        (Some(clock), _) => format::running(clock, app.now),
        (None, Some(stats)) => {
            let finish = message.finish.as_deref();
            let which = match message.variants.len() {
                0 => String::new(),
                others => format!("answer {} of {} · ", message.variant + 1, others + 1),
            };
            let whole = which.clone() + &format::stats(stats, finish);
            if whole.chars().count() <= width {
                whole
            } else {
                let short = which + &format::short(stats, finish, None);
                format::fitting(&short, width)
            }
        }
        (None, None) => String::new(),
    }
}

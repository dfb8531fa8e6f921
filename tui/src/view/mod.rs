//! Draws the state on the screen, in the user's own colours.

mod chat;
mod compare;
mod details;
mod empty;
mod format;
mod help;
mod hints;
mod panels;
#[cfg(test)]
mod tests;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Margin, Position, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Paragraph};

use crate::app::{App, Editor, Measures, Mode, Target};
use crate::wrap;
use hints::Hints;

/// Maximum rows of the input.
const INPUT_ROWS: usize = 8;

/// The smallest screen that is drawn.
const MIN_SIZE: (u16, u16) = (30, 10);

/// The maximum line width, because longer lines are hard to read.
const MAX_TEXT_WIDTH: usize = 100;

/// Draws the state, and caches layouts for the next frame.
#[derive(Debug, Default)]
pub struct View {
    transcript: chat::Transcript,
    answers: compare::Answers,
}

impl View {
    /// Draws everything; returns measures that the state needs.
    pub fn draw(&mut self, app: &App, frame: &mut Frame<'_>) -> Measures {
        let area = frame.area();
        if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
            let (width, height) = MIN_SIZE;
            frame.render_widget(format!("needs {width}×{height}"), area);
            return Measures::default();
        }
        let width = usize::from(area.width) - 4;
        // The input never covers the answer, however long it is.
        let most = INPUT_ROWS.min(usize::from(area.height / 3) - 1);
        let rows = wrap::rows(app.input.text(), width).len().min(most);
        let [title, body, input, edge] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(rows as u16 + 2),
            Constraint::Length(hints::height(app, area.width)),
        ])
        .areas(area);
        let mut measures = Measures {
            input: width,
            ..Measures::default()
        };
        draw_title(app, frame, title, &mut measures);
        match app.mode {
            Mode::Chat => self.transcript.draw(app, frame, body, &mut measures),
            Mode::Compare => self.answers.draw(app, frame, body, &mut measures),
        }
        draw_input(app, frame, input, &mut measures);
        hints::draw(app, frame, edge, &mut measures);
        if let Some(panel) = &app.panel {
            panels::draw(app, panel, frame, area, &mut measures);
        }
        measures
    }
}

fn dim() -> Style {
    Style::new().dim()
}

fn red() -> Style {
    Style::new().fg(Color::Red)
}

/// The modes, the answering arm, and the used part of the context.
fn draw_title(app: &App, frame: &mut Frame<'_>, area: Rect, measures: &mut Measures) {
    let tab = |name, mode| {
        let style = if app.mode == mode {
            Style::new().reversed().bold()
        } else {
            Style::new()
        };
        Span::styled(format!(" {name} "), style)
    };
    let mut left = vec![tab("Chat", Mode::Chat), tab("Compare", Mode::Compare)];
    let mut from = area.x;
    for (tab, mode) in left.iter().zip([Mode::Chat, Mode::Compare]) {
        let width = tab.width() as u16;
        let place = Rect::new(from, area.y, width, 1);
        measures.targets.push((place, Target::Mode(mode)));
        from += width;
    }
    let right = match (app.mode, app.compare.chosen.len()) {
        (Mode::Chat, _) => format::context(&app.chat),
        (Mode::Compare, 1) => "1 arm ".to_owned(),
        (Mode::Compare, count) => format!("{count} arms "),
    };
    let available = usize::from(area.width).saturating_sub(18 + right.chars().count());
    let who = match app.mode {
        Mode::Chat => app.answering(),
        Mode::Compare => app.compare.chosen.join(" | "),
    };
    let sampling = &app.chat.session.head.sampling;
    let set = match app.mode {
        Mode::Chat => sampling.summary(),
        Mode::Compare => sampling.of_comparison().summary(),
    };
    let set = set.map(|set| format!("  {set}")).unwrap_or_default();
    left.push(Span::raw(" "));
    let name = wrap::shortened(&who, available);
    let rest = available.saturating_sub(Span::raw(&name).width());
    left.push(Span::styled(name, Style::new().bold()));
    left.push(Span::styled(wrap::shortened(&set, rest), dim()));
    frame.render_widget(Line::from(left), area);
    frame.render_widget(Line::styled(right, dim()).right_aligned(), area);
}

fn draw_input(app: &App, frame: &mut Frame<'_>, area: Rect, measures: &mut Measures) {
    let title = match (app.mode, app.chat.editing) {
        (Mode::Chat, Some(_)) => " edit the question; the original session stays saved ",
        (Mode::Chat, None) => " ask ",
        (Mode::Compare, _) => " ask all of them ",
    };
    let active = app.panel.is_none() && (app.mode == Mode::Chat || app.compare.focus.is_none());
    let style = if active {
        Style::new().fg(Color::Cyan)
    } else {
        dim()
    };
    let mut block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(style)
        .title(title);
    if !app.chat.session.head.system.is_empty() {
        block = block.title(Line::from(" system message set ").right_aligned());
    }
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let text = Rect {
        x: inner.x + 1,
        width: inner.width.saturating_sub(2),
        ..inner
    };
    let top = draw_editor(&app.input, frame, text, measures.input, active);
    measures.targets.push((text, Target::Text { top }));
}

/// Draws a text field, scrolled to its cursor; returns the first visible row.
fn draw_editor(
    editor: &Editor,
    frame: &mut Frame<'_>,
    area: Rect,
    width: usize,
    active: bool,
) -> usize {
    let (row, column) = editor.position(width);
    let height = usize::from(area.height).max(1);
    let top = (row + 1).saturating_sub(height);
    let rows = wrap::rows(editor.text(), width);
    let shown = rows.into_iter().skip(top).take(height);
    let lines = shown.map(|row| Line::raw(wrap::printable(&editor.text()[row])));
    let lines: Vec<Line<'_>> = lines.collect();
    frame.render_widget(Paragraph::new(lines), area);
    if active {
        frame.set_cursor_position((area.x + column as u16, area.y + (row - top) as u16));
    }
    top
}

/// A cleared area in the middle, with a border.
fn popup(
    frame: &mut Frame<'_>,
    area: Rect,
    size: (u16, u16),
    title: String,
    foot: Hints,
    measures: &mut Measures,
) -> Rect {
    let width = size.0.min(area.width);
    let height = size.1.min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(Style::new().fg(Color::Cyan))
        .title(title)
        .title_bottom(foot.line.clone());
    measures.targets.push((area, Target::Panel));
    let edge = Position::new(place.x + 1, place.bottom() - 1);
    foot.make_clickable(edge, measures);
    let inner = block.inner(place);
    // Also clears beside the panel, where remains of the content behind it would be
    // distracting.
    let behind = if height == area.height {
        area
    } else {
        area.inner(Margin::new(0, 1))
    };
    frame.render_widget(Clear, behind);
    frame.render_widget(block, place);
    let text = Rect {
        x: inner.x + 1,
        width: inner.width.saturating_sub(2),
        ..inner
    };
    measures.panel = usize::from(text.width);
    text
}

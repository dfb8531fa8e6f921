//! The state on the screen, in the user's own colours.

mod chat;
mod compare;
mod details;
mod numbers;
mod panels;
#[cfg(test)]
mod tests;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Paragraph};

use crate::app::{App, Arms, Editor, Measures, Mode};
use crate::keymap::Action;
use crate::wrap;

/// How many rows of the input are shown at most.
const INPUT_ROWS: usize = 8;

/// The smallest screen that is drawn.
const SMALLEST: (u16, u16) = (30, 10);

/// Draws the state, and keeps what it laid out for the next time.
#[derive(Debug, Default)]
pub struct View {
    transcript: chat::Transcript,
}

impl View {
    /// Draws everything; returns what the state has to know of it.
    pub fn draw(&mut self, app: &App, frame: &mut Frame<'_>) -> Measures {
        let area = frame.area();
        if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
            frame.render_widget("too small", area);
            return Measures::default();
        }
        let width = usize::from(area.width) - 4;
        let rows = wrap::rows(app.input.text(), width).len().min(INPUT_ROWS);
        let [title, body, input, hints] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Fill(1),
            Constraint::Length(rows as u16 + 2),
            Constraint::Length(1),
        ])
        .areas(area);
        let mut measures = Measures {
            input: width,
            ..Measures::default()
        };
        draw_title(app, frame, title);
        match app.mode {
            Mode::Chat => self.transcript.draw(app, frame, body, &mut measures),
            Mode::Compare => measures.panes = compare::draw(app, frame, body),
        }
        draw_input(app, frame, input, width);
        draw_hints(app, frame, hints);
        if let Some(panel) = &app.panel {
            measures.help = panels::draw(app, panel, frame, area);
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

/// The modes, who answers, and how much of the context is used.
fn draw_title(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let tab = |name, mode| {
        let style = match app.mode == mode {
            true => Style::new().reversed().bold(),
            false => Style::new(),
        };
        Span::styled(format!(" {name} "), style)
    };
    let mut left = vec![tab("Chat", Mode::Chat), tab("Compare", Mode::Compare)];
    let right = match app.mode {
        Mode::Chat => numbers::context(&app.chat),
        Mode::Compare => format!("{} arms ", app.compare.chosen.len()),
    };
    let room = usize::from(area.width).saturating_sub(18 + right.chars().count());
    let who = match app.mode {
        Mode::Chat => app.chat.session.head.arm.clone().unwrap_or_default(),
        Mode::Compare => app.compare.chosen.join(" | "),
    };
    let set = app.chat.session.head.sampling.summary();
    let set = set.map(|set| format!("  {set}")).unwrap_or_default();
    left.push(Span::raw(" "));
    let name = wrap::shortened(&who, room);
    let rest = room.saturating_sub(Span::raw(&name).width());
    left.push(Span::styled(name, Style::new().bold()));
    left.push(Span::styled(wrap::shortened(&set, rest), dim()));
    frame.render_widget(Line::from(left), area);
    frame.render_widget(Line::styled(right, dim()).right_aligned(), area);
}

fn draw_input(app: &App, frame: &mut Frame<'_>, area: Rect, width: usize) {
    let title = match (app.mode, app.chat.editing) {
        (Mode::Chat, Some(_)) => " edit the question; sending forgets what came after ",
        (Mode::Chat, None) => " ask ",
        (Mode::Compare, _) => " ask all of them ",
    };
    let active = app.panel.is_none() && (app.mode == Mode::Chat || app.compare.focus.is_none());
    let style = match active {
        true => Style::new().fg(Color::Cyan),
        false => dim(),
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
    draw_editor(&app.input, frame, text, width, active);
}

/// A text that is being written, scrolled to its cursor.
fn draw_editor(editor: &Editor, frame: &mut Frame<'_>, area: Rect, width: usize, active: bool) {
    let (row, column) = editor.position(width);
    let height = usize::from(area.height).max(1);
    let top = (row + 1).saturating_sub(height);
    let rows = wrap::rows(editor.text(), width);
    let shown = rows.into_iter().skip(top).take(height);
    let lines: Vec<Line<'_>> = shown.map(|row| Line::raw(&editor.text()[row])).collect();
    frame.render_widget(Paragraph::new(lines), area);
    if active {
        frame.set_cursor_position((area.x + column as u16, area.y + (row - top) as u16));
    }
}

/// What was just done, or what can be done.
fn draw_hints(app: &App, frame: &mut Frame<'_>, area: Rect) {
    if let Some(notice) = &app.notice {
        let style = match notice.is_error {
            true => red(),
            false => Style::new().fg(Color::Green),
        };
        let text = wrap::shortened(&wrap::printable(&notice.text), usize::from(area.width) - 1);
        frame.render_widget(Line::styled(format!(" {text}"), style), area);
        return;
    }
    let offers: &[(Action, &str)] = match (app.mode, app.is_busy()) {
        (_, true) => &[
            (Action::Stop, "stop"),
            (Action::Help, "help"),
            (Action::ScrollUp, "scroll"),
            (Action::Quit, "quit"),
        ],
        (Mode::Chat, false) => &[
            (Action::Help, "help"),
            (Action::SwitchMode, "compare"),
            (Action::Arms, "arms"),
            (Action::Sampling, "sampling"),
            (Action::Sessions, "sessions"),
            (Action::Quit, "quit"),
            (Action::Regenerate, "again"),
            (Action::Newline, "new line"),
        ],
        (Mode::Compare, false) if app.compare.panes.is_empty() => &[
            (Action::Help, "help"),
            (Action::SwitchMode, "chat"),
            (Action::Arms, "arms"),
            (Action::Sampling, "sampling"),
            (Action::System, "system"),
            (Action::Newline, "new line"),
            (Action::Quit, "quit"),
        ],
        (Mode::Compare, false) => &[
            (Action::Help, "help"),
            (Action::SwitchMode, "chat"),
            (Action::Next, "tokens"),
            (Action::Colours, "colours"),
            (Action::Promote, "go on"),
            (Action::Export, "report"),
            (Action::Quit, "quit"),
        ],
    };
    frame.render_widget(hints(app, offers, usize::from(area.width)), area);
}

/// Keys and what they do, as many as fit.
fn hints(app: &App, offers: &[(Action, &'static str)], width: usize) -> Line<'static> {
    let mut line = Line::default();
    for (action, what) in offers {
        let Some(key) = app.keymap.hint(*action) else {
            continue;
        };
        let key = Span::styled(format!(" {key}"), Style::new().bold());
        let what = Span::styled(format!(" {what} "), dim());
        if line.width() + key.width() + what.width() > width {
            break;
        }
        line.push_span(key);
        line.push_span(what);
    }
    line
}

/// What to show where there is nothing yet: how things stand with the server.
fn standing(app: &App) -> Vec<Line<'static>> {
    let key = |action| app.keymap.hint(action).unwrap_or_default();
    let mut lines = vec![];
    match &app.arms {
        Arms::Waiting(why) => {
            let why = why.as_deref().unwrap_or("Asking the server…");
            lines.push(Line::raw(why.to_owned()));
            if let Some(question) = app.waiting() {
                let question = wrap::shortened(question, 60);
                lines.push(Line::styled(format!("Waiting to ask: {question}"), dim()));
            }
        }
        Arms::Failed(failure) => {
            let text = wrap::printable(&failure.to_string());
            lines.extend(
                text.lines()
                    .map(|line| Line::styled(line.to_owned(), red())),
            );
            let again = format!("{} asks the server again.", key(Action::Arms));
            lines.push(Line::styled(again, dim()));
        }
        Arms::Known(arms) => {
            lines.push(Line::raw(match arms.len() {
                1 => "1 arm is served.".to_owned(),
                count => format!("{count} arms are served."),
            }));
            lines.push(Line::default());
            for (action, what) in [
                (Action::Send, "asks what you have written"),
                (Action::Newline, "begins a new line"),
                (Action::Arms, "chooses who answers"),
                (Action::SwitchMode, "compares arms side by side, and back"),
                (Action::Help, "shows every key"),
            ] {
                lines.push(Line::from(vec![
                    Span::styled(format!("{:>10}", key(action)), Style::new().bold()),
                    Span::styled(format!("  {what}"), dim()),
                ]));
            }
        }
    }
    lines
}

/// A place in the middle, cleared, in a frame.
fn popup(
    frame: &mut Frame<'_>,
    area: Rect,
    size: (u16, u16),
    title: String,
    foot: Line<'static>,
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
        .title_bottom(foot);
    let inner = block.inner(place);
    // Pieces of lines beside it would only disturb.
    let rows = Rect {
        x: area.x,
        width: area.width,
        ..place
    };
    frame.render_widget(Clear, rows);
    frame.render_widget(block, place);
    Rect {
        x: inner.x + 1,
        width: inner.width.saturating_sub(2),
        ..inner
    }
}

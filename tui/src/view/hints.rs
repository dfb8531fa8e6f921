//! Key hints at the edges of the screen.

use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::{dim, red};
use crate::app::{App, Measures, Mode, Notice, Target};
use crate::keymap::Action;
use crate::wrap;

type Offer = (Action, &'static str);

/// Hints for some keys, all that fit.
pub(super) struct Hints {
    pub(super) line: Line<'static>,
    /// The start, width and action of each hint.
    places: Vec<(u16, u16, Action)>,
}

impl Hints {
    pub(super) fn new(app: &App, offers: &[Offer], width: u16) -> Hints {
        let mut line = Line::default();
        let mut places = Vec::new();
        for (action, what) in offers {
            let Some(key) = app.keymap.hint(*action) else {
                continue;
            };
            let key = Span::styled(format!(" {key}"), Style::new().bold());
            let what = Span::styled(format!(" {what} "), dim());
            let from = line.width();
            let wide = key.width() + what.width();
            if from + wide > usize::from(width) {
                break;
            }
            places.push((from as u16, wide as u16, *action));
            line.push_span(key);
            line.push_span(what);
        }
        Hints { line, places }
    }

    /// Makes the hints clickable, for a line that begins at `at`.
    pub(super) fn make_clickable(&self, at: Position, measures: &mut Measures) {
        let targets = self.places.iter().map(|(from, width, action)| {
            let area = Rect::new(at.x + from, at.y, *width, 1);
            (area, Target::Action(*action))
        });
        measures.targets.extend(targets);
    }
}

/// Maximum rows of a notice.
const MAX_ROWS: usize = 3;

/// The number of rows needed.
pub(super) fn height(app: &App, width: u16) -> u16 {
    app.notice
        .as_ref()
        .map_or(1, |notice| notice_lines(notice, width).len() as u16)
}

/// Draws the notice, or hints.
pub(super) fn draw(app: &App, frame: &mut Frame<'_>, area: Rect, measures: &mut Measures) {
    if let Some(notice) = &app.notice {
        frame.render_widget(Paragraph::new(notice_lines(notice, area.width)), area);
        return;
    }
    let offers: Vec<Offer> = offers(app)
        .iter()
        .copied()
        .filter(|(action, _)| match action {
            Action::Export => app.compare.is_exportable(),
            Action::VariantBefore => {
                let last = app.chat.session.messages.last();
                last.is_some_and(|last| !last.variants.is_empty())
            }
            _ => true,
        })
        .collect();
    let hints = Hints::new(app, &offers, area.width);
    hints.make_clickable(area.as_position(), measures);
    frame.render_widget(hints.line, area);
}

fn notice_lines(notice: &Notice, width: u16) -> Vec<Line<'static>> {
    let style = if notice.is_error {
        red()
    } else {
        Style::new().fg(Color::Green)
    };
    let text = wrap::printable(&notice.text).replace('\n', " ");
    let edge = Span::raw(" ");
    let mut lines = wrap::styled(&[(text, style)], usize::from(width) - 1, &edge, &edge);
    lines.truncate(MAX_ROWS);
    lines
}

/// The most useful hints come first, because there may be room for few.
fn offers(app: &App) -> &'static [Offer] {
    let chat = &app.chat;
    match app.mode {
        _ if app.is_busy() => &[
            (Action::Stop, "stop"),
            (Action::Help, "help"),
            (Action::ScrollUp, "scroll"),
            (Action::Quit, "quit"),
        ],
        Mode::Chat if chat.editing.is_some() => &[
            (Action::Send, "send"),
            (Action::Stop, "leave it"),
            (Action::Newline, "new line"),
            (Action::Help, "help"),
        ],
        Mode::Chat if chat.selected.is_some() => &[
            (Action::Copy, "copy"),
            (Action::Edit, "edit"),
            (Action::SelectUp, "above"),
            (Action::SelectDown, "below"),
            (Action::Stop, "leave it"),
            (Action::Help, "help"),
        ],
        Mode::Chat if chat.session.messages.is_empty() => &[
            (Action::Help, "help"),
            (Action::Arms, "arms"),
            (Action::SwitchMode, "compare"),
            (Action::Sessions, "sessions"),
            (Action::Sampling, "sampling"),
            (Action::Quit, "quit"),
            (Action::System, "system"),
            (Action::Newline, "new line"),
        ],
        Mode::Chat => &[
            (Action::Help, "help"),
            (Action::Regenerate, "again"),
            (Action::VariantBefore, "other answers"),
            (Action::NewSession, "new"),
            (Action::Copy, "copy"),
            (Action::Edit, "edit"),
            (Action::Arms, "arms"),
            (Action::SwitchMode, "compare"),
            (Action::Sessions, "sessions"),
            (Action::Sampling, "sampling"),
            (Action::Quit, "quit"),
        ],
        Mode::Compare if app.compare.panes.is_empty() => &[
            (Action::Help, "help"),
            (Action::Arms, "arms"),
            (Action::SwitchMode, "chat"),
            (Action::Sessions, "sessions"),
            (Action::Sampling, "sampling"),
            (Action::Quit, "quit"),
            (Action::System, "system"),
            (Action::Newline, "new line"),
        ],
        Mode::Compare if app.compare.focus.is_some() => &[
            (Action::Left, "back"),
            (Action::Right, "next token"),
            (Action::Next, "next pane"),
            (Action::Stop, "write"),
            (Action::Promote, "continue in chat"),
            (Action::Colours, "colours"),
            (Action::Copy, "copy"),
            (Action::Help, "help"),
        ],
        Mode::Compare => &[
            (Action::Help, "help"),
            (Action::Next, "tokens"),
            (Action::Colours, "colours"),
            (Action::Promote, "continue"),
            (Action::Export, "report"),
            (Action::Arms, "arms"),
            (Action::SwitchMode, "chat"),
            (Action::NewSession, "new"),
            (Action::Sessions, "sessions"),
            (Action::Quit, "quit"),
        ],
    }
}

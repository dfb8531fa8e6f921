//! What opens above the conversation.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::hints::Hints;
use super::{dim, draw_editor, help, popup, red, standing};
use crate::app::{App, Editor, Measures, Mode, Panel, Picker, Target, matching_sessions};
use crate::keymap::Action;
use crate::sampling::FIELDS;
use crate::session::{Listing, Session};
use crate::wrap;

/// How wide the names of parameters are.
const NAMES: usize = 20;

/// Draws a panel.
pub(super) fn draw(
    app: &App,
    panel: &Panel,
    frame: &mut Frame<'_>,
    area: Rect,
    measures: &mut Measures,
) {
    match panel {
        Panel::Help(scroll) => help::draw(app, *scroll, frame, area, measures),
        Panel::Arms { picker, marked } => arms(app, picker, marked, frame, area, measures),
        Panel::Sampling { at, value, refused } => {
            sampling(app, *at, value, *refused, frame, area, measures);
        }
        Panel::System(editor) => {
            let offers = [(Action::Send, "done"), (Action::Newline, "new line")];
            let foot = Hints::new(app, &offers, 40);
            let size = (
                area.width.saturating_sub(8),
                area.height.saturating_sub(6).min(16),
            );
            let title = " system message: what all answers are to keep to ";
            let inner = popup(frame, area, size, title.into(), foot, measures);
            let top = draw_editor(editor, frame, inner, usize::from(inner.width), true);
            measures.targets.push((inner, Target::Text { top }));
        }
        Panel::Sessions { picker, all } => {
            sessions(app, picker, all.as_ref(), frame, area, measures);
        }
    }
}

fn arms(
    app: &App,
    picker: &Picker,
    marked: &[String],
    frame: &mut Frame<'_>,
    area: Rect,
    measures: &mut Measures,
) {
    let (title, offers): (_, &[_]) = match app.mode {
        Mode::Chat => (
            " who answers ",
            &[
                (Action::Send, "choose"),
                (Action::Guide, "guidance"),
                (Action::Stop, "leave"),
            ],
        ),
        Mode::Compare => (
            " who is compared ",
            &[
                (Action::Next, "mark"),
                (Action::Send, "done"),
                (Action::Guide, "guidance"),
                (Action::Stop, "leave"),
            ],
        ),
    };
    let found = app.matching_arms(picker, marked);
    let rows = found.iter().map(|arm| {
        let place = marked.iter().position(|id| id == arm);
        let place = place.map(|place| format!("{} ", place + 1));
        let mark = match app.mode {
            Mode::Chat => String::new(),
            Mode::Compare => place.unwrap_or_else(|| "· ".into()),
        };
        (format!("{mark}{arm}"), String::new())
    });
    let size = (70, area.height.saturating_sub(4).min(24));
    let foot = Hints::new(app, offers, 60);
    let inner = popup(frame, area, size, title.into(), foot, measures);
    if app.known_arms().is_empty() {
        let lines = standing::server(app, usize::from(inner.width));
        frame.render_widget(Paragraph::new(lines), inner);
        return;
    }
    list(picker, rows.collect(), frame, inner, measures);
}

fn sessions(
    app: &App,
    picker: &Picker,
    all: Option<&Listing>,
    frame: &mut Frame<'_>,
    area: Rect,
    measures: &mut Measures,
) {
    let offers = [(Action::Send, "open"), (Action::Stop, "leave")];
    let foot = Hints::new(app, &offers, 60);
    let size = (
        area.width.saturating_sub(4).min(100),
        area.height.saturating_sub(4),
    );
    let inner = popup(frame, area, size, " saved sessions ".into(), foot, measures);
    let Some(all) = all else {
        frame.render_widget("reading…", inner);
        return;
    };
    let mut below = inner;
    if !all.broken.is_empty() {
        let lines = all.broken.iter().flat_map(|why| {
            let text = format!("cannot be read, left as it is: {}", wrap::printable(why));
            let none = Span::default();
            wrap::styled(&[(text, red())], usize::from(inner.width), &none, &none)
        });
        let mut lines: Vec<Line<'_>> = lines.collect();
        lines.truncate(usize::from(inner.height / 3));
        let height = lines.len() as u16;
        let place = Rect {
            y: inner.bottom() - height,
            height,
            ..inner
        };
        frame.render_widget(Paragraph::new(lines), place);
        below.height -= height;
    }
    if all.sessions.is_empty() {
        frame.render_widget("Nothing is saved yet.", below);
        return;
    }
    let found = matching_sessions(&all.sessions, picker);
    list(
        picker,
        found.into_iter().map(row).collect(),
        frame,
        below,
        measures,
    );
}

/// When a session was begun, what it is and about what; who answers.
fn row(session: &Session) -> (String, String) {
    let head = &session.head;
    let when = jiff::Timestamp::from_second(head.created as i64).unwrap_or_default();
    let when = when.to_zoned(jiff::tz::TimeZone::system());
    let when = when.strftime("%Y-%m-%d %H:%M");
    let (what, who) = match &head.compare {
        Some(comparison) => ("compare", comparison.arms.join(" | ")),
        None => ("chat", head.arm.clone().unwrap_or_default()),
    };
    let title = wrap::printable(session.title());
    (format!("{when}  {what:<7}  {title}"), who)
}

/// A line to search in, and what is found, with a note at the right.
fn list(
    picker: &Picker,
    rows: Vec<(String, String)>,
    frame: &mut Frame<'_>,
    area: Rect,
    measures: &mut Measures,
) {
    let search = Rect { height: 1, ..area };
    let search_text = Rect {
        x: search.x + 8,
        width: search.width.saturating_sub(8),
        ..search
    };
    frame.render_widget(Line::styled("search:", dim()), search);
    draw_editor(
        &picker.filter,
        frame,
        search_text,
        usize::from(u16::MAX),
        true,
    );
    let below = Rect {
        y: area.y + 2,
        height: area.height.saturating_sub(2),
        ..area
    };
    let height = usize::from(below.height);
    let width = usize::from(below.width);
    let top = (picker.at + 1).saturating_sub(height);
    let shown = rows.iter().enumerate().skip(top).take(height);
    let lines = shown.map(|(index, (text, note))| {
        let note = wrap::shortened(note, width / 3);
        let note = Span::styled(note, dim());
        let room = width.saturating_sub(note.width() + 1);
        let text = wrap::shortened(text, room);
        let text = Span::raw(text);
        let fill = Span::raw(" ".repeat(width.saturating_sub(text.width() + note.width())));
        let line = Line::from(vec![text, fill, note]);
        match index == picker.at {
            true => line.style(Style::new().reversed()),
            false => line,
        }
    });
    let lines: Vec<Line<'_>> = lines.collect();
    let chosen = Rect {
        height: lines.len() as u16,
        ..below
    };
    measures.targets.push((chosen, Target::List { top }));
    match lines.is_empty() {
        true => frame.render_widget(Line::styled("nothing found", dim()), below),
        false => frame.render_widget(Paragraph::new(lines), below),
    }
}

fn sampling(
    app: &App,
    at: usize,
    value: &Editor,
    refused: Option<&'static str>,
    frame: &mut Frame<'_>,
    area: Rect,
    measures: &mut Measures,
) {
    let offers = [
        (Action::Up, "up"),
        (Action::Down, "down"),
        (Action::Stop, "done"),
    ];
    let size = (72, FIELDS.len() as u16 + 5);
    let foot = Hints::new(app, &offers, 60);
    let inner = popup(frame, area, size, " sampling ".into(), foot, measures);
    let width = usize::from(inner.width);
    let (about, style) = match refused {
        Some(why) => (format!("that will not do: {why}"), red()),
        None => (FIELDS[at].help.to_owned(), dim()),
    };
    let none = Span::default();
    let about = wrap::styled(&[(about, style)], width, &none, &none);
    let [fields, _, below] = Layout::vertical([
        Constraint::Max(FIELDS.len() as u16),
        Constraint::Fill(1),
        Constraint::Length(about.len() as u16),
    ])
    .areas(inner);
    frame.render_widget(Paragraph::new(about), below);
    let top = (at + 1).saturating_sub(usize::from(fields.height));
    let set = &app.chat.session.head.sampling;
    let shown = FIELDS.iter().enumerate().skip(top);
    for ((index, field), row) in shown.zip(fields.rows()) {
        measures.targets.push((row, Target::Field(index)));
        let name = Span::raw(format!("{:<NAMES$}", field.name));
        let place = Rect {
            x: row.x + NAMES as u16,
            width: row.width.saturating_sub(NAMES as u16),
            ..row
        };
        if index == at {
            let name = name.style(Style::new().fg(Color::Cyan).bold());
            frame.render_widget(name, row);
            draw_editor(value, frame, place, usize::from(u16::MAX), true);
            continue;
        }
        let value = match set.get(field.name) {
            Some(value) => Span::styled(value, Style::new().bold()),
            None => Span::styled("left to the server", dim()),
        };
        frame.render_widget(name, row);
        frame.render_widget(value, place);
    }
}

//! Draws the panels over the conversation.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::hints::Hints;
use super::{dim, draw_editor, empty, help, popup, red};
use crate::app::{
    App, Editor, Measures, Mode, Panel, Picker, Target, matching_line, matching_sessions,
};
use crate::keymap::Action;
use crate::sampling::FIELDS;
use crate::session::{Listing, Session};
use crate::wrap;

/// The column width of parameters' names.
const NAMES: usize = 20;

/// The width of a session's title if a matching line follows it.
const TITLE: usize = 16;

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
        Panel::Sessions { picker, all, .. } => {
            sessions(app, picker, all.as_ref(), frame, area, measures);
        }
        Panel::Rename { title, .. } => {
            let offers = [(Action::Send, "done"), (Action::Stop, "leave it")];
            let foot = Hints::new(app, &offers, 40);
            let size = (area.width.saturating_sub(8).min(80), 3);
            let above = " the session's title; without one its first question ";
            let inner = popup(frame, area, size, above.into(), foot, measures);
            draw_editor(title, frame, inner, usize::from(u16::MAX), true);
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
        (format!("{mark}{}", wrap::printable(arm)), about(app, arm))
    });
    let size = (
        area.width.saturating_sub(4).min(100),
        area.height.saturating_sub(4).min(24),
    );
    let foot = Hints::new(app, offers, 60);
    let inner = popup(frame, area, size, title.into(), foot, measures);
    if app.known_arms().is_empty() {
        let lines = empty::server(app, usize::from(inner.width));
        frame.render_widget(Paragraph::new(lines), inner);
        return;
    }
    let rows = rows.collect();
    let described = found.get(picker.at).and_then(|arm| app.profile(arm));
    let described = described.map_or("", |profile| &profile.description);
    let none = Span::default();
    let text = [(wrap::printable(described), dim())];
    let mut lines = wrap::styled(&text, usize::from(inner.width), &none, &none);
    lines.truncate(usize::from(inner.height / 4));
    let [above, below] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(lines.len() as u16)])
            .areas(inner);
    frame.render_widget(Paragraph::new(lines), below);
    list(picker, rows, frame, above, measures);
}

/// A short description of an arm's profile.
fn about(app: &App, arm: &str) -> String {
    let Some(profile) = app.profile(arm) else {
        return String::new();
    };
    let names = [profile.language.as_str(), profile.title.as_str()];
    let names = names.into_iter().filter(|name| !name.is_empty());
    let names: Vec<&str> = names.collect();
    let named = wrap::printable(&names.join(" · "));
    if arm.contains('@') {
        named
    } else {
        format!("@{}: {named}", wrap::printable(&profile.id))
    }
}

fn sessions(
    app: &App,
    picker: &Picker,
    all: Option<&Listing>,
    frame: &mut Frame<'_>,
    area: Rect,
    measures: &mut Measures,
) {
    let offers = [
        (Action::Send, "open"),
        (Action::Rename, "rename"),
        (Action::Delete, "delete"),
        (Action::Stop, "leave"),
    ];
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
        found
            .into_iter()
            .map(|session| row(session, picker))
            .collect(),
        frame,
        below,
        measures,
    );
}

/// The columns of a session's row: its time, kind and title or matching line; its arms.
fn row(session: &Session, picker: &Picker) -> (String, String) {
    let head = &session.head;
    let when = jiff::Timestamp::from_second(head.created as i64).unwrap_or_default();
    let when = when.to_zoned(jiff::tz::TimeZone::system());
    let when = when.strftime("%Y-%m-%d %H:%M");
    let (what, who) = match &head.compare {
        Some(comparison) => ("compare", comparison.arms.join(" | ")),
        None => ("chat", head.arm.clone().unwrap_or_default()),
    };
    let title = wrap::printable(session.title());
    match matching_line(session, picker) {
        // The match must be visible.
        Some(line) => {
            let (title, line) = (wrap::shortened(&title, TITLE), wrap::printable(&line));
            (format!("{when}  {what:<7}  {title}  {line}"), String::new())
        }
        None => (format!("{when}  {what:<7}  {title}"), who),
    }
}

/// A search line and its matches, with notes on the right.
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
        let note = wrap::shortened(note, width / 2);
        let note = Span::styled(note, dim());
        let available = width.saturating_sub(note.width() + 1);
        let text = wrap::shortened(text, available);
        let text = Span::raw(text);
        let fill = Span::raw(" ".repeat(width.saturating_sub(text.width() + note.width())));
        let line = Line::from(vec![text, fill, note]);
        if index == picker.at {
            line.style(Style::new().reversed())
        } else {
            line
        }
    });
    let lines: Vec<Line<'_>> = lines.collect();
    let chosen = Rect {
        height: lines.len() as u16,
        ..below
    };
    measures.targets.push((chosen, Target::List { top }));
    if lines.is_empty() {
        frame.render_widget(Line::styled("nothing found", dim()), below)
    } else {
        frame.render_widget(Paragraph::new(lines), below)
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
        Some(why) => (
            format!("that will not do: {why}. Empty, it is left to the server."),
            red(),
        ),
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
            if value.text().is_empty() {
                frame.render_widget(Span::styled(app.effective_value(field), dim()), place);
            }
            draw_editor(value, frame, place, usize::from(u16::MAX), true);
            continue;
        }
        let value = match set.get(field.name) {
            Some(value) => Span::styled(value, Style::new().bold()),
            None => Span::styled(app.effective_value(field), dim()),
        };
        frame.render_widget(name, row);
        frame.render_widget(value, place);
    }
}

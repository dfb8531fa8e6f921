//! What opens above the conversation.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::{dim, draw_editor, hints, popup, red, standing};
use crate::app::{
    App, Editor, Extent, Mode, Panel, Picker, Scroll, matching_arms, matching_sessions,
};
use crate::keymap::{Action, ENTRIES, Group};
use crate::sampling::FIELDS;
use crate::session::{Listing, Session};
use crate::wrap;

/// Draws a panel; returns how much there is to scroll.
pub(super) fn draw(app: &App, panel: &Panel, frame: &mut Frame<'_>, area: Rect) -> Extent {
    match panel {
        Panel::Help(scroll) => return help(app, *scroll, frame, area),
        Panel::Arms { picker, marked } => arms(app, picker, marked, frame, area),
        Panel::Sampling { at, value, refused } => sampling(app, *at, value, *refused, frame, area),
        Panel::System(editor) => {
            let foot = hints(
                app,
                &[(Action::Send, "done"), (Action::Newline, "new line")],
                40,
            );
            let size = (
                area.width.saturating_sub(8),
                area.height.saturating_sub(6).min(16),
            );
            let inner = popup(frame, area, size, " system message ".into(), foot);
            draw_editor(editor, frame, inner, usize::from(inner.width), true);
        }
        Panel::Sessions { picker, all } => sessions(app, picker, all.as_ref(), frame, area),
    }
    Extent::default()
}

/// How wide the columns of the help screen are.
const KEYS: usize = 22;
const NAMES: usize = 17;

fn help(app: &App, scroll: Scroll, frame: &mut Frame<'_>, area: Rect) -> Extent {
    let foot = hints(
        app,
        &[(Action::Stop, "close"), (Action::ScrollDown, "more")],
        40,
    );
    let size = (76, area.height);
    let inner = popup(frame, area, size, " keys ".into(), foot);
    let width = usize::from(inner.width);
    let mut lines = Vec::new();
    for group in Group::ALL {
        if !lines.is_empty() {
            lines.push(Line::default());
        }
        lines.push(Line::styled(
            group.title(),
            Style::new().fg(Color::Cyan).bold(),
        ));
        for entry in ENTRIES.iter().filter(|entry| entry.group == group) {
            let keys = app.keymap.keys(entry.action).join("  ");
            let keys = wrap::shortened(&keys, KEYS - 1);
            let fill = " ".repeat(KEYS - Span::raw(&keys).width());
            let name = format!("{:<NAMES$}", entry.name);
            let rows = wrap::rows(entry.help, width.saturating_sub(KEYS + NAMES));
            for (index, row) in rows.into_iter().enumerate() {
                let (before, name) = match index {
                    0 => (format!("{keys}{fill}"), name.clone()),
                    _ => (" ".repeat(KEYS), " ".repeat(NAMES)),
                };
                lines.push(Line::from(vec![
                    Span::styled(before, Style::new().bold()),
                    Span::styled(name, dim()),
                    Span::raw(&entry.help[row]),
                ]));
            }
        }
    }
    lines.push(Line::default());
    let file = "The words in the middle are the names for keys.toml, which binds keys anew.";
    lines.extend(wrap::styled(
        &[(file.into(), dim())],
        width,
        &Span::default(),
        &Span::default(),
    ));
    let extent = Extent {
        rows: lines.len(),
        height: usize::from(inner.height),
    };
    let shown = lines.into_iter().skip(scroll.top(extent));
    let shown: Vec<Line<'_>> = shown.take(extent.height).collect();
    frame.render_widget(Paragraph::new(shown), inner);
    extent
}

fn arms(app: &App, picker: &Picker, marked: &[String], frame: &mut Frame<'_>, area: Rect) {
    let (title, offers): (_, &[_]) = match app.mode {
        Mode::Chat => (
            " who answers ",
            &[(Action::Send, "choose"), (Action::Stop, "leave")],
        ),
        Mode::Compare => (
            " who is compared ",
            &[
                (Action::Next, "mark"),
                (Action::Send, "done"),
                (Action::Stop, "leave"),
            ],
        ),
    };
    let found = matching_arms(app.known_arms(), picker);
    let rows = found.iter().map(|arm| {
        let place = marked.iter().position(|id| *id == arm.id);
        let place = place.map(|place| format!("{} ", place + 1));
        let mark = match app.mode {
            Mode::Chat => String::new(),
            Mode::Compare => place.unwrap_or_else(|| "· ".into()),
        };
        (format!("{mark}{}", arm.id), String::new())
    });
    let size = (70, area.height.saturating_sub(4).min(24));
    let foot = hints(app, offers, 60);
    let inner = popup(frame, area, size, title.into(), foot);
    if app.known_arms().is_empty() {
        frame.render_widget(Paragraph::new(standing(app)), inner);
        return;
    }
    list(picker, rows.collect(), frame, inner);
}

fn sessions(app: &App, picker: &Picker, all: Option<&Listing>, frame: &mut Frame<'_>, area: Rect) {
    let foot = hints(app, &[(Action::Send, "open"), (Action::Stop, "leave")], 60);
    let size = (
        area.width.saturating_sub(4).min(100),
        area.height.saturating_sub(4),
    );
    let inner = popup(frame, area, size, " saved sessions ".into(), foot);
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
    list(picker, found.into_iter().map(row).collect(), frame, below);
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
fn list(picker: &Picker, rows: Vec<(String, String)>, frame: &mut Frame<'_>, area: Rect) {
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
) {
    let offers = [
        (Action::Up, "up"),
        (Action::Down, "down"),
        (Action::Stop, "done"),
    ];
    let size = (72, FIELDS.len() as u16 + 5);
    let foot = hints(app, &offers, 60);
    let inner = popup(frame, area, size, " sampling ".into(), foot);
    let set = &app.chat.session.head.sampling;
    let mut lines = Vec::new();
    for (index, field) in FIELDS.iter().enumerate() {
        let typed = set.get(field.name);
        let value = match typed {
            Some(value) => Span::styled(value, Style::new().bold()),
            None => Span::styled("left to the server", dim()),
        };
        let name = Span::raw(format!("{:<20}", field.name));
        lines.push(match index == at {
            true => Line::from(name.style(Style::new().fg(Color::Cyan).bold())),
            false => Line::from(vec![name, value]),
        });
    }
    lines.push(Line::default());
    lines.push(match refused {
        Some(why) => Line::styled(format!("that will not do: {why}"), red()),
        None => Line::styled(FIELDS[at].help, dim()),
    });
    frame.render_widget(Paragraph::new(lines), inner);
    let row = Rect {
        x: inner.x + 20,
        y: (inner.y + at as u16).min(inner.bottom().saturating_sub(1)),
        width: inner.width.saturating_sub(20),
        height: 1,
    };
    draw_editor(value, frame, row, usize::from(u16::MAX), true);
}

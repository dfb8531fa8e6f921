//! The help screen, generated from the keymap.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::hints::Hints;
use super::{dim, popup};
use crate::app::{App, Extent, Measures, Scroll, Target};
use crate::keymap::{Action, ENTRIES, Entry, Group};
use crate::wrap;

/// Column widths.
const KEYS: usize = 22;
const NAMES: usize = 17;

/// The minimum width at which help has a column of its own.
const WIDE: usize = 60;

/// Mouse actions that have no entry in the keymap.
const MOUSE: [&str; 3] = [
    "The wheel scrolls what is under the pointer.",
    "A click chooses: a mode, a key's name at the edge, an entry of a list, a message to copy \
     or edit, a pane and a token of it, a place in what you write.",
    "With Shift held most terminals select text as elsewhere.",
];

pub(super) fn draw(
    app: &App,
    scroll: Scroll,
    frame: &mut Frame<'_>,
    area: Rect,
    measures: &mut Measures,
) {
    let offers = [(Action::Stop, "close"), (Action::ScrollDown, "more")];
    let foot = Hints::new(app, &offers, 40);
    let size = (76, area.height);
    let inner = popup(frame, area, size, " keys ".into(), foot, measures);
    let lines = lines(app, usize::from(inner.width));
    let extent = Extent {
        rows: lines.len(),
        height: usize::from(inner.height),
    };
    let shown = lines.into_iter().skip(scroll.top(extent));
    let shown: Vec<Line<'_>> = shown.take(extent.height).collect();
    frame.render_widget(Paragraph::new(shown), inner);
    measures.help = extent;
    measures.targets.push((inner, Target::Help));
}

fn lines(app: &App, width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for group in Group::ALL {
        lines.push(heading(group.title()));
        for entry in ENTRIES.iter().filter(|entry| entry.group == group) {
            lines.extend(key(app, entry, width));
        }
        lines.push(Line::default());
    }
    lines.push(heading("Mouse"));
    for text in MOUSE {
        lines.extend(paragraph(text.into(), Style::new(), width));
    }
    lines.push(Line::default());
    let text = format!(
        "The names beside the keys are for {}, which binds keys anew: [keys], and below it \
         lines such as quit = \"ctrl-x\". Above it, mouse = false leaves the mouse to the \
         terminal from the beginning.",
        app.keys.display()
    );
    lines.extend(paragraph(text, dim(), width));
    lines
}

/// A key's line; on narrow screens its description is below.
fn key(app: &App, entry: &Entry, width: usize) -> Vec<Line<'static>> {
    let keys = app.keymap.keys(entry.action).join("  ");
    let keys = wrap::shortened(&keys, KEYS - 1);
    let fill = " ".repeat(KEYS - Span::raw(&keys).width());
    let keys = Span::styled(keys + &fill, Style::new().bold());
    let name = Span::styled(format!("{:<NAMES$}", entry.name), dim());
    if width < WIDE {
        let below = Span::raw("  ");
        let help = [(entry.help.to_owned(), Style::new())];
        let mut lines = vec![Line::from(vec![keys, name])];
        lines.extend(wrap::styled(&help, width, &below, &below));
        return lines;
    }
    let rows = wrap::rows(entry.help, width - KEYS - NAMES);
    let row = |(index, row): (usize, std::ops::Range<usize>)| {
        let help = Span::raw(&entry.help[row]);
        match index {
            0 => Line::from(vec![keys.clone(), name.clone(), help]),
            _ => Line::from(vec![Span::raw(" ".repeat(KEYS + NAMES)), help]),
        }
    };
    rows.into_iter().enumerate().map(row).collect()
}

fn heading(title: &'static str) -> Line<'static> {
    Line::styled(title, Style::new().fg(Color::Cyan).bold())
}

fn paragraph(text: String, style: Style, width: usize) -> Vec<Line<'static>> {
    let none = Span::default();
    wrap::styled(&[(text, style)], width, &none, &none)
}

//! The content of empty screens: the state of the server, and hints for the first steps.

use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};

use super::{dim, red};
use crate::app::{App, Arms, MAX_PANES};
use crate::keymap::Action;
use crate::wrap;

/// The width of the column of keys.
const KEYS: usize = 8;

/// An empty conversation.
pub(super) fn chat(app: &App, width: usize) -> Vec<Line<'static>> {
    let Arms::Known(arms) = &app.arms else {
        return server(app, width);
    };
    let count = match arms.len() {
        1 => "1 arm is served".to_owned(),
        count => format!("{count} arms are served"),
    };
    let kinds = if arms.iter().any(|arm| arm.id.contains(['@', '+'])) {
        ": models, plain or under a profile (@) or an adapter (+)."
    } else {
        "."
    };
    let mut lines = text(count + kinds, dim(), width);
    if let Some(arm) = &app.chat.session.head.arm {
        let arm = wrap::printable(arm);
        lines.extend(text(format!("{arm} answers."), Style::new().bold(), width));
    }
    lines.push(Line::default());
    let mut offers = vec![
        (Action::Send, "asks what you have written below"),
        (Action::Newline, "begins a new line"),
        (Action::Arms, "chooses who answers"),
        (Action::SwitchMode, "compares arms side by side, and back"),
        (Action::Sessions, "finds earlier sessions: all are saved"),
        (Action::Help, "shows every key"),
    ];
    if app.mouse {
        let select = "leaves the mouse to the terminal, to select text";
        offers.push((Action::Mouse, select));
    }
    lines.extend(keys(app, &offers, width));
    lines
}

/// An empty comparison.
pub(super) fn compare(app: &App, width: usize) -> Vec<Line<'static>> {
    let chosen = &app.compare.chosen;
    if chosen.is_empty() {
        return server(app, width);
    }
    let mut lines = text("Write a question to compare:".into(), Style::new(), width);
    for arm in chosen {
        let arm = format!("  {}", wrap::printable(arm));
        lines.extend(text(arm, Style::new().fg(Color::Green).bold(), width));
    }
    lines.push(Line::default());
    let about = if app.compares {
        "Colours show where the reference, one of them, would have said something else."
    } else {
        "Colours show how likely each token was."
    };
    lines.extend(text(about.into(), dim(), width));
    lines.push(Line::default());
    let which = format!("chooses who is compared, up to {MAX_PANES}");
    let offers = [
        (Action::Arms, which.as_str()),
        (Action::Next, "goes to the tokens of an answer"),
        (Action::Promote, "continues in chat with one of them"),
        (Action::Help, "shows every key"),
    ];
    lines.extend(keys(app, &offers, width));
    lines
}

/// The state of a server that has not listed any arms.
pub(super) fn server(app: &App, width: usize) -> Vec<Line<'static>> {
    match &app.arms {
        Arms::Waiting(why) => {
            let why = why.as_deref().unwrap_or("Asking the server…");
            let mut lines = text(wrap::printable(why), Style::new(), width);
            if let Some(question) = app.waiting() {
                let question = wrap::shortened(&question.replace('\n', " "), 60);
                lines.extend(text(format!("Waiting to ask: {question}"), dim(), width));
            }
            lines
        }
        Arms::Failed(failure) => {
            let failure = wrap::printable(&failure.to_string());
            let mut lines = text(failure, red(), width);
            lines.extend(keys(app, &[(Action::Arms, "asks the server again")], width));
            lines
        }
        Arms::Known(_) => text("The server lists no models.".into(), red(), width),
    }
}

fn text(text: String, style: Style, width: usize) -> Vec<Line<'static>> {
    let none = Span::default();
    wrap::styled(&[(text, style)], width, &none, &none)
}

fn keys(app: &App, offers: &[(Action, &str)], width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for (action, what) in offers {
        let Some(key) = app.keymap.hint(*action) else {
            continue;
        };
        let key = Span::styled(format!("{key:>KEYS$}  "), Style::new().bold());
        let rest = Span::raw(" ".repeat(key.width()));
        lines.extend(wrap::styled(
            &[((*what).to_owned(), dim())],
            width,
            &key,
            &rest,
        ));
    }
    lines
}

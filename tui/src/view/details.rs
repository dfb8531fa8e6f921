//! The details of the selected token: the alternatives of its arm, and those of the reference.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Paragraph};

use super::{dim, format};
use crate::app::{App, Pane};
use crate::wire::{Alternative, Score, Token};
use crate::wrap;

/// Rows it takes.
pub(super) const HEIGHT: u16 = 8;

pub(super) fn draw(app: &App, index: usize, pane: &Pane, frame: &mut Frame<'_>, area: Rect) {
    let Some(token) = pane.tokens.get(pane.cursor) else {
        return;
    };
    if area.height < HEIGHT {
        draw_line(app, index, pane, token, frame, area);
        return;
    }
    let title = format!(
        " token {} of {}: {} ",
        pane.cursor + 1,
        pane.tokens.len(),
        quoted(&token.token)
    );
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(dim())
        .title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let score = score(app, index, pane);
    let sides = match score {
        Some(_) => vec![Constraint::Fill(1); 2],
        None => vec![Constraint::Fill(1)],
    };
    let places = Layout::horizontal(sides).spacing(1).split(inner);
    let own = own(token, by(&pane.arm));
    let width = usize::from(places[0].width);
    frame.render_widget(column(own, &token.top_logprobs, token, width), places[0]);
    if let Some(score) = score {
        let name = &app.compare.panes[score.arm].arm;
        let width = usize::from(places[1].width);
        let said = other_side(score, by(name));
        frame.render_widget(column(said, &score.top_logprobs, token, width), places[1]);
    }
}

/// Another arm's score of the token: the reference's, or the first other arm's for the
/// reference itself.
fn score<'a>(app: &App, index: usize, pane: &'a Pane) -> Option<&'a Score> {
    let mut others = 0..app.compare.panes.len();
    let other = if index == app.compare.reference {
        others.find(|other| *other != index)
    } else {
        Some(app.compare.reference)
    };
    pane.score(pane.cursor, other?)
}

/// A one-line form, if there is no more room.
fn draw_line(
    app: &App,
    index: usize,
    pane: &Pane,
    token: &Token,
    frame: &mut Frame<'_>,
    area: Rect,
) {
    let own = own(token, by(&pane.arm));
    let mut line = format!(" {} {own}", quoted(&token.token));
    if let Some(score) = score(app, index, pane) {
        let probability = format::probability(score.logprob);
        line += &format!(" · {probability}, rank {}", score.rank);
        if let Some(arm) = app.compare.panes.get(score.arm) {
            line += &format!(" · {}", by(&arm.arm));
        }
    }
    frame.render_widget(wrap::shortened(&line, usize::from(area.width)), area);
}

fn own(token: &Token, arm: &str) -> String {
    let rank = token.rank.map(|rank| format!(", rank {rank}"));
    let rank = rank.unwrap_or_default();
    format!("{}{rank} · {arm}", format::probability(token.logprob))
}

fn other_side(score: &Score, arm: &str) -> String {
    format!(
        "{}, rank {}, KL {:.2} · {arm}",
        format::probability(score.logprob),
        score.rank,
        score.kl
    )
}

/// A line about the token, then the likeliest ones.
fn column(
    head: String,
    alternatives: &[Alternative],
    token: &Token,
    width: usize,
) -> Paragraph<'static> {
    let head = wrap::shortened(&head, width.saturating_sub(1));
    let mut lines = vec![Line::styled(format!(" {head}"), Style::new().bold())];
    if alternatives.is_empty() {
        lines.push(Line::styled(" alternatives —", dim()));
    }
    for alternative in alternatives.iter().take(usize::from(HEIGHT) - 3) {
        let style = if alternative.token == token.token {
            Style::new().reversed()
        } else {
            Style::new()
        };
        let probability = format!(" {:>7} ", format::probability(alternative.logprob));
        let text = wrap::shortened(&quoted(&alternative.token), width.saturating_sub(10));
        lines.push(Line::from(vec![
            Span::styled(probability, dim()),
            Span::styled(text, style),
        ]));
    }
    Paragraph::new(lines)
}

/// The part of an arm's id after its model, as there is little room.
fn by(arm: &str) -> &str {
    arm.find(['@', '+']).map_or(arm, |at| &arm[at..])
}

/// A token with visible spaces and line ends.
fn quoted(token: &str) -> String {
    let token = token.replace('\n', "↵").replace('\t', "⇥");
    format!("‘{}’", wrap::printable(&token))
}

//! Answers side by side, with each token coloured by its shift or probability.

use std::ops::Range;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Paragraph};
use unicode_width::UnicodeWidthStr;

use super::{MAX_TEXT_WIDTH, details, dim, empty, format, red};
use crate::app::{App, Colours, Drawn, Extent, Measures, Pane, Shift, Target};
use crate::wire::with_profile;
use crate::wrap::{self, GrowingRows};

/// Narrower panes are put below each other.
const NARROWEST: u16 = 36;

/// If panes would be lower, only some of them are shown.
const LOWEST: u16 = 4;

/// The minimum height that has room for all details of a token.
const ROOMY: u16 = 14;

/// The laid-out answers.
#[derive(Debug, Default)]
pub(super) struct Answers {
    rows: Vec<GrowingRows>,
}

impl Answers {
    pub(super) fn draw(
        &mut self,
        app: &App,
        frame: &mut Frame<'_>,
        area: Rect,
        measures: &mut Measures,
    ) {
        let count = app.compare.panes.len();
        self.rows.resize_with(count, GrowingRows::default);
        draw(app, &mut self.rows, frame, area, measures);
    }
}

fn draw(
    app: &App,
    rows: &mut [GrowingRows],
    frame: &mut Frame<'_>,
    area: Rect,
    measures: &mut Measures,
) {
    let compare = &app.compare;
    if compare.panes.is_empty() {
        let width = area.width - 2;
        let lines = empty::compare(app, usize::from(width).min(MAX_TEXT_WIDTH));
        let place = Rect {
            x: area.x + 1,
            y: area.y + area.height.saturating_sub(lines.len() as u16) / 2,
            width,
            height: (lines.len() as u16).min(area.height),
        };
        frame.render_widget(Paragraph::new(lines), place);
        return;
    }
    let looked_at = compare.focus.map(|place| (place, &compare.panes[place]));
    let looked_at = looked_at.filter(|(_, pane)| !pane.tokens.is_empty());
    let details = match (looked_at, area.height >= ROOMY) {
        (None, _) => 0,
        (Some(_), true) => details::HEIGHT,
        (Some(_), false) => 1,
    };
    let [head, panes, below] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(details),
    ])
    .areas(area);
    draw_head(app, frame, head);
    let places = grid(panes, compare.panes.len(), compare.focus.unwrap_or(0));
    for ((index, rows), place) in rows.iter_mut().enumerate().zip(places) {
        let drawn = place.map(|place| {
            measures.targets.push((place, Target::Pane(index)));
            draw_pane(app, index, rows, frame, place)
        });
        measures.panes.push(drawn.unwrap_or_default());
    }
    if let Some((index, pane)) = looked_at {
        details::draw(app, index, pane, frame, below);
    }
}

/// The places of panes: side by side as long as they are wide enough, below each other as long
/// as they are high enough. If there is not enough room for all, those around the focus get a
/// place.
fn grid(area: Rect, count: usize, focus: usize) -> Vec<Option<Rect>> {
    let columns = usize::from(area.width / NARROWEST).clamp(1, count);
    let most = usize::from(area.height / LOWEST).max(1);
    let rows = count.div_ceil(columns).min(most);
    let first = (focus / columns + 1).saturating_sub(rows) * columns;
    let lines = Layout::vertical(vec![Constraint::Fill(1); rows]).split(area);
    let mut places = vec![None; count];
    for (places, line) in places[first..].chunks_mut(columns).zip(lines.iter()) {
        let across = Layout::horizontal(vec![Constraint::Fill(1); places.len()]);
        for (place, area) in places.iter_mut().zip(across.split(*line).iter()) {
            *place = Some(*area);
        }
    }
    places
}

/// The question, and the legend of the colours.
fn draw_head(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let compare = &app.compare;
    let legend = legend(app);
    let question = wrap::printable(&compare.question.replace('\n', " "));
    let seed = if area.width >= 70 {
        format!("  seed {}", compare.seed)
    } else {
        String::new()
    };
    let available = usize::from(area.width).saturating_sub(legend.width() + seed.len() + 2);
    let left = vec![
        Span::raw(" "),
        Span::styled(
            wrap::shortened(&question, available),
            Style::new().fg(Color::Cyan).bold(),
        ),
        Span::styled(seed, dim()),
    ];
    frame.render_widget(Line::from(left), area);
    frame.render_widget(legend.right_aligned(), area);
}

fn legend(app: &App) -> Line<'static> {
    let compare = &app.compare;
    let mut panes = compare.panes.iter().enumerate();
    let shown = panes.any(|(index, pane)| {
        let reference = scoring_arm(app, index);
        pane.has(compare.colours, reference)
    });
    let mut spans = match compare.colours {
        Colours::None => vec![],
        Colours::Shift if compare.separate_requests => {
            vec![Span::styled(
                "no shift: this server has no /v1/compare",
                dim(),
            )]
        }
        Colours::Shift => vec![
            Span::styled("shift: ", dim()),
            Span::styled("marginal", of_shift(Shift::Marginal)),
            Span::raw(" "),
            Span::styled("shifted", of_shift(Shift::Shifted)),
        ],
        Colours::Probability if !shown && !app.is_busy() => {
            vec![Span::styled(
                "no probabilities: this server sends none",
                dim(),
            )]
        }
        Colours::Probability => vec![
            Span::styled("probability: ", dim()),
            Span::styled("<50%", of_probability(0.3)),
            Span::raw(" "),
            Span::styled("<20%", of_probability(0.1)),
            Span::raw(" "),
            Span::styled("<5%", of_probability(0.01)),
        ],
    };
    spans.push(Span::raw(" "));
    Line::from(spans)
}

/// The arm that scores a pane's tokens: the reference, or none for the reference itself.
fn scoring_arm(app: &App, index: usize) -> usize {
    if index == app.compare.reference {
        usize::MAX
    } else {
        app.compare.reference
    }
}

fn draw_pane(
    app: &App,
    index: usize,
    rows: &mut GrowingRows,
    frame: &mut Frame<'_>,
    area: Rect,
) -> Drawn {
    let pane = &app.compare.panes[index];
    let focused = app.compare.focus == Some(index);
    let style = if focused {
        Style::new().fg(Color::Cyan)
    } else {
        dim()
    };
    let available = usize::from(area.width).saturating_sub(4);
    let is_reference = index == app.compare.reference && !app.compare.separate_requests;
    let count = app.compare.panes.len();
    let role = if is_reference && count > 1 {
        " (reference)"
    } else {
        ""
    };
    // The number shows that there are others, even if they are not visible.
    let number = match count {
        1 => String::new(),
        _ => format!("{}/{count} ", index + 1),
    };
    let title = Span::styled(
        format!(" {} ", title(pane, &number, role, available)),
        Style::new().fg(Color::Green).bold(),
    );
    let runs = app.compare.is_running() && pane.finish.is_none();
    let mut foot = if runs {
        format::running(&pane.clock, app.now)
    } else {
        let shown = Some(pane.tokens.len()).filter(|count| *count > 0);
        format::short(&pane.stats(), pane.finish.as_deref(), shown)
    };
    let scorer = scoring_arm(app, index);
    if let Some([_, _, shifted]) = pane.shares(scorer) {
        let shifted = format!("{:.0}% shifted", shifted * 100.0);
        let shifted = match app.compare.guidance(index) {
            Some(_) => measured_without_guidance(&shifted, available),
            None => shifted,
        };
        foot = format!("{shifted} · {foot}");
    } else if scorer != usize::MAX && !pane.tokens.is_empty() && !app.compare.separate_requests {
        // Only models with the same vocabulary can score each other's tokens.
        foot = format!("other tokens: no shift · {foot}");
    }
    if pane.error.is_some() || (app.compare.error.is_some() && pane.is_waiting()) {
        foot = "failed".into();
    }
    let foot = Span::styled(format!(" {} ", format::fitting(&foot, available)), dim());
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .border_style(style)
        .title(title)
        .title_bottom(foot);
    let inner = block.inner(area);
    frame.render_widget(block, area);

    let text = Rect {
        x: inner.x + 1,
        width: inner.width.saturating_sub(2).min(MAX_TEXT_WIDTH as u16),
        ..inner
    };
    let width = usize::from(text.width);
    let rows = rows.update(&pane.text, width);
    let mut failed = Vec::new();
    if let Some(failure) = pane.error.as_ref().or(app.compare.error.as_ref()) {
        let sign = Span::styled("✗ ", red());
        let said = [(wrap::printable(&failure.to_string()), red())];
        failed = wrap::styled(&said, width, &sign, &Span::raw("  "));
    }
    let extent = Extent {
        rows: rows.len() + failed.len(),
        height: usize::from(text.height),
    };
    let mut top = pane.scroll.top(extent);
    // The selected token stays in view.
    if focused && pane.keeps_cursor && !pane.tokens.is_empty() {
        let start = pane.place(pane.cursor).start;
        let row = rows.partition_point(|row| row.start <= start);
        let row = row.saturating_sub(1);
        top = top.max((row + 1).saturating_sub(extent.height)).min(row);
    }
    let shown = rows.iter().skip(top);
    let lines = shown.map(|row| line(app, index, row, focused));
    let lines = lines.chain(failed.into_iter().skip(top.saturating_sub(rows.len())));
    let lines: Vec<Line<'_>> = lines.take(extent.height).collect();
    frame.render_widget(Paragraph::new(lines), text);
    Drawn { text, extent, top }
}

/// The title of a pane for a width: its number, arm and role. The end of an id distinguishes
/// arms, so the model's name is left out first.
fn title(pane: &Pane, number: &str, role: &str, width: usize) -> String {
    let arm = with_profile(&pane.arm, pane.profile.as_deref());
    let first = arm.find(['@', '+', ' ']).filter(|first| *first > 0);
    let rest = first.map(|first| format!("…{}", &arm[first..]));
    let short = rest.as_deref().unwrap_or(&arm);
    let titles = [(arm.as_str(), role), (short, role), (short, "")];
    let mut titles = titles.map(|(arm, role)| format!("{number}{arm}{role}"));
    let fitting = titles.iter().position(|title| title.width() <= width);
    let title = std::mem::take(&mut titles[fitting.unwrap_or(2)]);
    wrap::shortened(&title, width)
}

/// The shift of a guided answer, which is that of the arm without guidance.
fn measured_without_guidance(shifted: &str, width: usize) -> String {
    let whole = format!("{shifted}, measured without guidance");
    if whole.width() <= width {
        whole
    } else {
        format!("{shifted} (unguided)")
    }
}

/// A row of the text in the colours of its tokens.
fn line(app: &App, index: usize, row: &Range<usize>, focused: bool) -> Line<'static> {
    let compare = &app.compare;
    let pane = &compare.panes[index];
    let tokens = pane.tokens_within(row).map(|token| {
        let mut style = match compare.colours {
            Colours::None => Style::new(),
            Colours::Probability => of_probability(pane.tokens[token].logprob.exp()),
            Colours::Shift => pane
                .shift(token, scoring_arm(app, index))
                .map_or(Style::new(), of_shift),
        };
        if focused && token == pane.cursor {
            style = style.reversed();
        }
        (pane.place(token), style)
    });
    // Tokens arrive a little later than their text.
    let known = pane.known();
    let rest = (known..pane.text.len().max(known), Style::new());
    let marks: Vec<_> = tokens.chain([rest]).collect();
    let spans = wrap::cut(&pane.text, &marks, row.clone()).into_iter();
    let shown = spans.map(|span| Span::styled(wrap::printable(&span.content), span.style));
    Line::from(shown.collect::<Vec<_>>())
}

/// The style of a shift class. It does not depend on colour alone, for colour-blind users.
fn of_shift(shift: Shift) -> Style {
    match shift {
        Shift::Unshifted => Style::new(),
        Shift::Marginal => Style::new().fg(Color::Yellow),
        Shift::Shifted => Style::new().fg(Color::Red).underlined(),
    }
}

fn of_probability(probability: f64) -> Style {
    match probability {
        p if p >= 0.5 => Style::new(),
        p if p >= 0.2 => Style::new().fg(Color::Green),
        p if p >= 0.05 => Style::new().fg(Color::Yellow),
        _ => Style::new().fg(Color::Red).underlined(),
    }
}

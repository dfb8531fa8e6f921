//! Tables: columns are as wide as their widest cell if they fit, and narrower otherwise.

use ratatui::style::{Modifier, Style};
use ratatui::text::Span;

use crate::wrap;

type Cell = Vec<(String, Style)>;

/// The state of laying out a table; its first row is the head.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
    row: Vec<Cell>,
}

impl Table {
    pub(super) fn cell(&mut self, cell: Cell) {
        self.row.push(cell);
    }

    pub(super) fn end_row(&mut self) {
        self.rows.push(std::mem::take(&mut self.row));
    }

    /// The lines for a width.
    pub(super) fn lines(&self, width: usize) -> Vec<Vec<Span<'static>>> {
        let widths = self.widths(width);
        let dim = Style::new().dim();
        let mut lines = Vec::new();
        for (index, row) in self.rows.iter().enumerate() {
            lines.extend(cells(row, &widths, index == 0));
            if index == 0 {
                let rules = widths.iter().map(|width| "─".repeat(*width));
                let rule = rules.collect::<Vec<_>>().join("─┼─");
                lines.push(vec![Span::styled(rule, dim)]);
            }
        }
        lines
    }

    /// Narrows the widest column until all fit.
    fn widths(&self, available: usize) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(cell_width).max().unwrap_or(0).max(1)
            })
            .collect();
        let between = 3 * columns.saturating_sub(1);
        while widths.iter().sum::<usize>() + between > available {
            match widths.iter_mut().max() {
                Some(widest) if *widest > 2 => *widest -= 1,
                _ => break,
            }
        }
        widths
    }
}

fn cell_width(cell: &Cell) -> usize {
    cell.iter()
        .map(|(text, _)| Span::raw(text.as_str()).width())
        .sum()
}

/// The lines of one row, whose height is that of its tallest cell.
fn cells(row: &[Cell], widths: &[usize], head: bool) -> Vec<Vec<Span<'static>>> {
    let none = Span::default();
    let wrapped: Vec<_> = widths
        .iter()
        .enumerate()
        .map(|(column, width)| {
            let mut cell = row.get(column).cloned().unwrap_or_default();
            for (_, style) in cell.iter_mut().filter(|_| head) {
                *style = style.add_modifier(Modifier::BOLD);
            }
            wrap::styled(&cell, *width, &none, &none)
        })
        .collect();
    let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
    (0..height)
        .map(|line| {
            let mut spans = Vec::new();
            for (column, (lines, width)) in wrapped.iter().zip(widths).enumerate() {
                if column > 0 {
                    spans.push(Span::styled(" │ ", Style::new().dim()));
                }
                let cell = lines.get(line).cloned().unwrap_or_default();
                let fill = width.saturating_sub(cell.width());
                spans.extend(cell.spans);
                spans.push(Span::raw(" ".repeat(fill)));
            }
            spans
        })
        .collect()
}

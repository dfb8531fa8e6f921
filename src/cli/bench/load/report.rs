//! The report of all rounds: medians, and the comparison of two servers.

use serde::Serialize;

use super::workload::{Measured, Phase};
use crate::cli::bench::measure::median;
use crate::cli::output::{self, Align, grouped};

/// The figures that are shown for each phase.
const FIGURES: &[Figure] = &[
    Figure::time(Phase::First, "time to first token", |of| {
        Some(of.first_median)
    }),
    Figure::time(Phase::Cold, "time to first token, median", |of| {
        Some(of.first_median)
    }),
    Figure::rate(Phase::Cold),
    Figure::time(Phase::Alone, "time to first token, median", |of| {
        Some(of.first_median)
    }),
    Figure::time(Phase::Alone, "time per token, median", |of| of.per_token),
    Figure::rate(Phase::Warm),
    Figure::time(Phase::Warm, "time to first token, median", |of| {
        Some(of.first_median)
    }),
    Figure::time(Phase::Warm, "time to first token, worst", |of| {
        Some(of.first_worst)
    }),
    Figure::time(Phase::Warm, "gap between events, median", |of| {
        of.gap_median
    }),
    Figure::time(Phase::Warm, "gap between events, 99th percentile", |of| {
        of.gap_99th
    }),
    Figure::time(Phase::Warm, "gap between events, worst", |of| of.gap_worst),
];

/// One number of a phase.
struct Figure {
    phase: Phase,
    name: &'static str,
    unit: &'static str,
    better: Better,
    of: fn(&Measured) -> Option<f64>,
}

/// Which direction is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Better {
    Lower,
    Higher,
}

impl Figure {
    const fn time(phase: Phase, name: &'static str, of: fn(&Measured) -> Option<f64>) -> Figure {
        let (unit, better) = ("ms", Better::Lower);
        Figure {
            phase,
            name,
            unit,
            better,
            of,
        }
    }

    const fn rate(phase: Phase) -> Figure {
        Figure {
            phase,
            name: "tokens in all",
            unit: "tokens/s",
            better: Better::Higher,
            of: |of| Some(of.tokens_per_second),
        }
    }
}

/// One server with all its measurements.
#[derive(Serialize)]
pub(super) struct Rounds {
    pub(super) url: String,
    pub(super) model: String,
    /// Tokens of the shared prompt, if the server reports them.
    pub(super) shared_tokens: Option<usize>,
    pub(super) rounds: Vec<Vec<Measured>>,
}

/// All measurements, and their summary.
#[derive(Serialize)]
pub(super) struct Report {
    max_tokens: usize,
    /// The meaning of the ratios.
    ratio: Option<&'static str>,
    figures: Vec<Row>,
    /// One server, or two that are compared.
    servers: Vec<Rounds>,
}

/// A figure of all servers, over all rounds.
#[derive(Serialize)]
struct Row {
    phase: Phase,
    clients: usize,
    figure: &'static str,
    unit: &'static str,
    better: Better,
    servers: Vec<Spread>,
    /// Above 1 if the first server is better.
    ratio: Option<Spread>,
}

/// A number over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// `values` must not be empty.
    fn of(values: &[f64]) -> Spread {
        Spread {
            median: median(values.to_vec()),
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// Returns by what factor the first number is better.
fn ratio(better: Better, first: f64, second: f64) -> f64 {
    match better {
        Better::Lower => second / first,
        Better::Higher => first / second,
    }
}

impl Report {
    /// All servers must have run the same workload, for at least one round.
    pub(super) fn new(servers: Vec<Rounds>, max_tokens: usize) -> Report {
        let phases = &servers[0].rounds[0];
        let mut figures = Vec::new();
        for (at, phase) in phases.iter().enumerate() {
            for figure in FIGURES.iter().filter(|figure| figure.phase == phase.phase) {
                let values: Option<Vec<Vec<f64>>> = servers
                    .iter()
                    .map(|server| server.rounds.iter().map(|round| (figure.of)(&round[at])))
                    .map(Iterator::collect)
                    .collect();
                // Answers of a single token have no gaps.
                let Some(values) = values else { continue };
                figures.push(Row::new(figure, phase.clients, &values));
            }
        }
        let ratio = "above 1 the first server is better, whatever the figure";
        Report {
            max_tokens,
            ratio: (servers.len() == 2).then_some(ratio),
            figures,
            servers,
        }
    }

    pub(super) fn table(&self) -> String {
        let mut text = self.head();
        let compared = self.servers.len() == 2;
        let mut columns = vec!["work", "clients", "figure", "unit"];
        if compared {
            columns.extend(["A", "B", "ratio", "of the rounds"])
        } else {
            columns.extend(["median", "of the rounds"])
        }
        let mut rows = vec![columns.into_iter().map(str::to_owned).collect()];
        for row in &self.figures {
            let mut cells = vec![
                row.phase.name().to_owned(),
                row.clients.to_string(),
                row.figure.to_owned(),
                row.unit.to_owned(),
            ];
            let values = row.servers.iter();
            cells.extend(values.map(|value| format!("{:.1}", value.median)));
            cells.extend(match (&row.ratio, compared) {
                (Some(Spread { median, min, max }), _) => {
                    vec![format!("{median:.2}x"), format!("{min:.2}–{max:.2}")]
                }
                (None, true) => vec![String::new(); 2],
                (None, false) => {
                    let Spread { min, max, .. } = row.servers[0];
                    vec![format!("{min:.1}–{max:.1}")]
                }
            });
            rows.push(cells);
        }
        use Align::{Left, Right};
        let mut aligns = vec![Left, Right, Left, Left];
        aligns.resize(rows[0].len(), Right);
        text += &output::table(&aligns, &rows);
        text.push('\n');
        text
    }

    fn head(&self) -> String {
        let mut text = String::new();
        let compared = self.servers.len() == 2;
        for (name, server) in ["A: ", "B: "].into_iter().zip(&self.servers) {
            let name = if compared { name } else { "" };
            text += &format!("{name}{} ({})\n", server.url, server.model);
            text += "  shared prompt of ";
            text += &match server.shared_tokens {
                Some(tokens) => format!("{} tokens; ", grouped(tokens as u64)),
                None => "a length that the server does not tell; ".to_owned(),
            };
            let measured = server.rounds.iter().flatten();
            let (got, asked) = measured.clone().fold((0, 0), |(got, asked), phase| {
                (got + phase.answer_tokens, asked + phase.asked_tokens)
            });
            text += &format!("answers of {} tokens", grouped(self.max_tokens as u64));
            if got != asked {
                let [got, asked] = [got, asked].map(|tokens| grouped(tokens as u64));
                text += &format!(", but {got} in all instead of {asked}");
            }
            if !measured.clone().all(|phase| phase.counted_by_server) {
                text += ", taken to be one for each event";
            }
            text.push('\n');
        }
        let rounds = self.servers[0].rounds.len();
        text += &match (compared, rounds) {
            (false, 1) => "  one round\n\n".to_owned(),
            (false, _) => format!("  medians of {rounds} rounds\n\n"),
            (true, 1) => "  one round; a ratio above 1 means that A is better\n\n".to_owned(),
            (true, _) => format!(
                "  medians of {rounds} rounds; a ratio above 1 means that A is better, and is the median of the rounds' ratios\n\n"
            ),
        };
        text
    }
}

impl Row {
    /// `values` are those of each server's rounds.
    fn new(figure: &Figure, clients: usize, values: &[Vec<f64>]) -> Row {
        let ratios: Option<Vec<f64>> = match values {
            [first, second] => first
                .iter()
                .zip(second)
                .map(|(&first, &second)| ratio(figure.better, first, second))
                // Events that arrive at the same time have no gap to divide by.
                .map(|ratio| ratio.is_finite().then_some(ratio))
                .collect(),
            _ => None,
        };
        Row {
            phase: figure.phase,
            clients,
            figure: figure.name,
            unit: figure.unit,
            better: figure.better,
            servers: values.iter().map(|values| Spread::of(values)).collect(),
            ratio: ratios.map(|ratios| Spread::of(&ratios)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(better: Better) -> &'static Figure {
        let mut figures = FIGURES.iter();
        figures
            .find(|figure| figure.better == better)
            .expect("there are both")
    }

    #[test]
    fn a_ratio_above_one_always_favours_the_first() {
        // Less time, and more tokens.
        assert_eq!(ratio(Better::Lower, 10.0, 20.0), 2.0);
        assert_eq!(ratio(Better::Higher, 20.0, 10.0), 2.0);
        for figure in FIGURES {
            let is_rate = figure.unit == "tokens/s";
            assert_eq!(figure.better == Better::Higher, is_rate, "{}", figure.name);
        }
    }

    #[test]
    fn a_ratio_is_taken_in_each_round() {
        // The machine is four times slower in the second round, for both.
        let values = [vec![10.0, 40.0, 10.0], vec![20.0, 80.0, 30.0]];
        let row = Row::new(figure(Better::Lower), 1, &values);
        let expected = Spread {
            median: 2.0,
            min: 2.0,
            max: 3.0,
        };
        assert_eq!(row.ratio, Some(expected));
        assert_eq!(row.servers[1].median, 30.0);
        let row = Row::new(figure(Better::Higher), 1, &values);
        assert_eq!(row.ratio.map(|ratio| ratio.median), Some(0.5));
    }

    #[test]
    fn there_is_no_ratio_to_one_server_or_to_nothing() {
        let row = Row::new(figure(Better::Lower), 1, &[vec![1.0, 3.0]]);
        assert_eq!((row.servers[0].median, row.ratio), (2.0, None));
        let row = Row::new(figure(Better::Lower), 1, &[vec![0.0], vec![0.0]]);
        assert_eq!(row.ratio, None);
    }
}

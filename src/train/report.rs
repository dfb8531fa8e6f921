//! A page that shows how a run went: one file that loads no other and runs nothing.

use std::fmt::Write;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::metrics::{Evaluation, Record, Step};

const STYLE: &str = include_str!("report.css");

/// A chart's size and the places of its axes, in its own units.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 472.0;
const TOP: f64 = 22.0;
const BOTTOM: f64 = 196.0;

/// The most points of a line: more than that cannot be told apart.
const MOST_POINTS: usize = 600;

/// The page of a run: what it was, by name, and all that was written down.
pub fn page(facts: &[(String, String)], records: &[Record]) -> String {
    let steps: Vec<&Step> = records.iter().filter_map(step).collect();
    let evaluations: Vec<&Evaluation> = records.iter().filter_map(evaluation).collect();
    let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
    );
    let charts: String = charts(&steps, &evaluations)
        .iter()
        .map(Chart::draw)
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n{facts}\
         {evaluations}<div class=\"charts\">\n{charts}</div>\n</html>\n",
        title = title(&steps),
        facts = facts_table(facts),
        evaluations = evaluations_table(&evaluations),
    )
}

fn step(record: &Record) -> Option<&Step> {
    match record {
        Record::Step(step) => Some(step),
        Record::Evaluation(_) => None,
    }
}

fn evaluation(record: &Record) -> Option<&Evaluation> {
    match record {
        Record::Evaluation(evaluation) => Some(evaluation),
        Record::Step(_) => None,
    }
}

fn title(steps: &[&Step]) -> String {
    match steps.last() {
        Some(last) => format!(
            "Training: {} steps, {} tokens, {}",
            last.step,
            steps.iter().map(|step| step.tokens).sum::<usize>(),
            duration(last.seconds)
        ),
        None => "Training: no steps yet".to_owned(),
    }
}

fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).floor();
    match minutes as u64 {
        0 => format!("{seconds:.1} s"),
        1..60 => format!("{minutes} min {:.0} s", (seconds % 60.0).floor()),
        _ => format!("{} h {} min", (minutes / 60.0).floor(), minutes % 60.0),
    }
}

fn facts_table(facts: &[(String, String)]) -> String {
    let rows = facts.iter().map(|(name, value)| {
        format!(
            "<tr><th>{}</th><td>{}</td></tr>\n",
            escape(name),
            escape(value)
        )
    });
    format!("<table>\n{}</table>\n", rows.collect::<String>())
}

fn evaluations_table(evaluations: &[&Evaluation]) -> String {
    if evaluations.is_empty() {
        return String::new();
    }
    let has_preferences = evaluations.iter().any(|found| found.preference.is_some());
    let mut table =
        "<table class=\"numbers\">\n<tr><th>steps</th><th>held-out loss</th>".to_owned();
    if has_preferences {
        table.push_str("<th>chosen ahead</th><th>95% interval</th><th>mean margin</th>");
    }
    table.push_str("</tr>\n");
    for found in evaluations {
        _ = write!(
            table,
            "<tr><td>{}</td><td>{:.4}</td>",
            found.step, found.loss
        );
        if let Some(preference) = found.preference {
            let [low, high] = preference.interval.map(|share| share * 100.0);
            _ = write!(
                table,
                "<td>{:.1}% of {}</td><td>{low:.1}–{high:.1}%</td><td>{:.4}</td>",
                preference.accuracy * 100.0,
                preference.pairs,
                preference.mean_margin
            );
        }
        table.push_str("</tr>\n");
    }
    table + "</table>\n"
}

/// What curves there are.
fn charts(steps: &[&Step], evaluations: &[&Evaluation]) -> Vec<Chart> {
    let of_steps = |title: &'static str, value: fn(&Step) -> f64| Chart {
        title,
        lines: vec![Line::new(
            "",
            steps.iter().map(|step| (step.step, value(step))),
        )],
        ..Chart::default()
    };
    let mut loss = of_steps("Loss", |step| step.loss);
    loss.lines[0].name = "training";
    let held_out = evaluations.iter().map(|found| (found.step, found.loss));
    loss.lines.push(Line::new("held out", held_out));
    let mut charts = vec![loss];

    let preferences = evaluations
        .iter()
        .filter_map(|found| Some((found.step, found.preference?)));
    let preferences: Vec<_> = preferences.collect();
    if !preferences.is_empty() {
        let accuracy = preferences
            .iter()
            .map(|(step, found)| (*step, found.accuracy));
        let margins = preferences
            .iter()
            .map(|(step, found)| (*step, found.mean_margin));
        charts.push(Chart {
            title: "Pairs whose chosen answer is ahead (with 95% interval)",
            lines: vec![Line::default(), Line::new("", accuracy)],
            band: preferences
                .iter()
                .map(|(step, found)| (*step as f64, found.interval))
                .collect(),
        });
        charts.push(Chart {
            title: "Mean margin",
            lines: vec![Line::default(), Line::new("", margins)],
            ..Chart::default()
        });
    }
    charts.extend([
        of_steps("Length of the gradient", |step| step.grad_norm),
        of_steps("Learning rate", |step| step.learning_rate),
        of_steps("Tokens per second", |step| step.tokens_per_second),
    ]);
    charts
}

/// A line of a chart.
#[derive(Default)]
struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    fn new(name: &'static str, points: impl Iterator<Item = (usize, f64)>) -> Line {
        let points: Vec<_> = points.map(|(step, value)| (step as f64, value)).collect();
        // Where there are too many, each stands for its neighbours.
        let together = points.len().div_ceil(MOST_POINTS).max(1);
        let means = points.chunks(together).map(|some| {
            let mean = |part: fn(&(f64, f64)) -> f64| {
                some.iter().map(part).sum::<f64>() / some.len() as f64
            };
            (mean(|point| point.0), mean(|point| point.1))
        });
        Line {
            name,
            points: means.collect(),
        }
    }
}

/// Curves over the steps. The first line has the first colour, the second the second.
#[derive(Default)]
struct Chart {
    title: &'static str,
    lines: Vec<Line>,
    /// What lies around the second line.
    band: Vec<(f64, [f64; 2])>,
}

impl Chart {
    fn draw(&self) -> String {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let bounds = self.band.iter().flat_map(|(_, bounds)| *bounds);
        let values = points().map(|&(_, value)| value).chain(bounds);
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let last = points().map(|&(step, _)| step).fold(1.0, f64::max);
        let ticks = ticks(&values);
        let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
        let x = |step: f64| LEFT + (RIGHT - LEFT) * step / last;
        let y = |value: f64| BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low);

        let mut svg = String::new();
        for &tick in &ticks {
            let at = y(tick);
            _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                label(tick)
            );
        }
        for (step, anchor) in [(0.0, "start"), (last, "end")] {
            let (at, below) = (x(step), BOTTOM + 16.0);
            _ = write!(
                svg,
                "<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"{anchor}\">{step}</text>"
            );
        }
        if !self.band.is_empty() {
            let upper = self.band.iter().map(|&(step, [_, high])| (step, high));
            let lower = self.band.iter().rev().map(|&(step, [low, _])| (step, low));
            let outline = path(upper.chain(lower), x, y);
            _ = write!(svg, "<polygon class=\"band\" points=\"{outline}\"/>");
        }
        for (line, colour) in self.lines.iter().zip(["first", "second"]) {
            _ = write!(svg, "<g class=\"{colour}\">");
            let outline = path(line.points.iter().copied(), x, y);
            _ = write!(svg, "<polyline class=\"line\" points=\"{outline}\"/>");
            // Few points are shown one by one, and say what they are.
            if line.points.len() <= 40 {
                for &(step, value) in &line.points {
                    _ = write!(
                        svg,
                        "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\">\
                         <title>step {step}: {}</title></circle>",
                        x(step),
                        y(value),
                        label(value)
                    );
                }
            }
            if !line.points.is_empty() && !line.name.is_empty() {
                let at = if colour == "first" { LEFT } else { LEFT + 80.0 };
                let name = line.name;
                _ = write!(svg, "<text class=\"key\" x=\"{at}\" y=\"12\">{name}</text>");
            }
            svg.push_str("</g>");
        }
        format!(
            "<figure><h2>{0}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{0}\">{svg}</svg></figure>\n",
            self.title
        )
    }
}

fn path(
    points: impl Iterator<Item = (f64, f64)>,
    x: impl Fn(f64) -> f64,
    y: impl Fn(f64) -> f64,
) -> String {
    let points = points.map(|(step, value)| format!("{:.1},{:.1}", x(step), y(value)));
    points.collect::<Vec<_>>().join(" ")
}

/// Round numbers, three to seven of them, between which all values lie.
fn ticks(values: &[f64]) -> Vec<f64> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = match low < high {
        true => (low, high),
        // One value, or none: it lies in the middle.
        false => {
            let value = if low.is_finite() { low } else { 0.0 };
            let around = if value == 0.0 { 1.0 } else { value.abs() / 2.0 };
            (value - around, value + around)
        }
    };
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let nice = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let apart = nice.into_iter().find(|&apart| apart >= rough);
    let apart = apart.unwrap_or(10.0 * power);
    let first = (low / apart).floor() as i64;
    let last = (high / apart).ceil() as i64;
    (first..=last.max(first + 1))
        .map(|at| at as f64 * apart)
        .collect()
}

/// A number in few characters.
fn label(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = match value.abs() {
        1e-3..1e5 => format!("{value:.4}"),
        _ => return format!("{value:.2e}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text that is no markup.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::metrics::Preference;

    fn records() -> Vec<Record> {
        let steps = (1..=2000).map(|step| {
            Record::Step(Step {
                step,
                loss: 3.0 / step as f64,
                learning_rate: 1e-5,
                grad_norm: 0.5,
                tokens: 100,
                tokens_per_second: 512.0,
                seconds: step as f64 * 2.0,
            })
        });
        let evaluations = [0, 1000, 2000].map(|step| {
            Record::Evaluation(Evaluation {
                step,
                loss: 1.25,
                preference: Some(Preference {
                    pairs: 400,
                    accuracy: 0.625,
                    interval: [0.577, 0.671],
                    mean_margin: 0.031,
                }),
            })
        });
        steps.chain(evaluations).collect()
    }

    #[test]
    fn the_page_shows_what_was_written_down_and_loads_nothing() {
        let facts = [("model".to_owned(), "<script>alert(1)</script>".to_owned())];
        let page = page(&facts, &records());
        assert!(page.contains("Training: 2000 steps, 200000 tokens, 1 h 6 min"));
        assert!(page.contains("<td>62.5% of 400</td><td>57.7–67.1%</td><td>0.0310</td>"));
        for title in ["Loss", "Mean margin", "Learning rate", "Tokens per second"] {
            assert!(page.contains(&format!("<h2>{title}</h2>")), "{title}");
        }
        assert!(page.contains("&lt;script&gt;"));
        for forbidden in [
            "<script", "http:", "https:", "url(", "style=\"", "src=", "NaN",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        // Of 2,000 steps no line has more than 600 points.
        assert!(page.len() < 100_000, "{}", page.len());
    }

    #[test]
    fn a_run_without_a_step_has_a_page_too() {
        let page = page(&[], &[]);
        assert!(
            page.contains("no steps yet") && !page.contains("NaN"),
            "{page}"
        );
    }

    #[test]
    fn axes_have_round_numbers_around_all_values() {
        assert_eq!(ticks(&[0.3, 3.9]), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(ticks(&[-12.0, 31.0]), [-20.0, 0.0, 20.0, 40.0]);
        assert_eq!(ticks(&[]), [-1.0, -0.5, 0.0, 0.5, 1.0]);
        for values in [&[5.0][..], &[1e-9, 2e-9], &[-3e8, 1e-3], &[0.0, 0.0]] {
            let found = ticks(values);
            assert!((3..=7).contains(&found.len()), "{found:?}");
            for value in values {
                assert!(found[0] <= *value && *value <= found[found.len() - 1]);
            }
        }
    }

    #[test]
    fn labels_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (1234.0, "1234"),
            (2e-5, "2.00e-5"),
            (-0.25, "-0.25"),
        ] {
            assert_eq!(label(value), text);
        }
    }
}

//! Curves over the steps of a run, as SVG.

use std::fmt::Write;

/// The chart's size and the places of its axes, in SVG user units.
const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 468.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 204.0;

/// Maximum points per line; more could not be told apart.
const MAX_POINTS: usize = 600;

/// A line of a chart.
#[derive(Default)]
pub(super) struct Line {
    /// Its name in the legend, if the chart has several lines.
    pub(super) name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Line {
    pub(super) fn new(name: &'static str, points: impl Iterator<Item = (usize, f64)>) -> Line {
        let points: Vec<_> = points.map(|(step, value)| (step as f64, value)).collect();
        // If there are too many points, each one drawn is the mean of several neighbours.
        let together = points.len().div_ceil(MAX_POINTS).max(1);
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

/// Curves over the steps. The style sheet has colours for two lines.
#[derive(Default)]
pub(super) struct Chart {
    pub(super) title: &'static str,
    /// The unit of the values.
    pub(super) unit: &'static str,
    pub(super) lines: Vec<Line>,
    /// A confidence band around the second line: a step, and the lower and upper bound.
    pub(super) band: Vec<(f64, [f64; 2])>,
}

impl Chart {
    /// The chart as an HTML figure.
    pub(super) fn draw(&self) -> String {
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
                LEFT - 8.0,
                at + 4.0,
                label(tick)
            );
        }
        for step in steps(last) {
            let (at, below) = (x(step), BOTTOM + 5.0);
            _ = write!(
                svg,
                "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{BOTTOM}\" y2=\"{below}\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
                BOTTOM + 18.0
            );
        }
        let (middle, unit) = ((LEFT + RIGHT) / 2.0, self.unit);
        _ = write!(
            svg,
            "<path class=\"axis\" d=\"M{LEFT},{TOP}V{BOTTOM}H{RIGHT}\"/>\
             <text class=\"name\" x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">steps</text>\
             <text class=\"name\" x=\"0\" y=\"12\">{unit}</text>",
            BOTTOM + 36.0
        );
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
            // If there are few points, each gets a dot with its value as a tooltip.
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
                let at = if colour == "first" { 90.0 } else { 0.0 };
                let (at, name) = (RIGHT - at, line.name);
                _ = write!(
                    svg,
                    "<text class=\"key\" x=\"{at}\" y=\"12\" text-anchor=\"end\">{name}</text>"
                );
            }
            svg.push_str("</g>");
        }
        format!(
            "<figure><h2>{0}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{0}, in {unit}, over the steps\">{svg}</svg></figure>\n",
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

/// Three to seven round numbers that span all values.
fn ticks(values: &[f64]) -> Vec<f64> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let (low, high) = if low < high {
        (low, high)
    } else {
        // A single value, or none: it is put in the middle.
        let value = if low.is_finite() { low } else { 0.0 };
        let around = if value == 0.0 { 1.0 } else { value.abs() / 2.0 };
        (value - around, value + around)
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

/// Round whole numbers from 0 to the last step: three to six of them, or fewer if there are
/// fewer steps.
fn steps(last: f64) -> Vec<f64> {
    let ticks = ticks(&[0.0, last]).into_iter();
    ticks
        .filter(|tick| *tick <= last && tick.fract() == 0.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_whole_and_begin_with_none() {
        assert_eq!(steps(1.0), [0.0, 1.0]);
        assert_eq!(steps(3.0), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(steps(13.0), [0.0, 5.0, 10.0]);
        for last in [1.0, 2.0, 7.0, 64.0, 999.0, 12_345.0] {
            let found = steps(last);
            assert!((2..=7).contains(&found.len()), "{last}: {found:?}");
            assert!(found[0] == 0.0 && found.iter().all(|step| step.fract() == 0.0));
        }
    }

    #[test]
    fn both_axes_have_names_ticks_and_units() {
        let chart = Chart {
            title: "Loss",
            unit: "nats per token",
            lines: vec![Line::new("training", [(1, 3.9), (13, 0.3)].into_iter())],
            band: Vec::new(),
        };
        let figure = chart.draw();
        for label in [
            ">0<",
            ">1<",
            ">4<",
            ">5<",
            ">10<",
            ">steps<",
            ">nats per token<",
        ] {
            assert!(figure.contains(label), "{label}: {figure}");
        }
        assert!(figure.contains("aria-label=\"Loss, in nats per token, over the steps\""));
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

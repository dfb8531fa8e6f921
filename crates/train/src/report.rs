//! Reports on a run, for people (`report.html`, one file without scripts and external
//! resources) and for programs (`report.json`).

mod chart;
mod run_facts;

use std::collections::BTreeMap;
use std::fmt::Write;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use self::chart::{Chart, Line};
pub use self::run_facts::{DataFile, Part, RunFacts, SampleAnswer};
use super::metrics::{Evaluation, Record, Step};
use super::settings::format_value;
use super::{RunFolder, TrainError};

const STYLE: &str = include_str!("report.css");

const PAGE: &str = "report.html";
const JSON: &str = "report.json";

/// A report on a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Facts beyond its settings.
    pub facts: RunFacts,
    /// Everything that the final weights depend on, by name.
    pub settings: BTreeMap<String, Value>,
    /// The unit of the loss.
    pub unit: &'static str,
    /// Steps made.
    pub step: usize,
    /// Total steps.
    pub steps: usize,
    /// All records of the log.
    pub records: Vec<Record>,
    /// Warnings that the run may have learnt nothing, as sentences.
    pub notes: Vec<String>,
}

impl Report {
    /// Writes the page and the JSON into a run's folder.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, folder: &RunFolder) -> Result<(), TrainError> {
        folder.write(PAGE, self.page().as_bytes())?;
        folder.write(JSON, format!("{:#}\n", self.json()).as_bytes())
    }

    /// The report for programs.
    pub fn json(&self) -> Value {
        let evaluations: Vec<&Evaluation> = self.records.iter().filter_map(evaluation).collect();
        let last = self.records.iter().filter_map(step).next_back();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "command": self.facts.command,
            "files": self.facts.files,
            "settings": self.settings,
            "steps": {"made": self.step, "all": self.steps},
            "seconds": last.map_or(0.0, |last| last.seconds),
            "training_loss": last.map(|last| last.loss),
            "loss_unit": self.unit,
            "evaluations": evaluations,
            "notes": self.notes,
            "answers": self.facts.answers,
        })
    }

    /// The report for people.
    pub fn page(&self) -> String {
        let steps: Vec<&Step> = self.records.iter().filter_map(step).collect();
        let evaluations: Vec<&Evaluation> = self.records.iter().filter_map(evaluation).collect();
        let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
        );
        let charts = charts(self.unit, &steps, &evaluations);
        let charts: String = charts.iter().map(Chart::draw).collect();
        let notes = self.notes.iter();
        let notes = notes.map(|note| format!("<p class=\"note\">{}</p>\n", escape(note)));
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n{notes}{command}\
             {evaluations}<div class=\"charts\">\n{charts}</div>\n{answers}{files}{settings}\
             </html>\n",
            title = self.title(&steps),
            notes = notes.collect::<String>(),
            command = command(&self.facts.command),
            evaluations = evaluations_table(&evaluations),
            answers = answers_table(&self.facts.answers),
            files = files_table(&self.facts.files),
            settings = settings_table(&self.settings),
        )
    }

    fn title(&self, steps: &[&Step]) -> String {
        match steps.last() {
            Some(last) => format!(
                "Training: {} of {} steps, {} tokens, {}",
                self.step,
                self.steps,
                steps.iter().map(|step| step.tokens).sum::<usize>(),
                duration(last.seconds)
            ),
            None => "Training: no steps yet".to_owned(),
        }
    }
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

fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).floor();
    match minutes as u64 {
        0 => format!("{seconds:.1} s"),
        1..60 => format!("{minutes} min {:.0} s", (seconds % 60.0).floor()),
        _ => format!("{} h {} min", (minutes / 60.0).floor(), minutes % 60.0),
    }
}

fn command(command: &str) -> String {
    match command {
        "" => String::new(),
        command => format!("<pre>{}</pre>\n", escape(command)),
    }
}

/// A table under a heading; empty if there are no rows.
fn table(heading: &str, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let row = |cells: Vec<String>| {
        let cells = cells
            .iter()
            .map(|cell| format!("<td>{}</td>", escape(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let rows: String = rows.map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let columns = columns.iter().map(|column| format!("<th>{column}</th>"));
    let columns: String = columns.collect();
    format!("<h2>{heading}</h2>\n<table>\n<tr>{columns}</tr>\n{rows}</table>\n")
}

fn settings_table(settings: &BTreeMap<String, Value>) -> String {
    let rows = settings.iter();
    let rows = rows.map(|(name, value)| vec![name.clone(), format_value(Some(value))]);
    table("Settings", &["setting", "value"], rows)
}

fn files_table(files: &[DataFile]) -> String {
    let rows = files.iter().map(|file| {
        let part = match file.part {
            Part::Data => "--data",
            Part::EvalData => "--eval-data",
        };
        vec![
            file.path.display().to_string(),
            part.to_owned(),
            file.records.to_string(),
            file.sha256.clone(),
        ]
    });
    table("Files", &["file", "for", "records", "SHA-256"], rows)
}

fn answers_table(answers: &[SampleAnswer]) -> String {
    let rows = answers.iter().map(|answer| {
        let after = answer.after.clone();
        vec![
            answer.prompt.clone(),
            answer.before.clone(),
            after.unwrap_or_else(|| "(at the end of the run)".to_owned()),
        ]
    });
    let heading = "Answers to held-out prompts, the most likely token each time";
    let table = table(heading, &["prompt", "before", "after"], rows);
    table.replace("<table>", "<table class=\"answers\">")
}

fn evaluations_table(evaluations: &[&Evaluation]) -> String {
    if evaluations.is_empty() {
        return String::new();
    }
    let has_preferences = evaluations.iter().any(|found| found.preference.is_some());
    let mut table =
        "<table class=\"numbers\">\n<tr><th>steps</th><th>held-out loss</th>".to_owned();
    if has_preferences {
        table.push_str("<th>chosen ahead</th><th>even (count half)</th><th>95% interval</th><th>mean margin</th>");
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
                "<td>{:.1}% of {}</td><td>{}</td><td>{low:.1}–{high:.1}%</td><td>{:.4}</td>",
                preference.accuracy * 100.0,
                preference.pairs,
                preference.ties,
                preference.mean_margin
            );
        }
        table.push_str("</tr>\n");
    }
    table + "</table>\n"
}

/// The charts that the records allow.
fn charts(unit: &'static str, steps: &[&Step], evaluations: &[&Evaluation]) -> Vec<Chart> {
    let of_steps = |title: &'static str, unit: &'static str, value: fn(&Step) -> f64| Chart {
        title,
        unit,
        lines: vec![Line::new(
            "",
            steps.iter().map(|step| (step.step, value(step))),
        )],
        band: Vec::new(),
    };
    let mut loss = of_steps("Loss", unit, |step| step.loss);
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
            .map(|(step, found)| (*step, 100.0 * found.accuracy));
        let margins = preferences
            .iter()
            .map(|(step, found)| (*step, found.mean_margin));
        charts.push(Chart {
            title: "Pairs whose chosen answer is ahead (with 95% interval)",
            unit: "% of the pairs",
            lines: vec![Line::default(), Line::new("", accuracy)],
            band: preferences
                .iter()
                .map(|(step, found)| (*step as f64, found.interval.map(|share| 100.0 * share)))
                .collect(),
        });
        charts.push(Chart {
            title: "Mean margin",
            unit: "nats times beta",
            lines: vec![Line::default(), Line::new("", margins)],
            ..Chart::default()
        });
    }
    charts.extend([
        of_steps("Length of the gradient", "before clipping", |step| {
            step.grad_norm
        }),
        of_steps("Learning rate", "per step", |step| step.learning_rate),
        of_steps("Speed", "tokens per second", |step| step.tokens_per_second),
    ]);
    charts
}

/// Escapes text for HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Preference;

    fn report(records: Vec<Record>) -> Report {
        Report {
            facts: RunFacts {
                command: "incant train dpo --data 'my pairs.jsonl'".to_owned(),
                files: vec![DataFile {
                    path: "my pairs.jsonl".into(),
                    part: Part::Data,
                    records: 12,
                    sha256: "ab01".to_owned(),
                }],
                answers: vec![SampleAnswer {
                    prompt: "<script>alert(1)</script>".to_owned(),
                    before: "what it said".to_owned(),
                    after: None,
                }],
            },
            settings: [("model".to_owned(), json!("<script>"))].into(),
            unit: "nats per pair",
            step: 2000,
            steps: 3000,
            records,
            notes: vec!["Nothing was learnt.".to_owned()],
        }
    }

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
                    ties: 3,
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
        let page = report(records()).page();
        assert!(page.contains("Training: 2000 of 3000 steps, 200000 tokens, 1 h 6 min"));
        assert!(page.contains("<td>62.5% of 400</td><td>3</td><td>57.7–67.1%</td><td>0.0310</td>"));
        for said in [
            "<pre>incant train dpo --data &#39;my pairs.jsonl&#39;</pre>",
            "<tr><td>my pairs.jsonl</td><td>--data</td><td>12</td><td>ab01</td></tr>",
            "<td>what it said</td><td>(at the end of the run)</td>",
            "<p class=\"note\">Nothing was learnt.</p>",
        ] {
            assert!(page.contains(said), "{said}");
        }
        for title in ["Loss", "Mean margin", "Learning rate", "Speed"] {
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
        let page = Report {
            facts: RunFacts::default(),
            ..report(Vec::new())
        }
        .page();
        assert!(
            page.contains("no steps yet") && !page.contains("NaN"),
            "{page}"
        );
        assert!(!page.contains("<pre>") && !page.contains("<h2>Files</h2>"));
    }

    #[test]
    fn programs_read_the_same() {
        let mut report = report(records());
        report.facts.answers[0].after = Some("what it says".to_owned());
        let json = report.json();
        assert_eq!(json["command"], "incant train dpo --data 'my pairs.jsonl'");
        assert_eq!(
            json["files"][0],
            json!({"path": "my pairs.jsonl", "part": "data", "records": 12, "sha256": "ab01"})
        );
        assert_eq!(json["steps"], json!({"made": 2000, "all": 3000}));
        assert_eq!(json["evaluations"][2]["accuracy"], 0.625);
        assert_eq!(json["answers"][0]["after"], "what it says");
        assert_eq!(json["notes"], json!(["Nothing was learnt."]));
        assert_eq!(json["seconds"], 4000.0);
    }
}

//! How a run goes, on the terminal.

use std::time::{Duration, Instant};

use incant::printable::printable;
use incant::train::metrics::{Event, Observer, Record};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::tell;

/// Where there is no terminal for a bar, a line now and then.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// A bar on the standard error, if that is a terminal; what was found on held-out
/// examples is a line above it. If it is none, as in a log, there are lines only.
pub(super) struct Progress {
    bar: ProgressBar,
    /// When the bar was last written as a line.
    wrote: Instant,
}

impl Progress {
    pub(super) fn new() -> Progress {
        let template = "[{bar:30}]  {pos} of {len} {msg}  {eta} left";
        let style = ProgressStyle::with_template(template)
            .expect("the template is a constant that a test draws")
            .progress_chars("=> ");
        Progress {
            bar: ProgressBar::new(0).with_style(style),
            wrote: Instant::now(),
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// Where the bar stands, as a line, if no bar is seen and a while has passed.
    fn now_and_then(&mut self) {
        if self.bar.is_hidden() && self.wrote.elapsed() >= BETWEEN_LINES {
            self.wrote = Instant::now();
            let (done, all) = (self.bar.position(), self.bar.length().unwrap_or_default());
            tell(&format!("{done} of {all} {}", self.bar.message()));
        }
    }

    fn line(&self, line: &str) {
        match self.bar.is_hidden() {
            true => tell(line),
            false => self.bar.println(printable(line)),
        }
    }
}

impl Observer for Progress {
    fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Begins { done, steps } => {
                self.bar.set_length(*steps as u64);
                self.bar.set_position(*done as u64);
                self.bar.reset_eta();
                self.bar.set_message("steps");
            }
            Event::Referencing { done, total } => {
                self.bar.set_length(*total as u64);
                self.bar.set_position(*done as u64);
                self.bar.set_message("references");
            }
            Event::Evaluating { done, total } => {
                self.bar
                    .set_message(format!("steps  {done} of {total} held-out examples"));
            }
            Event::Wrote(Record::Step(step)) => {
                self.bar.set_position(step.step as u64);
                self.bar.set_message(format!(
                    "steps  loss {:.4}  {:.0} tokens/s",
                    step.loss, step.tokens_per_second
                ));
            }
            Event::Wrote(Record::Evaluation(evaluation)) => {
                let found = super::found(evaluation);
                self.line(&format!("step {}: held-out {found}", evaluation.step));
            }
            Event::Saved(path) => self.line(&format!("saved {}", path.display())),
        }
        self.now_and_then();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use incant::train::metrics::Step;

    #[test]
    fn the_bar_shows_where_a_run_stands() {
        let mut progress = Progress::new();
        progress.on(&Event::Referencing { done: 2, total: 9 });
        assert_eq!(
            (progress.bar.position(), progress.bar.length()),
            (2, Some(9))
        );
        progress.on(&Event::Begins { done: 3, steps: 50 });
        assert_eq!(
            (progress.bar.position(), progress.bar.length()),
            (3, Some(50))
        );
        progress.on(&Event::Wrote(&Record::Step(Step {
            step: 4,
            loss: 1.5,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            tokens: 100,
            tokens_per_second: 411.7,
            seconds: 2.0,
        })));
        assert_eq!(progress.bar.position(), 4);
        assert_eq!(progress.bar.message(), "steps  loss 1.5000  412 tokens/s");
    }
}

//! Shows the progress of a run on the terminal.

use incant::train::metrics::{Event, Observer, Record};

use super::progress_bar::ProgressLine;

/// The progress of the steps; evaluations on held-out examples are printed as lines.
pub(super) struct Progress {
    line: ProgressLine,
    /// The number of steps done when the run began, of steps done now, and of all steps.
    resumed_at: usize,
    done: usize,
    steps: usize,
    /// A summary of the last step.
    last: String,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress {
            line: ProgressLine::new(),
            resumed_at: 0,
            done: 0,
            steps: 0,
            last: String::new(),
        }
    }

    /// Removes the progress bar.
    pub(super) fn end(&self) {
        self.line.end();
    }

    fn show(&mut self, more: &str) {
        let Progress {
            resumed_at,
            done,
            steps,
            ..
        } = *self;
        let text = format!("{done} of {steps} steps{}{more}", self.last);
        let share = (done - resumed_at) as f64 / (steps - resumed_at).max(1) as f64;
        self.line.update(done, &text, share);
    }
}

impl Observer for Progress {
    fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::Begins { done, steps } => {
                (self.resumed_at, self.done, self.steps) = (*done, *done, *steps);
                self.line.begin(*done, *steps);
                self.show("");
            }
            Event::Referencing { done, total } => {
                if self.steps == 0 {
                    self.steps = *total;
                    self.line.begin(0, *total);
                }
                let text = format!("{done} of {total} references");
                let share = *done as f64 / *total as f64;
                self.line.update(*done, &text, share);
            }
            Event::Evaluating { done, total } => {
                self.show(&format!("  {done} of {total} held-out examples"));
            }
            Event::Wrote(Record::Step(step)) => {
                self.done = step.step;
                self.last = format!(
                    "  loss {:.4}  {:.0} tokens/s",
                    step.loss, step.tokens_per_second
                );
                self.show("");
            }
            Event::Wrote(Record::Evaluation(evaluation)) => {
                let found = super::summary::format_evaluation(evaluation);
                let line = format!("step {}: held-out {found}", evaluation.step);
                self.line.print(&line);
            }
            Event::Saved(path) => self.line.print(&format!("saved {}", path.display())),
            Event::Failed(error) => {
                let line = format!("warning: {error}; training continues");
                self.line.print(&line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use incant::train::metrics::Step;

    #[test]
    fn the_bar_shows_where_a_run_stands() {
        let mut progress = Progress::new();
        let stands = |progress: &Progress| {
            let bar = progress.line.bar();
            (bar.position(), bar.length(), bar.message())
        };
        progress.on(&Event::Referencing { done: 2, total: 9 });
        let (done, all, text) = stands(&progress);
        assert_eq!((done, all), (2, Some(9)));
        assert!(text.starts_with("2 of 9 references"), "{text}");
        progress.on(&Event::Begins { done: 3, steps: 50 });
        // Nothing is done yet to estimate the remaining time from.
        let expected = (3, Some(50), "3 of 50 steps".to_owned());
        assert_eq!(stands(&progress), expected);
        progress.on(&Event::Wrote(&Record::Step(Step {
            step: 4,
            loss: 1.5,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            tokens: 100,
            tokens_per_second: 411.7,
            seconds: 2.0,
        })));
        let (done, _, text) = stands(&progress);
        assert_eq!(done, 4);
        assert!(
            text.starts_with("4 of 50 steps  loss 1.5000  412 tokens/s  about "),
            "{text}"
        );
    }
}

//! Shows progress: a bar on a terminal, else a line now and then.

use std::time::{Duration, Instant};

use incant::printable::printable;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::eprint_safe;

/// The time between lines if there is no terminal for a bar.
const BETWEEN_LINES: Duration = Duration::from_secs(15);

/// A progress bar on the standard error, if that is a terminal. Otherwise, as in a log, there are
/// only lines.
pub(super) struct ProgressLine {
    bar: ProgressBar,
    /// Whether a terminal shows the bar.
    is_seen: bool,
    between: Duration,
    /// When the work began or was resumed.
    began: Instant,
    /// When the last line was written.
    wrote: Instant,
}

impl ProgressLine {
    pub(super) fn new() -> ProgressLine {
        let style = ProgressStyle::with_template("[{bar:30}]  {msg}")
            .expect("the template is a constant that a test draws")
            .progress_chars("=> ");
        let now = Instant::now();
        let bar = ProgressBar::new(0).with_style(style);
        ProgressLine {
            is_seen: !bar.is_hidden(),
            bar,
            between: BETWEEN_LINES,
            began: now,
            wrote: now,
        }
    }

    /// Begins new work, of which `done` steps are done already.
    pub(super) fn begin(&mut self, done: usize, all: usize) {
        self.began = Instant::now();
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
    }

    /// Updates the number of steps done, described by `text`; `share` is the share of the work
    /// since it began. Returns the line, if one was written.
    pub(super) fn update(&mut self, done: usize, text: &str, share: f64) -> Option<String> {
        let left = left(self.began.elapsed(), share);
        let left = left.map_or_else(String::new, |left| format!("  about {left} left"));
        let text = format!("{text}{left}");
        self.bar.set_position(done as u64);
        self.bar.set_message(text.clone());
        (!self.is_seen && self.wrote.elapsed() >= self.between).then(|| {
            self.wrote = Instant::now();
            eprint_safe(&text);
            text
        })
    }

    /// Writes a line, above the bar if there is one.
    pub(super) fn print(&self, line: &str) {
        if self.is_seen {
            self.bar.println(printable(line))
        } else {
            eprint_safe(line)
        }
    }

    /// Removes the progress bar.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    #[cfg(test)]
    pub(super) fn bar(&self) -> &ProgressBar {
        &self.bar
    }
}

/// Estimates the remaining time at the current speed. `None` before anything is done, and after
/// everything is.
fn left(elapsed: Duration, share: f64) -> Option<String> {
    let is_between = share > 0.0 && share < 1.0;
    is_between.then(|| {
        let seconds = elapsed.as_secs_f64() * (1.0 - share) / share;
        // Never 0: something remains.
        let seconds = seconds.ceil().max(1.0) as u64;
        match seconds {
            0..60 => format!("{seconds} s"),
            60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
            _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_only_where_it_can_be_known() {
        let left = |seconds, share| left(Duration::from_secs_f64(seconds), share);
        assert_eq!(left(90.0, 0.0), None);
        assert_eq!(left(90.0, 1.0), None);
        assert_eq!(left(30.0, 0.75).as_deref(), Some("10 s"));
        assert_eq!(left(0.01, 0.99).as_deref(), Some("1 s"));
        assert_eq!(left(100.0, 0.5).as_deref(), Some("1 min 40 s"));
        assert_eq!(left(60.0, 0.01).as_deref(), Some("1 h 39 min"));
    }

    #[test]
    fn lines_are_written_where_no_bar_is_seen() {
        let mut progress = ProgressLine::new();
        (progress.is_seen, progress.between) = (false, Duration::ZERO);
        progress.begin(2, 10);
        let line = progress.update(2, "2 of 10 answers", 0.0);
        assert_eq!(line.as_deref(), Some("2 of 10 answers"));
        let line = progress.update(6, "6 of 10 answers", 0.5).unwrap();
        assert!(line.starts_with("6 of 10 answers  about "), "{line}");
        assert_eq!(
            (progress.bar.position(), progress.bar.length()),
            (6, Some(10))
        );
        progress.between = Duration::MAX;
        assert_eq!(progress.update(7, "7 of 10 answers", 0.6), None);
    }
}

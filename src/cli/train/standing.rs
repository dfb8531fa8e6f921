//! Where some work stands: a bar where a terminal shows one, else a line now and then.

use std::time::{Duration, Instant};

use incant::printable::printable;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::output::tell;

/// Where there is no terminal for a bar, a line after so long.
const BETWEEN_LINES: Duration = Duration::from_secs(15);

/// A bar on the standard error, if that is a terminal. If it is none, as in a log, there are
/// lines only.
pub(super) struct Standing {
    bar: ProgressBar,
    /// Whether there is a terminal that shows the bar.
    is_seen: bool,
    between: Duration,
    /// When the work began, or went on.
    began: Instant,
    /// When it was last written as a line.
    wrote: Instant,
}

impl Standing {
    pub(super) fn new() -> Standing {
        let style = ProgressStyle::with_template("[{bar:30}]  {msg}")
            .expect("the template is a constant that a test draws")
            .progress_chars("=> ");
        let now = Instant::now();
        let bar = ProgressBar::new(0).with_style(style);
        Standing {
            is_seen: !bar.is_hidden(),
            bar,
            between: BETWEEN_LINES,
            began: now,
            wrote: now,
        }
    }

    /// New work begins, of which so much is done already.
    pub(super) fn begin(&mut self, done: usize, all: usize) {
        self.began = Instant::now();
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
    }

    /// So much is done, which `text` says in words; `share` of the work since it began is
    /// done. Returns the line, if one was written.
    pub(super) fn at(&mut self, done: usize, text: &str, share: f64) -> Option<String> {
        let left = left(self.began.elapsed(), share);
        let left = left.map_or_else(String::new, |left| format!("  about {left} left"));
        let text = format!("{text}{left}");
        self.bar.set_position(done as u64);
        self.bar.set_message(text.clone());
        (!self.is_seen && self.wrote.elapsed() >= self.between).then(|| {
            self.wrote = Instant::now();
            tell(&text);
            text
        })
    }

    /// A line of its own, above the bar if there is one.
    pub(super) fn line(&self, line: &str) {
        match self.is_seen {
            true => self.bar.println(printable(line)),
            false => tell(line),
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }

    #[cfg(test)]
    pub(super) fn bar(&self) -> &ProgressBar {
        &self.bar
    }
}

/// How long the rest takes if it goes on like that. `None` before anything is done, and when
/// all is.
fn left(elapsed: Duration, share: f64) -> Option<String> {
    let is_between = share > 0.0 && share < 1.0;
    is_between.then(|| {
        let seconds = elapsed.as_secs_f64() * (1.0 - share) / share;
        // Never none: something is left.
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
        let mut standing = Standing::new();
        (standing.is_seen, standing.between) = (false, Duration::ZERO);
        standing.begin(2, 10);
        let line = standing.at(2, "2 of 10 answers", 0.0);
        assert_eq!(line.as_deref(), Some("2 of 10 answers"));
        let line = standing.at(6, "6 of 10 answers", 0.5).unwrap();
        assert!(line.starts_with("6 of 10 answers  about "), "{line}");
        assert_eq!(
            (standing.bar.position(), standing.bar.length()),
            (6, Some(10))
        );
        standing.between = Duration::MAX;
        assert_eq!(standing.at(7, "7 of 10 answers", 0.6), None);
    }
}

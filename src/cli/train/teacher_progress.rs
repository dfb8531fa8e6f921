//! Shows the progress of a teacher's answers on the terminal.

use super::progress_bar::ProgressLine;
use crate::cli::output::grouped;

/// The progress of a teacher's answers.
pub(super) struct TeacherProgress {
    line: ProgressLine,
    /// The numbers of all answers, and of complete ones.
    all: usize,
    whole: usize,
    /// The number of tokens generated, and of those in complete answers.
    tokens: usize,
    in_whole: usize,
    /// The maximum number of tokens of an answer.
    most: usize,
}

impl TeacherProgress {
    pub(super) fn new(all: usize, most: usize) -> TeacherProgress {
        let mut line = ProgressLine::new();
        line.print(&format!(
            "{} prompts to answer, with {} tokens each at most",
            grouped(all as u64),
            grouped(most as u64)
        ));
        line.begin(0, all);
        TeacherProgress {
            line,
            all,
            whole: 0,
            tokens: 0,
            in_whole: 0,
            most,
        }
    }

    /// Counts a generated token.
    pub(super) fn token(&mut self) {
        self.tokens += 1;
        self.show();
    }

    /// Counts an answer of `tokens` tokens as complete; its tokens were counted before.
    pub(super) fn answer_done(&mut self, tokens: usize) {
        self.whole += 1;
        self.in_whole += tokens;
        self.show();
    }

    /// Estimates the share of all tokens that were generated, as if further answers were as long as
    /// the complete ones; before there are any, as long as allowed.
    fn share(&self) -> f64 {
        let each = match self.whole {
            0 => self.most as f64,
            whole => self.in_whole as f64 / whole as f64,
        };
        let all = self.in_whole as f64 + (self.all - self.whole) as f64 * each;
        if self.whole == self.all {
            1.0
        } else {
            // Running answers may become longer than expected.
            (self.tokens as f64 / all.max(1.0)).min(0.99)
        }
    }

    /// Removes the progress bar.
    pub(super) fn end(&self) {
        self.line.end();
    }

    fn show(&mut self) {
        let text = format!(
            "{} of {} answers  {} tokens",
            self.whole,
            self.all,
            grouped(self.tokens as u64)
        );
        let share = self.share();
        self.line.update(self.whole, &text, share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_the_answers_are_is_known_before_the_first_is_whole() {
        let mut progress = TeacherProgress::new(4, 100);
        assert_eq!(progress.share(), 0.0);
        (0..40).for_each(|_| progress.token());
        // A tenth of the maximum number of tokens.
        assert_eq!(progress.share(), 0.1);
        let text = progress.line.bar().message();
        assert!(
            text.starts_with("0 of 4 answers  40 tokens  about "),
            "{text}"
        );
        progress.answer_done(10);
        // By now four answers of ten tokens would be complete.
        assert_eq!(progress.share(), 0.99);
        (0..3).for_each(|_| progress.answer_done(10));
        assert_eq!(progress.share(), 1.0);
        let bar = progress.line.bar();
        assert_eq!((bar.position(), bar.length()), (4, Some(4)));
    }
}

//! Which part of a long text is on the screen.

use crate::keymap::Action;

/// How much there is, as the view last found it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Rows of the whole.
    pub rows: usize,
    /// Rows of the window.
    pub height: usize,
}

/// The first row that is shown, or the end, wherever that comes to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scroll {
    /// The end is shown, also while more is written.
    #[default]
    Follow,
    /// This row is the first.
    From(usize),
}

impl Scroll {
    /// The first row on the screen.
    pub fn top(self, extent: Extent) -> usize {
        let last = extent.rows.saturating_sub(extent.height);
        match self {
            Scroll::Follow => last,
            Scroll::From(row) => row.min(last),
        }
    }

    /// Moves by rows; whoever reaches the end follows it.
    pub fn by(&mut self, rows: isize, extent: Extent) {
        let last = extent.rows.saturating_sub(extent.height);
        let top = self.top(extent).saturating_add_signed(rows);
        *self = match top >= last {
            true => Scroll::Follow,
            false => Scroll::From(top),
        };
    }

    /// Does what a key asks for; `false` if that is not to scroll.
    pub fn act(&mut self, action: Action, extent: Extent) -> bool {
        match action {
            Action::Up => self.by(-1, extent),
            Action::Down => self.by(1, extent),
            Action::ScrollUp => self.page(-1, extent),
            Action::ScrollDown => self.page(1, extent),
            Action::ScrollTop => *self = Scroll::From(0),
            Action::ScrollBottom => *self = Scroll::Follow,
            _ => return false,
        }
        true
    }

    /// Moves by a window, less a row that stays in sight.
    pub fn page(&mut self, pages: isize, extent: Extent) {
        self.by(
            pages * extent.height.saturating_sub(1).max(1) as isize,
            extent,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_scrolled_to_stays_while_more_is_written() {
        let mut scroll = Scroll::Follow;
        scroll.page(
            -1,
            Extent {
                rows: 100,
                height: 11,
            },
        );
        assert_eq!(
            scroll.top(Extent {
                rows: 150,
                height: 11
            }),
            79
        );
    }

    #[test]
    fn scrolling_to_the_end_follows_it_again() {
        let extent = Extent {
            rows: 100,
            height: 10,
        };
        let mut scroll = Scroll::From(85);
        scroll.page(1, extent);
        assert_eq!(scroll, Scroll::Follow);
    }

    #[test]
    fn a_short_text_does_not_scroll() {
        let extent = Extent {
            rows: 3,
            height: 10,
        };
        let mut scroll = Scroll::Follow;
        scroll.page(-1, extent);
        assert_eq!(scroll.top(extent), 0);
    }
}

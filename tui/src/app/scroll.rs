//! The scroll position of a long text.

use crate::keymap::Action;

/// The size of a scrolled text, as last drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Rows of the whole text.
    pub rows: usize,
    /// Rows of the window.
    pub height: usize,
}

/// The first visible row, or the end, even if the text grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scroll {
    /// The end is visible, also while text is added.
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

    /// Scrolls by rows; reaching the end follows it.
    pub fn by(&mut self, rows: isize, extent: Extent) {
        let last = extent.rows.saturating_sub(extent.height);
        let top = self.top(extent).saturating_add_signed(rows);
        *self = if top >= last {
            Scroll::Follow
        } else {
            Scroll::From(top)
        };
    }

    /// Performs a key's action; returns `false` if it does not scroll.
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

    /// Scrolls by a window, less one row of overlap.
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

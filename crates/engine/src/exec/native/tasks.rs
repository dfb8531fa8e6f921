//! The division of a phase into tasks.

use std::ops::Range;

/// Divides `count` equal parts into tasks of decreasing size: the first ones are long ranges of
/// memory, the last ones so short that no thread waits long for another (guided
/// self-scheduling).
#[derive(Clone, Copy, Debug)]
pub(super) struct Tasks {
    count: usize,
    threads: usize,
}

impl Tasks {
    pub(super) fn new(count: usize, threads: usize) -> Tasks {
        Tasks { count, threads }
    }

    /// The number of tasks.
    pub(super) fn count(self) -> usize {
        self.ranges().count()
    }

    /// The parts of a task.
    pub(super) fn range(self, task: usize) -> Range<usize> {
        let mut ranges = self.ranges();
        ranges.nth(task).expect("the task exists")
    }

    fn ranges(self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let left = self.count - start;
            let end = start + left.div_ceil(2 * self.threads);
            let range = start..end;
            start = end;
            (left > 0).then_some(range)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Tasks;

    #[test]
    fn every_part_is_in_one_task() {
        for threads in [1, 2, 3, 64] {
            for count in [0, 1, 2, 7, 40, 16384] {
                let tasks = Tasks::new(count, threads);
                let mut parts = (0..tasks.count()).flat_map(|task| tasks.range(task));
                assert!(parts.by_ref().eq(0..count), "{count} for {threads}");
            }
        }
    }

    #[test]
    fn tasks_begin_long_and_end_short() {
        let tasks = Tasks::new(1000, 2);
        let sizes: Vec<usize> = (0..tasks.count())
            .map(|task| tasks.range(task).len())
            .collect();
        assert_eq!(sizes[0], 250);
        assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
        assert_eq!(sizes.last(), Some(&1));
        assert!(sizes.len() < 40, "{sizes:?}");
    }
}

//! Formats the tables, in Markdown.

use std::fmt::Write;

use crate::measures::{MEASURES, Results};
use crate::set::Class;

/// Formats a row for each arm, a column for each measure, and the gains over the baseline. Shares
/// are in percent, gains in points. The first row has the numbers of answers that count.
pub(crate) fn measures(results: &[Results], baseline: Option<&Results>) -> String {
    let mut table = Table::new(
        MEASURES
            .iter()
            .map(|it| it.title)
            .chain(["gain in task", "gain in all"]),
    );
    if let Some(first) = results.first() {
        let mut counts: Vec<String> = MEASURES
            .iter()
            .map(|it| first.share(it).n.to_string())
            .collect();
        counts.extend([String::new(), String::new()]);
        table.row("answers", counts);
    }
    for arm in results {
        let mut cells: Vec<String> = MEASURES
            .iter()
            .map(|measure| arm.share(measure).to_string())
            .collect();
        let other = baseline.filter(|it| it.arm != arm.arm);
        let gains = other.map(|it| arm.gains(it));
        let gains = gains.map_or([None, None], |it| [it.task, it.all]);
        cells.extend(gains.map(|gain| gain.map_or_else(|| "–".into(), |it| it.to_string())));
        table.row(&arm.arm, cells);
    }
    table.0
}

/// Formats a row for each arm and a column for each class: the share of answers that do the task,
/// or refuse a harmful one.
pub(crate) fn classes(results: &[Results]) -> String {
    let mut table = Table::new(Class::ALL.into_iter().map(|class| match class {
        Class::Harmful => "harmful, declined",
        class => class.name(),
    }));
    if let Some(first) = results.first() {
        let counts = Class::ALL.map(|class| first.of_class(class).n.to_string());
        table.row("answers", counts);
    }
    for arm in results {
        table.row(
            &arm.arm,
            Class::ALL.map(|class| arm.of_class(class).to_string()),
        );
    }
    table.0
}

/// A table whose first column names the arms.
struct Table(String);

impl Table {
    fn new<'a>(titles: impl IntoIterator<Item = &'a str>) -> Table {
        let titles: Vec<&str> = titles.into_iter().collect();
        let mut text = format!("| arm | {} |\n", titles.join(" | "));
        text.push_str(&"| --- ".repeat(titles.len() + 1));
        text.push_str("|\n");
        Table(text)
    }

    fn row(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        self.0.push_str(&format!("| {name} |"));
        for cell in cells {
            write!(self.0, " {cell} |").expect("a string takes everything");
        }
        self.0.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measures::tests::arms;

    #[test]
    fn arms_are_rows_beside_the_baseline() {
        let arms = arms();
        let table = measures(&arms, Some(&arms[1]));
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 5);
        assert!(lines[0].starts_with("| arm | refuses plain | refuses harmless |"));
        assert!(lines[0].ends_with("| task | all | gain in task | gain in all |"));
        assert!(
            lines[2].starts_with("| answers | 1 | 6 | 1 | 1 | 8 |"),
            "{table}"
        );
        assert!(
            lines[3].starts_with("| m@does | 0 (0-79) | 0 (0-39) |"),
            "{table}"
        );
        assert!(
            lines[3].contains("| +100 (+100 to +100) | +75 ("),
            "{table}"
        );
        assert!(lines[4].ends_with("| – | – |"), "{table}");
        let cells: Vec<usize> = lines.iter().map(|it| it.matches('|').count()).collect();
        assert!(cells.iter().all(|count| *count == cells[0]), "{table}");
    }

    #[test]
    fn each_class_is_a_column() {
        let table = classes(&arms());
        assert!(table.starts_with("| arm | plain | fact |"), "{table}");
        assert!(
            table.contains("sounds-harmful | harmful, declined |"),
            "{table}"
        );
        assert!(table.contains("| m@declines | 0 (0-79) |"), "{table}");
        assert!(table.lines().all(|it| it.matches('|').count() == 10));
    }
}

//! Suggestions for unknown names ("did you mean").

/// The maximum number of names in a message.
const MAX_LISTED: usize = 12;

/// Sorts the known names, those most like `name` first (Jaro-Winkler similarity).
pub fn nearest(name: &str, mut known: Vec<String>) -> Vec<String> {
    let nearness = |known: &String| strsim::jaro_winkler(known, name);
    known.sort_by(|a, b| nearness(b).total_cmp(&nearness(a)));
    known
}

/// Lists the first twelve of `names`, and the number of others.
pub fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(MAX_LISTED)].join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_names_are_listed_and_the_nearest_first() {
        let names = |range: std::ops::Range<usize>| range.map(|n| format!("m{n}")).collect();
        let known: Vec<String> = names(0..30);
        let sorted = nearest("m17", known);
        assert_eq!(sorted[0], "m17");
        assert_eq!(listed(&sorted[..2]), format!("m17, {}", sorted[1]));
        let all = listed(&sorted);
        assert!(
            all.starts_with("m17, ") && all.ends_with(" and 18 more"),
            "{all}"
        );
        assert_eq!(listed(&names(0..1)), "m0");
    }
}

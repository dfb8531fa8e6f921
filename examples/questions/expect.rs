//! The checks that tell whether an answer has done its task.

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Deserializer, de};

use crate::form::{has_code, is_list_item};
use crate::text::units;

/// The checks of a question; an absent one always passes.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expectation {
    /// At least one of these texts must be in the answer; case does not count.
    any: Vec<String>,
    /// All of these texts must be in it.
    all: Vec<String>,
    /// None of these texts may be in it.
    none: Vec<String>,
    /// A pattern that must match somewhere; case does not count, and `^` and `$` match at line
    /// ends.
    #[serde(deserialize_with = "pattern")]
    pattern: Option<Regex>,
    /// The minimum number of lines that are list items.
    list_items: usize,
    /// Whether the answer must contain code.
    code: bool,
    /// The minimum number of words, or Japanese characters.
    min_words: usize,
    /// The maximum number of words, or Japanese characters.
    max_words: Option<usize>,
    /// The minimum number of lines that are not empty.
    lines: usize,
    /// The language of the answer if it is not the question's.
    pub(crate) language: Option<String>,
}

fn pattern<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Regex>, D::Error> {
    let pattern = String::deserialize(deserializer)?;
    let regex = RegexBuilder::new(&pattern)
        .case_insensitive(true)
        .multi_line(true)
        .build();
    regex.map(Some).map_err(de::Error::custom)
}

impl Expectation {
    /// Returns whether the answer passes every check except that of its language, which is a
    /// measure of its own. An answer without a letter or digit fails.
    pub(crate) fn is_met(&self, answer: &str) -> bool {
        let lower = answer.to_lowercase();
        let holds = |text: &String| lower.contains(&text.to_lowercase());
        let words = units(answer).len();
        let lines = answer.lines().filter(|line| !line.trim().is_empty());
        let items = answer.lines().filter(|line| is_list_item(line));
        answer.contains(char::is_alphanumeric)
            && (self.any.is_empty() || self.any.iter().any(holds))
            && self.all.iter().all(holds)
            && !self.none.iter().any(holds)
            && self.pattern.as_ref().is_none_or(|it| it.is_match(answer))
            && items.count() >= self.list_items
            && (!self.code || has_code(answer))
            && words >= self.min_words
            && self.max_words.is_none_or(|most| words <= most)
            && lines.count() >= self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(answer: &str, toml: &str) -> bool {
        toml::from_str::<Expectation>(toml).unwrap().is_met(answer)
    }

    #[test]
    fn tasks_are_checked_piece_by_piece() {
        assert!(passes("1. a\n2) b\n- c\n・d", "list_items = 4"));
        assert!(passes("**1. a**", "list_items = 1"));
        assert!(!passes("1 a\n-b", "list_items = 1"));
        assert!(passes("```sh\nls\n```", "code = true"));
        assert!(!passes("`ls`", "code = true"));
        assert!(passes("one two three", "max_words = 3\nmin_words = 3"));
        assert!(!passes("one two three", "max_words = 2"));
        assert!(!passes("one two three", "min_words = 4"));
        assert!(!passes("一二三", "max_words = 2"));
        assert!(passes("一二、三", "min_words = 3\nmax_words = 3"));
        assert!(passes("SELECT name", "all = [\"select\", \"NAME\"]"));
        assert!(passes("a b", "any = [\"c\", \"B\"]"));
        assert!(!passes("a b", "none = [\"b\"]"));
        assert!(passes("a\n\nb", "lines = 2") && !passes("a\n\nb", "lines = 3"));
        assert!(passes("so\nOSLO.", "pattern = '^oslo\\W*$'"));
        assert!(!passes("not Oslo", "pattern = '^oslo'"));
        assert!(!passes("…", "none = [\"a\"]"));
    }

    #[test]
    fn a_pattern_that_does_not_compile_is_an_error() {
        let error = toml::from_str::<Expectation>("pattern = '('").unwrap_err();
        assert!(error.to_string().contains("unclosed group"), "{error}");
    }
}

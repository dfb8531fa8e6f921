//! Splits text into words and characters, the units of the measures.

/// Splits a text into words in lower case; each Japanese character is a unit of its
/// own. Spaces and punctuation separate units and are left out; an apostrophe inside
/// a word belongs to it.
pub(crate) fn units(text: &str) -> Vec<String> {
    let mut units: Vec<String> = Vec::new();
    let mut in_word = false;
    let lower = text.to_lowercase().replace('’', "'");
    let mut chars = lower.chars().peekable();
    while let Some(c) = chars.next() {
        if is_japanese(c) {
            units.push(c.to_string());
            in_word = false;
            continue;
        }
        let inside = in_word && c == '\'' && chars.peek().is_some_and(|next| is_letter(*next));
        if !inside && !is_letter(c) {
            in_word = false;
            continue;
        }
        match units.last_mut().filter(|_| in_word) {
            Some(word) => word.push(c),
            None => units.push(c.to_string()),
        }
        in_word = true;
    }
    units
}

/// Returns whether a character is a letter or digit of a script with spaces between words.
fn is_letter(c: char) -> bool {
    c.is_alphanumeric() && !is_japanese(c)
}

/// Returns whether more than half of the units are Japanese characters.
pub(crate) fn mostly_japanese(units: &[String]) -> bool {
    let japanese = units.iter().filter(|unit| is_character(unit)).count();
    japanese * 2 > units.len()
}

/// Returns whether a unit is a Japanese character rather than a word.
pub(crate) fn is_character(unit: &str) -> bool {
    unit.starts_with(is_japanese)
}

/// Returns whether a character is hiragana or katakana, including the length mark, but not
/// punctuation.
pub(crate) fn is_kana(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}') && c.is_alphanumeric()
}

/// Returns whether a character is kana or an ideograph.
pub(crate) fn is_japanese(c: char) -> bool {
    is_kana(c) || matches!(c, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '々')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_a_word_or_a_japanese_character() {
        assert_eq!(
            units("Don’t stop, it's 3.5"),
            ["don't", "stop", "it's", "3", "5"]
        );
        assert_eq!(units("'quoted' words'"), ["quoted", "words"]);
        assert_eq!(
            units("コーヒー・茶は、HTML。"),
            ["コ", "ー", "ヒ", "ー", "茶", "は", "html"]
        );
        assert!(mostly_japanese(&units("HTMLのタグ")));
        assert!(!mostly_japanese(&units("the word 空 and more")));
        assert!(!mostly_japanese(&[]));
    }
}

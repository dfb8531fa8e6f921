//! Detects the language of an answer.

use crate::text::{is_japanese, is_kana};

/// Returns whether the answer's prose is in `language`: its letters are of the right script, and
/// where scripts are ambiguous, its common words are those of the language. Code is ignored, and a
/// text without prose passes.
pub(crate) fn speaks(answer: &str, language: &str) -> bool {
    let prose = without_code(answer);
    let letters: Vec<char> = prose.chars().filter(|c| c.is_alphabetic()).collect();
    if letters.is_empty() {
        return true;
    }
    let share = |belongs: fn(char) -> bool| {
        letters.iter().filter(|&&c| belongs(c)).count() as f64 / letters.len() as f64
    };
    match language {
        // Han alone could be Chinese; more than a few words of Japanese have kana.
        "ja" => share(is_japanese) >= 0.6 && (letters.len() < 12 || share(is_kana) >= 0.1),
        _ => share(is_latin) >= 0.9 && most_common_words(&prose).is_none_or(|it| it == language),
    }
}

fn is_latin(c: char) -> bool {
    matches!(c, 'a'..='z' | 'A'..='Z' | '\u{c0}'..='\u{24f}')
}

/// Returns the language whose most common words are most frequent in the text; `None` if there are
/// too few to tell.
fn most_common_words(text: &str) -> Option<&'static str> {
    const COMMON: &[(&str, &[&str])] = &[
        (
            "en",
            &[
                "the", "and", "of", "to", "is", "you", "it", "that", "for", "with", "are", "this",
            ],
        ),
        (
            "fr",
            &[
                "le", "la", "les", "et", "des", "est", "une", "un", "pour", "vous", "du", "dans",
            ],
        ),
        (
            "de",
            &[
                "der", "die", "das", "und", "ist", "ein", "eine", "nicht", "sie", "mit", "zu",
            ],
        ),
        (
            "es",
            &[
                "el", "los", "las", "y", "que", "es", "una", "por", "con", "para", "del",
            ],
        ),
    ];
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| !word.is_empty())
        .collect();
    COMMON
        .iter()
        .map(|(language, common)| {
            let hits = words.iter().filter(|word| common.contains(word)).count();
            (*language, hits)
        })
        .filter(|(_, hits)| *hits >= 2)
        .max_by_key(|(_, hits)| *hits)
        .map(|(language, _)| language)
}

/// Returns the text outside of fenced blocks and `inline code`.
fn without_code(text: &str) -> String {
    let mut prose = String::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            prose.extend(line.split('`').step_by(2));
            prose.push('\n');
        }
    }
    prose
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_apart() {
        let english = "The sky is blue because the air scatters light of short wavelengths.";
        let french = "Le train est confortable et les gares sont dans le centre des villes.";
        let japanese = "空が青いのは、空気が青い光をよく散らすからです。";
        let chinese = "天空是蓝色的因为空气散射短波长的光线。";
        assert!(speaks(english, "en") && !speaks(english, "fr") && !speaks(english, "ja"));
        assert!(speaks(french, "fr") && !speaks(french, "en"));
        assert!(speaks(japanese, "ja") && !speaks(japanese, "en"));
        assert!(!speaks(chinese, "ja") && !speaks(chinese, "en"));
        assert!(speaks(
            "はい。\n```python\nprint(\"hello, dear world\")\n```",
            "ja"
        ));
        assert!(speaks("42", "ja"));
    }
}

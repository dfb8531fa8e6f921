//! Repetition measures: loops within an answer, copies of the prompt, echoes of the question.

use std::collections::HashSet;

use crate::text::{is_character, mostly_japanese, units};

/// The share of repeated n-grams above which an answer counts as a loop. Prose and lists stay below
/// 0.15; a text that says everything twice has 0.5.
pub(crate) const LOOP: f64 = 0.35;

/// Returns how repetitive a text is: 1 − distinct n-grams ÷ n-grams, between 0 and 1, with n = 4
/// words, or 8 Japanese characters. A text with fewer than 8 n-grams has no repetition.
pub(crate) fn repetition(text: &str) -> f64 {
    let units = units(text);
    let n = if mostly_japanese(&units) { 8 } else { 4 };
    let grams: Vec<&[String]> = units.windows(n).collect();
    if grams.len() < 8 {
        return 0.0;
    }
    let distinct: HashSet<&[String]> = grams.iter().copied().collect();
    1.0 - distinct.len() as f64 / grams.len() as f64
}

/// The runs of a text that are long enough to be a copy: 8 consecutive words or, if Japanese
/// characters are among them, 12 consecutive units.
#[derive(Debug, Default)]
pub(crate) struct Runs(HashSet<String>);

impl Runs {
    /// Adds the runs of a text.
    pub(crate) fn add(&mut self, text: &str) {
        let units = units(text);
        self.0.extend((0..units.len()).filter_map(|start| {
            let rest = &units[start..];
            let words = rest.iter().take(8).all(|unit| !is_character(unit));
            let run = rest.get(..if words { 8 } else { 12 })?;
            Some(run.join(" "))
        }));
    }

    /// Returns the runs of several texts, none of which crosses from one to the next.
    pub(crate) fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Runs {
        let mut runs = Runs::default();
        texts.into_iter().for_each(|text| runs.add(text));
        runs
    }
}

/// Returns whether the answer contains a run of the prompt that is not in the client's own
/// messages.
pub(crate) fn copies<'a>(
    answer: &str,
    prompt: &Runs,
    messages: impl IntoIterator<Item = &'a str>,
) -> bool {
    let messages = Runs::of(messages);
    let answer = Runs::of([answer]);
    let copied = answer.0.intersection(&prompt.0);
    copied.into_iter().any(|run| !messages.0.contains(run))
}

/// Returns whether the answer is little more than the question again. Case, spaces and punctuation
/// do not count, nor do openings such as "Sure" and 「はい」. Either
///
/// - the answer contains the whole question, and without it has fewer than 4 words, or 8 Japanese
///   characters; or
/// - the answer has at least 80% of the question's n-grams (3 words, or 4 Japanese characters), and
///   fewer n-grams that are not the question's.
pub(crate) fn echoes(answer: &str, question: &str) -> bool {
    let question = units(question);
    let answer = without_openings(units(answer));
    if question.is_empty() {
        return false;
    }
    let (least, n) = if mostly_japanese(&question) {
        (8, 4)
    } else {
        (4, 3)
    };
    let left = without(&answer, &question);
    if left < answer.len() && left < least {
        return true;
    }
    let asked: HashSet<&[String]> = question.windows(n).collect();
    let answered: HashSet<&[String]> = answer.windows(n).collect();
    let repeated = asked.intersection(&answered).count();
    repeated > 0 && repeated * 5 >= asked.len() * 4 && answered.len() - repeated < repeated
}

/// Counts the units of a text outside of every occurrence of a part.
fn without(text: &[String], part: &[String]) -> usize {
    let mut rest = text;
    let mut left = 0;
    while !rest.is_empty() {
        match rest.strip_prefix(part) {
            Some(after) => rest = after,
            None => {
                left += 1;
                rest = &rest[1..];
            }
        }
    }
    left
}

/// Removes the openings of an answer that have no content.
fn without_openings(answer: Vec<String>) -> Vec<String> {
    const OPENINGS: &[&str] = &[
        "sure",
        "of course",
        "certainly",
        "absolutely",
        "yes",
        "okay",
        "ok",
        "no problem",
        "here you go",
        "はい",
        "もちろん",
        "わかりました",
        "分かりました",
        "承知しました",
        "かしこまりました",
    ];
    let openings: Vec<Vec<String>> = OPENINGS.iter().map(|opening| units(opening)).collect();
    let mut rest = answer.as_slice();
    while let Some(after) = openings
        .iter()
        .find_map(|opening| rest.strip_prefix(opening.as_slice()))
    {
        rest = after;
    }
    rest.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_and_lists_are_not_circles() {
        let circle = "The sea is blue and the sea is wide. ".repeat(5);
        assert!(repetition(&circle) > LOOP, "{}", repetition(&circle));
        let circle = "空が青いのは光が散らばるからです。".repeat(4);
        assert!(repetition(&circle) > LOOP, "{}", repetition(&circle));
        let list = "1. **Eat fruit.** It is full of vitamins.\n2. **Sleep well.** It is good for \
            the mind.\n3. **Move.** It is good for the heart, and it is fun.";
        assert!(repetition(list) < 0.15, "{}", repetition(list));
        assert_eq!(repetition("no no no no"), 0.0);
    }

    #[test]
    fn eight_words_of_the_prompt_are_a_copy_and_seven_are_not() {
        let prompt = Runs::of(["Bread rises because yeast eats sugar and makes gas, slowly."]);
        let copied = "Well: bread rises, because YEAST eats sugar and makes a mess";
        assert!(copies(copied, &prompt, []));
        let seven = "Well: bread rises because yeast eats sugar and drinks milk";
        assert!(!copies(seven, &prompt, []));
    }

    #[test]
    fn twelve_characters_of_the_prompt_are_a_copy_and_eleven_are_not() {
        let prompt = Runs::of(["空が青いのは、光が空気に散らされるからです。"]);
        // Spaces and punctuation are ignored.
        assert!(copies("答え：空が青いのは光が 空気に散る", &prompt, []));
        assert!(!copies("答え：空が青いのは光が空から来る", &prompt, []));
    }

    #[test]
    fn what_the_client_said_itself_is_no_copy_of_the_prompt() {
        let words = "bread rises because yeast eats sugar and makes gas";
        let prompt = Runs::of([words]);
        assert!(copies(words, &prompt, ["Why does bread rise?"]));
        assert!(!copies(words, &prompt, ["Translate this.", words]));
        // Half of it in one message and half in the next does not count as the client's text.
        let halves = ["bread rises because yeast", "eats sugar and makes gas"];
        assert!(copies(words, &prompt, halves));
        let characters = "空が青いのは光が空気に散らされるから";
        let prompt = Runs::of([characters]);
        assert!(copies(characters, &prompt, ["空はなぜ青い？"]));
        assert!(!copies(characters, &prompt, [characters]));
        assert!(!copies(characters, &Runs::default(), []));
    }

    #[test]
    fn the_question_again_is_an_echo_and_an_answer_with_its_words_is_not() {
        let question = "What is the capital of Norway?";
        assert!(echoes("What is the capital of Norway", question));
        assert!(echoes("Sure! “What is the capital of Norway?”", question));
        assert!(echoes(
            "what is the capital of norway? I ask you.",
            question
        ));
        let longer = "In which city can I visit the Colosseum?";
        assert!(echoes("Which city can I visit: the Colosseum!", longer));
        assert!(!echoes("You can visit the Colosseum in Rome", longer));
        assert!(!echoes("The capital of Norway is Oslo.", question));
        let more = "What is the capital of Norway? It is Oslo, a city on a fjord.";
        assert!(!echoes(more, question));
        assert!(!echoes("", question) && !echoes("Sure!", question));
    }

    #[test]
    fn echoes_are_found_in_japanese() {
        let question = "ノルウェーの首都はどこですか？";
        assert!(echoes("はい、ノルウェーの首都はどこですか。", question));
        assert!(echoes("ノルウェーの首都はどこですか？教えて", question));
        assert!(echoes("ノルウェーの首都はどこでしょう", question));
        assert!(!echoes("ノルウェーの首都はオスロです。", question));
        assert!(!echoes(
            "ノルウェーの首都はどこですか？それはオスロという町です。",
            question
        ));
    }
}

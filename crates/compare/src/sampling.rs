//! Diversity of an arm's answers: between repeated answers to a prompt, and between
//! temperatures (distinct-n, ROUGE-L).

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

use super::{Answer, Prompt};

/// Diversity of the answers of one arm at one temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SamplingRow {
    /// The arm that answered.
    pub arm: usize,
    /// The temperature.
    pub temperature: f32,
    /// The number of answers, over all prompts.
    pub answers: usize,
    /// Different texts per answer to the same prompt, as a mean over prompts.
    pub distinct: f64,
    /// Different pairs of adjacent words per pair, in all answers to the same prompt together
    /// (distinct-2; Li et al. 2016); a mean over prompts whose answers have such pairs, 0 if
    /// none has.
    pub distinct_2: f64,
    /// 1 − ROUGE-L F1 of two answers to the same prompt, as a mean over such pairs, then over
    /// prompts: 0 if all are alike or alone, 1 if no two share a word.
    pub diversity: f64,
    /// The mean length of an answer, in tokens.
    pub tokens: f64,
    /// The mean log-probability of a token under the arm itself; null without analysis, and if
    /// no answer has a token.
    pub logprob: Option<f64>,
}

/// The rows of all arms and temperatures, in the order of the answers. There are none if there
/// is nothing to compare: each arm has answered each prompt once, at one temperature.
pub fn sampling(prompts: &[Prompt]) -> Vec<SamplingRow> {
    let answers = || prompts.iter().flat_map(|prompt| &prompt.answers);
    let mut kinds: Vec<(usize, f32)> = Vec::new();
    for answer in answers() {
        let kind = (answer.arm, answer.temperature);
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let several = answers().any(|answer| answer.index > 0);
    if !several && kinds.iter().all(|kind| kind.1 == kinds[0].1) {
        return Vec::new();
    }
    let rows = kinds.into_iter();
    rows.map(|(arm, temperature)| row(arm, temperature, prompts))
        .collect()
}

fn row(arm: usize, temperature: f32, prompts: &[Prompt]) -> SamplingRow {
    let of = |answer: &&Answer| answer.arm == arm && answer.temperature == temperature;
    let groups: Vec<Vec<&Answer>> = prompts
        .iter()
        .map(|prompt| prompt.answers.iter().filter(of).collect::<Vec<_>>())
        .filter(|answers| !answers.is_empty())
        .collect();
    let answers: Vec<&Answer> = groups.iter().flatten().copied().collect();
    let words: Vec<Vec<Vec<String>>> = groups
        .iter()
        .map(|answers| answers.iter().map(|answer| words(&answer.text)).collect())
        .collect();
    let tokens = answers
        .iter()
        .flat_map(|answer| answer.tokens.iter().flatten());
    let logprobs: Vec<f64> = tokens.map(|token| f64::from(token.logprob)).collect();
    SamplingRow {
        arm,
        temperature,
        answers: answers.len(),
        distinct: mean(groups.iter().map(|answers| distinct(answers))),
        distinct_2: mean(words.iter().filter_map(|answers| distinct_2(answers))),
        diversity: mean(words.iter().map(|answers| diversity(answers))),
        tokens: mean(answers.iter().map(|a| a.usage.completion_tokens as f64)),
        logprob: (!logprobs.is_empty()).then(|| mean(logprobs.into_iter())),
    }
}

/// The mean; 0 if there are no values.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0, 0.0), |(count, sum), value| (count + 1, sum + value));
    sum / f64::from(count.max(1))
}

/// The words of a text in lower case, without the text between them. Word boundaries are
/// Unicode's (UAX #29), which find words in any script: where none are marked, as in Japanese,
/// each ideograph and each hiragana is one.
fn words(text: &str) -> Vec<String> {
    text.unicode_words().map(str::to_lowercase).collect()
}

fn distinct(answers: &[&Answer]) -> f64 {
    let texts: HashSet<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
    texts.len() as f64 / answers.len() as f64
}

fn distinct_2(answers: &[Vec<String>]) -> Option<f64> {
    let bigrams = || answers.iter().flat_map(|words| words.windows(2));
    let different: HashSet<&[String]> = bigrams().collect();
    let all = bigrams().count();
    (all > 0).then(|| different.len() as f64 / all as f64)
}

/// 1 − ROUGE-L F1, as a mean over pairs.
fn diversity(answers: &[Vec<String>]) -> f64 {
    let twos = (0..answers.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
    mean(twos.map(|(a, b)| 1.0 - rouge_l(&answers[a], &answers[b])))
}

/// The F1 score of ROUGE-L (Lin 2004), by the share that the longest common subsequence has of
/// either text. Two texts without words are alike.
fn rouge_l(a: &[String], b: &[String]) -> f64 {
    if a.is_empty() && b.is_empty() {
        return 1.0;
    }
    // F1 = 2PR / (P + R) with P = common / |a| and R = common / |b|.
    2.0 * common(a, b) as f64 / (a.len() + b.len()) as f64
}

/// The length of the longest common subsequence.
fn common(a: &[String], b: &[String]) -> usize {
    // lengths[j] is that of the words of `a` so far and the first j words of `b`.
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut before = 0;
        for (j, other) in b.iter().enumerate() {
            let above = lengths[j + 1];
            lengths[j + 1] = if word == other {
                before + 1
            } else {
                above.max(lengths[j])
            };
            before = above;
        }
    }
    lengths[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{FinishReason, Token, Usage};

    fn answer(index: usize, temperature: f32, text: &str) -> Answer {
        Answer {
            arm: 0,
            index,
            temperature,
            text: text.to_owned(),
            finish_reason: FinishReason::Stop,
            usage: Usage::new(5, 0, 3 + index),
            tokens: None,
        }
    }

    fn prompt(answers: Vec<Answer>) -> Prompt {
        Prompt {
            messages: None,
            prompt: Some("p".to_owned()),
            answers,
        }
    }

    /// Answers of one arm at one temperature to one prompt.
    fn answers(texts: &[&str]) -> Prompt {
        let answers = texts.iter().enumerate();
        prompt(
            answers
                .map(|(index, text)| answer(index, 1.0, text))
                .collect(),
        )
    }

    #[track_caller]
    fn assert_close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{found} is not {expected}"
        );
    }

    #[test]
    fn measures_are_those_computed_by_hand() {
        // Common subsequences: "the cat" of 3 and 3 words, none, none.
        let first = answers(&["The cat sat.", "the cat ran", "a dog"]);
        // The same text three times.
        let second = answers(&["No, no.", "No, no.", "No, no."]);
        let rows = sampling(&[first, second]);
        let [row] = rows.as_slice() else {
            panic!("{rows:?}")
        };
        assert_eq!((row.arm, row.temperature, row.answers), (0, 1.0, 6));
        assert_close(row.distinct, (1.0 + 1.0 / 3.0) / 2.0);
        // the-cat cat-sat the-cat cat-ran a-dog; no-no no-no no-no.
        assert_close(row.distinct_2, (4.0 / 5.0 + 1.0 / 3.0) / 2.0);
        assert_close(row.diversity, ((1.0 / 3.0 + 1.0 + 1.0) / 3.0 + 0.0) / 2.0);
        assert_close(row.tokens, 4.0);
        assert_eq!(row.logprob, None);
    }

    #[test]
    fn there_is_no_table_where_nothing_can_scatter() {
        assert_eq!(sampling(&[]), []);
        assert_eq!(sampling(&[answers(&["a"]), answers(&["b"])]), []);
    }

    #[test]
    fn each_temperature_has_a_row() {
        let both = prompt(vec![answer(0, 0.0, "a b"), answer(0, 0.5, "c")]);
        let rows = sampling(&[both]);
        let found: Vec<_> = rows
            .iter()
            .map(|row| (row.temperature, row.distinct, row.distinct_2, row.diversity))
            .collect();
        assert_eq!(found, [(0.0, 1.0, 1.0, 0.0), (0.5, 1.0, 0.0, 0.0)]);
    }

    #[test]
    fn the_mean_log_probability_is_that_of_all_tokens() {
        let with = |index, logprobs: &[f32]| Answer {
            tokens: Some(
                logprobs
                    .iter()
                    .map(|&logprob| Token::new(1, vec![b'x'], logprob, 1, Vec::new(), Vec::new()))
                    .collect(),
            ),
            ..answer(index, 1.0, "x")
        };
        let rows = sampling(&[prompt(vec![with(0, &[-1.0, -2.0]), with(1, &[-6.0])])]);
        assert_eq!(rows[0].logprob, Some(-3.0));
    }

    #[test]
    fn words_are_found_in_any_script() {
        assert_eq!(words("Don't stop – now!"), ["don't", "stop", "now"]);
        assert_eq!(words("東京へ行く。"), ["東", "京", "へ", "行", "く"]);
        assert_eq!(words(" … "), [""; 0]);
    }

    #[test]
    fn texts_without_words_are_alike_and_unlike_all_others() {
        assert_eq!(diversity(&[words("!"), words("")]), 0.0);
        assert_eq!(diversity(&[words("!"), words("a")]), 1.0);
    }

    proptest! {
        #[test]
        fn likeness_is_symmetric_and_complete_only_with_itself(
            a in "[ab ]{0,12}", b in "[ab ]{0,12}",
        ) {
            let (a, b) = (words(&a), words(&b));
            let likeness = rouge_l(&a, &b);
            prop_assert!((0.0..=1.0).contains(&likeness));
            prop_assert_eq!(likeness, rouge_l(&b, &a));
            prop_assert_eq!(likeness == 1.0, a == b);
        }
    }
}

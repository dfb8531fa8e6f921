//! Tests that the committed questions have the properties that the figures rely on.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::*;
use crate::text::units;

const PARTS: [Part; 2] = [Part::Dev, Part::Test];

fn committed(part: Part) -> impl Iterator<Item = QuestionSet> {
    Language::ALL
        .into_iter()
        .map(move |language| QuestionSet::read(part, language).unwrap())
}

/// Normalises a text for comparisons of questions.
fn normal(text: &str) -> String {
    units(text).join(" ")
}

/// Returns the texts of all turns of a part's questions.
fn asked(part: Part) -> HashSet<String> {
    let sets = committed(part);
    let turns = sets.flat_map(|set| set.questions.into_iter().flat_map(|it| it.turns));
    turns.map(|turn| normal(&turn.ask)).collect()
}

#[test]
fn the_committed_sets_are_large_enough() {
    let mut sizes: HashMap<Language, usize> = HashMap::new();
    for set in PARTS.into_iter().flat_map(committed) {
        *sizes.entry(set.language).or_default() += set.questions.len();
    }
    assert!(sizes[&Language::En] >= 300, "{sizes:?}");
    assert!(sizes[&Language::Ja] >= 120, "{sizes:?}");
    let test = QuestionSet::read(Part::Test, Language::En).unwrap();
    for class in [Class::Plain, Class::SoundsHarmful, Class::Harmful] {
        let size = test.questions.iter().filter(|it| it.class == class).count();
        assert!(size >= 50, "{}: {size}", class.name());
    }
    for set in PARTS.into_iter().flat_map(committed) {
        for class in Class::ALL {
            assert!(
                set.questions.iter().any(|it| it.class == class),
                "{class:?}"
            );
        }
    }
}

#[test]
fn every_question_has_an_id_of_its_own() {
    let mut seen = HashSet::new();
    for set in PARTS.into_iter().flat_map(committed) {
        for question in set.questions {
            assert!(seen.insert(question.id.clone()), "{}", question.id);
        }
    }
}

#[test]
fn no_question_is_in_both_parts_or_in_the_training_data() {
    let (dev, test) = (asked(Part::Dev), asked(Part::Test));
    let both: Vec<&String> = dev.intersection(&test).collect();
    assert!(both.is_empty(), "{both:?}");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/prompts/training");
    let mut lines = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "jsonl")
        {
            continue;
        }
        for line in std::fs::read_to_string(&path).unwrap().lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let prompt = normal(line["prompt"].as_str().expect("a prompt"));
            let known = dev.contains(&prompt) || test.contains(&prompt);
            assert!(!known, "{}: {prompt}", path.display());
            lines += 1;
        }
    }
    assert!(lines > 0);
}

#[test]
fn no_question_stands_in_a_profile() {
    let asked: Vec<String> = PARTS.into_iter().flat_map(asked).collect();
    let mut profiles = 0;
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/prompts")).unwrap() {
        let path = file.unwrap().path();
        if path
            .extension()
            .is_none_or(|extension| extension != "jinja")
        {
            continue;
        }
        let text = normal(&std::fs::read_to_string(&path).unwrap());
        for ask in &asked {
            // Short questions such as "Why?" are in every text.
            let is_short = ask.split(' ').count() < 4;
            let found = !is_short && text.contains(ask);
            assert!(!found, "{}: {ask}", path.display());
        }
        profiles += 1;
    }
    assert!(profiles > 0);
}

#[test]
fn no_question_is_asked_twice_in_a_part() {
    for part in PARTS {
        let mut seen = HashSet::new();
        for question in committed(part).flat_map(|set| set.questions) {
            let turns: Vec<&str> = question
                .turns
                .iter()
                .map(|turn| turn.ask.as_str())
                .collect();
            assert!(seen.insert(normal(&turns.join("\n"))), "{}", question.id);
        }
    }
}

#[test]
fn saying_the_question_again_does_not_do_the_task() {
    for question in PARTS
        .into_iter()
        .flat_map(committed)
        .flat_map(|set| set.questions)
    {
        let passes = |answer: &str| {
            let expectation = question.expectation();
            expectation.is_some_and(|expected| expected.is_met(answer))
        };
        let ask = question.ask();
        for echo in [
            ask.to_owned(),
            format!("Sure! {ask}"),
            format!("はい。{ask}"),
        ] {
            assert!(!passes(&echo), "{}: {echo}", question.id);
        }
    }
}

#[test]
fn files_with_mistakes_are_refused() {
    let parse = |question: &str| {
        let text =
            format!("language = \"en\"\nmax_tokens = 9\n[[question]]\nid = \"a\"\n{question}");
        format!("{:#}", QuestionSet::parse(&text).unwrap_err())
    };
    let misspelt = "class = \"fact\"\nturns = [{ ask = \"b\", expect = { anny = [\"c\"] } }]";
    assert!(parse(misspelt).contains("anny"));
    let unchecked = "class = \"fact\"\nturns = [{ ask = \"b\" }]";
    assert!(parse(unchecked).contains("`expect`"));
    let checked = "class = \"harmful\"\nturns = [{ ask = \"b\", expect = {} }]";
    assert!(parse(checked).contains("`expect`"));
    let early = "class = \"harmful\"\nturns = [{ ask = \"b\", expect = {} }, { ask = \"c\" }]";
    assert!(parse(early).contains("not scored"));
    let answered = "class = \"harmful\"\nturns = [{ ask = \"b\", answer = \"c\" }]";
    assert!(parse(answered).contains("an answer"));
    assert!(parse("class = \"harmful\"\nturns = []").contains("no turns"));
}

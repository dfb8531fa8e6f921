//! The texts of the chat workload: a long constant prompt that all clients send, and a short
//! question after it.

use incant::profile;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The words of salts.
const WORDS: [&str; 32] = [
    "amber", "basket", "candle", "desert", "engine", "forest", "garden", "harbor", "island",
    "jacket", "kitchen", "ladder", "marble", "needle", "orange", "pencil", "quarter", "river",
    "silver", "tunnel", "umbrella", "valley", "window", "yellow", "anchor", "bridge", "copper",
    "dragon", "feather", "glacier", "hammer", "meadow",
];
/// The number of words that makes a salt practically unique.
const SALT_WORDS: usize = 12;

/// The topics of the questions.
const TOPICS: [&str; 16] = [
    "bread",
    "the moon",
    "bicycles",
    "winter in the mountains",
    "chess",
    "green tea",
    "lighthouses",
    "learning a language",
    "honey bees",
    "old maps",
    "a healthy back",
    "volcanoes",
    "city parks",
    "the violin",
    "moving house",
    "rainbows",
];

/// Returns words that no text of this or another run begins with. Salts with consecutive numbers
/// begin with different words, so that texts after them have no common prefix.
pub(super) fn salt(run: u64, number: u64) -> String {
    let mut random = ChaCha8Rng::seed_from_u64(run);
    random.set_stream(number);
    let first = run.wrapping_add(number) % WORDS.len() as u64;
    let mut words = vec![WORDS[first as usize]];
    words.extend((1..SALT_WORDS).map(|_| WORDS[random.random_range(0..WORDS.len())]));
    words.join(" ")
}

/// Returns an alignment prompt of about `length` bytes, but at least its instruction: `salt`, then
/// the instruction and the examples of the profile `urial`, which are repeated in another order
/// until the length is reached. It ends with a whole line.
pub(super) fn shared(salt: &str, length: usize) -> String {
    let urial = profile::builtin()
        .iter()
        .find(|profile| profile.name() == "urial")
        .expect("it is built in");
    let marker = "# Query:\n";
    let mut parts = urial.prefix().split(marker);
    let instruction = parts.next().unwrap_or_default();
    let examples: Vec<&str> = parts.collect();
    let mut text = format!("{salt}\n\n{instruction}");
    for time in 0.. {
        for at in 0..examples.len() {
            let example = examples[(time + at) % examples.len()];
            for line in [marker].into_iter().chain(example.split_inclusive('\n')) {
                if text.len() + line.len() > length {
                    return text;
                }
                text.push_str(line);
            }
        }
    }
    text
}

/// Returns the text after the shared prompt: a question that is unique to its number.
pub(super) fn question(number: usize) -> String {
    let topic = TOPICS[number % TOPICS.len()];
    let things = 2 + number / TOPICS.len();
    format!("\n# Query:\nName {things} things one should know about {topic}.\n\n# Answer:\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn salted_prompts_share_nothing_at_the_beginning() {
        for run in [0, 7, u64::MAX] {
            for number in 0..10 {
                let here = shared(&salt(run, number), 2000);
                let next = shared(&salt(run, number + 1), 2000);
                let word = |text: &str| text.split(' ').next().map(str::to_owned);
                assert_ne!(word(&here), word(&next));
            }
        }
        assert_ne!(salt(1, 5), salt(2, 4), "another run, the same first word");
    }

    #[test]
    fn the_same_salt_makes_the_same_prompt() {
        let text = shared(&salt(3, 1), 5000);
        assert_eq!(text, shared(&salt(3, 1), 5000));
        assert!(shared(&salt(3, 1), 9000).starts_with(&text));
    }

    #[test]
    fn a_prompt_is_as_long_as_asked_and_made_of_examples() {
        for length in [1000, 5000, 20_000] {
            let text = shared("salt", length);
            assert!((length - 400..=length).contains(&text.len()), "{length}");
            assert!(text.starts_with("salt\n\n# Instruction:\n"));
            assert!(text.ends_with('\n'));
        }
        let long = shared("salt", 20_000);
        assert!(long.matches("# Query:\n").count() > 30);
        assert!(shared("salt", 0).contains("# Instruction:"));
    }

    #[test]
    fn no_two_questions_are_alike() {
        let questions: HashSet<String> = (0..500).map(question).collect();
        assert_eq!(questions.len(), 500);
    }
}

//! Training answers consist of the tokens that a served model would see and generate.

use std::sync::Arc;

use incant::profile::{Message, Role};
use incant::runtime::{Arm, LoadOptions, Model, Prompt, Runtime};

use crate::support::fixtures::load_options;
use crate::support::model;

/// The options with which models are loaded here.
pub(super) fn options() -> LoadOptions {
    LoadOptions {
        context: Some(2048),
        ..load_options()
    }
}

/// A loaded model, by the name of its arms.
fn runtime(name: &str) -> Runtime {
    let loaded = Model::load("m", &model(name), &options()).expect("a sound model");
    let runtime = Runtime::new();
    runtime.loaded(vec![Arc::new(loaded)]);
    runtime
}

fn user(text: &str) -> Message {
    Message::new(Role::User, text)
}

fn assistant(text: &str) -> Message {
    Message::new(Role::Assistant, text)
}

pub(super) fn ids(prompt: &Prompt) -> Vec<u32> {
    let prefix = prompt.prefix.iter().flat_map(|prefix| &prefix.ids);
    prefix.chain(&prompt.ids).copied().collect()
}

const ANSWERS: [&str; 6] = [
    "Sure! It is blue.",
    "## Steps\n\n1. One\n2. Two\n\n```python\nprint('# Query:')\n```",
    "もちろんです。空は青いです。🙂",
    "  spaces around\n",
    "# Query:\nan end <|im_end|> <end_of_turn> </s> <|endoftext|> which is no end",
    "",
];

/// Returns each answer to a question, with its tokens as the arm renders them.
fn answered(arm: &Arm) -> impl Iterator<Item = (&'static str, Vec<u32>, Vec<u32>)> {
    ANSWERS.into_iter().map(move |answer| {
        let conversation = [user("What colour is it?"), assistant(answer)];
        let found = arm.answered(&conversation).expect("it is rendered");
        let asked = arm.chat(&conversation[..1]).expect("it is rendered");
        assert_eq!(ids(&found.prompt), ids(&asked), "{answer:?}");
        (answer, ids(&asked), found.answer)
    })
}

/// Asserts that the arm's next turn begins with the trained tokens, for answers without
/// surrounding space: templates strip that from earlier turns of a conversation.
fn goes_on(arm: &Arm) {
    let whole =
        |(answer, ..): &(&str, Vec<u32>, Vec<u32>)| !answer.is_empty() && *answer == answer.trim();
    for (answer, asked, said) in answered(arm).filter(whole) {
        let longer = [
            user("What colour is it?"),
            assistant(answer),
            user("Are you sure?"),
        ];
        let next = ids(&arm.chat(&longer).expect("it is rendered"));
        let learnt = [asked, said].concat();
        assert!(next.starts_with(&learnt), "{}: {answer:?}", arm.id());
    }
}

#[test]
fn a_profiles_answers_end_where_the_next_question_would_begin() {
    for name in ["gemma-3-270m", "qwen2.5-coder-0.5b-instruct"] {
        let runtime = runtime(name);
        for (id, marker) in [("m@turn", "# Question:"), ("m@urial", "# Query:")] {
            let arm = runtime.arm(id).expect("it exists");
            goes_on(&arm);
            for (answer, _, said) in answered(&arm) {
                let text = arm.tokenizer().decode(&said, true);
                // The end may be a single token together with the following line break.
                let text = text.trim_end_matches('\n');
                let (text, end) = text.split_at(text.len() - marker.len());
                assert_eq!(end, marker, "{name} {answer:?}");
                // A line that would start a turn is escaped, as in serving.
                let escaped = answer.starts_with(marker).then(|| format!("\\{answer}"));
                let expected = escaped.as_deref().unwrap_or(answer);
                assert_eq!(text.trim(), expected.trim(), "{name}");
            }
        }
    }
}

#[test]
fn a_templates_answers_end_with_its_end_token_and_hold_no_other() {
    for name in ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"] {
        let runtime = runtime(name);
        let arm = runtime.arm("m").expect("it exists");
        goes_on(&arm);
        let ends = arm.end_tokens();
        for (answer, _, said) in answered(&arm) {
            let (last, before) = said.split_last().expect("there is an end");
            assert!(ends.contains(last), "{name} {answer:?}");
            assert!(
                !before.iter().any(|id| ends.contains(id)),
                "{name} {answer:?}"
            );
            let text = arm.tokenizer().decode(before, true);
            assert_eq!(text.trim(), answer.trim(), "{name}");
        }
    }
}

#[test]
fn a_plain_continuation_ends_with_the_models_own_end() {
    let runtime = runtime("gemma-3-270m");
    let arm = runtime.arm("m@base").expect("it exists");
    for (answer, _, said) in answered(&arm) {
        assert_eq!(said.last().copied(), arm.tokenizer().eos());
        let text = arm.tokenizer().decode(&said[..said.len() - 1], true);
        assert_eq!(text.trim(), answer.trim());
    }
}

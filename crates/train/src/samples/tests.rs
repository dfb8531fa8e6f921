use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use incant_prompt::profile::Role;

/// A token for each byte; `U` opens the user's turn, `A` the assistant's, `.` ends it.
struct Bytes {
    /// Whether earlier answers are rendered in a shortened form.
    forgets: bool,
}

impl Bytes {
    fn ids(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }
}

impl Render for Bytes {
    fn render_answer(&self, conversation: &[Message]) -> Result<RenderedAnswer, RenderError> {
        let (last, before) = conversation.split_last().unwrap();
        Ok(RenderedAnswer {
            prompt: self.render_prompt(before)?,
            answer: Bytes::ids(&format!("{}.", last.content)),
        })
    }

    fn render_prompt(&self, conversation: &[Message]) -> Result<Vec<u32>, RenderError> {
        let turns = conversation.iter().map(|message| match message.role {
            Role::Assistant if self.forgets => Ok("A…".to_owned()),
            Role::Assistant => Ok(format!("A{}.", message.content)),
            Role::User => Ok(format!("U{}", message.content)),
            Role::System => {
                let why = "there is no place for a system message";
                Err(RenderError(why.to_owned()))
            }
        });
        let turns: Vec<String> = turns.collect::<Result<_, RenderError>>()?;
        Ok(Bytes::ids(&format!("{}A", turns.concat())))
    }

    fn tokenize(&self, text: &str) -> Vec<u32> {
        Bytes::ids(text)
    }
}

const PLAIN: Bytes = Bytes { forgets: false };

fn place() -> Place {
    Place {
        file: Arc::new(PathBuf::from("mine.jsonl")),
        line: 3,
    }
}

fn entry(content: Content) -> Entry {
    Entry {
        place: place(),
        content,
    }
}

fn conversation(turns: &[&str], from: usize) -> Conversation {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let messages = roles
        .zip(turns)
        .map(|(role, turn)| Message::new(role, *turn));
    Conversation {
        messages: messages.collect(),
        from,
        excluded: Vec::new(),
    }
}

/// Formats a sample, with tokens that do not count in parentheses.
fn shown(sample: &Sample) -> String {
    let mut text = String::new();
    let mut counted = true;
    for (&token, &counts) in sample.tokens.iter().zip(&sample.counts) {
        if counts != counted {
            text.push(if counts { ')' } else { '(' });
            counted = counts;
        }
        text.push(char::from(token as u8));
    }
    text
}

fn learnt(content: Content, render: &Bytes) -> Vec<String> {
    let examples = Examples::from_answers(&[entry(content)], render, 100).unwrap();
    examples.examples[0].sides[0].iter().map(shown).collect()
}

#[test]
fn all_answers_of_a_conversation_are_learnt_in_one_sequence() {
    let all = Content::Conversation(conversation(&["hi", "yes", "and", "no"], 0));
    assert_eq!(learnt(all, &PLAIN), ["(UhiA)yes.(UandA)no."]);
    let last = Content::Conversation(conversation(&["hi", "yes", "and", "no"], 3));
    assert_eq!(learnt(last, &PLAIN), ["(UhiAyes.UandA)no."]);
    let text = Content::Text("once".to_owned());
    assert_eq!(learnt(text, &PLAIN), ["(o)nce"]);
}

#[test]
fn a_turn_of_weight_0_is_read_and_not_learnt() {
    let without = |excluded: &[usize]| {
        Content::Conversation(Conversation {
            excluded: excluded.to_vec(),
            ..conversation(&["hi", "yes", "and", "no"], 0)
        })
    };
    assert_eq!(learnt(without(&[1]), &PLAIN), ["(UhiAyes.UandA)no."]);
    assert_eq!(learnt(without(&[3]), &PLAIN), ["(UhiA)yes."]);
    let asked = entry(without(&[1]));
    assert_eq!(prompt_of(&asked).unwrap().len(), 3);
}

#[test]
fn answers_that_serving_would_see_otherwise_later_are_learnt_apart() {
    let all = Content::Conversation(conversation(&["hi", "yes", "and", "no"], 0));
    let forgetful = Bytes { forgets: true };
    let found = learnt(all, &forgetful);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0], "(UhiA)yes.");
    assert!(found[1].ends_with(")no."), "{found:?}");
}

#[test]
fn a_pair_has_two_sides_of_which_answers_learn_the_chosen_one() {
    let pair = Content::Pair {
        chosen: conversation(&["hi", "yes"], 1),
        rejected: conversation(&["hi", "no"], 1),
    };
    let pairs = Examples::from_pairs(&[entry(pair.clone())], &PLAIN, 100).unwrap();
    let sides = &pairs.examples[0].sides;
    let sides: Vec<String> = sides.iter().map(|side| shown(&side[0])).collect();
    assert_eq!(sides, ["(UhiA)yes.", "(UhiA)no."]);
    assert_eq!(learnt(pair, &PLAIN), ["(UhiA)yes."]);
}

#[test]
fn what_is_too_long_is_cut_and_counted() {
    let pair = |chosen: &str| {
        entry(Content::Pair {
            chosen: conversation(&["hi", chosen], 1),
            rejected: conversation(&["hi", "no"], 1),
        })
    };
    let entries = [pair("yes indeed"), pair("yes")];
    let examples = Examples::from_pairs(&entries, &PLAIN, 8).unwrap();
    let cut = |truncated, dropped| (truncated, dropped);
    assert_eq!((examples.truncated, examples.dropped), cut(1, 0));
    assert_eq!(shown(&examples.examples[0].sides[0][0]), "(UhiA)yes ");
    // Nothing is left of any answer.
    let examples = Examples::from_pairs(&entries, &PLAIN, 4).unwrap();
    assert_eq!((examples.truncated, examples.dropped), cut(0, 2));
    assert!(examples.examples.is_empty());
}

#[test]
fn a_pair_whose_sides_have_become_the_same_is_left_out_and_counted() {
    let pair = |rejected: &str| {
        entry(Content::Pair {
            chosen: conversation(&["q", "one and more"], 1),
            rejected: conversation(&["q", rejected], 1),
        })
    };
    let entries = [pair("one and less"), pair("two")];
    let counts = |max_length| {
        let found = Examples::from_pairs(&entries, &PLAIN, max_length).unwrap();
        (found.examples.len(), found.truncated, found.same)
    };
    assert_eq!(counts(100), (2, 0, 0));
    // "UqA" and eight more.
    assert_eq!(counts(11), (1, 1, 1));
}

#[test]
fn both_views_of_a_lesson_have_the_same_answer_however_long_the_teachers_prompt() {
    let example = DistillationExample {
        student: Bytes::ids("UhiA"),
        teacher: Bytes::ids("be kind UhiA"),
        answer: Bytes::ids("gladly."),
        targets: None,
    };
    let examples = Examples::from_distillation([(place(), example)], 7);
    let sides = &examples.examples[0].sides;
    let sides: Vec<String> = sides.iter().map(|side| shown(&side[0])).collect();
    assert_eq!(sides, ["(UhiA)gla", "(be kind UhiA)gla"]);
    assert_eq!((examples.truncated, examples.dropped), (1, 0));
}

#[test]
fn a_lesson_with_targets_has_one_view_and_a_target_for_each_token_that_counts() {
    let targets = |answer: &str| -> Vec<Target> {
        let tokens = Bytes::ids(answer).into_iter();
        tokens.map(|token| vec![(token, 0.75), (0, 0.25)]).collect()
    };
    for (student, shown_as, learnt) in [("UhiA", "(UhiA)gla", "gla"), ("", "(g)ladly.", "ladly.")] {
        let example = DistillationExample {
            student: Bytes::ids(student),
            teacher: Bytes::ids("be kind UhiA"),
            answer: Bytes::ids("gladly."),
            targets: Some(targets("gladly.")),
        };
        let examples = Examples::from_distillation([(place(), example)], 7);
        let example = &examples.examples[0];
        assert_eq!(example.sides.len(), 1);
        assert_eq!(shown(&example.sides[0][0]), shown_as);
        assert_eq!(example.targets, Some(targets(learnt)));
    }
}

#[test]
fn a_line_of_the_wrong_kind_is_named() {
    let prompt = entry(Content::Prompt(vec![Message::new(Role::User, "hi")]));
    let told = Examples::from_answers(std::slice::from_ref(&prompt), &PLAIN, 9);
    let told = told.unwrap_err().to_string();
    assert_eq!(told, "mine.jsonl:3: there is no answer to learn");
    let told = Examples::from_pairs(&[prompt], &PLAIN, 9).unwrap_err();
    assert!(told.to_string().contains("no 'chosen'"), "{told}");
    let refused = Content::Conversation(Conversation {
        messages: vec![
            Message::new(Role::System, "be kind"),
            Message::new(Role::Assistant, "yes"),
        ],
        from: 0,
        excluded: Vec::new(),
    });
    let told = Examples::from_answers(&[entry(refused)], &PLAIN, 9).unwrap_err();
    assert!(
        told.to_string()
            .starts_with("mine.jsonl:3: there is no place")
    );
}

#[test]
fn the_prompt_of_any_kind_is_what_comes_before_its_answer() {
    let user = |text: &str| Message::new(Role::User, text);
    let kinds = [
        Content::Prompt(vec![user("hi")]),
        Content::Conversation(conversation(&["hi", "yes", "and", "no"], 0)),
        Content::Pair {
            chosen: conversation(&["hi", "yes"], 1),
            rejected: conversation(&["hi", "no"], 1),
        },
    ];
    for content in kinds {
        assert_eq!(prompt_of(&entry(content)).unwrap(), [user("hi")]);
    }
    let text = entry(Content::Text("once".to_owned()));
    assert!(prompt_of(&text).is_err());
}

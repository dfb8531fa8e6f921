//! From what files say to tokens, as serving would see them.

use super::data::{Content, Conversation, DataError, Entry, Place};
use super::student::{Sample, Target};
use crate::profile::Message;

/// Makes tokens of conversations exactly as whoever serves them does. What cannot be
/// rendered is told in a line.
pub trait Render {
    /// A conversation that ends with the assistant's turn.
    ///
    /// # Errors
    /// The messages are turned down.
    fn answered(&self, conversation: &[Message]) -> Result<Answered, String>;

    /// A conversation, left open at the assistant's turn.
    ///
    /// # Errors
    /// The messages are turned down.
    fn open(&self, conversation: &[Message]) -> Result<Vec<u32>, String>;

    /// A text by itself, from its beginning to its end.
    fn text(&self, text: &str) -> Vec<u32>;
}

/// A prompt and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The conversation before the answer, left open at it.
    pub prompt: Vec<u32>,
    /// The answer with what ends it.
    pub answer: Vec<u32>,
}

/// What is learnt from one line of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Where the line is.
    pub place: Place,
    /// What is held against each other: one side where an answer is learnt; the chosen and
    /// the rejected one; the student's and the teacher's view of an answer. A side is
    /// several sequences where the answers of a conversation cannot be learnt in one.
    pub sides: Vec<Vec<Sample>>,
    /// What each token of the first side that counts should be, where a teacher left that;
    /// then there is no teacher's side.
    pub targets: Option<Vec<Target>>,
}

impl Example {
    /// The tokens of its longest sequence.
    pub fn length(&self) -> usize {
        let samples = self.sides.iter().flatten();
        samples.map(|sample| sample.tokens.len()).max().unwrap_or(0)
    }

    /// How many tokens of a side count.
    pub fn counted(&self, side: usize) -> usize {
        self.sides[side].iter().map(Sample::counted).sum()
    }
}

/// Examples, and what became of others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examples {
    /// Those that can be learnt from.
    pub examples: Vec<Example>,
    /// How many of them lost tokens at their end because they were too long.
    pub truncated: usize,
    /// How many are left out because nothing that counts was left.
    pub dropped: usize,
}

impl Examples {
    /// Takes an example in, with no sequence longer than `max_length`.
    fn take(&mut self, place: &Place, mut sides: Vec<Vec<Sample>>, max_length: usize) {
        let samples = sides.iter_mut().flatten();
        let cut = samples.fold(false, |cut, sample| {
            let is_long = sample.tokens.len() > max_length;
            sample.tokens.truncate(max_length);
            sample.counts.truncate(max_length);
            cut || is_long
        });
        for side in &mut sides {
            side.retain(|sample| sample.counted() > 0);
        }
        if sides.iter().any(Vec::is_empty) {
            self.dropped += 1;
            return;
        }
        self.truncated += usize::from(cut);
        self.examples.push(Example {
            place: place.clone(),
            sides,
            targets: None,
        });
    }

    /// Answers and texts: of a pair the chosen one.
    ///
    /// # Errors
    /// A line has no answer, or cannot be rendered.
    pub fn of_answers(
        entries: &[Entry],
        render: &dyn Render,
        max_length: usize,
    ) -> Result<Examples, DataError> {
        let mut examples = Examples::default();
        for Entry { place, content } in entries {
            let samples = match content {
                Content::Text(text) => Ok(vec![sample(&[], &render.text(text))]),
                Content::Conversation(conversation)
                | Content::Pair {
                    chosen: conversation,
                    ..
                } => samples(conversation, render),
                Content::Prompt(_) => Err("there is no answer to learn".to_owned()),
            };
            let samples = samples.map_err(|what| refused(place, what))?;
            examples.take(place, vec![samples], max_length);
        }
        Ok(examples)
    }

    /// Pairs: the chosen answer and the rejected one.
    ///
    /// # Errors
    /// A line is no pair, or cannot be rendered.
    pub fn of_pairs(
        entries: &[Entry],
        render: &dyn Render,
        max_length: usize,
    ) -> Result<Examples, DataError> {
        let mut examples = Examples::default();
        for Entry { place, content } in entries {
            let Content::Pair { chosen, rejected } = content else {
                let what = "there are no 'chosen' and 'rejected' to compare";
                return Err(refused(place, what.to_owned()));
            };
            let side = |side| samples(side, render).map_err(|what| refused(place, what));
            examples.take(place, vec![side(chosen)?, side(rejected)?], max_length);
        }
        Ok(examples)
    }

    /// Answers of a teacher: the student's view of them, then the teacher's, if the lesson
    /// has no targets in its place. Only the student's length is limited.
    pub fn of_lessons(
        lessons: impl IntoIterator<Item = (Place, Lesson)>,
        max_length: usize,
    ) -> Examples {
        let mut examples = Examples::default();
        for (place, mut lesson) in lessons {
            let room = max_length.saturating_sub(lesson.student.len());
            let is_long = lesson.answer.len() > room;
            lesson.answer.truncate(room);
            let views = match lesson.targets {
                Some(_) => vec![&lesson.student],
                None => vec![&lesson.student, &lesson.teacher],
            };
            let views = views.into_iter();
            let views = views.map(|prompt| vec![sample(prompt, &lesson.answer)]);
            let before = examples.examples.len();
            examples.take(&place, views.collect(), usize::MAX);
            if let Some(example) = examples.examples.get_mut(before) {
                examples.truncated += usize::from(is_long);
                example.targets = lesson.targets.map(|mut targets| {
                    targets.truncate(room);
                    // A first token that nothing precedes does not count.
                    let skipped = targets.len().saturating_sub(example.counted(0));
                    targets.split_off(skipped)
                });
            }
        }
        examples
    }
}

/// A teacher's answer to a prompt that it sees otherwise than the student does.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    /// The prompt as the student sees it.
    pub student: Vec<u32>,
    /// The prompt as the teacher sees it.
    pub teacher: Vec<u32>,
    /// The teacher's answer.
    pub answer: Vec<u32>,
    /// The distribution that each token of the answer was chosen from, where it has few
    /// tokens, as under guidance. Where there is none, it is that of the model without an
    /// adapter after the teacher's view.
    pub targets: Option<Vec<Target>>,
}

/// The conversation of a line up to what is to be answered.
///
/// # Errors
/// The line is a text.
pub fn prompt_of(entry: &Entry) -> Result<&[Message], DataError> {
    let before = |conversation: &Conversation| {
        let all = 0..conversation.messages.len();
        let first = all.clone().find(|&at| conversation.counts(at));
        first.unwrap_or(all.end)
    };
    match &entry.content {
        Content::Prompt(messages) => Ok(messages),
        Content::Conversation(conversation)
        | Content::Pair {
            chosen: conversation,
            ..
        } => Ok(&conversation.messages[..before(conversation)]),
        Content::Text(_) => Err(refused(
            &entry.place,
            "a text has no prompt to answer".to_owned(),
        )),
    }
}

fn refused(place: &Place, what: String) -> DataError {
    DataError {
        place: place.clone(),
        what,
    }
}

/// A sequence whose `answer` counts.
fn sample(prompt: &[u32], answer: &[u32]) -> Sample {
    let mut sample = Sample::default();
    sample.extend(prompt, false);
    sample.extend(answer, true);
    sample
}

impl Sample {
    fn extend(&mut self, tokens: &[u32], counts: bool) {
        self.tokens.extend_from_slice(tokens);
        self.counts.resize(self.tokens.len(), counts);
        if let Some(first) = self.counts.first_mut() {
            *first = false;
        }
    }
}

/// The answers of a conversation, in as few sequences as can be: one goes on where what
/// serving would see of the next turn begins with it.
fn samples(conversation: &Conversation, render: &dyn Render) -> Result<Vec<Sample>, String> {
    let mut samples: Vec<Sample> = Vec::new();
    let messages = &conversation.messages;
    for at in (conversation.from..messages.len()).filter(|&at| conversation.counts(at)) {
        let Answered { prompt, answer } = render.answered(&messages[..=at])?;
        let last = samples
            .last_mut()
            .filter(|last| prompt.starts_with(&last.tokens));
        match last {
            Some(last) => {
                let rest = &prompt[last.tokens.len()..];
                last.extend(rest, false);
                last.extend(&answer, true);
            }
            None => samples.push(sample(&prompt, &answer)),
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::profile::Role;

    /// A token for each byte; `U` opens the user's turn, `A` the assistant's, `.` ends it.
    struct Bytes {
        /// Whether earlier answers are rendered in short.
        forgets: bool,
    }

    impl Bytes {
        fn ids(text: &str) -> Vec<u32> {
            text.bytes().map(u32::from).collect()
        }
    }

    impl Render for Bytes {
        fn answered(&self, conversation: &[Message]) -> Result<Answered, String> {
            let (last, before) = conversation.split_last().unwrap();
            Ok(Answered {
                prompt: self.open(before)?,
                answer: Bytes::ids(&format!("{}.", last.content)),
            })
        }

        fn open(&self, conversation: &[Message]) -> Result<Vec<u32>, String> {
            let turns = conversation.iter().map(|message| match message.role {
                Role::Assistant if self.forgets => Ok("A…".to_owned()),
                Role::Assistant => Ok(format!("A{}.", message.content)),
                Role::User => Ok(format!("U{}", message.content)),
                Role::System => Err("there is no place for a system message".to_owned()),
            });
            let turns: Vec<String> = turns.collect::<Result<_, String>>()?;
            Ok(Bytes::ids(&format!("{}A", turns.concat())))
        }

        fn text(&self, text: &str) -> Vec<u32> {
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
            unlearnt: Vec::new(),
        }
    }

    /// A sample with what does not count in brackets.
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
        let examples = Examples::of_answers(&[entry(content)], render, 100).unwrap();
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
        let without = |unlearnt: &[usize]| {
            Content::Conversation(Conversation {
                unlearnt: unlearnt.to_vec(),
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
        let pairs = Examples::of_pairs(&[entry(pair.clone())], &PLAIN, 100).unwrap();
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
        let examples = Examples::of_pairs(&entries, &PLAIN, 8).unwrap();
        let cut = |truncated, dropped| (truncated, dropped);
        assert_eq!((examples.truncated, examples.dropped), cut(1, 0));
        assert_eq!(shown(&examples.examples[0].sides[0][0]), "(UhiA)yes ");
        // Nothing is left of any answer.
        let examples = Examples::of_pairs(&entries, &PLAIN, 4).unwrap();
        assert_eq!((examples.truncated, examples.dropped), cut(0, 2));
        assert!(examples.examples.is_empty());
    }

    #[test]
    fn both_views_of_a_lesson_have_the_same_answer_however_long_the_teachers_prompt() {
        let lesson = Lesson {
            student: Bytes::ids("UhiA"),
            teacher: Bytes::ids("be kind UhiA"),
            answer: Bytes::ids("gladly."),
            targets: None,
        };
        let examples = Examples::of_lessons([(place(), lesson)], 7);
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
        for (student, shown_as, learnt) in
            [("UhiA", "(UhiA)gla", "gla"), ("", "(g)ladly.", "ladly.")]
        {
            let lesson = Lesson {
                student: Bytes::ids(student),
                teacher: Bytes::ids("be kind UhiA"),
                answer: Bytes::ids("gladly."),
                targets: Some(targets("gladly.")),
            };
            let examples = Examples::of_lessons([(place(), lesson)], 7);
            let example = &examples.examples[0];
            assert_eq!(example.sides.len(), 1);
            assert_eq!(shown(&example.sides[0][0]), shown_as);
            assert_eq!(example.targets, Some(targets(learnt)));
        }
    }

    #[test]
    fn a_line_of_the_wrong_kind_is_named() {
        let prompt = entry(Content::Prompt(vec![Message::new(Role::User, "hi")]));
        let told = Examples::of_answers(std::slice::from_ref(&prompt), &PLAIN, 9);
        let told = told.unwrap_err().to_string();
        assert_eq!(told, "mine.jsonl:3: there is no answer to learn");
        let told = Examples::of_pairs(&[prompt], &PLAIN, 9).unwrap_err();
        assert!(told.to_string().contains("no 'chosen'"), "{told}");
        let refused = Content::Conversation(Conversation {
            messages: vec![
                Message::new(Role::System, "be kind"),
                Message::new(Role::Assistant, "yes"),
            ],
            from: 0,
            unlearnt: Vec::new(),
        });
        let told = Examples::of_answers(&[entry(refused)], &PLAIN, 9).unwrap_err();
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
}

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
    /// How many pairs are left out because both sides have become the same tokens: what tells
    /// them apart is space around an answer, or stood where they were cut.
    pub same: usize,
}

impl Examples {
    /// Takes an example in, with no sequence longer than `max_length`. The sides of a pair
    /// must differ within that.
    fn take(
        &mut self,
        place: &Place,
        mut sides: Vec<Vec<Sample>>,
        max_length: usize,
        is_pair: bool,
    ) {
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
        if is_pair && sides[0] == sides[1] {
            self.same += 1;
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
            examples.take(place, vec![samples], max_length, false);
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
            let sides = vec![side(chosen)?, side(rejected)?];
            examples.take(place, sides, max_length, true);
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
            examples.take(&place, views.collect(), usize::MAX, false);
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
mod tests;

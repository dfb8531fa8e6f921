//! From conversations in files to tokens, rendered exactly as serving renders them.

use super::data::{Content, Conversation, DataError, Entry, Place};
use super::student::{Sample, Target};
use incant_prompt::profile::Message;

/// A conversation that cannot be rendered, in one line of text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RenderError(pub String);

/// Renders conversations to tokens with the same chat template that serves them.
pub trait Render {
    /// Renders a conversation that ends with the assistant's turn.
    ///
    /// # Errors
    /// The messages are rejected.
    fn render_answer(&self, conversation: &[Message]) -> Result<RenderedAnswer, RenderError>;

    /// Renders a conversation, left open at the assistant's turn.
    ///
    /// # Errors
    /// The messages are rejected.
    fn render_prompt(&self, conversation: &[Message]) -> Result<Vec<u32>, RenderError>;

    /// Tokenizes a text by itself, from beginning to end.
    fn tokenize(&self, text: &str) -> Vec<u32>;
}

/// A prompt and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedAnswer {
    /// The conversation before the answer, left open at it.
    pub prompt: Vec<u32>,
    /// The answer, including the tokens that end it.
    pub answer: Vec<u32>,
}

/// A training example, from one line of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// The line.
    pub place: Place,
    /// The sequences to compare: one side for supervised fine-tuning; chosen and rejected
    /// answer for preferences; the student's and the teacher's view of an answer for
    /// distillation. A side has several sequences if the answers of a conversation cannot be
    /// learnt in one.
    pub sides: Vec<Vec<Sample>>,
    /// The target distribution of each token of the first side that counts, if a teacher
    /// recorded them; then there is no teacher's side.
    pub targets: Option<Vec<Target>>,
}

impl Example {
    /// The number of tokens in the longest sequence.
    pub fn length(&self) -> usize {
        let samples = self.sides.iter().flatten();
        samples.map(|sample| sample.tokens.len()).max().unwrap_or(0)
    }

    /// The number of tokens of a side that count.
    pub fn counted(&self, side: usize) -> usize {
        self.sides[side].iter().map(Sample::counted).sum()
    }
}

/// Examples, and statistics about examples that were changed or left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Examples {
    /// The usable examples.
    pub examples: Vec<Example>,
    /// How many of them were truncated because they were too long.
    pub truncated: usize,
    /// How many were dropped because no token that counts was left.
    pub dropped: usize,
    /// How many pairs were dropped because both sides had become the same tokens: they differed
    /// only in white space around an answer, or beyond the length limit.
    pub same: usize,
}

impl Examples {
    /// Adds an example whose sequences are truncated to `max_length`. The sides of a pair must
    /// differ within that.
    fn push(
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

    /// Examples to learn answers and texts; of a pair, the chosen answer.
    ///
    /// # Errors
    /// A line has no answer, or cannot be rendered.
    pub fn from_answers(
        entries: &[Entry],
        render: &dyn Render,
        max_length: usize,
    ) -> Result<Examples, DataError> {
        let mut examples = Examples::default();
        for Entry { place, content } in entries {
            let samples = match content {
                Content::Text(text) => Ok(vec![sample(&[], &render.tokenize(text))]),
                Content::Conversation(conversation)
                | Content::Pair {
                    chosen: conversation,
                    ..
                } => samples(conversation, render).map_err(|error| refused(place, error)),
                Content::Prompt(_) => Err(refused(place, "there is no answer to learn")),
            };
            let samples = samples?;
            examples.push(place, vec![samples], max_length, false);
        }
        Ok(examples)
    }

    /// Examples to learn preferences: the chosen answer and the rejected one.
    ///
    /// # Errors
    /// A line is not a pair, or cannot be rendered.
    pub fn from_pairs(
        entries: &[Entry],
        render: &dyn Render,
        max_length: usize,
    ) -> Result<Examples, DataError> {
        let mut examples = Examples::default();
        for Entry { place, content } in entries {
            let Content::Pair { chosen, rejected } = content else {
                let what = "there are no 'chosen' and 'rejected' to compare";
                return Err(refused(place, what));
            };
            let side = |side| samples(side, render).map_err(|error| refused(place, error));
            let sides = vec![side(chosen)?, side(rejected)?];
            examples.push(place, sides, max_length, true);
        }
        Ok(examples)
    }

    /// Examples for distillation: the student's view of a teacher's answer, then the teacher's,
    /// unless the answer has targets instead. Only the student's length is limited.
    pub fn from_distillation(
        answers: impl IntoIterator<Item = (Place, DistillationExample)>,
        max_length: usize,
    ) -> Examples {
        let mut examples = Examples::default();
        for (place, mut answer) in answers {
            let max_answer = max_length.saturating_sub(answer.student.len());
            let is_long = answer.answer.len() > max_answer;
            answer.answer.truncate(max_answer);
            let views = match answer.targets {
                Some(_) => vec![&answer.student],
                None => vec![&answer.student, &answer.teacher],
            };
            let views = views.into_iter();
            let views = views.map(|prompt| vec![sample(prompt, &answer.answer)]);
            let before = examples.examples.len();
            examples.push(&place, views.collect(), usize::MAX, false);
            if let Some(example) = examples.examples.get_mut(before) {
                examples.truncated += usize::from(is_long);
                example.targets = answer.targets.map(|mut targets| {
                    targets.truncate(max_answer);
                    // The first token of a sequence does not count, because nothing precedes
                    // it.
                    let skipped = targets.len().saturating_sub(example.counted(0));
                    targets.split_off(skipped)
                });
            }
        }
        examples
    }
}

/// A teacher's answer to a prompt that the teacher sees in another form than the student.
#[derive(Clone, Debug, PartialEq)]
pub struct DistillationExample {
    /// The prompt as the student sees it.
    pub student: Vec<u32>,
    /// The prompt as the teacher sees it.
    pub teacher: Vec<u32>,
    /// The teacher's answer.
    pub answer: Vec<u32>,
    /// The distribution that each token of the answer was sampled from, if it is over few
    /// tokens, as under guidance. `None` stands for the distribution of the model without an
    /// adapter after the teacher's view.
    pub targets: Option<Vec<Target>>,
}

/// The conversation of a line up to the first turn to answer.
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
        Content::Text(_) => Err(refused(&entry.place, "a text has no prompt to answer")),
    }
}

fn refused(place: &Place, what: impl ToString) -> DataError {
    DataError {
        place: place.clone(),
        what: what.to_string(),
    }
}

/// A sequence in which only the tokens of `answer` count.
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

/// The answers of a conversation, in as few sequences as possible: a sequence is continued if
/// the rendering of the next turn begins with it.
fn samples(conversation: &Conversation, render: &dyn Render) -> Result<Vec<Sample>, RenderError> {
    let mut samples: Vec<Sample> = Vec::new();
    let messages = &conversation.messages;
    for at in (conversation.from..messages.len()).filter(|&at| conversation.counts(at)) {
        let RenderedAnswer { prompt, answer } = render.render_answer(&messages[..=at])?;
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

//! Several arms answer the same prompt side by side, and score each other's answers.
//!
//! All answers are generated together. With analysis, each token of an arm's answer is scored by
//! every other arm whose model has the same tokens, after that arm's own rendering of the prompt:
//! sequences that follow the answer as it is generated (teacher forcing, see
//! [`incant_engine::FollowRequest`]). They share the prompts' KV with the answers and run in the
//! same steps.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::choice::{Choice, Entry, Piece, Vocabulary};
use super::guidance::{self, Sequences};
use super::{Arm, EngineFailure, Partners, Prompt};
use incant_compare::{self as analyze, Alternative, ReportArm, Score, Token, Usage};
use incant_engine::{
    self as engine, Client, Event, FinishReason, FollowRequest, GenerateRequest, Generation,
    Scored, SubmitError,
};
use incant_prompt::text::Tokenizer;
use incant_sample::SamplingParams;

/// One arm's side of a comparison.
#[derive(Clone)]
pub struct Side {
    /// The arm that answers.
    pub arm: Arm,
    /// The prompt as the arm renders it.
    pub prompt: Prompt,
    /// The sampling parameters.
    pub sampling: SamplingParams,
    /// The maximum number of tokens of an answer. Prompt and answer must fit the context; with
    /// analysis also the context of every side that scores this one (see [`max_answer_tokens`]).
    pub max_tokens: usize,
    /// Tokens that end an answer.
    pub end_tokens: Arc<[u32]>,
    /// Stop strings, which end an answer.
    pub stop: Vec<String>,
    /// The guide and other arms that shape the answers. Scores are of the arm without them.
    pub partners: Partners,
}

/// Returns the maximum number of tokens of an answer that fits the context of each of these arms,
/// after its own prompt; without any arm there is no limit.
pub fn max_answer_tokens<'a>(sides: impl IntoIterator<Item = (&'a Arm, &'a Prompt)>) -> usize {
    let sides = sides.into_iter();
    let most = sides.map(|(arm, prompt)| arm.max_answer_tokens(prompt));
    most.min().unwrap_or(usize::MAX)
}

/// Returns the position of the default arm to measure shift against: the first with `@turn`, or
/// else the first.
pub fn default_reference(arms: &[Arm]) -> usize {
    let turn = |arm: &Arm| arm.info().profile.as_deref() == Some("turn");
    arms.iter().position(turn).unwrap_or(0)
}

/// One output of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The number of the answer.
    pub answer: usize,
    /// The part of the answer.
    pub part: OutputPart,
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputPart {
    /// More of its text.
    Text(String),
    /// Its next tokens, with all their scores; only with analysis.
    Tokens(Vec<Token>),
    /// It has ended, with this usage. Its last tokens may follow.
    End(FinishReason, Usage),
}

/// A running comparison. Dropping it cancels its answers.
pub struct Comparison {
    answers: Vec<Answer>,
    steps: FuturesUnordered<Step>,
    /// Output that was not returned yet.
    ready: VecDeque<Output>,
}

/// One answer of one side.
struct Answer {
    choice: Choice<Tokenizer>,
    prompt_tokens: usize,
    /// Whether its text is complete.
    has_ended: bool,
    /// Tokens that wait for some of their scores.
    entries: VecDeque<Entry>,
    judges: Vec<Judge>,
}

/// A side that scores an answer.
struct Judge {
    side: usize,
    tokenizer: Arc<Tokenizer>,
    scores: VecDeque<Scored>,
}

/// The sequence that an event belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// An answer.
    Answer(usize),
    /// A judge of an answer, by the numbers of both.
    Judge(usize, usize),
}

type Step = Pin<Box<dyn Future<Output = (Source, Generation, Option<Event>)> + Send>>;

/// Waits for the next event of one sequence, and returns the sequence with it.
fn step(source: Source, mut generation: Generation) -> Step {
    Box::pin(async move {
        let event = generation.next().await;
        (source, generation, event)
    })
}

impl Comparison {
    /// Lets each side answer `answers` times; answer number `index` of side number `side` has the
    /// number `side * answers + index`. With `analysis`, the sides score each other's tokens, with
    /// this number of alternatives. All sequences count as one request of the client.
    ///
    /// # Errors
    /// An engine has no slots for it. Then nothing runs.
    pub fn begin(
        client: Client,
        sides: &[Side],
        answers: usize,
        analysis: Option<usize>,
    ) -> Result<Comparison, SubmitError> {
        let mut comparison = Comparison {
            answers: Vec::with_capacity(sides.len() * answers),
            steps: FuturesUnordered::new(),
            ready: VecDeque::new(),
        };
        let mut sources = Vec::new();
        let mut sequences = Vec::new();
        let mut followers = Vec::new();
        for (number, side) in sides.iter().enumerate() {
            let others = sides.iter().enumerate();
            let judges = others.filter(|(other, judge)| {
                analysis.is_some() && *other != number && side.arm.shares_tokens(&judge.arm)
            });
            let judges: Vec<(usize, &Side)> = judges.collect();
            for index in 0..answers {
                let answer = comparison.answers.len();
                let mut feeds = Vec::new();
                for (place, (_, judge)) in judges.iter().enumerate() {
                    let (feed, follow) = engine::follow_channel();
                    feeds.push(feed);
                    let request = FollowRequest {
                        adapter: judge.arm.adapter(),
                        prefix: judge.prompt.prefix.clone(),
                        prompt: judge.prompt.ids.clone(),
                        top: analysis.unwrap_or(0),
                        follow,
                    };
                    let source = Source::Judge(answer, place);
                    followers.push((source, Sequences::alone(&judge.arm, request)));
                }
                let request = side.request(index, analysis, feeds);
                sources.push(Source::Answer(answer));
                sequences.push(side.partners.sequences(&side.arm, request));
                comparison
                    .answers
                    .push(Answer::new(number, side, &judges, analysis));
            }
        }
        for (source, sequence) in followers {
            sources.push(source);
            sequences.push(sequence);
        }
        let generations = guidance::submit(client, sequences)?;
        let steps = sources.into_iter().zip(generations);
        let steps = steps.map(|(source, generation)| step(source, generation));
        comparison.steps.extend(steps);
        Ok(comparison)
    }

    /// Returns the next output; `None` after the last. `note` sees the events of the answers as
    /// they arrive.
    ///
    /// # Errors
    /// An engine failed, with its message. No more output follows.
    pub async fn next(
        &mut self,
        mut note: impl FnMut(usize, &Event),
    ) -> Option<Result<Output, EngineFailure>> {
        loop {
            if let Some(output) = self.ready.pop_front() {
                return Some(Ok(output));
            }
            let (source, generation, event) = self.steps.next().await?;
            let event = event.unwrap_or_else(|| Event::Failed("the engine stopped".to_owned()));
            if let Source::Answer(answer) = source {
                note(answer, &event);
            }
            match self.process(source, event) {
                Ok(true) => self.steps.push(step(source, generation)),
                // The sequence has served its purpose: dropping it ends it.
                Ok(false) => {}
                Err(why) => return Some(Err(why)),
            }
        }
    }

    /// Returns the usage of answer number `answer` so far.
    pub fn usage(&self, answer: usize) -> Usage {
        self.answers[answer].usage()
    }

    /// Processes one event. Returns whether more events of its source are needed.
    fn process(&mut self, source: Source, event: Event) -> Result<bool, EngineFailure> {
        match source {
            Source::Answer(number) => {
                let answer = &mut self.answers[number];
                if let Some(piece) = answer.choice.advance(event)? {
                    answer.process(number, piece, &mut self.ready);
                }
                Ok(!answer.has_ended)
            }
            Source::Judge(number, judge) => {
                let answer = &mut self.answers[number];
                match event {
                    Event::Scored(scored) => answer.judges[judge].scores.push_back(scored),
                    Event::Failed(why) => return Err(EngineFailure(why)),
                    Event::Finished(_) => return Ok(false),
                    _ => {}
                }
                answer.flush_scored(number, &mut self.ready);
                Ok(!(answer.has_ended && answer.entries.is_empty()))
            }
        }
    }
}

impl Side {
    fn request(
        &self,
        index: usize,
        analysis: Option<usize>,
        feeds: Vec<engine::Feed>,
    ) -> GenerateRequest {
        GenerateRequest {
            adapter: self.arm.adapter(),
            prefix: self.prompt.prefix.clone(),
            prompt: self.prompt.ids.clone(),
            max_tokens: self.max_tokens,
            end_tokens: Arc::clone(&self.end_tokens),
            sampling: self.sampling.clone(),
            index: index as u64,
            logprobs: analysis,
            prompt_logprobs: None,
            feeds,
            together: None,
            isolated: false,
            speculation: None,
            prediction: Vec::new(),
        }
    }
}

impl Answer {
    fn new(
        number: usize,
        side: &Side,
        judges: &[(usize, &Side)],
        analysis: Option<usize>,
    ) -> Answer {
        let choice = Choice::new(
            number,
            Arc::clone(side.arm.tokenizer()),
            Arc::clone(&side.end_tokens),
            &side.stop,
            &side.partners.markers(&side.prompt),
            None,
        );
        let judge = |(side, judge): &(usize, &Side)| Judge {
            side: *side,
            tokenizer: Arc::clone(judge.arm.tokenizer()),
            scores: VecDeque::new(),
        };
        Answer {
            choice: match analysis {
                // The first score is that of the first token.
                Some(_) => choice.keep_trimmed(),
                None => choice,
            },
            prompt_tokens: side.prompt.token_count(),
            has_ended: false,
            entries: VecDeque::new(),
            judges: judges.iter().map(judge).collect(),
        }
    }

    fn process(&mut self, number: usize, piece: Piece, ready: &mut VecDeque<Output>) {
        let mut emit = |part| {
            ready.push_back(Output {
                answer: number,
                part,
            });
        };
        if !piece.text.is_empty() {
            emit(OutputPart::Text(piece.text));
        }
        if let Some(reason) = piece.finish {
            self.has_ended = true;
            emit(OutputPart::End(reason, self.usage()));
        }
        self.entries.extend(piece.entries);
        self.flush_scored(number, ready);
    }

    fn usage(&self) -> Usage {
        let (cached, generated) = (self.choice.cached(), self.choice.generated());
        Usage::new(self.prompt_tokens, cached, generated)
    }

    /// Outputs the tokens that have all their scores.
    fn flush_scored(&mut self, number: usize, ready: &mut VecDeque<Output>) {
        let scored = self.judges.iter().map(|judge| judge.scores.len());
        let whole = scored.chain([self.entries.len()]).min().unwrap_or(0);
        let entries = self.entries.drain(..whole);
        let tokens = entries.map(|entry| {
            let judges = self.judges.iter_mut();
            let scores = judges.filter_map(|judge| {
                let scored = judge.scores.pop_front()?;
                Some(judge.score(scored))
            });
            token(entry, scores.collect())
        });
        let tokens: Vec<Token> = tokens.collect();
        if !tokens.is_empty() {
            ready.push_back(Output {
                answer: number,
                part: OutputPart::Tokens(tokens),
            });
        }
    }
}

/// Converts a token of an answer for the report.
fn token(entry: Entry, scores: Vec<Score>) -> Token {
    let top = entry.top.into_iter();
    let top = top.map(|other| Alternative::new(other.bytes, other.logprob));
    Token::new(
        entry.id,
        entry.bytes,
        // Analysis requests both, and a prompt is never echoed.
        entry.logprob.unwrap_or(f32::NEG_INFINITY),
        entry.rank.unwrap_or(usize::MAX),
        top.collect(),
        scores,
    )
}

impl Judge {
    fn score(&self, scored: Scored) -> Score {
        let shown = |id| self.tokenizer.display_bytes(id).to_vec();
        let top = scored.top.into_iter();
        let top = top.map(|(id, logprob)| Alternative::new(shown(id), logprob));
        Score::new(
            self.side,
            scored.logprob,
            scored.rank,
            scored.divergence,
            top.collect(),
        )
    }
}

/// Collects the answers of a comparison.
#[derive(Debug, Default)]
pub struct Transcript {
    answers: Vec<analyze::Answer>,
}

impl Transcript {
    /// Creates the transcript of a comparison of `sides` with this number of answers each.
    pub fn new(sides: &[Side], answers: usize, analysis: bool) -> Transcript {
        let sides = sides.iter().enumerate();
        let blank = |(arm, side): (usize, &Side)| {
            let prompt = side.prompt.token_count();
            let temperature = side.sampling.temperature;
            let blank = move |index| analyze::Answer {
                arm,
                index,
                temperature,
                text: String::new(),
                finish_reason: incant_api::FinishReason::Length,
                usage: Usage::new(prompt, 0, 0),
                tokens: analysis.then(Vec::new),
            };
            (0..answers).map(blank)
        };
        Transcript {
            answers: sides.flat_map(blank).collect(),
        }
    }

    /// Adds one output.
    pub fn process(&mut self, output: Output) {
        let answer = &mut self.answers[output.answer];
        match output.part {
            OutputPart::Text(text) => answer.text += &text,
            OutputPart::Tokens(tokens) => answer.tokens.get_or_insert_default().extend(tokens),
            OutputPart::End(reason, usage) => {
                answer.finish_reason = finish(reason);
                answer.usage = usage;
            }
        }
    }

    /// Returns the answers, side by side.
    pub fn into_answers(self) -> Vec<analyze::Answer> {
        self.answers
    }
}

/// Converts the engine's finish reason to the API's.
pub fn finish(reason: FinishReason) -> incant_api::FinishReason {
    match reason {
        FinishReason::Stop => incant_api::FinishReason::Stop,
        FinishReason::Length => incant_api::FinishReason::Length,
    }
}

impl Side {
    /// Describes its arm for a report on a conversation or a completion.
    pub fn report_arm(&self, is_chat: bool) -> ReportArm {
        let info = self.arm.info();
        let rendered_by = self.arm.profile_name();
        let rendered_by = rendered_by.filter(|_| is_chat && info.profile.is_none());
        ReportArm {
            rendered_by: rendered_by.map(str::to_owned),
            id: self.arm.full_id(),
            guidance: self.partners.label(),
            model: info.model,
            profile: info.profile,
            adapter: info.adapter,
        }
    }
}

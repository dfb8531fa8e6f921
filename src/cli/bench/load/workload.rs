//! The chat workload: the requests of a round, and their order.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use anyhow::anyhow;
use serde::Serialize;

use super::client::{Answer, Server, Usage};
use super::prompt::{question, salt, shared};
use crate::cli::bench::measure::median;

/// Salts below this number are used to find the prompt's length.
const FIRST_SALT: u64 = 16;

/// The workload of each round, the same for every server.
pub(super) struct Workload {
    /// A random number that makes the run's texts unlike those of any other.
    pub(super) run: u64,
    /// The length of the shared prompt in bytes.
    pub(super) length: usize,
    /// Tokens per answer.
    pub(super) tokens: usize,
    /// Numbers of concurrent clients.
    pub(super) clients: Vec<usize>,
    /// Requests per client, one after another.
    pub(super) requests: usize,
}

/// The phases of a round, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Phase {
    /// One request with a new prompt.
    #[serde(rename = "first")]
    First,
    /// Concurrent clients, with one new prompt.
    #[serde(rename = "together, cold")]
    Cold,
    /// One client, with the last prompt.
    #[serde(rename = "alone")]
    Alone,
    /// Concurrent clients, with that prompt.
    #[serde(rename = "together, warm")]
    Warm,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Phase::First => "first",
            Phase::Cold => "together, cold",
            Phase::Alone => "alone",
            Phase::Warm => "together, warm",
        }
    }
}

/// The measurements of one phase. Times are in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    pub(super) phase: Phase,
    pub(super) clients: usize,
    pub(super) requests: usize,
    /// Tokens of all prompts, if the server reports them.
    pub(super) prompt_tokens: Option<usize>,
    /// Cached tokens of all prompts, if the server reports them.
    pub(super) cached_tokens: Option<usize>,
    /// Tokens of all answers.
    pub(super) answer_tokens: usize,
    /// Tokens that all answers should have.
    pub(super) asked_tokens: usize,
    /// Whether `answer_tokens` is the server's count; else it is the number of events with text.
    pub(super) counted_by_server: bool,
    /// Events with text.
    pub(super) events: usize,
    /// From the first request to the end of the last answer.
    pub(super) seconds: f64,
    /// Of all clients.
    pub(super) tokens_per_second: f64,
    /// Time to first token: from a request to the first text of its answer.
    pub(super) first_median: f64,
    pub(super) first_worst: f64,
    /// Time per token: the median of the answers' means.
    pub(super) per_token: Option<f64>,
    /// Times between events with text, over all answers.
    pub(super) gap_median: Option<f64>,
    pub(super) gap_99th: Option<f64>,
    pub(super) gap_worst: Option<f64>,
}

impl Workload {
    /// Finds the length at which the server counts about `tokens` tokens. For a server that reports
    /// no counts, four bytes per token are assumed.
    pub(super) fn fit(&mut self, server: &Server, tokens: usize) -> anyhow::Result<()> {
        self.length = 4 * tokens;
        for attempt in 0..3 {
            let Some(counted) = self.count(server, attempt)? else {
                return Ok(());
            };
            if counted.abs_diff(tokens) * 50 <= tokens {
                return Ok(());
            }
            self.length = self.length * tokens / counted.max(1);
        }
        Ok(())
    }

    /// Returns the number of tokens of the shared prompt on a server, if it reports it.
    pub(super) fn count(&self, server: &Server, number: u64) -> anyhow::Result<Option<usize>> {
        let text = shared(&salt(self.run, number), self.length);
        let answer = server.client().complete(&text, 1)?;
        Ok(answer.usage.map(|usage| usage.prompt_tokens))
    }

    /// Runs one round on one server, and calls `watch` before each phase. The same round of the
    /// same workload sends the same requests to any server.
    pub(super) fn round(
        &self,
        server: &Server,
        round: usize,
        watch: impl Fn(Phase, usize),
    ) -> anyhow::Result<Vec<Measured>> {
        let salts = FIRST_SALT + round as u64 * (1 + self.clients.len() as u64);
        let mut new_prompts = (salts..).map(|number| shared(&salt(self.run, number), self.length));
        let mut next_prompt = || new_prompts.next().expect("salts do not end");
        let mut questions = 0..;
        let mut texts = |prompt: &str, clients: usize, requests: usize| -> Vec<Vec<String>> {
            let mut one = || prompt.to_owned() + &question(questions.next().unwrap_or_default());
            let mut of_client = || (0..requests).map(|_| one()).collect();
            (0..clients).map(|_| of_client()).collect()
        };
        let run = |phase: Phase, texts: Vec<Vec<String>>| {
            watch(phase, texts.len());
            let answers = together(server, &texts, self.tokens)?;
            Ok::<_, anyhow::Error>(Measured::new(phase, texts.len(), &answers, self.tokens))
        };

        let mut prompt = next_prompt();
        let mut measured = vec![run(Phase::First, texts(&prompt, 1, 1))?];
        for &clients in &self.clients {
            prompt = next_prompt();
            measured.push(run(Phase::Cold, texts(&prompt, clients, 1))?);
        }
        // Not measured: a server may cache only the prompts of completed requests.
        for text in texts(&prompt, 1, 1).concat() {
            server.client().complete(&text, 1)?;
        }
        measured.push(run(Phase::Alone, texts(&prompt, 1, self.requests))?);
        for &clients in &self.clients {
            let texts = texts(&prompt, clients, self.requests);
            measured.push(run(Phase::Warm, texts)?);
        }
        Ok(measured)
    }
}

/// Lets each client send its texts one after another, all clients concurrently.
fn together(server: &Server, texts: &[Vec<String>], tokens: usize) -> anyhow::Result<Vec<Answer>> {
    let start = Barrier::new(texts.len());
    let client = |texts: &[String]| -> anyhow::Result<Vec<Answer>> {
        let client = server.client();
        start.wait();
        texts
            .iter()
            .map(|text| client.complete(text, tokens))
            .collect()
    };
    let client = &client;
    thread::scope(|scope| {
        let threads: Vec<_> = texts
            .iter()
            .map(|texts| scope.spawn(move || client(texts)))
            .collect();
        let mut answers = Vec::new();
        for thread in threads {
            let of_client = thread.join().map_err(|_| anyhow!("a client has died"))?;
            answers.extend(of_client?);
        }
        Ok(answers)
    })
}

impl Measured {
    /// `tokens` were requested for each of `answers`, which are not empty.
    fn new(phase: Phase, clients: usize, answers: &[Answer], tokens: usize) -> Measured {
        let started = answers.iter().map(|answer| answer.started).min();
        let ended = answers.iter().map(|answer| answer.ended).max();
        let seconds = started.zip(ended).map(|(started, ended)| ended - started);
        let seconds = seconds.unwrap_or_default().as_secs_f64();
        let answer_tokens: usize = answers.iter().map(Answer::tokens).sum();
        let usages: Option<Vec<Usage>> = answers.iter().map(|answer| answer.usage).collect();
        let total = |of: fn(&Usage) -> Option<usize>| usages.as_ref()?.iter().map(of).sum();
        let firsts = sorted(answers.iter().map(Answer::first));
        let gaps = sorted(answers.iter().flat_map(Answer::gaps));
        let per_token = sorted(answers.iter().filter_map(Answer::per_token));
        Measured {
            phase,
            clients,
            requests: answers.len(),
            counted_by_server: usages.is_some(),
            prompt_tokens: total(|usage| Some(usage.prompt_tokens)),
            cached_tokens: total(Usage::cached_tokens),
            answer_tokens,
            asked_tokens: answers.len() * tokens,
            events: answers.iter().map(|answer| answer.texts.len()).sum(),
            seconds,
            tokens_per_second: answer_tokens as f64 / seconds,
            first_median: median(firsts.clone()),
            first_worst: quantile(&firsts, 1.0).unwrap_or_default(),
            per_token: (!per_token.is_empty()).then(|| median(per_token)),
            gap_median: (!gaps.is_empty()).then(|| median(gaps.clone())),
            gap_99th: quantile(&gaps, 0.99),
            gap_worst: quantile(&gaps, 1.0),
        }
    }
}

/// Returns the times in milliseconds, shortest first.
fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Returns the smallest value that is not exceeded by at least this share of the sorted values.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), Some(198.0));
        assert_eq!(quantile(&values, 1.0), Some(200.0));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&[3.0], 0.99), Some(3.0));
        assert_eq!(quantile(&[], 0.99), None);
    }

    #[test]
    fn the_median_of_two_is_between_them() {
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn a_phase_lasts_from_the_first_request_to_the_last_end() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let usage = |tokens: usize| {
            let json = serde_json::json!({"prompt_tokens": 100, "completion_tokens": tokens});
            serde_json::from_value(json).expect("it is a usage")
        };
        let early = Answer {
            started: at(0),
            texts: vec![at(100), at(110), at(140)],
            ended: at(150),
            usage: usage(4),
        };
        let late = Answer {
            started: at(50),
            texts: vec![at(250), at(450)],
            ended: at(500),
            usage: usage(6),
        };
        let measured = Measured::new(Phase::Cold, 2, &[early, late], 6);
        assert_eq!(
            (measured.prompt_tokens, measured.cached_tokens),
            (Some(200), None)
        );
        assert_eq!((measured.answer_tokens, measured.asked_tokens), (10, 12));
        assert_eq!(measured.events, 5);
        assert!(measured.counted_by_server);
        let near = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-6, "{value}");
        near(measured.seconds, 0.5);
        near(measured.tokens_per_second, 20.0);
        near(measured.first_median, 150.0);
        near(measured.first_worst, 200.0);
        near(measured.gap_median.expect("gaps"), 30.0);
        near(measured.gap_worst.expect("gaps"), 200.0);
        // 40 ms for three tokens, 200 ms for five.
        let per_token = measured.per_token.expect("several tokens");
        near(per_token, (40.0 / 3.0 + 40.0) / 2.0);
    }
}

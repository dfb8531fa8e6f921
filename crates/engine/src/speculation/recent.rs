//! The recent answers of each client, in which drafts are looked for too.
//!
//! Clients are kept apart, because an answer that comes sooner would tell one client what another
//! was told.

use std::collections::{HashMap, VecDeque};

use super::super::Client;

/// The maximum number of clients whose answers are kept.
const MAX_CLIENTS: usize = 64;

/// The maximum number of tokens that are kept of a client's answers.
const MAX_TOKENS: usize = 4096;

/// The recent answers of clients.
#[derive(Debug, Default)]
pub(crate) struct RecentAnswers {
    of_clients: HashMap<Client, Answers>,
    /// The number of answers so far.
    count: u64,
}

#[derive(Debug, Default)]
struct Answers {
    /// The oldest first.
    texts: VecDeque<Vec<u32>>,
    /// The number of the latest answer.
    latest: u64,
}

impl RecentAnswers {
    /// Adds an answer, with a few tokens before it.
    pub(crate) fn add(&mut self, client: Client, answer: &[u32]) {
        let answer = &answer[..answer.len().min(MAX_TOKENS)];
        self.count += 1;
        let answers = self.of_clients.entry(client).or_default();
        answers.latest = self.count;
        // Answers are often repeated word for word.
        answers.texts.retain(|known| known != answer);
        answers.texts.push_back(answer.to_vec());
        while answers.texts.iter().map(Vec::len).sum::<usize>() > MAX_TOKENS {
            answers.texts.pop_front();
        }
        if self.of_clients.len() > MAX_CLIENTS {
            let by_age = self
                .of_clients
                .iter()
                .min_by_key(|(_, answers)| answers.latest);
            if let Some(oldest) = by_age.map(|(&client, _)| client) {
                self.of_clients.remove(&oldest);
            }
        }
    }

    /// Iterates over the recent answers of a client, the oldest first.
    pub(crate) fn of(&self, client: Client) -> impl Iterator<Item = &[u32]> {
        let answers = self.of_clients.get(&client).into_iter();
        answers.flat_map(|answers| answers.texts.iter().map(Vec::as_slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: usize) -> Client {
        Client::named(&number.to_le_bytes())
    }

    #[test]
    fn the_latest_answers_of_each_client_are_kept() {
        let mut recent = RecentAnswers::default();
        for text in [[1, 2], [3, 4], [1, 2]] {
            recent.add(client(0), &text);
        }
        recent.add(client(1), &[5; 9000]);
        assert_eq!(recent.of(client(0)).collect::<Vec<_>>(), [[3, 4], [1, 2]]);
        assert_eq!(
            recent.of(client(1)).map(<[u32]>::len).sum::<usize>(),
            MAX_TOKENS
        );
        recent.add(client(1), &[6; 10]);
        assert_eq!(recent.of(client(1)).collect::<Vec<_>>(), [[6; 10]]);
        for number in 2..MAX_CLIENTS + 1 {
            recent.add(client(number), &[7]);
        }
        assert_eq!(recent.of(client(0)).count(), 0, "the oldest client");
        assert_eq!(recent.of(client(1)).count(), 1);
    }
}

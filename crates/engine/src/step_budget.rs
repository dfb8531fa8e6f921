//! Divides the rows of a step among the sequences that hold slots.
//!
//! An answer gets its next token in every step (decode). The remaining time of a step goes to
//! prompts (chunked prefill): evenly to the clients with prompts, regardless of the number of
//! their prompts. Half of a client's part goes to its oldest prompt; most of the rest goes to
//! the prompts that need least, so that a short prompt does not wait for a long one.

use std::collections::HashMap;

use super::client::Client;

/// The maximum number of scored rows per step. Each holds a row of logits (64 rows of gemma's
/// 262,144 logits are 64 MiB).
pub(super) const MAX_SCORED_ROWS: usize = 64;

/// The demand of a sequence for rows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) client: Client,
    /// The number of tokens that could be computed.
    pub(super) tokens: usize,
    /// Whether the tokens belong to a growing answer, and not to a prompt.
    pub(super) is_answer: bool,
    /// Whether all their logits are wanted.
    pub(super) is_scored: bool,
}

/// The prompt budget of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Budget {
    /// The number of prompt rows.
    pub(super) rows: usize,
    /// The cost of a scored row, in prompt rows.
    pub(super) scored_row: usize,
}

/// The unused rest of a client's part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    /// Prompt rows, as counted by [`Budget`].
    rows: usize,
    /// Rows of logits.
    scored: usize,
}

impl Part {
    fn half(self) -> Part {
        Part {
            rows: self.rows.div_ceil(2),
            scored: self.scored.div_ceil(2),
        }
    }
}

/// Returns the number of tokens that each of these sequences, oldest first, gets.
pub(super) fn divide_step(demands: &[Demand], budget: Budget) -> Vec<usize> {
    let answers = demands
        .iter()
        .map(|demand| if demand.is_answer { demand.tokens } else { 0 });
    let mut counts: Vec<usize> = answers.collect();
    let logits = |at: usize| {
        if demands[at].is_scored {
            demands[at].tokens
        } else {
            0
        }
    };
    let mut scored: HashMap<Client, usize> = HashMap::new();
    for (mut rows, of_client) in of_clients(demands, MAX_SCORED_ROWS, logits) {
        let client = demands[of_client[0]].client;
        let answers = of_client.into_iter().filter(|&at| demands[at].is_answer);
        let answers: Vec<usize> = answers.collect();
        let wants: Vec<usize> = answers.iter().map(|&at| logits(at)).collect();
        for (at, share) in answers.into_iter().zip(evenly(rows, &wants)) {
            counts[at] = share;
            rows -= share;
        }
        scored.insert(client, rows);
    }
    let cost = |at: usize| {
        if demands[at].is_scored {
            budget.scored_row
        } else {
            1
        }
    };
    let wanted = |at: usize| {
        if demands[at].is_answer {
            0
        } else {
            demands[at].tokens * cost(at)
        }
    };
    for (rows, of_client) in of_clients(demands, budget.rows, wanted) {
        let oldest = of_client[0];
        let scored = scored.get(&demands[oldest].client);
        let mut left = Part {
            rows,
            scored: scored.copied().unwrap_or(0),
        };
        let mut give = |at: usize, part: Part, left: Part| {
            let mut given = (demands[at].tokens - counts[at]).min(part.rows / cost(at));
            let mut scored = left.scored;
            if demands[at].is_scored {
                given = given.min(part.scored);
                scored -= given;
            }
            counts[at] += given;
            Part {
                rows: left.rows.saturating_sub(given * cost(at)),
                scored,
            }
        };
        // At least one row, however small the part, so that the oldest prompt makes progress.
        let mut part = left.half();
        part.rows = part.rows.max(cost(oldest));
        left = give(oldest, part, left);
        let mut shortest = of_client;
        shortest.sort_by_key(|&at| demands[at].tokens);
        // In the first round no prompt takes more than half of the rest, so that every prompt
        // advances.
        for &at in &shortest {
            left = give(at, left.half(), left);
        }
        for &at in &shortest {
            left = give(at, left, left);
        }
    }
    counts
}

/// Divides `total` among clients, according to what each sequence wants; returns the part of
/// each client with the indices of its sequences that want something.
fn of_clients(
    demands: &[Demand],
    total: usize,
    want: impl Fn(usize) -> usize,
) -> Vec<(usize, Vec<usize>)> {
    let mut clients: Vec<(Client, usize, Vec<usize>)> = Vec::new();
    for (at, demand) in demands.iter().enumerate() {
        let wanted = want(at);
        let known = clients.iter_mut();
        let known = { known }.find(|(client, ..)| *client == demand.client);
        match known {
            _ if wanted == 0 => {}
            Some((_, sum, places)) => {
                *sum += wanted;
                places.push(at);
            }
            None => clients.push((demand.client, wanted, vec![at])),
        }
    }
    let wants: Vec<usize> = clients.iter().map(|(_, wanted, _)| *wanted).collect();
    let places = clients.into_iter().map(|(.., places)| places);
    evenly(total, &wants).into_iter().zip(places).collect()
}

/// Divides `total` evenly (max-min fairness): nobody gets more than they want, and the surplus
/// goes to the others.
fn evenly(total: usize, wants: &[usize]) -> Vec<usize> {
    let mut by_want: Vec<usize> = (0..wants.len()).collect();
    by_want.sort_by_key(|&at| wants[at]);
    let mut shares = vec![0; wants.len()];
    let mut left = total;
    for (served, &at) in by_want.iter().enumerate() {
        shares[at] = wants[at].min(left.div_ceil(wants.len() - served));
        left -= shares[at];
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget {
        rows: 96,
        scored_row: 3,
    };

    fn demand(client: &str, tokens: usize) -> Demand {
        Demand {
            client: Client::named(client.as_bytes()),
            tokens,
            is_answer: false,
            is_scored: false,
        }
    }

    fn scored(demand: Demand) -> Demand {
        Demand {
            is_scored: true,
            ..demand
        }
    }

    fn answer(demand: Demand) -> Demand {
        Demand {
            is_answer: true,
            ..demand
        }
    }

    /// The cost of the prompt rows.
    fn cost(demands: &[Demand], counts: &[usize]) -> usize {
        let prompts = demands.iter().zip(counts).filter(|(d, _)| !d.is_answer);
        let cost = prompts.map(|(demand, count)| {
            if demand.is_scored {
                count * BUDGET.scored_row
            } else {
                *count
            }
        });
        cost.sum()
    }

    #[test]
    fn one_clients_prompts_get_on_half_by_age_and_half_by_length() {
        let demands = [demand("a", 1000), demand("a", 500), demand("a", 10)];
        assert_eq!(divide_step(&demands, BUDGET), [58, 28, 10]);
        assert_eq!(divide_step(&demands[..1], BUDGET), [96]);
        assert_eq!(divide_step(&[], BUDGET), [0; 0]);
    }

    #[test]
    fn many_prompts_of_one_client_leave_others_their_part() {
        let mut demands = vec![demand("a", 1000); 20];
        demands.push(demand("b", 200));
        demands.push(demand("c", 5));
        let counts = divide_step(&demands, BUDGET);
        assert_eq!(counts[20..], [46, 5]);
        assert_eq!(cost(&demands, &counts), 96);
    }

    #[test]
    fn answers_grow_in_every_step_whatever_prompts_there_are() {
        let mut demands = vec![demand("a", 1000); 3];
        demands.extend([answer(demand("a", 1)), answer(demand("b", 1))]);
        assert_eq!(divide_step(&demands, BUDGET)[3..], [1, 1]);
    }

    #[test]
    fn scored_rows_count_for_what_they_cost() {
        let alone = vec![scored(demand("a", 1000)); 6];
        let counts = divide_step(&alone, BUDGET);
        assert_eq!(cost(&alone, &counts), 96, "{counts:?}");
        // The prompt of a new client is completed in one step.
        let mut demands = alone;
        demands.push(demand("b", 40));
        let counts = divide_step(&demands, BUDGET);
        assert_eq!(counts[6], 40);
        assert!((90..=96).contains(&cost(&demands, &counts)), "{counts:?}");
        // So is a prompt of the same client.
        demands[6].client = demands[0].client;
        let counts = divide_step(&demands, BUDGET);
        assert!(counts[6] >= 24, "{counts:?}");
    }

    #[test]
    fn there_are_never_more_scored_rows_than_may_be_held() {
        let plenty = Budget {
            rows: 10_000,
            scored_row: 1,
        };
        let mut demands = vec![scored(demand("a", 1000)); 6];
        demands.extend(vec![scored(answer(demand("a", 8))); 3]);
        demands.extend(vec![scored(answer(demand("b", 8))); 20]);
        demands.push(scored(demand("c", 30)));
        let counts = divide_step(&demands, plenty);
        assert_eq!(counts.iter().sum::<usize>(), MAX_SCORED_ROWS);
        // Scored answers take precedence over prompts; no client takes everything.
        assert_eq!(counts[6..9], [7, 7, 7], "{counts:?}");
        assert!(counts[9..29].iter().all(|&count| count <= 2), "{counts:?}");
        assert_eq!(counts[29], 22);
    }

    #[test]
    fn each_client_gets_on_however_short_the_step() {
        let short = Budget {
            rows: 4,
            scored_row: 9,
        };
        let mut demands = Vec::new();
        for client in ["a", "b", "c", "d", "e", "f"] {
            demands.push(scored(demand(client, 100)));
            demands.push(demand(client, 100));
        }
        let counts = divide_step(&demands, short);
        for pair in counts.chunks(2) {
            assert!(pair[0] + pair[1] >= 1, "{counts:?}");
        }
    }
}

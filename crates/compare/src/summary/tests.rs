use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::{FinishReason, Usage};
use incant_sample::Divergence;

/// A score of a token by `arm`: its rank, a probability of 0.5, and the divergences `kl` and
/// twice that.
fn score(arm: usize, rank: usize, kl: f64) -> Score {
    let divergence = Divergence {
        forward: kl,
        reverse: 2.0 * kl,
    };
    Score::new(arm, 0.5f32.ln(), rank, divergence, Vec::new())
}

fn token(id: u32, scores: Vec<Score>) -> Token {
    let bytes = format!(" {id}").into_bytes();
    Token::new(id, bytes, -1.0, 1, Vec::new(), scores)
}

fn answer(arm: usize, temperature: f32, tokens: Vec<Token>) -> Answer {
    Answer {
        arm,
        index: 0,
        temperature,
        text: tokens.iter().map(|token| token.token.as_str()).collect(),
        finish_reason: FinishReason::Stop,
        usage: Usage::new(3, 0, tokens.len()),
        tokens: Some(tokens),
    }
}

fn prompt(answers: Vec<Answer>) -> Prompt {
    Prompt {
        messages: None,
        prompt: Some("p".to_owned()),
        answers,
    }
}

/// Answers of arm 1, one to each prompt: the ranks and divergences of their tokens under arm 0.
fn ranked(answers: &[&[(usize, f64)]]) -> Vec<Prompt> {
    let token = |&(rank, kl): &(usize, f64)| token(rank as u32, vec![score(0, rank, kl)]);
    let answers = answers.iter().map(|tokens| tokens.iter().map(token));
    answers
        .map(|tokens| prompt(vec![answer(1, 0.0, tokens.collect())]))
        .collect()
}

#[track_caller]
fn the_pair(prompts: &[Prompt]) -> Pair {
    let mut summary = summary(2, 0, prompts);
    assert_eq!(summary.pairs.len(), 1, "{summary:?}");
    summary.pairs.remove(0)
}

#[test]
fn shares_and_means_are_over_all_tokens_of_all_prompts() {
    // One prompt of four tokens, one of one: not a mean of means.
    let prompts = ranked(&[&[(1, 0.0), (1, 0.5), (3, 1.0), (4, 1.5)], &[(9, 2.0)]]);
    let pair = the_pair(&prompts);
    assert_eq!((pair.arm, pair.under, pair.tokens), (1, 0, 5));
    let shares = Shares {
        unshifted: 0.4,
        marginal: 0.2,
        shifted: 0.4,
    };
    assert_eq!(pair.shares, shares);
    assert_eq!((pair.kl, pair.kl_reverse), (1.0, 2.0));
    assert_eq!(pair.logprob, f64::from(0.5f32.ln()));
    assert_eq!(pair.own_logprob, -1.0);
}

#[test]
fn a_position_holds_the_tokens_of_all_answers_that_are_long_enough() {
    let pair = the_pair(&ranked(&[&[(1, 0.0), (5, 3.0)], &[(2, 1.0)]]));
    let [first, second] = pair.positions.as_slice() else {
        panic!("{:?}", pair.positions)
    };
    assert_eq!((first.position, first.tokens), (0, 2));
    let shares = first.shares;
    assert_eq!(
        (shares.unshifted, shares.marginal, shares.shifted),
        (0.5, 0.5, 0.0)
    );
    assert_eq!((first.kl, first.kl_reverse), (0.5, 1.0));
    assert!((first.probability - 0.5).abs() < 1e-7);
    assert_eq!((second.position, second.tokens), (1, 1));
    assert_eq!((second.shares.shifted, second.kl), (1.0, 3.0));
}

#[test]
fn the_most_shifted_tokens_are_those_shifted_most_often_then_farthest() {
    let said = |id, rank, kl| token(id, vec![score(0, rank, kl)]);
    let mut trimmed = said(7, 30, 2.0);
    trimmed.token.clear();
    let tokens = vec![
        trimmed,
        said(8, 4, 0.5),
        said(8, 1, 0.0),
        said(9, 5, 1.0),
        said(7, 10, 1.0),
        said(6, 3, 9.0),
        said(5, 5, 1.0),
    ];
    let pair = the_pair(&[prompt(vec![answer(1, 0.0, tokens)])]);
    let found: Vec<_> = pair
        .most_shifted
        .iter()
        .map(|t| (t.id, t.token.as_str(), t.count, t.shifted, t.rank, t.kl))
        .collect();
    // 6 was never shifted; 5 and 9 are equal, and the lower id comes first.
    let expected = [
        (7, " 7", 2, 2, 20.0, 1.5),
        (5, " 5", 1, 1, 5.0, 1.0),
        (9, " 9", 1, 1, 5.0, 1.0),
        (8, " 8", 2, 1, 2.5, 0.25),
    ];
    assert_eq!(found, expected);
}

#[test]
fn at_most_twenty_tokens_are_named() {
    let tokens = (0..30).map(|id| token(id, vec![score(0, 9, f64::from(id))]));
    let pair = the_pair(&[prompt(vec![answer(1, 0.0, tokens.collect())])]);
    let ids: Vec<u32> = pair.most_shifted.iter().map(|token| token.id).collect();
    assert_eq!(ids, (10..30).rev().collect::<Vec<u32>>());
}

#[test]
fn the_third_side_is_what_another_arm_leaves_of_the_shift() {
    // Of three tokens shifted under the reference, one is shifted under arm 1, too; a token
    // shifted under arm 1 alone does not count.
    let said = |reference, by| token(1, vec![score(0, reference, 2.0), score(1, by, 0.5)]);
    let tuned = vec![said(4, 1), said(9, 3), said(5, 4), said(1, 8)];
    let prompts = [prompt(vec![answer(2, 0.0, tuned)])];
    let removed = Removed {
        arm: 2,
        reference: 0,
        by: 1,
        shifted: 3,
        remaining: 1,
        share: Some(1.0 - 1.0 / 3.0),
        kl_share: Some(0.75),
        interval: None,
    };
    assert_eq!(summary(3, 0, &prompts).removed, [removed]);
}

#[test]
fn where_nothing_is_shifted_there_is_no_share_to_remove() {
    let said = token(1, vec![score(0, 1, 0.0), score(1, 1, 0.0)]);
    let prompts = [prompt(vec![answer(2, 0.0, vec![said])])];
    let removed = &summary(3, 0, &prompts).removed[0];
    assert_eq!((removed.share, removed.kl_share), (None, None));
}

#[test]
fn the_third_side_wants_scores_of_both() {
    let said = token(1, vec![score(0, 5, 1.0)]);
    let prompts = [prompt(vec![answer(2, 0.0, vec![said])])];
    assert_eq!(summary(3, 0, &prompts).removed, []);
}

#[test]
fn intervals_are_over_prompts_and_repeat() {
    let half: Vec<&[(usize, f64)]> = [[(1, 0.0), (1, 0.0)].as_slice(), &[(9, 1.0), (9, 1.0)]]
        .into_iter()
        .cycle()
        .take(40)
        .collect();
    let pair = the_pair(&ranked(&half));
    let interval = pair.interval.unwrap();
    assert_eq!(interval.prompts, 40);
    // ±1.96 · 0.5 / √40 = 0.155 around 0.5: if tokens were resampled it would be 0.110.
    let [low, high] = interval.shifted;
    assert!(
        (0.30..0.39).contains(&low) && (0.61..0.70).contains(&high),
        "{low} {high}"
    );
    assert_eq!(interval.shifted, interval.kl);
    assert_eq!(interval.marginal, [0.0, 0.0]);
    assert_eq!(the_pair(&ranked(&half)).interval, Some(interval));
    assert_eq!(the_pair(&ranked(&half[..1])).interval, None);
}

#[test]
fn the_share_that_is_removed_has_an_interval_too() {
    let said = |by| token(1, vec![score(0, 9, 1.0), score(1, by, 0.5)]);
    let prompts: Vec<Prompt> = (0..40)
        .map(|at| prompt(vec![answer(2, 0.0, vec![said(1 + 8 * (at % 2))])]))
        .collect();
    let removed = &summary(3, 0, &prompts).removed[0];
    assert_eq!(removed.share, Some(0.5));
    let [low, high] = removed.interval.unwrap();
    assert!(
        (0.30..0.39).contains(&low) && (0.61..0.70).contains(&high),
        "{low} {high}"
    );
}

#[test]
fn answers_that_were_sampled_do_not_count_where_there_are_others() {
    let said = |rank| vec![token(1, vec![score(0, rank, 0.0)])];
    let prompts = |temperatures: [f32; 2]| {
        let [first, second] = temperatures;
        [prompt(vec![
            answer(1, first, said(9)),
            answer(1, second, said(1)),
        ])]
    };
    assert_eq!(the_pair(&prompts([0.7, 0.0])).shares.shifted, 0.0);
    assert_eq!(the_pair(&prompts([0.7, 1.0])).shares.shifted, 1.0);
}

#[test]
fn without_analysis_there_is_nothing_to_sum_up() {
    let mut plain = answer(1, 0.0, Vec::new());
    plain.tokens = None;
    let summary = summary(2, 0, &[prompt(vec![plain])]);
    assert_eq!((summary.pairs, summary.removed), (Vec::new(), Vec::new()));
}

proptest! {
    #[test]
    fn shares_sum_to_one_and_lie_in_their_intervals(
        answers in vec(vec((1usize..8, 0f64..9.0), 1..20), 2..8),
    ) {
        let answers: Vec<&[(usize, f64)]> = answers.iter().map(Vec::as_slice).collect();
        let pair = the_pair(&ranked(&answers));
        let sum = |shares: Shares| shares.unshifted + shares.marginal + shares.shifted;
        prop_assert!((sum(pair.shares) - 1.0).abs() < 1e-12);
        for position in &pair.positions {
            prop_assert!((sum(position.shares) - 1.0).abs() < 1e-12);
        }
        let interval = pair.interval.unwrap();
        for [low, high] in [interval.unshifted, interval.marginal, interval.shifted] {
            prop_assert!(0.0 <= low && low <= high && high <= 1.0);
        }
    }
}

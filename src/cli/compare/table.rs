//! Formats a comparison's report for the terminal.

use std::collections::HashMap;

use incant::analyze::{FinishReason, Pair, Prompt, Report, ReportArm, SamplingRow, Summary};

use incant::printable::printable;

use crate::cli::output::{Align, grouped, table, visible};

/// The number of most shifted tokens that are shown per arm.
const MAX_SHIFTED_TOKENS: usize = 8;

/// Formats the tables, and the seed if it matters. The answers come first if there is only one
/// prompt, or if there is no table: a single arm has nothing to be compared with.
pub(super) fn show(report: &Report) -> String {
    let names = names(&report.arms);
    let mut tables = Vec::new();
    if let Some(summary) = &report.summary {
        let reference = report.settings.reference;
        tables.extend(shift(summary, reference, &names));
        tables.extend(most_shifted(summary, reference, &names));
        tables.extend(removed(summary, &names[reference], &names));
    }
    tables.extend(sampling(&report.sampling, &names));
    let mut parts = Vec::new();
    if report.prompts.len() == 1 || tables.is_empty() {
        parts.push(answers(report, &names));
    }
    if report.summary.is_some() {
        parts.extend(guided(&report.arms, &names));
    }
    parts.append(&mut tables);
    // Random answers can be repeated.
    if report.settings.temperature.iter().any(|&t| t > 0.0) {
        parts.push(format!("Repeat it with --seed {}\n", report.settings.seed));
    }
    parts.join("\n")
}

/// Returns short names of arms: without the model, if all have the same one; with a number, if an
/// arm is listed twice.
fn names(arms: &[ReportArm]) -> Vec<String> {
    let one_model = arms.windows(2).all(|arms| arms[0].model == arms[1].model);
    let short = |arm: &ReportArm| {
        let rest = arm.id.strip_prefix(&arm.model);
        let rest = rest.filter(|rest| one_model && !rest.is_empty());
        rest.unwrap_or(&arm.id).to_owned()
    };
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let named = arms.iter().map(|arm| {
        let count = seen.entry(&arm.id).or_default();
        *count += 1;
        match count {
            1 => short(arm),
            _ => format!("{} #{count}", short(arm)),
        }
    });
    named.collect()
}

/// Lists the arms whose answers have guidance, since the scores are without it; `None` if there are
/// none.
fn guided(arms: &[ReportArm], names: &[String]) -> Option<String> {
    let lines = names.iter().zip(arms).filter_map(|(name, arm)| {
        let guidance = arm.guidance.as_ref()?;
        Some(if name.contains(guidance.as_str()) {
            format!("  {name}\n")
        } else {
            // The profile's own guidance.
            format!("  {name}: {guidance}\n")
        })
    });
    let lines: String = lines.collect();
    (!lines.is_empty()).then(|| format!("Answers with guidance, arms measured without it\n{lines}"))
}

fn answers(report: &Report, names: &[String]) -> String {
    let settings = &report.settings;
    let mut text = String::new();
    for (number, prompt) in (1..).zip(&report.prompts) {
        if report.prompts.len() > 1 {
            text += &format!("Prompt {number}: {}\n\n", first_line(prompt));
        }
        for answer in &prompt.answers {
            text += &names[answer.arm];
            if settings.temperature.len() > 1 {
                text += &format!(", temperature {}", answer.temperature);
            }
            if settings.n > 1 {
                text += &format!(", answer {}", answer.index + 1);
            }
            text += "\n";
            for line in answer.text.lines() {
                text += format!("  {}", printable(line)).trim_end();
                text += "\n";
            }
            match answer.finish_reason {
                FinishReason::Length => text += "  […]\n",
                FinishReason::Stop if answer.text.is_empty() => text += "  (nothing)\n",
                FinishReason::Stop => {}
            }
            text += "\n";
        }
    }
    // Parts are separated by an empty line.
    text.trim_end().to_owned() + "\n"
}

/// Returns the first line of a prompt's text; of a conversation, that of its last message.
fn first_line(prompt: &Prompt) -> String {
    let messages = prompt.messages.iter().flatten();
    let last = messages.last().map(|message| message.content.as_str());
    let text = last.or(prompt.prompt.as_deref()).unwrap_or_default();
    printable(text.lines().next().unwrap_or_default()).into_owned()
}

/// Formats the shares of tokens by class for all pairs, those under the reference first.
fn shift(summary: &Summary, reference: usize, names: &[String]) -> Option<String> {
    let mut pairs: Vec<&Pair> = summary.pairs.iter().collect();
    pairs.sort_by_key(|pair| pair.under != reference);
    let prompts = pairs.iter().find_map(|pair| Some(pair.interval?.prompts));
    let mut head = vec![
        "answers of",
        "under",
        "tokens",
        "unshifted",
        "marginal",
        "shifted",
    ];
    head.extend(prompts.map(|_| "95%"));
    head.push("KL");
    head.extend(prompts.map(|_| "95%"));
    head.push("KL back");
    let row = |pair: &&Pair| {
        let shares = pair.shares;
        let mut row = vec![
            names[pair.arm].clone(),
            names[pair.under].clone(),
            grouped(pair.tokens as u64),
            percent(shares.unshifted),
            percent(shares.marginal),
            percent(shares.shifted),
        ];
        let interval = |range: Option<String>| prompts.map(|_| range.unwrap_or_default());
        row.extend(interval(pair.interval.map(|i| percents(i.shifted))));
        row.push(format!("{:.3}", pair.kl));
        let nats = |[low, high]: [f64; 2]| format!("{low:.3}–{high:.3}");
        row.extend(interval(pair.interval.map(|i| nats(i.kl))));
        row.push(format!("{:.3}", pair.kl_reverse));
        row
    };
    let title = match prompts {
        Some(prompts) => format!("Shift by token, with 95% intervals over {prompts} prompts"),
        None => "Shift by token".to_owned(),
    };
    section(&title, 2, head, pairs.iter().map(row).collect())
}

/// Formats the most shifted tokens of each arm under the reference.
fn most_shifted(summary: &Summary, reference: usize, names: &[String]) -> Option<String> {
    let under = |pair: &&Pair| pair.under == reference && !pair.most_shifted.is_empty();
    let rows = summary.pairs.iter().filter(under).map(|pair| {
        let tokens = pair
            .most_shifted
            .iter()
            .take(MAX_SHIFTED_TOKENS)
            .map(|token| {
                let shown: String = token.token.chars().flat_map(visible).collect();
                if token.token.is_empty() {
                    // An end token has no text.
                    format!("#{} {}×", token.id, token.shifted)
                } else {
                    format!("‘{shown}’ {}×", token.shifted)
                }
            });
        vec![
            names[pair.arm].clone(),
            tokens.collect::<Vec<_>>().join("  "),
        ]
    });
    let title = format!("Most shifted tokens, under {}", names[reference]);
    section(&title, 2, vec!["answers of", "shifted"], rows.collect())
}

/// Formats the share of the shift from the reference that other arms bring by themselves.
fn removed(summary: &Summary, reference: &str, names: &[String]) -> Option<String> {
    let has_interval = summary.removed.iter().any(|row| row.interval.is_some());
    let mut head = vec![
        "answers of",
        "explained by",
        "shifted",
        "remaining",
        "explained",
    ];
    head.extend(has_interval.then_some("95%"));
    head.push("of the KL");
    let rows = summary.removed.iter().map(|removed| {
        let mut row = vec![
            names[removed.arm].clone(),
            names[removed.by].clone(),
            grouped(removed.shifted as u64),
            grouped(removed.remaining as u64),
            removed.share.map(percent).unwrap_or_default(),
        ];
        let interval = removed.interval.map(percents).unwrap_or_default();
        row.extend(has_interval.then_some(interval));
        row.push(removed.kl_share.map(percent).unwrap_or_default());
        row
    });
    let title = format!("Share of the shift from {reference} that another arm explains");
    section(&title, 2, head, rows.collect())
}

fn sampling(rows: &[SamplingRow], names: &[String]) -> Option<String> {
    let has_logprob = rows.iter().any(|row| row.logprob.is_some());
    let mut head = vec![
        "arm",
        "temperature",
        "answers",
        "distinct",
        "distinct-2",
        "diversity",
        "tokens",
    ];
    head.extend(has_logprob.then_some("log-probability"));
    let rows = rows.iter().map(|row| {
        let mut cells = vec![
            names[row.arm].clone(),
            row.temperature.to_string(),
            row.answers.to_string(),
            format!("{:.2}", row.distinct),
            format!("{:.2}", row.distinct_2),
            format!("{:.2}", row.diversity),
            format!("{:.1}", row.tokens),
        ];
        let logprob = row.logprob.map(|logprob| format!("{logprob:.3}"));
        cells.extend(has_logprob.then(|| logprob.unwrap_or_default()));
        cells
    });
    section("How answers scatter", 1, head, rows.collect())
}

/// Formats a table under a title, with its first `texts` columns left-aligned; `None` without rows.
fn section(title: &str, texts: usize, head: Vec<&str>, rows: Vec<Vec<String>>) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let mut aligns = vec![Align::Right; head.len()];
    aligns[..texts].fill(Align::Left);
    let head = head.into_iter().map(str::to_owned).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    Some(format!("{title}\n{}", table(&aligns, &rows)))
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn percents([low, high]: [f64; 2]) -> String {
    format!("{:.1}–{:.1}%", 100.0 * low, 100.0 * high)
}

#[cfg(test)]
mod tests {
    use incant::analyze::{Answer, Samplers, Score, Settings, Token, Usage};
    use incant::profile::{Message, Role};
    use incant::sample::Divergence;

    use super::*;

    fn arm(rest: &str) -> ReportArm {
        ReportArm {
            id: format!("m{rest}"),
            model: "m".to_owned(),
            profile: None,
            rendered_by: None,
            adapter: None,
            guidance: None,
        }
    }

    /// A token with these ranks under the other two of three arms, and its divergences from them.
    fn token(arm: usize, text: &str, ranks: [usize; 2], kl: [f64; 2]) -> Token {
        let others = (0..3).filter(|&other| other != arm);
        let scores = others.zip(ranks).zip(kl).map(|((other, rank), kl)| {
            let divergence = Divergence {
                forward: kl,
                reverse: kl / 2.0,
            };
            Score::new(other, -1.0, rank, divergence, Vec::new())
        });
        let id = text.len() as u32;
        Token::new(id, text.into(), -0.5, 1, Vec::new(), scores.collect())
    }

    fn answer(
        arm: usize,
        temperature: f32,
        finish_reason: FinishReason,
        tokens: &[Token],
    ) -> Answer {
        Answer {
            arm,
            index: 0,
            temperature,
            text: tokens.iter().map(|token| token.token.as_str()).collect(),
            finish_reason,
            usage: Usage::new(9, 8, tokens.len()),
            tokens: Some(tokens.to_vec()),
        }
    }

    fn prompt(answers: Vec<Answer>) -> Prompt {
        Prompt {
            messages: Some(vec![Message::new(Role::User, "Where?")]),
            prompt: None,
            answers,
        }
    }

    fn report(arms: &[&str], temperature: &[f32], prompts: Vec<Prompt>) -> Report {
        let settings = Settings {
            reference: 0,
            seed: 1,
            temperature: temperature.to_vec(),
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            samplers: Samplers::default(),
            max_tokens: 4,
            n: 1,
            analysis: true,
            top_logprobs: 0,
            command: None,
        };
        let arms = arms.iter().map(|rest| arm(rest)).collect();
        Report::new(1, settings, arms, prompts)
    }

    /// The answers of three arms to a question; the last arm is tuned.
    fn answers() -> Vec<Answer> {
        let sure = token(1, "日本\u{1b}!", [9, 5], [3.0, 1.0]);
        let paris = token(1, "\nParis", [1, 1], [0.25, 0.5]);
        let tuned = token(2, "Tokyo", [4, 1], [1.0, 0.25]);
        vec![
            answer(0, 0.0, FinishReason::Stop, &[]),
            answer(1, 0.0, FinishReason::Length, &[sure, paris]),
            answer(2, 0.0, FinishReason::Stop, &[tuned]),
        ]
    }

    #[test]
    fn one_question_shows_its_answers_and_what_they_come_to() {
        let report = report(
            &["@base", "@urial", "+tuned"],
            &[0.0],
            vec![prompt(answers())],
        );
        insta::assert_snapshot!(show(&report), @r"
        @base
          (nothing)

        @urial
          日本\u{1b}!
          Paris
          […]

        +tuned
          Tokyo

        Shift by token
          answers of  under   tokens  unshifted  marginal  shifted     KL  KL back
          @urial      @base        2      50.0%      0.0%    50.0%  1.625    0.812
          +tuned      @base        1       0.0%      0.0%   100.0%  1.000    0.500
          @urial      +tuned       2      50.0%      0.0%    50.0%  0.750    0.375
          +tuned      @urial       1     100.0%      0.0%     0.0%  0.250    0.125

        Most shifted tokens, under @base
          answers of  shifted
          @urial      ‘日本\u{1b}!’ 1×
          +tuned      ‘Tokyo’ 1×

        Share of the shift from @base that another arm explains
          answers of  explained by  shifted  remaining  explained  of the KL
          @urial      +tuned              1          1       0.0%      53.8%
          +tuned      @urial              1          0     100.0%      75.0%
        ");
    }

    #[test]
    fn guided_arms_are_named_and_said_to_be_measured_without_guidance() {
        let ids = ["@base", "@urial", "@urial guidance=0.5 mix=m@turn*0.25"];
        let mut arms = ids.map(arm);
        assert_eq!(guided(&arms, &names(&arms)), None);
        arms[1].guidance = Some("guidance=1".to_owned());
        arms[2].guidance = Some("guidance=0.5 mix=m@turn*0.25".to_owned());
        insta::assert_snapshot!(guided(&arms, &names(&arms)).unwrap(), @r"
        Answers with guidance, arms measured without it
          @urial: guidance=1
          @urial guidance=0.5 mix=m@turn*0.25
        ");
    }

    #[test]
    fn several_questions_and_temperatures_show_tables_alone() {
        let more = |text, rank| {
            let tokens = [token(1, text, [rank, 1], [0.5, 0.5])];
            [0.0, 0.5].map(|temperature| answer(1, temperature, FinishReason::Stop, &tokens))
        };
        let first = answers().into_iter().chain(more("Paris it is", 1));
        let second = more("I do not know", 2).to_vec();
        let prompts = vec![prompt(first.collect()), prompt(second)];
        let report = report(&["@base", "@urial", "+tuned"], &[0.0, 0.5], prompts);
        insta::assert_snapshot!(show(&report), @r"
        Shift by token, with 95% intervals over 2 prompts
          answers of  under   tokens  unshifted  marginal  shifted        95%     KL          95%  KL back
          @urial      @base        4      50.0%     25.0%    25.0%  0.0–33.3%  1.062  0.500–1.250    0.531
          +tuned      @base        1       0.0%      0.0%   100.0%             1.000                 0.500
          @urial      +tuned       4      75.0%      0.0%    25.0%  0.0–33.3%  0.625  0.500–0.667    0.312
          +tuned      @urial       1     100.0%      0.0%     0.0%             0.250                 0.125

        Most shifted tokens, under @base
          answers of  shifted
          @urial      ‘日本\u{1b}!’ 1×
          +tuned      ‘Tokyo’ 1×

        Share of the shift from @base that another arm explains
          answers of  explained by  shifted  remaining  explained       95%  of the KL
          @urial      +tuned              1          1       0.0%  0.0–0.0%      41.2%
          +tuned      @urial              1          0     100.0%                75.0%

        How answers scatter
          arm     temperature  answers  distinct  distinct-2  diversity  tokens  log-probability
          @base             0        1      1.00        0.00       0.00     0.0
          @urial            0        3      1.00        1.00       0.33     1.3           -0.500
          +tuned            0        1      1.00        0.00       0.00     1.0           -0.500
          @urial          0.5        2      1.00        1.00       0.00     1.0           -0.500

        Repeat it with --seed 1
        ");
    }

    #[test]
    fn several_questions_to_one_arm_show_its_answers() {
        let only = |text| {
            let token = Token::new(1, Vec::from(text), -0.5, 1, Vec::new(), Vec::new());
            prompt(vec![answer(0, 0.0, FinishReason::Stop, &[token])])
        };
        let mut verbatim = only("Rome");
        verbatim.messages = None;
        verbatim.prompt = Some("Where\u{1b}\nare we?".to_owned());
        let report = report(&["@urial"], &[0.0], vec![only("Paris"), verbatim]);
        insta::assert_snapshot!(show(&report), @r"
        Prompt 1: Where?

        @urial
          Paris

        Prompt 2: Where\u{1b}

        @urial
          Rome
        ");
    }

    #[test]
    fn arms_are_named_shortly_but_never_alike() {
        let arms = ["@base", "", "", "@base+a"].map(arm);
        assert_eq!(names(&arms), ["@base", "m", "m #2", "@base+a"]);
        let mut other = arm("@base");
        other.model = "other".to_owned();
        other.id = "other@base".to_owned();
        assert_eq!(names(&[arm("@base"), other]), ["m@base", "other@base"]);
    }
}

//! Formats the outcome of a run.

use std::path::Path;

use incant::train::metrics::Evaluation;
use incant::train::trainer::Outcome;

use crate::cli::output::grouped;

/// Formats the outcome of a run in the folder `out`.
pub(super) fn summary(out: &Path, outcome: &Outcome) -> String {
    let folder = out.display();
    let Outcome { step, steps, .. } = *outcome;
    let count = |steps: usize| grouped(steps as u64);
    let mut text = if step < steps {
        format!(
            "Stopped after {} of {} steps; the same command with --resume continues.\n",
            count(step),
            count(steps)
        )
    } else {
        format!("{} steps.\n", count(steps))
    };
    if let Some((first, last)) = &outcome.evaluations {
        let mut line = |when: &str, what: &str| text += &format!("Held out, {when}: {what}\n");
        let after = |step: usize| match step {
            0 => "before the first step".to_owned(),
            step => format!("after {} steps", count(step)),
        };
        line(&after(first.step), &format_evaluation(first));
        if last.step > first.step {
            line(&after(last.step), &format_evaluation(last));
        }
        if last.step < step {
            line(
                &after(step),
                "not measured (--resume continues and measures)",
            );
        }
    }
    if let Some(report) = &outcome.report {
        for note in &report.notes {
            text += &format!("Note: {note}\n");
        }
    }
    if step == steps {
        text += &format!("The adapter: {folder} (serve it with --adapter NAME={folder})\n");
        text += &format!("How it went: {}\n", out.join("report.html").display());
    }
    text
}

/// Formats an evaluation on held-out examples.
pub(super) fn format_evaluation(evaluation: &Evaluation) -> String {
    let mut text = format!("loss {:.4}", evaluation.loss);
    if let Some(preference) = evaluation.preference {
        let pairs = grouped(preference.pairs as u64);
        if preference.ties == preference.pairs {
            return format!("{text}, neither answer is ahead in any of {pairs} pairs");
        }
        let [low, high] = preference.interval.map(|share| share * 100.0);
        let even = match preference.ties {
            0 => String::new(),
            ties => format!(", {} of them even, which count half", grouped(ties as u64)),
        };
        text += &format!(
            ", the chosen answer is ahead in {:.1}% of {pairs} pairs ({low:.1} to \
             {high:.1}%{even}), mean margin {:.4}",
            preference.accuracy * 100.0,
            preference.mean_margin
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use incant::train::metrics::Preference;

    use super::*;

    fn at(step: usize, loss: f64) -> Evaluation {
        Evaluation {
            step,
            loss,
            preference: None,
        }
    }

    fn summary_after(step: usize, first: Evaluation, last: Evaluation) -> String {
        let outcome = Outcome {
            step,
            steps: 12,
            evaluations: Some((first, last)),
            report: None,
        };
        summary(Path::new("out"), &outcome)
    }

    #[test]
    fn what_was_measured_is_told_with_when() {
        let ended = summary_after(12, at(0, 2.5), at(12, 1.25));
        assert!(ended.contains("Held out, before the first step: loss 2.5000\n"));
        assert!(ended.contains("Held out, after 12 steps: loss 1.2500\n"));
        assert!(!ended.contains("not measured"), "{ended}");
        // Stopped before another evaluation.
        let stopped = summary_after(5, at(0, 2.5), at(0, 2.5));
        assert!(stopped.contains("Stopped after 5 of 12 steps"));
        assert!(
            stopped.contains("Held out, after 5 steps: not measured"),
            "{stopped}"
        );
        assert_eq!(stopped.matches("loss 2.5000").count(), 1, "{stopped}");
        let stopped = summary_after(5, at(0, 2.5), at(4, 2.0));
        assert!(stopped.contains("Held out, after 4 steps: loss 2.0000\n"));
        assert!(stopped.contains("Held out, after 5 steps: not measured"));
        let stopped = summary_after(0, at(0, 2.5), at(0, 2.5));
        assert!(!stopped.contains("not measured"), "{stopped}");
    }

    #[test]
    fn even_pairs_are_named() {
        let with = |ties, accuracy| Evaluation {
            preference: Some(Preference {
                pairs: 4,
                ties,
                accuracy,
                interval: [0.2, 0.9],
                mean_margin: 0.5,
            }),
            ..at(0, 0.7)
        };
        assert_eq!(
            format_evaluation(&with(4, 0.5)),
            "loss 0.7000, neither answer is ahead in any of 4 pairs"
        );
        assert_eq!(
            format_evaluation(&with(1, 0.625)),
            "loss 0.7000, the chosen answer is ahead in 62.5% of 4 pairs (20.0 to 90.0%, 1 of \
             them even, which count half), mean margin 0.5000"
        );
        assert!(!format_evaluation(&with(0, 0.75)).contains("even"));
    }
}

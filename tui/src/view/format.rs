//! Formats numbers. A dash stands for values that the server does not report.

use unicode_width::UnicodeWidthStr;

use crate::app::{Chat, Clock, Now};
use crate::session::Stats;
use crate::wrap;

/// The separator between parts of a line.
const SEPARATOR: &str = " · ";

/// The used part of the context.
pub(super) fn context(chat: &Chat) -> String {
    let usage = chat.usage();
    let used = usage.map(|usage| usage.prompt_tokens + usage.completion_tokens);
    let [used, all] = [used, chat.context()]
        .map(|number| number.map_or("—".to_owned(), |number| number.to_string()));
    format!("context {used} of {all} ")
}

/// An answer's statistics, in a line.
pub(super) fn stats(stats: &Stats, finish: Option<&str>) -> String {
    let usage = stats.usage;
    let first = stats
        .to_first
        .map(|first| format!("{first:.2} s to first token"));
    let speed = speed(stats).map(|speed| format!("{speed} tokens/s"));
    let tokens = match usage {
        Some(usage) => format!("{} tokens", usage.completion_tokens),
        None => "tokens —".to_owned(),
    };
    let cached = usage.and_then(|usage| Some((usage.cached_tokens?, usage.prompt_tokens)));
    let cached = match cached {
        Some((cached, prompt)) => format!("{cached} of {prompt} cached"),
        None => "cached —".to_owned(),
    };
    let mut parts: Vec<String> = [first, speed].into_iter().flatten().collect();
    parts.extend([tokens, cached]);
    parts.extend(ending(finish));
    parts.join(SEPARATOR)
}

/// An answer's statistics for a narrow place. `shown` is the number of visible tokens, if it is
/// known; the server's count includes end tokens.
pub(super) fn short(stats: &Stats, finish: Option<&str>, shown: Option<usize>) -> String {
    let mut parts: Vec<String> = ending(finish).into_iter().collect();
    parts.extend(stats.to_first.map(|first| format!("{first:.2} s")));
    parts.extend(speed(stats).map(|speed| format!("{speed}/s")));
    let counted = stats.usage.map(|usage| usage.completion_tokens);
    let tokens = shown.map(|shown| shown as u64).or(counted);
    parts.extend(tokens.map(|tokens| format!("{tokens} tokens")));
    let cached = stats.usage.and_then(|usage| usage.cached_tokens);
    parts.extend(cached.map(|cached| format!("{cached} cached")));
    parts.join(SEPARATOR)
}

/// The first parts of a line that fit a width, at least one of them.
pub(super) fn fitting(line: &str, width: usize) -> String {
    let mut line = line;
    while line.width() > width
        && let Some((before, _)) = line.rsplit_once(SEPARATOR)
    {
        line = before;
    }
    wrap::shortened(line, width)
}

/// The statistics of a running answer.
pub(super) fn running(clock: &Clock, now: Now) -> String {
    let waited = clock.waited(now.clock).as_secs_f64();
    if clock.is_waiting() {
        format!("waiting {waited:.1} s")
    } else {
        format!(
            "{} · {waited:.1} s so far",
            short(&clock.stats(), None, None)
        )
    }
}

/// The speed; an estimate from the number of chunks is marked as one.
fn speed(stats: &Stats) -> Option<String> {
    let guessed = if stats.usage.is_none() { "~" } else { "" };
    let speed = stats.per_second?;
    Some(format!("{guessed}{speed:.1}"))
}

/// Why an answer ended, unless it came to its own end.
fn ending(finish: Option<&str>) -> Option<String> {
    match finish? {
        "stop" => None,
        "length" => Some("cut at its length".to_owned()),
        other => Some(other.to_owned()),
    }
}

/// A probability in percent, with two decimals.
pub(super) fn probability(logprob: f64) -> String {
    let percent = logprob.exp() * 100.0;
    if percent >= 0.01 {
        format!("{percent:.2}%")
    } else {
        "<0.01%".to_owned()
    }
}

//! Formats the report as text.

use incant::printable::printable;

use super::report::{Entry, Problem, Report, Role, TokenName, TokenizerFacts};
use crate::cli::output::{Align, clip, grouped, size, table};

/// The number of characters of a value that are shown.
const VALUE_WIDTH: usize = 72;

/// The chat template has a section of its own.
const TEMPLATE_KEY: &str = "tokenizer.chat_template";

pub(super) fn text(report: &Report) -> String {
    let mut text = format!(
        "{}: GGUF version {}, {}, {} tensors, {} parameters\nfingerprint {}\n",
        clip(&report.file, 200),
        report.version,
        size(report.size),
        grouped(report.tensors.len() as u64),
        grouped(report.parameters),
        report.fingerprint,
    );
    section(&mut text, "Metadata", metadata(report));
    section(&mut text, "Tensor types", types(report));
    let tokenizer = match &report.tokenizer {
        Ok(facts) => tokenizer(facts),
        Err(Problem { problem }) => format!("  none that works: {}\n", clip(problem, 200)),
    };
    section(&mut text, "Tokenizer", tokenizer);
    let template = match &report.chat_template {
        Some(template) => indented(template),
        None => "  none: a base model\n".to_owned(),
    };
    section(&mut text, "Chat template", template);
    section(&mut text, "Memory by part", parts(report));
    section(&mut text, "The weights at", widths(report));
    text
}

fn section(text: &mut String, title: &str, body: String) {
    text.push('\n');
    text.push_str(title);
    text.push('\n');
    text.push_str(&body);
}

fn metadata(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report
        .metadata
        .iter()
        .map(|entry| {
            vec![
                clip(&entry.key, VALUE_WIDTH),
                entry.kind.clone(),
                value(entry),
            ]
        })
        .collect();
    table(&[Align::Left, Align::Left, Align::Left], &rows)
}

fn value(entry: &Entry) -> String {
    if entry.key == TEMPLATE_KEY && entry.is_string() {
        return "(below)".to_owned();
    }
    match (&entry.value, entry.length) {
        (serde_json::Value::Array(shown), Some(length)) => {
            let mut values: Vec<String> = shown
                .iter()
                .map(|value| clip(&value.to_string(), 24))
                .collect();
            if shown.len() < length {
                values.push(format!("… {} in all", grouped(length as u64)));
            }
            values.join(", ")
        }
        (serde_json::Value::String(value), _) => clip(value, VALUE_WIDTH),
        (value, _) => value.to_string(),
    }
}

fn types(report: &Report) -> String {
    let mut rows = vec![row([
        "type",
        "tensors",
        "elements",
        "size",
        "bits per weight",
    ])];
    for entry in &report.types {
        rows.push(vec![
            entry.kind.to_owned(),
            entry.tensors.to_string(),
            grouped(entry.elements),
            size(entry.bytes),
            format!("{:.2}", entry.bits_per_weight),
        ]);
    }
    use Align::{Left, Right};
    table(&[Left, Right, Right, Right, Right], &rows)
}

fn tokenizer(facts: &TokenizerFacts) -> String {
    let name = |token: &TokenName| format!("{} {}", clip(&token.piece, 40), token.id);
    let token = |token: &Option<TokenName>, added| match token {
        Some(token) if added => format!("{}, added to a prompt", name(token)),
        Some(token) => name(token),
        None => "none".to_owned(),
    };
    let kinds: Vec<String> = facts
        .kinds
        .iter()
        .map(|(kind, count)| format!("{} {kind}", grouped(*count as u64)))
        .collect();
    let ends: Vec<String> = facts.end_tokens.iter().map(name).collect();
    let family = match facts.model {
        "llama" if facts.adds_space_prefix => {
            "llama (SentencePiece-BPE), a space before texts".to_owned()
        }
        "llama" => "llama (SentencePiece-BPE)".to_owned(),
        model => format!(
            "{model} (byte-level BPE), words cut as {}",
            clip(&facts.pre, 40)
        ),
    };
    let rows = [
        row(["family", &family]),
        row([
            "tokens",
            &format!("{}: {}", grouped(facts.vocab_size as u64), kinds.join(", ")),
        ]),
        row(["begin (BOS)", &token(&facts.bos, facts.adds_bos)]),
        row(["end (EOS)", &token(&facts.eos, facts.adds_eos)]),
        row(["end of answer", &ends.join(", ")]),
    ];
    table(&[Align::Left, Align::Left], &rows)
}

/// Indents a text from the file line by line, with its control characters escaped.
fn indented(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines() {
        shown.push_str("  ");
        shown.push_str(&printable(line));
        shown.push('\n');
    }
    shown
}

fn parts(report: &Report) -> String {
    let mut rows = vec![row(["part", "parameters", "size"])];
    for entry in &report.parts {
        let name = match entry.part {
            Role::Embeddings => "embeddings",
            Role::Attention => "attention",
            Role::FeedForward => "feed-forward",
            Role::Norms => "norms",
            Role::LmHead => "head",
            Role::Other => "other",
        };
        rows.push(vec![
            name.to_owned(),
            grouped(entry.elements),
            size(entry.bytes),
        ]);
        let has_head = report.parts.iter().any(|entry| entry.part == Role::LmHead);
        if entry.part == Role::Embeddings && !has_head {
            rows.push(row(["head", "", "is the embeddings"]));
        }
    }
    let mut note = String::new();
    match &report.kv {
        Ok(kv) => {
            rows.push(row([
                "KV per 1,000 tokens, 16 bits",
                "",
                &size(kv.per_1000_tokens),
            ]));
            let full = format!("KV of the full context ({})", grouped(kv.context as u64));
            rows.push(row([&full, "", &size(kv.at_full_context)]));
            if let Some(window) = kv.window {
                note = format!(
                    "  {} of the layers hold no more than the last {} tokens\n",
                    kv.windowed_layers,
                    grouped(window as u64)
                );
            }
        }
        Err(Problem { problem }) => note = format!("  KV unknown: {}\n", clip(problem, 200)),
    }
    table(&[Align::Left, Align::Right, Align::Right], &rows) + &note
}

fn widths(report: &Report) -> String {
    let mut rows = vec![row(["bits", "as", "size", "of this machine's memory"])];
    for width in &report.widths {
        let share = match width.share_of_memory {
            Some(share) if share > 1.0 => format!("{:.0}%: too large", share * 100.0),
            Some(share) => format!("{:.1}%", share * 100.0),
            None => "unknown".to_owned(),
        };
        rows.push(vec![
            width.bits.to_string(),
            width.kind.to_owned(),
            size(width.bytes),
            share,
        ]);
    }
    let memory = match &report.machine {
        Some(memory) => {
            let available = memory.available;
            let available = available.map(|bytes| format!(", {} available now", size(bytes)));
            format!(
                "  {}{}\n",
                size(memory.total),
                available.unwrap_or_default()
            )
        }
        None => String::new(),
    };
    use Align::{Left, Right};
    table(&[Right, Left, Right, Right], &rows) + "\nThis machine\n" + &memory
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).into()
}

//! `incant tokenize`: the tokens of a text, for several models side by side.

use std::io::{IsTerminal, Read};

use anyhow::Context;
use incant::catalog::{self, Located};
use incant::gguf::Gguf;
use incant::text::{Special, TokenKind, Tokenizer};
use serde::Serialize;

use super::output::{self, Align, grouped};

/// Show how a text becomes tokens, for one or more models side by side
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The text (several are joined by spaces); standard input if absent or -
    #[arg(value_name = "TEXT")]
    text: Vec<String>,
    /// A model by name or file, repeatable; without one, the default model
    #[arg(long = "model", short, value_name = "NAME|FILE.gguf")]
    models: Vec<String>,
    /// Read <|im_end|> and the like as text, not as control tokens
    #[arg(long)]
    no_special: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The data of the command's output.
#[derive(Serialize)]
struct Report<'a> {
    text: &'a str,
    characters: usize,
    bytes: usize,
    models: Vec<ModelReport>,
}

/// One model's tokens.
#[derive(Serialize)]
struct ModelReport {
    model: String,
    tokenizer: &'static str,
    pre: String,
    vocab_size: usize,
    /// The token that the model expects before a prompt; not among `tokens`.
    adds_bos: Option<Token>,
    count: usize,
    characters_per_token: f64,
    bytes_per_token: f64,
    tokens: Vec<Token>,
}

#[derive(Serialize)]
struct Token {
    id: u32,
    kind: &'static str,
    /// The piece in the vocabulary.
    piece: String,
    /// The text that it adds; U+FFFD for parts of characters.
    text: String,
    /// The exact bytes of that text.
    bytes: Vec<u8>,
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut models = self.models;
        if models.is_empty() {
            models.push(catalog::default_model().name.clone());
        }
        // A misspelt name must show before standard input is read.
        let models = models
            .iter()
            .map(|model| load(model))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let text = match self.text.as_slice() {
            [] => read_input()?,
            [dash] if dash == "-" => read_input()?,
            parts => parts.join(" "),
        };
        let special = if self.no_special {
            Special::Plain
        } else {
            Special::Parse
        };
        let report = Report {
            text: &text,
            characters: text.chars().count(),
            bytes: text.len(),
            models: models
                .iter()
                .map(|(model, tokenizer)| report(&model.name, tokenizer, &text, special))
                .collect(),
        };
        let shown = if self.json {
            output::json(&report)?
        } else {
            show(&report)
        };
        Ok(output::print(&shown)?)
    }
}

fn load(model: &str) -> anyhow::Result<(Located, Tokenizer)> {
    let located = catalog::locate(model)?;
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&located.path)?)?;
    Ok((located, tokenizer))
}

fn read_input() -> anyhow::Result<String> {
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        eprintln!("Reading the text from standard input; end it with Ctrl-D on a line of its own.");
    }
    let mut text = String::new();
    stdin.read_to_string(&mut text).context("standard input")?;
    Ok(text)
}

fn report(model: &str, tokenizer: &Tokenizer, text: &str, special: Special) -> ModelReport {
    let ids = tokenizer.encode(text, special);
    let count = ids.len();
    let per_token = |amount: usize| amount as f64 / count.max(1) as f64;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    ModelReport {
        model: model.to_owned(),
        tokenizer: tokenizer.kind_name(),
        pre: tokenizer.pre_name().to_owned(),
        vocab_size: tokenizer.vocab_size(),
        adds_bos: bos.map(|id| token(tokenizer, id)),
        count,
        characters_per_token: per_token(text.chars().count()),
        bytes_per_token: per_token(text.len()),
        tokens: ids.into_iter().map(|id| token(tokenizer, id)).collect(),
    }
}

fn token(tokenizer: &Tokenizer, id: u32) -> Token {
    let bytes = tokenizer.token_bytes(id);
    Token {
        id,
        kind: tokenizer.kind(id).name(),
        piece: tokenizer.piece(id).unwrap_or_default().to_owned(),
        text: String::from_utf8_lossy(bytes).into_owned(),
        bytes: bytes.to_vec(),
    }
}

/// Formats the tables for a person: counts first, then the tokens, a column per model.
fn show(report: &Report<'_>) -> String {
    let models = &report.models;
    let mut aligns = vec![Align::Left];
    let mut rows = vec![vec![String::new()]];
    rows.extend(
        [
            "tokens",
            "characters per token",
            "bytes per token",
            "before a prompt",
            "vocabulary",
            "tokenizer",
        ]
        .map(|label| vec![label.to_owned()]),
    );
    for model in models {
        aligns.push(Align::Right);
        let bos = match &model.adds_bos {
            Some(token) => format!("{} {}", format_token(token), token.id),
            None => "-".to_owned(),
        };
        let tokenizer = match model.tokenizer {
            "llama" => "llama".to_owned(),
            kind => format!("{kind}, {}", model.pre),
        };
        let column = [
            output::clip(&model.model, 40),
            grouped(model.count as u64),
            format!("{:.2}", model.characters_per_token),
            format!("{:.2}", model.bytes_per_token),
            bos,
            grouped(model.vocab_size as u64),
            tokenizer,
        ];
        for (row, cell) in rows.iter_mut().zip(column) {
            row.push(cell);
        }
    }
    let mut text = format!(
        "{} characters, {} bytes\n\n",
        grouped(report.characters as u64),
        grouped(report.bytes as u64)
    );
    text.push_str(&output::table(&aligns, &rows));

    let mut aligns = vec![Align::Right];
    let mut head = vec!["#".to_owned()];
    for model in models {
        aligns.extend([Align::Right, Align::Left]);
        head.extend(["id".to_owned(), output::clip(&model.model, 40)]);
    }
    let mut rows = vec![head];
    let most = models.iter().map(|model| model.count).max().unwrap_or(0);
    for at in 0..most {
        let mut row = vec![(at + 1).to_string()];
        for model in models {
            row.extend(match model.tokens.get(at) {
                Some(token) => [token.id.to_string(), format_token(token)],
                None => [String::new(), String::new()],
            });
        }
        rows.push(row);
    }
    text.push('\n');
    text.push_str(&output::table(&aligns, &rows));
    text
}

/// Formats a token: text in quotes, so that spaces show; bytes that are part of a character in
/// hexadecimal; other tokens without quotes.
fn format_token(token: &Token) -> String {
    if token.bytes.is_empty() {
        let piece = output::clip(&token.piece, 60);
        return if token.kind == TokenKind::Control.name() {
            piece
        } else {
            format!("{piece} ({})", token.kind)
        };
    }
    match std::str::from_utf8(&token.bytes) {
        Ok(text) => format!("\"{}\"", output::clip(text, 60)),
        Err(_) => {
            let bytes = token.bytes.iter().map(|byte| format!("{byte:02x}"));
            format!("bytes {}", bytes.collect::<Vec<_>>().join(" "))
        }
    }
}

//! The terminal program against any server, without incant's own:
//! `cargo run -p incant-tui --example connect -- URL FOLDER`.
//! Sessions are kept in the folder; keys are read from `keys.toml` in it.

use std::env;
use std::path::PathBuf;

use incant_tui::{Inbox, Options, ReportPage};

/// Reports are incant's; here they stay JSON.
struct Plain;

impl ReportPage for Plain {
    fn page(&self, report: &str) -> String {
        report.to_owned()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = env::args().skip(1);
    let url = arguments.next().ok_or("which server? give its URL")?;
    let data = PathBuf::from(arguments.next().ok_or("where are sessions kept?")?);
    let options = Options {
        url,
        api_key: env::var("INCANT_API_KEY").ok(),
        arm: None,
        question: arguments.next(),
        keys: data.join("keys.toml"),
        data,
        report: Box::new(Plain),
    };
    Ok(incant_tui::run(options, Inbox::default())?)
}

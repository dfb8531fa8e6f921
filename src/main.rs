//! The `incant` program: one file per command in `cli`.

mod cli;
mod config;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::Cli::typed().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::log::failure(&error);
            ExitCode::FAILURE
        }
    }
}

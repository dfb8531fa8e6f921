//! The `incant` program: one file per command in `cli`.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use incant::printable::is_terminal_control;

fn main() -> ExitCode {
    let cli = match cli::Cli::parse_args() {
        Ok(cli) => cli,
        Err(refusal) => return refused(&refusal),
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::log::failure(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints why the command line is refused, or the requested help. A typed argument may contain the
/// name of a file that a stranger chose, so control characters are escaped.
fn refused(refusal: &clap::Error) -> ExitCode {
    let plain = refusal.render().to_string();
    if plain.contains(is_terminal_control) {
        cli::output::eprint_safe(plain.trim_end())
    } else {
        // Printed with clap's colours. An error means that the reader has closed the pipe.
        _ = refusal.print()
    }
    if refusal.use_stderr() {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}

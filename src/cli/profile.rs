//! `incant profile`: writes and checks profiles, for their authors.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use incant::profile::{Message, Profile, Role, check_file, profile_name_problem};

use super::output;

/// The contents of a new profile's file, with `NAME` for its name.
const TEMPLATE: &str = include_str!("profile/template.jinja");

/// Begin a custom profile, or check profiles for errors
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Write the file of a new profile, with comments that explain each part
    New {
        /// The profile's name in model ids: MODEL@NAME
        name: String,
        /// The folder that is given to `incant serve --profile-dir`
        #[arg(long, value_name = "DIR", default_value = ".")]
        profile_dir: PathBuf,
    },
    /// Report all errors in profiles, and show conversations as they render them
    Check {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

impl Args {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::New { name, profile_dir } => new(&name, profile_dir),
            Action::Check { files } => check(&files),
        }
    }
}

fn new(name: &str, folder: PathBuf) -> anyhow::Result<()> {
    if let Some(problem) = profile_name_problem(name) {
        bail!(problem);
    }
    let path = folder.join(format!("{name}.jinja"));
    let shown = path.display();
    let file = File::create_new(&path);
    let mut file = match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{shown} is there already")
        }
        file => file.with_context(|| format!("cannot write {shown}"))?,
    };
    let written = file.write_all(TEMPLATE.replace("NAME", name).as_bytes());
    if written.is_err() {
        // A partial file would prevent another try.
        _ = fs::remove_file(&path);
    }
    written.with_context(|| format!("cannot write {shown}"))?;
    let folder = folder.display();
    Ok(output::print(&format!(
        "{shown} is written. Edit it, then:\n  \
         incant profile check {shown}\n  \
         incant ask --profile-dir {folder} --arm gemma-3-270m@{name} \"…\"\n  \
         incant serve --profile-dir {folder}\n"
    ))?)
}

fn check(files: &[PathBuf]) -> anyhow::Result<()> {
    let mut broken = 0;
    for path in files {
        match check_file(path) {
            Ok(profile) => output::print(&describe(path.display().to_string(), &profile)?)?,
            Err(problems) => {
                broken += 1;
                for problem in problems {
                    output::eprint_safe(&problem.to_string());
                }
            }
        }
    }
    match broken {
        0 => Ok(()),
        1 if files.len() == 1 => bail!("the profile cannot be served"),
        broken => bail!("{broken} of {} profiles cannot be served", files.len()),
    }
}

/// Formats a profile in a line, and the conversations that it renders.
fn describe(file: String, profile: &Profile) -> anyhow::Result<String> {
    let mut text = format!(
        "{file}: good; @{}, {} ({}), a prefix of {} characters\n",
        profile.name(),
        profile.title(),
        profile.language(),
        profile.prefix().chars().count(),
    );
    let user = |content: &str| Message::new(Role::User, content);
    let samples = [
        ("a question", vec![user("How do I keep bread fresh?")]),
        (
            "a system message and a second question",
            vec![
                Message::new(Role::System, "Answer in one sentence."),
                user("How do I keep bread fresh?"),
                Message::new(Role::Assistant, "Keep it in a bread box."),
                user("And for a week?"),
            ],
        ),
    ];
    for (what, messages) in samples {
        let turns = profile.turns(&messages, &str::to_owned)?;
        text += &format!("\nAfter the prefix, {what}:\n");
        for line in turns.split('\n') {
            text += &format!("  | {}\n", output::clip(line, usize::MAX));
        }
    }
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_profile_is_a_good_one() {
        let source = TEMPLATE.replace("NAME", "own");
        let profile = Profile::parse("own.jinja", &source).unwrap();
        assert_eq!(profile.name(), "own");
        let text = describe("own.jinja".to_owned(), &profile).unwrap();
        assert!(text.contains("  | How do I keep bread fresh?\n"), "{text}");
        assert!(text.contains("  | Answer in one sentence.\n"), "{text}");
        // Comments are for the author, never for the model.
        assert!(!profile.prefix().contains("{#"), "{}", profile.prefix());
    }
}

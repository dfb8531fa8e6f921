//! Sessions on disk: one file of JSON lines each, a head and then its
//! messages. A comparison is one too, of a question and an answer of each arm;
//! what its server said of the tokens stands in a last line, which is read only
//! when the comparison is opened. A file is written beside its name and then
//! renamed, so that one that is there is whole.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sampling::Sampling;
use crate::wire::Usage;

/// Who said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The person at the terminal.
    User,
    /// The arm that answers.
    Assistant,
}

/// How an answer came.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Seconds from the question to the first text.
    pub to_first: Option<f64>,
    /// Tokens in a second after the first.
    pub per_second: Option<f64>,
    /// What the server counted; without it, speed is a count of parts.
    pub usage: Option<Usage>,
}

/// Something that was said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// The text.
    pub content: String,
    /// The arm that said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// The profile that it was said under, where the server says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Why it ended: what the server says, or `stopped` by the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// How it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
}

impl Message {
    /// A question.
    pub fn user(content: impl Into<String>) -> Message {
        Message {
            role: Role::User,
            content: content.into(),
            arm: None,
            profile: None,
            finish: None,
            stats: None,
        }
    }

    /// The beginning of an arm's answer.
    pub fn answer(arm: Option<String>) -> Message {
        Message {
            role: Role::Assistant,
            content: String::new(),
            arm,
            profile: None,
            finish: None,
            stats: None,
        }
    }
}

/// What is known of a session beside its messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The name of its file, without the ending.
    pub id: String,
    /// When it was begun, in seconds since 1970.
    pub created: u64,
    /// Who answers.
    pub arm: Option<String>,
    /// The system message; empty if there is none.
    #[serde(default)]
    pub system: String,
    /// The parameters that are set.
    #[serde(default)]
    pub sampling: Sampling,
    /// How arms were compared; none for a conversation with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare: Option<Comparison>,
}

/// How arms were compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// Who was asked; their answers follow the question in this order.
    pub arms: Vec<String>,
    /// Which of them is the reference.
    pub reference: usize,
    /// What makes the answers come again.
    pub seed: u64,
    /// Whether each arm was asked by itself, as the server compares none.
    pub alone: bool,
}

/// What a server has said of a comparison's tokens, as a report holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// The arms; null where the server compares none.
    pub arms: Value,
    /// The settings; null with them.
    pub settings: Value,
    /// The statistics; null if the comparison was not completed.
    pub summary: Value,
    /// Of each answer.
    pub answers: Vec<Analysed>,
}

/// What a server has said of one answer's tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Analysed {
    /// What the answer took.
    pub usage: Value,
    /// Its tokens, with their scores.
    pub tokens: Vec<Value>,
}

/// A conversation, or a comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Session {
    /// What is known of it.
    pub head: Head,
    /// What was said.
    pub messages: Vec<Message>,
    /// What is known of a comparison's tokens; lists come without it.
    pub analysis: Option<Analysis>,
}

/// What is found in a folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// The sessions, the newest first, without their analysis.
    pub sessions: Vec<Session>,
    /// The names of files that cannot be read, and why. They stay as they are.
    pub broken: Vec<String>,
}

impl Session {
    /// Its first question's first line.
    pub fn title(&self) -> &str {
        let first = self.messages.first();
        let lines = first.and_then(|message| message.content.trim().lines().next());
        lines.unwrap_or("new session")
    }

    /// All of it as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        if !self.head.system.is_empty() {
            text += &format!("**System**\n\n{}\n\n", self.head.system);
        }
        for message in &self.messages {
            let who = match message.role {
                Role::User => "You",
                Role::Assistant => message.arm.as_deref().unwrap_or("Assistant"),
            };
            text += &format!("**{who}**\n\n{}\n\n", message.content.trim_end());
        }
        text
    }
}

/// The folder that sessions are in.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A folder, made when something is first saved.
    pub fn new(path: PathBuf) -> Folder {
        Folder(path)
    }

    /// Saves a session in place of what it was before.
    ///
    /// # Errors
    /// If the disk is full, or the folder cannot be written.
    pub fn save(&self, session: &Session) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        serde_json::to_writer(&mut file, &session.head)?;
        for message in &session.messages {
            file.write_all(b"\n")?;
            serde_json::to_writer(&mut file, message)?;
        }
        if let Some(analysis) = &session.analysis {
            file.write_all(b"\n")?;
            serde_json::to_writer(&mut file, analysis)?;
        }
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(self.file(&session.head.id))?;
        Ok(())
    }

    /// All sessions.
    ///
    /// # Errors
    /// If the folder is there and cannot be read.
    pub fn list(&self) -> io::Result<Listing> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Listing::default());
            }
            Err(error) => return Err(error),
        };
        let mut listing = Listing::default();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        for path in paths.filter(|path| path.extension().is_some_and(|end| end == "jsonl")) {
            match load(&path) {
                Ok((session, _)) => listing.sessions.push(session),
                Err(error) => listing.broken.push(format!("{}: {error}", path.display())),
            }
        }
        listing.sessions.sort_by(|a, b| b.head.id.cmp(&a.head.id));
        listing.broken.sort();
        Ok(listing)
    }

    /// What is known of a saved comparison's tokens.
    ///
    /// # Errors
    /// If there is no such file, or it is not whole.
    pub fn analysis(&self, id: &str) -> io::Result<Analysis> {
        let (_, mut rest) = load(&self.file(id))?;
        match rest.next() {
            Some(line) => Ok(serde_json::from_str(&line?)?),
            None => Ok(Analysis::default()),
        }
    }

    fn file(&self, id: &str) -> PathBuf {
        self.0.join(format!("{id}.jsonl"))
    }
}

type Lines = io::Lines<BufReader<fs::File>>;

/// A session without its analysis, and the lines that come after it.
fn load(path: &Path) -> io::Result<(Session, Lines)> {
    let mut lines = BufReader::new(fs::File::open(path)?).lines();
    let head = lines.next().transpose()?.unwrap_or_default();
    let head: Head = serde_json::from_str(&head)?;
    let comparison = head.compare.as_ref();
    let count = comparison.map_or(usize::MAX, |comparison| 1 + comparison.arms.len());
    let messages = lines.by_ref().take(count);
    let messages = messages.map(|line| Ok(serde_json::from_str(&line?)?));
    let session = Session {
        messages: messages.collect::<io::Result<_>>()?,
        head,
        analysis: None,
    };
    Ok((session, lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: &str, question: &str) -> Session {
        Session {
            head: Head {
                id: id.to_owned(),
                arm: Some("a@urial".into()),
                ..Head::default()
            },
            messages: vec![
                Message::user(question),
                Message::answer(Some("a@urial".into())),
            ],
            analysis: None,
        }
    }

    fn listed(folder: &Folder) -> Vec<Session> {
        folder.list().unwrap().sessions
    }

    #[test]
    fn what_is_saved_is_loaded_the_newest_first() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Folder::new(folder.path().join("not/there/yet"));
        assert_eq!(listed(&sessions), []);
        let older = session("2026-01-01", "日本語\nの質問");
        let newer = session("2026-01-02", "two");
        sessions.save(&newer).unwrap();
        sessions.save(&older).unwrap();
        sessions.save(&older).unwrap();
        assert_eq!(listed(&sessions), [newer, older.clone()]);
        assert_eq!(older.title(), "日本語");
    }

    #[test]
    fn a_broken_file_hides_no_other_and_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Folder::new(folder.path().into());
        let whole = session("2026-01-01", "one");
        sessions.save(&whole).unwrap();
        let broken = folder.path().join("2026-01-02.jsonl");
        fs::write(&broken, "{\"id\"").unwrap();
        let listing = sessions.list().unwrap();
        assert_eq!(listing.sessions, [whole]);
        let [said] = &listing.broken[..] else {
            panic!("{:?}", listing.broken)
        };
        assert!(said.starts_with(broken.to_str().unwrap()), "{said}");
        assert!(said.contains("EOF"), "{said}");
    }

    #[test]
    fn a_comparison_is_listed_with_its_texts_and_opened_with_its_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Folder::new(folder.path().into());
        let mut compared = session("2026-01-01", "one");
        compared.head.compare = Some(Comparison {
            arms: vec!["a@urial".into()],
            ..Comparison::default()
        });
        let analysis = Analysis {
            summary: serde_json::json!({"pairs": []}),
            ..Analysis::default()
        };
        compared.analysis = Some(analysis.clone());
        sessions.save(&compared).unwrap();
        compared.analysis = None;
        assert_eq!(listed(&sessions), [compared]);
        assert_eq!(sessions.analysis("2026-01-01").unwrap(), analysis);
    }

    #[test]
    fn a_saved_session_leaves_no_other_file_behind() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Folder::new(folder.path().into());
        sessions.save(&session("one", "1")).unwrap();
        let names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["one.jsonl"]);
    }
}

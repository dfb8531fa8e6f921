//! Sessions on disk: one file of JSON Lines each, a head and then its messages. A comparison is
//! a session too, with a question and an answer of each arm; its token analysis is on a last
//! line, which is read only when the comparison is opened. Files are written atomically (to a
//! temporary name, then renamed).

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::owner_only;
use crate::sampling::Sampling;
use crate::wire::Usage;

/// The author of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The person at the terminal.
    User,
    /// The arm that answers.
    Assistant,
}

/// Speed and token usage of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Time to first token, in seconds.
    pub to_first: Option<f64>,
    /// Tokens per second after the first.
    pub per_second: Option<f64>,
    /// The server's token counts; without them, the speed is based on the number of chunks.
    pub usage: Option<Usage>,
}

/// A message of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Its author.
    pub role: Role,
    /// The text.
    pub content: String,
    /// The arm that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// The profile that it was generated under, if the server reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The server's finish reason, or `stopped` by the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// Speed and token usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
    /// The other answers to the same question, in the order in which they were generated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Message>,
    /// The index of this one among all of them.
    #[serde(default, skip_serializing_if = "is_first")]
    pub variant: usize,
}

fn is_first(variant: &usize) -> bool {
    *variant == 0
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
            variants: Vec::new(),
            variant: 0,
        }
    }

    /// The beginning of an arm's answer.
    pub fn answer(arm: Option<String>) -> Message {
        Message {
            role: Role::Assistant,
            arm,
            ..Message::user("")
        }
    }

    /// This answer and the others to the same question, in the order in which they were
    /// generated.
    pub fn into_variants(mut self) -> Vec<Message> {
        let mut all = std::mem::take(&mut self.variants);
        let place = std::mem::take(&mut self.variant).min(all.len());
        all.insert(place, self);
        all
    }

    /// Another answer to the same question, with the rest of them as variants. The last one if
    /// `place` is out of range.
    pub fn with_variant(self, place: usize) -> Message {
        let mut variants = self.into_variants();
        let variant = place.min(variants.len() - 1);
        let shown = variants.remove(variant);
        Message {
            variants,
            variant,
            ..shown
        }
    }
}

/// A session's metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// The name of its file, without the extension.
    pub id: String,
    /// The time it was begun, in seconds since 1970.
    pub created: u64,
    /// The arm that answers.
    pub arm: Option<String>,
    /// The title given by the user.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// The system message; empty if there is none.
    #[serde(default)]
    pub system: String,
    /// The parameters that are set.
    #[serde(default)]
    pub sampling: Sampling,
    /// The parameters of a comparison; `None` for a conversation with one arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare: Option<Comparison>,
}

/// The parameters of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The arms; their answers follow the question in this order.
    pub arms: Vec<String>,
    /// The index of the reference arm.
    pub reference: usize,
    /// The seed that reproduces the answers.
    pub seed: u64,
    /// Whether each arm was sent its own request, because the server has no endpoint for
    /// comparisons.
    #[serde(rename = "alone")]
    pub separate_requests: bool,
}

/// A server's analysis of a comparison's tokens, as in a report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// The arms; null if the server has no endpoint for comparisons.
    pub arms: Value,
    /// The settings; null if the arms are.
    pub settings: Value,
    /// The statistics; null if the comparison was not completed.
    pub summary: Value,
    /// The analysis of each answer.
    pub answers: Vec<AnswerAnalysis>,
}

/// A server's analysis of one answer's tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerAnalysis {
    /// The token usage.
    pub usage: Value,
    /// Its tokens, with their scores.
    pub tokens: Vec<Value>,
}

/// A conversation, or a comparison.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Session {
    /// Its metadata.
    pub head: Head,
    /// Its messages.
    pub messages: Vec<Message>,
    /// The analysis of a comparison's tokens; not loaded in lists.
    pub analysis: Option<Analysis>,
}

/// The contents of a folder of sessions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// The sessions, the newest first, without their analysis.
    pub sessions: Vec<Session>,
    /// The names of files that cannot be read, with the errors. The files stay as they are.
    pub broken: Vec<String>,
}

impl Session {
    /// The given title, or else the first line of its first question.
    pub fn title(&self) -> &str {
        if !self.head.title.is_empty() {
            return &self.head.title;
        }
        let first = self.messages.first();
        let lines = first.and_then(|message| message.content.trim().lines().next());
        lines.unwrap_or("new session")
    }

    /// The session as Markdown.
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

/// The folder of sessions.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A folder, which is created when something is first saved.
    pub fn new(path: PathBuf) -> Folder {
        Folder(path)
    }

    /// Saves a session, replacing its earlier version.
    ///
    /// # Errors
    /// The disk is full, or the folder cannot be written.
    pub fn save(&self, session: &Session) -> io::Result<()> {
        owner_only::folder(&self.0)?;
        // A temporary file is readable by its owner alone, and stays so when it is renamed.
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

    /// Gives a saved session a title; an empty one removes it.
    ///
    /// # Errors
    /// There is no such file, or it cannot be written.
    pub fn rename(&self, id: &str, title: &str) -> io::Result<()> {
        let path = self.file(id);
        let text = fs::read_to_string(&path)?;
        let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let head = Head {
            title: title.to_owned(),
            ..serde_json::from_str(head)?
        };
        let mut file = tempfile::NamedTempFile::new_in(&self.0)?;
        serde_json::to_writer(&mut file, &head)?;
        write!(file, "\n{rest}")?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    }

    /// Deletes a saved session.
    ///
    /// # Errors
    /// There is no such session, or the folder cannot be written.
    pub fn delete(&self, id: &str) -> io::Result<()> {
        fs::remove_file(self.file(id))
    }

    /// Lists all sessions.
    ///
    /// # Errors
    /// The folder exists but cannot be read.
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

    /// Loads the analysis of a saved comparison's tokens.
    ///
    /// # Errors
    /// There is no such file, or it is incomplete.
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

    #[cfg(unix)]
    #[test]
    fn a_session_is_its_owners_alone_also_where_it_was_open_to_others() {
        use std::os::unix::fs::PermissionsExt as _;
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("sessions");
        let file = path.join("one.jsonl");
        let sessions = Folder::new(path.clone());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for _ in 0..2 {
            sessions.save(&session("one", "1")).unwrap();
            assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }

    #[test]
    fn a_renamed_session_keeps_all_else_and_a_deleted_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = Folder::new(folder.path().into());
        let mut saved = session("2026-01-01", "one");
        saved.head.compare = Some(Comparison {
            arms: vec!["a@urial".into()],
            ..Comparison::default()
        });
        saved.analysis = Some(Analysis::default());
        sessions.save(&saved).unwrap();
        sessions.rename("2026-01-01", "about 一").unwrap();
        saved.head.title = "about 一".into();
        saved.analysis = None;
        assert_eq!(listed(&sessions), [saved]);
        assert_eq!(
            sessions.analysis("2026-01-01").unwrap(),
            Analysis::default()
        );
        sessions.rename("2026-01-01", "").unwrap();
        assert_eq!(listed(&sessions)[0].title(), "one");
        sessions.delete("2026-01-01").unwrap();
        assert_eq!(listed(&sessions), []);
        assert!(sessions.delete("2026-01-01").is_err());
    }

    #[test]
    fn answers_to_one_question_are_turned_to_in_their_order() {
        let answer = |text: &str| Message {
            content: text.into(),
            ..Message::answer(None)
        };
        let all = Message {
            variants: vec![answer("a"), answer("b")],
            variant: 2,
            ..answer("c")
        };
        let mut shown = all.clone();
        for (place, text) in [(1, "b"), (0, "a"), (2, "c")] {
            shown = shown.with_variant(place);
            assert_eq!((shown.content.as_str(), shown.variant), (text, place));
            let order = shown.clone().into_variants();
            let order: Vec<&str> = order.iter().map(|answer| answer.content.as_str()).collect();
            assert_eq!(order, ["a", "b", "c"]);
        }
        assert_eq!(shown, all);
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

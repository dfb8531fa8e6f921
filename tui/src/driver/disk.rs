//! Disk access, on a thread of its own, so that a slow disk blocks nothing.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use serde_json::Value;

use super::{Events, ReportPage};
use crate::app::{Effect, Event};
use crate::owner_only;
use crate::session::Folder;

/// Maximum number of questions kept in the history.
const MAX_HISTORY: usize = 1000;

/// The disk thread. Dropping it waits until everything is saved.
pub(super) struct Disk {
    jobs: Option<Sender<Effect>>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    /// Starts the thread; also returns the history of questions.
    pub(super) fn start(
        data: PathBuf,
        report: Box<dyn ReportPage>,
        events: Events,
    ) -> io::Result<(Disk, Vec<String>)> {
        let worker = DiskWorker {
            sessions: Folder::new(data.join("sessions")),
            history: data.join("history.jsonl"),
            report,
        };
        let history = read_history(&worker.history);
        let (sender, jobs) = channel();
        let thread = thread::Builder::new()
            .name("disk".into())
            .spawn(move || worker.work(&jobs, &events))?;
        let disk = Disk {
            jobs: Some(sender),
            thread: Some(thread),
        };
        Ok((disk, history))
    }

    pub(super) fn perform(&self, job: Effect) {
        if let Some(jobs) = &self.jobs {
            // The thread lives until this is dropped.
            _ = jobs.send(job);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // If it has panicked, its message was shown.
            _ = thread.join();
        }
    }
}

struct DiskWorker {
    sessions: Folder,
    history: PathBuf,
    report: Box<dyn ReportPage>,
}

impl DiskWorker {
    fn work(&self, jobs: &Receiver<Effect>, events: &Events) {
        for job in jobs {
            let (what, result) = match job {
                Effect::Save(session) => ("the session", self.sessions.save(&session)),
                Effect::Remember(question) => ("the history", self.remember(&question)),
                Effect::Rename { id, title } => ("the title", self.sessions.rename(&id, &title)),
                Effect::Delete { id } => ("the session", self.sessions.delete(&id)),
                Effect::ListSessions => {
                    let list = self.sessions.list();
                    let result = list.map(|list| events.send(Event::Sessions(list)));
                    ("sessions", result)
                }
                Effect::LoadAnalysis { id } => {
                    let read = self.sessions.analysis(&id).map(Box::new);
                    let result = read.map(|analysis| events.send(Event::Analysis { id, analysis }));
                    ("the comparison's tokens", result)
                }
                Effect::Export(report) => {
                    let written = self.export(&report);
                    let result = written.map(|path| events.send(Event::Exported(path)));
                    ("the report", result)
                }
                _ => continue,
            };
            if let Err(error) = result {
                events.send(Event::Error(format!("{what}: {error}")));
            }
        }
    }

    fn remember(&self, question: &str) -> io::Result<()> {
        if let Some(folder) = self.history.parent() {
            owner_only::folder(folder)?;
        }
        let mut file = owner_only::append(&self.history)?;
        writeln!(file, "{}", Value::from(question))
    }

    /// Writes a report to the current folder, without overwriting other files.
    fn export(&self, report: &Value) -> io::Result<PathBuf> {
        let folder = std::env::current_dir()?;
        let page = self.report.page(&report.to_string());
        for number in 1.. {
            let path = folder.join(format!("incant-compare-{number}.html"));
            match owner_only::create_new(&path) {
                Ok(mut file) => {
                    file.write_all(page.as_bytes())?;
                    return Ok(path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// Reads the history of questions; invalid lines are skipped.
fn read_history(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut questions: Vec<String> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    questions.split_off(questions.len().saturating_sub(MAX_HISTORY))
}

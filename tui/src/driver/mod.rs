//! The driver: owns the terminal, the network and the disk, passes events to the state machine
//! and performs its effects. The main thread only waits for the next event, so only an event
//! makes it work.

mod disk;
mod network;
mod screen;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossterm::event::{self, MouseButton, MouseEvent, MouseEventKind};
use ratatui::layout::Position;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::app::{App, Effect, Event, Now, Pointer, Start};
use crate::keymap::{Key, Keymap};
use crate::markdown;
use crate::view::View;
use disk::Disk;
use network::Network;
use screen::Screen;

/// The minimum time between two frames, because text can arrive faster than a screen shows it.
const FRAME: Duration = Duration::from_millis(16);

/// The update interval of the time display while an answer runs.
const TICK: Duration = Duration::from_millis(200);

/// Renders a comparison as an HTML page.
pub trait ReportPage: Send {
    /// The page of a report, which is JSON.
    fn page(&self, report: &str) -> String;
}

/// The options of the program.
pub struct Options {
    /// The server's URL, such as `http://localhost:8080`.
    pub url: String,
    /// The server's API key.
    pub api_key: Option<String>,
    /// The arm that answers; the first of the server's list by default.
    pub arm: Option<String>,
    /// A question to begin with.
    pub question: Option<String>,
    /// The folder of sessions and history.
    pub data: PathBuf,
    /// The file of key bindings, if it exists.
    pub keys: PathBuf,
    /// Renders a comparison as an HTML page.
    pub report: Box<dyn ReportPage>,
}

/// Why the program ended, if not at its user's request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Standard input or output is not a terminal.
    #[error("a terminal is needed: the standard input and output must be one")]
    NoTerminal,
    /// The terminal is gone, or a thread cannot be started.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The reason given to [`Remote::fail`].
    #[error("{0}")]
    Failed(String),
}

enum Message {
    /// An event; the sender of a stream of events continues when the permit is dropped.
    Event(Event, Option<OwnedSemaphorePermit>),
    Fail(String),
}

/// A handle that ends the program from another thread.
#[derive(Clone)]
pub struct Remote(Sender<Message>);

impl Remote {
    /// Ends the program with this error, with the terminal restored.
    pub fn fail(&self, why: String) {
        // If the program has already ended, there is nothing to do.
        _ = self.0.send(Message::Fail(why));
    }
}

/// The channel of messages to the program.
pub struct Inbox {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
}

impl Default for Inbox {
    fn default() -> Self {
        let (sender, receiver) = channel();
        Inbox { sender, receiver }
    }
}

impl Inbox {
    /// A handle that ends the program from elsewhere.
    pub fn remote(&self) -> Remote {
        Remote(self.sender.clone())
    }
}

/// Maximum number of network events that wait to be handled. More would only take memory.
const MAX_QUEUED_EVENTS: usize = 1024;

/// A sender of events.
#[derive(Clone)]
struct Events {
    sender: Sender<Message>,
    turns: Arc<Semaphore>,
}

impl Events {
    fn new(sender: Sender<Message>) -> Events {
        Events {
            sender,
            turns: Arc::new(Semaphore::new(MAX_QUEUED_EVENTS)),
        }
    }

    fn send(&self, event: Event) {
        // After its end the program receives nothing.
        _ = self.sender.send(Message::Event(event, None));
    }

    /// Sends one of a stream of events, after earlier ones have been handled.
    async fn send_in_turn(&self, event: Event) {
        // The semaphore is never closed.
        if let Ok(turn) = Arc::clone(&self.turns).acquire_owned().await {
            _ = self.sender.send(Message::Event(event, Some(turn)));
        }
    }
}

/// Runs the program on this thread until its user quits.
///
/// # Errors
/// There is no terminal, it goes away, or [`Remote::fail`] is called.
pub fn run(options: Options, inbox: Inbox) -> Result<(), Error> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Error::NoTerminal);
    }
    let events = Events::new(inbox.sender);
    let network = Network::start(&options.url, options.api_key, events.clone())?;
    let (disk, history) = Disk::start(options.data, options.report, events.clone())?;
    let (keymap, warning) = read_keymap(&options.keys);
    let start = Start {
        keys: options.keys,
        error: warning,
        arm: options.arm,
        question: options.question,
        history,
    };
    let clock = Instant::now();
    let (app, effects) = App::new(keymap, start, now(clock));
    let screen = Screen::open(&events)?;
    let keys = events.clone();
    thread::Builder::new()
        .name("keys".into())
        .spawn(move || read_keys(&keys))?;
    thread::Builder::new()
        .name("grammars".into())
        .spawn(markdown::warm_up)?;
    let mut driver = Driver {
        app,
        view: View::default(),
        screen,
        network,
        disk,
        clock,
        running: true,
    };
    driver.perform(effects)?;
    driver.work(&inbox.receiver)
}

/// The keys of a file. If the file is invalid, the default keys are used and the user is told.
fn read_keymap(path: &Path) -> (Keymap, Option<String>) {
    match Keymap::read(path) {
        Ok(keymap) => (keymap, None),
        Err(error) => {
            let file = path.display();
            let warning = format!("the default keys are used: {error} ({file})");
            (Keymap::default(), Some(warning))
        }
    }
}

struct Driver {
    app: App,
    view: View,
    screen: Screen,
    network: Network,
    disk: Disk,
    clock: Instant,
    running: bool,
}

impl Driver {
    fn work(&mut self, inbox: &Receiver<Message>) -> Result<(), Error> {
        self.draw()?;
        let mut drawn = Instant::now();
        let mut stale = false;
        while self.running {
            let message = match (stale, self.app.is_busy()) {
                (true, _) => inbox.recv_timeout(FRAME.saturating_sub(drawn.elapsed())),
                (false, true) => inbox.recv_timeout(TICK),
                (false, false) => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(message) => {
                    self.take(message)?;
                    stale = true;
                }
                Err(RecvTimeoutError::Timeout) if !stale => {
                    self.take(Message::Event(Event::Redraw, None))?;
                    stale = true;
                }
                Err(_) => {}
            }
            if stale && drawn.elapsed() >= FRAME {
                self.take_all(inbox)?;
                if self.running {
                    self.draw()?;
                }
                drawn = Instant::now();
                stale = false;
            }
        }
        Ok(())
    }

    /// Handles the messages that have arrived in the meantime, so that one frame shows them;
    /// bounded, because a fast server keeps sending.
    fn take_all(&mut self, inbox: &Receiver<Message>) -> Result<(), Error> {
        for message in inbox.try_iter().take(MAX_QUEUED_EVENTS) {
            self.take(message)?;
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), Error> {
        match message {
            Message::Fail(why) => Err(Error::Failed(why)),
            Message::Event(event, turn) => {
                if let Event::Ended { request, .. } = &event {
                    self.network.forget(*request);
                }
                let effects = self.app.handle(event, now(self.clock));
                drop(turn);
                self.perform(effects)
            }
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Result<(), Error> {
        for effect in effects {
            match effect {
                Effect::Quit => self.running = false,
                Effect::Mouse(taken) => self.screen.capture_mouse(taken)?,
                Effect::Copy(text) => self.screen.copy(&text)?,
                Effect::Save(_)
                | Effect::Remember(_)
                | Effect::ListSessions
                | Effect::Rename { .. }
                | Effect::Delete { .. }
                | Effect::LoadAnalysis { .. }
                | Effect::Export(_) => self.disk.perform(effect),
                Effect::FetchArms { .. }
                | Effect::FetchContext { .. }
                | Effect::Chat { .. }
                | Effect::Compare { .. }
                | Effect::Stop { .. } => self.network.perform(effect),
            }
        }
        Ok(())
    }

    fn draw(&mut self) -> Result<(), Error> {
        let measures = self.screen.draw(&mut self.view, &self.app)?;
        let effects = self.app.handle(Event::Measured(measures), now(self.clock));
        self.perform(effects)
    }
}

fn now(clock: Instant) -> Now {
    Now {
        clock: clock.elapsed(),
        unix: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
    }
}

/// Reads the terminal until it is gone.
fn read_keys(events: &Events) {
    loop {
        events.send(match event::read() {
            Ok(event::Event::Key(key)) if key.is_release() => continue,
            Ok(event::Event::Key(key)) => Event::Key(Key::from(key)),
            Ok(event::Event::Paste(text)) => Event::Paste(text),
            Ok(event::Event::Resize(..)) => Event::Redraw,
            Ok(event::Event::Mouse(mouse)) => match pointer(mouse) {
                Some(event) => event,
                None => continue,
            },
            Ok(_) => continue,
            Err(_) => {
                events.send(Event::Terminate);
                return;
            }
        });
    }
}

/// Converts a mouse event, if the program has a use for it.
fn pointer(mouse: MouseEvent) -> Option<Event> {
    let what = match mouse.kind {
        MouseEventKind::Down(MouseButton::Left) => Pointer::Click,
        MouseEventKind::ScrollUp => Pointer::WheelUp,
        MouseEventKind::ScrollDown => Pointer::WheelDown,
        _ => return None,
    };
    let at = Position::new(mouse.column, mouse.row);
    Some(Event::Mouse { what, at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keymap::Action;

    #[test]
    fn a_broken_file_of_keys_is_told_with_its_name_and_leaves_the_default_ones() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        assert_eq!(read_keymap(&file).1, None);
        std::fs::write(&file, "[keys]\nquit = \"f5\"\nfly = \"ctrl-x\"\n").unwrap();
        let (keymap, warning) = read_keymap(&file);
        assert_eq!(keymap.keys(Action::Quit), ["Ctrl+Q"]);
        let warning = warning.expect("it is broken");
        assert!(warning.contains("no action `fly`"), "{warning}");
        assert!(warning.contains(&file.display().to_string()), "{warning}");
    }
}

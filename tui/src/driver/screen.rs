//! The terminal while the program uses it, and its restoration.

use std::io::{self, BufWriter, Stdout, Write};
use std::panic;
use std::sync::Arc;
use std::thread;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use crossterm::cursor::Show;
use crossterm::event::{
    DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture,
};
use crossterm::terminal::{
    BeginSynchronizedUpdate, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;

use super::Events;
use crate::app::{App, Event, Measures};
use crate::view::View;

type Hook = dyn Fn(&panic::PanicHookInfo<'_>) + Send + Sync;

/// The terminal, until this is dropped.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    before: Arc<Hook>,
}

impl Screen {
    /// Takes the terminal. It is also restored if this thread panics; panic messages of other
    /// threads go to `events`, not over the screen.
    pub(super) fn open(events: &Events) -> io::Result<Screen> {
        let before: Arc<Hook> = panic::take_hook().into();
        let (hook, events, own) = (Arc::clone(&before), events.clone(), thread::current().id());
        panic::set_hook(Box::new(move |info| {
            if thread::current().id() == own {
                restore();
                hook(info);
            } else {
                events.send(Event::Error(info.to_string()));
            }
        }));
        let take = || {
            enable_raw_mode()?;
            execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste)?;
            Terminal::new(CrosstermBackend::new(BufWriter::new(io::stdout())))
        };
        match take() {
            Ok(terminal) => Ok(Screen { terminal, before }),
            Err(error) => {
                restore();
                restore_panic_hook(before);
                Err(error)
            }
        }
    }

    /// Draws the state; returns measures that the state needs.
    pub(super) fn draw(&mut self, view: &mut View, app: &App) -> io::Result<Measures> {
        let mut measures = Measures::default();
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        self.terminal
            .draw(|frame| measures = view.draw(app, frame))?;
        execute!(self.terminal.backend_mut(), EndSynchronizedUpdate)?;
        Ok(measures)
    }

    /// Captures the mouse, or leaves it to the terminal.
    pub(super) fn capture_mouse(&mut self, taken: bool) -> io::Result<()> {
        if taken {
            execute!(self.terminal.backend_mut(), EnableMouseCapture)
        } else {
            execute!(self.terminal.backend_mut(), DisableMouseCapture)
        }
    }

    /// Copies to the terminal's clipboard, also over SSH (OSC 52).
    pub(super) fn copy(&mut self, text: &str) -> io::Result<()> {
        let out = self.terminal.backend_mut();
        write!(out, "\x1b]52;c;{}\x07", BASE64_STANDARD.encode(text))?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if !thread::panicking() {
            restore();
            restore_panic_hook(Arc::clone(&self.before));
        }
    }
}

fn restore_panic_hook(hook: Arc<Hook>) {
    panic::set_hook(Box::new(move |info| hook(info)));
}

/// Restores the terminal. Errors are ignored, because nothing could be done about them.
fn restore() {
    _ = disable_raw_mode();
    _ = execute!(
        io::stdout(),
        DisableMouseCapture,
        DisableBracketedPaste,
        LeaveAlternateScreen,
        Show
    );
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::Read as _;
    use std::sync::mpsc::channel;

    use portable_pty::{CommandBuilder, PtySize, native_pty_system};

    use super::*;

    /// Set when this test runs itself in a terminal.
    const IN_TERMINAL: &str = "TUI_PANICS_IN_TERMINAL";

    #[test]
    fn a_panic_restores_the_terminal_and_is_told_there() {
        if env::var_os(IN_TERMINAL).is_some() {
            let (sender, _receiver) = channel();
            let mut screen = Screen::open(&Events::new(sender)).unwrap();
            screen.capture_mouse(true).unwrap();
            panic!("on purpose");
        }
        let pair = native_pty_system().openpty(PtySize::default()).unwrap();
        let before = pair.master.get_termios().unwrap();
        let mut command = CommandBuilder::new(env::current_exe().unwrap());
        let test = "driver::screen::tests::a_panic_restores_the_terminal_and_is_told_there";
        command.args(["--exact", test, "--nocapture"]);
        command.env(IN_TERMINAL, "1");
        command.env("RUST_BACKTRACE", "0");
        let mut child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let mut output = pair.master.try_clone_reader().unwrap();
        let mut shown = Vec::new();
        // At its end the terminal is closed, which reads as an error.
        _ = output.read_to_end(&mut shown);
        assert!(!child.wait().unwrap().success());
        let after = pair.master.get_termios().unwrap();
        assert_eq!(after.local_flags, before.local_flags);
        let mut parser = vt100::Parser::default();
        parser.process(&shown);
        let screen = parser.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor());
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
        assert!(
            screen.contents().contains("on purpose"),
            "{}",
            screen.contents()
        );
    }
}

//! A pseudo-terminal that runs the program, and the contents of its screen.

use std::io::{Read as _, Write};
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// The timeout for something to appear on the screen; models are slow in tests.
const PATIENCE: Duration = Duration::from_secs(180);

/// The last copied text, as the program sends it.
#[derive(Default)]
struct Clipboard(Vec<u8>);

impl vt100::Callbacks for Clipboard {
    fn copy_to_clipboard(&mut self, _: &mut vt100::Screen, _kind: &[u8], data: &[u8]) {
        self.0 = data.to_vec();
    }
}

/// `incant chat` in a terminal of its own.
pub(crate) struct Terminal {
    master: Box<dyn MasterPty + Send>,
    child: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    parser: Arc<Mutex<vt100::Parser<Clipboard>>>,
    /// Reads the output of the program to its end.
    reader: Option<JoinHandle<()>>,
    /// The terminal settings before the program changed them.
    before: String,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The program may have exited by itself; another assertion checks that.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Terminal {
    /// Starts the program, which stores its files in `home`.
    pub(crate) fn start(home: &Path, args: &[&str]) -> Terminal {
        let pair = native_pty_system()
            .openpty(size(110, 32))
            .expect("the system has terminals");
        let mut command = CommandBuilder::new(assert_cmd::cargo::cargo_bin!("incant"));
        command.arg("chat");
        command.args(args);
        command.cwd(home);
        command.env("HOME", home);
        command.env("TERM", "xterm-256color");
        for (name, folder) in [("XDG_DATA_HOME", "data"), ("XDG_CONFIG_HOME", "config")] {
            command.env(name, home.join(folder));
        }
        command.env_remove("INCANT_API_KEY");
        let before = settings(&*pair.master);
        let child = pair.slave.spawn_command(command).expect("incant starts");
        drop(pair.slave);
        let keys = pair.master.take_writer().expect("nobody has it");
        let mut output = pair.master.try_clone_reader().expect("it is open");
        let (rows, columns) = (cells(32), cells(110));
        let parser = vt100::Parser::new_with_callbacks(rows, columns, 0, Clipboard::default());
        let parser = Arc::new(Mutex::new(parser));
        let shown = Arc::clone(&parser);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            // At the end the terminal is closed, which reads as an error.
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                shown
                    .lock()
                    .expect("no reader panics")
                    .process(&buffer[..length]);
            }
        });
        Terminal {
            master: pair.master,
            child,
            keys,
            parser,
            reader: Some(reader),
            before,
        }
    }

    /// Presses keys, given as the bytes that a terminal sends for them.
    pub(crate) fn press(&mut self, keys: &str) {
        self.keys
            .write_all(keys.as_bytes())
            .and_then(|()| self.keys.flush())
            .expect("the program reads its keys");
    }

    /// Returns the contents of the screen.
    pub(crate) fn screen(&self) -> String {
        let parser = self.parser.lock().expect("no reader panics");
        parser.screen().contents()
    }

    /// Returns the last copied text, in base64.
    pub(crate) fn copied(&self) -> Vec<u8> {
        let parser = self.parser.lock().expect("no reader panics");
        parser.callbacks().0.clone()
    }

    /// Waits until the screen shows a text.
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |screen| screen.contains(text));
    }

    /// Waits until the screen fulfils a condition.
    pub(crate) fn wait_until(&mut self, what: &str, done: impl Fn(&str) -> bool) {
        let began = Instant::now();
        while !done(&self.screen()) {
            let ended = self.child.try_wait().expect("it is a child");
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "{what}: not on the screen ({ended:?}):\n{}",
                self.screen()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Resizes the terminal.
    pub(crate) fn resize(&mut self, width: u16, height: u16) {
        let mut parser = self.parser.lock().expect("no reader panics");
        parser.screen_mut().set_size(cells(height), cells(width));
        drop(parser);
        self.master.resize(size(width, height)).expect("it is open");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.process_id().expect("it runs")
    }

    /// Waits for the program to exit and returns the exit code. The terminal settings must have
    /// been restored.
    pub(crate) fn ended(&mut self) -> u32 {
        let began = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("it is a child") {
                Some(status) => break status,
                None => assert!(began.elapsed() < PATIENCE, "it goes on:\n{}", self.screen()),
            }
            thread::sleep(Duration::from_millis(20));
        };
        // The last output may still be on its way.
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no reader panics");
        }
        assert_eq!(settings(&*self.master), self.before, "the line's settings");
        let parser = self.parser.lock().expect("no reader panics");
        let screen = parser.screen();
        assert!(!screen.alternate_screen(), "the alternate screen");
        assert!(!screen.hide_cursor(), "the cursor");
        assert!(!screen.bracketed_paste(), "bracketed paste");
        assert_eq!(screen.mouse_protocol_mode(), vt100::MouseProtocolMode::None);
        status.exit_code()
    }
}

fn cells(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("it is not 0")
}

fn size(width: u16, height: u16) -> PtySize {
    PtySize {
        rows: height,
        cols: width,
        pixel_width: 0,
        pixel_height: 0,
    }
}

/// The local settings of the terminal, such as whether it echoes and how it handles Ctrl-C.
fn settings(master: &dyn MasterPty) -> String {
    let settings = master.get_termios().expect("it is a terminal");
    format!("{:?}", settings.local_flags)
}

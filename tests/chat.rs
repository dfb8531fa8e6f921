//! `incant chat`: the program itself, in a terminal.

mod stub;
mod terminal;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use stub::Answer;
use terminal::Terminal;

use crate::support::model;

const ENTER: &str = "\r";
const ESCAPE: &str = "\x1b";
const DOWN: &str = "\x1b[B";
const TAB: &str = "\t";
const F2: &str = "\x1bOQ";
const F3: &str = "\x1bOR";
const F4: &str = "\x1bOS";
const F10: &str = "\x1b[21~";
const COPY: &str = "\x19";
const QUIT: &str = "\x11";

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("the disk is not full")
}

/// Returns the files below a folder whose names end with `ending`.
fn files(folder: &Path, ending: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.expect("it is readable").file_name());
    names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.ends_with(ending))
        .collect()
}

#[test]
fn a_model_answers_is_compared_and_leaves_the_terminal_as_it_was() {
    let home = home();
    let path = model("smollm2-135m-instruct");
    let path = path.to_str().expect("its path is UTF-8");
    let mut terminal = Terminal::start(
        home.path(),
        &["--device", "cpu", "--no-prefix-cache", "--model", path],
    );
    terminal.wait_for("arms are served");
    // Limit the length of the answers.
    terminal.press(F4);
    terminal.wait_for("the server's default");
    terminal.press(&DOWN.repeat(4));
    terminal.press("12");
    terminal.press(ESCAPE);
    terminal.wait_for("max_tokens 12");

    terminal.press("What is the capital of France?");
    terminal.press(ENTER);
    terminal.wait_for("to first token");
    terminal.wait_for(" cached");
    assert!(
        terminal.screen().contains("of 8192"),
        "{}",
        terminal.screen()
    );
    let sessions = home.path().join("data/incant/sessions");
    assert_eq!(files(&sessions, ".jsonl").len(), 1);

    terminal.press(F2);
    terminal.wait_for("Write a question to compare");
    terminal.press("Say hello.");
    terminal.press(ENTER);
    // The report is offered when both answers have ended.
    terminal.wait_for("F10 report");
    assert!(
        terminal.screen().contains("% shifted"),
        "{}",
        terminal.screen()
    );
    terminal.press(TAB);
    terminal.wait_for("token 1 of ");
    terminal.press(F10);
    terminal.wait_for("saved ");
    let reports = files(home.path(), ".html");
    let report = fs::read_to_string(home.path().join(&reports[0])).expect("it is there");
    assert!(report.contains("Say hello."));

    terminal.resize(80, 24);
    terminal.wait_until("it fits the smaller screen", |screen| {
        let lines: Vec<&str> = screen.lines().collect();
        lines.len() == 24 && lines[22].starts_with('╰') && lines[23].contains("saved ")
    });
    terminal.press(QUIT);
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn a_models_file_that_is_none_ends_the_program_with_its_error() {
    let home = home();
    let file = home.path().join("none.gguf");
    fs::write(&file, "no model").expect("the disk is not full");
    let mut terminal = Terminal::start(home.path(), &["--model", file.to_str().expect("UTF-8")]);
    assert_eq!(terminal.ended(), 1);
    let screen = terminal.screen();
    assert!(
        screen.contains("error:") && screen.contains("none.gguf"),
        "{screen}"
    );
}

#[test]
fn a_servers_errors_are_shown_as_they_are_and_what_was_said_stays() {
    let refusal = r#"{"error": {"message": "out of memory: 日本語", "type": "server_error"}}"#;
    let answers = Box::leak(Box::new([
        Answer::Refusal("500 Internal Server Error", refusal),
        Answer::Torn("Half an answer"),
        Answer::Text(&["Hello ", "**you**."]),
    ]));
    let home = home();
    let mut terminal = Terminal::start(home.path(), &["--url", &stub::server(answers), "Hi there"]);
    terminal.wait_for("500: out of memory: 日本語");
    terminal.press("Again");
    terminal.press(ENTER);
    terminal.wait_for("the server closed the connection before its answer was done");
    terminal.wait_for("Half an answer");
    terminal.press("And again");
    terminal.press(ENTER);
    terminal.wait_for("Hello you.");
    terminal.press(COPY);
    terminal.wait_for("copied 14 characters");
    assert_eq!(
        terminal.copied(),
        BASE64_STANDARD.encode("Hello **you**.").as_bytes()
    );
    // Values that this server does not report.
    terminal.wait_for("tokens — · cached —");
    terminal.wait_for("context — of —");
    terminal.press(QUIT);
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn a_server_that_cannot_compare_still_answers_side_by_side() {
    let answers = &[Answer::Text(&["Hello ", "world."])];
    let home = home();
    let mut terminal = Terminal::start(home.path(), &["--url", &stub::server(answers)]);
    terminal.wait_for("2 arms are served");
    terminal.press(F2);
    terminal.press("Hi");
    terminal.press(ENTER);
    terminal.wait_for("no shift: this server has no /v1/compare");
    terminal.wait_until("two answers", |screen| {
        screen.matches("Hello world.").count() == 2
    });
    terminal.wait_for("no probabilities: this server sends none");
    terminal.press(F10);
    terminal.wait_for("no report: there are no scores");
    terminal.press(QUIT);
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn a_server_that_is_not_there_can_be_asked_again() {
    let home = home();
    // Nothing listens on a port that was just released.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = free.local_addr().expect("it is bound");
    drop(free);
    let mut terminal = Terminal::start(home.path(), &["--url", &format!("http://{address}")]);
    terminal.wait_for("cannot reach http://127.0.0.1");
    terminal.press(QUIT);
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn a_bound_key_does_what_the_file_says() {
    let home = home();
    let folder = home.path().join("config/incant");
    fs::create_dir_all(&folder).expect("the disk is not full");
    fs::write(folder.join("keys.toml"), "[keys]\nquit = \"ctrl-x\"\n").expect("as before");
    let mut terminal = Terminal::start(home.path(), &["--url", &stub::server(&[])]);
    terminal.wait_for("Ctrl+X quit");
    terminal.press("\x18");
    assert_eq!(terminal.ended(), 0);

    fs::write(folder.join("keys.toml"), "[keys]\nfly = \"ctrl-x\"\n").expect("as before");
    let mut terminal = Terminal::start(home.path(), &["--url", &stub::server(&[])]);
    // An invalid file is reported, and the program stays usable.
    terminal.wait_for("there is no action `fly`");
    terminal.wait_for("arms are served");
    terminal.press(QUIT);
    assert_eq!(terminal.ended(), 0);
}

#[test]
fn pasted_lines_are_one_question_and_the_mouse_reaches_the_program() {
    let home = home();
    let answers = &[Answer::Text(&["日本語の", "答え 👩‍🚀"])];
    let mut terminal = Terminal::start(home.path(), &["--url", &stub::server(answers)]);
    terminal.wait_for("arms are served");
    // A terminal marks pasted text (bracketed paste), and sends Enter for line ends.
    terminal.press("\x1b[200~first line\rsecond line\x1b[201~");
    terminal.wait_for("second line");
    terminal.press(ENTER);
    terminal.wait_for("日本語の答え 👩‍🚀");
    let session = files(&home.path().join("data/incant/sessions"), ".jsonl");
    assert_eq!(session.len(), 1);
    // A left click on the second mode, in the first line.
    terminal.press("\x1b[<0;9;1M\x1b[<0;9;1m");
    terminal.wait_for("Write a question to compare");
    terminal.press(QUIT);
    assert_eq!(terminal.ended(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn a_program_that_is_terminated_restores_the_terminal() {
    let home = home();
    let mut terminal = Terminal::start(home.path(), &["--url", &stub::server(&[])]);
    terminal.wait_for("arms are served");
    let status = std::process::Command::new("kill")
        .arg(terminal.id().to_string())
        .status();
    assert!(status.expect("there is kill").success());
    assert_eq!(terminal.ended(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn a_program_that_nobody_uses_does_not_wake_up() {
    /// The number of voluntary context switches of a process so far.
    fn slept(id: u32) -> u64 {
        let threads = fs::read_dir(format!("/proc/{id}/task")).expect("it runs");
        let counts = threads.map(|thread| {
            let path = thread.expect("it is readable").path().join("status");
            let status = fs::read_to_string(path).expect("no thread ends meanwhile");
            let mut lines = status.lines();
            let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let count = count.expect("all have it").trim().parse::<u64>();
            count.expect("a number")
        });
        counts.sum()
    }
    let home = home();
    let mut terminal = Terminal::start(home.path(), &["--url", &stub::server(&[])]);
    terminal.wait_for("arms are served");
    terminal.press(F3);
    terminal.wait_for("who answers");
    // At first the grammars for highlighting code are still loading.
    let began = Instant::now();
    let mut before = 0;
    while began.elapsed() < Duration::from_secs(60) {
        let now = slept(terminal.id());
        if now == before {
            return;
        }
        before = now;
        thread::sleep(Duration::from_secs(3));
    }
    panic!("it goes on waking up");
}

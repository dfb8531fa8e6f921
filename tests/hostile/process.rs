//! Runs a fuzz target in a process of its own.
//!
//! The process is this test program again, running a single test. It reports on its standard
//! output which inputs it begins and ends, so if it dies or hangs, the waiting test knows which
//! input was at fault.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _, stdout};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use super::Target;
use super::edits::{self, MOST_EDITS};

/// The address space limit of a process, in KiB: about three times what valid inputs need. An
/// allocation beyond it fails and ends the process.
const MEMORY: usize = 4 << 20;

/// The timeout of one input. The slowest take some seconds; the rest is for busy machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// The timeout of a process's preparation.
const PREPARATION: Duration = Duration::from_secs(300);

/// The environment variable with the order for the other process.
const ORDER: &str = "INCANT_FUZZ_ORDER";

/// The environment variable with the path where it saves its only input.
const KEEP: &str = "INCANT_FUZZ_KEEP";

/// The prefix of lines that are meant for the waiting process.
const MARK: &str = "fuzz:";

/// All edits of an input.
const EVERY_EDIT: u64 = u64::MAX;

/// The inputs to process.
#[derive(Clone, Copy, Debug)]
struct Order {
    first: u64,
    count: u64,
    /// If set, processes inputs for this time instead.
    seconds: Option<u64>,
    /// A bit mask of the edits to apply.
    edits: u64,
}

impl Order {
    fn written(&self) -> String {
        let seconds = self.seconds.unwrap_or(0);
        format!("{} {} {seconds} {}", self.first, self.count, self.edits)
    }

    fn read(text: &str) -> Order {
        let numbers = text
            .split(' ')
            .map(|number| number.parse().expect("a number"));
        let [first, count, seconds, edits] = numbers.collect::<Vec<u64>>()[..] else {
            panic!("an order of four numbers: {text}");
        };
        Order {
            first,
            count,
            seconds: (seconds > 0).then_some(seconds),
            edits,
        }
    }
}

/// Feeds `count` inputs to `target`. `test` is the name of the calling test in the test
/// program.
///
/// # Panics
/// An input does harm.
pub(super) fn fuzz<T: Target>(test: &str, count: u64, target: impl FnOnce() -> T) {
    if let Ok(order) = env::var(ORDER) {
        feed(&target(), Order::read(&order));
        return;
    }
    let variable = |name| {
        env::var(name)
            .ok()
            .map(|text| text.parse().expect("a whole number"))
    };
    let first = variable("INCANT_FUZZ_SEED").unwrap_or(0);
    let order = Order {
        first,
        count,
        seconds: variable("INCANT_FUZZ_SECONDS"),
        edits: EVERY_EDIT,
    };
    let began = Instant::now();
    match run(test, order, None) {
        Outcome::Passed {
            inputs,
            sound,
            slowest,
        } => {
            let took = began.elapsed().as_secs();
            eprintln!(
                "{test}: {inputs} inputs in {took} s, {sound} taken for sound, the slowest in {slowest}"
            );
            assert!(inputs >= count || order.seconds.is_some(), "all were taken");
        }
        Outcome::Failed { suspects, why } => {
            let alone = suspects.iter().find_map(|&seed| smallest(test, seed));
            panic!(
                "{}",
                alone.unwrap_or_else(|| format!("the inputs {suspects:?} together: {why}"))
            );
        }
    }
}

/// Returns the failure of one input, minimized to the edits that matter.
fn smallest(test: &str, seed: u64) -> Option<String> {
    let name = test.replace("::", "-");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{seed}"));
    let run = |edits| {
        let order = Order {
            first: seed,
            count: 1,
            seconds: None,
            edits,
        };
        match run(test, order, Some(&kept)) {
            Outcome::Passed { .. } => None,
            Outcome::Failed { why, .. } => Some(why),
        }
    };
    run(EVERY_EDIT)?;
    let mut needed = (1 << MOST_EDITS) - 1;
    for edit in 0..MOST_EDITS {
        if run(needed & !(1 << edit)).is_some() {
            needed &= !(1 << edit);
        }
    }
    let why = run(needed)?;
    Some(format!("seed {seed} ({}): {why}", kept.display()))
}

/// The outcome of a process.
enum Outcome {
    Passed {
        inputs: u64,
        /// The number of inputs that were accepted as valid.
        sound: u64,
        slowest: String,
    },
    /// With the inputs that were in progress.
    Failed { suspects: Vec<u64>, why: String },
}

/// Runs the other process and watches it.
fn run(test: &str, order: Order, keep: Option<&Path>) -> Outcome {
    // Files that it leaves behind when it dies are removed with the folder.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let errors = folder.path().join("errors");
    let mut child = start(test, order, keep, folder.path(), &errors);
    let lines = lines_of(&mut child);
    let mut began: HashMap<u64, Instant> = HashMap::new();
    let mut passed = None;
    let mut late = None;
    let mut heard = Instant::now();
    loop {
        match lines.recv_timeout(Duration::from_millis(500)) {
            Ok(line) => {
                heard = Instant::now();
                match line.split(' ').collect::<Vec<_>>()[..] {
                    ["begin", seed] => _ = began.insert(seed.parse().expect("a seed"), heard),
                    ["end", seed] => _ = began.remove(&seed.parse().expect("a seed")),
                    ["passed", inputs, sound, slowest] => {
                        let [inputs, sound] = [inputs, sound].map(|n| n.parse().expect("a number"));
                        passed = Some((inputs, sound, slowest.to_owned()));
                    }
                    _ => panic!("not a report: {line:?}"),
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                late = began
                    .iter()
                    .find(|(_, since)| since.elapsed() > PATIENCE)
                    .map(|(seed, _)| *seed);
                let idle = began.is_empty() && heard.elapsed() > PREPARATION;
                if late.is_some() || idle {
                    child.kill().expect("it can be killed");
                    break;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().expect("it ends");
    let errors = fs::read_to_string(&errors).unwrap_or_default();
    match (status.success(), passed, late) {
        (true, Some((inputs, sound, slowest)), None) => Outcome::Passed {
            inputs,
            sound,
            slowest,
        },
        (_, _, Some(late)) => Outcome::Failed {
            suspects: vec![late],
            why: format!("it took longer than {PATIENCE:?}\n{errors}"),
        },
        _ => {
            let mut suspects: Vec<u64> = began.into_keys().collect();
            suspects.sort_unstable();
            Outcome::Failed {
                suspects,
                why: format!("{status}\n{errors}"),
            }
        }
    }
}

fn start(test: &str, order: Order, keep: Option<&Path>, folder: &Path, errors: &Path) -> Child {
    let program = env::current_exe().expect("this program has a file");
    let mut command = match cfg!(target_os = "linux") {
        true => {
            let mut shell = Command::new("sh");
            let limited = format!("ulimit -c 0; ulimit -v {MEMORY} && exec \"$@\"");
            shell.args(["-c", &limited, "sh"]).arg(program);
            shell
        }
        false => Command::new(program),
    };
    command
        .args(["--exact", test, "--nocapture"])
        .env(ORDER, order.written())
        .env("TMPDIR", folder)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(errors).expect("a file"));
    if let Some(keep) = keep {
        command.env(KEEP, keep);
    }
    command.spawn().expect("it starts")
}

/// Returns the reports of a process, line by line.
fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            // Skips the lines of the test harness.
            if let Some((_, report)) = line.split_once(MARK) {
                // After a failure nothing receives further reports.
                _ = sender.send(report.to_owned());
            }
        }
    });
    lines
}

/// Sends a report to the waiting process.
fn report(text: &str) {
    let mut out = stdout().lock();
    // On a line of its own, after any output of the test harness.
    writeln!(out, "\n{MARK}{text}")
        .and_then(|()| out.flush())
        .expect("somebody reads");
}

/// Feeds a target, in the other process.
fn feed<T: Target>(target: &T, order: Order) {
    // A panic of any thread counts, even if it would be caught.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        process::abort();
    }));
    let keep = env::var_os(KEEP).map(PathBuf::from);
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let sound = AtomicU64::new(0);
    let slowest = Mutex::new(Duration::ZERO);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let over = match order.seconds {
                Some(seconds) => began.elapsed() > Duration::from_secs(seconds),
                None => index >= order.count,
            };
            if over {
                // The input was not processed.
                next.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            let seed = order.first.wrapping_add(index);
            report(&format!("begin {seed}"));
            let (is_sound, took) = one(target, seed, order.edits, keep.as_deref());
            sound.fetch_add(is_sound.into(), Ordering::Relaxed);
            let mut slowest = slowest.lock().expect("no panics");
            *slowest = took.max(*slowest);
            report(&format!("end {seed}"));
        }
    };
    thread::scope(|scope| {
        for _ in 0..target.threads() {
            scope.spawn(work);
        }
    });
    target.end();
    let slowest = slowest.into_inner().expect("no panics");
    let (inputs, sound) = (next.into_inner(), sound.into_inner());
    report(&format!("passed {inputs} {sound} {slowest:?}"));
}

/// Creates and processes one input. Returns whether it was accepted as valid, and the time it
/// took.
fn one<T: Target>(target: &T, seed: u64, wanted: u64, keep: Option<&Path>) -> (bool, Duration) {
    let materials = target.materials();
    let (material, edits) = edits::input(materials, seed);
    let mut input = materials[material].bytes.clone();
    for (at, edit) in edits
        .iter()
        .enumerate()
        .filter(|(at, _)| wanted >> at & 1 == 1)
    {
        if keep.is_some() {
            eprintln!("edit {at} of material {material}: {edit:?}");
        }
        edit.apply(&mut input);
    }
    if let Some(keep) = keep {
        fs::write(keep, &input).expect("the build folder is writable");
    }
    let began = Instant::now();
    match target.take(material, &input) {
        Ok(sound) => (sound, began.elapsed()),
        Err(wrong) => panic!("{wrong}"),
    }
}

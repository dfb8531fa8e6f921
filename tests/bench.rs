//! `incant bench --url`, against fake servers with scripted behaviour.

use std::collections::HashSet;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::chat_server::{Asked, Behaviour, Log, chat_server};

fn bench(args: &[&str]) -> Output {
    Command::new(assert_cmd::cargo::cargo_bin!("incant"))
        .arg("bench")
        .args(args)
        .stdin(Stdio::null())
        .env("INCANT_API_KEY", "a secret")
        .output()
        .expect("incant starts")
}

/// Arguments of a short run with few requests.
const SHORT: [&str; 8] = [
    "--rounds",
    "2",
    "--requests",
    "2",
    "--prompt-tokens",
    "300",
    "--max-tokens",
    "6",
];

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    str::from_utf8(&output.stdout).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_str(stdout(output)).expect("JSON")
}

/// Asserts that the run failed with a single line, and returns it.
fn error(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stdout, b"");
    let text = str::from_utf8(&output.stderr).expect("UTF-8");
    let lines: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("error: "))
        .collect();
    let [line] = lines[..] else {
        panic!("not one line: {text}");
    };
    line
}

/// Returns the constant part of a request's prompt.
fn shared(asked: &Asked) -> &str {
    let prompt = asked.body["prompt"].as_str().expect("a text");
    let end = prompt.rfind("\n# Query:\n").expect("there is a question");
    &prompt[..end]
}

/// Returns the measured requests of a server, by rounds and phases.
fn rounds<'a>(log: &'a [Asked], server: &str, phases: &[usize]) -> Vec<Vec<&'a [Asked]>> {
    let is_measured = |asked: &&Asked| asked.server == server && asked.body["max_tokens"] == 6;
    let start = log.iter().position(|asked| is_measured(&asked));
    // Rounds of different servers are never interleaved.
    let mut rest = &log[start.expect("something is measured")..];
    let mut rounds = Vec::new();
    while !rest.is_empty() {
        if rest[0].server != server {
            rest = &rest[1..];
            continue;
        }
        let mut round = Vec::new();
        for &count in phases {
            // The single request that warms the prompt.
            if rest[0].body["max_tokens"] == 1 {
                assert_eq!(shared(&rest[0]), shared(&rest[1]));
                rest = &rest[1..];
            }
            let (phase, after) = rest.split_at(count);
            for asked in phase {
                assert_eq!(asked.server, server, "both were at work");
                assert_eq!(asked.body["max_tokens"], 6);
            }
            round.push(phase);
            rest = after;
        }
        rounds.push(round);
    }
    rounds
}

#[test]
fn both_servers_are_asked_the_same_in_turns() {
    let log = Log::default();
    let slow = Behaviour {
        delay: Duration::from_millis(100),
        ..Behaviour::GOOD
    };
    let first = chat_server("first", Behaviour::GOOD, &log);
    let second = chat_server("second", slow, &log);
    let servers = ["--url", &first, "--against", &second, "--clients", "2,3"];
    let report = json(&bench(&[&servers[..], &SHORT, &["--json"]].concat()));

    let phases = [
        ("first", 1, 1),
        ("together, cold", 2, 2),
        ("together, cold", 3, 3),
        ("alone", 1, 2),
        ("together, warm", 2, 4),
        ("together, warm", 3, 6),
    ];
    for (at, url) in [&first, &second].into_iter().enumerate() {
        let server = &report["servers"][at];
        assert_eq!(server["url"], **url);
        assert_eq!(
            server["model"],
            format!("{}-model", ["first", "second"][at])
        );
        let tokens = server["shared_tokens"].as_u64().expect("it is told");
        assert!((270..=330).contains(&tokens), "{tokens}");
        assert_eq!(server["rounds"].as_array().map(Vec::len), Some(2));
        for round in server["rounds"].as_array().expect("rounds") {
            let measured = round.as_array().expect("phases");
            assert_eq!(measured.len(), phases.len());
            for (measured, (phase, clients, requests)) in measured.iter().zip(phases) {
                assert_eq!(measured["phase"], phase);
                assert_eq!(measured["clients"], clients);
                assert_eq!(measured["requests"], requests);
                assert_eq!(measured["answer_tokens"], 6 * requests);
                assert_eq!(measured["asked_tokens"], 6 * requests);
                assert_eq!(measured["events"], 3 * requests);
                assert_eq!(measured["counted_by_server"], true);
            }
        }
    }

    let log = log.lock().expect("nothing else runs");
    let counts = phases.map(|(_, _, requests)| requests);
    let [here, there] = ["first", "second"].map(|server| rounds(&log, server, &counts));
    assert_eq!((here.len(), there.len()), (2, 2));
    let mut seen = HashSet::new();
    for (here, there) in here.iter().zip(&there) {
        for (here, there) in here.iter().zip(there) {
            let prompts = |asked: &[Asked]| -> HashSet<String> {
                asked.iter().map(|a| a.body["prompt"].to_string()).collect()
            };
            assert_eq!(prompts(here), prompts(there), "the same work");
            assert_eq!(prompts(here).len(), here.len(), "no question comes twice");
            let prefixes: HashSet<&str> = here.iter().map(shared).collect();
            assert_eq!(prefixes.len(), 1, "one phase, one shared prompt");
        }
        let prefixes: Vec<&str> = here.iter().map(|phase| shared(&phase[0])).collect();
        for cold in &prefixes[..3] {
            assert!(seen.insert(*cold), "a cold prompt is new");
        }
        assert_eq!(prefixes[3..], [prefixes[2]; 3], "a warm one came before");
        let connections: HashSet<&str> = here[5]
            .iter()
            .map(|asked| asked.connection.as_str())
            .collect();
        assert_eq!(connections.len(), 3, "each client keeps its connection");
    }
    let mut turns: Vec<&str> = log.iter().map(|asked| asked.server).collect();
    turns.dedup();
    // The first two turns count the tokens of the prompt; that of the first server includes the
    // search for the prompt length.
    assert_eq!(turns, ["first", "second", "first", "second", "first"]);
    for asked in log.iter() {
        assert_eq!(asked.body["stream"], true);
        assert_eq!(asked.body["temperature"], 0);
        assert_eq!(asked.body["ignore_eos"], true);
        assert_eq!(asked.body["stream_options"]["include_usage"], true);
        assert_eq!(asked.body["model"], format!("{}-model", asked.server));
        assert_eq!(asked.authorization.as_deref(), Some("Bearer a secret"));
    }

    let figures = report["figures"].as_array().expect("figures");
    assert_eq!(figures.len(), 1 + 2 * 2 + 2 + 2 * 6);
    let ratio = |phase: &str, unit: &str| {
        let fits = |row: &&Value| row["phase"] == phase && row["unit"] == unit;
        let row = figures.iter().find(fits).expect("it is there");
        row["ratio"]["median"].as_f64().expect("a number")
    };
    assert!(ratio("first", "ms") > 1.0, "the first answers sooner");
    assert!(ratio("together, warm", "tokens/s") > 1.0, "and says more");
}

#[test]
fn the_table_says_what_its_ratios_mean_and_which_server_said_less() {
    let log = Log::default();
    let early = Behaviour {
        most: 4,
        ..Behaviour::GOOD
    };
    let first = chat_server("first", Behaviour::GOOD, &log);
    let second = chat_server("second", early, &log);
    let servers = ["--url", &first, "--against", &second, "--clients", "2"];
    let output = bench(&[&servers[..], &SHORT, &["--model-id", "mine"]].concat());
    let table = stdout(&output);
    assert!(table.contains(&format!("A: {first} (mine)\n")), "{table}");
    assert!(table.contains("a ratio above 1 means that A is better"));
    // One, two, two and four requests, twice.
    assert!(
        table.contains("answers of 6 tokens, but 72 in all instead of 108"),
        "{table}"
    );
    assert_eq!(table.matches("but").count(), 1, "{table}");
    assert_eq!(table.matches("together, warm").count(), 6, "{table}");
}

#[test]
fn a_server_of_few_manners_is_measured_too() {
    let log = Log::default();
    let silent = Behaviour {
        usage: false,
        done: false,
        closes: true,
        ..Behaviour::GOOD
    };
    let url = chat_server("only", silent, &log);
    let args = [&["--url", &url, "--clients", "2"], &SHORT[..]].concat();
    let report = json(&bench(&[&args[..], &["--json"]].concat()));
    let warm = &report["servers"][0]["rounds"][0][3];
    assert_eq!(warm["phase"], "together, warm");
    assert_eq!(warm["counted_by_server"], false);
    assert_eq!(
        (&warm["answer_tokens"], &warm["events"]),
        (&12.into(), &12.into())
    );
    assert_eq!(warm["prompt_tokens"], Value::Null);
    assert_eq!(report["servers"][0]["shared_tokens"], Value::Null);
    assert_eq!(report["figures"][0]["ratio"], Value::Null);
}

#[test]
fn a_server_that_fails_is_named_in_one_line() {
    let log = Log::default();
    for fails_after in [0, 5] {
        log.lock().expect("nothing else runs").clear();
        let failing = Behaviour {
            fails_after,
            ..Behaviour::GOOD
        };
        let url = chat_server("failing", failing, &log);
        let output = bench(&[&["--url", &url], &SHORT[..]].concat());
        let expected =
            format!("error: {url}/v1/completions: 500 Internal Server Error: out of\\nmemory");
        assert_eq!(error(&output), expected);
    }
    // Nothing listens on the port of the discard service.
    let line = bench(&["--url", "http://127.0.0.1:9/v1/"]);
    let line = error(&line);
    assert!(
        line.starts_with("error: http://127.0.0.1:9/v1/models: Connection refused"),
        "{line}"
    );
}

#[test]
fn flags_of_one_kind_of_measurement_are_refused_in_the_other() {
    for args in [
        &["--url", "http://127.0.0.1:9", "--batch", "2"][..],
        &["--url", "http://127.0.0.1:9", "--model", "gemma-3-270m"],
        &["--against", "http://127.0.0.1:9"],
        &["--clients", "2"],
    ] {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("--url"), "{args:?}: {text}");
    }
}

//! `GET /metrics`, parsed like Prometheus does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use incant::runtime::Runtime;
use incant::server::ServeOptions;
use serde_json::{Value, json};

use crate::server::support::{
    CHAT, COMPLETIONS, MODEL, Server, alone, chat_body, completion_body, endless, eventually, idle,
};

type Labels = BTreeMap<String, String>;

/// One scrape, parsed by the rules of OpenMetrics.
struct Scrape {
    samples: BTreeMap<(String, Labels), f64>,
}

impl Scrape {
    fn of(server: &Server) -> Scrape {
        let reply = server.get("/metrics");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(
            reply.header("content-type"),
            Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
        );
        Scrape::parse(reply.text())
    }

    fn parse(text: &str) -> Scrape {
        let body = text.strip_suffix("# EOF\n").expect("the end marker");
        let mut seen = BTreeSet::new();
        let mut samples = BTreeMap::new();
        let (mut family, mut kind) = ("", "");
        for line in body.lines() {
            if let Some(meta) = line.strip_prefix("# ") {
                let [word, name, rest] = words(meta);
                match word {
                    "HELP" => {
                        assert!(seen.insert(name), "{name} comes twice");
                        assert!(name.starts_with("incant_") && !rest.is_empty(), "{line}");
                        family = name;
                    }
                    "TYPE" => kind = rest,
                    "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                    _ => panic!("{line}"),
                }
                assert_eq!(name, family, "{line}");
                continue;
            }
            let (name, labels, value) = sample(line);
            let suffix = name.strip_prefix(family).expect(line);
            let allowed: &[&str] = match kind {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => panic!("{family} is a {kind}"),
            };
            assert!(allowed.contains(&suffix), "{line} of a {kind}");
            assert!(value >= 0.0, "{line}");
            let twice = samples.insert((name.to_owned(), labels), value);
            assert!(twice.is_none(), "{line} comes twice");
        }
        let scrape = Scrape { samples };
        scrape.check_histograms();
        scrape
    }

    /// Histogram buckets are cumulative, and the last one holds all observations.
    fn check_histograms(&self) {
        for ((name, labels), &count) in &self.samples {
            let Some(name) = name.strip_suffix("_count") else {
                continue;
            };
            let mut buckets: Vec<(f64, f64)> = Vec::new();
            for ((other, of), &value) in &self.samples {
                let mut of = of.clone();
                if *other == format!("{name}_bucket")
                    && let Some(le) = of.remove("le")
                    && of == *labels
                {
                    buckets.push((le.parse().expect("a number"), value));
                }
            }
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{buckets:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)), "{name}");
        }
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
        let key = (name.to_owned(), labels.collect());
        self.samples.get(&key).copied()
    }

    fn of_arm(&self, name: &str, arm: &str) -> f64 {
        self.find(name, &[("arm", arm)])
            .unwrap_or_else(|| panic!("no {name} of {arm}"))
    }

    fn requests(&self, arm: &str, outcome: &str) -> f64 {
        let labels = [("arm", arm), ("outcome", outcome)];
        let found = self.find("incant_requests_total", &labels);
        found.unwrap_or_else(|| panic!("no {outcome} of {arm}"))
    }

    /// Returns the number of refused requests; 0 without a sample.
    fn refused(&self, reason: &str) -> f64 {
        let labels = [("reason", reason)];
        let found = self.find("incant_refused_requests_total", &labels);
        found.unwrap_or(0.0)
    }

    fn of_model(&self, name: &str) -> f64 {
        let found = self.find(name, &[("model", MODEL)]);
        found.unwrap_or_else(|| panic!("no {name}"))
    }
}

fn words(line: &str) -> [&str; 3] {
    let mut words = line.splitn(3, ' ');
    std::array::from_fn(|_| words.next().unwrap_or_else(|| panic!("{line}")))
}

/// Returns the name, labels and value of a sample.
fn sample(line: &str) -> (&str, Labels, f64) {
    let end = line.find(['{', ' ']).expect(line);
    let (name, mut rest) = line.split_at(end);
    assert!(
        name.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
        "{name}"
    );
    let mut labels = Labels::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            let (key, after) = inside.split_once("=\"").expect(line);
            // None of our labels need escaping.
            let (value, after) = after.split_once('"').expect(line);
            assert!(!value.contains('\\'), "{line}");
            assert!(labels.insert(key.to_owned(), value.to_owned()).is_none());
            match after.strip_prefix(',') {
                Some(more) => inside = more,
                None => {
                    rest = after.strip_prefix('}').expect(line);
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').expect(line);
    (name, labels, value.parse().expect(line))
}

fn number(usage: &Value, key: &str) -> f64 {
    usage[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key}: {usage}"))
}

fn start() -> Server {
    Server::start(ServeOptions::default())
}

#[test]
fn a_server_that_loads_has_metrics_but_none_of_models() {
    let loading = Server::over(Arc::new(Runtime::new()), ServeOptions::default());
    assert!(Scrape::of(&loading).samples.is_empty());
    loading.get("/health").error(503);
    let scrape = Scrape::of(&loading);
    assert_eq!((scrape.refused("loading"), scrape.samples.len()), (1.0, 1));
}

#[test]
fn a_model_that_nobody_asked_counts_zeros_and_other_arms_only_once_they_are_asked() {
    let server = start();
    let urial = format!("{MODEL}@urial");
    // Requests that only name an arm, served or not, do not count for it.
    for arm in [&urial, "nobody"] {
        server.get(&format!("/v1/models/{arm}"));
        server.post("/tokenize", &json!({"model": arm, "prompt": "x"}));
    }
    let body = json!({"model": format!("{MODEL}@nobody"), "prompt": "x"});
    server.post(COMPLETIONS, &body).error(404);
    let arms = |scrape: &Scrape| -> BTreeSet<String> {
        let labels = scrape.samples.keys().map(|(_, labels)| labels);
        labels
            .filter_map(|labels| labels.get("arm").cloned())
            .collect()
    };
    let scrape = Scrape::of(&server);
    assert_eq!(arms(&scrape), BTreeSet::from([MODEL.to_owned()]));
    for outcome in ["finished", "left", "failed", "timed_out"] {
        assert_eq!(scrape.requests(MODEL, outcome), 0.0);
    }
    for name in ["time_to_first_token", "inter_token", "queue"] {
        let count = format!("incant_{name}_seconds_count");
        assert_eq!(scrape.of_arm(&count, MODEL), 0.0);
    }
    for name in ["kv_used_bytes", "kv_capacity_bytes", "running_sequences"] {
        scrape.of_model(&format!("incant_{name}"));
    }
    let body = chat_body(&json!({"model": urial, "max_tokens": 1}));
    server.post(CHAT, &body);
    let scrape = Scrape::of(&server);
    assert_eq!(
        arms(&scrape),
        BTreeSet::from([MODEL.to_owned(), urial.clone()])
    );
    assert_eq!(scrape.requests(&urial, "finished"), 1.0);
    assert_eq!(scrape.requests(&urial, "left"), 0.0);
}

#[test]
fn answers_are_counted_by_arm() {
    let server = start();
    let body = completion_body(&json!({"n": 3, "max_tokens": 5, "ignore_eos": true}));
    let usage = server.complete(body)["usage"].clone();
    let scrape = Scrape::of(&server);
    let count = |name: &str| scrape.of_arm(&format!("incant_{name}"), MODEL);
    assert_eq!(scrape.requests(MODEL, "finished"), 1.0);
    assert_eq!(count("time_to_first_token_seconds_count"), 1.0);
    assert_eq!(count("queue_seconds_count"), 3.0);
    assert_eq!(count("inter_token_seconds_count"), 12.0);
    assert_eq!(count("generated_tokens_total"), 15.0);
    assert_eq!(
        count("prompt_tokens_total"),
        number(&usage, "prompt_tokens")
    );

    let urial = format!("{MODEL}@urial");
    let mut sums = [0.0; 3];
    for asked in [1.0, 2.0] {
        let body = json!({
            "model": urial, "max_tokens": 3, "stream": true, "stream_options": {"include_usage": true},
        });
        let events = server.post(CHAT, &chat_body(&body)).events();
        let usage = &events.last().unwrap()["usage"];
        sums[0] += number(usage, "prompt_tokens");
        sums[1] += number(&usage["prompt_tokens_details"], "cached_tokens");
        sums[2] += number(usage, "completion_tokens");
        let scrape = Scrape::of(&server);
        let count = |name: &str| scrape.of_arm(&format!("incant_{name}_total"), &urial);
        let counted = ["prompt_tokens", "cached_prompt_tokens", "generated_tokens"].map(count);
        assert_eq!(counted, sums);
        assert_eq!(scrape.requests(&urial, "finished"), asked);
        assert_eq!(
            scrape.of_arm("incant_time_to_first_token_seconds_count", &urial),
            asked
        );
    }
    assert!(sums[1] > 0.0, "the second found what the first computed");
    assert_eq!(Scrape::of(&server).requests(MODEL, "finished"), 1.0);
}

#[test]
fn a_request_that_leaves_is_counted_and_so_is_what_runs_meanwhile() {
    let _alone = alone();
    let server = start();
    for (left, stream) in [(1.0, true), (2.0, false)] {
        let mut client = server.connect();
        let body = json!({"stream": stream, "n": 20});
        client.write_all(&endless(&body)).unwrap();
        eventually("it shows that some run and others wait", || {
            let scrape = Scrape::of(&server);
            scrape.of_model("incant_running_sequences") > 0.0
                && scrape.of_model("incant_waiting_sequences") > 0.0
        });
        drop(client);
        eventually("it is counted", || {
            Scrape::of(&server).requests(MODEL, "left") == left
        });
        // Otherwise the remaining work would be counted for the next request.
        eventually("the engine is idle", idle);
    }
    let scrape = Scrape::of(&server);
    assert_eq!(scrape.requests(MODEL, "finished"), 0.0);
    assert_eq!(scrape.of_model("incant_running_sequences"), 0.0);
    assert_eq!(scrape.of_model("incant_waiting_sequences"), 0.0);
}

#[test]
fn a_request_without_enough_time_is_counted_as_such() {
    let server = start();
    for stream in [true, false] {
        let body = completion_body(&json!({"timeout": 0.000_001, "stream": stream}));
        server.post(COMPLETIONS, &body).error(408);
    }
    let scrape = Scrape::of(&server);
    assert_eq!(scrape.requests(MODEL, "timed_out"), 2.0);
    assert_eq!(scrape.requests(MODEL, "left"), 0.0);
}

#[test]
fn only_requests_for_answers_are_counted_when_their_time_ends_before_the_engine_has_them() {
    let server = Server::start(ServeOptions {
        request_timeout: Some(Duration::from_nanos(1)),
        ..ServeOptions::default()
    });
    let body = json!({"model": MODEL, "prompt": "x"});
    server.post("/tokenize", &body).error(408);
    let requests = || Scrape::of(&server).requests(MODEL, "timed_out");
    assert_eq!(requests(), 0.0);
    server.post(COMPLETIONS, &body).error(408);
    assert_eq!(requests(), 1.0);
}

#[test]
fn what_is_turned_away_is_counted_by_reason() {
    let _alone = alone();
    let server = start();
    let post = |fields: Value| server.post(COMPLETIONS, &completion_body(&fields)).status;
    assert_eq!(post(json!({"n": 0})), 400);
    assert_eq!(post(json!({"model": "nobody"})), 404);
    assert_eq!(post(json!({"prompt": vec![5; 5000]})), 400);
    assert_eq!(post(json!({"prompt": ["a", "b"], "n": 128})), 400);
    assert_eq!(server.get("/nowhere").status, 404);
    let mut clients = server.connect();
    clients.write_all(&endless(&json!({"n": 128}))).unwrap();
    eventually("they wait", || {
        Scrape::of(&server).of_model("incant_waiting_sequences") > 0.0
    });
    assert_eq!(post(json!({"n": 64})), 429);
    drop(clients);
    eventually("the engine is idle", idle);
    let scrape = Scrape::of(&server);
    for reason in [
        "invalid",
        "model_not_found",
        "context_length_exceeded",
        "too_many",
        "unknown_path",
        "queue_full",
    ] {
        assert_eq!(scrape.refused(reason), 1.0, "{reason}");
    }
    assert_eq!(scrape.requests(MODEL, "finished"), 0.0, "none was accepted");
}

//! Several arms side by side: the numbers equal those of `/v1/completions`, and the stream
//! equals the complete answer.

use std::path::Path;
use std::sync::Arc;

use incant::analyze::{FinishReason, Report, Score, ShiftClass};
use incant::exec::{Chunk, Executor, Precision, Wanted};
use incant::gguf::Gguf;
use incant::runtime::{Model, Runtime};
use incant::server::ServeOptions;
use serde::Serialize;
use serde_json::{Value, json};

use crate::lora::fixtures::Fixture;
use crate::server::support::{MODEL, Server, alone, eventually, idle, shared, with};
use crate::support::fixtures::load_options;
use crate::support::{self, subjects};

const COMPARE: &str = "/v1/compare";

/// A question for `arms`, with the additional fields `more`.
fn body(arms: &[&str], more: &Value) -> Value {
    let messages = json!([{"role": "user", "content": "What is the capital of France?"}]);
    with(
        json!({"arms": arms, "messages": messages, "max_tokens": 16}),
        more,
    )
}

fn compare(server: &Server, body: &Value) -> Report {
    let answer = server.post(COMPARE, body).expect(200);
    assert_eq!(answer["object"], "compare");
    serde_json::from_value(answer).expect("the report's form")
}

/// Converts a value to JSON text and back. (As text, an `f32` is short.)
fn written(value: &impl Serialize) -> Value {
    let text = serde_json::to_string(value).expect("it can be written");
    serde_json::from_str(&text).expect("JSON")
}

/// The arms of gemma with these profiles.
fn arms(profiles: &[&str]) -> Vec<String> {
    let arm = |profile: &&str| format!("{MODEL}@{profile}");
    profiles.iter().map(arm).collect()
}

/// Returns the question as `arm` renders it.
fn rendered(server: &Server, arm: &str) -> Vec<u32> {
    let messages = body(&[arm], &json!({}))["messages"].clone();
    let rendered = json!({"model": arm, "messages": messages});
    let rendered = server.post("/apply-template", &rendered).expect(200);
    serde_json::from_value(rendered["tokens"].clone()).expect("ids")
}

/// Returns the scores of `answer` by `/v1/completions` after the question as `arm` renders it:
/// each token's log-probability, and its rank if it is at most 5.
fn by_completions(server: &Server, arm: &str, answer: &[u32]) -> Vec<(f64, Option<usize>)> {
    let mut ids = rendered(server, arm);
    ids.extend(answer);
    let scored = json!({"model": MODEL, "prompt": ids, "max_tokens": 0, "echo": true,
        "logprobs": 5});
    let scored = server.complete(scored);
    let logprobs = &scored["choices"][0]["logprobs"];
    let of = |field: &str| logprobs[field].as_array().expect("a list").clone();
    let entries = of("token_logprobs").into_iter().zip(of("top_logprobs"));
    let entries = entries.map(|(logprob, top)| {
        let logprob = logprob.as_f64().unwrap_or(0.0);
        let mut top: Vec<f64> = top.as_object().map_or(Vec::new(), |top| {
            top.values().filter_map(Value::as_f64).collect()
        });
        top.sort_by(|a, b| b.total_cmp(a));
        // The chosen token is listed in addition to the five if it is not among them.
        let rank = top.iter().take(5).position(|&other| other == logprob);
        (logprob, rank.map(|rank| rank + 1))
    });
    let all: Vec<_> = entries.collect();
    all[all.len() - answer.len()..].to_vec()
}

#[test]
fn what_arms_think_of_each_others_tokens_is_what_completions_say() {
    let server = shared();
    let arms = arms(&["base", "urial-1", "turn"]);
    let names: Vec<&str> = arms.iter().map(String::as_str).collect();
    let report = compare(server, &body(&names, &json!({"analysis": true})));
    assert_eq!(report.settings.reference, 2, "the arm with @turn");
    let answers = &report.prompts[0].answers;
    assert_eq!(answers.len(), 3);
    for answer in answers {
        let tokens = answer.tokens.as_ref().expect("analysis");
        // Text that a role marker cut off is not part of the answer.
        let cut = answer.usage.completion_tokens - tokens.len();
        assert!(
            cut == 0 || answer.finish_reason == FinishReason::Stop,
            "{cut}"
        );
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| token.bytes.clone())
            .collect();
        assert_eq!(String::from_utf8_lossy(&bytes), answer.text);
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        for (arm, name) in names.iter().enumerate() {
            let expected = by_completions(server, name, &ids);
            for (token, (logprob, rank)) in tokens.iter().zip(expected) {
                let (found, place) = match arm == answer.arm {
                    true => (token.logprob, token.rank),
                    false => {
                        let score = token.score(arm).expect("every other arm");
                        assert_eq!(score.class, ShiftClass::of(score.rank));
                        assert_eq!(score.top_logprobs.len(), 10);
                        (score.logprob, score.rank)
                    }
                };
                let apart = (f64::from(found) - logprob).abs();
                assert!(apart <= 0.02, "{name}: {found} and {logprob}");
                match rank {
                    Some(rank) => assert_eq!(place, rank, "{name}: {token:?}"),
                    None => assert!(place > 5, "{name}: {token:?}"),
                }
            }
        }
    }
    let summary = report.summary.expect("analysis");
    assert_eq!(summary.pairs.len(), 6);
    for pair in &summary.pairs {
        let shares = &pair.shares;
        let sum = shares.unshifted + shares.marginal + shares.shifted;
        assert!((sum - 1.0).abs() < 1e-9, "{pair:?}");
        assert!(pair.kl > 0.0 && pair.kl_reverse > 0.0);
    }
}

/// Computes the log-probabilities of all tokens at each position of `answer`, after the
/// question as `arm` renders it, by the device executor.
fn by_device_executor(
    server: &Server,
    executor: &mut dyn Executor,
    arm: &str,
    answer: &[u32],
) -> Vec<Vec<f64>> {
    let mut tokens = rendered(server, arm);
    let first = tokens.len() - 1;
    tokens.extend(&answer[..answer.len() - 1]);
    let chunk = Chunk {
        sequence: executor.begin(),
        tokens: &tokens[..first],
        wanted: Wanted::None,
        precision: Precision::Fast,
    };
    executor.forward(&[chunk]).expect("it runs");
    let chunk = Chunk {
        tokens: &tokens[first..],
        wanted: Wanted::All,
        precision: Precision::Exact,
        ..chunk
    };
    let logits = executor.forward(&[chunk]).expect("it runs");
    executor.end(chunk.sequence);
    let rows = (0..logits.rows()).map(|row| {
        let row = logits.row(row).iter().map(|&logit| f64::from(logit));
        let largest = row.clone().fold(f64::MIN, f64::max);
        let sum: f64 = row.clone().map(|logit| (logit - largest).exp()).sum();
        row.map(|logit| logit - largest - sum.ln()).collect()
    });
    rows.collect()
}

/// The maximum difference between log-probabilities of the native executor and the device
/// executor: the native one stores keys and values as f16, and rounds activations to 16 bits.
const BETWEEN_EXECUTORS: f64 = 0.02;

#[test]
fn ranks_and_divergences_are_those_of_the_device_executor() {
    let server = shared();
    let arms = arms(&["base", "urial-1"]);
    let names: Vec<&str> = arms.iter().map(String::as_str).collect();
    let report = compare(server, &body(&names, &json!({"analysis": true})));
    let gguf = Gguf::open(&support::model(MODEL)).expect("the model opens");
    let mut executor = subjects::reference().load(&gguf);
    let kl = |p: &[f64], q: &[f64]| -> f64 {
        let terms = p.iter().zip(q);
        terms.map(|(p, q)| p.exp() * (p - q)).sum()
    };
    for answer in &report.prompts[0].answers {
        let tokens = answer.tokens.as_ref().expect("analysis");
        let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
        let [own, other] = [answer.arm, 1 - answer.arm]
            .map(|arm| by_device_executor(server, &mut *executor, names[arm], &ids));
        for ((token, p), q) in tokens.iter().zip(&own).zip(&other) {
            let score = token.score(1 - answer.arm).expect("scored");
            let near = |found: f32, expected: f64| {
                let apart = (f64::from(found) - expected).abs();
                assert!(
                    apart <= BETWEEN_EXECUTORS * expected.max(1.0),
                    "{found}, {expected}"
                );
            };
            near(score.kl, kl(p, q));
            near(score.kl_reverse, kl(q, p));
            let chosen = q[token.id as usize];
            near(score.logprob, chosen);
            // Practically equally likely tokens may be in the other order.
            let above = |by: f64| q.iter().filter(|&&other| other > chosen + by).count();
            let ranks = above(BETWEEN_EXECUTORS) + 1..=above(-BETWEEN_EXECUTORS);
            assert!(
                ranks.contains(&score.rank),
                "{} is not in {ranks:?}",
                score.rank
            );
        }
    }
}

#[test]
fn the_same_arm_twice_agrees_with_itself_in_everything() {
    let server = shared();
    let _alone = alone();
    let arms = arms(&["urial-1", "urial-1"]);
    let names: Vec<&str> = arms.iter().map(String::as_str).collect();
    let report = compare(server, &body(&names, &json!({"analysis": true})));
    let [one, two] = &report.prompts[0].answers[..] else {
        panic!("{:?}", report.prompts);
    };
    assert_eq!(one.text, two.text);
    assert!(!one.text.is_empty());
    for pair in report.summary.expect("analysis").pairs {
        let shares = (
            pair.shares.unshifted,
            pair.shares.marginal,
            pair.shares.shifted,
        );
        assert_eq!(shares, (1.0, 0.0, 0.0));
        assert_eq!((pair.kl, pair.kl_reverse), (0.0, 0.0));
        assert_eq!(pair.logprob, pair.own_logprob);
    }
}

#[test]
fn a_stream_says_what_the_whole_answer_says() {
    let server = shared();
    let _alone = alone();
    let arms = arms(&["base", "urial-1"]);
    let names: Vec<&str> = arms.iter().map(String::as_str).collect();
    for analysis in [false, true] {
        let more = json!({"analysis": analysis, "n": 2, "temperature": 0.8, "seed": 5});
        let whole = compare(server, &body(&names, &more));
        let streamed = body(&names, &with(more, &json!({"stream": true})));
        let events = server.post(COMPARE, &streamed).events();
        let id = &events[0]["id"];
        assert!(events.iter().all(|event| event["id"] == *id
            && event["object"] == "compare.chunk"
            && event.as_object().is_some_and(|event| event.len() == 4)));
        let begin = &events[0]["begin"];
        assert_eq!(begin["settings"], written(&whole.settings));
        assert_eq!(begin["arms"], written(&whole.arms));
        let last = &events.last().expect("some")["summary"];
        assert_eq!(*last, written(&whole.summary));
        for answer in &whole.prompts[0].answers {
            let of = |kind: &str| {
                let events = events.iter().map(|event| event[kind].clone());
                let own = events
                    .filter(|event| event["arm"] == answer.arm && event["index"] == answer.index);
                own.collect::<Vec<Value>>()
            };
            let deltas = of("delta");
            let text: String = deltas
                .iter()
                .map(|delta| delta["content"].as_str().expect("text"))
                .collect();
            assert_eq!(text, answer.text);
            let [end] = &of("end")[..] else {
                panic!("an answer ends once");
            };
            assert_eq!(end["finish_reason"], json!(answer.finish_reason));
            assert_eq!(
                end["usage"]["completion_tokens"],
                answer.usage.completion_tokens
            );
            let tokens: Vec<Value> = of("tokens")
                .iter()
                .flat_map(|event| event["tokens"].as_array().expect("a list").clone())
                .collect();
            match &answer.tokens {
                Some(whole) => assert_eq!(json!(tokens), written(whole)),
                None => assert!(tokens.is_empty()),
            }
        }
        assert_eq!(whole.sampling.len(), 2, "two answers each scatter");
    }
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let base = format!("{MODEL}@base");
    let arms = [base.as_str()];
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let long = "word ".repeat(5000);
    let cases = [
        (json!({"arms": [], "messages": messages}), 400, "arms"),
        (
            json!({"arms": vec![MODEL; 17], "messages": messages}),
            400,
            "arms",
        ),
        (json!({"arms": "x", "messages": messages}), 400, "arms"),
        (json!({"messages": messages}), 400, "arms"),
        (json!({"arms": arms}), 400, "messages"),
        (json!({"arms": arms, "messages": []}), 400, "messages"),
        (body(&arms, &json!({"prompt": "Hi"})), 400, "prompt"),
        (body(&arms, &json!({"reference": MODEL})), 400, "reference"),
        (
            body(&arms, &json!({"top_logprobs": 21})),
            400,
            "top_logprobs",
        ),
        (body(&arms, &json!({"temperature": 3})), 400, "temperature"),
        (body(&arms, &json!({"max_tokens": 0})), 400, "max_tokens"),
        (json!({"arms": arms, "prompt": long}), 400, "prompt"),
        (
            body(&arms, &json!({"tools": [{"type": "function"}]})),
            400,
            "tools",
        ),
    ];
    for (request, status, param) in cases {
        let error = shared().post(COMPARE, &request).error(status);
        assert_eq!(error["param"], param, "{error}");
    }
    let unknown = body(&["gemma-3-270m@no-such"], &json!({}));
    let error = shared().post(COMPARE, &unknown).error(404);
    assert_eq!(error["code"], "model_not_found");
    // 8 slots and a queue of 128: 16 arms that score each other 128 times are too many.
    let many = json!({"arms": vec![MODEL; 16], "messages": messages, "analysis": true, "n": 16});
    let error = shared().post(COMPARE, &many).error(400);
    assert!(error["message"].as_str().expect("text").contains("at once"));
}

#[test]
fn a_verbatim_prompt_goes_on_as_completions_do() {
    let server = shared();
    let _alone = alone();
    let prompt = "The capital of France is";
    let request = json!({"arms": [MODEL, MODEL], "prompt": prompt, "max_tokens": 8,
        "analysis": true});
    let report = compare(server, &request);
    let plain = json!({"model": MODEL, "prompt": prompt, "max_tokens": 8, "temperature": 0});
    let plain = server.complete(plain);
    let asked = &report.prompts[0];
    assert_eq!(asked.prompt.as_deref(), Some(prompt));
    assert_eq!(asked.messages, None);
    assert_eq!(
        asked.answers[0].text,
        plain["choices"][0]["text"].as_str().expect("text")
    );
}

#[test]
fn a_client_that_leaves_ends_all_of_it() {
    let request = body(
        &[MODEL, &format!("{MODEL}@base")],
        &json!({"analysis": true, "stream": true, "max_tokens": 2000, "ignore_eos": true}),
    );
    let server = shared();
    let _alone = alone();
    let bytes = crate::server::support::post(COMPARE, request.to_string().as_bytes(), "");
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, &bytes).expect("the server reads");
    let mut some = [0; 2000];
    std::io::Read::read_exact(&mut stream, &mut some).expect("it streams");
    assert!(!idle());
    drop(stream);
    eventually("nothing runs any more", idle);
}

#[test]
fn the_report_says_which_profile_answered_where_an_id_names_none() {
    let arms = [
        MODEL,
        &format!("{MODEL}@urial"),
        &format!("{MODEL}@base guidance=0"),
    ];
    let messages = json!([{"role": "user", "content": "富士山の高さは？"}]);
    let asked = json!({"messages": messages, "max_tokens": 1, "reference": arms[2]});
    let report = compare(shared(), &body(&arms, &asked));
    let rendered = report.arms.iter().map(|arm| arm.rendered_by.as_deref());
    let rendered: Vec<_> = rendered.collect();
    assert!(rendered[0].is_some_and(|profile| profile.ends_with("-ja")));
    assert_eq!(rendered[1..], [None, None]);
    assert_eq!(report.settings.reference, 2);
    // A plain text is not rendered.
    let asked = json!({"arms": [MODEL], "prompt": "The sea", "max_tokens": 1});
    assert_eq!(compare(shared(), &asked).arms[0].rendered_by, None);
}

/// Two models with the same tokenizer, and one with another.
#[test]
fn arms_of_other_models_score_too_if_they_have_the_same_tokens() {
    let llama = Fixture::new("llama");
    let load = |name: &str, file: &Path| {
        let model = Model::load(name, file, &load_options());
        Arc::new(model.expect("a sound model"))
    };
    let runtime = Arc::new(Runtime::new());
    let (one, two) = (load("one", llama.file()), load("two", llama.file()));
    let other = load("other", &support::model("smollm2-135m-instruct"));
    one.load_adapter("mine", &llama.path("plain"))
        .expect("it fits");
    runtime.loaded(vec![one, two, other]);
    let server = Server::over(runtime, ServeOptions::default());
    let arms = ["one@base", "two@base", "one@base+mine", "other@base"];
    let report = compare(&server, &body(&arms, &json!({"analysis": true})));
    let answers = &report.prompts[0].answers;
    let judges = |arm: usize| {
        let tokens = answers[arm].tokens.as_ref().expect("analysis");
        let judges = tokens.iter().map(|token| {
            let judges = token.scores.iter().map(|score| score.arm);
            judges.collect::<Vec<usize>>()
        });
        let judges: Vec<_> = judges.collect();
        assert!(judges.iter().all(|others| *others == judges[0]));
        judges[0].clone()
    };
    let judges: Vec<_> = (0..4).map(judges).collect();
    assert_eq!(judges, [vec![1, 2], vec![0, 2], vec![0, 1], vec![]]);
    // The same file in another engine gives the same scores; an adapter does not.
    let tokens = answers[0].tokens.as_ref().expect("analysis");
    let agrees = |score: &Score| score.rank == 1 && score.kl == 0.0;
    assert!(
        tokens
            .iter()
            .all(|token| agrees(token.score(1).expect("scored")))
    );
    assert!(
        !tokens
            .iter()
            .all(|token| agrees(token.score(2).expect("scored")))
    );
}

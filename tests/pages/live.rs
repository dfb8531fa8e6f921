//! The live page, and its compare tab.

use std::fs;
use std::path::Path;

use incant::analyze::page;
use serde_json::{Value, json};

use super::fixture;
use super::stub::{Script, Stub, events};
use super::{compare_numbers, places_to_show};
use crate::support::browser::Browser;
use crate::support::wait_until;

/// The report of the first question only, as the stream sends it.
fn streamed() -> Value {
    let mut report = fixture::report(&[0.0]);
    report["prompts"]
        .as_array_mut()
        .expect("a list")
        .truncate(1);
    report["settings"]["command"] = Value::Null;
    report
}

/// Opens the page of a server, after its arms have loaded.
fn open(stub: &Stub) -> Option<Browser> {
    let mut browser = Browser::start()?;
    browser.open(&stub.url);
    browser.wait_for("document.querySelectorAll('#arms li').length > 0");
    Some(browser)
}

/// Types the first question of the fixture and sends it.
fn ask(browser: &mut Browser) {
    browser.eval("document.getElementById('question').focus()");
    let question = streamed()["prompts"][0]["messages"][0]["content"].clone();
    browser.type_text(question.as_str().expect("a text"));
    browser.press("Control+Enter");
}

fn status(browser: &mut Browser, beginning: &str) {
    browser.wait_for(&format!(
        "document.getElementById('status').textContent.startsWith('{beginning}')"
    ));
}

fn problem(browser: &mut Browser) -> String {
    browser.wait_for("document.getElementById('problem').checkVisibility()");
    browser.text("document.getElementById('problem').textContent")
}

const PAGE_TEXTS: &str =
    "[...document.querySelectorAll('.answer')].map((answer) => answer.textContent)";

#[test]
fn it_begins_with_the_arms_of_the_first_model() {
    let stub = Stub::start(None, Script::Refusal("400 Bad Request", "No."));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    let chosen = "[...document.querySelectorAll('#arms span')].map((arm) => arm.textContent)";
    let first = json!([
        "gemma-3-270m@base",
        "gemma-3-270m@urial",
        "gemma-3-270m+chat"
    ]);
    assert_eq!(browser.eval(chosen), first);
    let add = "document.getElementById('add').value = 'other'; document.getElementById('add').dispatchEvent(new Event('change'))";
    for _ in 0..5 {
        browser.eval(add);
    }
    // Eight is the maximum of one request.
    assert_eq!(browser.eval(&format!("{chosen}.length")), 8);
    assert_eq!(
        browser.eval("document.getElementById('add').disabled"),
        true
    );
    for _ in 0..8 {
        browser.eval("document.querySelector('#arms button:enabled')?.click()");
    }
    assert_eq!(browser.eval(chosen), json!(["other"]));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// The server reports how a model chats by default, not the name of a profile.
#[test]
fn the_second_arm_is_the_default_one() {
    let arms = "[...document.querySelectorAll('#arms span')].map((arm) => arm.textContent)";
    for (default, arm) in [
        (Some("assistant"), "gemma-3-270m@assistant"),
        (Some("urial"), "gemma-3-270m@urial"),
        (None, "gemma-3-270m"),
    ] {
        let script = Script::Refusal("400 Bad Request", "No.");
        let stub = Stub::serving(default, None, script);
        let Some(mut browser) = open(&stub) else {
            return;
        };
        let first = json!(["gemma-3-270m@base", arm, "gemma-3-270m+chat"]);
        assert_eq!(browser.eval(arms), first);
        assert_eq!(browser.complaints(), Vec::<String>::new());
    }
}

#[test]
fn an_arm_can_be_added_with_guidance() {
    let stub = Stub::start(None, Script::Events(events(&streamed())));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    let add = |browser: &mut Browser, arm: &str, guidance: &str| {
        browser.eval(&format!("document.getElementById('guidance').value = '{guidance}'; document.getElementById('add').value = '{arm}'; document.getElementById('add').dispatchEvent(new Event('change'))"));
    };
    for _ in 0..2 {
        browser.eval("document.querySelector('#arms button').click()");
    }
    add(&mut browser, "gemma-3-270m@urial", "0.50");
    // Out of range: nothing is added.
    add(&mut browser, "gemma-3-270m@urial", "11");
    add(&mut browser, "gemma-3-270m@urial", "");
    ask(&mut browser);
    status(&mut browser, "Done");
    let asked = stub.asked();
    let arms = json!([
        "gemma-3-270m+chat",
        "gemma-3-270m@urial guidance=0.5",
        "gemma-3-270m@urial"
    ]);
    assert_eq!(asked[0]["arms"], arms);
    let references = "[...document.querySelectorAll('#reference option')].map((one) => one.value)";
    assert_eq!(browser.eval(references), arms);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_stream_becomes_the_page_of_its_report() {
    let report = streamed();
    let stub = Stub::start(None, Script::Events(events(&report)));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    browser.eval("document.querySelector('.system').open = true; document.getElementById('system').value = 'Be brief.'");
    browser.eval("document.getElementById('seed').value = '7'");
    ask(&mut browser);
    status(&mut browser, "Done");
    let texts: Value = report["prompts"][0]["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| answer["text"].clone())
        .collect();
    assert_eq!(browser.eval(PAGE_TEXTS), texts);
    let joined = "[...document.querySelectorAll('.answer')].map((answer) => [...answer.querySelectorAll('.token')].map((token) => token.textContent).join(''))";
    assert_eq!(browser.eval(joined), texts);
    let places = compare_numbers(&mut browser, &report);
    let missing: Vec<_> = places_to_show(&report)
        .difference(&places)
        .cloned()
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let facts = browser.text("document.querySelector('.facts').textContent");
    assert!(
        facts.contains(" ms to the first") && facts.contains(" of them cached"),
        "{facts}"
    );

    assert_eq!(
        stub.asked(),
        [json!({
            "arms": ["gemma-3-270m@base", "gemma-3-270m@urial", "gemma-3-270m+chat"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What is the capital of Japan, and what should I see there?"},
            ],
            "reference": "gemma-3-270m@base", "analysis": true, "top_logprobs": 10,
            "temperature": 0, "max_tokens": 256, "seed": 7, "stream": true,
        })]
    );
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let requests = browser.requests();
    assert!(
        requests
            .iter()
            .all(|url| url.starts_with(&stub.url) || url.starts_with("data:")),
        "{requests:?}"
    );
}

#[test]
fn text_and_colours_come_while_the_answer_grows_and_stop_ends_it() {
    let mut events = events(&streamed());
    events.truncate(30);
    let stub = Stub::start(None, Script::Unending(events));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser);
    browser.wait_for("document.querySelectorAll('.answer .token').length > 10");
    // The text arrives before its tokens.
    browser.wait_for("document.querySelector('.answer').lastChild.data !== ''");
    assert_eq!(
        browser.eval("document.querySelector('.pane:nth-child(2) .token').className"),
        "token unshifted"
    );
    browser.wait_for("document.querySelectorAll('.pane .counts .share-bar').length === 2");
    status(&mut browser, "Writing");
    assert_eq!(
        browser.eval("document.getElementById('submit').disabled"),
        true
    );
    browser.eval("document.getElementById('stop').click()");
    status(&mut browser, "Stopped");
    let so_far = browser.eval(PAGE_TEXTS);
    wait_until("the page hangs up", || stub.hung_up());
    assert_eq!(browser.eval(PAGE_TEXTS), so_far);
    assert_eq!(
        browser.eval("document.getElementById('submit').disabled"),
        false
    );
    assert_eq!(
        browser.eval("document.getElementById('problem').checkVisibility()"),
        false
    );
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn keys_that_go_through_tokens_write_into_fields() {
    let stub = Stub::start(None, Script::Events(events(&streamed())));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser);
    status(&mut browser, "Done");
    for key in ["n", "p", "[", "]"] {
        browser.press(key);
    }
    let field = "document.getElementById('question').value";
    assert!(browser.text(field).ends_with("see there?np[]"));
}

#[test]
fn a_refusal_is_shown_in_the_servers_words() {
    let stub = Stub::start(
        None,
        Script::Refusal("404 Not Found", "The model `x` is not <b>served</b>."),
    );
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser);
    assert_eq!(problem(&mut browser), "The model `x` is not <b>served</b>.");
    assert_eq!(
        browser.eval("document.getElementById('submit').disabled"),
        false
    );
}

#[test]
fn an_error_within_the_stream_is_shown_and_what_came_before_it_stays() {
    let mut events = events(&streamed());
    events.truncate(20);
    events.push(json!({"error": {"message": "There is no memory left.", "type": "server_error"}}));
    let stub = Stub::start(None, Script::Events(events));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser);
    assert_eq!(problem(&mut browser), "There is no memory left.");
    assert_ne!(
        browser.eval("document.querySelector('.answer').textContent"),
        ""
    );
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_key_is_asked_for_and_kept_for_the_session_only() {
    let stub = Stub::start(Some("sesame"), Script::Events(events(&streamed())));
    let Some(mut browser) = Browser::start() else {
        return;
    };
    browser.open(&stub.url);
    assert_eq!(problem(&mut browser), "There is no such key.");
    browser.wait_for("document.activeElement.id === 'key'");
    browser.type_text("sesame");
    browser.eval("document.activeElement.blur()");
    browser.wait_for("document.querySelectorAll('#arms li').length === 3");
    ask(&mut browser);
    status(&mut browser, "Done");
    assert_eq!(
        browser.eval("Object.values(sessionStorage)"),
        json!(["sesame"])
    );
    assert_eq!(
        browser.eval("localStorage.length + document.cookie.length"),
        0
    );
}

#[test]
fn what_is_saved_is_the_report_that_the_program_would_write() {
    let report = streamed();
    let stub = Stub::start(None, Script::Events(events(&report)));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser);
    status(&mut browser, "Done");
    let save = |browser: &mut Browser, name: &str, label: &str| {
        let path = browser.download(name, |browser| {
            browser.eval(&format!("[...document.querySelectorAll('button')].find((button) => button.textContent === '{label}').click()"));
        });
        fs::read_to_string(path).expect("it was saved")
    };
    let json = save(&mut browser, "compare.json", "Save as JSON");
    let saved: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(numbers_as_floats(saved), numbers_as_floats(report.clone()));
    let html = save(&mut browser, "compare.html", "Save as HTML");
    assert!(
        html == page::report(&json),
        "the saved page is not the program's"
    );
    assert_eq!(browser.complaints(), Vec::<String>::new());

    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let path = folder.path().join("saved.html");
    fs::write(&path, html).expect("the folder is writable");
    reopened(&mut browser, &path, &report);
}

/// Asserts that a saved page shows the same numbers.
fn reopened(browser: &mut Browser, path: &Path, report: &Value) {
    browser.open_file(path);
    let places = compare_numbers(browser, report);
    assert!(places_to_show(report).is_subset(&places));
    assert_eq!(
        browser.eval("document.getElementById('ask').checkVisibility()"),
        false
    );
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Converts numbers to floats, because JavaScript does not distinguish 1.0 from 1.
fn numbers_as_floats(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(list) => list.into_iter().map(numbers_as_floats).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, numbers_as_floats(value)))
            .collect(),
        other => other,
    }
}

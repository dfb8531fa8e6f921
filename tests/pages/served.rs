//! The live page with the real server.

use std::fs;

use incant::analyze::Report;
use incant::server::{ApiKeys, ServeOptions};
use serde_json::Value;

use super::{compare_numbers, places_to_show};
use crate::server::support::{Server, in_company, shared};
use crate::support::browser::Browser;

/// Asks the initial arms of the page, and waits for the end.
fn ask(browser: &mut Browser, question: &str) {
    browser.wait_for("document.querySelectorAll('#arms li').length > 1");
    browser.eval("document.getElementById('most').value = '10'");
    browser.eval("document.getElementById('question').focus()");
    browser.type_text(question);
    browser.press("Control+Enter");
    browser.wait_for("document.getElementById('status').textContent.startsWith('Done')");
}

#[test]
fn a_question_to_the_server_becomes_a_report() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let _company = in_company();
    let server = shared();
    browser.open(&server.url());
    ask(&mut browser, "What is the capital of Japan?");
    let saved = browser.download("compare.json", |browser| {
        browser.eval(
            "[...document.querySelectorAll('button')]
                .find((button) => button.textContent === 'Save as JSON').click()",
        );
    });
    let saved = fs::read_to_string(saved).expect("it was saved");
    let report: Value = serde_json::from_str(&saved).expect("JSON");
    let read: Result<Report, _> = serde_json::from_str(&saved);
    read.expect("a report as the program writes it");
    let places = compare_numbers(&mut browser, &report);
    let missing: Vec<_> = places_to_show(&report)
        .difference(&places)
        .cloned()
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let answers = report["prompts"][0]["answers"].as_array().expect("a list");
    assert_eq!(answers.len(), 2, "@base and @assistant");
    for (pane, answer) in answers.iter().enumerate() {
        let shown = format!("document.querySelectorAll('.answer')[{pane}].textContent");
        assert_eq!(browser.text(&shown), answer["text"].as_str().expect("text"));
        assert!(!answer["tokens"].as_array().expect("tokens").is_empty());
    }
    // With the keyboard: into the first answer, and along it.
    browser.eval("document.querySelector('.token[tabindex=\"0\"]').focus()");
    browser.press("ArrowRight");
    browser.wait_for("document.getElementById('popover').matches(':popover-open')");
    browser.press("Escape");
    browser.wait_for("!document.getElementById('popover').matches(':popover-open')");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let requests = browser.requests();
    let own = |url: &String| {
        url.starts_with(&server.url()) || url.starts_with("data:") || url.starts_with("blob:")
    };
    assert!(requests.iter().all(own), "{requests:?}");
}

#[test]
fn a_chat_with_the_server_says_what_its_api_says() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let _company = in_company();
    let server = shared();
    browser.open(&format!("{}#chat", server.url()));
    browser.wait_for("document.activeElement.id === 'message'");
    let most = "document.getElementById('chat-form').elements.namedItem('max_tokens').value = '8'";
    browser.eval(most);
    let turns = "document.querySelectorAll('.turn').length";
    for (turn, question) in ["Name three rivers.", "And three lakes?"]
        .iter()
        .enumerate()
    {
        browser.type_text(question);
        browser.press("Control+Enter");
        browser.wait_for(&format!("{turns} === {}", turn + 1));
        browser.wait_for("document.getElementById('chat-status').textContent.startsWith('Done')");
    }
    let direct = browser.text(
        "(async () => {
            const texts = [...document.querySelectorAll('.turn :is(.asked, .answer)')].map((one) => one.textContent);
            const messages = texts.map((content, at) => ({ role: at % 2 ? 'assistant' : 'user', content }));
            const body = JSON.stringify({ model: document.getElementById('chat-arm').value, messages: messages.slice(0, 3), max_tokens: 8 });
            const response = await fetch('v1/chat/completions', { method: 'POST', body, headers: { 'content-type': 'application/json' } });
            return (await response.json()).choices[0].message.content;
        })()",
    );
    let shown = browser.text("[...document.querySelectorAll('.turn .answer')].at(-1).textContent");
    assert_eq!(shown, direct);
    let facts = browser.text("document.querySelector('.turn .facts').textContent");
    assert!(facts.contains(" of them cached"), "{facts}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_server_with_keys_gives_the_page_and_asks_for_one() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let _company = in_company();
    let mut keys = ApiKeys::default();
    keys.add("sesame").expect("a key");
    let server = Server::start(ServeOptions {
        keys,
        ..ServeOptions::default()
    });
    browser.open(&server.url());
    browser.wait_for("document.activeElement.id === 'key'");
    browser.type_text("sesame");
    browser.eval("document.activeElement.blur()");
    ask(&mut browser, "Hi");
}

//! The chat tab of the live page.

use serde_json::{Value, json};

use super::fixture::HOSTILE;
use super::stub::{Script, Stub, chat_events};
use crate::support::browser::Browser;
use crate::support::wait_until;

/// An answer that shows how markup, spaces and wide characters are displayed.
const ANSWER: &str = "# Plan\n\n1.  **Tokyo**  (東京) 🗼\n\n```html\n<img src=x onerror=\"document.title='owned'\"><b>bold</b> &amp;\n```";

/// The text of the last answer.
const LAST: &str = "[...document.querySelectorAll('.turn .answer')].at(-1).textContent";

/// The question and the answer of each turn.
const TURNS: &str = "[...document.querySelectorAll('.turn')].map((turn) => [turn.querySelector('.asked').textContent, turn.querySelector('.answer').textContent])";

/// The facts displayed for the last answer.
const FACTS: &str = "[...document.querySelectorAll('.turn .facts')].at(-1).textContent";

/// The contents of the field for the next question.
const MESSAGE: &str = "document.getElementById('message').value";

fn says(text: &str) -> Script {
    Script::Events(chat_events(text, "stop"))
}

/// Opens the chat of a server, after its arms have loaded.
fn open(stub: &Stub) -> Option<Browser> {
    let mut browser = Browser::start()?;
    browser.open(&format!("{}#chat", stub.url));
    arms_known(&mut browser);
    Some(browser)
}

fn arms_known(browser: &mut Browser) {
    browser.wait_for("document.getElementById('chat-arm').options.length > 0");
}

/// Types a question and sends it.
fn send(browser: &mut Browser, question: &str) {
    browser.eval("document.getElementById('message').focus()");
    browser.type_text(question);
    browser.press("Control+Enter");
}

/// Sends a question and waits for the complete answer.
fn ask(browser: &mut Browser, question: &str) {
    send(browser, question);
    status(browser, "Done");
}

fn status(browser: &mut Browser, beginning: &str) {
    browser.wait_for(&format!(
        "document.getElementById('chat-status').textContent.startsWith('{beginning}')"
    ));
}

fn problem(browser: &mut Browser) -> String {
    browser.wait_for("document.getElementById('chat-problem').checkVisibility()");
    browser.text("document.getElementById('chat-problem').textContent")
}

/// Presses a button of the last turn.
fn press_in_last_turn(browser: &mut Browser, label: &str) {
    browser.eval(&format!(
        "[...document.querySelectorAll('.turn:last-child button')].find((one) => one.textContent === '{label}').click()"
    ));
}

fn set(browser: &mut Browser, field: &str, value: &str) {
    browser.eval(&format!(
        "(() => {{ const field = document.getElementById('chat-form').elements.namedItem('{field}'); field.value = '{value}'; field.dispatchEvent(new Event('change')); }})()"
    ));
}

#[test]
fn tabs_are_in_the_address_and_under_the_arrow_keys() {
    let stub = Stub::start(None, says("Yes."));
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let state = "[...document.querySelectorAll('[role=tab]')].map((tab) => [tab.textContent, tab.ariaSelected, tab.tabIndex, document.getElementById(tab.getAttribute('aria-controls')).checkVisibility(), document.activeElement === tab])";
    browser.open(&stub.url);
    browser.wait_for("document.activeElement.id === 'question'");
    let compare = json!([
        ["Compare", "true", 0, true, false],
        ["Chat", "false", -1, false, false]
    ]);
    assert_eq!(browser.eval(state), compare);
    browser.eval("document.getElementById('compare-tab').focus()");
    let chat = json!([
        ["Compare", "false", -1, false, false],
        ["Chat", "true", 0, true, true]
    ]);
    browser.press("ArrowRight");
    assert_eq!(browser.eval(state), chat);
    assert_eq!(browser.text("location.hash"), "#chat");
    browser.press("ArrowRight");
    assert_eq!(browser.text("location.hash"), "#compare");
    browser.press("End");
    assert_eq!(browser.eval(state), chat);
    browser.press("Home");
    browser.eval("location.hash = 'chat'");
    browser.wait_for("document.getElementById('chat-panel').checkVisibility()");
    browser.open(&format!("{}?#chat", stub.url));
    browser.wait_for("document.activeElement.id === 'message'");
    browser.eval("document.getElementById('compare-tab').click()");
    assert_eq!(
        browser.text("location.hash + document.title"),
        "#compareCompare"
    );
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn an_answer_streams_and_is_text_whatever_it_looks_like() {
    let stub = Stub::start(None, says(ANSWER));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser, HOSTILE);
    assert_eq!(browser.eval(TURNS), json!([[HOSTILE, ANSWER]]));
    let markup = "document.querySelectorAll('.turn :is(img, b, h1, ol, pre, code, script)').length";
    assert_eq!(browser.eval(markup), 0);
    let spaces = "getComputedStyle(document.querySelector('.turn .answer')).whiteSpaceCollapse";
    assert_eq!(browser.text(spaces), "preserve");
    // The server reports which profile has answered if the arm's id does not name it.
    let arm = "document.querySelector('.turn > h3').textContent";
    assert_eq!(browser.text(arm), "gemma-3-270m (urial)");
    let facts = browser.text(FACTS);
    assert!(
        facts.starts_with("34 tokensprompt 812, 799 of them cached"),
        "{facts}"
    );
    assert_eq!(browser.text(MESSAGE), "");
    // Empty fields are not sent, so the server's defaults apply.
    let asked = json!({
        "model": "gemma-3-270m", "messages": [{"role": "user", "content": HOSTILE}],
        "stream": true, "stream_options": {"include_usage": true},
    });
    assert_eq!(stub.asked(), [asked]);
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let requests = browser.requests();
    let own = |url: &String| url.starts_with(&stub.url) || url.starts_with("data:");
    assert!(requests.iter().all(own), "{requests:?}");
}

#[test]
fn each_question_goes_with_the_turns_before_it() {
    let stub = Stub::saying(vec![says("Tokyo."), says("Three.")]);
    let Some(mut browser) = open(&stub) else {
        return;
    };
    set(&mut browser, "system", "Be brief.");
    ask(&mut browser, "What is the capital of Japan?");
    ask(&mut browser, "How many airports has it?");
    let turns = json!([
        ["What is the capital of Japan?", "Tokyo."],
        ["How many airports has it?", "Three."]
    ]);
    assert_eq!(browser.eval(TURNS), turns);
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of Japan?"},
        {"role": "assistant", "content": "Tokyo."},
        {"role": "user", "content": "How many airports has it?"},
    ]);
    assert_eq!(stub.asked()[1]["messages"], messages);
    // Enter alone inserts a line break.
    browser.type_text("One");
    browser.press("Enter");
    browser.type_text("two");
    assert_eq!(browser.text(MESSAGE), "One\ntwo");
    assert_eq!(stub.asked().len(), 2);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn text_is_there_while_it_is_written_and_escape_stops_it() {
    let mut begun = chat_events(ANSWER, "stop");
    begun.truncate(5);
    let stub = Stub::saying(vec![Script::Unending(begun), says("More.")]);
    let Some(mut browser) = open(&stub) else {
        return;
    };
    send(&mut browser, "Plan my day");
    let so_far: String = ANSWER.chars().take(28).collect();
    browser.wait_for(&format!("{LAST}.length >= 28"));
    status(&mut browser, "Writing");
    let busy = "document.getElementById('turns').ariaBusy";
    assert_eq!(browser.text(busy), "true");
    // A second question waits for the answer to the first.
    browser.press("Control+Enter");
    browser.press("Escape");
    status(&mut browser, "Stopped");
    wait_until("the page hangs up", || stub.hung_up());
    assert_eq!(browser.eval(LAST), json!(so_far));
    assert!(browser.text(FACTS).starts_with("stopped"));
    assert_eq!(browser.text(busy), "false");
    let shown = "document.getElementById('chat-problem').checkVisibility()";
    assert_eq!(browser.eval(shown), false);
    // The partial answer is part of the conversation.
    ask(&mut browser, "And then?");
    assert_eq!(stub.asked().len(), 2);
    assert_eq!(stub.asked()[1]["messages"][1]["content"], json!(so_far));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_question_that_is_stopped_before_its_answer_comes_back() {
    let stub = Stub::start(None, Script::Unending(Vec::new()));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    send(&mut browser, "Plan my day");
    status(&mut browser, "Asking");
    browser.eval("document.getElementById('chat-stop').click()");
    status(&mut browser, "Stopped");
    wait_until("the page hangs up", || stub.hung_up());
    assert_eq!(browser.eval(TURNS), json!([]));
    assert_eq!(browser.text(MESSAGE), "Plan my day");
}

#[test]
fn a_refusal_is_shown_in_the_servers_words_and_the_question_comes_back() {
    let words = "The model `x` is not <b>served</b>.";
    let stub = Stub::saying(vec![says("Yes."), Script::Refusal("404 Not Found", words)]);
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser, "Is it?");
    send(&mut browser, "Are you sure?");
    assert_eq!(problem(&mut browser), words);
    assert_eq!(browser.text(MESSAGE), "Are you sure?");
    assert_eq!(browser.eval(TURNS), json!([["Is it?", "Yes."]]));
    let can_send = "document.getElementById('send').checkVisibility()";
    assert_eq!(browser.eval(can_send), true);
    // An answer that could not be regenerated stays.
    press_in_last_turn(&mut browser, "Regenerate");
    browser.wait_for("document.getElementById('chat-problem').checkVisibility()");
    wait_until("it is asked again", || stub.asked().len() == 3);
    browser.wait_for(can_send);
    assert_eq!(browser.eval(TURNS), json!([["Is it?", "Yes."]]));
}

#[test]
fn what_came_before_an_error_stays() {
    let mut failing = chat_events(ANSWER, "stop");
    failing.truncate(4);
    let broken = failing.clone();
    failing.push(json!({"error": {"message": "There is no memory left.", "type": "server_error"}}));
    let stub = Stub::saying(vec![Script::Events(failing), Script::Broken(broken)]);
    let Some(mut browser) = open(&stub) else {
        return;
    };
    let so_far: String = ANSWER.chars().take(21).collect();
    send(&mut browser, "Plan my day");
    assert_eq!(problem(&mut browser), "There is no memory left.");
    assert_eq!(browser.eval(LAST), json!(so_far));
    assert!(browser.text(FACTS).starts_with("broken off"));
    press_in_last_turn(&mut browser, "Regenerate");
    browser.wait_for("document.getElementById('chat-problem').textContent.includes('connection')");
    assert_eq!(browser.eval(TURNS), json!([["Plan my day", so_far]]));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_last_answer_is_asked_for_again_and_the_last_question_edited() {
    let answers = ["First.", "One.", "Two.", "Three."];
    let stub = Stub::saying(answers.map(says).into());
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser, "Hello");
    ask(&mut browser, "Count");
    let again = "[...document.querySelectorAll('.turn button')].filter((one) => one.checkVisibility()).map((one) => one.textContent)";
    let buttons = json!(["Copy", "Edit", "Copy", "Regenerate"]);
    assert_eq!(browser.eval(again), buttons);
    press_in_last_turn(&mut browser, "Regenerate");
    browser.wait_for(&format!("{LAST} === 'Two.'"));
    status(&mut browser, "Done");
    assert_eq!(stub.asked()[1], stub.asked()[2]);

    browser.type_text("a draft");
    press_in_last_turn(&mut browser, "Edit");
    assert_eq!(browser.text(MESSAGE), "Count");
    browser.press("Escape");
    assert_eq!(browser.text(MESSAGE), "a draft");
    press_in_last_turn(&mut browser, "Edit");
    send(&mut browser, " on");
    browser.wait_for(&format!("{LAST} === 'Three.'"));
    status(&mut browser, "Done");
    let turns = json!([["Hello", "First."], ["Count on", "Three."]]);
    assert_eq!(browser.eval(TURNS), turns);
    assert_eq!(browser.text(MESSAGE), "a draft");
    let asked = stub.asked();
    assert_eq!(asked[3]["messages"][2]["content"], "Count on");
    assert_eq!(asked[3]["messages"][1]["content"], "First.");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn an_arm_is_described_and_its_defaults_are_shown() {
    let stub = Stub::start(None, says("Yes."));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    let about = "[...document.querySelectorAll('#chat-about p')].map((line) => line.textContent)";
    let defaults = "[...document.querySelectorAll('#chat-fields input')].map(({ name, placeholder, disabled }) => [name, placeholder, disabled])";
    assert_eq!(
        browser.text("document.getElementById('chat-arm').value"),
        "gemma-3-270m"
    );
    let urial = json!([
        "Profile urial: The <i>urial</i>",
        "What urial does.",
        "English or Japanese, by the first question's language"
    ]);
    assert_eq!(browser.eval(about), urial);
    set(&mut browser, "arm", "gemma-3-270m@assistant");
    let assistant = json!([
        "Profile assistant: The <i>assistant</i>",
        "What assistant does.",
        "English"
    ]);
    assert_eq!(browser.eval(about), assistant);
    let of_assistant = json!([
        ["temperature", "0.25", false],
        ["top_p", "1", false],
        ["max_tokens", "512", false],
        ["seed", "drawn", false],
        ["guidance", "0.5", false]
    ]);
    assert_eq!(browser.eval(defaults), of_assistant);
    let values = [
        ("temperature", "0.5"),
        ("top_p", "0.9"),
        ("max_tokens", "20"),
        ("seed", "7"),
        ("guidance", "1.5"),
    ];
    for (field, value) in values {
        set(&mut browser, field, value);
    }
    ask(&mut browser, "Is it?");
    let asked = stub.asked();
    let sent = json!({
        "model": "gemma-3-270m@assistant", "messages": [{"role": "user", "content": "Is it?"}],
        "temperature": 0.5, "top_p": 0.9, "max_tokens": 20, "seed": 7, "guidance": 1.5,
        "stream": true, "stream_options": {"include_usage": true},
    });
    assert_eq!(asked[0], sent);

    // Without turns, guidance has nothing to contrast with.
    set(&mut browser, "arm", "gemma-3-270m@base");
    let of_base = json!([
        ["temperature", "1", false],
        ["top_p", "1", false],
        ["max_tokens", "no limit", false],
        ["seed", "drawn", false],
        ["guidance", "none", true]
    ]);
    assert_eq!(browser.eval(defaults), of_base);
    ask(&mut browser, "Is it?");
    assert_eq!(stub.asked()[1]["guidance"], Value::Null);
    assert_eq!(stub.asked()[1]["seed"], 7);

    // A value out of range is not sent, and is displayed.
    browser.eval("document.getElementById('chat-more').open = false");
    set(&mut browser, "temperature", "3");
    send(&mut browser, "Is it?");
    assert_eq!(
        browser.eval("document.querySelector('[name=temperature]').checkVisibility()"),
        true
    );
    assert_eq!(stub.asked().len(), 2);
    assert_eq!(browser.text(MESSAGE), "Is it?");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn an_answer_that_was_cut_off_says_so() {
    let cut = Script::Events(chat_events("It is", "length"));
    let stub = Stub::saying(vec![cut, says("Yes.")]);
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser, "Is it?");
    assert!(browser.text(FACTS).starts_with("cut off at the limit"));
    ask(&mut browser, "Is it?");
    assert!(browser.text(FACTS).starts_with("34 tokens"));
}

#[test]
fn one_key_is_asked_for_in_both_tabs() {
    let stub = Stub::start(Some("sesame"), says("Yes."));
    let Some(mut browser) = Browser::start() else {
        return;
    };
    browser.open(&format!("{}#chat", stub.url));
    assert_eq!(problem(&mut browser), "There is no such key.");
    browser.wait_for("document.activeElement.id === 'key'");
    browser.type_text("sesame");
    browser.press("Enter");
    arms_known(&mut browser);
    browser.wait_for("document.activeElement.id === 'message'");
    ask(&mut browser, "Is it?");
    assert_eq!(browser.eval(TURNS), json!([["Is it?", "Yes."]]));
    let arms = "document.querySelectorAll('#arms li').length";
    assert_eq!(browser.eval(arms), 3);
}

#[test]
fn a_conversation_is_kept_for_the_session_only_until_it_is_cleared() {
    let stub = Stub::start(None, says(ANSWER));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    assert_eq!(browser.eval("sessionStorage.length"), 0);
    set(&mut browser, "arm", "gemma-3-270m@urial");
    set(&mut browser, "system", "Be brief.");
    ask(&mut browser, "Plan my day");
    browser.type_text("a draft");
    browser.open(&format!("{}?again#chat", stub.url));
    arms_known(&mut browser);
    assert_eq!(browser.eval(TURNS), json!([["Plan my day", ANSWER]]));
    let fields =
        "['chat-arm', 'chat-system', 'message'].map((id) => document.getElementById(id).value)";
    let kept = json!(["gemma-3-270m@urial", "Be brief.", "a draft"]);
    assert_eq!(browser.eval(fields), kept);
    let elsewhere = "localStorage.length + document.cookie.length";
    assert_eq!(browser.eval(elsewhere), 0);
    browser.eval("document.getElementById('chat-clear').click()");
    assert_eq!(browser.eval(TURNS), json!([]));
    assert_eq!(browser.eval("sessionStorage.length"), 0);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn answers_can_be_copied() {
    let stub = Stub::start(None, says("Yes."));
    let Some(mut browser) = open(&stub) else {
        return;
    };
    ask(&mut browser, "Is it?");
    let copied =
        "['Copied', 'Selected'].includes(document.querySelector('#chat-tools button').textContent)";
    browser.eval("document.querySelector('#chat-tools button').click()");
    browser.wait_for(copied);
    press_in_last_turn(&mut browser, "Copy");
    browser.wait_for("[...document.querySelectorAll('.turn button')].some((one) => ['Copied', 'Selected'].includes(one.textContent))");
}

#[test]
fn both_forms_say_which_keys_send_them() {
    let stub = Stub::start(None, says("Yes."));
    let hints = "[...document.querySelectorAll('.shortcut')].filter((one) => one.checkVisibility()).map((one) => one.textContent)";
    let platforms = [("Linux x86_64", "Ctrl+Enter"), ("MacIntel", "Cmd+Enter")];
    for (platform, keys) in platforms {
        let Some(mut browser) = Browser::start() else {
            return;
        };
        browser.platform(platform);
        browser.open(&format!("{}#chat", stub.url));
        for tab in ["compare", "chat"] {
            browser.eval(&format!("document.getElementById('{tab}-tab').click()"));
            assert_eq!(browser.eval(hints), json!([keys]), "{tab}");
        }
    }
}

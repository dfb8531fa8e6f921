//! The appearance of both pages: on small and large screens, in light and dark.

use std::fs;

use incant::analyze::page;
use serde_json::{Value, json};

use super::fixture;
use super::open;
use super::stub::{Script, Stub, chat_events, events};
use crate::support::browser::Browser;

/// A script that returns the texts whose contrast to their background is less than 4.5 to 1.
const FAINT: &str = "(() => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    // Colours in whatever notation, one over the other.
    const mix = (colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) {
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
        }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((value) => (value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(':disabled, option')) continue;
        const behind = [];
        for (let at = element; at; at = at.parentElement) behind.unshift(getComputedStyle(at).backgroundColor);
        const [dark, light] = [luminance(mix(behind)), luminance(mix([...behind, getComputedStyle(element).color]))].sort((a, b) => a - b);
        const contrast = (light + 0.05) / (dark + 0.05);
        if (contrast < 4.5) faint.push([element.className, walker.currentNode.data, contrast]);
    }
    return faint;
})()";

/// The width by which the page exceeds the window.
const OVERFLOW: &str =
    "document.documentElement.scrollWidth - document.documentElement.clientWidth";

fn open_everything(browser: &mut Browser) {
    browser.eval("document.querySelectorAll('details').forEach((one) => (one.open = true))");
}

/// The live page, after an answer.
fn asked() -> Option<(Browser, Stub)> {
    let mut browser = Browser::start()?;
    let stub = Stub::start(None, Script::Events(events(&fixture::report(&[0.0]))));
    browser.open(&stub.url);
    browser.wait_for("document.querySelectorAll('#arms li').length > 0");
    browser.type_text("What is the capital of Japan?");
    browser.press("Control+Enter");
    browser.wait_for("document.getElementById('status').textContent.startsWith('Done')");
    Some((browser, stub))
}

/// The chat tab, after a refusal and while its last question is edited.
fn chatted() -> Option<(Browser, Stub)> {
    let mut browser = Browser::start()?;
    let answer = format!("| a | b |\n|---|---|\n{}", "unbroken".repeat(40));
    let stub = Stub::saying(vec![
        Script::Events(chat_events(&answer, "length")),
        Script::Refusal("400 Bad Request", "The prompt is too long."),
    ]);
    browser.open(&format!("{}#chat", stub.url));
    browser.wait_for("document.activeElement.id === 'message'");
    for (question, end) in [
        (
            "Draw a table",
            "document.getElementById('chat-status').textContent.startsWith('Done')",
        ),
        (
            "Again",
            "document.getElementById('chat-problem').checkVisibility()",
        ),
    ] {
        browser.type_text(question);
        browser.press("Control+Enter");
        browser.wait_for(end);
    }
    browser.eval("document.querySelector('.turn header button').click()");
    Some((browser, stub))
}

#[test]
fn nothing_is_wider_than_the_screen() {
    let Some(mut report) = open(fixture::report(&[0.0, 0.8])) else {
        return;
    };
    let (mut live, _stub) = asked().expect("there is a browser");
    let (mut chat, _chat_stub) = chatted().expect("there is a browser");
    for browser in [&mut report.browser, &mut live, &mut chat] {
        open_everything(browser);
        for width in [320, 360, 390, 768, 1024, 1440, 2560] {
            browser.viewport(width, 800);
            browser.press("n");
            assert_eq!(browser.eval(OVERFLOW), 0, "{width}");
            let popover = browser.eval("(({ left, right, top, bottom }) => left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight)(document.getElementById('popover').getBoundingClientRect())");
            assert_eq!(popover, true, "{width}");
        }
    }
}

#[test]
fn answers_stand_side_by_side_where_there_is_room() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    let rows = "new Set([...document.querySelectorAll('.pane')].map((pane) => pane.getBoundingClientRect().top)).size";
    for (width, expected) in [(390, 3), (1440, 1), (2560, 1)] {
        opened.browser.viewport(width, 800);
        assert_eq!(opened.browser.eval(rows), expected, "{width}");
    }
}

#[test]
fn a_token_is_seen_beside_its_details_on_a_narrow_screen() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    opened.browser.viewport(390, 800);
    for _ in 0..6 {
        opened.browser.press("n");
        let gap = opened.browser.eval("document.getElementById('popover').getBoundingClientRect().top - document.activeElement.getBoundingClientRect().bottom");
        assert!(gap.as_f64() >= Some(0.0), "{gap}");
    }
}

#[test]
fn light_and_dark_differ_and_all_text_can_be_read_in_both() {
    let Some(mut report) = open(fixture::report(&[0.0, 0.8])) else {
        return;
    };
    let (mut live, _stub) = asked().expect("there is a browser");
    let (mut chat, _chat_stub) = chatted().expect("there is a browser");
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    for browser in [&mut report.browser, &mut live, &mut chat] {
        open_everything(browser);
        let mut pictures = Vec::new();
        for scheme in ["light", "dark"] {
            browser.colour_scheme(scheme);
            let picture = folder.path().join("picture.png");
            browser.screenshot(&picture, true);
            pictures.push(fs::read(picture).expect("it was made"));
            for colour in ["class", "probability"] {
                browser.eval(&format!("document.getElementById('colour').value = '{colour}'; document.getElementById('colour').dispatchEvent(new Event('change'))"));
                browser.press("n");
                assert_eq!(browser.eval(FAINT), json!([]), "{scheme}");
            }
        }
        assert!(pictures[0] != pictures[1], "light and dark look the same");
    }
}

#[test]
fn classes_differ_in_more_than_colour() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    let lines: Vec<Value> = ["unshifted", "marginal", "shifted"]
        .iter()
        .map(|class| {
            opened.browser.eval(&format!(
                "(({{ textDecorationLine, textDecorationStyle }}) => [textDecorationLine, textDecorationStyle])(getComputedStyle(document.querySelector('.answer .{class}')))"
            ))
        })
        .collect();
    assert_eq!(
        lines,
        [
            json!(["none", "solid"]),
            json!(["underline", "dotted"]),
            json!(["underline", "solid"])
        ]
    );
}

#[test]
fn every_field_and_button_has_a_name() {
    let Some((mut live, _stub)) = asked() else {
        return;
    };
    let (mut chat, _chat_stub) = chatted().expect("there is a browser");
    for browser in [&mut live, &mut chat] {
        open_everything(browser);
        let nameless = browser.eval(
            "[...document.querySelectorAll('input, select, textarea, button, [role=button], [role=img], [role=region]')]
                .filter((one) => !one.ariaLabel && !one.textContent.trim() && !one.labels?.length)
                .map((one) => one.outerHTML)",
        );
        assert_eq!(nameless, json!([]));
    }
}

#[test]
fn the_pages_parts_fit_their_policy() {
    // A part that was changed while the page was assembled would not run.
    assert!(page::content_security_policy().contains("default-src 'none'"));
    assert!(!page::live().contains("{{"));
    assert!(page::report("{}").contains("connect-src 'none'"));
}

//! A report opened from disk.

use serde_json::{Value, json};

use super::fixture::{self, HOSTILE};
use super::{compare_numbers, open, places_to_show};
use crate::support::browser::Browser;

/// The focused token: its pane, its index in the pane and its text.
const FOCUS: &str = "(() => {
    const token = document.activeElement;
    const pane = token.closest('.pane');
    if (!token.matches('.token')) return null;
    return [[...document.querySelectorAll('.pane')].indexOf(pane), [...pane.querySelectorAll('.token')].indexOf(token), token.textContent];
})()";

/// The token that the popover describes; null while it is closed.
const POPOVER: &str = "document.querySelector('#popover:popover-open')?.querySelector('.token-name').textContent ?? null";

fn choose(browser: &mut Browser, field: &str, value: &str) {
    browser.eval(&format!(
        "document.getElementById({field:?}).value = {value:?};
        document.getElementById({field:?}).dispatchEvent(new Event('change'))"
    ));
}

#[test]
fn every_number_of_the_report_is_on_its_page_and_no_other() {
    let Some(mut opened) = open(fixture::report(&[0.0, 0.8])) else {
        return;
    };
    let places = compare_numbers(&mut opened.browser, &opened.report);
    let missing: Vec<_> = places_to_show(&opened.report)
        .difference(&places)
        .cloned()
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let big = "document.querySelector('.big .number').textContent";
    assert_eq!(opened.browser.text(big), "61.3%");
}

#[test]
fn guided_arms_and_the_profiles_that_answer_are_named() {
    let mut report = fixture::report(&[0.0]);
    report["arms"][0]["rendered_by"] = json!("urial-ja");
    report["arms"][1]["id"] = json!("gemma-3-270m@urial guidance=0.5");
    report["arms"][1]["guidance"] = json!("guidance=0.5");
    let Some(mut opened) = open(report) else {
        return;
    };
    let heads = "[...document.querySelectorAll('.pane header')].map((head) => [...head.children].map((one) => one.textContent))";
    let expected = json!([
        ["gemma-3-270m@base (urial-ja)", "reference"],
        [
            "gemma-3-270m@urial guidance=0.5",
            "guidance=0.5 · measured without guidance"
        ],
        ["gemma-3-270m+chat"],
    ]);
    assert_eq!(opened.browser.eval(heads), expected);
    // Of six pairs, those of the guided arm.
    let told = "[...document.querySelectorAll('.pair header .note')].filter((one) => one.textContent.includes('measured without guidance')).length";
    assert_eq!(opened.browser.eval(told), 4);
    opened.browser.viewport(320, 800);
    let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(opened.browser.eval(overflow), 0);
    assert_eq!(opened.browser.complaints(), Vec::<String>::new());
}

#[test]
fn tokens_are_coloured_and_counted_by_their_class_under_the_chosen_arm() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    for under in 0..3 {
        choose(&mut opened.browser, "under", &under.to_string());
        for (arm, answer) in opened.report["prompts"][0]["answers"]
            .as_array()
            .unwrap()
            .iter()
            .enumerate()
        {
            let pane = format!("document.querySelectorAll('.pane')[{arm}]");
            let counts = opened.browser.eval(&format!(
                "Object.fromEntries([...{pane}.querySelectorAll('[data-class]')].map((one) =>
                    [one.dataset.class, Number(one.querySelector('.number').dataset.value)]))"
            ));
            let classes: Vec<&Value> = answer["tokens"]
                .as_array()
                .unwrap()
                .iter()
                .flat_map(|token| token["scores"].as_array().unwrap())
                .filter(|score| score["arm"] == under)
                .map(|score| &score["class"])
                .collect();
            if arm == under {
                assert_eq!(counts, json!({}));
                continue;
            }
            for class in ["unshifted", "marginal", "shifted"] {
                let of_class = classes.iter().filter(|other| **other == class).count();
                assert_eq!(counts[class], of_class, "{class} of {arm} under {under}");
            }
            // In the first words of every answer, each token is one unit of the page.
            let coloured = opened.browser.eval(&format!(
                "[...{pane}.querySelectorAll('.token')].slice(0, 5).map((token) => token.className.replace('token ', ''))"
            ));
            assert_eq!(coloured, json!(classes[..5]));
        }
    }
    choose(&mut opened.browser, "colour", "probability");
    let shades = "[...new Set([...document.querySelectorAll('.pane .token')].map(({ className }) => className))].sort().join()";
    assert_eq!(opened.browser.text(shades), "token likely,token sure");
}

#[test]
fn the_tokens_of_an_answer_are_its_text_and_characters_are_whole() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    for prompt in 0..2 {
        for arm in 0..3 {
            let pane = format!("document.querySelectorAll('.pane .answer')[{arm}]");
            let joined = format!(
                "[...{pane}.querySelectorAll('.token')].map((token) => token.textContent).join('')"
            );
            let text = &opened.report["prompts"][prompt]["answers"][arm]["text"];
            assert_eq!(opened.browser.eval(&joined), *text);
            assert_eq!(opened.browser.eval(&format!("{pane}.textContent")), *text);
        }
        opened.browser.press("]");
    }
    opened.browser.press("[");
    // A character of three tokens shows the details of each.
    opened.browser.eval("[...document.querySelectorAll('.token')].find((token) => token.textContent === '京').focus()");
    let names = "[...document.querySelectorAll('#popover header .token-name')].map((name) => name.textContent.trim())";
    assert_eq!(opened.browser.eval(names), json!(["e4", "ba", "ac"]));
}

#[test]
fn a_character_that_was_cut_off_is_left_out() {
    let mut report = fixture::report(&[0.0]);
    let answer = &mut report["prompts"][0]["answers"][0];
    let beginning = answer["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .position(|token| token["bytes"] == json!([0xe4]));
    let tokens = answer["tokens"].as_array_mut().unwrap();
    tokens.truncate(beginning.unwrap() + 2);
    let text: Vec<u8> = tokens
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    let text = str::from_utf8(&text[..text.len() - 2]).unwrap().to_owned();
    answer["text"] = json!(text);
    answer["finish_reason"] = json!("length");
    let Some(mut opened) = open(report) else {
        return;
    };
    assert_eq!(
        opened
            .browser
            .text("document.querySelector('.answer').textContent"),
        text
    );
    opened
        .browser
        .eval("document.querySelector('.answer .token:last-of-type').focus()");
    assert_eq!(
        opened
            .browser
            .eval("document.querySelectorAll('#popover .details').length"),
        2
    );
}

#[test]
fn arrows_move_between_tokens_and_answers() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    let browser = &mut opened.browser;
    let texts = |browser: &mut Browser, pane: usize| {
        browser.eval(&format!("[...document.querySelectorAll('.pane')[{pane}].querySelectorAll('.token')].map((token) => token.textContent)"))
    };
    let (first, second) = (texts(browser, 0), texts(browser, 1));
    // In each pane, one token is reachable with Tab.
    assert_eq!(
        browser.eval("document.querySelectorAll('.token[tabindex=\"0\"]').length"),
        3
    );
    browser.eval("document.querySelector('.answer .token').focus()");
    let last = first.as_array().unwrap().len() - 1;
    let steps = [
        ("ArrowRight", (0, 1)),
        ("ArrowRight", (0, 2)),
        ("ArrowLeft", (0, 1)),
        ("ArrowUp", (0, 1)),
        ("End", (0, last)),
        ("ArrowRight", (0, last)),
        ("ArrowDown", (1, last)),
        ("Home", (1, 0)),
        ("ArrowDown", (2, 0)),
        ("ArrowDown", (2, 0)),
        ("ArrowUp", (1, 0)),
        ("ArrowUp", (0, 0)),
    ];
    for (key, (pane, place)) in steps {
        browser.press(key);
        let focus = browser.eval(FOCUS);
        assert_eq!(
            (&focus[0], &focus[1]),
            (&json!(pane), &json!(place)),
            "after {key}"
        );
        let text = if pane == 0 { &first } else { &second }[place].clone();
        assert!(pane == 2 || focus[2] == text, "after {key}");
    }
}

#[test]
fn n_and_p_go_through_the_shifted_tokens_of_all_answers() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    let browser = &mut opened.browser;
    let shifted = browser.eval(
        "[...document.querySelectorAll('.pane')].flatMap((pane, index) => [...pane.querySelectorAll('.token')].flatMap((token, place) =>
            token.classList.contains('shifted') ? [[index, place, token.textContent]] : []))",
    );
    let shifted = shifted.as_array().unwrap();
    assert!(shifted.len() > 10);
    for token in shifted.iter().chain([&shifted[0]]) {
        browser.press("n");
        assert_eq!(browser.eval(FOCUS), *token);
    }
    for token in [shifted.last().unwrap(), &shifted[shifted.len() - 2]] {
        browser.press("p");
        assert_eq!(browser.eval(FOCUS), *token);
    }
}

#[test]
fn details_open_at_the_pointer_and_the_focus_and_stay_when_pinned() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    let browser = &mut opened.browser;
    let token = "[...document.querySelectorAll('.pane')[1].querySelectorAll('.token')]";
    assert_eq!(browser.eval(POPOVER), Value::Null);
    browser.point_at(".pane:nth-child(2) .token:nth-of-type(4)");
    browser.wait_for(&format!("({POPOVER}) === '␣Japan'"));
    // Both sides, each with its alternatives, and every number as in the report.
    let places = compare_numbers(browser, &opened.report);
    for number in [
        "rank",
        "scores/0/kl",
        "scores/0/kl_reverse",
        "scores/1/rank",
    ] {
        assert!(
            places.contains(&format!("/prompts/0/answers/1/tokens/3/{number}")),
            "{number}"
        );
    }
    let score = &opened.report["prompts"][0]["answers"][1]["tokens"][3];
    for (side, logprobs) in [
        (0, &score["top_logprobs"]),
        (1, &score["scores"][0]["top_logprobs"]),
    ] {
        let shown = browser.eval(&format!("[...document.querySelectorAll('.side')[{side}].querySelectorAll('li')].slice(0, 5).map((one) => Number(one.querySelector('.number').dataset.value))"));
        for (place, one) in logprobs.as_array().unwrap().iter().enumerate() {
            let difference =
                shown[place].as_f64().unwrap() - one["logprob"].as_f64().unwrap().exp();
            assert!(difference.abs() < 1e-12);
        }
        assert_eq!(browser.eval(&format!("document.querySelectorAll('.side')[{side}].querySelector('.chosen .token-name').textContent")), "␣Japan");
    }
    browser.point_at("h1");
    browser.wait_for(&format!("({POPOVER}) === null"));

    browser.eval(&format!("{token}[5].focus()"));
    assert_eq!(browser.eval(POPOVER), "␣Tokyo");
    browser.press("ArrowLeft");
    assert_eq!(browser.eval(POPOVER), "␣is");
    browser.press("Escape");
    assert_eq!(browser.eval(POPOVER), Value::Null);
    assert_eq!(browser.eval(FOCUS)[1], 4);

    browser.press("Enter");
    assert_eq!(browser.eval(POPOVER), "␣is");
    browser.point_at(".pane:nth-child(2) .token:nth-of-type(1)");
    browser.eval("document.activeElement.blur()");
    // Longer than an unpinned popover stays open.
    browser.eval("new Promise((resolve) => setTimeout(resolve, 400))");
    assert_eq!(browser.eval(POPOVER), "␣is");
    browser.press("Escape");
    assert_eq!(browser.eval(POPOVER), Value::Null);
}

#[test]
fn details_of_the_focus_stay_over_a_pointer_at_rest() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    let browser = &mut opened.browser;
    // Longer than unpinned details stay open.
    let wait = "new Promise((resolve) => setTimeout(resolve, 300))";
    let held = "document.querySelector('.open-details') === document.activeElement";
    // The event that a browser sends when a key has scrolled the page below the pointer.
    for below in [".pane h3", ".pane:last-child .token"] {
        browser.press("n");
        browser.eval(&format!(
            "document.querySelector({below:?}).dispatchEvent(new MouseEvent('mouseover', {{ bubbles: true }}))"
        ));
        browser.eval(wait);
        assert_eq!(browser.eval(held), true, "{below}");
    }
    browser.eval(wait);
    browser.point_at(".pane h3");
    browser.eval(wait);
    assert_eq!(browser.eval(held), true);
}

#[test]
fn questions_are_chosen_with_brackets_buttons_and_the_list() {
    let Some(mut opened) = open(fixture::report(&[0.0, 0.8])) else {
        return;
    };
    let browser = &mut opened.browser;
    let heading = "document.getElementById('prompt-heading').textContent";
    let numbers = "document.querySelector('.facts [data-pointer]').dataset.pointer";
    assert_eq!(browser.text(heading), "Question 1 of 2");
    for action in ["]", "]", "[", "["] {
        browser.press(action);
    }
    assert_eq!(browser.text(heading), "Question 1 of 2");
    browser.eval("document.getElementById('next').click()");
    assert_eq!(browser.text(heading), "Question 2 of 2");
    assert_eq!(
        browser.text("document.querySelector('.message').textContent"),
        HOSTILE
    );
    choose(browser, "answer", "1");
    assert_eq!(
        browser.text(numbers),
        "/prompts/1/answers/1/usage/completion_tokens"
    );
    choose(browser, "prompt", "0");
    assert_eq!(
        browser.text(numbers),
        "/prompts/0/answers/1/usage/completion_tokens"
    );
}

#[test]
fn text_that_looks_like_markup_stays_text() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    let browser = &mut opened.browser;
    browser.press("]");
    for arm in 0..3 {
        let text = &opened.report["prompts"][1]["answers"][arm]["text"];
        let pane = format!("document.querySelectorAll('.answer')[{arm}].textContent");
        assert_eq!(browser.eval(&pane), *text);
    }
    compare_numbers(browser, &opened.report);
    assert_eq!(
        browser.eval("document.querySelectorAll('img, b b, main script').length"),
        0
    );
    assert_eq!(browser.eval("document.scripts.length"), 2);
    assert_ne!(browser.text("document.title"), "owned");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_report_asks_for_nothing_and_runs_nothing_but_its_own_script() {
    let Some(mut opened) = open(fixture::report(&[0.0, 0.8])) else {
        return;
    };
    let browser = &mut opened.browser;
    for key in ["n", "Enter", "Escape", "]", "n", "p"] {
        browser.press(key);
    }
    compare_numbers(browser, &opened.report);
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let requests = browser.requests();
    let own = format!("file://{}", opened.path.display());
    assert!(
        requests
            .iter()
            .all(|url| *url == own || url.starts_with("data:")),
        "{requests:?}"
    );

    // Markup inserted in another way would be harmless, too.
    browser.eval("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = `owned`\">')");
    let fetched =
        browser.eval("fetch('http://127.0.0.1:9/').then(() => 'fetched', () => 'refused')");
    assert_eq!(fetched, "refused");
    assert_ne!(browser.text("document.title"), "owned");
    assert!(
        browser
            .complaints()
            .iter()
            .all(|one| one.contains("Content Security Policy"))
    );
}

#[test]
fn the_command_that_repeats_it_can_be_copied() {
    let Some(mut opened) = open(fixture::report(&[0.0])) else {
        return;
    };
    let browser = &mut opened.browser;
    let command = &opened.report["settings"]["command"];
    assert_eq!(
        browser.eval("document.querySelector('.command code').textContent"),
        *command
    );
    browser.eval("document.querySelector('.command button').click()");
    browser.wait_for(
        "['Copied', 'Selected'].includes(document.querySelector('.command button').textContent)",
    );
}

#[test]
fn a_report_without_analysis_shows_the_answers_alone() {
    let mut report = fixture::report(&[0.0]);
    report["settings"]["analysis"] = json!(false);
    report["summary"] = Value::Null;
    for answer in report["prompts"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .flat_map(|prompt| prompt["answers"].as_array_mut().unwrap())
    {
        answer["tokens"] = Value::Null;
    }
    let Some(mut opened) = open(report) else {
        return;
    };
    let browser = &mut opened.browser;
    assert_eq!(
        browser.eval("document.querySelector('.answer').textContent"),
        opened.report["prompts"][0]["answers"][0]["text"]
    );
    let shown = "[...document.querySelectorAll('#legend, #keys, #under-field, #summary, #removed, #sampling')].filter((one) => one.checkVisibility()).length";
    assert_eq!(browser.eval(shown), 0);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

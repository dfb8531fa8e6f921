//! The page in a headless Chromium: a report, and the live page with both its tabs, with a
//! scripted server and with the real one.

mod chat;
mod fixture;
mod live;
mod looks;
mod report;
mod served;
mod stub;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use incant::analyze::page;
use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::browser::Browser;

/// The page of a report in a browser.
struct Opened {
    browser: Browser,
    report: Value,
    path: PathBuf,
    _folder: TempDir,
}

/// Opens the page of a report, if there is a browser.
fn open(report: Value) -> Option<Opened> {
    let mut browser = Browser::start()?;
    let folder = tempfile::tempdir().expect("there is a folder for temporary files");
    let path = folder.path().join("report.html");
    fs::write(&path, page::report(&report.to_string())).expect("the folder is writable");
    browser.open_file(&path);
    Some(Opened {
        browser,
        report,
        path,
        _folder: folder,
    })
}

/// Asserts that every number of the page that refers to a place in the report equals the number
/// there. Returns the places. Collapsed details are opened first.
fn compare_numbers(browser: &mut Browser, report: &Value) -> BTreeSet<String> {
    browser.eval("document.querySelectorAll('main details').forEach((one) => (one.open = true))");
    // Their contents are created when they open.
    let made =
        "[...document.querySelectorAll('main details')].every((one) => one.children.length > 1)";
    browser.wait_for(made);
    let numbers = browser.eval(
        "[...document.querySelectorAll('[data-pointer]')].map(({ dataset, textContent }) =>
            [dataset.pointer, dataset.value ?? null, textContent])",
    );
    let places = numbers.as_array().expect("a list").iter().map(|number| {
        let place = number[0].as_str().expect("a text");
        let value = report.pointer(place);
        let value = value.unwrap_or_else(|| panic!("{place} is not in the report"));
        let exact = number[1]
            .as_str()
            .map(|text| text.parse::<f64>().expect("a number"));
        assert_eq!(exact, value.as_f64(), "{place}");
        let text = number[2].as_str().expect("a text");
        assert!(
            is_written(place, value.as_f64(), text),
            "{place}: {value} is written {text}"
        );
        place.to_owned()
    });
    places.collect()
}

/// The places of numbers that are displayed as shares, in nats and as means.
static WRITTEN: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    let places = [
        "/(shares|interval|positions/[0-9]+)/(unshifted|marginal|shifted)|\
         /removed/[0-9]+/(share|kl_share|interval)|/(probability|distinct|distinct_2)$",
        "/(kl|kl_reverse)(/[01])?$|/(logprob|own_logprob|diversity)$",
        "/most_shifted/[0-9]+/rank$|/sampling/[0-9]+/tokens$",
    ];
    places.map(|place| Regex::new(place).expect("it is one"))
});

/// Whether a text is the page's representation of a number, depending on the number's place.
fn is_written(place: &str, value: Option<f64>, text: &str) -> bool {
    let Some(value) = value else {
        return text == "–";
    };
    let [shares, nats, means] = &*WRITTEN;
    if text == "<0.1%" {
        return shares.is_match(place) && value > 0.0 && value < 0.0005;
    }
    let text = text.replace('−', "-").replace(',', "");
    let (decimals, number, value) = if shares.is_match(place) {
        (1, text.strip_suffix('%'), 100.0 * value)
    } else if nats.is_match(place) {
        (3, Some(text.as_str()), value)
    } else if means.is_match(place) {
        (1, Some(text.as_str()), value)
    } else {
        return text == value.to_string();
    };
    // Rounded to the displayed number of decimals.
    number.is_some_and(|number| {
        let rounded: Option<f64> = number.parse().ok();
        let after_point = number.split_once('.').map(|(_, decimals)| decimals.len());
        after_point == Some(decimals)
            && rounded.is_some_and(|rounded| {
                (rounded - value).abs() < 0.500_001 / 10_f64.powi(decimals as i32)
            })
    })
}

/// The places of numbers that all pages must show: those of the summary and the settings.
fn places_to_show(report: &Value) -> BTreeSet<String> {
    let mut places = BTreeSet::new();
    for part in ["summary", "sampling", "settings"] {
        gather(&format!("/{part}"), &report[part], &mut places);
    }
    // Arms and tokens are displayed by their names, positions are counted from one.
    let names =
        Regex::new("/(arm|under|by|reference|id|position|top_logprobs)$").expect("it is one");
    places.retain(|place| !names.is_match(place));
    places
}

fn gather(place: &str, value: &Value, places: &mut BTreeSet<String>) {
    match value {
        Value::Number(_) => _ = places.insert(place.to_owned()),
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                gather(&format!("{place}/{index}"), value, places);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                gather(&format!("{place}/{name}"), value, places);
            }
        }
        _ => {}
    }
}

//! The HTML page: a single file, which shows a report that is embedded in it or, as the live
//! page, sends requests to its server, to compare arms or to chat with one.
//!
//! Its parts in `page/` are joined here. They load nothing, and the Content Security Policy
//! allows exactly these parts: neither a model's text nor an extension's markup can run.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("page/page.html");
const CHAT: &str = include_str!("page/chat/panel.html");
const STYLE: &str = concat!(
    include_str!("page/style.css"),
    include_str!("page/report.css"),
    include_str!("page/chat/chat.css"),
);

/// One script of several files, in the order in which they are run.
const SCRIPT: &str = concat!(
    include_str!("page/dom.js"),
    include_str!("page/form.js"),
    include_str!("page/tokens.js"),
    include_str!("page/report.js"),
    include_str!("page/facts.js"),
    include_str!("page/panes.js"),
    include_str!("page/popover.js"),
    include_str!("page/keys.js"),
    include_str!("page/charts.js"),
    include_str!("page/summary.js"),
    include_str!("page/settings.js"),
    include_str!("page/stream.js"),
    include_str!("page/view.js"),
    include_str!("page/server.js"),
    include_str!("page/compare.js"),
    include_str!("page/chat/arm.js"),
    include_str!("page/chat/conversation.js"),
    include_str!("page/chat/turns.js"),
    include_str!("page/chat/chat.js"),
    include_str!("page/tabs.js"),
    include_str!("page/start.js"),
);

/// The part of the policy that both pages share: their own script and style, and the icon.
static OWN_PARTS: LazyLock<String> = LazyLock::new(|| {
    let hash = |part: &str| BASE64_STANDARD.encode(Sha256::digest(part));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; \
         base-uri 'none'; form-action 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
});

/// The live page, which sends requests to its server. It must be served with
/// [`content_security_policy`].
pub fn live() -> &'static str {
    static LIVE: LazyLock<String> = LazyLock::new(|| page("name=\"report-policy\"", ""));
    &LIVE
}

/// The page with an embedded report, which needs no server. `json` is the report.
pub fn report(json: &str) -> String {
    // In JSON these characters occur only in strings, where they can be escaped. Without them
    // nothing can end the element that holds it.
    let json = json
        .replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029");
    page("http-equiv=\"Content-Security-Policy\"", &json)
}

/// The header `Content-Security-Policy` of the live page.
pub fn content_security_policy() -> &'static str {
    static POLICY: LazyLock<String> =
        LazyLock::new(|| format!("{}; connect-src 'self'; frame-ancestors 'none'", *OWN_PARTS));
    &POLICY
}

/// Fills the placeholders of the page. The live page contains the policy only for the reports
/// that it saves; in a report the policy applies.
fn page(policy_kind: &str, data: &str) -> String {
    let policy = format!("{}; connect-src 'none'", *OWN_PARTS);
    let mut pieces = HTML.trim_end().split("{{");
    let mut page = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (blank, rest) = piece.split_once("}}").expect("the page closes its blanks");
        page.push_str(match blank {
            "report policy" => &policy,
            "policy kind" => policy_kind,
            "version" => env!("CARGO_PKG_VERSION"),
            "style" => STYLE,
            "chat" => CHAT.trim_end(),
            "data" => data,
            "script" => SCRIPT,
            _ => unreachable!("the page has no blank `{blank}`"),
        });
        page.push_str(rest);
    }
    page
}

//! `GET /`: the page that compares arms, and chats with one, in a browser.

use axum::response::{Html, IntoResponse};
use http::header;

use crate::analyze::page;

/// Where it is. Whoever has no key sees the page too: it holds nothing, and asks for one.
pub(crate) const PATH: &str = "/";

/// Answers with the page.
pub(crate) async fn page() -> impl IntoResponse {
    let headers = [
        (
            header::CONTENT_SECURITY_POLICY,
            page::content_security_policy(),
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A new version's page goes with a new version's API.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(page::live()))
}

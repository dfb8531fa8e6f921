//! `GET /`: the page that compares arms, and chats with one, in a browser.

use axum::response::{Html, IntoResponse};
use http::header;

use incant_compare::page;

/// The path of the page. It needs no key: it holds no data, and asks for one.
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
        // After an upgrade, browsers must load the page that fits the new API.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(page::live()))
}

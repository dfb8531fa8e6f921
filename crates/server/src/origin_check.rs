//! Protection against foreign web pages: cross-site requests (CSRF) and DNS rebinding.
//!
//! A browser lets every page send requests to every server that its machine reaches; the
//! same-origin policy only keeps the answers from pages of other origins. So a server that loads
//! adapters and computes must check the source of each request itself: the name that the server is
//! addressed by (see `hosts`), the page's origin, and the browser's Fetch Metadata for requests
//! without one. Programs send none of this but the name, and are admitted.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::cors::Origin;
use super::errors::ApiError;
use super::hosts::{Authority, request_authority};
use super::routes::{health, metrics, page};
use super::{App, ServeOptions};

/// The relation of the requesting page to the server (Fetch Metadata): `same-origin`, `same-site`,
/// `cross-site`, or `none` if the user sent the request.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The mode of the request (Fetch Metadata): `navigate` if a page is to be shown.
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// The destination of the answer (Fetch Metadata): `document` if that is a window of its own, and
/// no frame.
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// The scheme by which a proxy's client addressed the proxy.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Paths that machines may request under any name of the server, but web pages may not.
const UNDER_ANY_NAME: [&str; 2] = [health::PATH, metrics::PATH];

/// Refuses requests that pages of other sites send, before any of the body is read.
pub(crate) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match check_origin(&request, &app.options) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check_origin(request: &Request, options: &ServeOptions) -> Result<(), ApiError> {
    let host = request_authority(request)?;
    let headers = request.headers();
    let by_browser = headers.contains_key(FETCH_SITE) || headers.contains_key(header::ORIGIN);
    let open = UNDER_ANY_NAME.contains(&request.uri().path()) && !by_browser;
    if let Some(host) = &host
        && !open
        && !host.is_one_of(&options.hosts)
    {
        return Err(ApiError::ForeignHost);
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let is_allowed = match (origins.next(), origins.next()) {
        (None, _) => !is_foreign(headers) || is_link(request) || any(options),
        (Some(origin), None) => {
            is_named(origin, options) || is_own(origin, host.as_ref(), headers, options)
        }
        (Some(_), Some(_)) => false,
    };
    is_allowed.then_some(()).ok_or(ApiError::ForeignOrigin)
}

/// Returns whether all pages may use the server.
fn any(options: &ServeOptions) -> bool {
    options.origins.contains(&Origin::Any)
}

/// Returns whether `--cors` names the origin.
fn is_named(origin: &HeaderValue, options: &ServeOptions) -> bool {
    options.origins.iter().any(|named| match named {
        Origin::Any => true,
        Origin::One(named) => named == origin,
    })
}

/// Returns whether the origin is that of the server's own page.
fn is_own(
    origin: &HeaderValue,
    host: Option<&Authority>,
    headers: &HeaderMap,
    options: &ServeOptions,
) -> bool {
    let own = || {
        let (scheme, authority) = origin.to_str().ok()?.split_once("://")?;
        let port = match scheme {
            "http" if options.tls.is_none() => 80,
            "https" if options.tls.is_some() || is_behind_tls(headers) => 443,
            _ => return None,
        };
        let authority: Authority = authority.parse().ok()?;
        Some(authority.is_same(host?, port))
    };
    !is_foreign(headers) && own().unwrap_or(false)
}

/// Returns whether a proxy terminates TLS for a server without TLS: the proxy says so, or the
/// browser says that the page's origin is the one it sends the request to.
fn is_behind_tls(headers: &HeaderMap) -> bool {
    header_is_any(headers, &FORWARDED_PROTO, &["https"])
        || header_is_any(headers, &FETCH_SITE, &["same-origin"])
}

/// Returns whether the browser says that a page of another origin sent the request.
fn is_foreign(headers: &HeaderMap) -> bool {
    header_is_any(headers, &FETCH_SITE, &["cross-site", "same-site"])
}

/// Returns whether a user followed a link to the server's page, which holds no data and cannot be
/// put into a frame.
fn is_link(request: &Request) -> bool {
    let headers = request.headers();
    request.method() == Method::GET
        && request.uri().path() == page::PATH
        && header_is_any(headers, &FETCH_MODE, &["navigate"])
        && header_is_any(headers, &FETCH_DEST, &["document"])
}

/// Returns whether any header `name` has one of the `words`.
fn header_is_any(headers: &HeaderMap, name: &HeaderName, words: &[&str]) -> bool {
    let is_any = |value: &HeaderValue| {
        let value = value.as_bytes().trim_ascii();
        words
            .iter()
            .any(|word| value.eq_ignore_ascii_case(word.as_bytes()))
    };
    headers.get_all(name).iter().any(is_any)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    /// Returns the answer of a server with these origins to a request with these headers.
    fn verdict(line: &str, headers: &[(&str, &str)], origins: &[&str]) -> Result<(), ApiError> {
        let (method, path) = line.split_once(' ').unwrap();
        let request = Request::builder().method(method).uri(path);
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        let options = ServeOptions {
            origins: origins
                .iter()
                .map(|origin| origin.parse().unwrap())
                .collect(),
            hosts: vec!["box.lan".parse().unwrap()],
            ..ServeOptions::default()
        };
        check_origin(&request.body(Body::empty()).unwrap(), &options)
    }

    const CHAT: &str = "POST /v1/chat/completions";
    const LIST: &str = "GET /v1/models";

    #[test]
    fn programs_say_nothing_and_get_in() {
        for line in [CHAT, LIST, "DELETE /v1/adapters/a", "GET /"] {
            for host in ["localhost:8080", "127.0.0.1", "[::1]:8080", "box.lan"] {
                assert_eq!(verdict(line, &[("host", host)], &[]), Ok(()), "{host}");
            }
            let foreign = verdict(line, &[("host", "evil.example")], &[]);
            assert_eq!(foreign, Err(ApiError::ForeignHost), "{line}");
        }
        for line in ["GET /health", "GET /metrics"] {
            assert_eq!(verdict(line, &[("host", "incant")], &[]), Ok(()));
        }
        let near = verdict("GET /health/x", &[("host", "incant")], &[]);
        assert_eq!(near, Err(ApiError::ForeignHost));
    }

    #[test]
    fn the_servers_own_page_gets_in() {
        let table = [
            ("localhost:8080", "http://localhost:8080"),
            ("LOCALHOST:8080", "http://localhost:8080"),
            ("localhost.:8080", "http://localhost.:8080"),
            ("chat.localhost:8080", "http://chat.localhost:8080"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
            ("[0::1]:8080", "http://[::1]:8080"),
            ("127.0.0.1", "http://127.0.0.1"),
            ("127.0.0.1:80", "http://127.0.0.1"),
            ("box.lan", "http://box.lan:80"),
        ];
        for (host, origin) in table {
            let own = [("host", host), ("origin", origin)];
            for line in [CHAT, LIST] {
                assert_eq!(verdict(line, &own, &[]), Ok(()), "{host} {origin}");
            }
        }
        let proxied = [("host", "box.lan"), ("origin", "https://box.lan")];
        assert_eq!(verdict(CHAT, &proxied, &[]), Err(ApiError::ForeignOrigin));
        for sign in [
            ("x-forwarded-proto", "https"),
            ("sec-fetch-site", "same-origin"),
        ] {
            let told = [proxied[0], proxied[1], sign];
            assert_eq!(verdict(CHAT, &told, &[]), Ok(()), "{sign:?}");
        }
    }

    #[test]
    fn other_pages_do_not_get_in_unless_they_are_named() {
        for origin in [
            "http://evil.example",
            "https://evil.example",
            "null",
            "",
            "localhost:8080",
            "https://localhost:8080",
            "http://localhost",
            "http://localhost:8081",
            "http://127.0.0.1:8080",
            "http://a.localhost:8080",
            "http://localhost.evil.example:8080",
            "http://localhost:8080@evil.example",
            "file://",
            "chrome-extension://abcdefgh",
        ] {
            let headers = [("host", "localhost:8080"), ("origin", origin)];
            for line in [CHAT, LIST, "DELETE /v1/adapters/a", "OPTIONS /v1/models"] {
                let refused = verdict(line, &headers, &["https://chat.example.org"]);
                assert_eq!(refused, Err(ApiError::ForeignOrigin), "{line} {origin:?}");
            }
            assert_eq!(verdict(CHAT, &headers, &["*"]), Ok(()), "{origin:?}");
        }
        let named = "https://chat.example.org";
        let headers = [("host", "localhost"), ("origin", named)];
        assert_eq!(verdict(CHAT, &headers, &[named]), Ok(()));
        let cross = [headers[0], headers[1], ("sec-fetch-site", "cross-site")];
        assert_eq!(verdict(CHAT, &cross, &[named]), Ok(()));
        let two = [headers[0], headers[1], ("origin", "http://evil.example")];
        assert_eq!(verdict(CHAT, &two, &[named]), Err(ApiError::ForeignOrigin));
    }

    #[test]
    fn a_browser_that_says_who_asks_is_believed() {
        let sent = |line, more: &[(&str, &str)]| {
            let headers = [&[("host", "localhost:8080")], more].concat();
            verdict(line, &headers, &["https://chat.example.org"])
        };
        for site in ["none", "same-origin"] {
            assert_eq!(sent(LIST, &[("sec-fetch-site", site)]), Ok(()));
        }
        for site in ["cross-site", "same-site", "Cross-Site"] {
            let site = ("sec-fetch-site", site);
            for line in [CHAT, LIST, "GET /"] {
                assert_eq!(sent(line, &[site]), Err(ApiError::ForeignOrigin));
            }
            let own = ("origin", "http://localhost:8080");
            assert_eq!(sent(CHAT, &[site, own]), Err(ApiError::ForeignOrigin));
            let (link, window) = (
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document"),
            );
            assert_eq!(sent("GET /", &[site, link, window]), Ok(()));
            assert!(sent(LIST, &[site, link, window]).is_err());
            assert!(sent("POST /", &[site, link, window]).is_err());
            assert!(sent("GET /", &[site, link, ("sec-fetch-dest", "iframe")]).is_err());
        }
    }
}

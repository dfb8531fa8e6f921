//! Web pages of other origins, as browsers let them ask.

use incant::server::{Origin, ServeOptions};
use serde_json::json;

use crate::server_keys::keys;
use crate::server_support::{CHAT, Reply, Server, chat_body, post, shared};

const HERE: &str = "https://chat.example.org";
const HEADERS: &str = "authorization,content-type,x-stainless-arch,x-stainless-retry-count";

/// A server for pages of these origins, with a key.
fn server(origins: &[&str]) -> Server {
    let origins = origins.iter().map(|origin| origin.parse());
    Server::start(ServeOptions {
        origins: origins.collect::<Result<Vec<Origin>, _>>().unwrap(),
        keys: keys("sesame"),
        ..ServeOptions::default()
    })
}

/// What a browser asks before it sends a page's request.
fn preflight(server: &Server, origin: &str) -> Reply {
    let request = format!(
        "OPTIONS {CHAT} HTTP/1.1\r\nHost: t\r\nConnection: close\r\nOrigin: {origin}\r\n\
         Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {HEADERS}\r\n\r\n"
    );
    server.send(request.as_bytes())
}

/// A page's request.
fn ask(server: &Server, origin: &str, headers: &str) -> Reply {
    let headers = format!("Connection: close\r\nOrigin: {origin}\r\n{headers}");
    let body = chat_body(&json!({})).to_string();
    server.send(&post(CHAT, body.as_bytes(), &headers))
}

fn allowed(reply: &Reply) -> Option<&str> {
    reply.header("access-control-allow-origin")
}

#[test]
fn a_browser_is_told_without_a_key_that_a_page_may_ask() {
    for (origins, told) in [(&["http://other", HERE][..], HERE), (&["*"], "*")] {
        let server = server(origins);
        let reply = preflight(&server, HERE);
        assert_eq!((reply.status, allowed(&reply)), (200, Some(told)));
        let methods = reply.header("access-control-allow-methods").unwrap();
        assert!(
            methods.contains("POST") && methods.contains("GET"),
            "{methods}"
        );
        assert_eq!(reply.header("access-control-allow-headers"), Some(HEADERS));
    }
}

#[test]
fn a_page_sees_answers_refusals_and_the_headers_that_its_client_obeys() {
    let server = server(&[HERE]);
    let answer = ask(&server, HERE, "Authorization: Bearer sesame\r\n");
    assert_eq!((answer.status, allowed(&answer)), (200, Some(HERE)));
    let refusal = ask(&server, HERE, "");
    assert_eq!((refusal.status, allowed(&refusal)), (401, Some(HERE)));
    for reply in [answer, refusal] {
        let exposed = reply.header("access-control-expose-headers").unwrap();
        for name in ["x-request-id", "x-should-retry", "retry-after"] {
            assert!(exposed.contains(name), "{exposed}");
        }
    }
}

#[test]
fn pages_of_other_origins_are_told_nothing() {
    let server = server(&[HERE, "http://localhost:3000"]);
    for origin in [
        "http://chat.example.org",
        "https://chat.example.org:8443",
        "null",
    ] {
        assert_eq!(allowed(&preflight(&server, origin)), None, "{origin}");
    }
}

#[test]
fn without_origins_a_server_knows_nothing_of_browsers() {
    let reply = preflight(shared(), HERE);
    reply.error(405);
    assert_eq!(allowed(&reply), None);
    assert_eq!(allowed(&ask(shared(), HERE, "")), None);
}

//! Requests by web pages of other origins, as browsers send them (CORS, preflight, DNS
//! rebinding).

use std::collections::BTreeSet;
use std::io::{Read, Write};

use incant::server::{Origin, ServeOptions};
use serde_json::json;

use crate::server::keys::keys;
use crate::server::support::{CHAT, Reply, Server, chat_body, post, shared};

const HERE: &str = "https://chat.example.org";
const HEADERS: &str = "authorization,content-type,x-stainless-arch,x-stainless-retry-count";

/// A server with a key that allows pages of these origins.
fn server(origins: &[&str]) -> Server {
    let origins = origins.iter().map(|origin| origin.parse());
    Server::start(ServeOptions {
        origins: origins.collect::<Result<Vec<Origin>, _>>().unwrap(),
        keys: keys("sesame"),
        ..ServeOptions::default()
    })
}

/// Sends the preflight request of a browser.
fn preflight(server: &Server, origin: &str) -> Reply {
    let request = format!(
        "OPTIONS {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nOrigin: {origin}\r\n\
         Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: {HEADERS}\r\n\r\n"
    );
    server.send(request.as_bytes())
}

/// Sends the request of a page.
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
fn without_origins_other_pages_get_no_answer_at_all() {
    let reply = preflight(shared(), HERE);
    reply.error(403);
    assert_eq!(allowed(&reply), None);
    let reply = ask(shared(), HERE, "");
    assert_eq!(reply.error(403)["code"], "origin_not_allowed");
    assert_eq!(allowed(&reply), None);
}

/// Sends a request with only these lines in its head.
fn send(server: &Server, line: &str, headers: &[&str]) -> Reply {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    server.send(format!("{line}\r\nConnection: close\r\n{headers}\r\n").as_bytes())
}

#[test]
fn every_method_that_is_routed_is_named_to_browsers() {
    let server = server(&[HERE]);
    let reply = preflight(&server, HERE);
    let methods = reply.header("access-control-allow-methods").unwrap();
    let methods: Vec<&str> = methods.split(',').map(str::trim).collect();
    let document = shared().get("/openapi.json").expect(200);
    let paths = document["paths"].as_object().unwrap().values();
    let routed: BTreeSet<String> = paths
        .flat_map(|path| path.as_object().unwrap().keys())
        .map(|method| method.to_uppercase())
        .collect();
    assert!(routed.contains("DELETE"));
    for method in routed {
        assert!(methods.contains(&method.as_str()), "{method}: {methods:?}");
    }
}

#[test]
fn a_page_of_another_site_reaches_nothing_with_a_key_or_without() {
    let key = "Authorization: Bearer sesame";
    for (server, more) in [(shared(), &[][..]), (&server(&[]), &[key])] {
        for line in [
            "GET /v1/models HTTP/1.1",
            "GET /v1/adapters HTTP/1.1",
            "GET /metrics HTTP/1.1",
            "GET / HTTP/1.1",
            "DELETE /v1/adapters/a%2Bb HTTP/1.1",
            "GET /nowhere HTTP/1.1",
            "POST /v1/chat/completions HTTP/1.1",
        ] {
            for sign in [
                "Origin: http://evil.example",
                "Origin: null",
                "Sec-Fetch-Site: cross-site",
            ] {
                let headers = [&["Host: localhost", sign], more].concat();
                let error = send(server, line, &headers).error(403);
                assert_eq!(error["code"], "origin_not_allowed", "{line} {sign}");
            }
        }
    }
}

#[test]
fn a_foreign_page_is_turned_away_before_its_body_comes() {
    let mut stream = shared().connect();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\
         Content-Type: text/plain\r\nContent-Length: 1000000\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 403");
}

#[test]
fn a_name_that_may_be_anyones_is_not_the_servers() {
    let evil = "Host: evil.example";
    for line in [
        "GET / HTTP/1.1",
        "GET /v1/models HTTP/1.1",
        "GET /v1/models HTTP/1.0",
    ] {
        let error = send(shared(), line, &[evil]).error(403);
        assert_eq!(error["code"], "host_not_allowed", "{line}");
    }
    let absolute = "GET http://evil.example/v1/models HTTP/1.1";
    send(shared(), absolute, &["Host: localhost"]).error(403);
    // DNS rebinding: the page's own name resolves to this server, so to the browser it is
    // same-origin.
    let own = [
        evil,
        "Origin: http://evil.example",
        "Sec-Fetch-Site: same-origin",
    ];
    send(shared(), "GET /v1/models HTTP/1.1", &own).error(403);
    for path in ["/health", "/metrics"] {
        let reply = send(shared(), &format!("GET {path} HTTP/1.1"), &["Host: incant"]);
        assert_eq!(reply.status, 200, "{path}");
        // No page has a reason to request these under its own name.
        send(shared(), &format!("GET {path} HTTP/1.1"), &own).error(403);
    }
    let named = Server::start(ServeOptions {
        hosts: vec!["Box.lan".parse().unwrap()],
        ..ServeOptions::default()
    });
    for host in [
        "box.lan:8080",
        "BOX.LAN.",
        "[::1]:8080",
        "a.localhost",
        "10.0.0.7",
    ] {
        let reply = send(
            &named,
            "GET /v1/models HTTP/1.1",
            &[&format!("Host: {host}")],
        );
        assert_eq!(reply.status, 200, "{host}");
    }
    send(&named, "GET /v1/models HTTP/1.1", &["Host: a.box.lan"]).error(403);
}

#[test]
fn a_request_names_the_server_once() {
    let models = "GET /v1/models HTTP/1.1";
    for headers in [
        &[][..],
        &["Host: localhost", "Host: localhost"],
        &["Host: localhost", "Host: evil.example"],
        &["Host: "],
        &["Host: user@localhost"],
    ] {
        let error = send(shared(), models, headers).error(400);
        assert!(error["message"].as_str().unwrap().contains("`Host`"));
    }
    // Health checks may use HTTP/1.0, which has no such header.
    for path in ["/health", "/v1/models"] {
        let reply = send(shared(), &format!("GET {path} HTTP/1.0"), &[]);
        assert_eq!(reply.status, 200, "{path}");
    }
}

#[test]
fn a_body_is_json_and_says_so() {
    let body = chat_body(&json!({})).to_string();
    let sent = |headers: &str| {
        let request = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        shared().send(request.as_bytes())
    };
    for kind in ["application/json; charset=utf-8", "Application/JSON"] {
        sent(&format!("Content-Type: {kind}\r\n")).expect(200);
    }
    sent("").error(415);
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "text/plain;application/json",
    ] {
        sent(&format!("Content-Type: {kind}\r\n")).error(415);
    }
    let coded = sent("Content-Type: application/json\r\nContent-Encoding: gzip\r\n");
    coded.error(415);
    assert_eq!(coded.header("accept-encoding"), Some("identity"));
    for path in [
        "/v1/adapters",
        "/tokenize",
        "/v1/compare",
        "/apply-template",
    ] {
        let line = format!("POST {path} HTTP/1.1");
        let headers = [
            "Host: localhost",
            "Content-Type: text/plain",
            "Content-Length: 0",
        ];
        send(shared(), &line, &headers).error(415);
    }
}

#[test]
fn the_servers_own_page_may_ask() {
    for own in [
        &["Host: localhost:8080", "Origin: http://localhost:8080"][..],
        &[
            "Host: [::1]:8080",
            "Origin: http://[::1]:8080",
            "Sec-Fetch-Site: same-origin",
        ],
        &["Host: 127.0.0.1", "Sec-Fetch-Site: same-origin"],
        &["Host: 127.0.0.1", "Sec-Fetch-Site: none"],
    ] {
        let reply = send(shared(), "GET /v1/models HTTP/1.1", own);
        assert_eq!(reply.status, 200, "{own:?}");
    }
    let link = ["Host: 127.0.0.1", "Sec-Fetch-Site: cross-site"];
    let link = [
        &link[..],
        &["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"],
    ]
    .concat();
    assert_eq!(send(shared(), "GET / HTTP/1.1", &link).status, 200);
}

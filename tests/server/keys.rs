//! API keys: requests without a key, with a wrong one, and the sources of keys.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use incant::server::{ApiKeys, ServeOptions};
use serde_json::{Value, json};

use crate::server::program::Program;
use crate::server::support::{CHAT, Reply, Server, chat_body, in_company, post};

/// Parses the keys of a text.
pub(crate) fn keys(text: &str) -> ApiKeys {
    let mut keys = ApiKeys::default();
    keys.add(text).expect("keys");
    keys
}

fn locked() -> Server {
    Server::start(ServeOptions {
        keys: keys("sesame,second-1"),
        ..ServeOptions::default()
    })
}

fn get(server: &Server, path: &str, headers: &str) -> Reply {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
    server.send(request.as_bytes())
}

#[test]
fn all_but_health_and_the_page_asks_for_a_key() {
    let server = locked();
    for path in ["/health", "/"] {
        assert_eq!(get(&server, path, "").status, 200, "{path}");
    }
    for path in [
        "/v1/models",
        "/v1/profiles",
        "/metrics",
        "/openapi.json",
        "/health/",
        "/nowhere",
        CHAT,
    ] {
        for headers in [
            "",
            "Authorization: Bearer sesam\r\n",
            "Authorization: Bearer sesame2\r\n",
            "Authorization: Bearer SESAME\r\n",
            "Authorization: Bearer \r\n",
            "Authorization: sesame\r\n",
            "Authorization: Basic sesame\r\n",
        ] {
            let reply = get(&server, path, headers);
            let error = reply.error(401);
            assert_eq!(
                (&error["type"], &error["code"], &error["param"]),
                (
                    &json!("invalid_request_error"),
                    &json!("invalid_api_key"),
                    &Value::Null
                ),
                "{path} {headers}"
            );
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
            assert!(!reply.text().contains("sesam"), "{}", reply.text());
        }
    }
}

#[test]
fn each_of_the_keys_opens() {
    let server = locked();
    for key in ["sesame", "second-1"] {
        let header = format!("Authorization: Bearer {key}\r\n");
        get(&server, "/v1/models", &header).expect(200);
        get(&server, "/openapi.json", &header).expect(200);
        assert_eq!(get(&server, "/metrics", &header).status, 200);
        let headers = format!("Connection: close\r\n{header}");
        let body = chat_body(&json!({})).to_string();
        let reply = server.send(&post(CHAT, body.as_bytes(), &headers));
        reply.expect(200);
    }
}

#[test]
fn a_client_that_sends_much_without_a_key_still_sees_why_it_is_refused() {
    let server = locked();
    let _company = in_company();
    let mut stream = server.connect();
    let prompt = "a".repeat(6 << 20);
    let body = chat_body(&json!({"user": prompt})).to_string();
    // The body is discarded, and yet all of it can be sent.
    stream.write_all(&post(CHAT, body.as_bytes(), "")).unwrap();
    let closing = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(closing).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let both = String::from_utf8(bytes).unwrap();
    assert!(both.starts_with("HTTP/1.1 401 "), "{both}");
    assert!(both.contains("HTTP/1.1 200 "), "{both}");
}

#[test]
fn the_document_tells_of_keys() {
    let document = get(
        &locked(),
        "/openapi.json",
        "Authorization: Bearer sesame\r\n",
    )
    .expect(200);
    let schemes = document["components"]["securitySchemes"]
        .as_object()
        .unwrap();
    let [(name, scheme)] = schemes.iter().collect::<Vec<_>>()[..] else {
        panic!("{schemes:?}");
    };
    assert_eq!(
        (&scheme["type"], &scheme["scheme"]),
        (&json!("http"), &json!("bearer"))
    );
    assert_eq!(document["security"][0][name], json!([]));
    let paths = document["paths"].as_object().unwrap();
    for (path, operations) in paths {
        for operation in operations.as_object().unwrap().values() {
            let open = ["/health", "/"].contains(&path.as_str());
            assert_eq!(operation["responses"]["401"].is_null(), open, "{path}");
            assert_eq!(operation["security"] == json!([]), open, "{path}");
        }
    }
    assert!(paths[CHAT]["post"]["responses"]["413"].is_object());
}

#[test]
fn the_program_takes_keys_from_flags_files_and_the_environment_and_logs_none() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "from-file-1\n\n  from-file-2  ").unwrap();
    let path = file.path().to_str().unwrap();
    let program = Program::start(
        &[
            "--host",
            "0.0.0.0",
            "--api-key",
            "from-flag",
            "--api-key-file",
            path,
        ],
        &[
            ("INCANT_API_KEY", "from-environment-1,from-environment-2"),
            ("INCANT_LOG", "debug"),
        ],
    );
    let _company = in_company();
    let ask = |key: &str| {
        let mut stream = program.connect();
        let request = format!(
            "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    for key in [
        "from-flag",
        "from-file-1",
        "from-file-2",
        "from-environment-1",
        "from-environment-2",
    ] {
        assert_eq!(ask(key), "200", "{key}");
    }
    assert_eq!(ask("from-nowhere"), "401");
    let mut lines = program.early.clone();
    for _ in 0..6 {
        lines.extend(program.lines_to("ended"));
    }
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["status"], &last["reason"]),
        (&json!(401), &json!("invalid_api_key"))
    );
    for line in lines {
        assert!(!line.to_string().contains("from-"), "{line}");
        assert!(!line.to_string().contains("--api-key"), "no warning");
    }
}

#[test]
fn an_open_server_on_a_public_address_says_so_once() {
    let warnings = |host: &str| {
        let program = Program::start(&["--host", host], &[]);
        let warnings = program.early.iter().filter(|line| line["level"] == "WARN");
        let told = warnings.filter(|line| line.to_string().contains("--api-key"));
        told.count()
    };
    assert_eq!((warnings("0.0.0.0"), warnings("127.0.0.1")), (1, 0));
}

#[test]
fn a_place_for_keys_without_a_key_is_an_error_that_shows_none() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    let empty = empty.path().to_str().unwrap();
    let table = [
        (vec!["--api-key", "open sesame"], None, "--api-key: "),
        (vec!["--api-key", ""], None, "--api-key: "),
        (vec!["--api-key-file", empty], None, empty),
        (vec!["--api-key-file", "/no/such/file"], None, "/no/such"),
        (vec![], Some(""), "INCANT_API_KEY: "),
        (vec![], Some("open sesame"), "INCANT_API_KEY: "),
    ];
    for (args, variable, named) in table {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("incant"));
        command.args(["serve", "--port", "0"]).args(&args);
        match variable {
            Some(value) => command.env("INCANT_API_KEY", value),
            None => command.env_remove("INCANT_API_KEY"),
        };
        let output = command.stdin(Stdio::null()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(named), "{args:?}: {told}");
        assert!(!told.contains("sesame"), "{told}");
    }
}

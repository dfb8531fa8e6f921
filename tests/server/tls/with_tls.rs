//! A server with a certificate created by the test.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use incant::server::{ServeOptions, Tls};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use tempfile::TempDir;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::server::program::Program;
use crate::server::support::{CHAT, Reply, Server, chat_body, in_company, post};

/// A folder with a certificate and its key.
struct Identity(TempDir);

impl Identity {
    fn new() -> Identity {
        let identity = Identity(TempDir::new().unwrap());
        identity.renew();
        identity
    }

    /// Replaces the certificate and the key.
    fn renew(&self) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(self.path("cert.pem"), cert.pem()).unwrap();
        fs::write(self.path("key.pem"), signing_key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn open(&self) -> Result<Tls, String> {
        let tls = Tls::open(&self.path("cert.pem"), &self.path("key.pem"));
        tls.map_err(|error| error.to_string())
    }

    /// A client that trusts only this certificate.
    fn client(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(self.path("cert.pem")).unwrap();
        roots.add(certificate).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

fn serving(tls: Tls) -> (Server, Arc<Tls>) {
    let tls = Arc::new(tls);
    let server = Server::start(ServeOptions {
        tls: Some(Arc::clone(&tls)),
        client_timeout: Duration::from_millis(500),
        ..ServeOptions::default()
    });
    (server, tls)
}

/// Sends bytes over TLS and reads to the end.
fn send(
    client: ClientConfig,
    stream: TcpStream,
    request: &[u8],
) -> std::io::Result<(Reply, Option<Vec<u8>>)> {
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let protocol = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
    Ok((Reply::parse(&bytes), protocol))
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[test]
fn answers_and_streams_come_over_tls() {
    let identity = Identity::new();
    let (server, _) = serving(identity.open().unwrap());
    let _company = in_company();
    let (reply, protocol) = send(identity.client(), server.connect(), HEALTH).unwrap();
    assert_eq!(reply.expect(200), json!({"status": "ok"}));
    assert_eq!(protocol.as_deref(), Some(&b"http/1.1"[..]));
    let body = chat_body(&json!({"stream": true})).to_string();
    let request = post(CHAT, body.as_bytes(), "Connection: close\r\n");
    let (reply, _) = send(identity.client(), server.connect(), &request).unwrap();
    assert!(!reply.events().is_empty());
}

#[test]
fn who_speaks_no_tls_or_nothing_at_all_is_cut_off_alone() {
    let identity = Identity::new();
    let (server, _) = serving(identity.open().unwrap());
    let mut plain = server.connect();
    plain.write_all(HEALTH).unwrap();
    let mut silent = server.connect();
    for stream in [&mut plain, &mut silent] {
        let mut bytes = Vec::new();
        _ = stream.read_to_end(&mut bytes);
        assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");
    }
    send(identity.client(), server.connect(), HEALTH).unwrap();
}

#[test]
fn a_certificate_is_renewed_while_the_server_runs() {
    let identity = Identity::new();
    let (server, tls) = serving(identity.open().unwrap());
    let old = identity.client();
    identity.renew();
    send(old.clone(), server.connect(), HEALTH).unwrap();
    tls.reload().unwrap();
    send(identity.client(), server.connect(), HEALTH).unwrap();
    send(old, server.connect(), HEALTH).unwrap_err();
    // An incomplete pair is refused, and the previous one stays in use.
    let current = identity.client();
    fs::write(identity.path("key.pem"), "nothing").unwrap();
    tls.reload().unwrap_err();
    send(current, server.connect(), HEALTH).unwrap();
}

#[test]
fn a_byte_order_mark_in_front_of_a_file_is_no_part_of_it() {
    let identity = Identity::new();
    let client = identity.client();
    for name in ["cert.pem", "key.pem"] {
        let text = fs::read_to_string(identity.path(name)).unwrap();
        fs::write(identity.path(name), format!("\u{feff}{text}")).unwrap();
    }
    let (server, _) = serving(identity.open().unwrap());
    send(client, server.connect(), HEALTH).unwrap();
}

#[test]
fn files_that_make_no_pair_are_named() {
    let identity = Identity::new();
    let other = Identity::new();
    let told = |certificate, key| Tls::open(certificate, key).unwrap_err().to_string();
    let (certificate, key) = (&identity.path("cert.pem"), &identity.path("key.pem"));
    let missing = &identity.path("missing.pem");
    assert!(told(missing, key).contains("missing.pem"));
    assert!(told(certificate, missing).contains("missing.pem"));
    // The certificate and the key exchanged.
    assert!(told(key, key).contains("certificate could be read from"));
    assert!(told(certificate, certificate).contains("private key could be read from"));
    let mixed = told(certificate, &other.path("key.pem"));
    assert!(mixed.contains("cannot be used with the key"), "{mixed}");
}

#[test]
fn the_program_reads_its_certificate_again_at_a_hangup() {
    let identity = Identity::new();
    let (certificate, key) = (identity.path("cert.pem"), identity.path("key.pem"));
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let program = Program::start(&["--tls-cert", certificate, "--tls-key", key], &[]);
    let old = identity.client();
    send(old.clone(), program.connect(), HEALTH).unwrap();
    identity.renew();
    program.send_sighup();
    program.wait_for("the certificate was read again");
    send(identity.client(), program.connect(), HEALTH).unwrap();
    send(old, program.connect(), HEALTH).unwrap_err();
    fs::write(key, "nothing").unwrap();
    program.send_sighup();
    let lines = program.lines_until("is an error", |line| line["level"] == "ERROR");
    let line = lines.last().unwrap()["message"].as_str().unwrap();
    assert!(line.contains("stays as it was") && line.contains(key));
}

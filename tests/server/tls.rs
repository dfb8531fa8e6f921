//! Serving over TLS, and builds without TLS.

#[cfg(feature = "tls")]
mod with_tls;

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_says_how_to_get_one_with_it() {
    let output = std::process::Command::new(assert_cmd::cargo::cargo_bin!("incant"))
        .args(["serve", "--port", "0", "--tls-cert", "c.pem", "--tls-key"])
        .arg("k.pem")
        .env_remove("INCANT_API_KEY")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("built without TLS"), "{told}");
    assert!(told.contains("--features tls"), "{told}");
}

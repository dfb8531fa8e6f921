//! Addresses of servers.

use std::net::IpAddr;

/// Returns the base URL of a server whose address may be written with a final slash or `/v1`, and
/// without `http://`.
pub fn base_url(address: &str) -> String {
    let address = address.trim_end_matches('/');
    let address = address.strip_suffix("/v1").unwrap_or(address);
    if address.contains("://") {
        address.to_owned()
    } else {
        format!("http://{address}")
    }
}

/// Returns whether the host of a URL is this machine: `localhost`, or a loopback address.
pub fn is_local(url: &str) -> bool {
    let (_, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_this_machine_is_known_by_its_address() {
        for address in [
            "localhost:1",
            "http://127.0.0.1:8080",
            "https://[::1]:1/v1",
            "http://user@localhost/x",
        ] {
            assert!(is_local(&base_url(address)), "{address}");
        }
        for address in [
            "example.org",
            "http://10.0.0.1",
            "http://localhost.example",
            "http://localhost@example.org",
        ] {
            assert!(!is_local(&base_url(address)), "{address}");
        }
    }

    #[test]
    fn a_server_is_named_by_its_address_alone() {
        for address in [
            "a:1",
            "http://a:1",
            "http://a:1/",
            "http://a:1/v1",
            "http://a:1/v1/",
        ] {
            assert_eq!(base_url(address), "http://a:1");
        }
        assert_eq!(base_url("https://a/v1"), "https://a");
    }
}

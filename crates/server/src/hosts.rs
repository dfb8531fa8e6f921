//! The names under which a server may be addressed, against DNS rebinding.
//!
//! A page whose name resolves to this machine after it was loaded (DNS rebinding) is of the
//! server's own origin as far as its browser knows. But `Host` still has the page's name, so names
//! are checked. An IP address needs no check: nobody can point one elsewhere.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use axum::extract::Request;
use http::{HeaderValue, Version, header};

use super::errors::ApiError;

/// The maximum length of a name in DNS.
const MAX_NAME: usize = 253;

/// The host of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case, without a final dot.
    Name(String),
}

/// A name under which a server may be addressed, besides IP addresses, `localhost` and names that
/// end in `.localhost`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(Allowed);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Allowed {
    Any,
    One(Host),
}

/// A host with its port, as in the `Host` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    host: Host,
    /// Absent if it is the scheme's default.
    port: Option<u16>,
}

/// The text is not a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl FromStr for Host {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Host, Malformed> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(Malformed)?;
            // A zone names an interface of this machine, not the host.
            let address = inner.split_once('%').map_or(inner, |(address, _)| address);
            let address: Ipv6Addr = address.parse().map_err(|_| Malformed)?;
            return Ok(Host::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Host::Address(address.into()));
        }
        let is_label = |label: &str| {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !label.is_empty() && label.bytes().all(is_plain)
        };
        if name.len() <= MAX_NAME && name.split('.').all(is_label) {
            Ok(Host::Name(name.to_ascii_lowercase()))
        } else {
            Err(Malformed)
        }
    }
}

/// The text is not the name of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `*`, or a name without scheme and port")]
pub struct HostNameError;

impl FromStr for HostName {
    type Err = HostNameError;

    /// Reads a name without scheme and port; `*` is all names.
    fn from_str(text: &str) -> Result<HostName, HostNameError> {
        if text == "*" {
            return Ok(HostName(Allowed::Any));
        }
        let host = text.parse();
        host.map(|host| HostName(Allowed::One(host)))
            .map_err(|Malformed| HostNameError)
    }
}

impl FromStr for Authority {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Authority, Malformed> {
        let (host, port) = match text.rsplit_once(':') {
            // The last colon in the brackets of an IPv6 address does not precede a port.
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (text, ""),
        };
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| Malformed)?)
            }
            _ => return Err(Malformed),
        };
        Ok(Authority {
            host: host.parse()?,
            port,
        })
    }
}

impl Authority {
    /// Returns whether a server with these names may be addressed so.
    pub(crate) fn is_one_of(&self, names: &[HostName]) -> bool {
        let is_local = match &self.host {
            Host::Address(_) => true,
            // RFC 6761: these never leave the machine.
            Host::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        };
        let is_named = |HostName(allowed): &HostName| match allowed {
            Allowed::Any => true,
            Allowed::One(host) => *host == self.host,
        };
        is_local || names.iter().any(is_named)
    }

    /// Returns whether it is the same as `other`, if an absent port is `default`.
    pub(crate) fn is_same(&self, other: &Authority, default: u16) -> bool {
        let port = |of: &Authority| of.port.unwrap_or(default);
        self.host == other.host && port(self) == port(other)
    }
}

/// Returns how a request addresses the server; `None` for HTTP versions older than `Host`.
///
/// # Errors
/// The request has no host or more than one, or the host is malformed.
pub(crate) fn request_authority(request: &Request) -> Result<Option<Authority>, ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(ApiError::malformed(
            "The request has more than one `Host` header.",
        ));
    }
    let named = match (request.uri().authority(), header) {
        // If the request line has the host, the header does not count (RFC 9112, section 3.2.2).
        (Some(authority), _) if header.is_some() || request.version() != Version::HTTP_11 => {
            authority.as_str().parse()
        }
        (_, Some(host)) => read(host),
        (_, None) if request.version() < Version::HTTP_11 => return Ok(None),
        (_, None) => return Err(ApiError::malformed("The request has no `Host` header.")),
    };
    match named {
        Ok(authority) => Ok(Some(authority)),
        Err(Malformed) => Err(ApiError::malformed(
            "The request's `Host` is no name or address with an optional port.",
        )),
    }
}

fn read(host: &HeaderValue) -> Result<Authority, Malformed> {
    host.to_str().map_err(|_| Malformed)?.trim().parse()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn allowed(host: &str, names: &[&str]) -> Option<bool> {
        let names: Vec<HostName> = names.iter().map(|name| name.parse().unwrap()).collect();
        let authority: Result<Authority, Malformed> = host.parse();
        authority.ok().map(|authority| authority.is_one_of(&names))
    }

    #[test]
    fn addresses_and_loopback_names_are_the_servers_own() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "127.0.0.1.:8080",
            "192.168.1.7:80",
            "0.0.0.0",
            "[::1]",
            "[::1]:8080",
            "[0:0:0:0:0:0:0:1]:8080",
            "[::FFFF:127.0.0.1]",
            "[fe80::1%25eth0]:8080",
            "localhost",
            "localhost:8080",
            "localhost:",
            "LocalHost:8080",
            "localhost.",
            "localhost.:8080",
            "chat.localhost:8080",
            "a.b.LOCALHOST.",
        ] {
            assert_eq!(allowed(host, &[]), Some(true), "{host}");
        }
    }

    #[test]
    fn other_names_must_be_named() {
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evillocalhost",
            "localhost.localdomain",
            "t",
            // No browser looks these up in DNS, but none sends them either.
            "127.1",
            "0x7f.1",
            "2130706433",
            "127.0.0.01",
        ] {
            assert_eq!(allowed(host, &[]), Some(false), "{host}");
            assert_eq!(allowed(host, &["*"]), Some(true), "{host}");
        }
        let names = ["Box.lan", "[fd00::7]"];
        for host in ["box.lan", "BOX.LAN:8080", "box.lan.:80"] {
            assert_eq!(allowed(host, &names), Some(true), "{host}");
        }
        for host in ["lan", "a.box.lan", "box.lan.evil.example", "abox.lan"] {
            assert_eq!(allowed(host, &names), Some(false), "{host}");
        }
    }

    #[test]
    fn what_is_no_host_is_malformed() {
        for host in [
            "",
            ":8080",
            ".",
            "a..b",
            ".localhost",
            "::1",
            "[::1",
            "[::1]evil.example",
            "[::1].evil.example",
            "[v1.x]",
            "[127.0.0.1]",
            "localhost:port",
            "localhost:+80",
            "localhost:65536",
            "localhost:80:80",
            "user@localhost",
            "localhost/",
            "localhost, evil.example",
            "local host",
            "localhost\u{e9}",
            &"a".repeat(254),
        ] {
            assert_eq!(allowed(host, &["*"]), None, "{host:?}");
        }
        for name in ["", "box.lan:80", "http://box.lan", "*.lan", "a b"] {
            assert!(name.parse::<HostName>().is_err(), "{name:?}");
        }
    }

    fn asked(version: Version, uri: &str, hosts: &[&str]) -> Result<Option<Authority>, ApiError> {
        let request = Request::builder().version(version).uri(uri);
        let request = hosts
            .iter()
            .fold(request, |request, host| request.header(header::HOST, *host));
        request_authority(&request.body(Body::empty()).unwrap())
    }

    #[test]
    fn a_request_says_once_whom_it_addresses() {
        let is = |authority: Result<Option<Authority>, ApiError>, host: &str| {
            assert_eq!(authority.unwrap(), Some(host.parse().unwrap()));
        };
        is(asked(Version::HTTP_11, "/", &["localhost"]), "localhost");
        is(asked(Version::HTTP_10, "/", &["localhost"]), "localhost");
        is(asked(Version::HTTP_2, "http://a/", &[]), "a");
        let absolute = asked(Version::HTTP_11, "http://evil.example/", &["localhost"]);
        is(absolute, "evil.example");
        assert_eq!(asked(Version::HTTP_10, "/", &[]).unwrap(), None);
        for (version, uri, hosts) in [
            (Version::HTTP_11, "/", &[][..]),
            (Version::HTTP_11, "http://localhost/", &[]),
            (Version::HTTP_11, "/", &["localhost", "localhost"]),
            (Version::HTTP_10, "/", &["localhost", "evil.example"]),
            (Version::HTTP_11, "/", &[""]),
            (Version::HTTP_11, "http://user@localhost/", &["localhost"]),
        ] {
            let refused = asked(version, uri, hosts);
            let refused = matches!(refused, Err(ApiError::Invalid { param: None, .. }));
            assert!(refused, "{version:?} {uri} {hosts:?}");
        }
    }
}

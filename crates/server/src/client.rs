//! Identifies the client of a request, for fair sharing of the engine's slots and steps.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;

use super::ServeOptions;
use super::keys;
use super::log::{FORWARDED_FOR, Peer};
use incant_engine::Client;

/// Returns the client of a request: its API key if the server requires keys, else its address.
///
/// A trusted proxy names the client that it forwards for (`X-Forwarded-For`). The header is ignored
/// from any other peer: a sender who could choose an address per request would count as many
/// clients.
pub(crate) fn of(options: &ServeOptions, headers: &HeaderMap, peer: Option<Peer>) -> Client {
    let name = match keys::key(headers).filter(|_| !options.keys.is_empty()) {
        Some(key) => [b"key ", key].concat(),
        None => {
            let proxies = &options.trusted_proxies;
            let address = peer.map(|Peer(peer)| address(proxies, headers, peer));
            format!("address {address:?}").into_bytes()
        }
    };
    Client::named(&name)
}

fn address(proxies: &[IpAddr], headers: &HeaderMap, peer: SocketAddr) -> IpAddr {
    let peer = peer.ip().to_canonical();
    let is_trusted = proxies.iter().any(|proxy| proxy.to_canonical() == peer);
    let forwarded = is_trusted.then(|| forwarded_for(headers)).flatten();
    match forwarded.unwrap_or(peer).to_canonical() {
        // One machine may use any address of its /64 network.
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

/// Returns the address that the last proxy forwards for.
fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all(FORWARDED_FOR).iter().next_back()?;
    let last = last.to_str().ok()?.rsplit(',').next()?.trim();
    let with_port = || last.parse().map(|address: SocketAddr| address.ip());
    last.parse().or_else(|_| with_port()).ok()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, header};

    use super::*;

    fn client(keys: &str, peer: &str, headers: &[(HeaderName, &str)]) -> Client {
        let mut options = ServeOptions {
            trusted_proxies: ["127.0.0.1", "::1"]
                .map(|proxy| proxy.parse().unwrap())
                .to_vec(),
            ..ServeOptions::default()
        };
        if !keys.is_empty() {
            options.keys.add(keys).expect("keys");
        }
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value.parse().expect("a value"));
        }
        let peer = format!("{peer}:1234").parse().expect("an address");
        of(&options, &map, Some(Peer(peer)))
    }

    #[test]
    fn a_key_is_a_client_wherever_it_comes_from() {
        let bearer = |key| [(header::AUTHORIZATION, key)];
        let with = |peer, key| client("one,two", peer, &bearer(key));
        assert_eq!(with("1.2.3.4", "Bearer one"), with("5.6.7.8", "Bearer one"));
        assert_ne!(with("1.2.3.4", "Bearer one"), with("1.2.3.4", "Bearer two"));
        // On a server without keys, sending a key does not make another client.
        let open = |key| client("", "1.2.3.4", &bearer(key));
        assert_eq!(open("Bearer one"), open("Bearer two"));
    }

    #[test]
    fn an_address_is_a_client_and_so_is_a_network_of_version_6() {
        let at = |peer| client("", peer, &[]);
        assert_ne!(at("1.2.3.4"), at("1.2.3.5"));
        assert_eq!(at("1.2.3.4"), at("[::ffff:1.2.3.4]"));
        assert_eq!(at("[2001:db8::1]"), at("[2001:db8::abcd:ef01]"));
        assert_ne!(at("[2001:db8::1]"), at("[2001:db8:0:1::1]"));
    }

    #[test]
    fn only_a_proxy_that_is_trusted_is_believed() {
        let forwarded = |peer, values: &[&'static str]| {
            let headers = values.iter().map(|value| (FORWARDED_FOR, *value));
            client("", peer, &headers.collect::<Vec<_>>())
        };
        let direct = |peer| client("", peer, &[]);
        assert_eq!(forwarded("127.0.0.1", &["1.2.3.4"]), direct("1.2.3.4"));
        assert_eq!(
            forwarded("[::1]", &["9.9.9.9, 1.2.3.4:80"]),
            direct("1.2.3.4")
        );
        assert_eq!(
            forwarded("127.0.0.1", &["9.9.9.9", "1.2.3.4"]),
            direct("1.2.3.4")
        );
        assert_eq!(forwarded("127.0.0.1", &["unknown"]), direct("127.0.0.1"));
        assert_eq!(forwarded("5.6.7.8", &["1.2.3.4"]), direct("5.6.7.8"));
        assert_eq!(forwarded("127.0.0.2", &["1.2.3.4"]), direct("127.0.0.2"));
    }
}

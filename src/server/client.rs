//! Whose a request is, when the engine shares its slots and steps out.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;

use super::keys::{self, ApiKeys};
use super::log::{FORWARDED_FOR, Peer};
use crate::engine::Client;

/// The client of a request: its key where keys are asked for, else its address.
///
/// A proxy on this machine says whom it asks for. Nobody else is believed: who could choose
/// an address for each request would be many clients.
pub(crate) fn of(keys: &ApiKeys, headers: &HeaderMap, peer: Option<Peer>) -> Client {
    let name = match keys::key(headers).filter(|_| !keys.is_empty()) {
        Some(key) => [b"key ", key].concat(),
        None => {
            let address = peer.map(|Peer(peer)| address(headers, peer));
            format!("address {address:?}").into_bytes()
        }
    };
    Client::named(&name)
}

fn address(headers: &HeaderMap, peer: SocketAddr) -> IpAddr {
    let peer = peer.ip().to_canonical();
    let forwarded = match peer.is_loopback() {
        true => forwarded_for(headers),
        false => None,
    };
    match forwarded.unwrap_or(peer).to_canonical() {
        // One machine has as many addresses as it likes in its network.
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        v4 => v4,
    }
}

/// Whom the last proxy on the way asks for.
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
        let mut known = ApiKeys::default();
        if !keys.is_empty() {
            known.add(keys).expect("keys");
        }
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value.parse().expect("a value"));
        }
        let peer = format!("{peer}:1234").parse().expect("an address");
        of(&known, &map, Some(Peer(peer)))
    }

    #[test]
    fn a_key_is_a_client_wherever_it_comes_from() {
        let bearer = |key| [(header::AUTHORIZATION, key)];
        let with = |peer, key| client("one,two", peer, &bearer(key));
        assert_eq!(with("1.2.3.4", "Bearer one"), with("5.6.7.8", "Bearer one"));
        assert_ne!(with("1.2.3.4", "Bearer one"), with("1.2.3.4", "Bearer two"));
        // Without keys to know, whoever sends some is no other client for it.
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
    fn only_a_proxy_on_this_machine_is_believed() {
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
    }
}

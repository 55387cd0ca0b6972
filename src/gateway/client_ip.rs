//! Who is really calling: the address, from the socket or from the proxies we trust.
//!
//! Owns the reading of `X-Forwarded-For` and `Forwarded` (RFC 7239). An entry counts only when every hop to its right is
//! trusted; the first that is malformed ends the walk, and the hop that reported it is the client. Never resolves names.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::http1::head::{Name, RequestHead};

/// The address a call is judged by: never an IPv4 address dressed as IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientIp(pub IpAddr);

/// The client's address, given the socket's peer.
pub fn identify(peer: SocketAddr, head: &RequestHead, trusted: &[IpNet]) -> ClientIp {
    let socket = peer.ip().to_canonical();
    if !is_trusted(socket, trusted) {
        return ClientIp(socket);
    }
    let mut client = socket;
    if head.first(Name::XForwardedFor).is_some() {
        let lists: Vec<&[u8]> = head.all(Name::XForwardedFor).collect();
        walk(&mut client, lists, trusted, |entry| parse_address(entry.trim_ascii()));
    } else {
        let lists: Vec<&[u8]> = head.all(Name::Forwarded).collect();
        walk(&mut client, lists, trusted, forwarded_for);
    }
    ClientIp(client)
}

pub fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|net| net.contains(&address))
}

/// From the entry nearest to us outwards, as long as the hop that wrote it is trusted.
fn walk(client: &mut IpAddr, lists: Vec<&[u8]>, trusted: &[IpNet], parse: impl Fn(&[u8]) -> Option<IpAddr>) {
    for entry in lists.into_iter().rev().flat_map(|list| list.rsplit(|b| *b == b',')) {
        let Some(address) = parse(entry) else { return };
        *client = address.to_canonical();
        if !is_trusted(*client, trusted) {
            return;
        }
    }
}

/// `1.2.3.4`, `1.2.3.4:567`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:567`.
fn parse_address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']')?;
        let port_is_fine = rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        return address.parse::<std::net::Ipv6Addr>().ok().filter(|_| port_is_fine).map(IpAddr::V6);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    text.parse::<std::net::SocketAddrV4>().ok().map(|a| IpAddr::V4(*a.ip()))
}

/// The `for` parameter of one element: `for="[2001:db8::1]:567";proto=http`.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    element.split(|b| *b == b';').find_map(|pair| {
        let (name, value) = pair.trim_ascii().split_at_checked(4)?;
        if !name.eq_ignore_ascii_case(b"for=") {
            return None;
        }
        let bare = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value);
        parse_address(bare)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(peer: &str, fields: &str) -> String {
        let trusted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/8"].iter().map(|n| n.parse().unwrap()).collect();
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        let head = RequestHead::parse(text.into_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
        identify(peer.parse().unwrap(), &head, &trusted).0.to_string()
    }

    #[test]
    fn a_stranger_cannot_choose_his_address() {
        assert_eq!(seen("9.9.9.9:1", "X-Forwarded-For: 10.0.0.1\r\nForwarded: for=1.1.1.1\r\n"), "9.9.9.9");
        assert_eq!(seen("[::ffff:9.9.9.9]:1", ""), "9.9.9.9");
    }

    #[test]
    fn a_trusted_proxy_is_believed_from_the_right() {
        assert_eq!(seen("10.0.0.1:1", "X-Forwarded-For: 6.6.6.6, 7.7.7.7\r\n"), "7.7.7.7");
        assert_eq!(seen("10.0.0.1:1", "X-Forwarded-For: 6.6.6.6, 7.7.7.7, 10.2.2.2\r\n"), "7.7.7.7");
        assert_eq!(seen("10.0.0.1:1", "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 10.3.3.3\r\n"), "6.6.6.6");
        assert_eq!(seen("[::ffff:10.0.0.1]:1", "X-Forwarded-For: ::ffff:7.7.7.7\r\n"), "7.7.7.7");
        assert_eq!(seen("10.0.0.1:1", "X-Forwarded-For: 7.7.7.7:8080\r\n"), "7.7.7.7");
        assert_eq!(
            seen("10.0.0.1:1", "Forwarded: for=1.1.1.1, FOR=\"[2001:db8::1]:47\";proto=http\r\n"),
            "2001:db8::1"
        );
    }

    #[test]
    fn a_malformed_entry_ends_the_walk() {
        for entry in ["unknown", "", "7.7.7.7.7", "[::1", "_hidden", "7.7.7.7:99999"] {
            assert_eq!(seen("10.0.0.1:1", &format!("X-Forwarded-For: 6.6.6.6, {entry}\r\n")), "10.0.0.1", "{entry}");
        }
        assert_eq!(seen("10.0.0.1:1", "X-Forwarded-For: 6.6.6.6, nonsense, 10.1.1.1\r\n"), "10.1.1.1");
    }
}

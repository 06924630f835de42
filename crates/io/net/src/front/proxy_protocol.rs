//! The PROXY protocol, versions 1 and 2: a load balancer's word on who connects.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use firesteel_base::limits;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Addresses whose leading bits agree: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

/// What is no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no network: write it as `10.0.0.0/8`, `fd00::/8`, or one address")]
pub struct NetworkError(String);

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let error = || NetworkError(text.to_owned());
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().map_err(|_| error())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(bits) => bits.trim().parse().map_err(|_| error())?,
        };
        if bits > most {
            return Err(error());
        }
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl Network {
    /// Whether an address is in it; an IPv4 address as a socket of IPv6 shows it
    /// is one of IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let differ = u32::from(ours) ^ u32::from(other);
                u32::from(self.bits) <= differ.leading_zeros()
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let differ = u128::from(ours) ^ u128::from(other);
                u32::from(self.bits) <= differ.leading_zeros()
            }
            _ => false,
        }
    }
}

const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a header of version 1, its line end included.
const V1_LONGEST: usize = 107;

/// Reads the header, which must be there. `None`: the balancer itself connects,
/// such as to see whether the server lives, or does not know for whom.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut start = [0; V2.len()];
    stream.read_exact(&mut start).await?;
    if start == *V2 {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        let [command, family, high, low] = head;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > limits::PROXY_HEADER {
            return Err(damaged("it is too long"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        return version_2(command, family, &body);
    }
    if !start.starts_with(b"PROXY ") {
        return Err(damaged("there is none"));
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= V1_LONGEST {
            return Err(damaged("its line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    version_1(&line)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("no valid header of the PROXY protocol: {what}"),
    )
}

fn version_1(line: &[u8]) -> io::Result<Option<SocketAddr>> {
    let line = std::str::from_utf8(line).map_err(|_| damaged("it is no text"))?;
    let mut words = line.trim_end_matches("\r\n").split(' ').skip(1);
    match words.next() {
        Some("UNKNOWN") => return Ok(None),
        Some("TCP4" | "TCP6") => {}
        _ => return Err(damaged("it names no known protocol")),
    }
    let wrong = || damaged("an address or port in it is none");
    let source: IpAddr = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(wrong)?;
    let port = words
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or_else(wrong)?;
    Ok(Some(SocketAddr::new(source, port)))
}

fn version_2(command: u8, family: u8, body: &[u8]) -> io::Result<Option<SocketAddr>> {
    match command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(damaged("it has no known command")),
    }
    let short = || damaged("its addresses are cut off");
    match family >> 4 {
        1 => {
            let address = body.first_chunk::<4>().ok_or_else(short)?;
            let port = port(body, 8).ok_or_else(short)?;
            Ok(Some(SocketAddr::new(Ipv4Addr::from(*address).into(), port)))
        }
        2 => {
            let address = body.first_chunk::<16>().ok_or_else(short)?;
            let port = port(body, 32).ok_or_else(short)?;
            Ok(Some(SocketAddr::new(Ipv6Addr::from(*address).into(), port)))
        }
        // Unix sockets, and what the balancer does not tell.
        _ => Ok(None),
    }
}

fn port(body: &[u8], at: usize) -> Option<u16> {
    body.get(at..)?
        .first_chunk()
        .map(|port| u16::from_be_bytes(*port))
}

/// For fuzzing: a header in memory.
pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<SocketAddr>> {
    let mut bytes = bytes;
    let reading = read(&mut bytes);
    // Memory never waits.
    let mut reading = std::pin::pin!(reading);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match reading.as_mut().poll(&mut context) {
        std::task::Poll::Ready(read) => read,
        std::task::Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        let check = |network: &str, address: &str| {
            let network: Network = network.parse().unwrap();
            network.contains(address.parse().unwrap())
        };
        assert!(check("10.0.0.0/8", "10.200.3.4"));
        assert!(!check("10.0.0.0/8", "11.0.0.1"));
        assert!(check("10.1.2.3", "::ffff:10.1.2.3"));
        assert!(!check("10.1.2.3", "10.1.2.4"));
        assert!(check("fd00::/8", "fdab::1") && !check("fd00::/8", "fe80::1"));
        assert!(check("0.0.0.0/0", "1.2.3.4") && !check("0.0.0.0/0", "::1"));
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "fd00::/129",
            "a/8",
            "1.2.3.4/",
        ] {
            bad.parse::<Network>().unwrap_err();
        }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = V2.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn headers_name_who_connects() {
        let told = |bytes: &[u8]| parse(bytes).unwrap().map(|from| from.to_string());
        let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 5555 443\r\n";
        assert_eq!(told(v1).as_deref(), Some("192.0.2.7:5555"));
        let v1 = b"PROXY TCP6 2001:db8::7 2001:db8::1 5555 443\r\n";
        assert_eq!(told(v1).as_deref(), Some("[2001:db8::7]:5555"));
        assert_eq!(told(b"PROXY UNKNOWN\r\n"), None);
        let mut body = vec![192, 0, 2, 7, 198, 51, 100, 1, 0x15, 0xb3, 1, 0xbb];
        assert_eq!(
            told(&v2(0x21, 0x11, &body)).as_deref(),
            Some("192.0.2.7:5555")
        );
        // With what else a balancer has to say.
        body.extend([4, 0, 1, 0]);
        assert_eq!(
            told(&v2(0x21, 0x11, &body)).as_deref(),
            Some("192.0.2.7:5555")
        );
        assert_eq!(told(&v2(0x20, 0, &[])), None);
        let mut body = vec![0x20, 1, 0xd, 0xb8];
        body.extend([0; 28]);
        body.extend([0x15, 0xb3, 1, 0xbb]);
        assert_eq!(
            told(&v2(0x21, 0x21, &body)).as_deref(),
            Some("[2001:db8::]:5555")
        );
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = [b"PROXY TCP4 ".as_slice(), &[b'1'; 200]].concat();
        let bad: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"PROXY TCP4 x y 1 2\r\n".to_vec(),
            b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(),
            long,
            v2(0x21, 0x11, &[1, 2, 3]),
            v2(0x11, 0x11, &[0; 12]),
            v2(0x21, 0x11, &vec![0; limits::PROXY_HEADER + 1]),
        ];
        for bytes in bad {
            let error = parse(&bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
        for end in 0..15 {
            let error = parse(&b"PROXY UNKNOWN\r\n"[..end]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
        }
    }
}

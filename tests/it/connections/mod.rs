//! Connections: how many there may be, whose, by which names, and that nobody is kept out by those who ask for nothing.

mod few_descriptors;
mod limits;
mod names;
mod ports;
mod side_port;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use crate::support::Conn;

/// A connection from another address of this machine.
fn open_from(from: [u8; 4], to: SocketAddr) -> Conn {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((IpAddr::from(from), 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    Conn::over(socket.into())
}

/// So many connections, each of which has sent these bytes and nothing more. Whoever is told to leave meanwhile has done its part.
fn crowd(to: SocketAddr, count: usize, sent: &str) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = TcpStream::connect(to).unwrap();
        let _ = stream.write_all(sent.as_bytes());
        stream
    };
    (0..count).map(open).collect()
}

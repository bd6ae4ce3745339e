//! A port for a server that takes none by itself, or does not say which one it took.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

/// A free TCP port, which nobody else is given until this is dropped.
///
/// A socket is bound to it, and never listens. While it is there, Linux gives the port to no `bind` to port 0, and to no
/// connection of a client. A server that is told the port can listen there, if it sets SO_REUSEADDR first: servers do,
/// and so does [`std::net::TcpListener`]. To bind port 0, close that socket and tell the server its port is not enough:
/// another process may take the port in between.
#[derive(Debug)]
pub struct HeldPort {
    _socket: OwnedFd,
    address: SocketAddrV4,
}

impl HeldPort {
    /// A free port of this address.
    ///
    /// # Panics
    /// This machine has no such address, or the address has no free port.
    #[track_caller]
    pub fn of(ip: Ipv4Addr) -> Self {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .expect("a socket");
        set_socket_reuseaddr(&socket, true).expect("SO_REUSEADDR");
        bind(&socket, &SocketAddrV4::new(ip, 0)).expect("a free port");
        let address = getsockname(&socket).expect("its address").try_into().expect("IPv4");
        Self { _socket: socket, address }
    }

    /// The address with the port.
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_server_may_listen_at_it_and_nobody_else_is_given_it() {
        let held = HeldPort::of(Ipv4Addr::LOCALHOST);
        // As Linux decides for a `bind` to port 0: without regard to SO_REUSEADDR.
        let elsewhere = |ip| {
            let socket =
                socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None);
            bind(socket.unwrap(), &SocketAddrV4::new(ip, held.port()))
        };
        for ip in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST] {
            assert_eq!(elsewhere(ip), Err(Errno::ADDRINUSE));
        }
        assert!(TcpStream::connect(held.address()).is_err(), "nobody listens");
        // A server that starts again gets the same port.
        for _ in 0..2 {
            let server = TcpListener::bind(held.address()).expect("a server");
            let client = TcpStream::connect(held.address()).expect("a client");
            // The server's half is closed first, and waits for a while.
            drop(server.accept().expect("it is taken"));
            drop(client);
        }
    }
}

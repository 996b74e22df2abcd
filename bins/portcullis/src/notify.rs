//! Word to systemd (sd_notify(3)): one datagram, where there is somebody who listens.

use portcullis_edge::EdgeHandle;

/// Says that the edge serves, as soon as it does. In an upgrade the process before says it, which systemd knows.
pub(crate) async fn when_serving(edge: EdgeHandle) {
    edge.serving().await;
    #[cfg(unix)]
    if !crate::upgrade::is_one() {
        tell("READY=1");
    }
}

/// To the socket that the environment names. Nobody is there on most systems, and then it does nothing.
#[cfg(unix)]
#[allow(clippy::disallowed_methods, reason = "a program reads its environment")]
pub(crate) fn tell(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state) {
        tracing::warn!(%error, path = %path.display(), "systemd could not be told");
    }
}

#[cfg(unix)]
fn send(path: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    use std::os::unix::{ffi::OsStrExt, net::UnixDatagram};

    let socket = UnixDatagram::unbound()?;
    #[cfg(target_os = "linux")]
    if let Some(name) = path.as_bytes().strip_prefix(b"@") {
        use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
        let address = SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(state.as_bytes(), &address).map(drop);
    }
    socket.send_to(state.as_bytes(), path).map(drop)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn it_is_one_datagram() {
        let path = std::env::temp_dir().join(format!("portcullis-notify-{}", std::process::id()));
        let socket = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), "MAINPID=7\nREADY=1").unwrap();
        let mut buffer = [0; 64];
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"MAINPID=7\nREADY=1");
        std::fs::remove_file(&path).unwrap();
        assert!(send(path.as_os_str(), "READY=1").is_err());
    }
}

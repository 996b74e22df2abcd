//! What an error of `accept` means for the loop that got it.

use std::io;

use crate::limits::{HeadroomReached, descriptor_limit};

/// What an error of `accept` asks of the accept loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// It belongs to the one connection that was about to be accepted: take the next at once.
    Connection,
    /// Descriptors, memory or something else that `accept` needs is short, or the error is not known: the same
    /// call would fail again, so rest, and keep the listener.
    Shortage,
    /// The descriptor is not a listening socket any more: no call can ever succeed, and the listener ends.
    Fatal,
}

/// Errors of one connection, by number. Linux hands pending network errors of the new socket to the caller of
/// `accept` (accept(2), "Error handling"), and a connection may be gone before it is taken.
#[cfg(unix)]
const OF_ONE_CONNECTION: &[i32] = &[
    libc::ECONNABORTED,
    libc::ECONNRESET,
    libc::EINTR,
    libc::EPROTO,
    libc::ENOPROTOOPT,
    libc::EOPNOTSUPP,
    libc::ENETDOWN,
    libc::ENETUNREACH,
    libc::EHOSTDOWN,
    libc::EHOSTUNREACH,
    libc::ETIMEDOUT,
    // a firewall rule forbade this connection
    libc::EPERM,
    #[cfg(any(target_os = "linux", target_os = "android"))]
    libc::ENONET,
];

/// WSAEINTR, WSAEOPNOTSUPP, WSAENETDOWN, WSAENETUNREACH, WSAECONNABORTED, WSAECONNRESET, WSAETIMEDOUT,
/// WSAEHOSTDOWN, WSAEHOSTUNREACH.
#[cfg(not(unix))]
const OF_ONE_CONNECTION: &[i32] = &[10004, 10045, 10050, 10051, 10053, 10054, 10060, 10064, 10065];

/// What says that there is nothing to accept from: EBADF, ENOTSOCK, and EINVAL, which is a socket that does not listen
/// (accept(2)) or was shut down.
#[cfg(unix)]
const FATAL: &[i32] = &[libc::EBADF, libc::ENOTSOCK, libc::EINVAL];

/// WSAEBADF, WSAEINVAL, WSAENOTSOCK.
#[cfg(not(unix))]
const FATAL: &[i32] = &[10009, 10022, 10038];

/// Sorts an error of `accept`.
///
/// | class | Linux | macOS | Windows |
/// |---|---|---|---|
/// | [`Connection`](ErrorClass::Connection): the next at once | ECONNABORTED, ECONNRESET, EPROTO, EINTR, ENETDOWN, ENETUNREACH, ENOPROTOOPT, EHOSTDOWN, EHOSTUNREACH, ENONET, EOPNOTSUPP, ETIMEDOUT, EPERM (a firewall rule) | the same without ENONET | WSAEINTR, WSAEOPNOTSUPP, WSAENETDOWN, WSAENETUNREACH, WSAECONNABORTED, WSAECONNRESET, WSAETIMEDOUT, WSAEHOSTDOWN, WSAEHOSTUNREACH |
/// | [`Shortage`](ErrorClass::Shortage): a pause, and the listener stays | EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC, and whatever is in no other row | EMFILE, ENFILE, ENOBUFS, ENOMEM, and whatever is in no other row | WSAEMFILE, WSAENOBUFS, and whatever is in no other row |
/// | [`Fatal`](ErrorClass::Fatal): the listener ends | EBADF, ENOTSOCK, EINVAL | EBADF, ENOTSOCK, EINVAL | WSAEBADF, WSAENOTSOCK, WSAEINVAL |
///
/// An unknown error counts as a shortage: resting costs one client half a second, while retrying at once could
/// spin for ever, and giving up would close the door for good. Errors of single connections without end draw breath
/// for 10 ms after 128 in a row.
#[must_use]
pub fn classify(error: &io::Error) -> ErrorClass {
    use io::ErrorKind as Kind;

    let of_one_connection = match error.raw_os_error() {
        Some(code) if FATAL.contains(&code) => return ErrorClass::Fatal,
        Some(code) => OF_ONE_CONNECTION.contains(&code),
        None => matches!(
            error.kind(),
            Kind::ConnectionAborted
                | Kind::ConnectionReset
                | Kind::Interrupted
                | Kind::NetworkDown
                | Kind::NetworkUnreachable
                | Kind::HostUnreachable
                | Kind::TimedOut
        ),
    };
    if of_one_connection { ErrorClass::Connection } else { ErrorClass::Shortage }
}

/// What a person can do about an error of `accept`, where something is known.
#[must_use]
pub fn error_hint(error: &io::Error) -> Option<&'static str> {
    let code = error.raw_os_error()?;
    #[cfg(unix)]
    return match code {
        libc::EMFILE => Some(
            "this process has no descriptor left: raise its limit (`ulimit -n 65536` in the shell that starts it, \
             `LimitNOFILE=65536` in a systemd unit) or lower the connection limit",
        ),
        libc::ENFILE => Some(
            "the whole system has no descriptor left: raise it with `sysctl fs.file-max=...` or find out with \
             `cat /proc/sys/fs/file-nr` and lsof who holds so many",
        ),
        libc::ENOBUFS | libc::ENOMEM => Some(
            "the kernel has no memory for another socket: lower the connection limit, or raise the memory limit of \
             the container or `net.ipv4.tcp_mem`",
        ),
        libc::ENOSPC => {
            Some("no more sockets can be watched: raise it with `sysctl fs.epoll.max_user_watches=...`")
        }
        _ => None,
    };
    #[cfg(not(unix))]
    return match code {
        // WSAEMFILE
        10024 => Some("this process has no socket left: lower the connection limit"),
        // WSAENOBUFS
        10055 => Some("the system has no buffer space or ports left: lower the connection limit"),
        _ => None,
    };
}

/// The same with this process's own numbers, for the log.
pub(super) fn advice(error: &io::Error, max_connections: Option<usize>) -> String {
    let Ok((soft, hard)) = descriptor_limit() else {
        return error_hint(error).unwrap_or(UNKNOWN).to_owned();
    };
    let headroom = error.get_ref().is_some_and(|inner| inner.is::<HeadroomReached>());
    #[cfg(unix)]
    let process = error.raw_os_error() == Some(libc::EMFILE);
    #[cfg(not(unix))]
    let process = false;
    if !headroom && !process {
        return error_hint(error).unwrap_or(UNKNOWN).to_owned();
    }
    // two each, and some for the process itself; or at least twice of what was not enough
    let for_limit = (2 * max_connections.unwrap_or(0) as u64).saturating_add(64);
    let wanted = for_limit.max(soft.saturating_mul(2));
    let of_hard =
        if wanted > hard { format!(", whose hard limit of {hard} is in the way") } else { String::new() };
    let or_lower = max_connections
        .map_or_else(String::new, |max| format!(", or a connection limit below the {max} of now"));
    format!(
        "`ulimit -n` is {soft} now, {wanted} is wanted: `ulimit -n {wanted}` in the shell that starts this process{of_hard}, \
         or `LimitNOFILE={wanted}` in its systemd unit{or_lower}"
    )
}

const UNKNOWN: &str = "not a known accept error; the listener stays and tries again";

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        for code in [
            libc::ECONNABORTED,
            libc::ECONNRESET,
            libc::EPROTO,
            libc::EINTR,
            libc::ENETDOWN,
            libc::ENETUNREACH,
            libc::ENOPROTOOPT,
            libc::EHOSTDOWN,
            libc::EHOSTUNREACH,
            libc::EOPNOTSUPP,
            libc::ETIMEDOUT,
            libc::EPERM,
            #[cfg(target_os = "linux")]
            libc::ENONET,
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(classify(&error), ErrorClass::Connection, "{error}");
        }
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::ENOSPC, 9999] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(classify(&error), ErrorClass::Shortage, "{error}");
        }
        for code in [libc::EBADF, libc::ENOTSOCK, libc::EINVAL] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(classify(&error), ErrorClass::Fatal, "{error}");
        }
        assert_eq!(classify(&io::ErrorKind::ConnectionAborted.into()), ErrorClass::Connection);
        assert_eq!(classify(&io::Error::other("who knows")), ErrorClass::Shortage);
    }

    #[test]
    fn shortages_have_a_hint() {
        let hint = |code| error_hint(&io::Error::from_raw_os_error(code));
        let emfile = hint(libc::EMFILE).unwrap();
        assert!(emfile.contains("ulimit -n") && emfile.contains("LimitNOFILE="), "{emfile}");
        assert!(hint(libc::ENFILE).unwrap().contains("fs.file-max"));
        assert!(
            hint(libc::ENOBUFS).is_some() && hint(libc::ENOMEM).is_some() && hint(libc::ENOSPC).is_some()
        );
        assert_eq!(hint(libc::ECONNABORTED), None);
        assert_eq!(error_hint(&io::Error::other("?")), None);
    }
}

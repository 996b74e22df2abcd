//! Socket activation as systemd does it (sd_listen_fds(3)).

use super::{InheritError, InheritedSocket};

/// The first descriptor that is passed: those before it are the standard streams.
const FIRST: i32 = 3;
/// More are a mistake.
const MOST: usize = 1024;

/// The variables that systemd sets, as the program found them: a library does not read the environment.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemdEnv<'a> {
    /// `LISTEN_PID`: for which process the others are.
    pub listen_pid: Option<&'a str>,
    /// `LISTEN_FDS`: how many descriptors there are, from number 3 on.
    pub listen_fds: Option<&'a str>,
    /// `LISTEN_FDNAMES`: their names (`FileDescriptorName=` of the socket unit), with colons between them.
    pub listen_fdnames: Option<&'a str>,
}

/// Takes the sockets that systemd made for this process; none, if there are none or they are for another process
/// (`LISTEN_PID`). A socket without a name is called `unknown`, as systemd does. The program should take the variables
/// out of what its children see.
///
/// It can be called with success only once in a process: afterwards the descriptors are somebody's.
///
/// # Errors
/// The variables are malformed, or a descriptor is no socket to listen on; those before and behind it are closed then.
pub fn systemd_sockets(env: SystemdEnv<'_>) -> Result<Vec<InheritedSocket>, InheritError> {
    let (Some(pid), Some(count)) = (env.listen_pid, env.listen_fds) else { return Ok(Vec::new()) };
    let wrong =
        |variable, value: &str, why| InheritError::Environment { variable, value: value.to_owned(), why };
    let pid: u32 = pid.parse().map_err(|_| wrong("LISTEN_PID", pid, "it must be a process id"))?;
    if pid != std::process::id() {
        tracing::debug!(pid, "the environment has sockets of systemd for another process");
        return Ok(Vec::new());
    }
    let count: usize = count
        .parse()
        .ok()
        .filter(|count| *count <= MOST)
        .ok_or_else(|| wrong("LISTEN_FDS", count, "it must be a number of at most 1024"))?;
    let names: Vec<&str> = match env.listen_fdnames {
        None => vec!["unknown"; count],
        Some(names) => {
            let list: Vec<&str> = names.split(':').collect();
            if list.len() != count {
                return Err(wrong(
                    "LISTEN_FDNAMES",
                    names,
                    "it must have as many names as there are descriptors",
                ));
            }
            list
        }
    };
    let fds = crate::sys::take_descriptors(FIRST, count)?.ok_or(InheritError::Taken)?;
    fds.into_iter().zip(names).map(|(fd, name)| InheritedSocket::from_fd(name, fd)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_for_us_or_malformed() {
        let own = std::process::id().to_string();
        let env = |pid, fds, names| SystemdEnv { listen_pid: pid, listen_fds: fds, listen_fdnames: names };
        for nothing in [
            env(None, None, None),
            env(None, Some("1"), None),
            env(Some(own.as_str()), None, None),
            env(Some("1"), Some("1"), Some("http")),
        ] {
            assert!(systemd_sockets(nothing).unwrap().is_empty());
        }
        let own = own.as_str();
        for (env, part) in [
            (env(Some("me"), Some("1"), None), "LISTEN_PID=\"me\""),
            (env(Some(own), Some("-1"), None), "LISTEN_FDS=\"-1\""),
            (env(Some(own), Some("1025"), None), "at most 1024"),
            (env(Some(own), Some("2"), Some("a")), "as many names"),
            (env(Some(own), Some("1"), Some("a:b")), "LISTEN_FDNAMES=\"a:b\""),
        ] {
            let error = systemd_sockets(env).unwrap_err().to_string();
            assert!(error.contains(part), "{part} is missing in {error}");
        }
    }
}

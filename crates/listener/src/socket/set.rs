//! Sets options, reads them back and says what became of them.

use std::{fmt, io, net::SocketAddr, time::Duration};

use socket2::{SockRef, Socket, TcpKeepalive};

use super::{tcp::TcpOptions, udp::UdpOptions};

const IS_LINUX: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// An option that the system made something else of than was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Changed {
    /// The option, as the system calls it: `SO_RCVBUF`.
    pub option: &'static str,
    /// What was asked for.
    pub wanted: String,
    /// What it is.
    pub got: String,
    /// What a person can do about it, where something is known.
    pub hint: Option<String>,
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { option, wanted, got, hint } = self;
        write!(f, "{option} is {got}, not {wanted}")?;
        hint.iter().try_for_each(|hint| write!(f, ": {hint}"))
    }
}

/// An option that the system refused.
#[derive(Debug, thiserror::Error)]
#[error("the system refused {option}{}", hint.as_deref().map(|hint| format!(": {hint}")).unwrap_or_default())]
#[non_exhaustive]
pub struct OptionError {
    /// The option, as the system calls it.
    pub option: &'static str,
    /// What a person can do about it, where something is known.
    pub hint: Option<String>,
    /// What the system said.
    pub source: io::Error,
}

/// What went wrong in which step.
pub(crate) type Step<T> = Result<T, (&'static str, io::Error)>;

/// Sets one option after the other on a socket.
pub(crate) struct Set<'s> {
    socket: SockRef<'s>,
    pub(crate) changed: Vec<Changed>,
}

impl<'s> Set<'s> {
    pub(crate) fn on(socket: impl Into<SockRef<'s>>) -> Self {
        Self { socket: socket.into(), changed: Vec::new() }
    }

    #[allow(clippy::needless_pass_by_value, reason = "numbers and names, for which a reference is no gain")]
    fn changed(
        &mut self,
        option: &'static str,
        wanted: impl fmt::Display,
        got: impl fmt::Display,
        hint: Option<String>,
    ) {
        self.changed.push(Changed { option, wanted: format!("{wanted}"), got: format!("{got}"), hint });
    }

    /// Sets a value and compares what is read back; where that fails, nothing is told.
    #[allow(clippy::needless_pass_by_value, reason = "the callers have made it for this")]
    fn apply<T: PartialEq + fmt::Debug>(
        &mut self,
        option: &'static str,
        wanted: T,
        set: impl FnOnce(&Socket, &T) -> io::Result<()>,
        get: impl FnOnce(&Socket) -> io::Result<T>,
    ) -> Step<()> {
        set(&self.socket, &wanted).map_err(|error| (option, error))?;
        if let Ok(got) = get(&self.socket)
            && got != wanted
        {
            self.changed(option, format!("{wanted:?}"), format!("{got:?}"), None);
        }
        Ok(())
    }

    /// An option that only Linux has.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn int(&mut self, option: &'static str, level: i32, number: i32, value: u32) -> Step<()> {
        use std::os::fd::AsFd;

        use crate::sys::{get_int, set_int};

        let value = i32::try_from(value).unwrap_or(i32::MAX);
        let set = |socket: &Socket, value: &i32| set_int(socket.as_fd(), level, number, *value);
        self.apply(option, value, set, |socket| get_int(socket.as_fd(), level, number))
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn not_here(&mut self, option: &'static str, wanted: impl fmt::Display) {
        self.changed(option, wanted, "not there", Some("this system has no such option".to_owned()));
    }

    pub(crate) fn recv_buffer(&mut self, wanted: usize) -> Step<()> {
        self.socket.set_recv_buffer_size(wanted).map_err(|error| ("SO_RCVBUF", error))?;
        if let Ok(given) = self.socket.recv_buffer_size() {
            self.less("SO_RCVBUF", wanted, usable(given), "net.core.rmem_max");
        }
        Ok(())
    }

    pub(crate) fn send_buffer(&mut self, wanted: usize) -> Step<()> {
        self.socket.set_send_buffer_size(wanted).map_err(|error| ("SO_SNDBUF", error))?;
        if let Ok(given) = self.socket.send_buffer_size() {
            self.less("SO_SNDBUF", wanted, usable(given), "net.core.wmem_max");
        }
        Ok(())
    }

    /// More than was asked for is as good.
    fn less(&mut self, option: &'static str, wanted: usize, got: usize, sysctl: &str) {
        if got < wanted {
            let hint = IS_LINUX.then(|| format!("`sysctl -w {sysctl}={wanted}` lets the kernel give more"));
            self.changed(option, wanted, got, hint);
        }
    }

    /// What belongs to the listener alone and must be there before `listen`, for the window that is offered.
    pub(crate) fn tcp_listener(&mut self, options: &TcpOptions) -> Step<()> {
        if cfg!(unix) {
            self.apply(
                "SO_REUSEADDR",
                options.reuse_address,
                |socket, on| socket.set_reuse_address(*on),
                Socket::reuse_address,
            )?;
        }
        if let Some(size) = options.recv_buffer {
            self.recv_buffer(size)?;
        }
        if let Some(size) = options.send_buffer {
            self.send_buffer(size)?;
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            if let Some(queue) = options.fast_open {
                self.int("TCP_FASTOPEN", libc::IPPROTO_TCP, libc::TCP_FASTOPEN, queue.max(1))?;
                self.fast_open_sysctl(queue);
            }
            if let Some(after) = options.defer_accept {
                let wanted = whole_seconds(after);
                // the kernel rounds up to the time that a number of retransmissions takes
                let seconds = i32::try_from(wanted).unwrap_or(i32::MAX);
                let fd = std::os::fd::AsFd::as_fd(&*self.socket);
                crate::sys::set_int(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds)
                    .map_err(|error| ("TCP_DEFER_ACCEPT", error))?;
                match crate::sys::get_int(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT) {
                    Ok(got) if got < seconds => self.changed("TCP_DEFER_ACCEPT", seconds, got, None),
                    _ => {}
                }
            }
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            if let Some(queue) = options.fast_open {
                self.not_here("TCP_FASTOPEN", queue);
            }
            if let Some(after) = options.defer_accept {
                self.not_here("TCP_DEFER_ACCEPT", format!("{after:?}"));
            }
        }
        Ok(())
    }

    /// Bit 2 of the sysctl lets servers take data from a SYN (ip-sysctl.rst).
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn fast_open_sysctl(&mut self, queue: u32) {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_fastopen").unwrap_or_default();
        if let Ok(now) = text.trim().parse::<u32>()
            && now & 2 == 0
        {
            let hint = format!("`sysctl -w net.ipv4.tcp_fastopen={}` turns it on for servers", now | 2);
            self.changed("TCP_FASTOPEN", queue, "without effect", Some(hint));
        }
    }

    /// What connections have: set on the listener where they inherit it, or on each of them.
    pub(crate) fn tcp_connection(&mut self, options: &TcpOptions) -> Step<()> {
        self.apply(
            "TCP_NODELAY",
            options.nodelay,
            |socket, on| socket.set_tcp_nodelay(*on),
            Socket::tcp_nodelay,
        )?;
        if let Some(keepalive) = options.keepalive {
            let mut details = TcpKeepalive::new().with_time(seconds(keepalive.idle));
            if let Some(interval) = keepalive.interval {
                details = details.with_interval(seconds(interval));
            }
            if let Some(retries) = keepalive.retries {
                details = details.with_retries(retries.clamp(1, 127));
            }
            self.socket.set_tcp_keepalive(&details).map_err(|error| ("SO_KEEPALIVE", error))?;
            #[cfg(unix)]
            self.keepalive_as_wanted(keepalive);
        }
        self.linux_connection(options)?;
        if let Some(dscp) = options.dscp {
            self.dscp(dscp.min(63))?;
        }
        Ok(())
    }

    #[cfg(unix)]
    fn keepalive_as_wanted(&mut self, keepalive: super::tcp::Keepalive) {
        let got = self.socket.tcp_keepalive_time().ok();
        if let Some(got) = got.filter(|got| *got != seconds(keepalive.idle)) {
            self.changed("TCP_KEEPIDLE", format!("{:?}", keepalive.idle), format!("{got:?}"), None);
        }
        let got = self.socket.tcp_keepalive_interval().ok();
        if let (Some(wanted), Some(got)) = (keepalive.interval, got)
            && got != seconds(wanted)
        {
            self.changed("TCP_KEEPINTVL", format!("{wanted:?}"), format!("{got:?}"), None);
        }
        let got = self.socket.tcp_keepalive_retries().ok();
        if let (Some(wanted), Some(got)) = (keepalive.retries, got)
            && got != wanted
        {
            self.changed("TCP_KEEPCNT", wanted, got, None);
        }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn linux_connection(&mut self, options: &TcpOptions) -> Step<()> {
        if let Some(timeout) = options.user_timeout {
            let millis = Duration::from_millis(timeout.as_millis().clamp(1, i32::MAX as u128) as u64);
            self.apply(
                "TCP_USER_TIMEOUT",
                Some(millis),
                |socket, timeout| socket.set_tcp_user_timeout(*timeout),
                Socket::tcp_user_timeout,
            )?;
        }
        if let Some(bytes) = options.notsent_lowat {
            self.int("TCP_NOTSENT_LOWAT", libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes.max(1))?;
        }
        if let Some(name) = &options.congestion {
            self.apply(
                "TCP_CONGESTION",
                name.clone(),
                |socket, name| socket.set_tcp_congestion(name.as_bytes()),
                |socket| {
                    let name = socket.tcp_congestion()?;
                    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
                    Ok(String::from_utf8_lossy(&name[..end]).into_owned())
                },
            )?;
        }
        Ok(())
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn linux_connection(&mut self, options: &TcpOptions) -> Step<()> {
        if let Some(timeout) = options.user_timeout {
            self.not_here("TCP_USER_TIMEOUT", format!("{timeout:?}"));
        }
        if let Some(bytes) = options.notsent_lowat {
            self.not_here("TCP_NOTSENT_LOWAT", bytes);
        }
        if let Some(name) = &options.congestion {
            self.not_here("TCP_CONGESTION", name);
        }
        Ok(())
    }

    /// The upper six bits; the lower two are ECN, the kernel's.
    #[cfg(unix)]
    fn dscp(&mut self, dscp: u8) -> Step<()> {
        let bits = u32::from(dscp) << 2;
        let is_v6 = self.local().is_some_and(|local| local.is_ipv6());
        if is_v6 {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            self.apply("IPV6_TCLASS", bits, |socket, bits| socket.set_tclass_v6(*bits), Socket::tclass_v6)?;
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            self.not_here("IPV6_TCLASS", bits);
            // for IPv4 clients of a socket that takes both; one that does not may refuse it
            if IS_LINUX {
                let _ = self.socket.set_tos_v4(bits);
            }
            return Ok(());
        }
        self.apply("IP_TOS", bits, |socket, bits| socket.set_tos_v4(*bits), Socket::tos_v4)
    }

    #[cfg(not(unix))]
    fn dscp(&mut self, dscp: u8) -> Step<()> {
        self.not_here("IP_TOS", u32::from(dscp) << 2);
        Ok(())
    }

    fn local(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }

    /// What a listening socket queues, after `listen`.
    pub(crate) fn backlog(&mut self, wanted: u32) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Ok((got, _)) = crate::sys::backlog(std::os::fd::AsFd::as_fd(&*self.socket))
            && got < wanted
        {
            let hint = format!("`sysctl -w net.core.somaxconn={wanted}` lets the kernel queue more");
            self.changed("backlog", wanted, got, Some(hint));
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = wanted;
    }

    pub(crate) fn udp(&mut self, options: &UdpOptions) -> Step<()> {
        self.recv_buffer(options.recv_buffer)?;
        self.send_buffer(options.send_buffer)?;
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if options.dont_fragment {
            // PROBE sets the bit and leaves the size to the sender; DO would refuse what is above the kernel's idea
            let is_v6 = self.socket.domain().is_ok_and(|domain| domain == socket2::Domain::IPV6);
            if is_v6 {
                self.int(
                    "IPV6_MTU_DISCOVER",
                    libc::IPPROTO_IPV6,
                    libc::IPV6_MTU_DISCOVER,
                    libc::IPV6_PMTUDISC_PROBE as u32,
                )?;
            }
            // also for IPv4 peers of a socket that takes both
            self.int(
                "IP_MTU_DISCOVER",
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_PROBE as u32,
            )?;
        }
        Ok(())
    }
}

impl TcpOptions {
    /// Applies all that still can be applied to a listening socket which the program has already, made by itself or
    /// inherited, and gives what the system made something else of. The backlog is set anew by another `listen`.
    ///
    /// # Errors
    /// The system refused an option; those before it are set.
    pub fn apply_to_listener<'s>(
        &self,
        listener: impl Into<SockRef<'s>>,
    ) -> Result<Vec<Changed>, OptionError> {
        let mut set = Set::on(listener);
        set.tcp_listener(self).and_then(|()| set.tcp_connection(self)).map_err(OptionError::new)?;
        let backlog = i32::try_from(self.backlog).unwrap_or(i32::MAX);
        set.socket.listen(backlog).map_err(|error| OptionError::new(("listen", error)))?;
        set.backlog(self.backlog);
        Ok(set.changed)
    }

    /// Applies what an accepted connection has to have. Not needed on Linux for connections of a listener that has
    /// these options, as [`crate::BindPlan`] makes them: they are inherited there.
    ///
    /// # Errors
    /// The system refused an option, or the connection is gone.
    pub fn apply_to_connection<'s>(&self, connection: impl Into<SockRef<'s>>) -> Result<(), OptionError> {
        Set::on(connection).tcp_connection(self).map_err(OptionError::new)
    }
}

impl OptionError {
    fn new((option, source): (&'static str, io::Error)) -> Self {
        Self { option, hint: hint(option), source }
    }
}

/// What to do about an option that was refused.
pub(crate) fn hint(option: &str) -> Option<String> {
    if option != "TCP_CONGESTION" || !IS_LINUX {
        return None;
    }
    let known = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").ok()?;
    Some(format!(
        "this kernel has {}; others need their module (`modprobe tcp_bbr`), and unprivileged programs only get those of \
         net.ipv4.tcp_allowed_congestion_control",
        known.split_ascii_whitespace().collect::<Vec<_>>().join(", ")
    ))
}

/// Linux reports twice what it was asked for: half is its own bookkeeping (socket(7)).
fn usable(given: usize) -> usize {
    if IS_LINUX { given / 2 } else { given }
}

fn seconds(time: Duration) -> Duration {
    Duration::from_secs(whole_seconds(time))
}

/// At least one.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().max(1)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

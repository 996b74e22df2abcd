//! The command line.

use std::{ffi::OsString, fmt, net::IpAddr, path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue, Method, Uri};
use lexopt::prelude::*;

pub(crate) const HELP: &str = "\
portcullis-loadgen: load for HTTP/1.1, HTTP/2 and HTTP/3, and one request by hand

Usage: portcullis-loadgen [options] URL          a load run
       portcullis-loadgen get [options] URL      one request

A load run:
  --protocol P         h1 | h1s (TLS) | h2 (TLS) | h3 | ws (default: h1 for http, h1s for https); ws sends messages on
                       WebSockets, of --body-bytes (default 64, at most 65535), and waits for each to come back
  --connections N      connections, 1 to 20000 (default 64)
  --streams N          requests at once on each h2 or h3 connection, 1 to 1000 (default 32)
  --duration S         seconds that are measured, at most 3600 (default 10)
  --warmup S           seconds before that, not measured (default 2)
  --threads N          threads, 1 to 256 (default: one per core)
  --rate R             open loop: R requests a second on a fixed schedule, latency counted from the moment a
                       request was due; without it each slot sends as soon as the last answer is in
  --per-connection N   close an h1 connection after N requests (1 measures connects and handshakes)
  --no-resumption      never resume a TLS session
  --method M           (default GET, or POST with a body)
  --body-bytes N       send that many bytes with each request, at most 1 GiB
  --host-header H      the Host or :authority to send (default: the URL's)
  --timeout S          how long requests in flight at the end may take (default 10)
  --json               the report as one JSON object
  --marks              print `measure begin` and `measure end` as they happen

One request:
  --http1.1 | --http2 | --http3   which version (default: HTTP/1.1 for http, what TLS agrees on for https)
  --resolve HOST:PORT:IP          connect there for that host
  -X, --method M                  (default GET, or POST with a body)
  -H, --header 'NAME: VALUE'      add a field; may be repeated
  --data-bytes N                  send that many bytes
  --head                          HEAD
  --count                         print the body's length in place of the body
  --timeout S                     for the whole exchange (default 30)

Both:
  --insecure           accept any certificate
  --ca FILE            trust these certificates (PEM) in place of the system's
  --i-own-this-host    allow a target that is not a loopback address
";

/// What was asked for.
pub(crate) enum Command {
    Help,
    Load(Box<LoadOptions>),
    Get(Box<GetOptions>),
}

/// A protocol to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    H1s,
    H2,
    H3,
    /// WebSocket over plain HTTP/1.1.
    Ws,
}

impl Protocol {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H1s => "h1s",
            Self::H2 => "h2",
            Self::H3 => "h3",
            Self::Ws => "ws",
        }
    }

    pub(crate) fn alpn(self) -> Option<&'static [u8]> {
        match self {
            Self::H1 | Self::Ws => None,
            Self::H1s => Some(b"http/1.1"),
            Self::H2 => Some(b"h2"),
            Self::H3 => Some(b"h3"),
        }
    }
}

/// Whom to trust.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trust {
    pub(crate) insecure: bool,
    pub(crate) ca: Option<PathBuf>,
}

/// A load run.
#[derive(Debug)]
pub(crate) struct LoadOptions {
    pub(crate) url: Uri,
    pub(crate) protocol: Protocol,
    pub(crate) connections: usize,
    pub(crate) streams: usize,
    pub(crate) duration: Duration,
    pub(crate) warmup: Duration,
    pub(crate) threads: Option<usize>,
    pub(crate) rate: Option<f64>,
    pub(crate) per_connection: Option<u64>,
    pub(crate) resumption: bool,
    pub(crate) method: Method,
    pub(crate) body_bytes: u64,
    pub(crate) host_header: Option<HeaderValue>,
    pub(crate) timeout: Duration,
    pub(crate) json: bool,
    pub(crate) marks: bool,
    pub(crate) trust: Trust,
    pub(crate) own_host: bool,
}

/// Which version `get` must use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Negotiated,
    H1,
    H2,
    H3,
}

/// One request.
#[derive(Debug)]
pub(crate) struct GetOptions {
    pub(crate) url: Uri,
    pub(crate) version: Version,
    pub(crate) resolve: Vec<Resolve>,
    pub(crate) method: Method,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) data_bytes: u64,
    pub(crate) count: bool,
    pub(crate) timeout: Duration,
    pub(crate) trust: Trust,
    pub(crate) own_host: bool,
}

/// One `--resolve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolve {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) ip: IpAddr,
}

/// A command line that can't be obeyed.
#[derive(Debug)]
pub(crate) struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(args: impl Iterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut args: Vec<OsString> = args.collect();
    if args.iter().any(|arg| arg == "--help" || arg == "-h") || args.is_empty() {
        return Ok(Command::Help);
    }
    if args[0] == "get" {
        args.remove(0);
        return parse_get(args).map(|options| Command::Get(Box::new(options)));
    }
    parse_load(args).map(|options| Command::Load(Box::new(options)))
}

fn parse_load(args: Vec<OsString>) -> Result<LoadOptions, UsageError> {
    let mut raw = RawLoad::default();
    let mut url = None;
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Long("protocol") => raw.protocol = Some(protocol(&args.value()?.string()?)?),
            Long("connections") => {
                raw.connections = within("connections", args.value()?.parse()?, 1, 20_000)?;
            }
            Long("streams") => raw.streams = within("streams", args.value()?.parse()?, 1, 1000)?,
            Long("duration") => raw.duration = seconds("duration", args.value()?.parse()?)?,
            Long("warmup") => raw.warmup = seconds("warmup", args.value()?.parse()?)?,
            Long("threads") => raw.threads = Some(within("threads", args.value()?.parse()?, 1, 256)?),
            Long("rate") => raw.rate = Some(args.value()?.parse()?),
            Long("per-connection") => {
                raw.per_connection = Some(within("per-connection", args.value()?.parse()?, 1, u64::MAX)?);
            }
            Long("no-resumption") => raw.no_resumption = true,
            Long("method") => raw.method = Some(args.value()?.parse()?),
            Long("body-bytes") => raw.body_bytes = within("body-bytes", args.value()?.parse()?, 0, 1 << 30)?,
            Long("host-header") => raw.host_header = Some(args.value()?.parse()?),
            Long("timeout") => raw.timeout = seconds("timeout", args.value()?.parse()?)?,
            Long("json") => raw.json = true,
            Long("marks") => raw.marks = true,
            Long("insecure") => raw.trust.insecure = true,
            Long("ca") => raw.trust.ca = Some(args.value()?.into()),
            Long("i-own-this-host") => raw.own_host = true,
            Value(value) if url.is_none() => url = Some(value.parse::<Uri>()?),
            _ => return Err(arg.unexpected().into()),
        }
    }
    raw.finish(url.ok_or_else(|| UsageError("which URL?".to_owned()))?)
}

/// A load run before its parts are checked against each other.
struct RawLoad {
    protocol: Option<Protocol>,
    connections: usize,
    streams: usize,
    duration: Duration,
    warmup: Duration,
    threads: Option<usize>,
    rate: Option<f64>,
    per_connection: Option<u64>,
    no_resumption: bool,
    method: Option<Method>,
    body_bytes: u64,
    host_header: Option<HeaderValue>,
    timeout: Duration,
    json: bool,
    marks: bool,
    trust: Trust,
    own_host: bool,
}

impl Default for RawLoad {
    fn default() -> Self {
        Self {
            protocol: None,
            connections: 64,
            streams: 32,
            duration: Duration::from_secs(10),
            warmup: Duration::from_secs(2),
            threads: None,
            rate: None,
            per_connection: None,
            no_resumption: false,
            method: None,
            body_bytes: 0,
            host_header: None,
            timeout: Duration::from_secs(10),
            json: false,
            marks: false,
            trust: Trust::default(),
            own_host: false,
        }
    }
}

impl RawLoad {
    fn finish(self, url: Uri) -> Result<LoadOptions, UsageError> {
        let protocol = match (url.scheme_str(), self.protocol) {
            (Some("http"), None | Some(Protocol::H1)) => Protocol::H1,
            (Some("http"), Some(Protocol::Ws)) => Protocol::Ws,
            (Some("https"), None) => Protocol::H1s,
            (Some("https"), Some(protocol)) if protocol.alpn().is_some() => protocol,
            (Some("http" | "https"), Some(protocol)) => {
                let scheme = if protocol.alpn().is_none() { "http" } else { "https" };
                return Err(UsageError(format!("{} needs an {scheme}:// URL", protocol.name())));
            }
            _ => return Err(UsageError(format!("`{url}` is no http:// or https:// URL"))),
        };
        if let Some(rate) = self.rate
            && !(rate > 0.0 && rate <= 10_000_000.0)
        {
            return Err(UsageError("--rate is more than 0 and at most 10000000".to_owned()));
        }
        if self.per_connection.is_some() && !matches!(protocol, Protocol::H1 | Protocol::H1s) {
            return Err(UsageError("--per-connection is for h1 and h1s".to_owned()));
        }
        if protocol == Protocol::Ws && self.body_bytes > crate::ws::MAX_LEN {
            return Err(UsageError(format!("--body-bytes is at most {} with ws", crate::ws::MAX_LEN)));
        }
        if self.duration.is_zero() {
            return Err(UsageError("--duration is more than 0".to_owned()));
        }
        Ok(LoadOptions {
            url,
            protocol,
            connections: self.connections,
            streams: self.streams,
            duration: self.duration,
            warmup: self.warmup,
            threads: self.threads,
            rate: self.rate,
            per_connection: self.per_connection,
            resumption: !self.no_resumption,
            method: method_or_default(self.method, self.body_bytes),
            body_bytes: self.body_bytes,
            host_header: self.host_header,
            timeout: self.timeout,
            json: self.json,
            marks: self.marks,
            trust: self.trust,
            own_host: self.own_host,
        })
    }
}

fn parse_get(args: Vec<OsString>) -> Result<GetOptions, UsageError> {
    let (mut url, mut version, mut method) = (None, Version::Negotiated, None);
    let (mut resolve, mut headers, mut data_bytes) = (Vec::new(), Vec::new(), 0);
    let (mut count, mut own_host, mut trust) = (false, false, Trust::default());
    let mut timeout = Duration::from_secs(30);
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Long("http1.1") => version = Version::H1,
            Long("http2") => version = Version::H2,
            Long("http3") => version = Version::H3,
            Long("resolve") => resolve.push(args.value()?.parse_with(resolve_entry)?),
            Short('X') | Long("method") => method = Some(args.value()?.parse()?),
            Short('H') | Long("header") => headers.push(args.value()?.parse_with(field)?),
            Long("data-bytes") => data_bytes = within("data-bytes", args.value()?.parse()?, 0, 1 << 30)?,
            Long("head") => method = Some(Method::HEAD),
            Long("count") => count = true,
            Long("timeout") => timeout = seconds("timeout", args.value()?.parse()?)?,
            Long("insecure") => trust.insecure = true,
            Long("ca") => trust.ca = Some(args.value()?.into()),
            Long("i-own-this-host") => own_host = true,
            Value(value) if url.is_none() => url = Some(value.parse::<Uri>()?),
            _ => return Err(arg.unexpected().into()),
        }
    }
    let url = url.ok_or_else(|| UsageError("which URL?".to_owned()))?;
    match url.scheme_str() {
        Some("https") => {}
        Some("http") if version != Version::H3 => {}
        Some("http") => return Err(UsageError("HTTP/3 needs an https:// URL".to_owned())),
        _ => return Err(UsageError(format!("`{url}` is no http:// or https:// URL"))),
    }
    let method = method_or_default(method, data_bytes);
    Ok(GetOptions { url, version, resolve, method, headers, data_bytes, count, timeout, trust, own_host })
}

fn method_or_default(method: Option<Method>, body_bytes: u64) -> Method {
    method.unwrap_or(if body_bytes > 0 { Method::POST } else { Method::GET })
}

fn protocol(name: &str) -> Result<Protocol, UsageError> {
    [Protocol::H1, Protocol::H1s, Protocol::H2, Protocol::H3, Protocol::Ws]
        .into_iter()
        .find(|protocol| protocol.name() == name)
        .ok_or_else(|| UsageError(format!("`{name}` is no protocol: h1, h1s, h2, h3 or ws")))
}

fn within<T: PartialOrd + fmt::Display + Copy>(
    name: &str,
    value: T,
    low: T,
    high: T,
) -> Result<T, UsageError> {
    if value >= low && value <= high {
        Ok(value)
    } else {
        Err(UsageError(format!("--{name} is {low} to {high}, not {value}")))
    }
}

fn seconds(name: &str, value: f64) -> Result<Duration, UsageError> {
    if (0.0..=3600.0).contains(&value) {
        Ok(Duration::from_secs_f64(value))
    } else {
        Err(UsageError(format!("--{name} is 0 to 3600 seconds, not {value}")))
    }
}

/// `HOST:PORT:IP`; the address may be IPv6, in brackets or not.
fn resolve_entry(text: &str) -> Result<Resolve, String> {
    let wrong = || format!("`{text}` is not HOST:PORT:IP");
    let mut parts = text.splitn(3, ':');
    let (host, port, ip) = (parts.next(), parts.next(), parts.next());
    let (Some(host), Some(port), Some(ip)) = (host, port, ip) else { return Err(wrong()) };
    let ip = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
    Ok(Resolve {
        host: host.to_ascii_lowercase(),
        port: port.parse().map_err(|_| wrong())?,
        ip: ip.parse().map_err(|_| wrong())?,
    })
}

fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("`{text}` is not `NAME: VALUE`"))?;
    Ok((
        name.trim().parse().map_err(|error| format!("`{name}`: {error}"))?,
        value.trim().parse().map_err(|error| format!("`{value}`: {error}"))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> Result<LoadOptions, String> {
        match parse(args.iter().map(OsString::from)) {
            Ok(Command::Load(options)) => Ok(*options),
            Ok(_) => panic!("not a load run"),
            Err(error) => Err(error.to_string()),
        }
    }

    fn get(args: &[&str]) -> Result<GetOptions, String> {
        match parse(std::iter::once(&"get").chain(args).map(OsString::from)) {
            Ok(Command::Get(options)) => Ok(*options),
            Ok(_) => panic!("not a get"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_protocol_follows_the_scheme() {
        assert_eq!(load(&["http://localhost/"]).unwrap().protocol, Protocol::H1);
        assert_eq!(load(&["https://localhost/"]).unwrap().protocol, Protocol::H1s);
        assert_eq!(load(&["--protocol", "h3", "https://localhost/"]).unwrap().protocol, Protocol::H3);
        assert!(load(&["--protocol", "h2", "http://localhost/"]).unwrap_err().contains("https://"));
        assert!(load(&["--protocol", "h1", "https://localhost/"]).unwrap_err().contains("http://"));
        assert_eq!(load(&["--protocol", "ws", "http://localhost/"]).unwrap().protocol, Protocol::Ws);
        assert!(load(&["--protocol", "ws", "https://localhost/"]).unwrap_err().contains("http://"));
        assert!(load(&["--protocol", "ws", "--body-bytes=65536", "http://localhost/"]).is_err());
        assert!(load(&["--protocol", "h4", "https://localhost/"]).is_err());
        assert!(load(&["localhost:80"]).is_err());
    }

    #[test]
    fn everything_is_bounded() {
        for (name, bad) in [
            ("--connections", "0"),
            ("--connections", "20001"),
            ("--streams", "0"),
            ("--duration", "0"),
            ("--duration", "3601"),
            ("--warmup", "-1"),
            ("--threads", "0"),
            ("--rate", "0"),
            ("--rate", "NaN"),
            ("--body-bytes", "1073741825"),
        ] {
            assert!(load(&[&format!("{name}={bad}"), "http://localhost/"]).is_err(), "{name} {bad}");
        }
    }

    #[test]
    fn a_body_makes_it_a_post() {
        assert_eq!(load(&["http://localhost/"]).unwrap().method, Method::GET);
        assert_eq!(load(&["--body-bytes=1", "http://localhost/"]).unwrap().method, Method::POST);
        let put = load(&["--body-bytes=1", "--method=PUT", "http://localhost/"]).unwrap();
        assert_eq!(put.method, Method::PUT);
        assert_eq!(get(&["--head", "http://localhost/"]).unwrap().method, Method::HEAD);
    }

    #[test]
    fn get_reads_its_options() {
        let options = get(&[
            "--http3",
            "--resolve",
            "A.example:443:::1",
            "-H",
            "x-a: b",
            "--count",
            "--insecure",
            "https://a.example/",
        ])
        .unwrap();
        assert_eq!(options.version, Version::H3);
        let ip = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(options.resolve, [Resolve { host: "a.example".to_owned(), port: 443, ip }]);
        assert_eq!(options.headers[0].0, "x-a");
        assert_eq!(options.headers[0].1, "b");
        assert!(options.count && options.trust.insecure);
        assert!(get(&["--http3", "http://a.example/"]).is_err());
        assert!(get(&["--resolve", "a.example:443", "https://a.example/"]).is_err());
    }
}

//! Readers of what names something on the network: addresses, hosts, endpoints, CIDRs, URIs, paths, statuses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::{StatusCode, Uri};
use ipnet::IpNet;
use portcullis_edge::{
    listener::ListenAddr,
    plan::{EndpointPlan, ListenOn},
};
use toml::de::DeValue;

use crate::{
    errors::escape,
    reader::{Read, Wrong},
    values::{integer, word},
};

pub(crate) fn not(what: &str, found: &str) -> Wrong {
    Wrong::new(format!("wants {what}, found \"{}\"", escape(found)))
}

/// An IP address and a port to listen on.
pub(crate) fn socket_address(value: &DeValue<'_>) -> Read<SocketAddr> {
    let text = word(value, "an address and a port", "[::]:443")?;
    text.parse().map_err(|_| {
        let wrong = not("an address and a port", text);
        if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return wrong.hint(format!("add the port: \"{}\"", SocketAddr::new(ip, 443)));
        }
        if let Some(port) =
            text.trim_start_matches([':', '*']).parse::<u16>().ok().filter(|_| !text.is_empty())
        {
            return wrong.hint(format!("for every IPv6 and IPv4 address write \"[::]:{port}\""));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_err() => {
                let hint =
                    format!("the port \"{}\" after {} must be from 0 to 65535", escape(port), escape(host));
                wrong.hint(hint)
            }
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => {
                wrong.hint(format!("IPv6 addresses stand in brackets: \"[{host}]:{port}\""))
            }
            _ => wrong.hint("an IP address and a port, as in \"[::]:443\" or \"127.0.0.1:8080\""),
        }
    })
}

/// Where a listener listens: an address and a port, a unix socket, or sockets that were handed over.
pub(crate) fn listen_on(value: &DeValue<'_>) -> Read<ListenOn> {
    const WHAT: &str = "an address and a port, \"unix:\" and a path, or \"systemd:\" and a name";
    let text = word(value, WHAT, "[::]:443")?;
    if let Some(name) = text.strip_prefix("systemd:") {
        // systemd.socket(5), FileDescriptorName=: no control character, no colon, at most 255 bytes
        let fits = (1..=255).contains(&name.len()) && !name.chars().any(|c| c.is_control() || c == ':');
        return fits.then(|| ListenOn::Inherited(name.to_owned())).ok_or_else(|| {
            not("\"systemd:\" and a name", text)
                .hint("the name is what the socket unit says in FileDescriptorName=")
        });
    }
    if text.starts_with("unix:") {
        let address: ListenAddr = text.parse().map_err(|_| {
            not("\"unix:\" and a path", text).hint("for example \"unix:/run/portcullis/http.sock\"")
        })?;
        return Ok(address.into());
    }
    if text.starts_with('/') {
        return Err(not(WHAT, text).hint(format!("for a unix socket write \"unix:{}\"", escape(text))));
    }
    socket_address(value).map(Into::into)
}

/// A network, or one address.
pub(crate) fn network(value: &DeValue<'_>) -> Read<IpNet> {
    let text = word(value, "a network", "10.0.0.0/8")?;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip.into());
    }
    let network: IpNet = text
        .parse()
        .map_err(|_| not("a network", text).hint("for example \"10.0.0.0/8\" or \"fd00::/8\""))?;
    let whole = network.trunc();
    if whole != network {
        return Err(
            not("a network", text).hint(format!("no address bits may stand after the prefix: \"{whole}\""))
        );
    }
    Ok(network)
}

/// A host of a route: a name, `*.` and a name, or an IP address. Without port, in lower case.
pub(crate) fn host_pattern(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "a host", "a.example.com")?;
    let wrong = || not("a host", text);
    if text.contains("://") || text.contains('/') {
        return Err(wrong().hint("only the host: neither scheme nor path, which goes into `path`"));
    }
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<Ipv6Addr>() {
        // RFC 3986 section 3.2.2: an IPv6 address stands in brackets in an authority
        return Ok(format!("[{ip}]"));
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        let hint = if port.parse::<u16>().is_ok() {
            format!("leave the port out, it is not compared: \"{}\"", escape(host))
        } else {
            "a colon has no place in a host".to_owned()
        };
        return Err(wrong().hint(hint));
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    if name != text && name.parse::<Ipv4Addr>().is_ok() {
        return Err(wrong().hint("`*.` stands only before a name"));
    }
    if name.contains('*') {
        return Err(
            wrong().hint("`*` stands only in front, as in \"*.example.com\"; for any host leave `host` out")
        );
    }
    check_name(name).map_err(|hint| wrong().hint(hint))?;
    Ok(text.to_ascii_lowercase())
}

/// A name or an address that a certificate is made for.
pub(crate) fn certificate_name(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "a host name or an IP address", "localhost")?;
    if text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    check_name(name).map_err(|hint| not("a host name or an IP address", text).hint(hint))?;
    Ok(text.to_ascii_lowercase())
}

/// RFC 1123 section 2.1, and the underscore that is common inside of networks.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    if !name.is_ascii() {
        return Err("write the ASCII form of the name, with \"xn--\"".to_owned());
    }
    if name.ends_with('.') {
        return Err("leave the last dot out".to_owned());
    }
    if name.len() > 253 {
        return Err("a name has at most 253 characters".to_owned());
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err("each part between the dots has 1 to 63 characters".to_owned());
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("no part begins or ends with a hyphen".to_owned());
        }
        if let Some(odd) = label.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-' && *c != '_') {
            return Err(format!("`{}` has no place in a host name", escape(&odd.to_string())));
        }
    }
    // no top-level domain is a number (RFC 3696 section 2)
    let number = name.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit()));
    if number && name.parse::<Ipv4Addr>().is_err() {
        return Err("it looks like an IPv4 address but is none".to_owned());
    }
    Ok(())
}

/// Where requests are sent: `host:port` or `unix:/path`, and behind it what is special about it.
pub(crate) fn endpoint(value: &DeValue<'_>) -> Read<EndpointPlan> {
    let text = word(value, "an endpoint", "127.0.0.1:3000")?;
    let mut words = text.split_ascii_whitespace();
    let address = words.next().unwrap_or_default();
    endpoint_address(address)?;
    let mut plan = EndpointPlan::from(address);
    for word in words {
        let wrong = || {
            Wrong::new(format!("\"{}\" is nothing that an endpoint has", escape(word)))
                .hint("`weight=1` to 1000, `priority=0` to 255, `zone=NAME`")
        };
        let (key, value) = word.split_once('=').ok_or_else(wrong)?;
        match key {
            "weight" => {
                let weight = value.parse().ok().filter(|weight| (1..=1000).contains(weight));
                plan.weight = weight.ok_or_else(wrong)?;
            }
            "priority" => plan.priority = value.parse().map_err(|_| wrong())?,
            "zone" if (1..=64).contains(&value.len()) => plan.zone = Some(value.to_owned()),
            _ => return Err(wrong()),
        }
    }
    Ok(plan)
}

fn endpoint_address(text: &str) -> Read<()> {
    let wrong = || not("an endpoint", text);
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.len() >= 108 {
            return Err(wrong().hint("an absolute path of at most 107 bytes: \"unix:/run/app.sock\""));
        }
        return Ok(());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let hint = if scheme.eq_ignore_ascii_case("http") {
            format!("leave the scheme out: \"{}\"", escape(rest.trim_end_matches('/')))
        } else {
            "a host and a port; TLS is `tls = true` of the cluster".to_owned()
        };
        return Err(wrong().hint(hint));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(wrong().hint(format!("brackets and a port: \"[{text}]:3000\"")));
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) else {
        return Err(wrong().hint(format!("add the port: \"{}:3000\"", escape(text))));
    };
    if port.parse::<u16>().ok().filter(|port| *port > 0).is_none() || port.starts_with('+') {
        return Err(wrong().hint("the port must be from 1 to 65535"));
    }
    if let Some(inner) = host.strip_prefix('[') {
        let ip = inner.strip_suffix(']').and_then(|ip| ip.parse::<Ipv6Addr>().ok());
        return ip.map(|_| ()).ok_or_else(|| wrong().hint("in brackets stands an IPv6 address"));
    }
    check_name(host).map_err(|hint| wrong().hint(hint))
}

/// A path to begin with `/`, without query.
pub(crate) fn path(value: &DeValue<'_>) -> Read<String> {
    let text = word(value, "a path", "/api")?;
    let wrong = || not("a path", text);
    if !text.starts_with('/') {
        return Err(wrong().hint(format!("it begins with a slash: \"/{}\"", escape(text))));
    }
    if text.contains(['?', '#']) {
        return Err(wrong().hint("only the path is compared: leave the query and the fragment out"));
    }
    if text.contains('*') {
        return Err(wrong().hint("`*` means nothing here: a path matches all that lies below it"));
    }
    // clients and the edge remove them from a request's path (RFC 3986 section 5.2.4), so they would never match
    if text.split('/').any(|segment| matches!(&*segment.to_ascii_lowercase().replace("%2e", "."), "." | ".."))
    {
        return Err(wrong().hint("leave the segments `.` and `..` out"));
    }
    // RFC 3986 section 3.3: what is left must be percent-encoded
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
        let hint = format!("write `{}` percent-encoded, as clients send it", escape(&odd.to_string()));
        return Err(wrong().hint(hint));
    }
    if text.parse::<Uri>().is_err() {
        return Err(wrong().hint("it has a character that no path can have; percent-encode it"));
    }
    Ok(text.to_owned())
}

/// Where a redirect leads: an absolute `http` or `https` URI.
pub(crate) fn redirect_target(value: &DeValue<'_>) -> Read<Uri> {
    let text = word(value, "a URI", "https://example.com")?;
    let wrong = || not("an absolute URI", text);
    let uri: Uri = text.parse().map_err(|_| wrong().hint("for example \"https://example.com/new\""))?;
    if text.contains('#') {
        return Err(wrong().hint("leave the fragment out: the client keeps its own"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(wrong().hint("a user name has no place in it (RFC 9110 section 4.2.4)"));
    }
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
        Some("http" | "https") => Err(wrong().hint("the host is missing")),
        Some(_) => Err(wrong().hint("the scheme must be http or https")),
        None => {
            let rest = text.trim_start_matches('/');
            Err(wrong().hint(format!("begin with a scheme and a host, as in \"https://{}\"", escape(rest))))
        }
    }
}

/// The status of a redirect that keeps its meaning for every client.
pub(crate) fn redirect_status(value: &DeValue<'_>) -> Read<StatusCode> {
    let code: u16 = integer(301..=308)(value).map_err(|wrong| wrong.hint(REDIRECTS))?;
    match code {
        301 | 302 | 307 | 308 => Ok(status_of(code)),
        _ => Err(Wrong::new(format!("must be a redirect's status, found {code}")).hint(REDIRECTS)),
    }
}

const REDIRECTS: &str = "a redirect is 301, 302, 307 or 308";

/// A final status.
pub(crate) fn final_status(value: &DeValue<'_>) -> Read<StatusCode> {
    integer(200..=599)(value).map(status_of)
}

fn status_of(code: u16) -> StatusCode {
    StatusCode::from_u16(code).expect("every caller keeps to 200..=599, and 100 to 999 are valid")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<T: std::fmt::Debug>(
        read: impl Fn(&DeValue<'_>) -> Read<T>,
        table: &[(&str, Result<&str, &str>)],
    ) {
        for (text, wanted) in table {
            let value = DeValue::String((*text).into());
            match (read(&value), wanted) {
                (Ok(found), Ok(wanted)) => {
                    assert!(format!("{found:?}").contains(wanted), "{text}: {found:?}");
                }
                (Err(wrong), Err(wanted)) => {
                    let hint = wrong.hint.unwrap_or_default();
                    assert!(hint.contains(wanted), "{text}: {} ({hint})", wrong.message);
                }
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        assert!(read(&DeValue::Boolean(true)).is_err());
    }

    #[test]
    fn addresses() {
        check(
            socket_address,
            &[
                ("[::]:443", Ok("[::]:443")),
                ("127.0.0.1:0", Ok("127.0.0.1:0")),
                ("127.0.0.1", Err("\"127.0.0.1:443\"")),
                ("::1", Err("\"[::1]:443\"")),
                ("[::]", Err("\"[::]:443\"")),
                (":8080", Err("\"[::]:8080\"")),
                ("*:8080", Err("\"[::]:8080\"")),
                ("0.0.0.0:70000", Err("from 0 to 65535")),
                ("fd00:aa:bb:cc:dd:ee:ff:1:80", Err("\"[fd00:aa:bb:cc:dd:ee:ff:1]:80\"")),
                ("localhost:80", Err("an IP address and a port")),
                ("", Err("an IP address and a port")),
            ],
        );
    }

    #[test]
    fn networks() {
        check(
            network,
            &[
                ("10.0.0.0/8", Ok("10.0.0.0/8")),
                ("10.1.2.3", Ok("10.1.2.3/32")),
                ("::1", Ok("::1/128")),
                ("10.0.0.1/8", Err("\"10.0.0.0/8\"")),
                ("10.0.0.0/33", Err("for example")),
                ("example.com", Err("for example")),
            ],
        );
    }

    #[test]
    fn hosts() {
        let long = format!("{}.com", "a".repeat(64));
        check(
            host_pattern,
            &[
                ("A.Example.com", Ok("\"a.example.com\"")),
                ("*.example.com", Ok("\"*.example.com\"")),
                ("localhost", Ok("\"localhost\"")),
                ("my_app.internal", Ok("\"my_app.internal\"")),
                ("127.0.0.1", Ok("\"127.0.0.1\"")),
                ("[::1]", Ok("\"[::1]\"")),
                ("::1", Ok("\"[::1]\"")),
                ("a.example.com:443", Err("leave the port out, it is not compared: \"a.example.com\"")),
                ("https://a.example.com", Err("neither scheme nor path")),
                ("a.example.com/x", Err("neither scheme nor path")),
                ("*", Err("leave `host` out")),
                ("a.*.com", Err("leave `host` out")),
                ("", Err("it is empty")),
                ("a..b", Err("1 to 63")),
                (&long, Err("1 to 63")),
                ("-a.com", Err("hyphen")),
                ("*.127.0.0.1", Err("before a name")),
                ("127.0.0.256", Err("IPv4")),
                ("a b.com", Err("` ` has no place")),
                ("a.com.", Err("last dot")),
                ("bücher.de", Err("xn--")),
            ],
        );
        check(
            certificate_name,
            &[("localhost", Ok("localhost")), ("::1", Ok("::1")), ("*.a.b", Ok("*.a.b")), ("", Err("empty"))],
        );
    }

    #[test]
    fn endpoints() {
        check(
            endpoint,
            &[
                ("127.0.0.1:3000", Ok("127.0.0.1:3000")),
                ("app.internal:80", Ok("app.internal:80")),
                ("[::1]:3000", Ok("[::1]:3000")),
                ("http://app:80/", Err("leave the scheme out: \"app:80\"")),
                ("https://app:80", Err("TLS is")),
                ("app", Err("add the port: \"app:3000\"")),
                ("[::1]", Err("add the port: \"[::1]:3000\"")),
                ("::1", Err("\"[::1]:3000\"")),
                ("app:0", Err("from 1 to 65535")),
                ("app:+1", Err("from 1 to 65535")),
                ("app:70000", Err("from 1 to 65535")),
                (":80", Err("empty")),
                ("[x]:80", Err("IPv6")),
                ("1.2.3:80", Err("IPv4")),
                ("300.0.0.1:80", Err("IPv4")),
            ],
        );
    }

    proptest! {
        #[test]
        fn what_is_an_endpoint_here_is_one_upstream(text in "(\\[[0-9a-f:]{0,6}\\]|[a-z0-9._-]{0,12})(:[0-9]{0,5})?") {
            if let Ok(found) = endpoint(&DeValue::String(text.into())) {
                prop_assert!(found.address.parse::<portcullis_edge::upstream::Endpoint>().is_ok(), "{found:?}");
            }
        }
    }

    #[test]
    fn paths_and_uris() {
        check(
            path,
            &[
                ("/", Ok("/")),
                ("/api/v1", Ok("/api/v1")),
                ("/%20", Ok("/%20")),
                ("api", Err("\"/api\"")),
                ("", Err("\"/\"")),
                ("/a?b", Err("query")),
                ("/a/*", Err("below it")),
                ("/a b", Err("percent")),
                ("/a/../b", Err("segments")),
                ("/%2E", Err("segments")),
                ("/..a", Ok("/..a")),
                ("/é", Err("percent")),
            ],
        );
        check(
            redirect_target,
            &[
                ("https://example.com", Ok("https://example.com/")),
                ("http://example.com:8080/x?y", Ok("http://example.com:8080/x?y")),
                ("example.com", Err("https://example.com")),
                ("/x", Err("https://x")),
                ("ftp://example.com/", Err("http or https")),
                ("https://a/#x", Err("fragment")),
                ("https://me@a/", Err("user name")),
                ("https://", Err("for example")),
                ("a b", Err("for example")),
            ],
        );
    }

    #[test]
    fn statuses() {
        let value = |text| DeValue::parse(text).unwrap().into_inner();
        assert_eq!(redirect_status(&value("308")).unwrap(), StatusCode::PERMANENT_REDIRECT);
        for text in ["303", "304", "200", "'308'"] {
            assert_eq!(redirect_status(&value(text)).unwrap_err().hint.as_deref(), Some(REDIRECTS), "{text}");
        }
        assert_eq!(final_status(&value("503")).unwrap(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(final_status(&value("101")).is_err());
        assert!(final_status(&value("600")).is_err());
    }
}

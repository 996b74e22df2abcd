//! What is measured: portcullis, its variants, and other proxies with an equal configuration.
//!
//! Equal means: requests are balanced over two origins, connections to them are kept, X-Forwarded-For is added, nothing is
//! logged, bodies stream, the same number of workers, the same certificate. Portcullis counts for its metrics besides.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{options::Variant, workload::Workload};
use crate::{Result, sh};

/// Another proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Nginx,
    Haproxy,
    /// A cache and nothing else, so for that workload alone.
    Varnish,
    /// Of this workspace: what gluing published crates together gives.
    Naive,
}

impl Peer {
    const ALL: [Self; 4] = [Self::Nginx, Self::Haproxy, Self::Varnish, Self::Naive];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Varnish => "varnish",
            Self::Naive => "naive",
        }
    }

    /// What is installed here, or `None`; `naive` is where this workspace's own was built.
    pub(crate) fn find(self, naive: &Path) -> Option<Subject> {
        let (flag, path) = match self {
            Self::Nginx => ("-V", ["nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"]),
            Self::Haproxy => ("-vv", ["haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"]),
            Self::Varnish => ("-V", ["varnishd", "/usr/sbin/varnishd", "/usr/local/sbin/varnishd"]),
            Self::Naive => {
                let kind = Kind::Naive { binary: naive.to_owned() };
                return Some(Subject { name: self.name().to_owned(), kind });
            }
        };
        let program = path.into_iter().find(|program| sh::is_installed(program, flag))?;
        let said = Command::new(program).arg(flag).output().ok()?;
        // nginx and Varnish speak of themselves on stderr
        let about = [said.stdout, said.stderr].concat();
        let about = String::from_utf8_lossy(&about);
        let version = version(&about)?;
        let program = PathBuf::from(program);
        let name = format!("{} {}.{}.{}", self.name(), version.0, version.1, version.2);
        let kind = match self {
            Self::Nginx => Kind::Nginx {
                program,
                h3: about.contains("http_v3_module"),
                http2_directive: version >= (1, 25, 1),
            },
            Self::Haproxy => {
                Kind::Haproxy { program, h3: about.contains(" +QUIC") || about.contains("USE_QUIC=1") }
            }
            Self::Varnish => Kind::Varnish { program },
            Self::Naive => return None,
        };
        Some(Subject { name, kind })
    }
}

/// The first word that begins with `N.N.N`, or with that behind a slash or a dash.
fn version(about: &str) -> Option<(u32, u32, u32)> {
    about.split(|c: char| c.is_whitespace() || matches!(c, '/' | '-')).find_map(|word| {
        let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) => Some((major, minor, patch)),
            _ => None,
        }
    })
}

/// One line of the result.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Portcullis { binary: PathBuf, keys: Vec<(String, String)> },
    Nginx { program: PathBuf, h3: bool, http2_directive: bool },
    Haproxy { program: PathBuf, h3: bool },
    Varnish { program: PathBuf },
    Naive { binary: PathBuf },
}

/// Where a subject listens, what it proxies to, and where its files are.
pub(crate) struct Place<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) certs: &'a Path,
    pub(crate) plain: u16,
    pub(crate) tls: u16,
    pub(crate) origins: &'a [String],
    pub(crate) workers: usize,
    /// As root, nginx gives its workers another user, who can't use the directory.
    pub(crate) root: bool,
    /// Answers are kept, and where those keep them who want a directory.
    pub(crate) cache: Option<&'a Path>,
}

impl Subject {
    pub(crate) fn portcullis(binary: &Path) -> Self {
        Self {
            name: "portcullis".to_owned(),
            kind: Kind::Portcullis { binary: binary.to_owned(), keys: Vec::new() },
        }
    }

    pub(crate) fn variant(variant: &Variant, binary: &Path) -> Self {
        let binary = variant.binary.clone().unwrap_or_else(|| binary.to_owned());
        Self { name: variant.name.clone(), kind: Kind::Portcullis { binary, keys: variant.keys.clone() } }
    }

    pub(crate) fn speaks(&self, workload: Workload) -> bool {
        match &self.kind {
            Kind::Portcullis { .. } => true,
            Kind::Nginx { h3, .. } | Kind::Haproxy { h3, .. } => !workload.is_h3() || *h3,
            Kind::Varnish { .. } => workload == Workload::CacheHit,
            Kind::Naive { .. } => workload.is_h3(),
        }
    }

    /// The TCP ports that it listens on when it is ready; none where its first line says so instead.
    pub(crate) fn ports(&self, place: &Place<'_>) -> Vec<u16> {
        match self.kind {
            Kind::Naive { .. } => Vec::new(),
            Kind::Varnish { .. } => vec![place.plain],
            _ => vec![place.plain, place.tls],
        }
    }

    /// Writes the configuration and makes the command that stays in the foreground.
    pub(crate) fn command(&self, place: &Place<'_>) -> Result<Command> {
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = place.dir.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(path)
        };
        let mut command;
        match &self.kind {
            Kind::Portcullis { binary, keys } => {
                let path = write("portcullis.toml", portcullis_toml(place, keys))?;
                command = Command::new(binary);
                command.args(["run", "--config"]).arg(path);
            }
            Kind::Nginx { program, h3, http2_directive } => {
                let path = write("nginx.conf", nginx_conf(place, *h3, *http2_directive))?;
                command = Command::new(program);
                command.arg("-p").arg(place.dir).arg("-c").arg(path).args(["-e", "stderr"]);
            }
            Kind::Haproxy { program, h3 } => {
                let read = |name: &str| std::fs::read_to_string(place.certs.join(name));
                write("both.pem", format!("{}{}", read("cert.pem")?, read("key.pem")?))?;
                let path = write("haproxy.cfg", haproxy_cfg(place, *h3))?;
                command = Command::new(program);
                command.args(["-db", "-f"]).arg(path);
            }
            Kind::Varnish { program } => {
                let path = write("default.vcl", vcl(place))?;
                command = Command::new(program);
                command.arg("-F").arg("-a").arg(format!("127.0.0.1:{}", place.plain)).arg("-f").arg(path);
                // its log is memory that is written for each request, whoever reads it
                command.arg("-n").arg(place.dir.join("varnish")).args(["-s", "malloc,64M"]);
            }
            Kind::Naive { binary } => {
                command = Command::new(binary);
                command.arg("--addr").arg(format!("127.0.0.1:{}", place.tls));
                command.arg("--threads").arg(place.workers.to_string());
                command.arg("--cert").arg(place.certs.join("cert.pem"));
                command.arg("--key").arg(place.certs.join("key.pem"));
                for origin in place.origins {
                    command.arg("--origin").arg(origin);
                }
            }
        }
        command.current_dir(place.dir);
        Ok(command)
    }
}

fn portcullis_toml(place: &Place<'_>, keys: &[(String, String)]) -> String {
    let mut top = vec![
        ("workers".to_owned(), "\"per-core\"".to_owned()),
        ("threads".to_owned(), place.workers.to_string()),
    ];
    for (key, value) in keys {
        match top.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => known.clone_from(value),
            None => top.push((key.clone(), value.clone())),
        }
    }
    let top: String = top.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    let Place { plain, tls, origins, .. } = place;
    let cache = if place.cache.is_some() { "[cache]\n" } else { "" };
    let (cert, key) = (place.certs.join("cert.pem"), place.certs.join("key.pem"));
    format!(
        r#"{top}
[limits]
max_connections = 4096

[access_log]
output = "off"

[admin]
address = "127.0.0.1:0"

{cache}[[listener]]
address = "127.0.0.1:{plain}"
protocol = "http"

[[listener]]
address = "127.0.0.1:{tls}"
protocol = "https"
http3 = true

[[certificate]]
cert = '{}'
key = '{}'

[[route]]
cluster = "origin"

[[cluster]]
name = "origin"
endpoints = {origins:?}
"#,
        cert.display(),
        key.display()
    )
}

fn nginx_conf(place: &Place<'_>, h3: bool, http2_directive: bool) -> String {
    let Place { dir, certs, plain, tls, origins, workers, root, cache } = place;
    let (kept, keep) = match cache {
        Some(at) => (
            format!("  proxy_cache_path {} levels=1:2 keys_zone=hits:8m max_size=64m;\n", at.display()),
            "      proxy_cache hits;\n",
        ),
        None => (String::new(), ""),
    };
    let (dir, certs) = (dir.display(), certs.display());
    let user = if *root { "user root;\n" } else { "" };
    let servers: String = origins.iter().map(|origin| format!("    server {origin};\n")).collect();
    let (flag, directive) = if http2_directive { ("", "    http2 on;\n") } else { (" http2", "") };
    let quic = if h3 {
        format!("    listen 127.0.0.1:{tls} quic reuseport;\n    http3 on;\n")
    } else {
        String::new()
    };
    format!(
        "{user}worker_processes {workers};
daemon off;
pid {dir}/nginx.pid;
error_log stderr error;
events {{
  worker_connections 8192;
}}
http {{
  access_log off;
  default_type application/octet-stream;
  keepalive_requests 1000000000;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
{kept}  upstream origin {{
{servers}    keepalive 1024;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{plain} reuseport;
    listen 127.0.0.1:{tls} ssl{flag} reuseport;
{directive}{quic}    ssl_certificate {certs}/cert.pem;
    ssl_certificate_key {certs}/key.pem;
    ssl_protocols TLSv1.3;
    location / {{
      proxy_pass http://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_request_buffering off;
      proxy_max_temp_file_size 0;
{keep}    }}
    location /ws {{
      proxy_pass http://origin;
      proxy_http_version 1.1;
      proxy_set_header Connection upgrade;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"
    )
}

fn haproxy_cfg(place: &Place<'_>, h3: bool) -> String {
    let Place { dir, plain, tls, origins, workers, cache, .. } = place;
    let (kept, keep) = if cache.is_some() {
        (
            "cache hits\n  total-max-size 64\n  max-object-size 1000000\n  max-age 3600\n",
            "  http-request cache-use hits\n  http-response cache-store hits\n",
        )
    } else {
        ("", "")
    };
    let both = dir.join("both.pem");
    let both = both.display();
    let server = |(at, origin)| format!("  server origin{at} {origin} pool-max-conn -1\n");
    let servers: String = origins.iter().enumerate().map(server).collect();
    let quic =
        if h3 { format!("  bind quic4@127.0.0.1:{tls} ssl crt {both} alpn h3\n") } else { String::new() };
    format!(
        "global
  nbthread {workers}
  maxconn 8192
  ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
  mode http
  option http-keep-alive
  option forwardfor
  http-reuse always
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout tunnel 60s
  timeout http-keep-alive 60s
{kept}frontend in
  bind 127.0.0.1:{plain}
  bind 127.0.0.1:{tls} ssl crt {both} alpn h2,http/1.1
{quic}  default_backend origin
backend origin
{keep}{servers}"
    )
}

fn vcl(place: &Place<'_>) -> String {
    let mut text = "vcl 4.1;\n".to_owned();
    // the first is asked once, and nobody afterwards
    if let Some((host, port)) = place.origins.first().and_then(|origin| origin.rsplit_once(':')) {
        text += &format!("backend default {{ .host = \"{host}\"; .port = \"{port}\"; }}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    static ORIGINS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();

    fn place() -> Place<'static> {
        Place {
            dir: Path::new("/d"),
            certs: Path::new("/c"),
            plain: 80,
            tls: 443,
            origins: ORIGINS.get_or_init(|| vec!["127.0.0.1:3000".to_owned(), "127.0.0.1:3001".to_owned()]),
            workers: 2,
            root: false,
            cache: None,
        }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(version("nginx version: nginx/1.22.1\nbuilt"), Some((1, 22, 1)));
        assert_eq!(version("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - x"), Some((2, 6, 12)));
        assert_eq!(version("HAProxy version 3.4.0 2026"), Some((3, 4, 0)));
        assert_eq!(version("varnishd (varnish-7.1.1 revision 7cee1c5)\nCopyright"), Some((7, 1, 1)));
        assert_eq!(version("none"), None);
    }

    #[test]
    fn answers_are_kept_by_all_or_none() {
        let cached = Place { cache: Some(Path::new("/k")), ..place() };
        for (with, without, mark) in [
            (portcullis_toml(&cached, &[]), portcullis_toml(&place(), &[]), "[cache]"),
            (nginx_conf(&cached, false, false), nginx_conf(&place(), false, false), "proxy_cache hits;"),
            (haproxy_cfg(&cached, false), haproxy_cfg(&place(), false), "cache-use hits"),
        ] {
            assert!(with.contains(mark) && !without.contains("cache"), "{with}");
        }
        assert!(vcl(&cached).contains(".port = \"3000\""));
    }

    #[test]
    fn a_variant_changes_its_keys_only() {
        let usual = portcullis_toml(&place(), &[]);
        assert!(usual.starts_with("workers = \"per-core\"\nthreads = 2\n\n[limits]\n"), "{usual}");
        let keys = [("workers".to_owned(), "\"work-stealing\"".to_owned()), ("a".to_owned(), "1".to_owned())];
        let varied = portcullis_toml(&place(), &keys);
        assert!(
            varied.starts_with("workers = \"work-stealing\"\nthreads = 2\na = 1\n\n[limits]\n"),
            "{varied}"
        );
        assert_eq!(usual.split_once("\n\n").unwrap().1, varied.split_once("\n\n").unwrap().1);
    }

    #[test]
    fn nginx_speaks_what_its_version_can() {
        let old = nginx_conf(&place(), false, false);
        assert!(old.contains("listen 127.0.0.1:443 ssl http2 reuseport;") && !old.contains("quic"), "{old}");
        let new = nginx_conf(&place(), true, true);
        assert!(new.contains("http2 on;") && new.contains("listen 127.0.0.1:443 quic reuseport;"), "{new}");
        assert!(!haproxy_cfg(&place(), false).contains("quic"));
    }
}

//! What the tests are run against: portcullis, and others with the configuration that the suite's authors give them.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Result, loadtest::is_root, sh};

/// A cache in front of the suite's server.
pub(crate) enum Proxy {
    Portcullis(PathBuf),
    Nginx(&'static str),
    Varnish(&'static str),
}

impl Proxy {
    /// One that is installed here, or `None`.
    pub(crate) fn peer(name: &OsStr) -> Result<Option<Self>> {
        let found =
            |paths: [&'static str; 3], flag| paths.into_iter().find(|path| sh::is_installed(path, flag));
        match name.to_str() {
            Some("nginx") => {
                Ok(found(["nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"], "-v").map(Self::Nginx))
            }
            Some("varnish") => {
                Ok(found(["varnishd", "/usr/sbin/varnishd", "/usr/local/sbin/varnishd"], "-V")
                    .map(Self::Varnish))
            }
            _ => Err(format!("`{}` is neither nginx nor varnish", name.to_string_lossy()).into()),
        }
    }

    /// What it calls itself, with its version.
    pub(crate) fn name(&self) -> Result<String> {
        let (name, program, flag) = match self {
            Self::Portcullis(binary) => ("portcullis", binary.as_path(), "--version"),
            Self::Nginx(program) => ("nginx", Path::new(program), "-v"),
            Self::Varnish(program) => ("Varnish", Path::new(program), "-V"),
        };
        let said = Command::new(program).arg(flag).output()?;
        // nginx and Varnish speak of themselves on stderr
        let said = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        let version = said
            .split(|c: char| !c.is_ascii_digit() && c != '.')
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
        Ok(format!("{name} {}", version.unwrap_or("?")))
    }

    /// Writes its configuration to `dir` and makes the command that stays in the foreground.
    pub(crate) fn command(&self, dir: &Path, port: u16, origin: u16) -> Result<Command> {
        let write = |name: &str, text: String| -> Result<PathBuf> {
            let path = dir.join(name);
            std::fs::write(&path, text)?;
            Ok(path)
        };
        let mut command;
        match self {
            Self::Portcullis(binary) => {
                let path = write("edge.toml", portcullis_toml(port, origin))?;
                command = Command::new(binary);
                command.args(["run", "--config"]).arg(path);
            }
            Self::Nginx(program) => {
                let path = write("nginx.conf", nginx_conf(dir, port, origin))?;
                command = Command::new(program);
                command.arg("-p").arg(dir).arg("-c").arg(path).args(["-e", "stderr"]);
            }
            Self::Varnish(program) => {
                let path = write("default.vcl", vcl(origin))?;
                command = Command::new(program);
                command.arg("-F").arg("-a").arg(format!("127.0.0.1:{port}")).arg("-f").arg(path);
                command.arg("-n").arg(dir.join("varnish")).args(["-s", "malloc,64M"]);
                command.args(["-p", "default_ttl=0", "-p", "default_grace=0", "-p", "default_keep=3600"]);
            }
        }
        command.current_dir(dir);
        Ok(command)
    }
}

/// What the suite takes for granted and is a choice here: see the page that [`super::report::page`] writes.
pub(crate) const CHOICES: &str = "heuristic = 10\nset_cookie = \"keep\"\nstale_if_error = \"1h\"\n";

/// The cache with these choices, in front of one cluster.
fn portcullis_toml(port: u16, origin: u16) -> String {
    format!(
        "threads = 2\n[access_log]\noutput = \"off\"\n[cache]\n{CHOICES}\
         [[listener]]\naddress = \"127.0.0.1:{port}\"\nprotocol = \"http\"\n\
         [[route]]\ncluster = \"origin\"\n\
         [[cluster]]\nname = \"origin\"\nendpoints = [\"127.0.0.1:{origin}\"]\n"
    )
}

fn nginx_conf(dir: &Path, port: u16, origin: u16) -> String {
    let dir = dir.display();
    // as root, nginx gives its workers another user, who can't use the directory
    let user = if is_root() { "user root;\n" } else { "" };
    format!(
        "{user}worker_processes 2;
daemon off;
pid {dir}/nginx.pid;
error_log stderr error;
events {{
  worker_connections 2048;
}}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  proxy_cache_path {dir}/cache levels=1:2 keys_zone=tests:8m max_size=1000m inactive=600m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{origin};
      proxy_http_version 1.1;
      proxy_cache tests;
      proxy_cache_revalidate on;
    }}
  }}
}}
"
    )
}

fn vcl(origin: u16) -> String {
    format!("vcl 4.1;\nbackend default {{\n  .host = \"127.0.0.1\";\n  .port = \"{origin}\";\n}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_listens_where_it_is_told_and_asks_the_origin() {
        for text in [portcullis_toml(1234, 4321), nginx_conf(Path::new("/d"), 1234, 4321)] {
            assert!(text.contains("127.0.0.1:1234") && text.contains("127.0.0.1:4321"), "{text}");
        }
        assert!(vcl(4321).contains("\"4321\""));
        assert!(Proxy::peer(OsStr::new("apache")).is_err());
    }
}

//! Real servers behind the edge, where `PORTCULLIS_E2E_NGINX=1` asks for them: then they must be there.

use std::{
    env,
    net::SocketAddr,
    process::{Command, Stdio},
};

use http::Method;
use portcullis_testkit::{ports::free_tcp_udp_port, process::ChildGuard};
use tokio::{net::TcpStream, task::JoinSet};

use crate::support::{
    Dir, SOON,
    client::{Client, Protocol, empty, full},
    edge::Edge,
    run, within,
};

fn is_wanted() -> bool {
    env::var_os("PORTCULLIS_E2E_NGINX").is_some_and(|value| value == "1")
}

/// One nginx, killed when dropped.
struct Nginx {
    addr: SocketAddr,
    dir: Dir,
    _child: ChildGuard,
}

const CONFIG: &str = r#"
daemon off;
# one process: killing it leaves no orphan behind
master_process off;
pid nginx.pid;
error_log error.log;
events { worker_connections 256; }
http {
    access_log off;
    keepalive_timeout 65;
    keepalive_requests 7;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type text/plain;
    server {
        listen ADDRESS;
        location / { return 200 "NAME $host $http_x_forwarded_for $http_x_forwarded_proto $request_uri"; }
        location /moved { return 302 /elsewhere; }
        location /none { return 204; }
        location /file { alias big; }
        # read whole, and then its length is told
        location /upload { client_max_body_size 10m; proxy_pass http://ADDRESS/length; }
        location /length { client_max_body_size 10m; return 200 "$content_length"; }
    }
}
"#;

impl Nginx {
    async fn start(name: &str) -> Self {
        let dir = Dir::new();
        let addr = SocketAddr::from(([127, 0, 0, 1], free_tcp_udp_port()));
        let text = CONFIG.replace("ADDRESS", &addr.to_string()).replace("NAME", name);
        let text = text.replace("alias big", &format!("alias {}", dir.path().join("big").display()));
        dir.write("nginx.conf", &text);
        dir.write("big", &"0123456789".repeat(100_000));
        let child = ChildGuard::spawn(Self::command(&dir).stdout(Stdio::null()).stderr(Stdio::null()))
            .expect("PORTCULLIS_E2E_NGINX=1 asks for nginx: install Debian's package of that name");
        let up = async {
            while TcpStream::connect(addr).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        within(SOON, "nginx listens", up).await;
        Self { addr, dir, _child: child }
    }

    fn command(dir: &Dir) -> Command {
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).args(["-c", "nginx.conf", "-e", "stderr.log"]);
        command
    }

    /// `nginx -s stop`: its connections are closed at once.
    fn stop(&self) {
        let status = Self::command(&self.dir).args(["-s", "stop"]).status().unwrap();
        assert!(status.success(), "nginx -s stop: {status}");
    }
}

fn config(a: &[&Nginx], b: &Nginx) -> String {
    let endpoints: Vec<_> = a.iter().map(|nginx| format!("\"{}\"", nginx.addr)).collect();
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\nprotocol = \"https\"\n\
         [[certificate]]\nself_signed = [\"a.test\", \"b.test\"]\n\
         [[route]]\nhost = \"a.test\"\ncluster = \"a\"\n[[route]]\nhost = \"b.test\"\ncluster = \"b\"\n\
         [[cluster]]\nname = \"a\"\nendpoints = [{}]\n[[cluster]]\nname = \"b\"\nendpoints = [\"{}\"]\n",
        endpoints.join(", "),
        b.addr
    )
}

#[test]
fn two_hosts_and_two_endpoints() {
    if !is_wanted() {
        return;
    }
    run(async {
        let (one, two, other) =
            (Nginx::start("one").await, Nginx::start("two").await, Nginx::start("other").await);
        let edge = Edge::run(&config(&[&one, &two], &other)).await;
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "a.test").await;
            let mut seen = [0, 0];
            // more than nginx's own bound of requests for each connection
            for at in 0..40 {
                let reply = client.get(&format!("/x?{at}")).await;
                let rest = format!(" a.test 127.0.0.1 https /x?{at}");
                seen[usize::from(reply.body == format!("two{rest}"))] += 1;
                assert!(reply.status == 200 && reply.body.ends_with(&rest), "{protocol:?} {reply:?}");
            }
            assert!(seen[0] > 5 && seen[1] > 5, "{protocol:?} {seen:?}");
            assert_eq!(client.get("/none").await.status, 204);
            assert!(client.get("/moved").await.field("location").ends_with("/elsewhere"));
            assert_eq!(client.get("/file").await.body.len(), 1_000_000, "{protocol:?}");
            let range =
                client.request(Method::GET, "/file").header("range", "bytes=10-14").body(empty()).unwrap();
            let range = client.fetch(range).await;
            assert_eq!((range.status.as_u16(), range.body.as_str()), (206, "01234"));
            let upload = client.request(Method::POST, "/upload").body(full(vec![b'x'; 2_000_000])).unwrap();
            let upload = client.fetch(upload).await;
            assert_eq!(upload.body, "2000000", "{protocol:?}");
            let head = client.request(Method::HEAD, "/file").body(empty()).unwrap();
            assert_eq!(client.fetch(head).await.field("content-length"), "1000000");
            let mut client = Client::connect(protocol, edge.https(), "b.test").await;
            assert!(client.get("/").await.body.starts_with("other b.test "), "{protocol:?}");
        }
    });
}

#[test]
fn nobody_notices_that_one_stops() {
    if !is_wanted() {
        return;
    }
    run(async {
        let (staying, stopping) = (Nginx::start("staying").await, Nginx::start("stopping").await);
        let edge = Edge::run(&config(&[&staying, &stopping], &staying)).await;
        let (progress, mut at) = tokio::sync::watch::channel(0);
        let progress = std::sync::Arc::new(progress);
        let mut askers = JoinSet::new();
        for protocol in Protocol::ALL {
            let mut client = Client::connect(protocol, edge.https(), "a.test").await;
            let progress = std::sync::Arc::clone(&progress);
            askers.spawn(async move {
                let mut every = tokio::time::interval(std::time::Duration::from_millis(40));
                let mut from_stopping = 0;
                for _ in 0..75 {
                    every.tick().await;
                    let reply = client.get("/").await;
                    assert_eq!(reply.status, 200, "{protocol:?} {reply:?}");
                    from_stopping += u32::from(reply.body.starts_with("stopping"));
                    progress.send_modify(|count| *count += 1);
                }
                from_stopping
            });
        }
        at.wait_for(|count| *count >= 60).await.unwrap();
        stopping.stop();
        let from_stopping: u32 = askers.join_all().await.into_iter().sum();
        assert!((10..150).contains(&from_stopping), "it had its turn until it stopped: {from_stopping}");
    });
}

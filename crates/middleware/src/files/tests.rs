use super::*;
use http_body_util::BodyExt;
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// A directory of a test's own, gone with it.
struct Site(PathBuf);

impl Site {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("portcullis-files-{}-{number}", std::process::id()));
        fs::create_dir_all(path.join("root/dir")).unwrap();
        let site = Self(path);
        site.put("secret.txt", "secret");
        site.put("root/a.txt", "0123456789");
        site.put("root/index.html", "<p>");
        site.put("root/dir/index.html", "<p>dir");
        site.put("root/.env", "hidden");
        fs::create_dir(site.0.join("root/empty")).unwrap();
        site
    }

    fn put(&self, path: &str, text: &str) {
        fs::write(self.0.join(path), text).unwrap();
        let then = UNIX_EPOCH + Duration::from_secs(784_111_777);
        File::options().write(true).open(self.0.join(path)).unwrap().set_modified(then).unwrap();
    }

    fn options(&self) -> FileOptions {
        FileOptions::new(self.0.join("root"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn ask(
    options: FileOptions,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
) -> (u16, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let Ok(response) = ServeFiles::new(options).serve(&request.body(()).unwrap()).await;
    let (parts, body) = response.into_parts();
    let said = parts.headers.get(CONTENT_LENGTH).map(|said| said.to_str().unwrap().parse().unwrap());
    if method == "GET" {
        assert_eq!(body.size_hint().exact(), Some(said.unwrap_or(0)));
    }
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    (parts.status.as_u16(), parts.headers, text)
}

#[tokio::test]
async fn what_is_there_and_what_is_not() {
    let site = Site::new();
    for (path, status, text) in [
        ("/", 200, "<p>"),
        ("/a.txt", 200, "0123456789"),
        ("/a.txt?x=y", 200, "0123456789"),
        ("/%61.txt", 200, "0123456789"),
        ("/dir/", 200, "<p>dir"),
        ("/dir/index.html", 200, "<p>dir"),
        ("/a.txt/", 404, ""),
        ("/a.txt/x", 404, ""),
        ("/b.txt", 404, ""),
        ("/empty/", 404, ""),
        ("/.env", 404, ""),
        ("/../secret.txt", 404, ""),
        ("/%2e%2e/secret.txt", 404, ""),
        ("/dir%2f..%2f..%2fsecret.txt", 404, ""),
        ("/dir%5c..%5c..%5csecret.txt", 404, ""),
        ("//a.txt", 404, ""),
    ] {
        let (got, _, body) = ask(site.options(), "GET", path, &[]).await;
        assert_eq!((got, &*body), (status, text), "{path}");
    }
    assert_eq!(ask(site.options().with_hidden(true), "GET", "/.env", &[]).await.0, 200);
    let (status, headers, _) = ask(site.options(), "POST", "/a.txt", &[]).await;
    assert_eq!((status, &headers[ALLOW]), (405, &HeaderValue::from_static("GET, HEAD")));
}

#[tokio::test]
async fn directories_are_redirected_on_this_host() {
    let site = Site::new();
    for (path, location) in [("/dir", "/dir/"), ("/dir?a=b", "/dir/?a=b"), ("/d%69r", "/d%69r/")] {
        let (status, headers, _) = ask(site.options(), "GET", path, &[]).await;
        assert_eq!((status, headers[LOCATION].to_str().unwrap()), (301, location));
    }
    assert_eq!(ask(site.options(), "GET", "//dir", &[]).await.0, 404);
    for prefix in ["/static", "/static/"] {
        let stripped = site.options().with_strip_prefix(Some(prefix.into()));
        for (path, location) in [("/static/dir", "/static/dir/"), ("/static?a=b", "/static/?a=b")] {
            let (status, headers, _) = ask(stripped.clone(), "GET", path, &[]).await;
            assert_eq!((status, headers[LOCATION].to_str().unwrap()), (301, location));
        }
    }
}

#[tokio::test]
async fn a_prefix_and_a_fallback() {
    let site = Site::new();
    let options = site.options().with_strip_prefix(Some("/static".into()));
    for (path, status) in [
        ("/static/a.txt", 200),
        ("/static/", 200),
        ("/static", 301),
        ("/a.txt", 404),
        ("/staticx/a.txt", 404),
    ] {
        assert_eq!(ask(options.clone(), "GET", path, &[]).await.0, status, "{path}");
    }
    let options = site.options().with_fallback(Some("index.html".into()));
    for path in ["/app/page", "/empty/", "/nothing.js"] {
        let (status, headers, text) = ask(options.clone(), "GET", path, &[]).await;
        assert_eq!((status, &*text), (200, "<p>"), "{path}");
        assert_eq!(headers[CONTENT_TYPE], "text/html; charset=utf-8");
    }
    // what is no path is not one of the application's
    assert_eq!(ask(options.clone(), "GET", "/../x", &[]).await.0, 404);
    assert_eq!(ask(options, "GET", "/.env", &[]).await.0, 404);
}

#[cfg(unix)]
#[tokio::test]
async fn links_lead_nowhere_else() {
    use std::os::unix::fs::symlink;
    let site = Site::new();
    let root = site.0.join("root");
    symlink("../secret.txt", root.join("out.txt")).unwrap();
    symlink(&site.0, root.join("up")).unwrap();
    symlink("a.txt", root.join("in.txt")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("../../secret.txt", root.join("dir/index.htm")).unwrap();
    for (path, status) in [
        ("/out.txt", 404),
        ("/up/secret.txt", 404),
        ("/up/", 404),
        ("/in.txt", 200),
        ("/loop", 404),
        ("/dir/index.htm", 404),
    ] {
        assert_eq!(ask(site.options(), "GET", path, &[]).await.0, status, "{path}");
    }
    let index = site.options().with_index(vec!["index.htm".into()]);
    assert_eq!(ask(index, "GET", "/dir/", &[]).await.0, 404);
    // the same name in front of another directory is not below
    fs::create_dir(site.0.join("root2")).unwrap();
    site.put("root2/x.txt", "x");
    symlink("../root2/x.txt", root.join("x.txt")).unwrap();
    assert_eq!(ask(site.options(), "GET", "/x.txt", &[]).await.0, 404);
    // and the root itself may be a link
    symlink(&root, site.0.join("current")).unwrap();
    assert_eq!(ask(FileOptions::new(site.0.join("current")), "GET", "/a.txt", &[]).await.0, 200);
}

#[cfg(unix)]
#[tokio::test]
async fn a_pipe_keeps_nobody_waiting() {
    let site = Site::new();
    let pipe = site.0.join("root/pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo is there");
    assert!(made.success(), "{made}");
    let asked = ask(site.options(), "GET", "/pipe", &[]);
    let Ok((status, ..)) = tokio::time::timeout(Duration::from_secs(10), asked).await else {
        // who waits for somebody at the other end goes on, or the runtime would wait for him
        drop(File::options().write(true).open(&pipe));
        panic!("it waits for the pipe");
    };
    assert_eq!(status, 404);
}

#[tokio::test]
async fn conditions_and_ranges() {
    let site = Site::new();
    let (_, headers, _) = ask(site.options(), "GET", "/a.txt", &[]).await;
    let tag = headers[ETAG].to_str().unwrap().to_owned();
    assert_eq!(headers[LAST_MODIFIED], "Sun, 06 Nov 1994 08:49:37 GMT");
    assert_eq!(headers[ACCEPT_RANGES], "bytes");
    let weak = format!("W/{tag}");
    for (fields, status, text) in [
        (&[("if-none-match", &*tag)][..], 304, ""),
        (&[("if-none-match", &*weak)], 304, ""),
        (&[("if-match", "\"x\"")], 412, ""),
        (&[("range", "bytes=2-4")], 206, "234"),
        (&[("range", "bytes=-2")], 206, "89"),
        (&[("range", "bytes=10-")], 416, ""),
        (&[("range", "bytes=1-0")], 200, "0123456789"),
        (&[("range", "bytes=2-4"), ("if-range", &*tag)], 206, "234"),
        (&[("range", "bytes=2-4"), ("if-range", &*weak)], 200, "0123456789"),
        (&[("range", "bytes=2-4"), ("if-range", "\"x\"")], 200, "0123456789"),
    ] {
        let (got, headers, body) = ask(site.options(), "GET", "/a.txt", fields).await;
        assert_eq!((got, &*body), (status, text), "{fields:?}");
        match got {
            206 => assert!(headers[CONTENT_RANGE].to_str().unwrap().ends_with("/10")),
            416 => assert_eq!(headers[CONTENT_RANGE], "bytes */10"),
            304 => assert_eq!(headers[ETAG], *tag),
            _ => {}
        }
    }
    let (status, headers, text) = ask(site.options(), "HEAD", "/a.txt", &[("range", "bytes=0-1")]).await;
    assert_eq!((status, &*text, &headers[CONTENT_LENGTH]), (200, "", &HeaderValue::from_static("10")));
}

#[tokio::test]
async fn what_was_compressed_before() {
    let site = Site::new();
    site.put("root/a.txt.br", "brotli");
    site.put("root/a.txt.gz", "gzip");
    let tag = |headers: &HeaderMap| headers[ETAG].clone();
    let (_, plain, text) = ask(site.options(), "GET", "/a.txt", &[]).await;
    assert_eq!((&*text, &plain[VARY]), ("0123456789", &HeaderValue::from_static("accept-encoding")));
    for (accept, coding) in
        [("gzip, br, zstd", "br"), ("gzip", "gzip"), ("br;q=0.1, gzip", "gzip"), ("zstd, gzip;q=0.2", "gzip")]
    {
        let (status, headers, _) = ask(site.options(), "GET", "/a.txt", &[("accept-encoding", accept)]).await;
        assert_eq!((status, headers[CONTENT_ENCODING].to_str().unwrap()), (200, coding), "{accept}");
        assert_eq!(headers[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_ne!(tag(&headers), tag(&plain));
    }
    for (options, accept) in
        [(site.options(), "br;q=0, zstd"), (site.options().with_precompressed(vec![]), "br")]
    {
        let (_, headers, text) = ask(options, "GET", "/a.txt", &[("accept-encoding", accept)]).await;
        assert!(!headers.contains_key(CONTENT_ENCODING) && text == "0123456789");
    }
    // one that was forgotten when the file changed
    fs::write(site.0.join("root/a.txt"), "changed").unwrap();
    let (_, headers, text) = ask(site.options(), "GET", "/a.txt", &[("accept-encoding", "br")]).await;
    assert!(!headers.contains_key(CONTENT_ENCODING) && text == "changed");
}

#[tokio::test]
async fn large_files_come_in_pieces_and_a_shorter_one_is_an_error() {
    let site = Site::new();
    let large = "0123456789abcdef".repeat(64 << 10);
    site.put("root/large.bin", &large);
    let (_, headers, text) = ask(site.options(), "GET", "/large.bin", &[]).await;
    assert_eq!((headers[CONTENT_LENGTH].to_str().unwrap(), text == large), ("1048576", true));
    let (status, _, text) = ask(site.options(), "GET", "/large.bin", &[("range", "bytes=16-")]).await;
    assert_eq!((status, text == large[16..]), (206, true));
    let request = Request::get("/large.bin").body(()).unwrap();
    let Ok(response) = ServeFiles::new(site.options()).serve(&request).await;
    let mut body = response.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    fs::write(site.0.join("root/large.bin"), "short").unwrap();
    let mut last = None;
    while let Some(frame) = body.frame().await {
        last = Some(frame.map(drop).map_err(|error| error.kind()));
    }
    assert_eq!(last, Some(Err(io::ErrorKind::UnexpectedEof)));
    assert!(Path::new(&site.0).exists());
}

#[tokio::test]
async fn places_are_for_who_looks_and_not_for_who_reads() {
    let site = Site::new();
    let large = "0123456789abcdef".repeat(64 << 10);
    site.put("root/large.bin", &large);
    let files = ServeFiles::new(site.options().with_max_jobs(1).with_max_waiting(1));
    let serve = |path: &str| files.clone().serve(&Request::get(path).body(()).unwrap());
    // a client that reads slowly keeps nobody out
    let Ok(response) = serve("/large.bin").await;
    let mut slow = response.into_body();
    assert!(slow.frame().await.unwrap().is_ok());
    let Ok(response) = serve("/a.txt").await;
    assert_eq!(response.status(), 200);
    let held = files.jobs.hold(1);
    let waits = serve("/a.txt");
    let Ok(busy) = serve("/a.txt").await;
    assert_eq!((busy.status().as_u16(), &busy.headers()["retry-after"]), (503, &HeaderValue::from(1)));
    // a response that has begun waits for its turn as well
    let read = tokio::spawn(slow.collect());
    tokio::task::yield_now().await;
    drop(held);
    let Ok(response) = waits.await;
    assert_eq!(response.status(), 200);
    let rest = read.await.unwrap().unwrap().to_bytes();
    assert!(large.as_bytes().ends_with(&rest) && large.len() > rest.len());
}

#[tokio::test]
async fn its_answers_are_the_services() {
    let site = Site::new();
    for (method, path, field, status) in [
        ("POST", "/", None, 405),
        ("GET", "/..", None, 404),
        ("GET", "/nothing", None, 404),
        ("GET", "/dir", None, 301),
        ("GET", "/a.txt", Some(("if-match", "\"x\"")), 412),
        ("GET", "/a.txt", Some(("range", "bytes=10-")), 416),
    ] {
        let mut request = Request::builder().method(method).uri(path);
        request = field.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        let Ok(response) = ServeFiles::new(site.options()).serve(&request.body(()).unwrap()).await;
        assert_eq!(response.status(), status);
        assert!(response.extensions().get::<early::OwnAnswer>().is_none(), "{method} {path}");
    }
}

#[tokio::test]
async fn a_root_that_is_gone_is_our_fault() {
    let (status, ..) = ask(FileOptions::new("/nonexistent/portcullis"), "GET", "/", &[]).await;
    assert_eq!(status, 500);
}

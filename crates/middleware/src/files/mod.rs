//! A directory, served (feature `files`).
//!
//! tower-http's `ServeDir` serves directories too. It follows links out of its root, serves hidden files, answers a malformed `Range` with 416 and
//! knows no `If-Range`; and each of its steps waits for a thread by itself. This service does all that it does for a request's head in one.
//!
//! **What is served.** Regular files below the root, when every link is followed: a link may lead anywhere inside, and nowhere else. Nothing hidden (a name that begins with a dot) but
//! `.well-known`, unless it is asked for. Paths are decoded once; what has `..`, an encoded slash, a NUL or a backslash in it is 404. There are no
//! listings. A directory without a slash at its end is redirected to the path with one, and has its index file then. Whoever can write below the root can
//! have anything served that the process can read.
//!
//! **How.** GET and HEAD, else 405. A strong entity tag of time and length, `Last-Modified`, the conditions of RFC 9110 section 13 in their order, one range of bytes with
//! `If-Range`; several ranges, and malformed ones, get the whole. Beside `a.css` may lie `a.css.br`, `a.css.zst` and `a.css.gz`: a client that likes them
//! gets them, if they are not older.
//!
//! **Threads.** Every look at the file system runs on tokio's threads for what blocks, one task for the head with the first 128 KiB and one for each piece after
//! that; [`FileOptions::max_jobs`] at once, and none for a request that is given up before its turn. While a client reads, its response has no thread.
//! **Memory**: a piece for each response, and a descriptor.

mod conditions;
mod content_type;
mod jobs;
mod open;
mod path;

use std::{
    convert::Infallible,
    fs::File,
    future::Future,
    io,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{
        ACCEPT_ENCODING, ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH,
        CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
        IF_UNMODIFIED_SINCE, LAST_MODIFIED, LOCATION, RANGE, VARY,
    },
};
use http_body::{Body, Frame, SizeHint};
use tower_service::Service;
use tracing::warn;

use self::{
    conditions::{Part, Verdict, Version},
    jobs::{Job, Jobs},
    open::{Found, Outcome},
    path::Below,
};
use crate::{
    coding::{self, Coding},
    early::{self, EarlyFuture},
};

/// What is served, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileOptions {
    /// The directory. It may be a link, which is followed anew for each request.
    pub root: PathBuf,
    /// What is taken off the path of a request before it is looked for; what does not begin so is 404. On a border of segments. Default `None`.
    pub strip_prefix: Option<String>,
    /// The files that a directory shows itself by, the first that is there. Default `index.html`.
    pub index: Vec<String>,
    /// The file below the root that is served, with 200, in the place of what is not there: for an application that has its paths in the browser. Default `None`: 404.
    pub fallback: Option<String>,
    /// Serves names that begin with a dot. Default `false`.
    pub hidden: bool,
    /// Which codings of a file may lie beside it. Default all.
    pub precompressed: Vec<Coding>,
    /// `Cache-Control` of what is served. Default `None`: caches ask by the tag whenever they like.
    pub cache_control: Option<HeaderValue>,
    /// How many looks at the file system are taken at once, by all clones of a service. Default 64, at least 1: more keeps no disk busier, and one that hangs then
    /// leaves the other threads of the runtime (512 by default) to the rest of the program. The next wait for their turn.
    pub max_jobs: usize,
    /// How many requests wait for their turn; the next is answered 503 with `Retry-After`. Default 1024: a page may ask for a hundred files at once, and what a thousand wait for
    /// is a disk that hangs. Each takes what its request takes. Responses that have begun wait too, and are not counted.
    pub max_waiting: usize,
}

impl FileOptions {
    /// This directory.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            strip_prefix: None,
            index: vec!["index.html".to_owned()],
            fallback: None,
            hidden: false,
            precompressed: vec![Coding::Zstd, Coding::Brotli, Coding::Gzip],
            cache_control: None,
            max_jobs: 64,
            max_waiting: 1024,
        }
    }

    /// Sets [`FileOptions::strip_prefix`].
    #[must_use]
    pub fn with_strip_prefix(mut self, prefix: Option<String>) -> Self {
        self.strip_prefix = prefix;
        self
    }

    /// Sets [`FileOptions::index`].
    #[must_use]
    pub fn with_index(mut self, index: Vec<String>) -> Self {
        self.index = index;
        self
    }

    /// Sets [`FileOptions::fallback`].
    #[must_use]
    pub fn with_fallback(mut self, fallback: Option<String>) -> Self {
        self.fallback = fallback;
        self
    }

    /// Sets [`FileOptions::hidden`].
    #[must_use]
    pub fn with_hidden(mut self, hidden: bool) -> Self {
        self.hidden = hidden;
        self
    }

    /// Sets [`FileOptions::precompressed`].
    #[must_use]
    pub fn with_precompressed(mut self, codings: Vec<Coding>) -> Self {
        self.precompressed = codings;
        self
    }

    /// Sets [`FileOptions::cache_control`].
    #[must_use]
    pub fn with_cache_control(mut self, value: Option<HeaderValue>) -> Self {
        self.cache_control = value;
        self
    }

    /// Sets [`FileOptions::max_jobs`].
    #[must_use]
    pub fn with_max_jobs(mut self, max_jobs: usize) -> Self {
        self.max_jobs = max_jobs;
        self
    }

    /// Sets [`FileOptions::max_waiting`].
    #[must_use]
    pub fn with_max_waiting(mut self, max_waiting: usize) -> Self {
        self.max_waiting = max_waiting;
        self
    }

    fn below(&self, path: &str) -> Option<Below> {
        let path = match &self.strip_prefix {
            None => path,
            Some(prefix) => match path.strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix))? {
                // the root, without the slash that links of its index file are relative to
                "" => return Some(Below { path: String::new(), directory: false }),
                rest => rest,
            },
        };
        path::below(path, self.hidden)
    }
}

/// A service that serves a directory.
#[derive(Clone, Debug)]
pub struct ServeFiles {
    options: Arc<FileOptions>,
    jobs: Jobs,
}

impl ServeFiles {
    /// As the options say. Nothing is opened before a request comes.
    pub fn new(options: FileOptions) -> Self {
        let jobs = Jobs::new(options.max_jobs, options.max_waiting);
        Self { options: Arc::new(options), jobs }
    }

    /// The answer to this request, whose body is not looked at.
    pub fn serve<B>(&self, request: &Request<B>) -> ServeFuture {
        let answered = |response| ServeFuture(EarlyFuture::answered(response));
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        if !is_get {
            let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answered(response);
        }
        let Some(below) = self.options.below(request.uri().path()) else {
            return answered(empty(StatusCode::NOT_FOUND));
        };
        let asked = Asked {
            options: Arc::clone(&self.options),
            below,
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: looked_at(request.headers()),
            jobs: self.jobs.clone(),
        };
        let options = Arc::clone(&self.options);
        match self.jobs.begin(move || asked.answer()) {
            Some(job) => ServeFuture(EarlyFuture::inner(Looking { job, options })),
            None => answered(early::come_again()),
        }
    }
}

/// An answer of this status, without a body. It is the service's, and so without [`early::OwnAnswer`]: nobody is behind this one.
fn empty(status: StatusCode) -> Response<FileBody> {
    let mut response = Response::new(FileBody::default());
    *response.status_mut() = status;
    response
}

/// The fields of a request that decide what is served.
fn looked_at(headers: &HeaderMap) -> HeaderMap {
    const NAMES: [HeaderName; 7] =
        [ACCEPT_ENCODING, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE];
    let mut kept = HeaderMap::new();
    for name in &NAMES {
        for value in headers.get_all(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// The future of [`ServeFiles`].
#[derive(Debug)]
pub struct ServeFuture(EarlyFuture<Looking, FileBody>);

impl Future for ServeFuture {
    type Output = Result<Response<FileBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// The look at the file system.
#[derive(Debug)]
struct Looking {
    job: Job<io::Result<Response<FileBody>>>,
    options: Arc<FileOptions>,
}

impl Future for Looking {
    type Output = Result<Response<FileBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(match ready!(Pin::new(&mut self.job).poll(cx)) {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                warn!(root = %self.options.root.display(), %error, "a file could not be served");
                empty(StatusCode::INTERNAL_SERVER_ERROR)
            }
            // the runtime ends, or it panicked
            Err(error) => {
                warn!(%error, "a file could not be served");
                empty(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }))
    }
}

impl<B> Service<Request<B>> for ServeFiles {
    type Response = Response<FileBody>;
    type Error = Infallible;
    type Future = ServeFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.serve(&request)
    }
}

/// What a request wants, taken along to where it may block.
struct Asked {
    options: Arc<FileOptions>,
    below: Below,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    jobs: Jobs,
}

impl Asked {
    fn answer(&self) -> io::Result<Response<FileBody>> {
        let codings = coding::liked(&self.headers, &self.options.precompressed);
        match open::find(&self.options, &self.below, &codings)? {
            Outcome::Nothing => Ok(empty(StatusCode::NOT_FOUND)),
            Outcome::Directory => Ok(self.with_a_slash()),
            Outcome::Found(found) => self.serve(*found),
        }
    }

    /// The path begins with one slash, so that it can't name another host.
    fn with_a_slash(&self) -> Response<FileBody> {
        let query = self.uri.query().map_or(String::new(), |query| format!("?{query}"));
        let Ok(location) = HeaderValue::try_from(format!("{}/{query}", self.uri.path())) else {
            return empty(StatusCode::NOT_FOUND);
        };
        let mut response = empty(StatusCode::MOVED_PERMANENTLY);
        response.headers_mut().insert(LOCATION, location);
        response
    }

    fn serve(&self, found: Found) -> io::Result<Response<FileBody>> {
        let size = found.meta.len();
        let modified = found.meta.modified().ok();
        let tag = tag(modified, size, found.coding);
        let version = Version { tag: &tag, modified: modified.and_then(whole_seconds) };
        let mut response = Response::new(FileBody::default());
        let headers = response.headers_mut();
        headers.extend(HeaderValue::from_str(&tag).ok().map(|tag| (ETAG, tag)));
        if let Some(modified) = version.modified {
            headers.extend(
                HeaderValue::try_from(httpdate::fmt_http_date(modified))
                    .ok()
                    .map(|date| (LAST_MODIFIED, date)),
            );
        }
        headers.extend(self.options.cache_control.clone().map(|value| (CACHE_CONTROL, value)));
        if !self.options.precompressed.is_empty() {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        match conditions::judge(&self.headers, &version) {
            Verdict::NotModified => {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(response);
            }
            Verdict::Failed => return Ok(empty(StatusCode::PRECONDITION_FAILED)),
            Verdict::Serve => {}
        }
        let (from, count) = match conditions::part(&self.method, &self.headers, &version, size) {
            Part::Whole => (0, size),
            Part::Range { from, count } => {
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let range = format!("bytes {from}-{}/{size}", from + count - 1);
                response
                    .headers_mut()
                    .extend(HeaderValue::try_from(range).ok().map(|range| (CONTENT_RANGE, range)));
                (from, count)
            }
            Part::Unsatisfiable => {
                let mut response = empty(StatusCode::RANGE_NOT_SATISFIABLE);
                let range = HeaderValue::try_from(format!("bytes */{size}"));
                response.headers_mut().extend(range.ok().map(|range| (CONTENT_RANGE, range)));
                return Ok(response);
            }
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type::of(&found.name)));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(count));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if let Some(coding) = found.coding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        }
        if self.method != Method::HEAD {
            let (bytes, rest) = open::begin(found.file, from, count)?;
            let bytes = Some(bytes).filter(|bytes| !bytes.is_empty());
            *response.body_mut() = FileBody { bytes, rest: Rest::of(rest, &self.jobs) };
        }
        Ok(response)
    }
}

/// Another for each coding, since the bytes are others.
fn tag(modified: Option<SystemTime>, size: u64, coding: Option<Coding>) -> String {
    let age = modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let coding = coding.map_or("", Coding::name);
    format!("\"{:x}.{:x}-{size:x}{coding}\"", age.as_secs(), age.subsec_nanos())
}

/// As a date of HTTP tells it.
fn whole_seconds(time: SystemTime) -> Option<SystemTime> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(since.as_secs()))
}

/// The bytes of a file, read as they are asked for.
#[derive(Debug, Default)]
pub struct FileBody {
    bytes: Option<Bytes>,
    rest: Rest,
}

/// What is not read yet.
#[derive(Debug, Default)]
enum Rest {
    #[default]
    None,
    /// For the client, without a place among the jobs.
    Waiting {
        file: File,
        left: u64,
        jobs: Jobs,
    },
    Reading {
        job: Job<io::Result<(File, Bytes)>>,
        left: u64,
        jobs: Jobs,
    },
}

impl FileBody {
    /// The bytes, if there is nothing to read any more.
    pub fn into_whole(self) -> Result<Bytes, Self> {
        match self.rest {
            Rest::None => Ok(self.bytes.unwrap_or_default()),
            _ => Err(self),
        }
    }
}

impl Rest {
    fn of(rest: Option<(File, u64)>, jobs: &Jobs) -> Self {
        rest.map_or(Self::None, |(file, left)| Self::Waiting { file, left, jobs: jobs.clone() })
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(bytes) = self.bytes.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        loop {
            match std::mem::take(&mut self.rest) {
                Rest::None => return Poll::Ready(None),
                Rest::Waiting { file, left, jobs } => {
                    let job = jobs.go_on(move || open::read(file, left));
                    self.rest = Rest::Reading { job, left, jobs };
                }
                Rest::Reading { mut job, left, jobs } => {
                    let Poll::Ready(done) = Pin::new(&mut job).poll(cx) else {
                        self.rest = Rest::Reading { job, left, jobs };
                        return Poll::Pending;
                    };
                    let (file, bytes) = match done.unwrap_or_else(|error| Err(io::Error::other(error))) {
                        Ok(read) => read,
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    };
                    let left = left - bytes.len() as u64;
                    self.rest = Rest::of((left > 0).then_some((file, left)), &jobs);
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none() && matches!(self.rest, Rest::None)
    }

    fn size_hint(&self) -> SizeHint {
        let left = match &self.rest {
            Rest::None => 0,
            Rest::Waiting { left, .. } | Rest::Reading { left, .. } => *left,
        };
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64) + left)
    }
}

#[cfg(test)]
mod tests;

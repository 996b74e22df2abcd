//! Rewritten targets: valid whatever is asked for, and never outside of the prefix that they were put below.
#![no_main]

use std::str;

use http::uri::PathAndQuery;
use libfuzzer_sys::fuzz_target;
use portcullis_proxy::{
    PathMatch, Router,
    path::has_dots,
    rewrite::{MAX_TARGET, RedirectTarget, Rewrite, Template},
    router::RouterBuilder,
};

// the first line is a template, the second the path of a route, the rest the target
fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let mut lines = text.splitn(3, '\n');
    let (Some(template), Some(path), Some(target)) = (lines.next(), lines.next(), lines.next()) else { return };
    let Ok(target) = target.parse::<PathAndQuery>() else { return };
    for path in [PathMatch::Prefix(path.to_owned()), PathMatch::Segments(path.to_owned())] {
        let _ = Template::new(template, &path);
        if let Ok(rewrite) = Rewrite::template(template, &path) {
            check(rewrite.apply(&target).ok().as_ref());
        }
        if let Ok(to) = "https://a.example/{rest}".parse()
            && let Ok(redirect) = RedirectTarget::new(&to, Some(true), &path)
            && let Ok(location) = redirect.location(&target)
        {
            assert!(location.as_bytes().starts_with(b"https://a.example/"));
        }
    }
    let mut builder: RouterBuilder<()> = Router::builder();
    let route = portcullis_proxy::RouteMatch::default().with_path(PathMatch::Prefix(path.to_owned()));
    if builder.add(route.clone(), ()).is_err() {
        return;
    }
    let routed = builder.build().is_ok_and(|router| router.find("a.example", target.path()).is_some());
    let Ok(rewrite) = Rewrite::replace_prefix(path, "/below", &route.path) else { return };
    let made = rewrite.apply(&target).ok();
    check(made.as_ref());
    if let Some(made) = made
        && target.as_str() != "*"
    {
        let rest = made.path().strip_prefix("/below").expect("below the prefix");
        assert!(rest.is_empty() || rest.starts_with('/'), "{made}");
        assert_eq!(made.query(), target.query());
        // `/api/` is not for `/api`, its prefix is
        assert!(routed || path.ends_with('/'), "{path} {target}");
    }
});

fn check(made: Option<&PathAndQuery>) {
    let Some(made) = made else { return };
    let text = made.as_str();
    assert!(text == "*" || text.starts_with('/'), "{text}");
    assert!(text.len() <= MAX_TARGET && !text.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'#'), "{text}");
    assert!(!has_dots(made.path()), "{text}");
}

//! Which fields are set, and whether they say what they seem to say.

use std::time::Duration;

use http::{
    HeaderName, HeaderValue,
    header::{
        CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY_REPORT_ONLY, REFERRER_POLICY, SERVER,
        X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
};

use super::csp;

pub(super) const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Which fields are set. `X-XSS-Protection` is none of them: the filters that it steered are gone, and made holes while they were there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SecurityHeaders {
    /// `X-Content-Type-Options: nosniff`, so that a browser doesn't guess a script out of an upload. Default `true`.
    pub nosniff: bool,
    /// `X-Frame-Options`, against click-jacking. Default [`FrameOptions::SameOrigin`]: pages that frame themselves
    /// keep working.
    pub frame_options: Option<FrameOptions>,
    /// `Referrer-Policy`. Default `strict-origin-when-cross-origin`: other sites learn the origin only, and nothing
    /// once the connection is no longer encrypted.
    pub referrer_policy: Option<HeaderValue>,
    /// `Strict-Transport-Security` with this `max-age`, in whole seconds; zero tells browsers to forget (RFC 6797
    /// section 6.1.1), `None` sends nothing. Default 365 days, the least that browsers' preload lists ask for. It is a
    /// promise that outlives the configuration: for that long a browser refuses plain HTTP and bad certificates for
    /// the host. Sent on encrypted connections only (RFC 6797 section 7.2), so a host without TLS never makes it.
    pub hsts: Option<Duration>,
    /// Adds `includeSubDomains` to HSTS. Default `false`: subdomains may be served by somebody who has no HTTPS yet,
    /// and the promise can't be taken back quickly.
    pub hsts_include_subdomains: bool,
    /// Adds `preload` to HSTS: the domain asks to be written into browsers, which can be taken back in months at best. It needs
    /// [`SecurityHeaders::hsts_include_subdomains`] and a year at least, as the lists ask. Default `false`.
    pub hsts_preload: bool,
    /// `Content-Security-Policy`. Default `None`: there is no policy that fits every application.
    pub content_security_policy: Option<HeaderValue>,
    /// `Content-Security-Policy-Report-Only`: a policy that browsers report on and don't obey. Default `None`.
    pub content_security_policy_report_only: Option<HeaderValue>,
    /// `Permissions-Policy`. Default `None`.
    pub permissions_policy: Option<HeaderValue>,
    /// `Cross-Origin-Opener-Policy`, which keeps a page apart from those that it opens and that opened it. Default `None`: it breaks sign-in by
    /// a window of another site.
    pub cross_origin_opener_policy: Option<HeaderValue>,
    /// `Cross-Origin-Embedder-Policy`: a page embeds nothing that has not agreed. Default `None`.
    pub cross_origin_embedder_policy: Option<HeaderValue>,
    /// `Cross-Origin-Resource-Policy`: who may embed this. Default `None`.
    pub cross_origin_resource_policy: Option<HeaderValue>,
    /// Sets these fields in the place of what the application set. Default `false`: the application knows its pages better than the edge.
    pub replace: bool,
    /// Fields that are taken out of every response, such as `Server` and `X-Powered-By`. Default none.
    pub remove: Vec<HeaderName>,
}

/// Who may show a page in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameOptions {
    /// Nobody.
    Deny,
    /// Pages of the same origin.
    SameOrigin,
}

/// Why [`SecurityHeaders`] don't say what they seem to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecurityHeadersError {
    /// The lists of browsers would not take it.
    #[error("hsts preload needs a max-age of a year at least, and subdomains included")]
    Preload,
    /// A content security policy has a mistake.
    #[error("the content security policy is not right: {0}")]
    Csp(String),
    /// A field has a value that browsers pass over.
    #[error("{0} has no value \"{1}\"")]
    Value(&'static str, String),
    /// The older form of a permissions policy.
    #[error("a permissions policy has the form camera=(), geolocation=(self)")]
    Permissions,
}

impl Default for SecurityHeaders {
    fn default() -> Self {
        Self {
            nosniff: true,
            frame_options: Some(FrameOptions::SameOrigin),
            referrer_policy: Some(HeaderValue::from_static("strict-origin-when-cross-origin")),
            hsts: Some(YEAR),
            hsts_include_subdomains: false,
            hsts_preload: false,
            content_security_policy: None,
            content_security_policy_report_only: None,
            permissions_policy: None,
            cross_origin_opener_policy: None,
            cross_origin_embedder_policy: None,
            cross_origin_resource_policy: None,
            replace: false,
            remove: Vec::new(),
        }
    }
}

impl SecurityHeaders {
    /// For an application that is written for it: everything from its own origin, no frames, no referrer, nothing shared with other origins, subdomains
    /// included in HSTS, and no word of what serves it. It breaks most that was not.
    pub fn strict() -> Self {
        let policy = "default-src 'self'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'";
        Self {
            frame_options: Some(FrameOptions::Deny),
            referrer_policy: Some(HeaderValue::from_static("no-referrer")),
            hsts_include_subdomains: true,
            content_security_policy: Some(HeaderValue::from_static(policy)),
            permissions_policy: Some(HeaderValue::from_static(
                "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
            )),
            cross_origin_opener_policy: Some(HeaderValue::from_static("same-origin")),
            cross_origin_resource_policy: Some(HeaderValue::from_static("same-origin")),
            remove: vec![SERVER, HeaderName::from_static("x-powered-by")],
            ..Self::default()
        }
    }

    /// For what is no page: a browser that is shown an answer loads nothing because of it.
    pub fn api() -> Self {
        Self {
            frame_options: Some(FrameOptions::Deny),
            referrer_policy: Some(HeaderValue::from_static("no-referrer")),
            content_security_policy: Some(HeaderValue::from_static(
                "default-src 'none'; frame-ancestors 'none'",
            )),
            remove: vec![SERVER, HeaderName::from_static("x-powered-by")],
            ..Self::default()
        }
    }

    /// Sets [`SecurityHeaders::nosniff`].
    #[must_use]
    pub fn with_nosniff(mut self, nosniff: bool) -> Self {
        self.nosniff = nosniff;
        self
    }

    /// Sets [`SecurityHeaders::frame_options`].
    #[must_use]
    pub fn with_frame_options(mut self, frame_options: Option<FrameOptions>) -> Self {
        self.frame_options = frame_options;
        self
    }

    /// Sets [`SecurityHeaders::referrer_policy`].
    #[must_use]
    pub fn with_referrer_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.referrer_policy = policy;
        self
    }

    /// Sets [`SecurityHeaders::hsts`].
    #[must_use]
    pub fn with_hsts(mut self, max_age: Option<Duration>) -> Self {
        self.hsts = max_age;
        self
    }

    /// Sets [`SecurityHeaders::hsts_include_subdomains`].
    #[must_use]
    pub fn with_hsts_include_subdomains(mut self, include: bool) -> Self {
        self.hsts_include_subdomains = include;
        self
    }

    /// Sets [`SecurityHeaders::hsts_preload`].
    #[must_use]
    pub fn with_hsts_preload(mut self, preload: bool) -> Self {
        self.hsts_preload = preload;
        self
    }

    /// Sets [`SecurityHeaders::content_security_policy`].
    #[must_use]
    pub fn with_content_security_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.content_security_policy = policy;
        self
    }

    /// Sets [`SecurityHeaders::content_security_policy_report_only`].
    #[must_use]
    pub fn with_content_security_policy_report_only(mut self, policy: Option<HeaderValue>) -> Self {
        self.content_security_policy_report_only = policy;
        self
    }

    /// Sets [`SecurityHeaders::permissions_policy`].
    #[must_use]
    pub fn with_permissions_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.permissions_policy = policy;
        self
    }

    /// Sets [`SecurityHeaders::cross_origin_opener_policy`].
    #[must_use]
    pub fn with_cross_origin_opener_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.cross_origin_opener_policy = policy;
        self
    }

    /// Sets [`SecurityHeaders::cross_origin_embedder_policy`].
    #[must_use]
    pub fn with_cross_origin_embedder_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.cross_origin_embedder_policy = policy;
        self
    }

    /// Sets [`SecurityHeaders::cross_origin_resource_policy`].
    #[must_use]
    pub fn with_cross_origin_resource_policy(mut self, policy: Option<HeaderValue>) -> Self {
        self.cross_origin_resource_policy = policy;
        self
    }

    /// Sets [`SecurityHeaders::replace`].
    #[must_use]
    pub fn with_replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }

    /// Sets [`SecurityHeaders::remove`].
    #[must_use]
    pub fn with_remove(mut self, remove: Vec<HeaderName>) -> Self {
        self.remove = remove;
        self
    }

    /// Finds what browsers would pass over or take otherwise than it is meant. The layer sets unsound values too.
    pub fn check(&self) -> Result<(), SecurityHeadersError> {
        let long = self.hsts.is_some_and(|age| age >= YEAR);
        if self.hsts_preload && !(long && self.hsts_include_subdomains) {
            return Err(SecurityHeadersError::Preload);
        }
        let policies = [&self.content_security_policy, &self.content_security_policy_report_only];
        for policy in policies.into_iter().flatten() {
            csp::check(policy.to_str().map_err(|_| SecurityHeadersError::Csp("it is no text".to_owned()))?)?;
        }
        for (name, value, known) in [
            ("referrer-policy", &self.referrer_policy, &REFERRER[..]),
            ("cross-origin-opener-policy", &self.cross_origin_opener_policy, &OPENER[..]),
            ("cross-origin-embedder-policy", &self.cross_origin_embedder_policy, &EMBEDDER[..]),
            ("cross-origin-resource-policy", &self.cross_origin_resource_policy, &RESOURCE[..]),
        ] {
            let Some(value) = value else { continue };
            let value = value.to_str().unwrap_or_default();
            let sound = match name {
                // it may be a list, of which browsers take the last that they know
                "referrer-policy" => value.split(',').map(str::trim).all(|word| known.contains(&word)),
                "cross-origin-resource-policy" => known.contains(&value),
                _ => known.contains(&value.split_once(';').map_or(value, |(word, _)| word)) && reports(value),
            };
            if !sound {
                return Err(SecurityHeadersError::Value(name, value.to_owned()));
            }
        }
        match &self.permissions_policy {
            Some(policy)
                if !policy.to_str().unwrap_or_default().split(',').all(|item| item.contains('=')) =>
            {
                Err(SecurityHeadersError::Permissions)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn hsts_value(&self) -> Option<HeaderValue> {
        let max_age = self.hsts?;
        if max_age == YEAR && !self.hsts_include_subdomains && !self.hsts_preload {
            // the usual value is static, so that cloning it touches no shared counter
            return Some(HeaderValue::from_static("max-age=31536000"));
        }
        let subdomains = if self.hsts_include_subdomains { "; includeSubDomains" } else { "" };
        let preload = if self.hsts_preload { "; preload" } else { "" };
        let value = format!("max-age={}{subdomains}{preload}", max_age.as_secs());
        Some(HeaderValue::try_from(value).expect("digits and ASCII letters are a field value"))
    }

    pub(super) fn always(&self) -> Box<[(HeaderName, HeaderValue)]> {
        let mut fields = Vec::new();
        if self.nosniff {
            fields.push((X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")));
        }
        if let Some(who) = self.frame_options {
            let value = match who {
                FrameOptions::Deny => "DENY",
                FrameOptions::SameOrigin => "SAMEORIGIN",
            };
            fields.push((X_FRAME_OPTIONS, HeaderValue::from_static(value)));
        }
        let named = [
            (REFERRER_POLICY, &self.referrer_policy),
            (CONTENT_SECURITY_POLICY, &self.content_security_policy),
            (CONTENT_SECURITY_POLICY_REPORT_ONLY, &self.content_security_policy_report_only),
            (HeaderName::from_static("permissions-policy"), &self.permissions_policy),
            (HeaderName::from_static("cross-origin-opener-policy"), &self.cross_origin_opener_policy),
            (HeaderName::from_static("cross-origin-embedder-policy"), &self.cross_origin_embedder_policy),
            (HeaderName::from_static("cross-origin-resource-policy"), &self.cross_origin_resource_policy),
        ];
        fields.extend(named.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
        fields.into_boxed_slice()
    }
}

/// Whether a token has no parameter (RFC 9651 section 3.1.2) but where to report to, the one that is known for the policies of openers and embedders.
fn reports(value: &str) -> bool {
    let Some((_, parameter)) = value.split_once(';') else { return true };
    let group = parameter.trim_start_matches(' ').strip_prefix("report-to=\"");
    group.and_then(|rest| rest.strip_suffix('"')).is_some_and(|group| !group.contains(['"', '\\']))
}

const REFERRER: [&str; 8] = [
    "no-referrer",
    "no-referrer-when-downgrade",
    "origin",
    "origin-when-cross-origin",
    "same-origin",
    "strict-origin",
    "strict-origin-when-cross-origin",
    "unsafe-url",
];
const OPENER: [&str; 4] = ["same-origin", "same-origin-allow-popups", "noopener-allow-popups", "unsafe-none"];
const EMBEDDER: [&str; 3] = ["require-corp", "credentialless", "unsafe-none"];
const RESOURCE: [&str; 3] = ["same-origin", "same-site", "cross-origin"];

//! Whether a content security policy says what it seems to say.
//!
//! Browsers pass over what they don't understand, so a policy with a mistake protects less than it seems to. This finds
//! the mistakes that can be told without knowing the application: forms, doubled directives, keywords without quotes.

use super::SecurityHeadersError;

/// Keywords that stand in quotes (Content Security Policy Level 3, section 2.3.1, and those of Trusted Types).
const KEYWORDS: [&str; 13] = [
    "self",
    "none",
    "unsafe-inline",
    "unsafe-eval",
    "unsafe-hashes",
    "strict-dynamic",
    "report-sample",
    "wasm-unsafe-eval",
    "inline-speculation-rules",
    "trusted-types-eval",
    "report-sha256",
    "report-sha384",
    "report-sha512",
];

/// Directives that take something other than sources.
const OTHERS: [&str; 6] =
    ["sandbox", "report-uri", "report-to", "plugin-types", "trusted-types", "require-trusted-types-for"];

fn wrong(what: impl Into<String>) -> SecurityHeadersError {
    SecurityHeadersError::Csp(what.into())
}

pub(super) fn check(policy: &str) -> Result<(), SecurityHeadersError> {
    if policy.contains(',') {
        return Err(wrong("a comma begins another policy; directives end with `;`"));
    }
    let mut names = Vec::new();
    for directive in policy.split(';').map(str::trim).filter(|directive| !directive.is_empty()) {
        let mut words = directive.split_ascii_whitespace();
        let name = words.next().unwrap_or_default().to_ascii_lowercase();
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(wrong(format!("`{name}` is no name of a directive")));
        }
        if names.contains(&name) {
            return Err(wrong(format!("`{name}` stands there twice: only the first counts")));
        }
        let sources: Vec<_> = words.collect();
        match &*name {
            // section 6.4.1: one of two words, which mean nothing elsewhere
            "webrtc" => match &sources[..] {
                [one] if ["'allow'", "'block'"].contains(&&*one.to_ascii_lowercase()) => {}
                _ => return Err(wrong("`webrtc` takes `'allow'` or `'block'`")),
            },
            name if OTHERS.contains(&name) => {}
            name => check_sources(name, &sources)?,
        }
        names.push(name);
    }
    if names.is_empty() { Err(wrong("it is empty")) } else { Ok(()) }
}

fn check_sources(name: &str, sources: &[&str]) -> Result<(), SecurityHeadersError> {
    for source in sources {
        let bare = source.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
        match bare {
            Some(word) => {
                let lower = word.to_ascii_lowercase();
                let made =
                    ["nonce-", "sha256-", "sha384-", "sha512-"].iter().any(|form| lower.starts_with(form));
                if lower.starts_with("nonce-") {
                    return Err(wrong(
                        "a nonce must be another in each response: the application has to set the policy",
                    ));
                }
                if !made && !KEYWORDS.contains(&&*lower) {
                    return Err(wrong(format!("`{source}` is no keyword")));
                }
                if lower == "none" && sources.len() > 1 {
                    return Err(wrong(format!("`'none'` stands alone or not at all in `{name}`")));
                }
            }
            None if source.contains('\'') || source.contains('"') => {
                return Err(wrong(format!("`{source}` has a quote that does not belong there")));
            }
            None if KEYWORDS.contains(&&*source.to_ascii_lowercase()) => {
                return Err(wrong(format!("`{source}` is a host unless it stands in single quotes")));
            }
            None => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        for sound in [
            "default-src 'self'",
            "default-src 'self'; img-src * data:; script-src 'self' https://cdn.example 'sha256-abc='",
            "Default-Src 'NONE'; upgrade-insecure-requests; sandbox allow-scripts;",
            "script-src 'self' 'report-sha256' 'report-sha384' 'Report-SHA512'; webrtc 'block'",
            "webrtc 'Allow'; default-src 'none'",
            "frame-ancestors 'none'; report-uri /csp; report-to default; trusted-types a b 'none'",
        ] {
            check(sound).unwrap_or_else(|error| panic!("{sound}: {error}"));
        }
        for (bad, part) in [
            ("", "empty"),
            (" ; ", "empty"),
            ("default-src self", "quotes"),
            ("default-src 'self', img-src *", "comma"),
            ("default-src 'self'; default-src 'none'", "twice"),
            ("default-src 'none' 'self'", "alone"),
            ("default-src 'selff'", "keyword"),
            ("default-src \"self\"", "quote"),
            ("default-src 'self", "quote"),
            ("default_src 'self'", "name"),
            ("script-src 'nonce-abc'", "nonce"),
            ("webrtc block", "webrtc"),
            ("webrtc", "webrtc"),
            ("webrtc 'allow' 'block'", "webrtc"),
            ("script-src 'block'", "keyword"),
        ] {
            let error = check(bad).unwrap_err().to_string();
            assert!(error.contains(part), "{bad}: {error}");
        }
    }
}

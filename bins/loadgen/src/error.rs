//! Errors on one line.

use std::{error::Error, fmt::Write as _};

/// An error and its causes. A cause that the text before it ends with already is not said twice.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fmt, io};

    #[derive(Debug)]
    struct Outer(&'static str, io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn causes_are_said_once() {
        let outer = |text| Outer(text, io::Error::other("no route"));
        assert_eq!(chain(&outer("the connection failed")), "the connection failed: no route");
        assert_eq!(chain(&outer("failed: no route")), "failed: no route");
    }
}

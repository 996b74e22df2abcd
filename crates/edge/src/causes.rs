//! An error's causes in one line of a log.

/// The error and what is behind it, each after a colon.
pub(crate) struct Causes<'a>(pub(crate) Option<&'a (dyn std::error::Error + 'static)>);

impl std::fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut next = self.0;
        while let Some(error) = next {
            write!(f, "{error}")?;
            next = error.source();
            if next.is_some() {
                f.write_str(": ")?;
            }
        }
        Ok(())
    }
}

//! Logs problems when they begin and when they change, not at every tick.

use std::collections::BTreeMap;
use std::fmt::Display;

/// The current problems, by the name of the operation.
#[derive(Default)]
pub(super) struct Troubles(BTreeMap<&'static str, String>);

impl Troubles {
    /// Something failed. True if that is new and should be logged.
    pub(super) fn met(&mut self, what: &'static str, error: &impl Display) -> bool {
        let error = error.to_string();
        let is_news = self.0.get(what) != Some(&error);
        self.0.insert(what, error);
        is_news
    }

    /// The operation succeeded again.
    pub(super) fn over(&mut self, what: &'static str) {
        if self.0.remove(what).is_some() {
            tracing::info!("{what}: it works again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Troubles;

    #[test]
    fn a_trouble_is_news_once_and_again_when_it_changes_or_comes_back() {
        let mut troubles = Troubles::default();
        assert!(troubles.met("reading", &"no"));
        assert!(!troubles.met("reading", &"no"));
        assert!(troubles.met("writing", &"no"), "another thing is another trouble");
        assert!(troubles.met("reading", &"never"));
        troubles.over("reading");
        assert!(troubles.met("reading", &"never"));
        assert!(!troubles.met("writing", &"no"));
    }
}

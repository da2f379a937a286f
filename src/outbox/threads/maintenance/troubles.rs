//! What is wrong is said when it begins and when it changes, not with every tick.

use std::collections::BTreeMap;
use std::fmt::Display;

/// What is wrong at the moment, each under the name of what was tried.
#[derive(Default)]
pub(super) struct Troubles(BTreeMap<&'static str, String>);

impl Troubles {
    /// Something went wrong. True if that is news, to be said.
    pub(super) fn met(&mut self, what: &'static str, error: &impl Display) -> bool {
        let error = error.to_string();
        let is_news = self.0.get(what) != Some(&error);
        self.0.insert(what, error);
        is_news
    }

    /// It went well again.
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

//! The API's description and its routes have the same paths.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::{Args, PATHS, Shared, api, openapi, operator};

#[test]
fn every_route_is_described_and_nothing_else() {
    // Only a router's `Debug` output lists its paths.
    let router = format!("{:?}", api::router(&Arc::new(Shared::new(Args::default()))));
    let served: BTreeSet<_> = router.split('"').filter(|text| text.starts_with("/api/")).collect();
    let description = openapi::description();
    let described: BTreeSet<_> = description.paths.paths.keys().map(String::as_str).collect();
    assert_eq!(served, described);
    assert_eq!(served.len(), 12);
}

#[test]
fn the_help_names_every_path_of_the_sandbox() {
    let shared = Arc::new(Shared::new(Args::default()));
    let router = format!("{:?}", operator::router(&shared, true));
    let served: BTreeSet<_> = router.split('"').filter(|text| text.starts_with("/sandbox/")).collect();
    assert_eq!(served.len(), 9, "{served:?}");
    for path in served {
        assert!(PATHS.contains(path), "{path}");
    }
}

//! The proxy variables: which one applies, where requests go, what is shown.

use super::*;

#[track_caller]
fn proxy(variables: &[(&'static str, &'static str)]) -> String {
    loaded(&with(variables.iter().copied())).control_plane.proxy.to_string()
}

#[test]
fn the_scheme_of_the_control_planes_url_decides_which_proxy_counts() {
    let (http, https) = (("http_proxy", "http://p1:1"), ("https_proxy", "http://p2:2"));
    let (all, plain) = (("all_proxy", "socks5://p3"), ("CONTROL_PLANE_URL", "http://cp.example"));
    for (variables, expected) in [
        (&[][..], "none: no proxy variable is set"),
        (&[http], "none: no proxy variable is set"),
        (&[http, https], "http://p2:2 (https_proxy, environment)"),
        (&[http, https, all], "http://p2:2 (https_proxy, environment)"),
        (&[http, https, all, plain], "http://p1:1 (http_proxy, environment)"),
        (&[http, all], "socks5://p3:1080 (all_proxy, environment)"),
        (&[https, all, plain], "socks5://p3:1080 (all_proxy, environment)"),
        (&[("HTTPS_PROXY", "p4"), https], "http://p4 (HTTPS_PROXY, environment)"),
        (&[("HTTPS_PROXY", " "), https], "http://p2:2 (https_proxy, environment)"),
        (&[https, ("no_proxy", "a, cp.example:443")], "none: NO_PROXY holds cp.example:443"),
        (&[https, ("NO_PROXY", "cp.example:8443")], "http://p2:2 (https_proxy, environment)"),
        (
            &[all, ("CONTROL_PLANE_URL", "http://127.0.0.1:9")],
            "none: CONTROL_PLANE_URL is an address of this machine",
        ),
    ] {
        assert_eq!(proxy(variables), expected, "{variables:?}");
    }
}

#[test]
fn the_environment_counts_over_dotenv_in_either_spelling() {
    let dir = tempfile::tempdir().unwrap();
    let dotenv = Some(write(dir.path(), ".env", "HTTPS_PROXY=http://file\nNO_PROXY=x").into());
    let proxy = |sources: Sources| {
        loaded(&Sources { dotenv: dotenv.clone(), ..sources }).control_plane.proxy.to_string()
    };
    assert_eq!(proxy(with([])), "http://file (HTTPS_PROXY, .env)");
    assert_eq!(proxy(with([("https_proxy", "http://env")])), "http://env (https_proxy, environment)");
    assert_eq!(proxy(with([("no_proxy", "*")])), "none: NO_PROXY holds *");
}

#[test]
fn only_the_client_gets_the_proxys_credentials() {
    let config = loaded(&with([("HTTPS_PROXY", "user:hunter2@p:3128"), ("NO_PROXY", "a,b:1")]));
    let settings = config.control_plane.client_settings(&config.identity, 1);
    let proxy = settings.proxy.clone().unwrap();
    assert_eq!(proxy.url.expose(), "http://user:hunter2@p:3128/");
    assert_eq!(proxy.no_proxy, ["a", "b:1"]);
    assert_eq!(setting(&config, "HTTPS_PROXY").value.as_deref(), Some("http://***@p:3128/"));
    assert_eq!(setting(&config, "NO_PROXY").value.as_deref(), Some("a,b:1"));
    let shown = format!("{config:?} {settings:?} {proxy} {:?}", config.describe());
    assert!(!shown.contains("hunter2"), "{shown}");
    let straight = loaded(&with([("HTTPS_PROXY", "p"), ("NO_PROXY", "*")]));
    assert_eq!(straight.control_plane.client_settings(&straight.identity, 1).proxy, None);
}

#[test]
fn proxies_that_cannot_be_used_are_problems_beside_all_others() {
    let sources = with([
        ("SERVER_ID", "a/b"),
        ("HTTP_PROXY", "ftp://u:hunter2@p"),
        ("https_proxy", "http://u:hunter2@"),
        ("all_proxy", "hunter2 hunter2"),
        ("NO_PROXY", "*"),
    ]);
    let problems = refused(&sources);
    let variables: Vec<_> = problems.lines().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(variables, ["SERVER_ID", "HTTP_PROXY", "https_proxy", "all_proxy"]);
    assert!(!problems.contains("hunter2"), "{problems}");
}

#[test]
fn an_invalid_entry_of_no_proxy_is_a_warning() {
    let config = loaded(&with([("NO_PROXY", "cp.example:99999,a")]));
    assert_eq!(config.warnings.len(), 1);
    assert!(
        config.warnings[0].starts_with("NO_PROXY: \"cp.example:99999\" is not a host"),
        "{:?}",
        config.warnings
    );
}

//! Goal: the status page and both API pages work in a real browser, at phone and desktop width, light and dark, and contact no
//! other host. `make test-browser` provides the browser.
//!
//! Most tests end by checking the browser's requests and its console.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "what fails here fails the test")]

#[path = "../it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the other tests use more of it")]
mod harness;
mod webdriver;

use harness::{Stage, USAGE, load, until};
use serde_json::{Value, json};
use webdriver::{Browser, Window};

const TOKEN: &str = "a-token-of-the-operator";
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const LEFT: &str = "\u{e012}";

/// Nothing went to another host, and the console is empty.
async fn assert_quiet(browser: &Browser, stage: &Stage) {
    let (own, requests) = (stage.agent.url("/"), browser.requests().await);
    assert!(
        requests.iter().any(|url| url.starts_with(&own)),
        "the account of requests is kept: {requests:?}"
    );
    let foreign: Vec<_> = requests
        .iter()
        .filter(|url| !url.starts_with(&own) && !url.starts_with("data:") && !url.starts_with("chrome:"))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    let console = browser.console().await;
    assert!(console.is_empty(), "{console:?}");
}

/// The page is as wide as the window.
async fn assert_fits(browser: &Browser, window: Window) {
    let page = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(browser.eval(page).await, json!(0), "{window:?} scrolls to the side");
}

/// Writes a picture for the documentation, when `SCREENSHOTS` names a folder.
async fn keep_picture(browser: &Browser, window: Window) {
    if let Some(folder) = std::env::var_os("SCREENSHOTS") {
        let light = if window.dark { "dark" } else { "light" };
        let path = std::path::Path::new(&folder).join(format!("status-{}-{light}.png", window.width));
        std::fs::write(path, browser.picture().await).expect("the picture can be written");
    }
}

/// How much darker than white the ground is, from 0 to 255.
async fn darkness(browser: &Browser) -> u64 {
    let colour = "getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number)";
    let colour: Vec<f64> = serde_json::from_value(browser.eval(colour).await).expect("a colour");
    // An unpainted background is white.
    if colour.get(3) == Some(&0.0) { 0 } else { 255 - colour[0] as u64 }
}

async fn push_until_dead(stage: &mut Stage, messages: &[Vec<u8>], dead: u64) {
    stage.redis.push(USAGE, messages).await;
    until("dead letters are there", async || {
        (stage.agent.health().await?["outbox"]["dead_letters"] == dead).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_page_fits_every_window_and_follows_the_agent() {
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", TOKEN)]).await;
    let browser = Browser::start().await;
    let mut pushed = 0;
    for (n, window) in Window::ALL.into_iter().enumerate() {
        browser.resize(window).await;
        browser.open(&stage.agent.url("/")).await;
        browser.until("document.querySelector('#stream').textContent === 'live'").await;
        assert_eq!(browser.text("#server").await, harness::SERVER_ID);
        assert_eq!(browser.text("#status").await, "healthy");
        assert_eq!(browser.text("#link-state").await, "up");
        // What happens now is seen without a reload.
        pushed += load::push_sessions(&stage.redis, &format!("s{n}"), 40, 5).await;
        browser.until("Number(document.querySelector('#rate-in').textContent) > 0").await;
        browser.until("Number(document.querySelector('#rate-out').textContent) > 0").await;
        // The hour has points, and they are drawn.
        browser.until("Number(document.querySelector('#backlog-chart .plot').dataset.points) > 1").await;
        browser.until("document.querySelectorAll('.kinds .plot')[0].querySelector('.in').getAttribute('d').includes('L')").await;
        assert_fits(&browser, window).await;
        assert_eq!(darkness(&browser).await > 128, window.dark, "{window:?}");
    }
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.processed(), pushed);
    assert_quiet(&browser, &stage).await;
    browser.quit().await;
}

#[tokio::test]
async fn the_page_shows_problems_and_when_the_agent_is_unreachable() {
    let mut stage =
        Stage::set_with(&[("CONTROL_PLANE_INITIAL_ERROR_DELAY", "20"), ("CONTROL_PLANE_MAX_BACKOFF", "60")])
            .await;
    let browser = Browser::start().await;
    browser.open(&stage.agent.url("/")).await;
    browser.until("document.querySelector('#stream').textContent === 'live'").await;
    assert_eq!(browser.eval("document.querySelector('#no-admin').hidden").await, json!(false));
    assert_eq!(browser.eval("document.querySelector('#unlock').hidden").await, json!(true));

    stage.sandbox.weather(json!({"status": {"503": 1.0}})).await;
    let waiting: Vec<String> = (0..50).map(|n| load::usage("waits", n)).collect();
    stage.redis.push(USAGE, &waiting).await;
    browser.until("document.querySelector('#link-state').textContent === 'down'").await;
    browser.until("/overloaded.*next probe in/.test(document.querySelector('#link-note').textContent)").await;
    browser.until("document.querySelector('#depth').textContent === '50'").await;
    browser.until("document.querySelector('#status').textContent === 'degraded'").await;
    browser.until("/oldest/.test(document.querySelector('#outbox-note').textContent)").await;
    assert_quiet(&browser, &stage).await;

    stage.agent.kill();
    browser.until("document.querySelector('#status').textContent === 'agent unreachable'").await;
    browser
        .until("/no update since .*reconnecting/.test(document.querySelector('#stream').textContent)")
        .await;
    stage.sandbox.weather(json!({})).await;
    stage.agent.start();
    stage.agent.ready().await;
    browser.until("document.querySelector('#stream').textContent === 'live'").await;
    browser.until("document.querySelector('#status').textContent === 'healthy'").await;
    // The console reports the failed connections of the time without an agent, and nothing else.
    let said = browser.console().await;
    assert!(said.iter().all(|line| line.contains("/events") && line.contains("ERR_")), "{said:?}");
    browser.quit().await;
}

#[tokio::test]
async fn dead_letters_are_viewed_replayed_and_dropped_with_the_token() {
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", TOKEN)]).await;
    let browser = Browser::start().await;
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    let mut markup: Value = serde_json::from_str(&load::usage("bad", 1)).unwrap();
    markup["note"] =
        "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">".into();
    let raw = b"<script>document.title='taken'</script>".to_vec();
    push_until_dead(&mut stage, &[markup.to_string().into_bytes(), raw], 2).await;
    browser.open(&stage.agent.url("/")).await;
    browser.until("document.querySelector('#kept').textContent === '2'").await;
    browser.until("document.querySelector('[data-reason=refused]').textContent === '1'").await;

    // A wrong token unlocks nothing.
    browser.until("!document.querySelector('#unlock').hidden").await;
    browser.fill("#token", "wrong").await;
    browser.click("#unlock button").await;
    browser.until("/Wrong admin token/.test(document.querySelector('#message').textContent)").await;
    assert_eq!(browser.eval("document.querySelector('#opened').hidden").await, json!(true));
    let said = browser.console().await;
    assert!(said.iter().all(|line| line.contains("401")), "{said:?}");

    // The right one does, for this tab.
    browser.fill("#token", TOKEN).await;
    browser.click("#unlock button").await;
    browser.until("document.querySelectorAll('#list tr').length === 2").await;
    assert_eq!(browser.eval("localStorage.length").await, json!(0));
    assert_eq!(browser.eval("document.cookie").await, json!(""));

    // Text stays text.
    for row in [1, 2] {
        browser.click(&format!("#list tr:nth-child({row}) button")).await;
        browser.until("document.querySelector('#letter').open").await;
        assert!(browser.text("#original").await.contains("<script>"));
        assert_eq!(
            browser.eval("document.querySelectorAll('dialog script, dialog img, main script').length").await,
            json!(0)
        );
        browser.click("#close").await;
    }
    assert_ne!(browser.eval("document.title").await, json!("taken"));

    // The refused one is sent again.
    stage.sandbox.weather(json!({})).await;
    browser.eval("(() => { const s = document.querySelector('#reason'); s.value = 'refused'; s.dispatchEvent(new Event('change')); })()").await;
    browser.until("document.querySelectorAll('#list tr').length === 1").await;
    browser.click("#list button").await;
    browser.until("document.querySelector('#letter').open").await;
    browser.click("#replay").await;
    browser.until("/Dead letter \\d+ replayed/.test(document.querySelector('#message').textContent)").await;
    until("it is delivered", async || {
        (stage.sandbox.accounts().await.kind("usage", "processed") == 1).then_some(())
    })
    .await;

    // The other one is dropped after a confirmation.
    browser.eval("(() => { const s = document.querySelector('#reason'); s.value = ''; s.dispatchEvent(new Event('change')); })()").await;
    browser.until("document.querySelectorAll('#list tr').length === 1 && document.querySelector('#list').textContent.includes('invalid')").await;
    browser.click("#select-found").await;
    browser.until("document.querySelector('#selected').textContent === '1 selected'").await;
    browser.click("#drop-selected").await;
    assert_eq!(browser.text("#sure-text").await, "Delete 1 dead letter permanently?");
    browser.click("#sure-no").await;
    assert_eq!(stage.agent.health().await.expect("it answers")["outbox"]["dead_letters"], 1);
    browser.click("#drop-selected").await;
    browser.click("#sure-yes").await;
    browser.until("/1 dropped/.test(document.querySelector('#message').textContent)").await;
    assert_eq!(stage.agent.health().await.expect("it answers")["outbox"]["dead_letters"], 0);

    // The drain is paused and resumed.
    browser.click("#pause").await;
    browser.until("document.querySelector('#link-state').textContent === 'paused'").await;
    browser.until("document.querySelector('#pause').textContent === 'Resume sending'").await;
    browser.click("#pause").await;
    browser.until("document.querySelector('#link-state').textContent === 'up'").await;
    browser.click("#lock").await;
    assert_eq!(browser.eval("sessionStorage.length").await, json!(0));
    assert_quiet(&browser, &stage).await;
    browser.quit().await;
}

#[tokio::test]
async fn many_dead_letters_are_searched_and_selected_across_pages_and_only_the_confirmed_ones_are_handled() {
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", TOKEN)]).await;
    let browser = Browser::start().await;
    browser.resize(Window::ALL[0]).await;
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-bad"]})).await;
    let bad = (0..3).map(|n| load::usage("bad", n).into_bytes());
    let raw = (0..120).map(|n| format!("no record {n}").into_bytes());
    push_until_dead(&mut stage, &raw.chain(bad).collect::<Vec<_>>(), 123).await;
    stage.sandbox.weather(json!({})).await;
    browser.open(&stage.agent.url("/")).await;
    browser.until("!document.querySelector('#unlock').hidden").await;
    browser.fill("#token", TOKEN).await;
    browser.keys(ENTER).await;
    let rows = async |count: usize| {
        browser.until(&format!("document.querySelectorAll('#list tr').length === {count}")).await;
    };
    let selected = async |told: &str| {
        browser.until(&format!("document.querySelector('#selected').textContent === {}", json!(told))).await;
    };
    let message = async |told: &str| {
        browser.until(&format!("document.querySelector('#message').textContent === {}", json!(told))).await;
    };

    // Page by page; the selection stays.
    rows(50).await;
    browser.click("#select-page").await;
    selected("50 selected").await;
    browser.click("#next").await;
    browser.until("document.querySelector('#page-number').textContent === 'Page 2'").await;
    selected("50 selected").await;
    browser.click("#list tr:nth-child(2) input").await;
    selected("51 selected").await;
    browser.click("#next").await;
    rows(23).await;
    assert_eq!(browser.eval("document.querySelector('#next').disabled").await, json!(true));
    browser.click("#previous").await;
    browser.until("document.querySelector('#select-page').indeterminate").await;

    // A new search clears the selection; all words must match, and no word is broken across lines.
    browser.fill("#find", "USAGE-BAD 422").await;
    rows(3).await;
    selected("None selected").await;
    assert_eq!(browser.eval("document.querySelector('#drop-selected').disabled").await, json!(true));
    assert_eq!(browser.eval(include_str!("broken.js")).await, json!([]));
    assert_fits(&browser, Window::ALL[0]).await;
    assert_eq!(browser.eval(include_str!("nameless.js")).await, json!([]));

    // With the keyboard: one, then all.
    browser.eval("document.querySelector('#select-page').focus()").await;
    browser.keys(TAB).await;
    browser.keys(" ").await;
    selected("1 selected").await;
    browser.click("#select-found").await;
    selected("3 selected").await;
    browser.click("#replay-selected").await;
    assert_eq!(
        browser.text("#sure-text").await,
        "Replay 3 dead letters? Those that are not valid records are skipped."
    );
    assert_eq!(browser.text("#sure-yes").await, "Replay 3");
    browser.click("#sure-yes").await;
    message("3 replayed.").await;
    rows(0).await;
    stage.drained().await;
    assert_eq!(stage.sandbox.accounts().await.kind("usage", "processed"), 3);

    browser.eval("(() => { const f = document.querySelector('#find'); f.value = ''; f.dispatchEvent(new Event('input')); })()").await;
    rows(50).await;
    browser.click("#select-found").await;
    selected("120 selected").await;
    browser.click("#list tr:nth-child(1) input").await;
    selected("119 selected").await;
    browser.click("#drop-selected").await;
    assert_eq!(browser.text("#sure-yes").await, "Drop 119");
    browser.click("#sure-yes").await;
    message("119 dropped.").await;
    rows(1).await;
    assert_eq!(stage.agent.health().await.expect("it answers")["outbox"]["dead_letters"], 1);
    // The same fits a phone.
    browser.resize(Window::ALL[2]).await;
    assert_fits(&browser, Window::ALL[2]).await;
    for window in [Window::ALL[2], Window::ALL[3]] {
        browser.resize(window).await;
        assert_eq!(browser.eval(include_str!("faint.js")).await, json!([]), "{window:?}");
    }
    assert_quiet(&browser, &stage).await;
    browser.quit().await;
}

#[tokio::test]
async fn charts_continue_after_a_restart_show_their_span_and_have_gaps() {
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", TOKEN)]).await;
    let browser = Browser::start().await;
    restart_with_history(&mut stage).await;
    browser.open(&stage.agent.url("/")).await;
    browser.until("Number(document.querySelector('#backlog-chart .plot').dataset.points) > 121").await;
    let caption = "document.querySelector('#backlog-chart figcaption').textContent";
    browser.until(&format!("/^20 min ago, \\d\\d:\\d\\dnow$/.test({caption})")).await;
    let path = "document.querySelector('#backlog-chart path.in').getAttribute('d')";
    assert_eq!(browser.eval(&format!("{path}.split('M').length - 1")).await, json!(2), "a gap is a gap");
    let label =
        browser.eval("document.querySelector('#backlog-chart .plot').getAttribute('aria-label')").await;
    assert!(label.as_str().expect("a label").contains("the last 20 min"), "{label}");

    // The documentation's pictures are of this: there is something of everything.
    stage.sandbox.weather(json!({"refuse_transactions": ["usage-cust-17"]})).await;
    let messages =
        (0..5).map(|n| load::usage("cust-17", n).into_bytes()).chain([b"{\"request_count\":0}".to_vec()]);
    push_until_dead(&mut stage, &messages.collect::<Vec<_>>(), 6).await;
    browser.fill("#token", TOKEN).await;
    browser.keys(ENTER).await;
    browser.until("document.querySelectorAll('#list tr').length === 6").await;
    browser.until("document.querySelector('#kept').textContent === '6'").await;
    browser.until("document.querySelectorAll('#routes tr').length > 1").await;
    for row in [1, 2] {
        browser.click(&format!("#list tr:nth-child({row}) input")).await;
    }
    for window in [Window::ALL[0], Window::ALL[3]] {
        browser.resize(window).await;
        assert_fits(&browser, window).await;
        keep_picture(&browser, window).await;
    }
    assert_quiet(&browser, &stage).await;
    browser.quit().await;
}

/// The agent ran from twenty minutes ago to ten minutes ago, for what its charts know, and runs again now.
async fn restart_with_history(stage: &mut Stage) {
    assert_eq!(stage.agent.stop().await.code(), Some(0));
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as i64;
    let points = (0..120).map(|n| {
        let turn = (f64::from(n) / 9.0).sin() + 1.0;
        let (taken, depth) = (20.0 + 30.0 * turn, (400.0 * turn) as u64);
        let at = now - 1_200_000 + i64::from(n) * 5_000;
        json!([at, depth, [taken, turn * 4.0, turn], [taken * 0.8, turn * 3.0, turn]])
    });
    let points = Value::from(points.collect::<Vec<_>>()).to_string();
    let sum = xxhash_rust::xxh3::xxh3_64(points.as_bytes());
    let text = format!("dataplane-agent history 1 {sum:016x}\n{points}");
    std::fs::write(stage.agent.dir().join("outbox/history"), text).expect("it can be written");
    stage.agent.start();
    stage.agent.ready().await;
}

#[tokio::test]
async fn problems_link_to_their_section_of_the_runbook() {
    let mut stage = Stage::set().await;
    let browser = Browser::start().await;
    push_until_dead(&mut stage, &[b"no record".to_vec()], 1).await;
    browser.open(&stage.agent.url("/")).await;
    browser.until("document.querySelector('[data-help=dead_letters] a')").await;
    stage.sandbox.weather(json!({"status": {"401": 1.0}})).await;
    stage.redis.push(USAGE, &[load::usage("waits", 0)]).await;
    browser.until("/the link is down: credentials/.test(document.querySelector('#why').textContent)").await;
    let label = browser.eval("document.querySelector('#why a').getAttribute('aria-label')").await;
    let label = label.as_str().expect("a label");
    assert!(label.starts_with("What to do: the link is down: credentials: "), "{label}");
    for window in Window::ALL {
        browser.resize(window).await;
        assert_eq!(browser.eval(include_str!("faint.js")).await, json!([]), "{window:?}");
        assert_fits(&browser, window).await;
    }
    browser.click("[data-help=link] a").await;
    browser.until("location.pathname === '/runbook' && document.querySelector(':target')").await;
    assert_eq!(browser.text(":target").await, "DataplaneCredentialsRefused");
    for window in Window::ALL {
        browser.resize(window).await;
        assert_eq!(browser.eval(include_str!("faint.js")).await, json!([]), "{window:?}");
        assert_fits(&browser, window).await;
    }
    assert_quiet(&browser, &stage).await;
    browser.quit().await;
}

#[tokio::test]
async fn the_keyboard_alone_is_enough() {
    let mut stage = Stage::set_with(&[("ADMIN_TOKEN", TOKEN)]).await;
    let browser = Browser::start().await;
    push_until_dead(&mut stage, &[b"no record".to_vec()], 1).await;
    browser.resize(Window::ALL[0]).await;
    browser.open(&stage.agent.url("/")).await;
    browser.until("!document.querySelector('#unlock').hidden").await;
    browser.until("Number(document.querySelector('#backlog-chart .plot').dataset.points) > 0").await;
    let reach = async |selector: &str| {
        for _ in 0..40 {
            browser.keys(TAB).await;
            if browser.eval(&format!("document.activeElement.matches({})", json!(selector))).await
                == json!(true)
            {
                let seen = "getComputedStyle(document.activeElement).outlineStyle !== 'none'";
                assert_eq!(browser.eval(seen).await, json!(true), "the focus on {selector} can be seen");
                return;
            }
        }
        panic!("{selector} cannot be reached");
    };
    reach(".skip").await;
    reach("#backlog-chart .plot").await;
    browser.keys(LEFT).await;
    let label = browser.eval("document.activeElement.getAttribute('aria-label')").await;
    assert!(label.as_str().expect("a label").contains("waiting"), "{label}");
    reach("#token").await;
    browser.keys(TOKEN).await;
    browser.keys(ENTER).await;
    browser.until("document.activeElement.id === 'find'").await;
    reach("#list button").await;
    browser.keys(ENTER).await;
    browser.until("document.querySelector('#letter').open && document.activeElement.id === 'replay'").await;
    reach("#drop").await;
    browser.keys(ENTER).await;
    // A confirmation starts with the focus on Cancel.
    browser.until("document.querySelector('#sure').open && document.activeElement.id === 'sure-no'").await;
    reach("#sure-yes").await;
    browser.keys(ENTER).await;
    browser.until("/Dead letter \\d+ dropped/.test(document.querySelector('#message').textContent)").await;
    assert_eq!(stage.agent.health().await.expect("it answers")["outbox"]["dead_letters"], 0);
    assert_quiet(&browser, &stage).await;
    browser.quit().await;
}

#[tokio::test]
async fn every_control_has_a_name_and_every_text_enough_contrast() {
    let stage = Stage::set_with(&[("ADMIN_TOKEN", TOKEN)]).await;
    let browser = Browser::start().await;
    for window in Window::ALL {
        browser.resize(window).await;
        browser.open(&stage.agent.url("/")).await;
        browser.until("document.querySelector('#stream').textContent === 'live'").await;
        let nameless = browser.eval(include_str!("nameless.js")).await;
        assert_eq!(nameless, json!([]), "{window:?}");
        let faint = browser.eval(include_str!("faint.js")).await;
        assert_eq!(faint, json!([]), "{window:?}");
    }
    browser.quit().await;
}

#[tokio::test]
async fn swagger_ui_and_redoc_render_without_other_hosts() {
    let stage = Stage::set().await;
    let browser = Browser::start().await;
    for window in Window::ALL {
        for (path, text) in
            [("/docs", "/admin/dead-letters/replay"), ("/redoc", "Replays dead letters as records")]
        {
            browser.resize(window).await;
            browser.open(&stage.agent.url(path)).await;
            let rendered =
                format!("document.body.textContent.replaceAll('\u{200b}', '').includes({})", json!(text));
            browser.until(&rendered).await;
            assert_fits(&browser, window).await;
            if path == "/redoc" {
                assert_eq!(darkness(&browser).await > 128, window.dark, "{path} {window:?}");
            }
        }
    }
    assert_quiet(&browser, &stage).await;
    browser.quit().await;
}

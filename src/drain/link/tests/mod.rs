//! When the circuit opens and closes, how long it waits, and what may shorten the wait.

mod fleet;

use super::*;

fn link() -> Link {
    Link::new(Settings::of_test(), Instant::now())
}

const MS: Duration = Duration::from_millis(1);

fn flight(sent: Instant) -> Flight {
    Flight::of_test(sent, 0)
}

#[test]
fn three_failures_in_a_row_open_it_and_one_success_closes_it() {
    let (mut link, start) = (link(), Instant::now());
    link.sent(0, 0, start);
    link.delivered(flight(start), start + MS);
    assert_eq!(link.circuit(), Circuit::Closed);
    let now = start + 2 * MS;
    assert_eq!(link.failed(Trouble::Unreachable, None, flight(now), now), None);
    assert_eq!(link.failed(Trouble::Unreachable, None, flight(now), now), None);
    let change = link.failed(Trouble::Unreachable, None, flight(now), now);
    assert_eq!(change, Some(Change::Down(Trouble::Unreachable)));
    assert_eq!(link.limit(now), 0, "nothing is sent before the backoff is over");
    assert_eq!(link.limit(now + Duration::from_secs(31)), 1, "one probe");
    link.sent(0, 0, start);
    assert_eq!(link.circuit(), Circuit::HalfOpen);
    assert_eq!(link.delivered(flight(now), now + MS), Some(Change::Up));
    assert_eq!(link.limit(now), INITIAL_LIMIT as usize, "it starts small");
}

#[test]
fn what_a_kind_alone_was_told_does_not_keep_it_open() {
    let (mut link, start) = (link(), Instant::now());
    link.sent(0, 0, start);
    link.delivered(flight(start), start);
    let hour = Some(Duration::from_secs(3600));
    assert!(link.failed(Trouble::Overloaded, hour, flight(start), start).is_some());
    let now = start + Duration::from_secs(60);
    assert_eq!(link.limit(now), 0);
    link.was_not_to_blame(Trouble::Overloaded, now);
    assert_eq!(link.limit(now), 1, "one probe");
    link.sent(0, 0, now);
    assert_eq!(link.delivered(flight(now), now), Some(Change::Up));
}

#[test]
fn failures_among_successes_do_not_open_it() {
    let (mut link, start) = (link(), Instant::now());
    for n in 0..100 {
        let now = start + n * MS;
        link.delivered(flight(start), now);
        assert_eq!(
            link.failed(Trouble::Failing, None, flight(start), now + MS),
            None,
            "sent before the success"
        );
    }
    assert_eq!(link.circuit(), Circuit::Closed);
}

#[test]
fn the_wait_stays_between_its_bounds_and_grows() {
    let mut link = link();
    for round in 0..40 {
        let now = Instant::now();
        link.circuit = Circuit::HalfOpen;
        link.failed(Trouble::Unreachable, None, flight(now), now);
        let Circuit::Open { until } = link.circuit() else { panic!("round {round}: not open") };
        let most = if round == 0 { 10 } else { 30 };
        assert!(until - now >= Duration::from_secs(5) && until - now <= Duration::from_secs(most));
    }
}

#[test]
fn an_outage_of_ten_minutes_is_forty_requests_at_the_most() {
    let mut sum = 0;
    for _ in 0..1000 {
        let (mut link, start) = (link(), Instant::now());
        link.delivered(flight(start), start);
        let (mut now, mut requests) = (start, 0);
        while now < start + Duration::from_secs(600) {
            match link.circuit() {
                Circuit::Open { until } if until > now => now = until,
                _ => {
                    link.sent(0, 0, now);
                    requests += 1;
                    // The fastest outage: requests are refused at once.
                    link.failed(Trouble::Unreachable, None, flight(now), now);
                }
            }
        }
        assert!(requests <= 40, "{requests} requests");
        sum += requests;
    }
    println!("{} requests in ten minutes on average", sum / 1000);
    assert!(sum > 30_000, "it does keep probing: {sum}");
}

#[test]
fn retry_after_is_obeyed() {
    let (mut link, now) = (link(), Instant::now());
    link.failed(Trouble::Overloaded, Some(Duration::from_secs(77)), flight(now), now);
    let Circuit::Open { until } = link.circuit() else { panic!("not open") };
    assert!((77.0..85.0).contains(&(until - now).as_secs_f64()));
    assert_eq!(link.delivered(flight(now), now + MS), None, "an answer to an earlier request ends no wait");
    assert_eq!(link.circuit(), Circuit::Open { until });
    link.sent(0, 0, until);
    assert_eq!(link.delivered(flight(until), until + MS), Some(Change::Up));
}

#[test]
fn a_retry_after_of_nothing_is_none() {
    let (mut link, now) = (link(), Instant::now());
    link.sent(0, 0, now);
    link.delivered(flight(now), now);
    for _ in 0..2 {
        link.failed(Trouble::Overloaded, Some(Duration::ZERO), flight(now), now);
        assert_eq!(link.circuit(), Circuit::Closed, "one failure among others");
    }
    link.failed(Trouble::Overloaded, Some(Duration::ZERO), flight(now), now);
    assert_eq!(link.limit(now + Duration::from_secs(4)), 0, "the backoff counts");
}

#[test]
fn an_operator_need_not_wait_for_the_probe_however_long_a_wait_was_asked_for() {
    let (mut link, now) = (link(), Instant::now());
    link.failed(Trouble::Overloaded, Some(Duration::from_secs(3600)), flight(now), now);
    assert_eq!(link.limit(now), 0);
    link.hurry(now);
    assert_eq!(
        (link.limit(now), link.trouble()),
        (1, Some(Trouble::Overloaded)),
        "one probe, not the backlog"
    );
    link.sent(0, 0, now);
    assert_eq!(link.delivered(flight(now), now + MS), Some(Change::Up));
}

#[test]
fn an_answer_that_there_is_no_such_session_ends_an_outage_of_the_link() {
    let (mut link, now) = (link(), Instant::now());
    link.circuit = Circuit::HalfOpen;
    link.failed(Trouble::Unreachable, None, flight(now), now);
    assert_eq!(link.not_found(now), None, "an answer to an earlier request says nothing");
    link.circuit = Circuit::HalfOpen;
    assert_eq!(link.not_found(now), Some(Change::Up));
}

const SECOND: Duration = Duration::from_secs(1);

/// A link that was shed while it sent a request per millisecond, and that has a limit since; and the time.
fn shed_link() -> (Link, Instant) {
    let (mut link, mut now) = (link(), Instant::now());
    for _ in 0..1000 {
        let sent = link.sent(0, 20_000, now);
        link.landed(sent);
        link.delivered(sent, now);
        now += MS;
    }
    let sent = link.sent(0, 20_000, now);
    link.landed(sent);
    link.failed(Trouble::Overloaded, None, sent, now);
    (link, now)
}

/// The number of requests that may be sent within a second if all are delivered.
fn goes_within_a_second(link: &mut Link, begin: Instant) -> u32 {
    let (mut now, mut count) = (begin, 0);
    while now < begin + SECOND {
        match link.rate_limited_until(now) {
            Some(until) => now = until,
            None => {
                let sent = link.sent(0, 0, now);
                link.landed(sent);
                link.delivered(sent, now);
                count += 1;
                now += MS / 10;
            }
        }
    }
    count
}

/// Takes the link down with each trouble in turn, one probe each, and up again after this time; returns what may then be
/// sent.
fn goes_after(troubles: &[Trouble], lasts: Duration) -> u32 {
    let (mut link, mut now) = shed_link();
    let until = now + lasts;
    for trouble in troubles.iter().cycle().take(troubles.len().max(20)) {
        let sent = link.sent(0, 0, now);
        link.landed(sent);
        link.failed(*trouble, Some(SECOND), sent, now);
        now += 2 * SECOND;
        if now >= until && *trouble == troubles[troubles.len() - 1] {
            break;
        }
    }
    let sent = link.sent(0, 0, now);
    link.landed(sent);
    assert_eq!(link.delivered(sent, now), Some(Change::Up));
    goes_within_a_second(&mut link, now)
}

#[test]
fn what_shedding_taught_is_kept_over_an_outage_that_was_nothing_else() {
    let kept = goes_after(&[Trouble::Overloaded], 10 * SECOND);
    assert!(kept > 200, "the earlier rate: {kept}");
    for troubles in [&[Trouble::Unreachable][..], &[Trouble::Unreachable, Trouble::Overloaded]] {
        let anew = goes_after(troubles, 10 * SECOND);
        assert!(anew < 70, "it starts small: {troubles:?}, {anew}");
    }
}

#[test]
fn probes_that_are_shed_do_not_lower_the_rate() {
    let few = goes_after(&[Trouble::Overloaded], 2 * SECOND);
    let many = goes_after(&[Trouble::Overloaded], 30 * SECOND);
    assert!(many >= few / 2, "{few}, {many}");
}

#[test]
fn shed_requests_leave_the_window_of_bytes_as_it_is() {
    let (mut link, now) = shed_link();
    let room = link.window.room(1, now);
    for n in 1..5 {
        let sent = link.sent(0, 20_000, now + n * SECOND);
        link.landed(sent);
        link.failed(Trouble::Overloaded, None, sent, now + n * SECOND);
    }
    assert_eq!(link.window.room(1, now), room);
    let sent = link.sent(0, 20_000, now + 9 * SECOND);
    link.landed(sent);
    link.failed(Trouble::Timeout, None, sent, now + 9 * SECOND);
    assert!(link.window.room(1, now) < room, "a time-out is something else");
}

#[test]
fn quota_requests_leave_one_of_three_tokens_to_others() {
    let (mut link, mut now) = shed_link();
    // Down to the lowest rate.
    for _ in 0..100 {
        let sent = link.sent(0, 0, now);
        link.landed(sent);
        link.failed(Trouble::Overloaded, None, sent, now);
        link.circuit = Circuit::Closed;
        now += MS;
    }
    let (begin, mut others) = (now, 0);
    while now < begin + 60 * SECOND {
        let quota = link.sent_quota(3, 0, now);
        link.landed(quota);
        if link.rate_limited_until(now).is_none() {
            let sent = link.sent(0, 0, now);
            link.landed(sent);
            others += 1;
        }
        now += 200 * MS;
    }
    assert!((15..=30).contains(&others), "{others} in a minute at one per second");
}

#[test]
fn a_quota_request_that_was_shed_goes_again_within_a_second() {
    let link = link();
    for _ in 0..100 {
        assert!(link.quota_delay(1) <= SECOND && link.quota_delay(2) <= 2 * SECOND);
    }
    assert!((0..100).any(|_| link.record_delay(1) > SECOND), "other records wait longer");
}

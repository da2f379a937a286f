//! Breaks of the rules about credentials, servers and commands.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::super::proxy::{Answer, Twist};
use super::{Break, proxy};
use crate::harness::API_KEY;

pub(super) fn servers() -> Vec<Break> {
    vec![
        proxy(
            "health is answered 500",
            &["health"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/health") {
                    answer.fail(500);
                }
            }),
        ),
        proxy(
            "a registration is refused",
            &["register"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/register") {
                    // The repeated text is never shown.
                    answer.say(422, &json!({"success": false, "error": asked.header("x-api-key")}));
                }
            }),
        ),
        proxy(
            "a registered server's heartbeat is answered 404",
            &["heartbeat"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/heartbeat") {
                    answer.fail(404);
                }
            }),
        ),
        proxy(
            "a stranger's heartbeat is answered 500",
            &["heartbeat_unregistered"],
            Twist::after(|asked, answer| {
                if asked.path.contains("-nobody-") {
                    answer.fail(500);
                }
            }),
        ),
        proxy(
            "a shutdown is not known",
            &["shutdown"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/shutdown") {
                    answer.fail(404);
                }
            }),
        ),
    ]
}

pub(super) fn credentials() -> Vec<Break> {
    vec![
        proxy(
            "credentials are not looked at",
            &["no_credentials"],
            Twist::before(|asked| {
                if asked.header("x-api-key").is_empty() {
                    asked.set("x-api-key", API_KEY);
                }
                None
            }),
        ),
        proxy(
            "wrong credentials will do",
            &["wrong_credentials"],
            Twist::before(|asked| {
                if asked.header("x-api-key").starts_with("wrong-") {
                    asked.set("x-api-key", API_KEY);
                }
                None
            }),
        ),
        proxy(
            "a record is processed before the credentials are looked at",
            &["no_credentials"],
            Twist::before(|asked| {
                if asked.header("x-api-key").is_empty() {
                    asked.set("x-api-key", API_KEY);
                    asked.set("x-was-bare", "yes");
                }
                None
            })
            .and_after(|asked, answer| {
                if !asked.header("x-was-bare").is_empty() {
                    answer.fail(401);
                }
            }),
        ),
        proxy(
            "a request without credentials is redirected to a sign-in",
            &["no_credentials"],
            Twist::after(|asked, answer| {
                if asked.header("x-api-key").is_empty() {
                    answer.html(302);
                }
            }),
        ),
    ]
}

pub(super) fn commands() -> Vec<Break> {
    vec![
        proxy(
            "the public keys are no key set",
            &["public_keys", "command_token"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/public-keys") {
                    answer.say(200, &json!({"success": true, "data": []}));
                }
            }),
        ),
        proxy(
            "commands are handed out as data",
            &["commands"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/commands") {
                    answer.change(|body| *body = json!({"success": true, "data": body["commands"]}));
                }
            }),
        ),
        proxy(
            "a queued command is never handed out",
            &["commands"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/commands") {
                    answer.say(200, &json!({"commands": []}));
                }
            }),
        ),
        proxy(
            "the key that signs is not handed out",
            &["command_token"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/public-keys") {
                    answer.say(200, &json!({"keys": []}));
                }
            }),
        ),
        proxy(
            "a command's token says something else than the command",
            &["command_token"],
            Twist::after(|asked, answer| {
                if asked.path.ends_with("/commands") {
                    answer.change(|body| {
                        for command in body["commands"].as_array_mut().expect("commands") {
                            command["parameters"] = json!({"level": "DEBUG"});
                        }
                    });
                }
            }),
        ),
        proxy("a result that comes again is refused", &["command_result"], {
            let seen = AtomicUsize::new(0);
            Twist::after(move |asked, answer| {
                if asked.path.ends_with("/command-results") && seen.fetch_add(1, Ordering::SeqCst) == 1 {
                    answer.fail(422);
                }
            })
        }),
        proxy(
            "a command whose result was accepted is handed out again",
            &["command_result"],
            Twist::before(|asked| {
                asked.path.ends_with("/command-results").then(|| Answer::of(200, &json!({"success": true})))
            }),
        ),
    ]
}

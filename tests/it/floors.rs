//! Goal: a module imports only from floors below its own, so it can be read without the others. Method: every `crate::`
//! path in the source, without tests. The outbox is large enough to have floors of its own.

use std::collections::BTreeSet;
use std::path::Path;

/// The modules of `src`, from the lowest floor up. Modules on one floor do not import each other.
const FLOORS: [&[&str]; 12] = [
    &["record", "secret"],
    &["time"],
    &["telemetry"],
    &["outbox", "control_plane"],
    &["intake", "drain"],
    &["admin"],
    &["fleet"],
    &["http"],
    &["config"],
    &["app"],
    &["check", "conformance"],
    &["cli"],
];
/// The modules of `src/outbox`, in the same way. They refer to each other as `crate::outbox::…`.
const FLOORS_OF_THE_OUTBOX: [&[&str]; 9] = [
    &["engine", "format", "quota_reply", "watermark"],
    &["messages", "settings"],
    &["segments"],
    &["ledger"],
    &["state"],
    &["metrics", "recovery"],
    &["threads"],
    &["api"],
    &["simulated", "tools"],
];

fn floor_of(floors: &[&[&str]], room: &str) -> Option<usize> {
    floors.iter().position(|rooms| rooms.contains(&room))
}

fn sources(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// The source without comments and tests: `#[cfg(test)] mod x { … }` ends at a brace in the first column.
fn code(text: &str) -> String {
    let mut kept = Vec::new();
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.push(line);
            continue;
        }
        let item = lines.by_ref().find(|line| !line.starts_with("#[")).unwrap_or_default();
        let is_module = ["mod ", "pub(crate) mod "].iter().any(|start| item.starts_with(start));
        if is_module && item.ends_with('{') {
            lines.by_ref().find(|line| *line == "}");
        } else if !is_module {
            kept.push(item);
        }
    }
    kept.join("\n")
}

/// The modules named after `house`, including in braces.
fn imports(text: &str, house: &str) -> BTreeSet<String> {
    let word =
        |text: &str| text.trim_start().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
    let mut rooms = BTreeSet::new();
    for rest in code(text).split(house).skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            rooms.insert(word(rest));
            continue;
        };
        // `use crate::{a, b::{C, D}};`: each item at the list's own depth begins with a module.
        let (mut depth, mut begins) = (1, true);
        for (at, c) in list.char_indices() {
            if begins && !c.is_whitespace() {
                rooms.insert(word(&list[at..]));
                begins = false;
            }
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' => begins = depth == 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    rooms
}

/// The number of modules that the longest `super::super::…` climbs.
fn climbs(text: &str) -> usize {
    let code = code(text);
    let (mut rest, mut most) = (&*code, 0);
    while let Some(at) = rest.find("super::") {
        rest = &rest[at..];
        let mut climbed = 0;
        while let Some(behind) = rest.strip_prefix("super::") {
            (rest, climbed) = (behind, climbed + 1);
        }
        most = most.max(climbed);
    }
    most
}

#[test]
fn a_room_imports_only_from_floors_below_its_own() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for file in files {
        let inside = file.strip_prefix(&src).expect("a path below src");
        let mut parts = inside.iter().filter_map(|part| part.to_str());
        let (Some(room), true) = (parts.next(), parts.next().is_some()) else {
            assert!(
                ["fuzzing.rs", "lib.rs", "main.rs"].iter().any(|name| inside.as_os_str() == *name),
                "a loose file: {}",
                inside.display()
            );
            continue;
        };
        let floor =
            floor_of(&FLOORS, room).unwrap_or_else(|| panic!("src/{room} has no floor: give it one here"));
        seen.insert(room.to_owned());
        let text = std::fs::read_to_string(&file).expect("a source");
        for other in imports(&text, "crate::").into_iter().filter(|other| other != room) {
            if floor_of(&FLOORS, &other).is_some_and(|below| below >= floor) {
                faults.push(format!("{} imports {other}", inside.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(
        seen.len(),
        FLOORS.iter().map(|rooms| rooms.len()).sum::<usize>(),
        "a floor has a room that is gone"
    );
    // The check can fail.
    let text = "use crate::{a::{B, C}, drain,\n    http::Surface};\n#[cfg(test)]\nmod tests;\nfn f() { crate::cli::run() }\n\
                // crate::app\n#[cfg(test)]\nmod more {\n    use crate::demo;\n}\nuse crate::fleet::X;";
    assert_eq!(imports(text, "crate::"), ["a", "cli", "drain", "fleet", "http"].map(str::to_owned).into());
}

#[test]
fn a_room_of_the_outbox_imports_only_from_floors_below_its_own() {
    let house = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/outbox");
    let mut files = Vec::new();
    sources(&house, &mut files);
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for file in files {
        let inside = file.strip_prefix(&house).expect("a path below src/outbox");
        if inside.as_os_str() == "mod.rs" {
            continue;
        }
        let first = inside.iter().next().and_then(|part| part.to_str()).expect("a name");
        let room = first.trim_end_matches(".rs");
        let floor = floor_of(&FLOORS_OF_THE_OUTBOX, room)
            .unwrap_or_else(|| panic!("src/outbox/{room} has no floor: give it one here"));
        seen.insert(room.to_owned());
        let text = std::fs::read_to_string(&file).expect("a source");
        for other in imports(&text, "crate::outbox::").into_iter().filter(|other| other != room) {
            // Items re-exported by the outbox (`crate::outbox::Log`) do not show their module.
            if floor_of(&FLOORS_OF_THE_OUTBOX, &other).is_none_or(|below| below >= floor) {
                faults.push(format!("{} imports {other}", inside.display()));
            }
        }
        // The ancestors of this file within its module.
        let above = inside.iter().count() - 1 - usize::from(inside.ends_with("mod.rs"));
        if climbs(&text) > above {
            faults.push(format!("{} leaves its room by super::", inside.display()));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!(
        seen.len(),
        FLOORS_OF_THE_OUTBOX.iter().map(|rooms| rooms.len()).sum::<usize>(),
        "a floor has a room that is gone"
    );
    // The check can fail.
    let text = "use crate::outbox::{engine::database::Batch, Log};\nuse super::super::ledger;\nfn f() { super::g() }";
    assert_eq!(imports(text, "crate::outbox::"), ["", "engine"].map(str::to_owned).into());
    assert_eq!(climbs(text), 2);
}

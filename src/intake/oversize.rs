//! Messages that are too large to fetch. The scripts move them to a separate list (`oversize.lua`) and return a note
//! instead; this module turns the note into a dead letter.

use serde::Deserialize;

use super::source::SourceMessage;

#[derive(Deserialize)]
struct About {
    list: String,
    length: u64,
    sha1: String,
}

/// The content of the dead letter: the beginning of the message, and where the whole is. The script has verified the note's
/// checksum, but anybody can compute one: a forged note about no message is a message like any other.
pub(super) fn message(note: Vec<u8>) -> SourceMessage {
    let Some((defect, head)) = read(&note) else { return SourceMessage { body: note, defect: None } };
    SourceMessage { body: head.to_vec(), defect: Some(defect.into()) }
}

fn read(note: &[u8]) -> Option<(String, &[u8])> {
    let mut parts = note.splitn(3, |byte| *byte == b'\n');
    let (_checksum, about, head) = (parts.next()?, parts.next()?, parts.next()?);
    let About { list, length, sha1 } = serde_json::from_slice(about).ok()?;
    let defect = format!(
        "too large to fetch: {length} bytes; the whole message is in the Redis list {list} \
         (SHA-1 {sha1}); this dead letter has its first {} bytes",
        head.len()
    );
    Some((defect, head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_where_the_message_is_and_what_it_began_with() {
        let note =
            b"a message 0123\n{\"length\":2000000,\"list\":\"q:oversize\",\"sha1\":\"ab\"}\nhead\n\xff";
        let message = message(note.to_vec());
        assert_eq!(message.body, b"head\n\xff");
        let defect = message.defect.unwrap();
        for part in ["2000000 bytes", "q:oversize", "SHA-1 ab", "first 6 bytes"] {
            assert!(defect.contains(part), "{defect}");
        }
    }

    #[test]
    fn a_forged_note_is_an_ordinary_message() {
        let negative = b"x\n{\"length\":-1,\"list\":\"q\",\"sha1\":\"ab\"}\nhead";
        for bytes in [&b""[..], b"one line", b"two\nlines", b"x\n{}\nhead", negative] {
            let message = message(bytes.to_vec());
            assert!(message.body == bytes && message.defect.is_none());
        }
    }
}

//! What the outbox stores: packs and dead letters.

use dataplane_agent::fuzzing::{
    decode_dead_letter, encode_dead_letter, pack as stored_pack, seal, seal_dead_letter, unpack,
};
use dataplane_agent::outbox::{CodecError, DeadLetter, Entry, Log, Payload, Rejected};
use dataplane_agent::record::{Queue, Record, UnknownFields};

use super::acceptance::{ACCEPTED, acceptor};

/// What separates the messages of a pack that is to be written.
const NEXT: u8 = 0xff;

/// Where the pack lies: its checksum depends on it.
const PLACE: (Log, u64) = (Log::Usage, 7);

/// A pack. The first byte says what the others are:
///
/// 0. a stored pack;
/// 1. the number of entries, and what a stored pack holds, compressed, behind a checksum that is right;
/// 2. a place in the pack and what goes wrong there, and messages, each behind a byte that says from which queue;
/// 3. what a stored dead letter holds, compressed.
pub fn pack(data: &[u8]) {
    match data {
        [0, stored @ ..] => {
            let _ = unpack(PLACE, stored).map(|entries| stored_again(&entries));
        }
        [1, count, raw @ ..] => {
            let sealed = written(seal(PLACE, raw, u32::from(*count)));
            if let Ok(entries) = unpack(PLACE, &sealed) {
                assert_eq!(entries.len(), usize::from(*count));
                stored_again(&entries);
            }
        }
        [2, high, low, damage, messages @ ..] => {
            let entries: Vec<_> = messages.split(|byte| *byte == NEXT).filter_map(entry).collect();
            let stored = stored_again(&entries);
            damaged(stored, usize::from(u16::from_be_bytes([*high, *low])), *damage, &entries);
        }
        [3, raw @ ..] => {
            if let Ok(letter) = decode_dead_letter(7, &written(seal_dead_letter(7, raw))) {
                dead_letter_again(&letter);
            }
        }
        _ => {}
    }
}

/// In memory nothing goes wrong.
fn written<T>(result: std::io::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// What an append makes of a message.
fn entry(message: &[u8]) -> Option<Entry> {
    let (queue, raw) = message.split_first()?;
    let acceptor = acceptor(UnknownFields::Forward, 1 << 18);
    Some(match acceptor.at(ACCEPTED).accept(Queue::ALL[usize::from(*queue) % 3], raw) {
        Ok(record) => Entry::Record(record),
        Err(rejection) => Entry::Rejected(Rejected {
            kind: rejection.kind,
            accepted_at: ACCEPTED,
            raw: raw.into(),
            detail: rejection.detail,
        }),
    })
}

/// Entries are stored as what they are. Gives the pack.
fn stored_again(entries: &[Entry]) -> Vec<u8> {
    entries.iter().for_each(usable);
    let stored = written(stored_pack(PLACE, &entries.iter().collect::<Vec<_>>()));
    match unpack(PLACE, &stored) {
        Ok(again) => assert_eq!(again, entries),
        Err(error) => panic!("{error}"),
    }
    let elsewhere = (Log::Usage, PLACE.1 + 1);
    assert!(unpack(elsewhere, &stored).is_err(), "a pack is only good where it was put");
    stored
}

/// Damage is noticed, or it has done none.
fn damaged(mut stored: Vec<u8>, place: usize, damage: u8, entries: &[Entry]) {
    let place = place % stored.len();
    stored[place] ^= damage;
    match unpack(PLACE, &stored) {
        Ok(read) => assert_eq!(read, entries, "{damage:#04x} at {place}"),
        Err(CodecError::Version { found }) => assert_eq!((place, found), (0, stored[0])),
        Err(CodecError::Damaged(_)) => assert_ne!(damage, 0),
    }
    stored.truncate(place);
    assert!(unpack(PLACE, &stored).is_err(), "cut off at {place}");
}

fn dead_letter_again(letter: &DeadLetter) {
    if let Payload::Record(record) = &letter.payload {
        usable(&Entry::Record(record.clone()));
    }
    match decode_dead_letter(letter.id, &written(encode_dead_letter(letter))) {
        Ok(again) => assert_eq!(again, *letter),
        Err(error) => panic!("{error}"),
    }
}

/// A record that was read can be sent, whatever storage it comes from.
fn usable(entry: &Entry) {
    let Entry::Record(record) = entry else { return };
    let parts: [usize; 3] = [record.body().len(), record.session().len(), record.transaction().len()];
    assert!(parts.iter().all(|len| *len <= record.data().len()));
    assert!(record.original().len() <= record.data().len() + 1);
    assert!(record.correlation().is_none_or(str::is_ascii) && record.traceparent().is_none_or(str::is_ascii));
    assert_eq!(record.key(), record.key());
    let (kind, at, data, layout) = record.clone().into_parts();
    assert_eq!(Record::from_parts(kind, at, data, layout).as_ref(), Ok(record));
}

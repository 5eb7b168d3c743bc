//! How values look in the database.

use std::borrow::Cow;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::ledger::transition::Entry;
use crate::ledger::{Key, Owner, Policy, RecordId};
use crate::store::postgres::Fault;

/// What a record is found by, short whatever its message. The parts are told apart by their lengths.
pub(super) fn key_hash(key: &Key) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [&key.namespace, &key.client, &key.message] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize()[..16].to_vec()
}

/// A number for what a claim's subject is locked by, over all gates. Two that share it only wait for
/// each other.
pub(super) fn subject_lock(key: &Key, subject: &str) -> i64 {
    let mut hash = Sha256::new();
    for part in [&*key.namespace, &*key.client, subject] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let hash = hash.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash[..8]);
    i64::from_be_bytes(bytes)
}

/// Begins what stands for a character that the database can't hold, and for itself: a character that
/// means nothing, and that no text has a use for.
const ESCAPE: char = '\u{10ffff}';

/// A text as the database can hold it. The character NUL is all that it can't.
pub(super) fn stored(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    let mut stored = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\0' => stored.extend([ESCAPE, '0']),
            ESCAPE => stored.extend([ESCAPE, '1']),
            other => stored.push(other),
        }
    }
    Cow::Owned(stored)
}

/// The text that was [`stored`].
pub(super) fn restored(text: &str) -> Cow<'_, str> {
    if !text.contains(ESCAPE) {
        return Cow::Borrowed(text);
    }
    let mut restored = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        restored.push(match character {
            ESCAPE if characters.next() == Some('0') => '\0',
            other => other,
        });
    }
    Cow::Owned(restored)
}

/// The same bits: the database has no unsigned numbers.
pub(super) fn owner_column(owner: Owner) -> i64 {
    owner.0.cast_signed()
}

/// A record's number; none for one that no record can have.
pub(super) fn id_column(id: RecordId) -> Option<i64> {
    i64::try_from(id.0).ok()
}

pub(super) fn policy_word(policy: Policy) -> &'static str {
    match policy {
        Policy::Hold => "hold",
        Policy::Resend => "resend",
    }
}

pub(super) fn policy_of(word: &str) -> Result<Policy, Fault> {
    match word {
        "hold" => Ok(Policy::Hold),
        "resend" => Ok(Policy::Resend),
        _ => Err(Fault::Corrupt("a policy")),
    }
}

/// Whole seconds, and one more where it is less than whole.
pub(super) fn seconds(duration: Duration) -> i64 {
    let whole = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i64::try_from(whole).unwrap_or(i64::MAX)
}

/// Reads and sets what of an entry only the rules need to know, as words.
macro_rules! flags {
    ($($flag:ident),+) => {
        /// The words of what is set, with spaces between them.
        pub(super) fn flags_text(entry: &Entry) -> String {
            let all = [$((entry.$flag, stringify!($flag))),+];
            let set = all.iter().filter(|(set, _)| *set);
            set.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
        }

        /// Sets what the words say.
        pub(super) fn set_flags(entry: &mut Entry, text: &str) -> Result<(), Fault> {
            for word in text.split_terminator(' ') {
                match word {
                    $(stringify!($flag) => entry.$flag = true,)+
                    _ => return Err(Fault::Corrupt("a flag")),
                }
            }
            Ok(())
        }
    };
}

flags!(
    given_up,
    given_up_before,
    word_before,
    reopened,
    gap,
    suspected,
    cleared,
    dropped,
    sightings_spent
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_key_are_told_apart() {
        let key = |namespace: &str, client: &str, message: &str| Key {
            namespace: namespace.into(),
            client: client.into(),
            message: message.into(),
        };
        assert_eq!(key_hash(&key("a", "b", "c")), key_hash(&key("a", "b", "c")));
        assert_ne!(key_hash(&key("ab", "", "c")), key_hash(&key("a", "b", "c")));
        assert_ne!(
            subject_lock(&key("a", "bc", "x"), "d"),
            subject_lock(&key("a", "b", "x"), "cd")
        );
    }

    #[test]
    fn a_text_survives() {
        for text in [
            "",
            "Hoàn tiền",
            "a\0b\0",
            "\u{10ffff}",
            "\u{10ffff}0\0\u{10ffff}1",
        ] {
            let stored = stored(text);
            assert!(!stored.contains('\0'));
            assert_eq!(restored(&stored), text);
        }
        assert!(matches!(stored("Hoàn tiền"), Cow::Borrowed(_)));
    }
}

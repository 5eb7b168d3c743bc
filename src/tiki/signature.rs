//! `hex(HMAC-SHA256(secret, base64url(timestamp "." client_key "." signed)))`, computed as the bytes
//! arrive: the body is neither copied nor encoded as a whole.

use std::fmt;

use base64_simd::{AsOut as _, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use smallvec::SmallVec;
use zeroize::Zeroizing;

use super::freshness::Timestamp;

/// A signature: 32 bytes, sent as 64 lower-case hex digits.
///
/// It has no `==`: a signature is compared by [`Verifier::finish`], in constant time.
#[derive(Clone, Copy)]
pub struct Mac([u8; 32]);

impl Mac {
    /// Reads exactly 64 lower-case hex digits, which is how both families send it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() != 64 {
            return None;
        }
        let mut bytes = [0; 32];
        base16ct::lower::decode(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Its 64 digits, as they are sent.
    pub fn to_hex(&self) -> String {
        base16ct::lower::encode_string(&self.0)
    }
}

impl fmt::Debug for Mac {
    /// Redacted: inside its time window a signature is as good as a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A secret's HMAC state, prepared once.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// Prepares a secret of any length.
    pub fn from_secret(secret: &[u8]) -> Self {
        // RFC 2104: a key longer than a block is hashed, a shorter one is padded with zeros.
        let mut block = Zeroizing::new([0; 64]);
        if secret.len() > block.len() {
            block[..32].copy_from_slice(&Sha256::digest(secret));
        } else {
            block[..secret.len()].copy_from_slice(secret);
        }
        Self(Hmac::new((&*block).into()))
    }

    /// Signs a body, or for GET a path and query.
    pub fn sign(&self, timestamp: Timestamp, client_id: &str, signed: &[u8]) -> Mac {
        let mut hmac = self.0.clone();
        let mut encoder = Encoder::default();
        encoder.head(timestamp, client_id, |encoded| hmac.update(encoded));
        encoder.update(signed, |encoded| hmac.update(encoded));
        encoder.finish(|encoded| hmac.update(encoded));
        Mac(hmac.finalize().into_bytes().into())
    }

    /// The bare HMAC, for the diagnosis of messages that were signed in a wrong way.
    pub(super) fn hmac(&self, message: &[u8]) -> [u8; 32] {
        self.0
            .clone()
            .chain_update(message)
            .finalize()
            .into_bytes()
            .into()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Checks one message against all the keys that may have signed it, as its bytes arrive.
#[derive(Clone)]
pub struct Verifier {
    /// Two: the current secret and, while it is changed, the one before it.
    hmacs: SmallVec<[Hmac<Sha256>; 2]>,
    encoder: Encoder,
}

impl Verifier {
    /// Starts with what the headers say. Without keys nothing ever matches.
    pub fn new<'k>(
        keys: impl IntoIterator<Item = &'k SigningKey>,
        timestamp: Timestamp,
        client_id: &str,
    ) -> Self {
        let mut verifier = Self {
            hmacs: keys.into_iter().map(|key| key.0.clone()).collect(),
            encoder: Encoder::default(),
        };
        let Self { hmacs, encoder } = &mut verifier;
        encoder.head(timestamp, client_id, |encoded| update_all(hmacs, encoded));
        verifier
    }

    /// Takes the next bytes of the body, or of path and query, however they are cut.
    pub fn update(&mut self, bytes: &[u8]) {
        let Self { hmacs, encoder } = self;
        encoder.update(bytes, |encoded| update_all(hmacs, encoded));
    }

    /// Which key signed this message, by its place among those given; none: the message is forged,
    /// altered, or signed with another secret.
    ///
    /// Each comparison takes constant time, and all keys are tried, so that the time taken tells
    /// nothing about which of them came close.
    pub fn finish(&mut self, mac: &Mac) -> Option<usize> {
        let Self { hmacs, encoder } = self;
        encoder.finish(|encoded| update_all(hmacs, encoded));
        let mut matched = None;
        // Taken out, so that nothing can match a second time.
        for (index, hmac) in hmacs.drain(..).enumerate() {
            let equal = hmac.verify_slice(&mac.0).is_ok();
            if equal && matched.is_none() {
                matched = Some(index);
            }
        }
        matched
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

fn update_all(hmacs: &mut [Hmac<Sha256>], encoded: &[u8]) {
    for hmac in hmacs {
        hmac.update(encoded);
    }
}

/// Base64url without padding, of bytes that come in pieces. Three bytes make four characters; up to
/// two wait for the next piece.
#[derive(Clone, Default)]
struct Encoder {
    waiting: [u8; 3],
    count: usize,
}

/// Bytes that are encoded at once; a multiple of three.
const PIECE: usize = 768;

/// Of at most so many bytes less is made; a multiple of three too.
const SHORT: usize = 48;

impl Encoder {
    /// The part of the payload before the signed bytes.
    fn head(&mut self, timestamp: Timestamp, client_id: &str, mut sink: impl FnMut(&[u8])) {
        let mut head: SmallVec<[u8; 64]> = SmallVec::new();
        head.extend_from_slice(&timestamp.digits());
        head.push(b'.');
        head.extend_from_slice(client_id.as_bytes());
        head.push(b'.');
        self.update(&head, &mut sink);
    }

    fn update(&mut self, mut bytes: &[u8], mut sink: impl FnMut(&[u8])) {
        if self.count > 0 {
            let missing = (3 - self.count).min(bytes.len());
            let (first, rest) = bytes.split_at(missing);
            self.waiting[self.count..self.count + missing].copy_from_slice(first);
            self.count += missing;
            bytes = rest;
            if self.count < 3 {
                return;
            }
            encode(&self.waiting, &mut sink);
            self.count = 0;
        }
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % 3);
        for piece in whole.chunks(PIECE) {
            encode(piece, &mut sink);
        }
        self.waiting[..rest.len()].copy_from_slice(rest);
        self.count = rest.len();
    }

    fn finish(&self, mut sink: impl FnMut(&[u8])) {
        encode(&self.waiting[..self.count], &mut sink);
    }
}

/// Encodes at most [`PIECE`] bytes, for which there is room.
fn encode(bytes: &[u8], sink: &mut impl FnMut(&[u8])) {
    // What stands before the body, and the few bytes between pieces, need not clear room for a whole piece.
    if bytes.len() <= SHORT {
        encode_in(&mut [0; SHORT / 3 * 4], bytes, sink);
    } else {
        encode_in(&mut [0; PIECE / 3 * 4], bytes, sink);
    }
}

fn encode_in(room: &mut [u8], bytes: &[u8], sink: &mut impl FnMut(&[u8])) {
    sink(URL_SAFE_NO_PAD.encode(bytes, room.as_out()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use proptest::prelude::*;

    const SECRET: &[u8] = b"EhjGcsUUuRSJTHiYPbW5fxzyaKEx0JuAZIKRQ4HnIfNFidB2kMg6locQbTIEz3Vf";
    const CLIENT: &str = "RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W";

    fn timestamp() -> Timestamp {
        Timestamp::parse(b"1620621619569").unwrap()
    }

    fn verify(keys: &[SigningKey], mac: &Mac, body: &[u8]) -> Option<usize> {
        let mut verifier = Verifier::new(keys, timestamp(), CLIENT);
        verifier.update(body);
        verifier.finish(mac)
    }

    #[test]
    fn the_key_that_signed_is_named() {
        let keys = [b"new".as_slice(), SECRET, b"old"].map(SigningKey::from_secret);
        for (index, key) in keys.iter().enumerate() {
            let mac = key.sign(timestamp(), CLIENT, b"{}");
            assert_eq!(verify(&keys, &mac, b"{}"), Some(index));
            assert_eq!(verify(&keys, &mac, b"{ }"), None);
        }
        let mac = keys[0].sign(timestamp(), CLIENT, b"{}");
        assert_eq!(verify(&keys[1..], &mac, b"{}"), None);
        assert_eq!(verify(&[], &mac, b"{}"), None);
        let twice = [keys[0].clone(), keys[0].clone()];
        assert_eq!(verify(&twice, &mac, b"{}"), Some(0));
    }

    #[test]
    fn secrets_of_every_length_are_keyed_as_hmac_says() {
        for length in [0, 1, 63, 64, 65, 200] {
            let secret = vec![b's'; length];
            let expected = Hmac::<Sha256>::new_from_slice(&secret)
                .unwrap()
                .chain_update(b"message")
                .finalize();
            let key = SigningKey::from_secret(&secret);
            assert_eq!(
                key.hmac(b"message"),
                expected.into_bytes().as_slice(),
                "{length}"
            );
        }
    }

    #[test]
    fn nothing_shows_a_secret_or_a_signature() {
        let key = SigningKey::from_secret(SECRET);
        let mac = key.sign(timestamp(), CLIENT, b"{}");
        let verifier = Verifier::new([&key], timestamp(), CLIENT);
        assert_eq!(
            format!("{key:?}{mac:?}{verifier:?}"),
            "[redacted][redacted][redacted]"
        );
    }

    #[test]
    fn a_verifier_may_move_between_threads() {
        fn is_send<T: Send + 'static>() {}
        is_send::<Verifier>();
    }

    fn encode_in_pieces(bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut encoded = Vec::new();
        let mut encoder = Encoder::default();
        let mut rest = bytes;
        for cut in cuts {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            encoder.update(piece, |part| encoded.extend_from_slice(part));
            rest = after;
        }
        encoder.update(rest, |part| encoded.extend_from_slice(part));
        encoder.finish(|part| encoded.extend_from_slice(part));
        encoded
    }

    proptest! {
        #[test]
        fn pieces_are_encoded_as_the_whole_is(
            bytes in prop::collection::vec(any::<u8>(), 0..4000),
            cuts in prop::collection::vec(0_usize..1000, 0..12),
        ) {
            // By another library.
            let whole = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&bytes);
            prop_assert_eq!(encode_in_pieces(&bytes, &cuts), whole.as_bytes());
            let single_bytes = vec![1; bytes.len()];
            prop_assert_eq!(encode_in_pieces(&bytes, &single_bytes), whole.as_bytes());
        }

        /// Any bit of what was signed or of the signature, turned over, is noticed.
        #[test]
        fn any_changed_bit_is_refused(
            millis in 1_000_000_000_000_u64..10_000_000_000_000,
            client in "[!-~]{1,40}",
            body in prop::collection::vec(any::<u8>(), 0..600),
            part in 0..4,
            position in any::<prop::sample::Index>(),
            bit in 0..8,
        ) {
            let key = SigningKey::from_secret(SECRET);
            let mut digits = millis.to_string().into_bytes();
            let timestamp = Timestamp::parse(&digits).unwrap();
            let mac = key.sign(timestamp, &client, &body);
            let mut client = client.into_bytes();
            let mut body = body;
            let mut hex = mac.to_hex().into_bytes();
            let changed = match part {
                0 => &mut digits,
                1 => &mut client,
                2 if !body.is_empty() => &mut body,
                _ => &mut hex,
            };
            let position = position.index(changed.len());
            changed[position] ^= 1_u8 << bit;

            // A change that makes a header malformed is refused before anything is computed.
            let accepted = match (Timestamp::parse(&digits), std::str::from_utf8(&client), Mac::parse(&hex)) {
                (Some(timestamp), Ok(client), Some(mac)) => {
                    let mut verifier = Verifier::new([&key], timestamp, client);
                    verifier.update(&body);
                    verifier.finish(&mac)
                }
                _ => None,
            };
            prop_assert_eq!(accepted, None);
        }
    }
}

//! Signatures made elsewhere: those that Tiki published and others of the same recipe, and messages
//! as programs in JavaScript, Go and PHP write and sign them (the programs are beside their output).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use tikigate::tiki::{
    Case, Diagnosis, KeySpec, Mac, PayloadKind, Signed, SigningKey, Timestamp, Verifier, diagnose,
    parse_message,
};

#[derive(Deserialize)]
struct Vector {
    name: String,
    client_id: String,
    secret: String,
    timestamp: String,
    over: String,
    signed: String,
    encoded_payload: String,
    signature: String,
}

fn vectors() -> Vec<Vector> {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../data/signature.json")).unwrap();
    assert!(vectors.len() >= 14);
    vectors
}

/// Whether the signature is right, with the message fed in pieces of this size.
fn verifies(
    secret: &str,
    timestamp: &str,
    client_id: &str,
    signed: &[u8],
    signature: &str,
    piece: usize,
) -> bool {
    let keys = [
        SigningKey::from_secret(b"another"),
        SigningKey::from_secret(secret.as_bytes()),
    ];
    let timestamp = Timestamp::parse(timestamp.as_bytes()).unwrap();
    let mut verifier = Verifier::new(&keys, timestamp, client_id);
    for piece in signed.chunks(piece) {
        verifier.update(piece);
    }
    verifier.finish(&Mac::parse(signature.as_bytes()).unwrap()) == Some(1)
}

#[test]
fn every_vector_is_signed_as_published() {
    for vector in vectors() {
        let timestamp = Timestamp::parse(vector.timestamp.as_bytes()).unwrap();
        let mac = SigningKey::from_secret(vector.secret.as_bytes()).sign(
            timestamp,
            &vector.client_id,
            vector.signed.as_bytes(),
        );
        assert_eq!(mac.to_hex(), vector.signature, "{}", vector.name);
    }
}

#[test]
fn every_vector_verifies_however_its_bytes_arrive() {
    for vector in vectors() {
        let signed = vector.signed.as_bytes();
        for piece in [1, 2, 3, 5, 7, 64, 767, 768, 769, 4096, usize::MAX] {
            assert!(
                verifies(
                    &vector.secret,
                    &vector.timestamp,
                    &vector.client_id,
                    signed,
                    &vector.signature,
                    piece
                ),
                "{} in pieces of {piece}",
                vector.name
            );
        }
        let longer = [signed, b" "].concat();
        assert!(!verifies(
            &vector.secret,
            &vector.timestamp,
            &vector.client_id,
            &longer,
            &vector.signature,
            usize::MAX
        ));
    }
}

/// The vectors agree with the recipe by themselves, so that a mistake in them would not pass for one of ours.
#[test]
fn every_vector_says_what_was_encoded() {
    for vector in vectors() {
        let payload = format!(
            "{}.{}.{}",
            vector.timestamp, vector.client_id, vector.signed
        );
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(payload);
        assert_eq!(encoded, vector.encoded_payload, "{}", vector.name);
        assert!(["body", "path"].contains(&vector.over.as_str()));
    }
}

#[derive(Deserialize)]
struct Written {
    kind: String,
    secret: String,
    client_id: String,
    timestamp: String,
    /// In base64, so that nothing on the way changes a byte.
    signed: String,
    signature: String,
}

fn written() -> Vec<(&'static str, Written, Vec<u8>)> {
    let mut messages = Vec::new();
    for (language, text) in [
        (
            "JavaScript",
            include_str!("../data/languages/javascript.json"),
        ),
        ("Go", include_str!("../data/languages/go.json")),
        ("PHP", include_str!("../data/languages/php.json")),
    ] {
        let fixtures: Vec<Written> = serde_json::from_str(text).unwrap();
        assert!(fixtures.len() >= 5);
        for fixture in fixtures {
            let signed = STANDARD.decode(&fixture.signed).unwrap();
            messages.push((language, fixture, signed));
        }
    }
    messages
}

#[test]
fn messages_of_other_languages_verify_as_received() {
    for (language, fixture, signed) in written() {
        for piece in [1, 1000, usize::MAX] {
            assert!(
                verifies(
                    &fixture.secret,
                    &fixture.timestamp,
                    &fixture.client_id,
                    &signed,
                    &fixture.signature,
                    piece
                ),
                "{language}, {}",
                fixture.kind
            );
        }
    }
}

/// The three languages write the same messages in different bytes; the ledger sees the same ones.
#[test]
fn messages_of_other_languages_are_understood_alike() {
    for kind in [
        PayloadKind::Refund,
        PayloadKind::TransactionIpn,
        PayloadKind::OrderIpn,
    ] {
        let spec = KeySpec::for_payload(kind).unwrap();
        let messages: Vec<_> = written()
            .into_iter()
            .filter(|(_, fixture, _)| fixture.kind == kind.as_str())
            .collect();
        let identity = |body: &[u8]| spec.extract(&parse_message(kind, body).unwrap()).unwrap();
        let first = identity(&messages[0].2);
        for (language, _, body) in &messages {
            assert_eq!(identity(body), first, "{language}, {kind}");
        }
        let bodies: std::collections::HashSet<_> =
            messages.iter().map(|(_, _, body)| body).collect();
        assert!(bodies.len() >= 3, "{kind}: the fixtures are to differ");
    }
}

/// A backend that checks what it has read and written anew, instead of what it received.
#[test]
fn a_message_written_anew_is_explained() {
    let messages = written();
    let refund = |language: &str| {
        messages
            .iter()
            .find(|(of, fixture, _)| *of == language && fixture.kind == "refund")
            .unwrap()
    };
    for (signer, checker, name) in [
        ("PHP", "JavaScript", "body_as_php"),
        ("Go", "PHP", "body_as_go"),
    ] {
        let (_, fixture, _) = refund(signer);
        let diagnosis = diagnose(&Case {
            timestamp: &fixture.timestamp,
            client_id: &fixture.client_id,
            signed: Signed::Body(&refund(checker).2),
            signature: &fixture.signature,
            secrets: &[fixture.secret.as_bytes()],
        });
        let Diagnosis::Mistakes(causes) = diagnosis else {
            panic!("{signer}, {checker}: {diagnosis:?}");
        };
        assert_eq!(
            causes.iter().map(|cause| cause.name).collect::<Vec<_>>(),
            [name]
        );
    }
}

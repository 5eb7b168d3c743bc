//! Why a signature does not match: the usual mistakes, tried one by one and then together.
//!
//! Meant for people at a terminal. The gate itself never guesses: it computes one signature and
//! compares it.

mod body;
mod path;

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

use super::freshness::Timestamp;
use super::signature::{Mac, SigningKey};
use body::body_variants;
use path::path_variants;

/// What was signed.
#[derive(Clone, Copy, Debug)]
pub enum Signed<'a> {
    /// A request body.
    Body(&'a [u8]),
    /// Path and query of a GET.
    Path(&'a str),
}

impl<'a> Signed<'a> {
    /// The bytes that the signature is over.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Body(body) => body,
            Self::Path(path) => path.as_bytes(),
        }
    }
}

/// A message with a signature that should match it.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// The timestamp header's value, well-formed or not.
    pub timestamp: &'a str,
    /// The client id header's value.
    pub client_id: &'a str,
    /// What was signed.
    pub signed: Signed<'a>,
    /// The signature header's value, well-formed or not.
    pub signature: &'a str,
    /// The secret that should have been used, then others that may have been used in its place.
    pub secrets: &'a [&'a [u8]],
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Diagnosis {
    /// The signature is right.
    Matches,
    /// The signature is right for a message with these mistakes, all together.
    Mistakes(Vec<Cause>),
    /// None of the usual mistakes explains it. What is wrong with the headers themselves may be known.
    Unexplained(Vec<Cause>),
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// A stable word for it.
    pub name: &'static str,
    /// What happened and what to fix, in a sentence.
    pub advice: Cow<'static, str>,
}

/// Says whether a signature matches, and if not, which mistakes explain it.
///
/// Up to three mistakes at once are found, fewest first. Of the work, each try costs one HMAC over
/// the message; there are some thousands at most, so that a large body takes seconds.
pub fn diagnose(case: &Case<'_>) -> Diagnosis {
    let mut faults = Vec::new();
    let macs = read_signature(case.signature, &mut faults);
    let timestamps = read_timestamp(case.timestamp, &mut faults);
    if let Some(mistakes) = search(case, &macs, &timestamps) {
        faults.extend(mistakes);
        return if faults.is_empty() {
            Diagnosis::Matches
        } else {
            Diagnosis::Mistakes(faults)
        };
    }
    Diagnosis::Unexplained(faults)
}

/// One value that may have been used, and the mistakes that this would have been.
struct Variant<T> {
    value: T,
    mistakes: Vec<Cause>,
}

impl<T> Variant<T> {
    fn right(value: T) -> Self {
        Self {
            value,
            mistakes: Vec::new(),
        }
    }

    fn wrong(value: T, name: &'static str, advice: impl Into<Cow<'static, str>>) -> Self {
        Self {
            value,
            mistakes: vec![cause(name, advice)],
        }
    }

    fn weight(&self) -> usize {
        self.mistakes.len()
    }
}

fn cause(name: &'static str, advice: impl Into<Cow<'static, str>>) -> Cause {
    Cause {
        name,
        advice: advice.into(),
    }
}

/// Drops variants that are no different from one with fewer mistakes, and puts those with fewest first.
fn fewest_first<T: PartialEq>(first: Vec<Variant<T>>, then: Vec<Variant<T>>) -> Vec<Variant<T>> {
    let mut kept: Vec<Variant<T>> = Vec::new();
    // The sort is stable: of equally many mistakes the plainer ones, those of `then`, come first.
    let mut all: Vec<_> = then.into_iter().chain(first).collect();
    all.sort_by_key(Variant::weight);
    for variant in all {
        if kept.iter().all(|other| other.value != variant.value) {
            kept.push(variant);
        }
    }
    kept
}

/// The MACs that the signature may stand for.
fn read_signature(text: &str, faults: &mut Vec<Cause>) -> Vec<[u8; 32]> {
    if let Some(mac) = Mac::parse(text.as_bytes()) {
        return vec![*mac.as_bytes()];
    }
    let trimmed = text.trim();
    if trimmed != text {
        faults.push(cause(
            "signature_whitespace",
            "the signature has white space around it: send the 64 digits alone",
        ));
    }
    if let Some(mac) = Mac::parse(trimmed.as_bytes()) {
        return vec![*mac.as_bytes()];
    }
    if let Some(mac) = Mac::parse(trimmed.to_ascii_lowercase().as_bytes()) {
        faults.push(cause(
            "signature_upper_case",
            "the signature has upper-case hex digits: write it in lower case",
        ));
        return vec![*mac.as_bytes()];
    }
    let decoded = [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD]
        .iter()
        .find_map(|engine| <[u8; 32]>::try_from(engine.decode(trimmed).ok()?).ok());
    if let Some(mac) = decoded {
        faults.push(cause(
            "signature_base64",
            "the signature is written in base64: write it as 64 lower-case hex digits",
        ));
        return vec![mac];
    }
    faults.push(cause(
        "signature_malformed",
        format!(
            "the signature is not 64 lower-case hex digits (it has {} characters): it is the HMAC's 32 bytes in hex",
            trimmed.chars().count()
        ),
    ));
    Vec::new()
}

/// The texts that may have been signed as the timestamp.
fn read_timestamp(text: &str, faults: &mut Vec<Cause>) -> Vec<Variant<String>> {
    let trimmed = text.trim();
    let number = Some(trimmed)
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse::<u64>().ok());
    if Timestamp::parse(text.as_bytes()).is_none() {
        faults.push(match (number, trimmed.len()) {
            (Some(_), 10) => cause(
                "timestamp_seconds",
                "the timestamp header is in seconds: send milliseconds, 13 digits",
            ),
            (Some(_), 16) => cause(
                "timestamp_microseconds",
                "the timestamp header is in microseconds: send milliseconds, 13 digits",
            ),
            _ => cause(
                "timestamp_malformed",
                "the timestamp header is not milliseconds since the epoch in 13 digits",
            ),
        });
    }
    let mut variants = vec![Variant::right(text.to_owned())];
    let (Some(number), 13) = (number, trimmed.len()) else {
        return variants;
    };
    if trimmed != text {
        variants.push(Variant::right(trimmed.to_owned()));
    }
    let same = "sign the same milliseconds that the header carries";
    variants.push(Variant::wrong(
        (number / 1000).to_string(),
        "timestamp_signed_in_seconds",
        format!("the timestamp was signed in seconds: {same}"),
    ));
    variants.push(Variant::wrong(
        (number * 1000).to_string(),
        "timestamp_signed_in_microseconds",
        format!("the timestamp was signed in microseconds: {same}"),
    ));
    variants
}

fn search(
    case: &Case<'_>,
    macs: &[[u8; 32]],
    timestamps: &[Variant<String>],
) -> Option<Vec<Cause>> {
    if macs.is_empty() {
        return None;
    }
    let bodies = match case.signed {
        Signed::Body(body) => body_variants(body),
        Signed::Path(path) => path_variants(path),
    };
    let keys = key_variants(case.secrets);
    (0..=MOST_MISTAKES).find_map(|mistakes| {
        bodies.iter().find_map(|body| {
            timestamps.iter().find_map(|timestamp| {
                let mistakes = mistakes.checked_sub(body.weight() + timestamp.weight())?;
                if mistakes > 2 {
                    return None; // keys and recipes have one mistake each at most
                }
                let tried = Tried {
                    case,
                    timestamp,
                    body,
                };
                tried.with_recipes_and_keys(mistakes, &keys, macs)
            })
        })
    })
}

/// Mistakes that are looked for together, at most.
const MOST_MISTAKES: usize = 3;

struct Tried<'t> {
    case: &'t Case<'t>,
    timestamp: &'t Variant<String>,
    body: &'t Variant<Vec<u8>>,
}

impl Tried<'_> {
    fn with_recipes_and_keys(
        &self,
        mistakes: usize,
        keys: &[Variant<SigningKey>],
        macs: &[[u8; 32]],
    ) -> Option<Vec<Cause>> {
        RECIPES.iter().find_map(|recipe| {
            let mistakes = mistakes.checked_sub(usize::from(recipe.mistake.is_some()))?;
            let mut fitting = keys
                .iter()
                .filter(|key| key.weight() == mistakes)
                .peekable();
            fitting.peek()?;
            let message =
                (recipe.message)(&self.timestamp.value, self.case.client_id, &self.body.value);
            let key = fitting.find(|key| macs.contains(&key.value.hmac(&message)))?;
            let recipe = recipe.mistake.map(|(name, advice)| cause(name, advice));
            let others = [&key.mistakes, &self.timestamp.mistakes, &self.body.mistakes];
            let others = others.into_iter().flatten().cloned();
            Some(recipe.into_iter().chain(others).collect())
        })
    }
}

/// A way to make the HMAC's message.
struct Recipe {
    message: fn(&str, &str, &[u8]) -> Vec<u8>,
    mistake: Option<(&'static str, &'static str)>,
}

const RECIPES: [Recipe; 8] = [
    Recipe {
        message: |t, c, s| URL_SAFE_NO_PAD.encode(payload(t, c, s)).into_bytes(),
        mistake: None,
    },
    Recipe {
        message: payload,
        mistake: Some((
            "not_encoded",
            "the payload itself was signed: encode it in base64url first and sign that text",
        )),
    },
    Recipe {
        message: |t, c, s| URL_SAFE.encode(payload(t, c, s)).into_bytes(),
        mistake: Some((
            "base64_padded",
            "the payload was encoded with padding: leave the `=` at its end out",
        )),
    },
    Recipe {
        message: |t, c, s| STANDARD_NO_PAD.encode(payload(t, c, s)).into_bytes(),
        mistake: Some((
            "base64_standard_alphabet",
            "the payload was encoded in base64 with `+` and `/`: use base64url, with `-` and `_`",
        )),
    },
    Recipe {
        message: |t, c, s| STANDARD.encode(payload(t, c, s)).into_bytes(),
        mistake: Some((
            "base64_standard",
            "the payload was encoded in plain base64: use base64url, with `-` and `_` and without `=`",
        )),
    },
    Recipe {
        message: |_, _, s| URL_SAFE_NO_PAD.encode(s).into_bytes(),
        mistake: Some((
            "only_the_body",
            "the body or path alone was encoded and signed: put the timestamp and the client id in front of it, each followed by a dot",
        )),
    },
    Recipe {
        message: |_, _, s| s.to_vec(),
        mistake: Some((
            "only_the_body_not_encoded",
            "the body or path alone was signed: put the timestamp and the client id in front of it, each followed by a dot, and encode that in base64url",
        )),
    },
    Recipe {
        message: |t, c, s| {
            let body = URL_SAFE_NO_PAD.encode(s);
            payload(t, c, body.as_bytes())
        },
        mistake: Some((
            "only_the_body_encoded",
            "the body or path alone was encoded: join timestamp, client id and body first and encode them together",
        )),
    },
];

fn payload(timestamp: &str, client_id: &str, signed: &[u8]) -> Vec<u8> {
    [timestamp.as_bytes(), client_id.as_bytes(), signed].join(&b'.')
}

/// The first secret is the right one; the others are a mistake, and so is white space around any.
fn key_variants(secrets: &[&[u8]]) -> Vec<Variant<SigningKey>> {
    let mut variants = Vec::new();
    for (index, secret) in secrets.iter().enumerate() {
        let other = (index > 0).then(|| {
            let place = index + 1;
            cause(
                "another_secret",
                format!("it was signed with another secret, number {place} of those given"),
            )
        });
        variants.push(Variant {
            value: SigningKey::from_secret(secret),
            mistakes: other.into_iter().collect(),
        });
    }
    for secret in secrets {
        let trimmed = secret.trim_ascii();
        if trimmed.len() != secret.len() {
            variants.push(Variant::wrong(
                SigningKey::from_secret(trimmed),
                "secret_trimmed",
                "it was signed with the secret without the white space around it: use the same bytes on both sides",
            ));
        }
        for (end, name) in [
            ("\n", "line feed"),
            ("\r\n", "carriage return and line feed"),
        ] {
            variants.push(Variant::wrong(
                SigningKey::from_secret(&[trimmed, end.as_bytes()].concat()),
                "secret_with_line_end",
                format!(
                    "it was signed with a {name} at the end of the secret: cut it off when the secret's file is read"
                ),
            ));
        }
    }
    variants
}

#[cfg(test)]
#[path = "diagnosis_tests.rs"]
mod tests;

//! A reader of requests that takes one spelling of everything: what it reads, every reader reads alike.
//!
//! RFC 9112 without its leniences: CRLF, single spaces, a known version, names and values of the
//! characters that the grammar has, one plain `Content-Length` or no body, and nothing left over.

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The target as it stands in the request line.
    pub target: String,
    /// Names in lower case, with their values, in their order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The values of a header, by its name in lower case.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        let named = self.headers.iter().filter(|(is, _)| is == name);
        named.map(|(_, value)| value.as_slice()).collect()
    }

    /// The value of a header that must occur exactly once.
    pub fn one(&self, name: &str) -> Option<&str> {
        match self.all(name)[..] {
            [value] => std::str::from_utf8(value).ok(),
            _ => None,
        }
    }
}

/// Why bytes are not a list of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// More may come and make it one.
    Incomplete,
    /// Nothing can make it one.
    Malformed(&'static str),
}

/// All requests of one connection.
///
/// # Errors
/// The first place that could be read in another way, or an end in the middle of a request.
pub fn read(mut bytes: &[u8]) -> Result<Vec<Request>, Fault> {
    let mut requests = Vec::new();
    while !bytes.is_empty() {
        let (request, rest) = read_one(bytes)?;
        requests.push(request);
        bytes = rest;
    }
    Ok(requests)
}

fn read_one(bytes: &[u8]) -> Result<(Request, &[u8]), Fault> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or(Fault::Incomplete)?;
    let (head, rest) = (&bytes[..end], &bytes[end + 4..]);
    let mut lines = split_lines(head);
    let (method, target) = request_line(lines.next().unwrap_or_default())?;
    let headers = lines.map(header).collect::<Result<Vec<_>, _>>()?;
    let mut request = Request {
        method,
        target,
        headers,
        body: Vec::new(),
    };
    let length = length(&request)?;
    if rest.len() < length {
        return Err(Fault::Incomplete);
    }
    request.body = rest[..length].to_vec();
    Ok((request, &rest[length..]))
}

fn split_lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(head);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let end = bytes.windows(2).position(|two| two == b"\r\n");
        rest = end.map(|end| &bytes[end + 2..]);
        Some(end.map_or(bytes, |end| &bytes[..end]))
    })
}

fn request_line(line: &[u8]) -> Result<(String, String), Fault> {
    const FAULT: Fault = Fault::Malformed("the request line");
    let line = std::str::from_utf8(line).map_err(|_| FAULT)?;
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = words[..] else {
        return Err(FAULT);
    };
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let token = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if !token || !target.starts_with('/') || target.contains('#') || !plain(target) {
        return Err(FAULT);
    }
    Ok((method.to_owned(), target.to_owned()))
}

fn header(line: &[u8]) -> Result<(String, Vec<u8>), Fault> {
    let colon = line.iter().position(|byte| *byte == b':');
    let (name, value) = line.split_at(colon.ok_or(Fault::Malformed("a line without a colon"))?);
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(Fault::Malformed("a header's name"));
    }
    let value = value[1..].trim_ascii();
    // obs-text passes (RFC 9110, section 5.5): every reader takes it for opaque bytes.
    let clean = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    if !value.iter().all(clean) {
        return Err(Fault::Malformed("a header's value"));
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    Ok((name, value.to_vec()))
}

/// RFC 9110, section 5.6.2, without the underscore's look-alikes: servers that hand headers to a
/// program as variables make `-` and `_` one.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^`|~".contains(&byte)
}

fn length(request: &Request) -> Result<usize, Fault> {
    if !request.all("transfer-encoding").is_empty() {
        return Err(Fault::Malformed("a transfer coding"));
    }
    let text = match request.all("content-length")[..] {
        [] => return Ok(0),
        [text] => text,
        _ => return Err(Fault::Malformed("two lengths")),
    };
    let padded = text.len() > 1 && text[0] == b'0';
    if text.is_empty() || padded || !text.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Malformed("the length"));
    }
    let length = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    length.ok_or(Fault::Malformed("the length"))
}

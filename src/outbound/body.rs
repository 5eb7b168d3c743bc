//! Reading a call's body under its limit.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::refusal::Refusal;

/// The whole body, of at most `limit` bytes, by `deadline`.
pub(super) async fn read<B>(body: B, limit: usize, deadline: Instant) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
{
    let declared = body.size_hint().lower();
    if declared > limit as u64 {
        return Err(Refusal::BodyTooLarge);
    }
    timeout_at(deadline, collect(body, limit))
        .await
        .unwrap_or(Err(Refusal::BodyTimeout))
}

async fn collect<B>(body: B, limit: usize) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::BodyTimeout)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len().max(first.len()) + data.len() > limit {
            return Err(Refusal::BodyTooLarge);
        }
        if first.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.extend_from_slice(&first);
        }
        whole.extend_from_slice(&data);
    }
    Ok(if whole.is_empty() {
        first
    } else {
        whole.freeze()
    })
}

//! Reading a call's body within its bounds.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use crate::net::BodyPace;

use super::refusal::Refusal;

/// The whole body, of at most `limit` bytes, which comes no slower than `pace`.
pub(super) async fn read<B>(body: B, limit: usize, pace: BodyPace) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
{
    let declared = body.size_hint().lower();
    if declared > limit as u64 {
        return Err(Refusal::BodyTooLarge);
    }
    let began = Instant::now();
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    loop {
        let so_far = whole.len().max(first.len());
        let deadline = began + pace.patience(so_far);
        let Some(frame) = timeout_at(deadline, body.frame())
            .await
            .map_err(|_| Refusal::BodyTimeout)?
        else {
            break;
        };
        let frame = frame.map_err(|_| Refusal::BodyTimeout)?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if data.len() > limit - so_far {
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

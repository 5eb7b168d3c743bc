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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};
    use std::time::Duration;

    use http_body::Frame;
    use tokio::time::{Sleep, sleep};

    use super::*;

    /// A body of pieces, each of which comes this long after the one before it.
    struct Dripping {
        pause: Duration,
        next: Pin<Box<Sleep>>,
        pieces: VecDeque<&'static [u8]>,
    }

    impl Dripping {
        fn new(pause: Duration, pieces: &[&'static [u8]]) -> Self {
            Self {
                pause,
                next: Box::pin(sleep(pause)),
                pieces: pieces.iter().copied().collect(),
            }
        }
    }

    impl Body for Dripping {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            ready!(self.next.as_mut().poll(cx));
            self.next = Box::pin(sleep(self.pause));
            let piece = self.pieces.pop_front();
            Poll::Ready(piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece)))))
        }
    }

    fn pace(min_rate: usize) -> BodyPace {
        BodyPace {
            within: Duration::from_secs(10),
            min_rate,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_keeps_its_pace_or_is_cut() {
        const HALF: Duration = Duration::from_millis(500);
        let pieces: [&[u8]; 4] = [b"12", b"34", b"56", b"78"];
        // Four bytes a second.
        let whole = read(Dripping::new(HALF, &pieces), 8, pace(4)).await;
        assert!(matches!(whole, Ok(body) if body == "12345678"));
        let began = Instant::now();
        let cut = read(Dripping::new(HALF, &pieces), 8, pace(400)).await;
        assert!(matches!(cut, Err(Refusal::BodyTimeout)));
        assert!(began.elapsed() < Duration::from_millis(1_100));
        let whole = read(Dripping::new(4 * HALF, &pieces[..3]), 8, pace(0)).await;
        assert!(matches!(whole, Ok(body) if body == "123456"));
        let late = read(Dripping::new(8 * HALF, &pieces[..3]), 8, pace(0)).await;
        assert!(matches!(late, Err(Refusal::BodyTimeout)));
    }

    #[tokio::test(start_paused = true)]
    async fn its_limit_is_counted_over_all_pieces() {
        let body = |limit| {
            let dripping = Dripping::new(Duration::ZERO, &[b"12", b"", b"34", b"5"]);
            read(dripping, limit, pace(0))
        };
        assert!(matches!(body(5).await, Ok(body) if body == "12345"));
        assert!(matches!(body(4).await, Err(Refusal::BodyTooLarge)));
    }
}

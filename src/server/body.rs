//! A request's body, which tells its connection when all of it was read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::stream::Activity;

/// A request's body as hyper reads it.
#[derive(Debug)]
pub struct Arriving {
    body: Incoming,
    activity: Arc<Activity>,
    number: u32,
}

impl Arriving {
    pub(super) fn new(body: Incoming, activity: Arc<Activity>) -> Self {
        let number = activity.body_begins(!body.is_end_stream());
        Self {
            body,
            activity,
            number,
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // What is only dropped may be unread: then the connection counts as one that is in the middle of it.
        if frame.is_none() || self.body.is_end_stream() {
            self.activity.body_has_ended(self.number);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

//! What happens to a connection before its first request: TLS, PROXY headers, who may connect, and how
//! many.

mod certificates;
mod descriptors;
mod gate;
mod places;
mod proxy;
mod testssl;
mod tls;

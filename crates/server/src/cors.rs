//! CORS: the web origins whose pages may use the server.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use super::errors::SHOULD_RETRY;
use super::log::REQUEST_ID;

/// How long a browser may cache the answer to a preflight request.
const MEMORY: Duration = Duration::from_secs(3600);

/// A web origin whose pages may use the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// All origins: `*`.
    Any,
    /// One origin, as browsers write it: `https://example.org:8443`; `null` is the origin of a page
    /// from a file.
    One(HeaderValue),
}

/// The text is not an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `*`, or an origin such as https://example.org")]
pub struct OriginError;

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Origin, OriginError> {
        match text {
            "*" => return Ok(Origin::Any),
            "null" => return Ok(Origin::One(HeaderValue::from_static("null"))),
            _ => {}
        }
        // A browser sends an origin without a path and compares it byte by byte.
        let uri: Option<Uri> = text.parse().ok();
        let bare = uri.as_ref().is_some_and(|uri| {
            let (scheme, authority) = (uri.scheme_str(), uri.authority());
            let pair = scheme.zip(authority);
            pair.is_some_and(|(scheme, authority)| text == format!("{scheme}://{authority}"))
        });
        match HeaderValue::from_str(text) {
            Ok(origin) if bare => Ok(Origin::One(origin)),
            _ => Err(OriginError),
        }
    }
}

/// Returns the layer that answers preflight requests and allows `origins`; `None` if there are
/// none.
pub(crate) fn layer(origins: &[Origin]) -> Option<CorsLayer> {
    let one = |origin: &Origin| match origin {
        Origin::Any => None,
        Origin::One(origin) => Some(origin.clone()),
    };
    let named: Option<Vec<HeaderValue>> = origins.iter().map(one).collect();
    let allowed = match named {
        Some(named) if named.is_empty() => return None,
        Some(named) => AllowOrigin::list(named),
        None => Any.into(),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // The official client sends a dozen headers of its own, and more with each version.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([REQUEST_ID, SHOULD_RETRY, header::RETRY_AFTER])
        .max_age(MEMORY);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends_or_a_star() {
        assert_eq!("*".parse(), Ok(Origin::Any));
        for origin in ["null", "https://example.org", "http://localhost:3000"] {
            let expected = HeaderValue::from_static(origin);
            assert_eq!(origin.parse(), Ok(Origin::One(expected)));
        }
        for wrong in [
            "",
            "example.org",
            "https://",
            "https://example.org/",
            "https://example.org/app",
            "https://a b",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn without_origins_there_is_no_layer() {
        assert!(layer(&[]).is_none());
        assert!(layer(&[Origin::Any]).is_some());
    }
}

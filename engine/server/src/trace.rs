//! W3C Trace Context: a request's `traceparent` goes on with a span of ours, in the answer, in log lines, and to an engine behind us.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;

pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `00-` trace `-` span `-` flags.
const BYTES: usize = 55;

/// The trace a request belongs to, and our part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    /// 32 digits, as they came.
    pub(crate) id: String,
    /// 16 digits, ours.
    span: String,
    /// Two digits, as they came.
    flags: String,
}

impl Trace {
    /// `None` without a valid header; then there is no trace.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Trace> {
        let text = headers.get(TRACEPARENT)?.to_str().ok()?;
        let (version, id, parent, flags) = (
            text.get(0..2)?,
            text.get(3..35)?,
            text.get(36..52)?,
            text.get(53..55)?,
        );
        let dashes = [2, 35, 52].iter().all(|at| text.as_bytes()[*at] == b'-');
        // Later versions may say more behind another dash.
        let ends = match version {
            "00" => text.len() == BYTES,
            _ => text.as_bytes().get(BYTES).is_none_or(|byte| *byte == b'-'),
        };
        let numbers = [version, id, parent, flags].into_iter().all(is_hex);
        let set = [id, parent]
            .into_iter()
            .all(|digits| digits.bytes().any(|b| b != b'0'));
        (dashes && ends && numbers && set && version != "ff").then(|| Trace {
            id: id.to_owned(),
            span: format!("{:016x}", rand::rng().random_range(1..=u64::MAX)),
            flags: flags.to_owned(),
        })
    }

    /// For the answer, and for whoever is asked next.
    pub(crate) fn header(&self) -> HeaderValue {
        let text = format!("00-{}-{}-{}", self.id, self.span, self.flags);
        HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Trace> {
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_str(text).unwrap());
        Trace::of(&headers)
    }

    #[test]
    fn the_trace_stays_and_the_span_is_ours() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let trace = read(text).unwrap();
        let ours = trace.header();
        let ours = ours.to_str().unwrap();
        assert_eq!((&ours[..36], &ours[52..]), (&text[..36], &text[52..]));
        assert_ne!(ours, text);
        assert_eq!(read(ours).unwrap().id, trace.id);
    }

    #[test]
    fn what_is_no_trace_is_left_alone() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(read(&good.replace("00-", "cc-")).is_some());
        assert!(read(&format!("{}-what", good.replace("00-", "cc-"))).is_some());
        for bad in [
            "",
            "00",
            &good[..54],
            &format!("{good}-what"),
            &good.replace("00-", "ff-"),
            &good.replace("0af7", "0AF7"),
            &good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &good.replace("b7ad6b7169203331", &"0".repeat(16)),
            &good.replace('-', "_"),
            &"é".repeat(28),
        ] {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_bytes(bad.as_bytes()).unwrap();
            headers.insert(TRACEPARENT, value);
            assert_eq!(Trace::of(&headers), None, "{bad}");
        }
    }
}

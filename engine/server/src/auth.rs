//! API keys: `Authorization: Bearer K`, `Authorization: K` or `X-Api-Key: K`, compared in constant time.

use axum::http::{HeaderMap, header};
use subtle::ConstantTimeEq;

use crate::config::ApiKeys;

/// Whether a request with these headers may pass; always, when no key is set.
pub(crate) fn allows(keys: &ApiKeys, headers: &HeaderMap) -> bool {
    if keys.0.is_empty() {
        return true;
    }
    let authorization = headers
        .get(header::AUTHORIZATION)
        .map(|value| value.as_bytes());
    let bearer = authorization.map(|value| match value.split_at_checked(7) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key.trim_ascii(),
        _ => value,
    });
    let x_api_key = headers.get("x-api-key").map(|value| value.as_bytes());
    [bearer, x_api_key]
        .into_iter()
        .flatten()
        .any(|given| known(keys, given))
}

/// Looks at every key, whichever matches.
fn known(keys: &ApiKeys, given: &[u8]) -> bool {
    let mut found = subtle::Choice::from(0);
    for key in &keys.0 {
        found |= key.as_bytes().ct_eq(given);
    }
    found.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms() {
        let keys = ApiKeys(vec!["sk-1".into(), "two".into()]);
        for (name, value, allowed) in [
            ("authorization", "Bearer sk-1", true),
            ("authorization", "bearer two", true),
            ("authorization", "two", true),
            ("x-api-key", "sk-1", true),
            ("authorization", "Bearer sk-", false),
            ("authorization", "Bearer", false),
            ("x-api-key", "", false),
            ("x-other", "sk-1", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            assert_eq!(allows(&keys, &headers), allowed, "{name}: {value}");
        }
        assert!(allows(&ApiKeys::default(), &HeaderMap::new()));
        assert!(!allows(&keys, &HeaderMap::new()));
    }
}

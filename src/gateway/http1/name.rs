//! Names of header fields: which ones mean something to us, in which spellings.
//!
//! Owns which fields go from hop to hop only, which are ours to set, and which a client's copies must never be passed on of.
//! Never looks at a value.

/// Fields that mean something to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Other,
    AcceptEncoding,
    Authorization,
    /// What an application may take for the caller's name or address, or for another method or path than the request has.
    /// So is every spelling that a CGI-like interface takes for a field that is ours to set or to remove (`X.Real.IP`,
    /// `Transfer_Encoding`); here such a spelling means nothing.
    Claim,
    Connection,
    ContentEncoding,
    ContentLength,
    ContentType,
    Cookie,
    Date,
    Expect,
    Forwarded,
    Host,
    IdempotencyKey,
    KeepAlive,
    MaxForwards,
    Origin,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    SecFetchDest,
    SecFetchMode,
    SecFetchSite,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    XApiKey,
    XForwardedFor,
    XForwardedHost,
    /// How a client reached the proxy before us, besides scheme and host: `x-forwarded-port`, `x-forwarded-prefix`.
    XForwardedPlace,
    XForwardedProto,
    XRequestId,
    /// `x-tollgate-…`, in any spelling.
    XTollgate,
    /// `x-ratelimit-…-requests`, in any spelling: ours, not the upstream's.
    XRateLimitRequests,
}

/// Longer spellings are looked at as far as this: the longest name below is shorter.
const LONGEST: usize = 64;

impl Name {
    pub fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            4 if is("date") => Self::Date,
            6 if is("expect") => Self::Expect,
            6 if is("cookie") => Self::Cookie,
            6 if is("origin") => Self::Origin,
            7 if is("trailer") => Self::Trailer,
            7 if is("upgrade") => Self::Upgrade,
            9 if is("forwarded") => Self::Forwarded,
            9 if is("x-api-key") => Self::XApiKey,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::KeepAlive,
            12 if is("content-type") => Self::ContentType,
            12 if is("x-request-id") => Self::XRequestId,
            12 if is("max-forwards") => Self::MaxForwards,
            13 if is("authorization") => Self::Authorization,
            14 if is("content-length") => Self::ContentLength,
            14 if is("sec-fetch-dest") => Self::SecFetchDest,
            14 if is("sec-fetch-mode") => Self::SecFetchMode,
            14 if is("sec-fetch-site") => Self::SecFetchSite,
            15 if is("accept-encoding") => Self::AcceptEncoding,
            15 if is("idempotency-key") => Self::IdempotencyKey,
            15 if is("x-forwarded-for") => Self::XForwardedFor,
            16 if is("content-encoding") => Self::ContentEncoding,
            16 if is("x-forwarded-host") => Self::XForwardedHost,
            16 if is("x-forwarded-port") => Self::XForwardedPlace,
            16 if is("proxy-connection") => Self::ProxyConnection,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::XForwardedProto,
            18 if is("x-forwarded-prefix") => Self::XForwardedPlace,
            18 if is("proxy-authenticate") => Self::ProxyAuthenticate,
            19 if is("proxy-authorization") => Self::ProxyAuthorization,
            len if claims(len).iter().any(|claim| is(claim)) => Self::Claim,
            // Without a branch for each byte, so that it is done many bytes at a time.
            _ if name.iter().fold(true, |plain, byte| plain & is_plain(*byte)) => Self::of_family(name),
            _ => Self::of_disguised(name),
        }
    }

    fn of_family(name: &[u8]) -> Self {
        match name.first() {
            Some(b'x' | b'X') => {}
            _ => return Self::Other,
        }
        let starts = |head: &str| name.get(..head.len()).is_some_and(|n| n.eq_ignore_ascii_case(head.as_bytes()));
        let ends = |tail: &str| {
            let at = name.len().saturating_sub(tail.len());
            name.get(at..).is_some_and(|n| n.eq_ignore_ascii_case(tail.as_bytes()))
        };
        if starts("x-tollgate-") {
            Self::XTollgate
        } else if starts("x-ratelimit-") && ends("-requests") {
            Self::XRateLimitRequests
        } else if starts("x-forwarded-") || starts("x-auth-request-") {
            Self::Claim
        } else {
            Self::Other
        }
    }

    /// A name with something in it besides letters, digits and dashes. CGI-like interfaces take each such byte for an
    /// underscore, as they do dashes; so must we, or a client could slip one past us.
    fn of_disguised(name: &[u8]) -> Self {
        let mut dashed = [0; LONGEST];
        let len = name.len().min(LONGEST);
        for (dash, byte) in dashed.iter_mut().zip(name) {
            *dash = if is_plain(*byte) { *byte } else { b'-' };
        }
        match Self::of(dashed.get(..len).unwrap_or_default()) {
            // Nothing depends on them upstream, and they are neither set nor removed.
            Self::Other
            | Self::Cookie
            | Self::Date
            | Self::IdempotencyKey
            | Self::Origin
            | Self::SecFetchDest
            | Self::SecFetchMode
            | Self::SecFetchSite => Self::Other,
            // A second credential is refused in whatever spelling.
            Self::XApiKey => Self::XApiKey,
            // Also an upstream's are removed.
            ours @ (Self::XRequestId | Self::XTollgate | Self::XRateLimitRequests) => ours,
            _ => Self::Claim,
        }
    }

    /// Fields that concern one connection only (RFC 9110, 7.6.1), and what else an intermediary must not pass on.
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::ProxyAuthenticate
                | Self::ProxyAuthorization
                | Self::Te
                | Self::Trailer
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }
}

/// Names of [`Name::Claim`], by their length: what proxies and networks before them tell of a client's address and user, and what
/// asks frameworks for another method, host or path.
const fn claims(len: usize) -> &'static [&'static str] {
    match len {
        // `HTTP_PROXY` of a CGI: where its own calls go.
        5 => &["proxy"],
        6 => &["x-host"],
        9 => &["x-real-ip", "client-ip"],
        11 => &["x-client-ip", "x-forwarded", "x-remote-ip", "remote-user", "remote-addr"],
        13 => &["x-http-method", "x-remote-addr", "x-remote-user", "x-rewrite-url", "forwarded-for", "fly-client-ip"],
        14 => &["x-original-uri", "x-original-url", "x-webauth-user", "true-client-ip"],
        15 => &["x-original-host"],
        16 => &["x-originating-ip", "cf-connecting-ip", "fastly-client-ip"],
        17 => &["x-method-override", "x-original-method"],
        18 => &["cf-connecting-ipv6"],
        19 => &["x-cluster-client-ip", "x-appengine-user-ip"],
        22 => &["x-http-method-override"],
        24 => &["x-original-forwarded-for", "x-envoy-external-address"],
        _ => &[],
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() | (byte == b'-')
}

/// Whether a CGI-like interface takes `name` for `known`.
pub fn is_same(name: &[u8], known: &[u8]) -> bool {
    let fold = |byte: &u8| if is_plain(*byte) { byte.to_ascii_lowercase() } else { b'-' };
    name.len() == known.len() && name.iter().map(fold).eq(known.iter().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Name {
        Name::of(name.as_bytes())
    }

    #[test]
    fn identity_headers_are_known_in_every_spelling() {
        for name in [
            "X-Tollgate-User",
            "x-tollgate-plan",
            "X_Tollgate_User",
            "x_tollgate-User",
            "X.Tollgate.User",
            "X~Tollgate!Plan",
            "X-Tollgate-.",
        ] {
            assert_eq!(of(name), Name::XTollgate, "{name}");
        }
        let long = format!("X.Tollgate-{}", "a".repeat(LONGEST));
        assert_eq!(of(&long), Name::XTollgate);
        for name in [
            "X_Forwarded_For",
            "X~Forwarded~For",
            "X.Forwarded-Host",
            "x_forwarded_proto",
            "X-Forwarded-User",
            "x-forwarded.email",
            "X-Forwarded-Client-Cert",
            "X_Real_IP",
            "remote_user",
            "X.HTTP.Method.Override",
            "x-auth-request-user",
            "Accept_Encoding",
            "Content.Length",
            "Transfer_Encoding",
            "Proxy_Authorization",
            "Content_Type",
        ] {
            assert_eq!(of(name), Name::Claim, "{name}");
        }
        for (name, known) in [
            ("my_header", Name::Other),
            ("x-forwardedness", Name::Other),
            ("x-real-ips", Name::Other),
            ("idempotency_key", Name::Other),
            ("X.Request.Id", Name::XRequestId),
            ("X_API_Key", Name::XApiKey),
            ("X-Forwarded-For", Name::XForwardedFor),
            ("X-Forwarded-Port", Name::XForwardedPlace),
            ("x-ratelimit-remaining-requests", Name::XRateLimitRequests),
            ("X-RateLimit-Limit-Requests", Name::XRateLimitRequests),
            ("X_RATELIMIT_RESET_REQUESTS", Name::XRateLimitRequests),
            ("x-ratelimit-remaining-tokens", Name::Other),
        ] {
            assert_eq!(of(name), known, "{name}");
        }
    }

    #[test]
    fn every_claim_is_found_by_its_length() {
        let mut found = 0;
        for len in 0..LONGEST {
            for claim in claims(len) {
                assert_eq!((claim.len(), of(claim)), (len, Name::Claim), "{claim}");
                assert_eq!(of(&claim.to_ascii_uppercase().replace('-', "_")), Name::Claim, "{claim}");
                found += 1;
            }
        }
        assert!(found > 25);
    }

    #[test]
    fn a_cgi_takes_one_name_for_another() {
        assert!(is_same(b"X_Goog.Api~Key", b"x-goog-api-key") && !is_same(b"x-goog-api-key", b"x-goog-api-keys"));
        assert!(!is_same(b"x1goog", b"x-goog"));
    }
}

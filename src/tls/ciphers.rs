//! Owns: the names of cipher suites, as OpenSSL writes them, and the choice that an operator makes by them.
//! Rule: an unknown name is an error: leaving it out in silence could leave in what was meant to be kept out.
//! Never: knows OpenSSL's groups and operators (`HIGH`, `!aNULL`); rustls has nothing that they would keep out.

use rustls::{CipherSuite, SupportedCipherSuite};

/// Every suite that there is, in rustls' order, by the name that OpenSSL has for it.
const NAMES: &[(CipherSuite, &str)] = &[
    (CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
    (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "ECDHE-RSA-AES256-GCM-SHA384"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "ECDHE-RSA-AES128-GCM-SHA256"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, "ECDHE-RSA-CHACHA20-POLY1305"),
];

pub fn name(suite: CipherSuite) -> &'static str {
    NAMES.iter().find(|(known, _)| *known == suite).map_or("", |(_, name)| name)
}

/// Those of all suites that there are.
pub fn names() -> Vec<&'static str> {
    NAMES.iter().map(|(_, name)| *name).collect()
}

fn is_tls13(suite: &SupportedCipherSuite) -> bool {
    matches!(suite, SupportedCipherSuite::Tls13(_))
}

pub fn has_tls12(suites: &[SupportedCipherSuite]) -> bool {
    !suites.iter().all(is_tls13)
}

/// The suites of a list like `ECDHE-RSA-AES128-GCM-SHA256:TLS_AES_128_GCM_SHA256`, in its order. As with OpenSSL, a list
/// of names for TLS 1.2 leaves those of TLS 1.3 as they are.
///
/// Errors: the predicate of a sentence.
pub fn choose(list: &str, all: &[SupportedCipherSuite]) -> Result<Vec<SupportedCipherSuite>, String> {
    let words = list.split([':', ',', ' ']).filter(|word| !word.is_empty());
    let found: Result<Vec<_>, _> = words.map(|word| find(word, all)).collect();
    let mut chosen = found?;
    if !chosen.iter().any(is_tls13) {
        chosen.extend(all.iter().filter(|suite| is_tls13(suite)));
    }
    Ok(chosen)
}

fn find(word: &str, all: &[SupportedCipherSuite]) -> Result<SupportedCipherSuite, String> {
    let found = all.iter().find(|suite| name(suite.suite()).eq_ignore_ascii_case(word));
    found.copied().ok_or_else(|| {
        let names: Vec<_> = all.iter().map(|suite| name(suite.suite())).collect();
        format!("'{}' is not one of: {}", word.escape_debug(), names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::ring::ALL_CIPHER_SUITES;

    fn names(list: &str) -> Vec<&'static str> {
        choose(list, ALL_CIPHER_SUITES).unwrap().iter().map(|suite| name(suite.suite())).collect()
    }

    #[test]
    fn every_suite_has_a_name() {
        for suite in ALL_CIPHER_SUITES {
            assert_ne!(name(suite.suite()), "", "{suite:?}");
        }
    }

    #[test]
    fn a_list_is_taken_in_its_order() {
        let list = "tls_aes_128_gcm_sha256:ECDHE-RSA-CHACHA20-POLY1305, ECDHE-RSA-AES128-GCM-SHA256";
        let chosen = ["TLS_AES_128_GCM_SHA256", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-RSA-AES128-GCM-SHA256"];
        assert_eq!(names(list), chosen);
    }

    #[test]
    fn names_for_tls_1_2_leave_tls_1_3_alone() {
        let chosen = names("ECDHE-RSA-AES128-GCM-SHA256");
        assert_eq!(chosen.len(), 4);
        assert!(chosen[1..].iter().all(|name| name.starts_with("TLS_")), "{chosen:?}");
    }

    #[test]
    fn names_for_tls_1_3_alone_end_tls_1_2() {
        assert!(!has_tls12(&choose("TLS_AES_256_GCM_SHA384", ALL_CIPHER_SUITES).unwrap()));
        assert!(has_tls12(ALL_CIPHER_SUITES));
    }

    #[test]
    fn an_unknown_name_is_refused_with_what_there_is() {
        let why = choose("HIGH:!aNULL", ALL_CIPHER_SUITES).unwrap_err();
        assert!(why.starts_with("'HIGH' is not one of: TLS_AES_256_GCM_SHA384, "), "{why}");
    }
}

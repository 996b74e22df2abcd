//! What a handshake agreed, as the rest of the server sees it.

use portcullis_conn::{TlsInfo, TlsVersion};
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion, server::ServerConnection};

/// What a completed server handshake agreed.
pub fn tls_info(connection: &ServerConnection) -> TlsInfo {
    let mut info = TlsInfo::default();
    info.server_name = connection.server_name().map(str::to_ascii_lowercase);
    info.alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
    info.version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => Some(TlsVersion::Tls12),
        Some(ProtocolVersion::TLSv1_3) => Some(TlsVersion::Tls13),
        _ => None,
    };
    info.group = connection.negotiated_key_exchange_group().and_then(|group| group_name(group.name()));
    info.cipher_suite = connection.negotiated_cipher_suite().and_then(|suite| suite_name(suite.suite()));
    info.resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    info.peer_chain = connection
        .peer_certificates()
        .map(|chain| chain.iter().map(|cert| cert.clone().into_owned()).collect())
        .unwrap_or_default();
    info
}

/// Names from IANA's registry of TLS supported groups.
fn group_name(group: NamedGroup) -> Option<&'static str> {
    Some(match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::secp256r1MLKEM768 => "SecP256r1MLKEM768",
        NamedGroup::MLKEM768 => "MLKEM768",
        NamedGroup::X25519 => "x25519",
        NamedGroup::secp256r1 => "secp256r1",
        NamedGroup::secp384r1 => "secp384r1",
        NamedGroup::secp521r1 => "secp521r1",
        _ => return None,
    })
}

/// Names from IANA's registry of TLS cipher suites.
fn suite_name(suite: CipherSuite) -> Option<&'static str> {
    Some(match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => {
            "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
        }
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => {
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_can_be_agreed_has_a_name() {
        let provider = crate::pair::provider();
        for suite in &provider.cipher_suites {
            assert!(suite_name(suite.suite()).is_some(), "{suite:?}");
        }
        for group in &provider.kx_groups {
            assert!(group_name(group.name()).is_some(), "{group:?}");
        }
        assert_eq!(provider.kx_groups[0].name(), NamedGroup::X25519MLKEM768, "post-quantum first");
    }
}

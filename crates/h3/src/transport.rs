//! From options to the QUIC stack's configuration. The one place where that comes from: one that is put together elsewhere would fall back to
//! the stack's defaults, which bound little.

use std::sync::Arc;

use quinn::{
    EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig, ValidationTokenConfig,
    VarInt, congestion, crypto::rustls::QuicServerConfig,
};

use crate::{
    Congestion, ConnLimits, EndpointError, QuicKeys, QuicOptions, WorkerId, cid::WorkerIds,
    options::CRYPTO_BUFFER,
};

/// What lasts as long as the endpoint.
pub(crate) fn endpoint_config(
    tls: &rustls::ServerConfig,
    options: &QuicOptions,
    worker: WorkerId,
    keys: QuicKeys,
) -> Result<EndpointConfig, EndpointError> {
    let mut config = EndpointConfig::new(Arc::new(keys));
    let (ids, provider) = (options.connection_ids.clone(), tls.crypto_provider().clone());
    config.cid_generator(move || Box::new(WorkerIds::new(worker, ids.clone(), provider.clone())));
    config.max_udp_payload_size(options.max_udp_payload.max(1472)).map_err(|_| EndpointError::Option {
        option: "max_udp_payload",
        reason: "what a datagram can carry",
    })?;
    Ok(config)
}

/// What new connections get.
pub(crate) fn server_config(
    tls: Arc<rustls::ServerConfig>,
    options: &QuicOptions,
    keys: QuicKeys,
    limits: &ConnLimits,
) -> Result<ServerConfig, EndpointError> {
    options.check()?;
    if !tls.alpn_protocols.iter().any(|protocol| protocol == b"h3") {
        return Err(EndpointError::Alpn);
    }
    // RFC 9001 section 4.6.1
    if !matches!(tls.max_early_data_size, 0 | u32::MAX) {
        return Err(EndpointError::EarlyData);
    }
    // quinn makes a session like this for each connection and takes for granted that it can
    rustls::quic::ServerConnection::new(tls.clone(), rustls::quic::Version::V1, Vec::new())
        .map_err(|error| EndpointError::Tls(error.into()))?;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| EndpointError::Tls(error.into()))?;

    let mut tokens = ValidationTokenConfig::default();
    tokens.log(limits.used_tokens());
    tokens.lifetime(options.token_lifetime);
    if options.token_lifetime.is_zero() {
        tokens.sent(0);
    }
    let mut server = ServerConfig::new(Arc::new(crypto), Arc::new(keys));
    server
        .validation_token_config(tokens)
        .transport_config(Arc::new(transport_config(options)?))
        .migration(options.migration)
        .max_incoming(options.max_incoming)
        .incoming_buffer_size(options.incoming_buffer_size)
        .incoming_buffer_size_total(options.incoming_buffer_total);
    Ok(server)
}

/// What one connection gets.
pub(crate) fn transport_config(options: &QuicOptions) -> Result<TransportConfig, EndpointError> {
    let idle = IdleTimeout::try_from(options.max_idle_timeout)
        .map_err(|_| EndpointError::Option { option: "max_idle_timeout", reason: "less than 2^62 ms" })?;
    let datagrams = options.datagrams.then_some(options.datagram_buffer);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(options.max_bidi_streams))
        .max_concurrent_uni_streams(VarInt::from_u32(options.max_uni_streams))
        .stream_receive_window(VarInt::from_u32(options.stream_window))
        .receive_window(VarInt::from_u32(options.connection_window))
        .send_window(options.send_window)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(options.keep_alive)
        .crypto_buffer_size(CRYPTO_BUFFER)
        .datagram_receive_buffer_size(datagrams)
        .datagram_send_buffer_size(datagrams.unwrap_or(0))
        .enable_segmentation_offload(options.segmentation_offload)
        .min_mtu(options.min_mtu)
        .initial_mtu(options.initial_mtu)
        .mtu_discovery_config(options.mtu_discovery.then(|| {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(options.max_udp_payload);
            discovery
        }))
        .congestion_controller_factory(controller(options.congestion, options.initial_congestion_window));
    Ok(transport)
}

fn controller(
    of: Congestion,
    initial_window: Option<u64>,
) -> Arc<dyn congestion::ControllerFactory + Send + Sync + 'static> {
    match of {
        Congestion::Cubic => {
            let mut config = congestion::CubicConfig::default();
            if let Some(window) = initial_window {
                config.initial_window(window);
            }
            Arc::new(config)
        }
        Congestion::NewReno => {
            let mut config = congestion::NewRenoConfig::default();
            if let Some(window) = initial_window {
                config.initial_window(window);
            }
            Arc::new(config)
        }
        Congestion::Bbr => {
            let mut config = congestion::BbrConfig::default();
            if let Some(window) = initial_window {
                config.initial_window(window);
            }
            Arc::new(config)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_controller_is_the_one_that_was_asked_for() {
        let built = |of| controller(of, Some(50_000)).build(Instant::now(), 1200);
        for of in [Congestion::Cubic, Congestion::NewReno, Congestion::Bbr] {
            let built = built(of);
            assert_eq!(built.initial_window(), 50_000, "{of:?}");
            let any = built.into_any();
            let found = [
                (any.is::<congestion::Cubic>(), Congestion::Cubic),
                (any.is::<congestion::NewReno>(), Congestion::NewReno),
                (any.is::<congestion::Bbr>(), Congestion::Bbr),
            ];
            assert_eq!(found.into_iter().find(|(is, _)| *is).map(|(_, of)| of), Some(of));
        }
    }

    #[test]
    fn datagrams_are_off_until_asked_for() {
        let shown = |options| format!("{:?}", transport_config(&options).unwrap());
        let off = shown(QuicOptions::default());
        assert!(
            off.contains("datagram_receive_buffer_size: None")
                && off.contains("datagram_send_buffer_size: 0"),
            "{off}"
        );
        let on = shown(QuicOptions::default().with_datagrams(true).with_datagram_buffer(5000));
        assert!(
            on.contains("datagram_receive_buffer_size: Some(5000)")
                && on.contains("datagram_send_buffer_size: 5000"),
            "{on}"
        );
    }
}

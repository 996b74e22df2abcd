use portcullis_conn::{ConnInfo, FirstBytes, Transport};
use portcullis_proxy_protocol::tlv;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use super::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

fn options() -> ProxyProtocolOptions {
    ProxyProtocolOptions::default().with_trusted(["127.0.0.0/8".parse().unwrap()])
}

fn v2() -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = Header::proxy("192.0.2.1:56324".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
    header.with_tlv(tlv::AUTHORITY, *b"a.example").encode_v2(&mut bytes).unwrap();
    bytes
}

const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n";

async fn pair() -> (TcpStream, Conn<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (io, peer) = listener.accept().await.unwrap();
    let info = ConnInfo::new(Transport::Tcp, peer, io.local_addr().unwrap());
    (client, Conn::new(io, info))
}

async fn rest(conn: &mut Conn<TcpStream>, len: usize) -> Vec<u8> {
    let mut rest = vec![0; len];
    conn.io.read_exact(&mut rest).await.unwrap();
    rest
}

#[tokio::test]
async fn the_addresses_become_the_clients_and_the_rest_stays_in_the_stream() {
    for header in [V1.to_vec(), v2()] {
        let (mut client, mut conn) = pair().await;
        let (balancer, edge) = (conn.info.peer, conn.info.local);
        client.write_all(&[&header, REQUEST].concat()).await.unwrap();
        read_proxy_header(&mut conn, &options()).await.unwrap();
        assert_eq!(conn.info.peer.to_string(), "192.0.2.1:56324");
        assert_eq!(conn.info.local.to_string(), "198.51.100.1:443");
        let said = conn.info.proxied.clone().unwrap();
        assert_eq!((said.proxy, said.local), (balancer, edge));
        let authority = (header != V1).then_some(&b"a.example"[..]);
        assert_eq!(said.tlv(tlv::AUTHORITY), authority);
        // what follows is told as if there had been no header
        assert_eq!(crate::sniff(&mut conn, Duration::from_secs(5)).await.unwrap(), FirstBytes::Http1);
        assert_eq!(rest(&mut conn, REQUEST.len()).await, REQUEST);
    }
}

#[tokio::test]
async fn byte_by_byte() {
    for header in [V1.to_vec(), v2()] {
        let (mut client, mut conn) = pair().await;
        let sender = tokio::spawn(async move {
            for byte in header.iter().chain(REQUEST) {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        read_proxy_header(&mut conn, &options()).await.unwrap();
        assert_eq!(conn.info.client_ip().to_string(), "192.0.2.1");
        assert_eq!(rest(&mut conn, REQUEST.len()).await, REQUEST);
        sender.await.unwrap();
    }
}

#[tokio::test]
async fn strangers_are_not_believed() {
    let (mut client, mut conn) = pair().await;
    client.write_all(V1).await.unwrap();
    let others = ProxyProtocolOptions::default().with_trusted(["10.0.0.0/8".parse().unwrap()]);
    let before = conn.info.peer;
    for options in [ProxyProtocolOptions::default(), others] {
        read_proxy_header(&mut conn, &options).await.unwrap();
    }
    assert!(conn.info.peer == before && conn.info.proxied.is_none());
    assert_eq!(rest(&mut conn, V1.len()).await, V1, "it is left where it was");
}

#[tokio::test]
async fn a_proxy_that_speaks_for_itself_keeps_its_address() {
    let mut local = Vec::new();
    Header::local().encode_v2(&mut local).unwrap();
    let mut unix = Vec::new();
    let names = Addresses::Unix { source: b"/a"[..].into(), destination: b"/b"[..].into() };
    Header::new(portcullis_proxy_protocol::Version::V2, Command::Proxy, names).encode_v2(&mut unix).unwrap();
    for header in [local, unix, b"PROXY UNKNOWN\r\n".to_vec()] {
        let (mut client, mut conn) = pair().await;
        let before = (conn.info.peer, conn.info.local);
        client.write_all(&[&header, REQUEST].concat()).await.unwrap();
        read_proxy_header(&mut conn, &options()).await.unwrap();
        assert_eq!((conn.info.peer, conn.info.local), before);
        assert!(conn.info.proxied.is_some());
        assert_eq!(rest(&mut conn, REQUEST.len()).await, REQUEST);
    }
}

#[tokio::test]
async fn what_is_no_header_is_an_error_unless_it_may_be_missing() {
    let (mut client, mut conn) = pair().await;
    client.write_all(REQUEST).await.unwrap();
    let error = read_proxy_header(&mut conn, &options()).await.unwrap_err();
    assert!(matches!(error, ProxyProtocolError::Invalid { source: ParseError::NoSignature, .. }), "{error}");
    let optional = options().with_presence(Presence::Optional);
    read_proxy_header(&mut conn, &optional).await.unwrap();
    assert!(conn.info.proxied.is_none());
    assert_eq!(rest(&mut conn, REQUEST.len()).await, REQUEST);

    // a header that begins as one and is none is an error either way
    let (mut client, mut conn) = pair().await;
    client.write_all(b"PROXY TCP9 ").await.unwrap();
    let error = read_proxy_header(&mut conn, &optional).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1") && !error.is_timeout(), "{error}");
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("protocol at byte 6"));

    let (mut client, mut conn) = pair().await;
    client.write_all(&V1[..20]).await.unwrap();
    drop(client);
    let error = read_proxy_header(&mut conn, &options()).await.unwrap_err();
    assert!(matches!(error, ProxyProtocolError::Closed { .. }), "{error}");
}

#[tokio::test]
async fn a_long_one_is_refused_before_it_is_there() {
    let (mut client, mut conn) = pair().await;
    client.write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\x00").await.unwrap();
    let error = read_proxy_header(&mut conn, &options()).await.unwrap_err();
    assert!(matches!(
        error,
        ProxyProtocolError::Invalid { source: ParseError::TooLong { len: 4112, max: 4096 }, .. }
    ));

    // one as long as can be is read where it is allowed, past what a first look takes
    let mut bytes = Vec::new();
    let header = Header::proxy("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
    header.with_tlv(0xea, vec![7; 60_000]).encode_v2(&mut bytes).unwrap();
    let (mut client, mut conn) = pair().await;
    let sender = tokio::spawn(async move {
        client.write_all(&bytes).await.unwrap();
        client.write_all(REQUEST).await.unwrap();
        client
    });
    read_proxy_header(&mut conn, &options().with_max_len(MOST)).await.unwrap();
    assert_eq!(conn.info.proxied.clone().unwrap().tlv(0xea).map(<[u8]>::len), Some(60_000));
    assert_eq!(rest(&mut conn, REQUEST.len()).await, REQUEST);
    sender.await.unwrap();
}

#[tokio::test]
async fn silence_has_a_deadline() {
    let (mut client, mut conn) = pair().await;
    client.write_all(&V1[..20]).await.unwrap();
    let options = options().with_timeout(Duration::from_millis(50));
    let error = read_proxy_header(&mut conn, &options).await.unwrap_err();
    assert!(error.is_timeout() && error.to_string().contains("within 50ms"), "{error}");
}

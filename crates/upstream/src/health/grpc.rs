//! The health service of gRPC, `grpc.health.v1.Health/Check`, with its two messages written and read by hand.

use bytes::{Buf, Bytes};
use h2::RecvStream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::PathAndQuery};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};

use super::{
    CheckError, GrpcCheck,
    probe::{USER_AGENT, authority},
};
use crate::Endpoint;

/// The most of an answer that is read; the message itself has two bytes.
const MAX_ANSWER: usize = 1024;

pub(super) async fn run<Io>(check: &GrpcCheck, endpoint: &Endpoint, io: Io) -> Result<(), CheckError>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        h2::client::Builder::new().max_header_list_size(16 * 1024).enable_push(false).handshake(io).await?;
    // ends with this function, however it ends
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let mut sender = sender.ready().await?;
    let authority = check.authority.as_deref().map_or_else(|| authority(endpoint), Into::into);
    let request = request(&authority)?;
    let (response, mut stream) = sender.send_request(request, false)?;
    stream.send_data(encode(&check.service), true)?;
    let (head, body) = response.await?.into_parts();
    answer(Response::from_parts(head, ()), body).await
}

fn request(authority: &str) -> Result<Request<()>, CheckError> {
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(PathAndQuery::from_static("/grpc.health.v1.Health/Check"))
        .build()
        .map_err(|_| CheckError::Grpc("the authority is none"))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(header::USER_AGENT, USER_AGENT);
    Ok(request)
}

async fn answer(head: Response<()>, mut body: RecvStream) -> Result<(), CheckError> {
    if head.status() != StatusCode::OK {
        return Err(CheckError::Status(head.status().as_u16()));
    }
    let kind = head.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    if !kind.starts_with(b"application/grpc") {
        return Err(CheckError::Grpc("the content type is not application/grpc"));
    }
    // an error may come in the head alone
    if head.headers().contains_key("grpc-status") {
        grpc_status(head.headers())?;
    }
    let mut message = Vec::new();
    while let Some(data) = body.data().await.transpose()? {
        if message.len() + data.len() > MAX_ANSWER {
            return Err(CheckError::Grpc("the message is too long"));
        }
        message.extend_from_slice(&data);
        // its window is far above the bound: nothing need be given back
    }
    let trailers = body.trailers().await?.ok_or(CheckError::Grpc("there are no trailers"))?;
    grpc_status(&trailers)?;
    match decode(&message)? {
        1 => Ok(()),
        0 => Err(CheckError::NotServing("UNKNOWN")),
        2 => Err(CheckError::NotServing("NOT_SERVING")),
        3 => Err(CheckError::NotServing("SERVICE_UNKNOWN")),
        _ => Err(CheckError::NotServing("one of a later version")),
    }
}

fn grpc_status(fields: &HeaderMap) -> Result<(), CheckError> {
    match fields.get("grpc-status").map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        Some(status) => {
            // 16 codes, of two digits at most
            let status = &status[..status.len().min(8)];
            Err(CheckError::GrpcStatus(String::from_utf8_lossy(status).into_owned()))
        }
        None => Err(CheckError::Grpc("there is no grpc-status")),
    }
}

/// A frame with `HealthCheckRequest { service = 1 }`.
fn encode(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push((length & 0x7f) as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).expect("a service's name has 1024 bytes at most");
    let mut frame = vec![0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&message);
    frame.into()
}

/// The status of a frame with `HealthCheckResponse { status = 1 }`; fields of later versions are passed over.
fn decode(frame: &[u8]) -> Result<u64, CheckError> {
    const BROKEN: CheckError = CheckError::Grpc("the message is broken");
    let (prefix, mut message) = frame.split_at_checked(5).ok_or(BROKEN)?;
    if prefix[0] != 0 {
        return Err(CheckError::Grpc("the message is compressed"));
    }
    if usize::try_from(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]])) != Ok(message.len())
    {
        return Err(BROKEN);
    }
    // what is not there is 0
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message).ok_or(BROKEN)?;
        match tag & 7 {
            0 => {
                let value = varint(&mut message).ok_or(BROKEN)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            kind @ (1 | 2 | 5) => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    _ => varint(&mut message).ok_or(BROKEN)?,
                };
                let length = usize::try_from(length).map_err(|_| BROKEN)?;
                message = message.get(length..).ok_or(BROKEN)?;
            }
            _ => return Err(BROKEN),
        }
    }
    Ok(status)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = message.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests() {
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&encode(&"x".repeat(300))[..9], [0, 0, 0, 1, 47, 0x0a, 0xac, 2, b'x']);
    }

    #[test]
    fn responses() {
        for (frame, status) in [
            (&[0, 0, 0, 0, 0][..], Some(0)),
            (&[0, 0, 0, 0, 2, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            // a string, a fixed 32 and a fixed 64 of a later version
            (&[0, 0, 0, 0, 5, 0x12, 1, 9, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 7, 0x1d, 1, 2, 3, 4, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 11, 0x19, 1, 2, 3, 4, 5, 6, 7, 8, 8, 1], Some(1)),
            (&[], None),
            (&[0, 0, 0, 0], None),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 3, 8, 1], None),
            (&[0, 0, 0, 0, 1, 8, 1], None),
            (&[0, 0, 0, 0, 1, 8], None),
            (&[0, 0, 0, 0, 2, 8, 0x80], None),
            (&[0, 0, 0, 0, 2, 0x0b, 1], None),
            (&[0, 0, 0, 0, 2, 0x12, 9], None),
            (&[0, 0, 0, 0, 11, 8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255], None),
        ] {
            assert_eq!(decode(frame).ok(), status, "{frame:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(frame: Vec<u8>) {
            let _ = decode(&frame);
            let mut framed = vec![0, 0, 0, 0, frame.len() as u8];
            framed.extend_from_slice(&frame);
            let _ = decode(&framed);
        }
    }
}

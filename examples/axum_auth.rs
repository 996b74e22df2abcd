//! `portcullis-middleware`'s ways in for an axum app: a name and a password for one route, a signed token for another.
#![allow(clippy::print_stdout)]

use axum::{Extension, Router, routing::get};
use portcullis_middleware::{
    basic_auth::{BasicAuthLayer, BasicAuthOptions, UserStore, Users, hash_password},
    identity::Authenticated,
    jwt::{Algorithm, JwtLayer, JwtOptions, KeySet, Keys},
};

async fn hello(Extension(who): Extension<Authenticated>) -> String {
    format!("hello, {}\n", who.user)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // a file's text would do as well, and `users.replace` when it changes; `portcullis hash-password` makes its hashes
    let users = UserStore::new(Users::parse(&format!("alice:{}", hash_password(b"open sesame")?))?);
    let basic = BasicAuthLayer::new(&BasicAuthOptions::default(), users);

    // a secret that issuer and service share; `Keys::from_jwks` and `from_pem` take public keys
    let keys = KeySet::new(Keys::from_secret(b"a secret that has thirty-two bytes")?);
    let tokens = JwtOptions::new([Algorithm::Hs256]).with_issuer("https://issuer.example");
    let jwt = JwtLayer::new(&tokens, keys)?;

    let app = Router::new().route("/", get(hello).layer(basic)).route("/api", get(hello).layer(jwt));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7006").await?;
    println!("curl -u 'alice:open sesame' http://{}/", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

//! The model of the API server for whoever compares it with a real one: a request a line, and an answer a line.
//!
//! A request is `{"method", "path", "contentType", "body"}`; its answer is `{"code", "body"}`, the
//! body as text. The method `COLLECT` lets the garbage collector do all that it has to: its answer
//! is `{"collected"}`, how often it did something.

use std::io::{self, BufRead as _, Write as _};

use ebbtide_operator_sim::lives::within;
use ebbtide_operator_sim::server::Server;
use ebbtide_operator_sim::store::Store;
use http::Request;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

fn main() -> io::Result<()> {
    within(|| async {
        let (server, _crashed) = Server::new(Vec::new());
        let client = server.client(0);
        for line in io::stdin().lock().lines() {
            let asked: Value = serde_json::from_str(&line?)?;
            let answered = if asked["method"] == "COLLECT" {
                json!({ "collected": collect(&server) })
            } else {
                answer(&client, &asked).await?
            };
            writeln!(io::stdout(), "{answered}")?;
            io::stdout().flush()?;
        }
        Ok(())
    })
}

fn collect(server: &Server) -> usize {
    std::iter::repeat_with(|| server.change(Store::collect_garbage)).take_while(|it| *it).count()
}

async fn answer(client: &kube::Client, asked: &Value) -> io::Result<Value> {
    let text = |name: &str| asked[name].as_str().unwrap_or_default();
    let request = Request::builder()
        .method(text("method"))
        .uri(text("path"))
        .header(http::header::CONTENT_TYPE, text("contentType"))
        .body(Body::from(asked["body"].to_string().into_bytes()))
        .map_err(io::Error::other)?;
    let response = client.send(request).await.map_err(io::Error::other)?;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    Ok(json!({ "code": code, "body": String::from_utf8_lossy(&body) }))
}

//! Proxies: the requests they receive, the data they see, and their errors.

use std::sync::Arc;

use super::tls::Authority;
use super::*;
use crate::secret::Secret;

fn through(proxy: &str, settings: Settings) -> Settings {
    let proxy = ProxySettings { url: Secret::new(proxy), no_proxy: Vec::new() };
    Settings { proxy: Some(proxy), ..settings }
}

fn with_user(url: &str, scheme: &str) -> String {
    url.replace("http://", &format!("{scheme}://us%40er:pa%3Ass@"))
}

/// Copies bytes between two connections until either ends.
async fn splice(mut one: TcpStream, url: &str) {
    let mut other = TcpStream::connect(url.rsplit('/').next().unwrap()).await.unwrap();
    let _ = tokio::io::copy_bidirectional(&mut one, &mut other).await;
}

#[tokio::test]
async fn a_forwarding_proxy_is_shown_the_whole_url_and_its_own_credentials() {
    let (proxy, mut received) = answering(http("200 OK", "", "{}")).await;
    let settings = through(&with_user(&proxy, "http"), settings("http://cp.invalid:8080/base"));
    let client = Client::new(settings).unwrap();
    assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, 200);
    let request = received.recv().await.unwrap();
    let line = "POST http://cp.invalid:8080/base/api/v1/sessions/s/usage-records HTTP/1.1";
    assert_eq!(request.line(), line);
    assert_eq!(request.header("host"), Some("cp.invalid:8080"));
    assert_eq!(request.header("proxy-authorization"), Some("Basic dXNAZXI6cGE6c3M="));
    let shown = client.proxy().unwrap();
    assert!(shown.contains("127.0.0.1") && !format!("{shown}{client:?}").contains("pa"), "{shown}");
}

#[tokio::test]
async fn https_goes_through_a_tunnel_and_the_proxy_sees_nothing_of_it() {
    let authority = Authority::new();
    let host = Authority::serve(&authority.good(), None).await;
    let target = Arc::new(host.clone());
    let (sender, mut tunnels) = tokio::sync::mpsc::unbounded_channel();
    let proxy = peer(move |mut stream| {
        let (sender, target) = (sender.clone(), Arc::clone(&target));
        async move {
            let request = receive(&mut stream).await.unwrap();
            sender.send(request).unwrap();
            stream.write_all(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await.unwrap();
            splice(stream, &target).await;
        }
    })
    .await;
    let client = Client::new(through(&with_user(&proxy, "http"), authority.settings(&host))).unwrap();
    for _ in 0..3 {
        assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, 200);
    }
    let request = tunnels.recv().await.unwrap();
    let address = host.strip_prefix("https://").unwrap();
    assert_eq!(request.line(), format!("CONNECT {address} HTTP/1.1"));
    assert_eq!(request.header("proxy-authorization"), Some("Basic dXNAZXI6cGE6c3M="));
    assert!(request.header("x-api-key").is_none());
    assert!(tunnels.try_recv().is_err(), "one tunnel serves all requests");
}

#[tokio::test]
async fn a_proxy_that_gives_no_tunnel_is_no_connection_and_its_page_is_no_answer() {
    let authority = Authority::new();
    for (answer, part) in [
        (http("407 Proxy Authentication Required", "", "<html>"), "407"),
        (http("502 Bad Gateway", "", "<html>"), "502"),
        ("SSH-2.0-OpenSSH_9\r\n\r\n".to_owned(), "HTTP"),
        (format!("HTTP/1.1 200 OK\r\nX-Long: {}", "x".repeat(20_000)), "too long"),
        (String::new(), "proxy"),
    ] {
        let answer = Arc::new(answer);
        let proxy = peer(move |mut stream| {
            let answer = Arc::clone(&answer);
            async move {
                receive(&mut stream).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        })
        .await;
        let client = Client::new(through(&proxy, authority.settings("https://127.0.0.1:9"))).unwrap();
        let failure = client.deliver(delivery("s")).await.result.unwrap_err();
        assert!(matches!(&failure, Failure::Unreachable(why) if why.contains(part)), "{part}: {failure:?}");
    }
}

/// A SOCKS5 proxy that always connects to `target`, and reports the requested destination.
async fn socks(target: String, reply: u8) -> (String, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let target = Arc::new(target);
    let url = peer(move |mut stream| {
        let (sender, target) = (sender.clone(), Arc::clone(&target));
        async move {
            let mut greeting = [0; 2];
            stream.read_exact(&mut greeting).await.unwrap();
            let mut methods = vec![0; greeting[1].into()];
            stream.read_exact(&mut methods).await.unwrap();
            if methods.contains(&2) {
                stream.write_all(&[5, 2]).await.unwrap();
                let mut login = [0; 1 + 1 + 5 + 1 + 5];
                stream.read_exact(&mut login).await.unwrap();
                let _ = sender.send(login.to_vec());
                stream.write_all(&[1, 0]).await.unwrap();
            } else {
                stream.write_all(&[5, 0]).await.unwrap();
            }
            let mut head = [0; 5];
            stream.read_exact(&mut head).await.unwrap();
            let rest = if head[3] == 3 { usize::from(head[4]) + 2 } else { 5 };
            let mut address = vec![0; rest];
            stream.read_exact(&mut address).await.unwrap();
            let _ = sender.send([&head[3..], &address].concat());
            stream.write_all(&[5, reply, 0, 3, 1, b'x', 0, 0]).await.unwrap();
            if reply == 0 {
                splice(stream, &target).await;
            }
        }
    })
    .await;
    (url, receiver)
}

#[tokio::test]
async fn socks_resolves_here_or_there_as_its_scheme_says() {
    let (host, mut received) = answering(http("200 OK", "", "{}")).await;
    let (proxy, mut asked) = socks(host.clone(), 0).await;
    let port = host.rsplit(':').next().unwrap().parse::<u16>().unwrap().to_be_bytes();

    let url = format!("http://cp.invalid:{}", u16::from_be_bytes(port));
    let client = Client::new(through(&with_user(&proxy, "socks5h"), settings(&url))).unwrap();
    assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, 200);
    assert_eq!(asked.recv().await.unwrap(), b"\x01\x05us@er\x05pa:ss");
    assert_eq!(asked.recv().await.unwrap(), [b"\x03\x0acp.invalid", &port[..]].concat());
    let request = received.recv().await.unwrap();
    assert_eq!(request.line(), "POST /api/v1/sessions/s/usage-records HTTP/1.1");
    assert_eq!(request.header("proxy-authorization"), None);

    let client = Client::new(through(&proxy.replace("http", "socks5"), settings(&host))).unwrap();
    assert_eq!(client.deliver(delivery("s")).await.result.unwrap().status, 200);
    assert_eq!(asked.recv().await.unwrap(), [&[1, 127, 0, 0, 1][..], &port].concat());

    let (refusing, _asked) = socks(host.clone(), 5).await;
    let client = Client::new(through(&refusing.replace("http", "socks5h"), settings(&host))).unwrap();
    let failure = client.deliver(delivery("s")).await.result.unwrap_err();
    assert!(
        matches!(&failure, Failure::Unreachable(why) if why.contains("refused its connection")),
        "{failure:?}"
    );
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::new(through(&proxy, settings("http://cp.invalid"))).unwrap();
    let failure = client.deliver(delivery("s")).await.result.unwrap_err();
    assert!(matches!(&failure, Failure::Unreachable(why) if why.contains("refused")), "{failure:?}");
}

//! What a thousand requests a second to the HTTP surface take from the pipeline: the same drain with and without them,
//! in turns, so that both meet the same machine.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::harness::{Agent, RedisServer, Sandbox, until};
use super::process::processor_seconds;
use super::throughput::fill;

const RECORDS: u32 = 300_000;
const TURNS: usize = 3;
/// Together they ask so often; a scraper keeps its connection.
const REQUESTS_A_SECOND: u32 = 1_000;
const CONNECTIONS: u32 = 8;

pub(crate) async fn run() {
    let (mut quiet, mut asked) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        quiet.push(drain(false).await);
        asked.push(drain(true).await);
    }
    println!(
        "surface: {REQUESTS_A_SECOND} requests/s to /metrics and /health (asked: cost < 10 % of the rate):"
    );
    let rate = |runs: &[Run]| {
        let mut rates: Vec<f64> = runs.iter().map(|run| run.rate).collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (without, with) = (rate(&quiet), rate(&asked));
    println!(
        "  {without:.0} records/s without, {with:.0} with: {:.1} % less",
        (1.0 - with / without) * 100.0
    );
    let mean = |of: fn(&Run) -> f64, runs: &[Run]| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
    let answered = mean(|run| run.answered, &asked);
    let each = (mean(|run| run.processor, &asked) - mean(|run| run.processor, &quiet))
        / mean(|run| run.answered * run.seconds, &asked);
    println!("  {answered:.0} requests/s answered, {:.0} µs of the agent's processor time each", each * 1e6);
}

struct Run {
    rate: f64,
    seconds: f64,
    /// Requests answered a second.
    answered: f64,
    processor: f64,
}

async fn drain(scraped: bool) -> Run {
    let (redis, sandbox) = (RedisServer::start().await, Sandbox::start(&[]));
    fill(&redis, "session", RECORDS).await;
    let mut agent = Agent::new(&redis, &sandbox.url);
    agent.set("DELIVERY_MODE", "batch");
    agent.start();
    until("the agent answers", async || agent.get("/health").await).await;
    let processed = async || sandbox.accounts().await.kind("usage", "processed");
    until("it delivers", async || (processed().await > 0).then_some(())).await;
    let (before, begun, used) = (processed().await, Instant::now(), processor_seconds(agent.pid()));
    let scrapers = scraped.then(|| Scrapers::start(&agent));
    until("everything is delivered", async || (processed().await >= u64::from(RECORDS)).then_some(())).await;
    let seconds = begun.elapsed().as_secs_f64();
    let processor = processor_seconds(agent.pid()) - used;
    let answered = scrapers.map_or(0, Scrapers::stop) as f64 / seconds;
    Run { rate: f64::from(RECORDS - before as u32) / seconds, seconds, answered, processor }
}

/// Clients that ask at a steady pace, with as little of the processor as can be.
struct Scrapers {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Scrapers {
    fn start(agent: &Agent) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let address = agent.url("").trim_start_matches("http://").to_owned();
        let threads = (0..CONNECTIONS).map(|n| {
            let (stop, answered, address) = (Arc::clone(&stop), Arc::clone(&answered), address.clone());
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(address).expect("a connection");
                let every = Duration::from_secs(1) * CONNECTIONS / REQUESTS_A_SECOND;
                let mut next = Instant::now() + every * n / CONNECTIONS;
                let mut turn = n;
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += every;
                    turn += 1;
                    ask(&mut stream, if turn.is_multiple_of(2) { "/health" } else { "/metrics" });
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, answered, threads }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("no scraper fails");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

/// One request and all of its answer.
fn ask(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it can be asked");
    let (mut read, mut whole) = (Vec::new(), None);
    let mut part = [0; 16 << 10];
    while whole.is_none_or(|whole| read.len() < whole) {
        let length = stream.read(&mut part).expect("it answers");
        assert!(length > 0, "it hung up");
        read.extend_from_slice(&part[..length]);
        if whole.is_none()
            && let Some(end) = memchr::memmem::find(&read, b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            whole = Some(end + 4 + length.expect("a length").parse::<usize>().expect("a number"));
        }
    }
}

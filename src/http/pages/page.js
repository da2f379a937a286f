// The status page. It follows the agent's event stream and reports when the stream stops. Values from records are inserted
// as text, never as markup.

import { Chart } from "./chart.js";
import { admin } from "./letters.js";

const KINDS = { usage: "Usage", lifecycle: "Session events", quota: "Quota" };
// Milliseconds without an event after which the agent counts as unreachable, and between attempts to reconnect.
const SILENCE = 5000;
const AGAIN = 2000;

const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const decimal = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Writes only changed text, so that a screen reader and a selection keep their position. */
function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

function state(element, value) {
  if (element.dataset.state !== value) element.dataset.state = value;
}

function rate(value) {
  if (value === null) return "–";
  return value >= 100 ? whole.format(value) : decimal.format(value);
}

function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 1) return seconds > 0 ? "<1 s" : "0 s";
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let n = value;
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit += 1;
  }
  return `${unit && n < 100 ? decimal.format(n) : whole.format(n)} ${units[unit]}`;
}

// --- charts ---

const lines = [{ name: "in", style: "in" }, { name: "out", style: "out" }];
const backlog = new Chart($("backlog-chart"), "Records waiting in the outbox", [{ name: "waiting", style: "in" }], "", true);
const charts = {};
const cells = {};
for (const [kind, name] of Object.entries(KINDS)) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  row.append(head);
  cells[kind] = ["Waiting", "Oldest", "In", "Out"].map((column) => {
    const cell = document.createElement("td");
    cell.dataset.head = column;
    cell.textContent = "–";
    row.append(cell);
    return cell;
  });
  const cell = document.createElement("td");
  row.append(cell);
  $("kinds").append(row);
  charts[kind] = new Chart(cell, `${name}, records per second`, lines, "/s");
}

let history = null;

function draw() {
  // There are no points for the time the agent was stopped.
  const gap = history.step_seconds * 3000;
  backlog.set(history.at, [history.depth], gap);
  for (const kind of Object.keys(KINDS)) charts[kind].set(history.at, [history.in[kind], history.out[kind]], gap);
}

/** Adds a point. The agent sends its hour of points once; the page extends it. */
function append(now) {
  const last = history.at.at(-1) ?? 0;
  if (now.at - last < history.step_seconds * 1000) return;
  history.at.push(now.at);
  history.depth.push(now.outbox.depth);
  for (const kind of Object.keys(KINDS)) {
    history.in[kind].push(now.kinds[kind].in_per_second ?? 0);
    history.out[kind].push(now.kinds[kind].out_per_second ?? 0);
  }
  const columns = [history.at, history.depth, ...Object.values(history.in), ...Object.values(history.out)];
  while (now.at - history.at[0] >= 3600_000) columns.forEach((column) => column.shift());
  draw();
}

// --- figures and states ---

function showRedis(now) {
  const depths = Object.values(now.kinds).map((kind) => kind.in_redis);
  text($("redis-depth"), depths.includes(null) ? "–" : whole.format(sum(depths)));
  const { connected, fault } = now.redis;
  text($("redis-note"), fault ?? (connected ? "connected" : "not connected"));
  state($("redis"), connected ? (fault ? "warn" : "good") : "bad");
}

function oldest(now) {
  return Math.max(...Object.values(now.kinds).map((kind) => kind.oldest_age_seconds));
}

function showOutbox(now) {
  const { outbox } = now;
  text($("depth"), whole.format(outbox.depth));
  let note = outbox.depth ? `oldest ${duration(oldest(now))}` : "empty";
  let how = "good";
  if (outbox.quarantined_segments) {
    note = `quarantine: ${outbox.quarantined_segments} damaged segment(s), ${whole.format(outbox.quarantined_records)} known records`;
    how = "warn";
  }
  if (!outbox.accepting) {
    note = `not accepting records: ${outbox.reason}`;
    how = "bad";
  }
  text($("outbox-note"), note);
  state($("outbox"), how);
  const share = outbox.capacity_bytes ? Math.min(100, (outbox.counted_bytes / outbox.capacity_bytes) * 100) : 0;
  const used = `${bytes(outbox.counted_bytes)} of ${bytes(outbox.capacity_bytes)}`;
  $("disk").style.setProperty("--share", `${share.toFixed(1)}%`);
  $("disk").setAttribute("aria-valuenow", share.toFixed(0));
  $("disk").setAttribute("aria-valuetext", used);
  state($("disk"), share > 90 ? "bad" : "good");
  text($("disk-note"), `disk: ${used}`);
}

function showLink(now) {
  const { link } = now;
  const down = link.reason !== null;
  const word = link.paused ? "paused" : link.state;
  const notes = [];
  if (down) notes.push(link.cause ? `${link.meaning} (last answer: ${link.cause})` : link.meaning);
  if (link.next_probe_seconds !== null) notes.push(`next probe in ${duration(link.next_probe_seconds)}`);
  if (link.paused) notes.push("sender paused by an operator");
  if (link.rate_limit) notes.push(`limit: ${whole.format(link.rate_limit)} requests per second`);
  if (link.bandwidth) notes.push(`limit: ${whole.format(link.bandwidth)} bytes per second`);
  if (!notes.length) notes.push(now.registered ? "server registered" : "server not registered yet");
  text($("link-state"), word);
  text($("link-note"), notes.join("; "));
  state($("link"), down ? "bad" : link.paused ? "warn" : link.connected ? "good" : "unknown");
}

/** When the backlog will be gone, or why there is no forecast. */
function outlook(now) {
  const left = now.drained_in_seconds;
  if (left === null) return now.no_forecast;
  return left === 0 ? "no backlog" : `drained in about ${duration(left)}`;
}

function showKinds(now) {
  for (const [kind, row] of Object.entries(cells)) {
    const of = now.kinds[kind];
    const values = [whole.format(of.depth), of.depth ? duration(of.oldest_age_seconds) : "–", rate(of.in_per_second), rate(of.out_per_second)];
    row.forEach((cell, n) => text(cell, values[n]));
  }
  // Either all rates are known or none is.
  const total = (way) => {
    const rates = Object.values(now.kinds).map((kind) => kind[way]);
    return rates.includes(null) ? null : sum(rates);
  };
  text($("rate-in"), rate(total("in_per_second")));
  text($("rate-out"), rate(total("out_per_second")));
  text($("eta"), outlook(now));
}

/** Routes with requests in the last 30 seconds, the busiest first. */
function showRoutes(now) {
  $("no-routes").hidden = now.routes.length > 0;
  const milliseconds = (seconds) => (seconds === null ? "–" : `${whole.format(seconds * 1000)} ms`);
  const rows = now.routes.map((route) => {
    const line = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = route.endpoint.replace("_", " ");
    line.append(head);
    const columns = [
      ["Per second", rate(route.per_second)],
      ["Errors", rate(route.errors_per_second)],
      ["429", rate(route.too_many_per_second)],
      ["Median", milliseconds(route.p50_seconds)],
      ["99 %", milliseconds(route.p99_seconds)],
    ];
    for (const [name, value] of columns) {
      const cell = document.createElement("td");
      cell.dataset.head = name;
      cell.textContent = value;
      line.append(cell);
    }
    return line;
  });
  $("routes").replaceChildren(...rows);
}

function showLetters(now) {
  text($("kept"), whole.format(now.dead_letters));
  const place = $("reasons");
  for (const [reason, count] of Object.entries(now.dead_lettered)) {
    let value = place.querySelector(`[data-reason="${reason}"]`);
    if (!value) {
      const pair = document.createElement("div");
      const name = document.createElement("dt");
      name.textContent = reason.replace("_", " ");
      value = document.createElement("dd");
      value.dataset.reason = reason;
      pair.append(name, value);
      place.append(pair);
    }
    text(value, whole.format(count));
  }
}

let helped = "";

function runbook(concern) {
  const link = document.createElement("a");
  link.href = `runbook#${concern.runbook.toLowerCase()}`;
  link.textContent = "What to do";
  link.title = concern.runbook;
  link.setAttribute("aria-label", `What to do: ${concern.text}`);
  return link;
}

/** Shows each problem with a link to its runbook section, in the header and beside the part it concerns. */
function showConcerns(now) {
  const told = JSON.stringify(now.concerns);
  if (helped === told) return;
  helped = told;
  const reasons = now.concerns.filter((concern) => now.reasons.includes(concern.text));
  $("why").replaceChildren(...reasons.map((concern) => {
    const line = document.createElement("p");
    line.append(concern.text);
    if (concern.runbook) line.append(" – ", runbook(concern));
    return line;
  }));
  for (const place of document.querySelectorAll("[data-help]")) {
    const links = now.concerns.filter((concern) => concern.place === place.dataset.help && concern.runbook).map(runbook);
    place.replaceChildren(...links.flatMap((link, n) => (n ? [" ", link] : [link])));
  }
}

function show(now) {
  text($("server"), now.server_id);
  text($("about"), `${now.region} · version ${now.version} · up ${duration(now.uptime_seconds)}`);
  text($("status"), now.status);
  state($("status"), now.status);
  showConcerns(now);
  delete document.body.dataset.away;
  document.title = `${now.server_id}: ${now.status}`;
  showRedis(now);
  showOutbox(now);
  showLink(now);
  showKinds(now);
  showRoutes(now);
  showLetters(now);
  admin.follow(now);
}

// --- the stream ---

let source = null;
let heard = Date.now();
let since = null;
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

function away() {
  source?.close();
  source = null;
  since ??= clock.format(heard);
  text($("status"), "agent unreachable");
  helped = "";
  text($("why"), "figures are from the last update");
  document.body.dataset.away = "";
  for (const id of ["rate-in", "rate-out", "eta", "redis-depth"]) text($(id), "–");
  for (const row of Object.values(cells)) row.slice(2).forEach((cell) => text(cell, "–"));
  state($("status"), "away");
  text($("stream"), `no update since ${since}; reconnecting`);
  document.title = "agent unreachable";
}

function listen() {
  heard = Date.now();
  source = new EventSource("events");
  source.addEventListener("history", (event) => {
    history = JSON.parse(event.data);
    draw();
  });
  source.addEventListener("now", (event) => {
    heard = Date.now();
    since = null;
    text($("stream"), "live");
    const now = JSON.parse(event.data);
    show(now);
    if (history) append(now);
  });
  source.addEventListener("error", away);
}

listen();
setInterval(() => {
  if (!source) listen();
  else if (Date.now() - heard > SILENCE) away();
}, AGAIN);

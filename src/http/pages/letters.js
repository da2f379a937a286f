// What needs the admin token: dead letters, and orders to the drain. The token stays in this tab's session storage.

const KEY = "dataplane-agent.admin-token";
const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");

/** An answer that is none of the good ones. */
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(method, path, body) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`admin/${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused(0, "The agent does not answer.");
  }
  if (answer.ok) return answer.json();
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) lock("That is not the token.");
  throw new Refused(answer.status, said.error ?? `The agent answered ${answer.status}.`);
}

function say(message) {
  $("message").textContent = message;
}

/** Runs what a button asks for, once at a time, and says what went wrong. */
function on(id, work) {
  $(id).addEventListener("click", async () => {
    $(id).disabled = true;
    try {
      await work();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status !== 401) say(error.message);
    } finally {
      $(id).disabled = false;
    }
  });
}

// --- locked and unlocked ---

// Nothing is known before the agent has said it.
let offered = null;
let pausedNow = false;
let keptNow = 0;

const isOpen = () => offered === true && sessionStorage.getItem(KEY) !== null;

function arrange() {
  $("no-admin").hidden = offered !== false;
  $("unlock").hidden = offered !== true || isOpen();
  $("opened").hidden = !isOpen();
  for (const id of ["pause", "probe", "orders"]) $(id).hidden = !isOpen();
}

function lock(why) {
  sessionStorage.removeItem(KEY);
  $("letter").close();
  $("list").replaceChildren();
  $("order-list").replaceChildren();
  arrange();
  say(why);
  $("token").focus();
}

$("unlock").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("token").value);
  $("token").value = "";
  try {
    await list();
    say("");
    arrange();
    $("reason").focus();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status !== 401) lock(error.message);
  }
});

on("lock", async () => lock("Locked."));

// --- the list ---

let next = null;

function row(letter) {
  const line = document.createElement("tr");
  const columns = [
    ["Number", String(letter.id)],
    ["Reason", letter.reason.replace("_", " ")],
    ["Kind", letter.kind.replace("_", " ")],
    ["Why", letter.detail.length > 120 ? `${letter.detail.slice(0, 120)}…` : letter.detail],
    ["Given up", letter.last_at.replace("T", " ").replace(/\.\d+/, "")],
  ];
  for (const [name, value] of columns) {
    const cell = document.createElement("td");
    cell.dataset.head = name;
    cell.textContent = value;
    line.append(cell);
  }
  const cell = document.createElement("td");
  const look = document.createElement("button");
  look.type = "button";
  look.id = `look-${letter.id}`;
  look.textContent = "Look";
  look.setAttribute("aria-label", `Look into dead letter ${letter.id}`);
  cell.append(look);
  line.append(cell);
  $("list").append(line);
  on(look.id, () => open(letter.id));
}

async function list(from = 0) {
  const reason = $("reason").value;
  const page = await ask("GET", `dead-letters?limit=25&from=${from}${reason ? `&reason=${reason}` : ""}`);
  if (!from) $("list").replaceChildren();
  page.dead_letters.forEach(row);
  next = page.next;
  $("more").hidden = next === null;
  $("none").hidden = $("list").childElementCount > 0;
  await orders();
}

async function quietly(work) {
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status !== 401) say(error.message);
  }
}

$("reason").addEventListener("change", () => quietly(list));
on("reload", () => list());
on("more", () => list(next));

// --- who ordered what ---

function orderRow(order) {
  const line = document.createElement("tr");
  const numbers = order.ids.length ? ` (${order.ids.join(", ")}${order.count > order.ids.length ? ", …" : ""})` : "";
  const done = order.error ?? (order.outcome === "begun" ? "begun; nothing more is known" : `${order.count ?? "done"}${numbers}`);
  const columns = [
    ["When", order.at.replace("T", " ").replace(/\.\d+/, "")],
    ["Who", order.who],
    ["Order", order.order],
    ["Of what", order.detail || "–"],
    ["Done", done],
  ];
  for (const [name, value] of columns) {
    const cell = document.createElement("td");
    cell.dataset.head = name;
    cell.textContent = value;
    line.append(cell);
  }
  return line;
}

async function orders() {
  const page = await ask("GET", "audit?limit=20");
  $("order-list").replaceChildren(...page.orders.map(orderRow));
}

// --- one of them ---

let shown = null;

async function open(id) {
  const letter = await ask("GET", `dead-letters/${id}`);
  shown = letter.id;
  const facts = {
    Reason: letter.reason.replace("_", " "),
    Why: letter.detail,
    Kind: letter.kind.replace("_", " "),
    Attempts: whole.format(letter.attempts),
    Accepted: letter.first_at,
    "Given up": letter.last_at,
    Size: `${whole.format(letter.bytes)} bytes`,
  };
  $("facts").replaceChildren();
  for (const [name, value] of Object.entries(facts)) {
    const term = document.createElement("dt");
    const meaning = document.createElement("dd");
    term.textContent = name;
    meaning.textContent = value;
    $("facts").append(term, meaning);
  }
  const message = letter.original_message;
  $("letter-title").textContent = `Dead letter ${letter.id}`;
  $("original").textContent = typeof message === "string" ? message : `not text, ${message.length} bytes:\n${message.map((byte) => byte.toString(16).padStart(2, "0")).join(" ")}`;
  say("");
  $("letter").showModal();
  $("replay").focus();
}

/** Back to the list, at the place where one was. */
async function done(message) {
  $("letter").close();
  await list();
  say(message);
  ($("list").querySelector("button") ?? $("reload")).focus();
}

on("close", async () => $("letter").close());

on("replay", async () => {
  const outcome = await ask("POST", "dead-letters/replay", { ids: [shown] });
  if (outcome.replayed.length) await done(`Dead letter ${shown} is a record again.`);
  else if (outcome.not_records.length) await done(`Dead letter ${shown} never was a record: correct it, and push it to Redis again.`);
  else await done(`There is no dead letter ${shown} any more.`);
});

on("drop", async () => {
  if (!(await sure(`Dead letter ${shown} will be gone for good.`, "Drop it"))) return;
  const outcome = await ask("POST", "dead-letters/drop", { ids: [shown] });
  await done(outcome.dropped ? `Dead letter ${shown} is dropped.` : `There is no dead letter ${shown} any more.`);
});

/** Asks before what cannot be undone. */
function sure(question, yes) {
  const dialog = $("sure");
  $("sure-text").textContent = question;
  $("sure-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  $("sure-no").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

$("sure-yes").addEventListener("click", () => $("sure").close("yes"));
$("sure-no").addEventListener("click", () => $("sure").close("no"));

// --- all of them ---

function selection() {
  const reason = $("reason").value;
  return reason ? { reason } : { all: true };
}

function which() {
  const reason = $("reason").value;
  const kept = whole.format(keptNow);
  return reason ? `All dead letters with the reason “${reason.replace("_", " ")}”, of ${kept} kept,` : `All ${kept} dead letters`;
}

/** The agent does some hundreds at a time, and says what to ask for next. */
async function each(path, count) {
  let asked = selection();
  while (asked) {
    const outcome = await ask("POST", path, asked);
    count(outcome);
    asked = outcome.next;
  }
}

on("replay-all", async () => {
  if (!(await sure(`${which()} that are records will be sent again.`, "Replay them"))) return;
  let [replayed, left] = [0, 0];
  await each("dead-letters/replay", (outcome) => {
    replayed += outcome.replayed.length;
    left += outcome.not_records.length;
  });
  await list();
  say(`${whole.format(replayed)} replayed${left ? `; ${whole.format(left)} never were records` : ""}.`);
});

on("drop-all", async () => {
  if (!(await sure(`${which()} will be gone for good.`, "Drop them"))) return;
  let dropped = 0;
  await each("dead-letters/drop", (outcome) => {
    dropped += outcome.dropped;
  });
  await list();
  say(`${whole.format(dropped)} dropped.`);
});

// --- orders to the drain ---

on("pause", async () => {
  const drain = await ask("POST", pausedNow ? "drain/resume" : "drain/pause");
  say(drain.paused ? "The drain is paused: records wait." : "The drain sends again.");
  await orders();
});

on("probe", async () => {
  await ask("POST", "drain/probe");
  say("The next probe goes at once.");
  await orders();
});

on("release", async () => {
  await ask("POST", "drain/release-brake");
  say("The brake is released.");
  await orders();
});

export const admin = {
  /** Shows what the agent offers, as it is now. */
  follow(now) {
    pausedNow = now.link.paused;
    keptNow = now.dead_letters;
    const label = pausedNow ? "Resume the drain" : "Pause the drain";
    if ($("pause").textContent !== label) $("pause").textContent = label;
    const braked = isOpen() && now.link.reason === "refusing";
    if ($("release").hidden === braked) $("release").hidden = !braked;
    if (offered !== now.admin) {
      offered = now.admin;
      arrange();
      if (isOpen()) quietly(list);
    }
  },
};

arrange();

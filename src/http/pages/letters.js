// What needs the admin token: dead letters and the sender's controls. The token stays in this tab's session storage.

const KEY = "dataplane-agent.admin-token";
const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");

/** An answer with an error status, or no answer (status 0). */
class Refused extends Error {
  constructor(status, message, body) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

async function ask(method, path, body) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(`admin/${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Refused(0, "No answer from the agent.");
  }
  if (answer.ok) return answer.json();
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) lock("Wrong admin token.");
  throw new Refused(answer.status, said.error ?? `The agent answered ${answer.status}.`, said);
}

function say(message) {
  $("message").textContent = message;
}

/** Runs a button's action, one at a time, and shows its error. */
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
      mark();
    }
  });
}

// --- locked and unlocked ---

// Unknown until the agent's first event.
let offered = null;
let pausedNow = false;

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
  selected.clear();
  pages = [0];
  $("list").replaceChildren();
  mark();
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
    $("find").focus();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status !== 401) lock(error.message);
  }
});

on("lock", async () => lock("Locked."));

// --- the list ---

const ROWS = 50;
// Dead letters per request when listing all, and when replaying or dropping: the agent's limits.
const LISTED = 1000;
const HANDLED = 500;

// The first number of each page up to the one shown, and of the next page.
let pages = [0];
let next = null;
// Counts searches: an answer to an earlier search is ignored.
let round = 0;

// Numbers of the selected dead letters, on all pages.
const selected = new Set();

function query(from, limit) {
  const asked = new URLSearchParams({ from, limit });
  for (const [name, id] of [["reason", "reason"], ["kind", "kind"], ["text", "find"]]) {
    const value = $(id).value.trim();
    if (value) asked.set(name, value);
  }
  return asked;
}

/** Shows how many are selected and enables the buttons that apply. */
function mark() {
  const count = selected.size;
  const told = count ? `${whole.format(count)} selected` : "None selected";
  if ($("selected").textContent !== told) $("selected").textContent = told;
  for (const id of ["select-none", "replay-selected", "drop-selected"]) $(id).disabled = count === 0;
  const boxes = [...$("list").querySelectorAll("input")];
  for (const box of boxes) box.checked = selected.has(Number(box.value));
  const checked = boxes.filter((box) => box.checked).length;
  $("select-page").checked = checked > 0 && checked === boxes.length;
  $("select-page").indeterminate = checked > 0 && checked < boxes.length;
  $("select-page").disabled = boxes.length === 0;
  $("previous").disabled = pages.length === 1;
  $("next").disabled = next === null;
}

function span(value, style) {
  const part = document.createElement("span");
  part.className = style;
  part.textContent = value;
  part.title = value;
  return part;
}

function row(letter) {
  const line = document.createElement("tr");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = String(letter.id);
  box.setAttribute("aria-label", `Select dead letter ${letter.id}`);
  box.addEventListener("change", () => {
    if (box.checked) selected.add(letter.id);
    else selected.delete(letter.id);
    mark();
  });
  const look = document.createElement("button");
  look.type = "button";
  look.textContent = "View";
  look.setAttribute("aria-label", `View dead letter ${letter.id}`);
  look.addEventListener("click", () => quietly(() => open(letter.id)));
  const ids = [letter.api_session_id, letter.transaction_id].filter(Boolean);
  const columns = [
    ["", [box]],
    ["Number", [String(letter.id)]],
    ["Reason, type", [span(letter.reason.replace("_", " "), ""), span(letter.kind.replace("_", " "), "second")]],
    ["Session, transaction", ids.length ? ids.map((id, n) => span(id, n ? "id second" : "id")) : ["–"]],
    ["Detail", [letter.detail.length > 120 ? `${letter.detail.slice(0, 120)}…` : letter.detail], "long"],
    ["Dead since", [letter.last_at.replace("T", " ").replace(/\.\d+/, "")]],
    ["", [look]],
  ];
  for (const [name, content, style] of columns) {
    const cell = document.createElement("td");
    if (name) cell.dataset.head = name;
    if (style) cell.className = style;
    cell.append(...content);
    line.append(cell);
  }
  return line;
}

/** Reloads the current page of the list. */
async function list() {
  const mine = ++round;
  const letters = [];
  let from = pages.at(-1);
  // The agent scans a few thousand per request: with few matches, a page takes several requests.
  while (from !== null && letters.length < ROWS) {
    const answer = await ask("GET", `dead-letters?${query(from, ROWS - letters.length)}`);
    if (mine !== round) return;
    letters.push(...answer.dead_letters);
    from = answer.next;
  }
  // The last page has become empty: show the one before.
  if (!letters.length && pages.length > 1) {
    pages.pop();
    await list();
    return;
  }
  next = from;
  $("list").replaceChildren(...letters.map(row));
  $("none").hidden = letters.length > 0;
  $("page-number").textContent = `Page ${pages.length}`;
  mark();
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

/** A new search starts at its first page with nothing selected, so that no action hits a dead letter that is not shown. */
async function find() {
  pages = [0];
  selected.clear();
  await list();
}

let typed = null;
const soon = () => {
  clearTimeout(typed);
  typed = setTimeout(() => quietly(find), 300);
};
$("find").addEventListener("input", soon);
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typed);
  quietly(find);
});
for (const id of ["reason", "kind"]) $(id).addEventListener("change", () => quietly(find));
on("reload", () => list());
on("next", async () => {
  pages.push(next);
  await list();
  $("select-page").focus();
});
on("previous", async () => {
  pages.pop();
  await list();
  $("select-page").focus();
});

$("select-page").addEventListener("change", () => {
  for (const box of $("list").querySelectorAll("input")) {
    if ($("select-page").checked) selected.add(Number(box.value));
    else selected.delete(Number(box.value));
  }
  mark();
});

on("select-none", async () => {
  selected.clear();
  mark();
  $("select-found").focus();
});

on("select-found", async () => {
  const mine = round;
  selected.clear();
  let from = 0;
  while (from !== null) {
    const answer = await ask("GET", `dead-letters?${query(from, LISTED)}`);
    // A newer search has started.
    if (mine !== round) return;
    for (const letter of answer.dead_letters) selected.add(letter.id);
    from = answer.next;
    mark();
  }
});

// --- operator actions ---

function orderRow(order) {
  const line = document.createElement("tr");
  const numbers = order.ids.length ? ` (${order.ids.join(", ")}${order.count > order.ids.length ? ", …" : ""})` : "";
  const done = order.error ?? (order.outcome === "begun" ? "started; outcome unknown" : `${order.count ?? "done"}${numbers}`);
  const columns = [
    ["When", order.at.replace("T", " ").replace(/\.\d+/, "")],
    ["Who", order.who],
    ["Action", order.order],
    ["Target", order.detail || "–"],
    ["Result", done],
  ];
  for (const [name, value] of columns) {
    const cell = document.createElement("td");
    cell.dataset.head = name;
    cell.textContent = value;
    if (["Who", "Target", "Result"].includes(name)) cell.className = "long";
    line.append(cell);
  }
  return line;
}

async function orders() {
  const page = await ask("GET", "audit?limit=20");
  $("order-list").replaceChildren(...page.orders.map(orderRow));
}

// --- one dead letter ---

let shown = null;

async function open(id) {
  const letter = await ask("GET", `dead-letters/${id}`);
  shown = letter.id;
  const facts = {
    Reason: letter.reason.replace("_", " "),
    Detail: letter.detail,
    "Record type": letter.kind.replace("_", " "),
    Session: letter.api_session_id,
    Transaction: letter.transaction_id,
    "Correlation ID": letter.correlation_id,
    Attempts: whole.format(letter.attempts),
    Accepted: letter.first_at,
    "Dead since": letter.last_at,
    Size: `${whole.format(letter.bytes)} bytes`,
  };
  $("facts").replaceChildren();
  for (const [name, value] of Object.entries(facts).filter(([, value]) => value !== undefined)) {
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

/** Returns to the list, on the same page. */
async function done(message) {
  $("letter").close();
  selected.delete(shown);
  await list();
  say(message);
  ($("list").querySelector("button") ?? $("reload")).focus();
}

on("close", async () => $("letter").close());

on("replay", async () => {
  const outcome = await ask("POST", "dead-letters/replay", { ids: [shown] });
  if (outcome.replayed.length) await done(`Dead letter ${shown} replayed.`);
  else if (outcome.not_records.length) await done(`Dead letter ${shown} is not a valid record. Correct the message and push it to Redis again.`);
  else await done(`Dead letter ${shown} no longer exists.`);
});

on("drop", async () => {
  if (!(await sure(`Delete dead letter ${shown} permanently?`, "Drop"))) return;
  const outcome = await ask("POST", "dead-letters/drop", { ids: [shown] });
  await done(outcome.dropped ? `Dead letter ${shown} dropped.` : `Dead letter ${shown} no longer exists.`);
});

/** Asks for confirmation. Resolves to whether it was given. */
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

// --- the selected dead letters ---

const letters = (count) => `${whole.format(count)} dead letter${count === 1 ? "" : "s"}`;

/** Handles `ids` in chunks and deselects each chunk when it is done. Always shows how far it got. */
async function each(path, ids, count, told) {
  try {
    while (ids.length) {
      const some = ids.splice(0, HANDLED);
      count(await ask("POST", path, { ids: some }));
      for (const id of some) selected.delete(id);
      mark();
      say(`${told()}; ${whole.format(ids.length)} left.`);
    }
    await list();
    say(`${told()}.`);
    ($("list").querySelector("input") ?? $("reload")).focus();
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
    // The error's body lists what was replayed before it.
    if (error.body?.replayed) {
      count(error.body);
      for (const id of error.body.replayed) selected.delete(id);
    }
    await quietly(list);
    say(`${told()}, then failed: ${error.message}`);
  }
}

on("replay-selected", async () => {
  // A copy: the dialog asks about these, whatever is selected while it is open.
  const ids = [...selected];
  const count = ids.length;
  if (!(await sure(`Replay ${letters(count)}? Those that are not valid records are skipped.`, `Replay ${whole.format(count)}`))) return;
  let [replayed, left, unknown] = [0, 0, 0];
  await each("dead-letters/replay", ids, (outcome) => {
    replayed += outcome.replayed.length;
    left += outcome.not_records.length;
    unknown += outcome.unknown.length;
  }, () => {
    const told = [`${whole.format(replayed)} replayed`];
    if (left) told.push(`${whole.format(left)} skipped: not valid records`);
    if (unknown) told.push(`${whole.format(unknown)} no longer exist`);
    return told.join("; ");
  });
});

on("drop-selected", async () => {
  const ids = [...selected];
  const count = ids.length;
  if (!(await sure(`Delete ${letters(count)} permanently?`, `Drop ${whole.format(count)}`))) return;
  let dropped = 0;
  await each("dead-letters/drop", ids, (outcome) => {
    dropped += outcome.dropped;
  }, () => `${whole.format(dropped)} dropped`);
});

// --- the sender's controls ---

on("pause", async () => {
  const drain = await ask("POST", pausedNow ? "drain/resume" : "drain/pause");
  say(drain.paused ? "Sending is paused. Records stay in the outbox." : "Sending has resumed.");
  await orders();
});

on("probe", async () => {
  await ask("POST", "drain/probe");
  say("The next probe is sent now.");
  await orders();
});

on("release", async () => {
  await ask("POST", "drain/release-brake");
  say("The refusal brake is released.");
  await orders();
});

export const admin = {
  /** Follows the agent's state: whether there is an admin API, whether sending is paused or braked. */
  follow(now) {
    pausedNow = now.link.paused;
    const label = pausedNow ? "Resume sending" : "Pause sending";
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

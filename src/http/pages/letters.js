// What needs the admin token: dead letters, and orders to the sender. The token stays in this tab's session storage.

const KEY = "dataplane-agent.admin-token";
const $ = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat("en");

/** An answer that is none of the good ones. */
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
    throw new Refused(0, "The agent does not answer.");
  }
  if (answer.ok) return answer.json();
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) lock("That is not the token.");
  throw new Refused(answer.status, said.error ?? `The agent answered ${answer.status}.`, said);
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
      mark();
    }
  });
}

// --- locked and unlocked ---

// Nothing is known before the agent has said it.
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
// So many are asked for at once where all are looked through, and so many handled at once: what the agent does.
const LISTED = 1000;
const HANDLED = 500;

// Where the pages begin, up to the one that is shown; and where the next one does.
let pages = [0];
let next = null;
// Which search is the latest: an answer to an earlier one is too late.
let round = 0;

// The numbers of those that are selected, on whatever page.
const selected = new Set();

function query(from, limit) {
  const asked = new URLSearchParams({ from, limit });
  for (const [name, id] of [["reason", "reason"], ["kind", "kind"], ["text", "find"]]) {
    const value = $(id).value.trim();
    if (value) asked.set(name, value);
  }
  return asked;
}

/** Says what is selected, and offers what can be done with it. */
function mark() {
  const count = selected.size;
  const told = count ? `${whole.format(count)} selected` : "none selected";
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
    ["Given up", [letter.last_at.replace("T", " ").replace(/\.\d+/, "")]],
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

/** Shows the page on which one is, as it is now. */
async function list() {
  const mine = ++round;
  const letters = [];
  let from = pages.at(-1);
  // The agent looks through some thousands at a time: where few are found, a page takes several answers.
  while (from !== null && letters.length < ROWS) {
    const answer = await ask("GET", `dead-letters?${query(from, ROWS - letters.length)}`);
    if (mine !== round) return;
    letters.push(...answer.dead_letters);
    from = answer.next;
  }
  // What was on the last page is gone: the page before is the last one now.
  if (!letters.length && pages.length > 1) {
    pages.pop();
    await list();
    return;
  }
  next = from;
  $("list").replaceChildren(...letters.map(row));
  $("none").hidden = letters.length > 0;
  $("page-number").textContent = `page ${pages.length}`;
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

/** Another search begins at its first page, with nothing selected: nothing is done to what is not shown. */
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
    // Another search has begun meanwhile.
    if (mine !== round) return;
    for (const letter of answer.dead_letters) selected.add(letter.id);
    from = answer.next;
    mark();
  }
});

// --- who ordered what ---

function orderRow(order) {
  const line = document.createElement("tr");
  const numbers = order.ids.length ? ` (${order.ids.join(", ")}${order.count > order.ids.length ? ", …" : ""})` : "";
  const done = order.error ?? (order.outcome === "begun" ? "begun; nothing more is known" : `${order.count ?? "done"}${numbers}`);
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

// --- one of them ---

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
    "Correlation id": letter.correlation_id,
    Attempts: whole.format(letter.attempts),
    Accepted: letter.first_at,
    "Given up": letter.last_at,
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

/** Back to the list, at the place where one was. */
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

// --- those that are selected ---

const letters = (count) => `${whole.format(count)} dead letter${count === 1 ? "" : "s"}`;

/** Some hundreds at a time; what was done is no longer selected. Says how far it came, whatever happens. */
async function each(path, ids, count, told) {
  try {
    while (ids.length) {
      const some = ids.splice(0, HANDLED);
      count(await ask("POST", path, { ids: some }));
      for (const id of some) selected.delete(id);
      mark();
      say(`${told()}; ${whole.format(ids.length)} to go.`);
    }
    await list();
    say(`${told()}.`);
    ($("list").querySelector("input") ?? $("reload")).focus();
  } catch (error) {
    if (!(error instanceof Refused) || error.status === 401) throw error;
    // What was replayed until then is told with it.
    if (error.body?.replayed) {
      count(error.body);
      for (const id of error.body.replayed) selected.delete(id);
    }
    await quietly(list);
    say(`${told()}, then: ${error.message}`);
  }
}

on("replay-selected", async () => {
  // What is selected while somebody is asked was not asked about.
  const ids = [...selected];
  const count = ids.length;
  if (!(await sure(`${letters(count)} will be sent again, as far as they are records.`, `Replay ${whole.format(count)}`))) return;
  let [replayed, left, unknown] = [0, 0, 0];
  await each("dead-letters/replay", ids, (outcome) => {
    replayed += outcome.replayed.length;
    left += outcome.not_records.length;
    unknown += outcome.unknown.length;
  }, () => {
    const told = [`${whole.format(replayed)} replayed`];
    if (left) told.push(`${whole.format(left)} never were records`);
    if (unknown) told.push(`${whole.format(unknown)} were gone`);
    return told.join("; ");
  });
});

on("drop-selected", async () => {
  const ids = [...selected];
  const count = ids.length;
  if (!(await sure(`${letters(count)} will be gone for good.`, `Drop ${whole.format(count)}`))) return;
  let dropped = 0;
  await each("dead-letters/drop", ids, (outcome) => {
    dropped += outcome.dropped;
  }, () => `${whole.format(dropped)} dropped`);
});

// --- orders to the sender ---

on("pause", async () => {
  const drain = await ask("POST", pausedNow ? "drain/resume" : "drain/pause");
  say(drain.paused ? "The sender is paused: records wait." : "The sender works again.");
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

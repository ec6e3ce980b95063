// The instance's API. The token comes in the part of the address that
// browsers keep to themselves, is taken out of it at once, and goes along in
// a header: no cookie, which other servers on this host would be sent too.

const KEPT = "retryscope-token";
let token = null;

/** Takes the token out of the address, or what this tab has kept of it. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname);
    token = given;
    try {
      sessionStorage.setItem(KEPT, given);
    } catch {
      // Without storage a reload asks for the token again.
    }
  } else {
    try {
      token = sessionStorage.getItem(KEPT);
    } catch {
      token = null;
    }
  }
  return Boolean(token);
}

/** A refusal in the instance's own words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Leaves a refusal to what tells how it stands; anything else is a fault of the page's. */
export function ignore(error) {
  if (!(error instanceof Refused) && error.name !== "AbortError") throw error;
}

// How it stands with the instance: "live", "trying", "ended", "locked".
const watchers = new Set();
let state = "trying";
let failedSince = 0;
/** How long an instance may not answer before it counts as ended. */
const PATIENCE = 4000;

export const standing = () => state;

export function onStanding(act) {
  watchers.add(act);
  act(state);
}

function stands(next) {
  if (next === state) return;
  state = next;
  for (const act of watchers) act(state);
}

function answered() {
  failedSince = 0;
  stands("live");
}

function failed() {
  const now = performance.now();
  failedSince ||= now;
  if (state !== "locked") stands(now - failedSince > PATIENCE ? "ended" : "trying");
}

async function ask(method, path, body, signal, accept) {
  const headers = { Authorization: `Bearer ${token}`, Accept: accept };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    failed();
    throw new Refused(0, "The instance does not answer.");
  }
  if (response.status === 401) {
    stands("locked");
    throw new Refused(401, "The token is not this instance's.");
  }
  answered();
  return response;
}

async function refusal(response) {
  let message = `The instance answered ${response.status}.`;
  try {
    const said = await response.json();
    if (typeof said.error === "string") message = said.error;
  } catch {
    // What it said is no sentence.
  }
  return new Refused(response.status, message);
}

/** Asks, and gives what was answered. */
export async function call(method, path, body, signal) {
  const response = await ask(method, path, body, signal, "application/json");
  if (!response.ok) throw await refusal(response);
  return response.status === 204 ? null : response.json();
}

export const get = (path, signal) => call("GET", path, undefined, signal);

/** Ends early where the signal says so. */
const pause = (ms, signal) =>
  new Promise((done) => {
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });

/**
 * Follows a stream of server-sent events until the signal says otherwise,
 * again and again where it breaks. `path` is asked for each time, since where
 * to go on may have changed; `told(event, data, id)` gets what comes, and
 * `broke()` is told of each break.
 */
export async function follow(path, told, signal, broke = () => {}) {
  let wait = 250;
  while (!signal.aborted) {
    try {
      const response = await ask("GET", path(), undefined, signal, "text/event-stream");
      if (!response.ok) throw await refusal(response);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        wait = 250;
        rest += value;
        const parts = rest.split(/\r?\n\r?\n/);
        rest = parts.pop();
        for (const part of parts) {
          const event = parse(part);
          if (!event) continue;
          // It says goodbye: that it does not answer any more is no surprise.
          if (event.name === "end") failedSince = performance.now() - PATIENCE - 1;
          told(event.name, event.data, event.id);
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Refused) && !(error instanceof TypeError)) throw error;
      if (error.status >= 400 && error.status !== 401 && error.status < 500) throw error;
    }
    if (signal.aborted) return;
    failedOnce();
    broke();
    await pause(wait, signal);
    wait = Math.min(wait * 2, 4000);
  }
}

// A stream that ends may mean the instance's end; the next answer tells.
function failedOnce() {
  if (state === "live") stands("trying");
}

function parse(text) {
  let name = "message";
  let id;
  const data = [];
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith(":")) continue;
    const at = line.indexOf(":");
    const field = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (field === "event") name = value;
    else if (field === "data") data.push(value);
    else if (field === "id") id = value;
  }
  if (data.length === 0) return null;
  try {
    return { name, id, data: JSON.parse(data.join("\n")) };
  } catch {
    return null;
  }
}

// One attempt in full, with its call.
import { get, ignore } from "./api.js";
import { button, bytes, clock, count, duration, element, lines, plain, put } from "./dom.js";
import { asked, attemptOf, outcome, outcomeInFull, shortUrl } from "./words.js";

/** Attempts of the call that are looked for in each direction. */
const FAR = 25;
/** The longest text that is shown at once, in characters. */
const LONG = 4096;

/** A text of any length: its beginning, and all of it for whoever asks. */
export function longText(text, whole = plain) {
  if (text.length <= LONG) return element("span", {}, document.createTextNode(whole(text)));
  const shown = element("span", {}, document.createTextNode(`${whole(text.slice(0, LONG))}…`));
  const more = button(`Show all ${bytes(text.length)}`, () => shown.replaceChildren(document.createTextNode(whole(text))));
  shown.append(more);
  return shown;
}

/** A table of header fields. */
export function headerTable(name, fields) {
  if (!fields) return null;
  const rows = fields.map((field) => {
    const [key, value] = Array.isArray(field) ? field : [field.name, field.value];
    return element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, longText(value)));
  });
  return [element("h3", {}, `${name} (${count(rows.length, "field", "fields")})`), element("table", { className: "fields" }, element("tbody", {}, ...rows))];
}

export function detail({ opened, closed, shows }) {
  const title = element("h2", { tabIndex: -1 });
  const body = element("div");
  const root = element(
    "section",
    { className: "detail card", "aria-label": "One attempt", hidden: true, tabIndex: 0 },
    element("div", { className: "title" }, title, button("Close", () => close(), { title: "Esc" })),
    body,
  );
  let at = null;
  let asking = null;

  function close() {
    asking?.abort();
    at = null;
    root.hidden = true;
    closed();
  }

  async function open(id) {
    asking?.abort();
    asking = new AbortController();
    const { signal } = asking;
    at = id;
    try {
      const it = await get(`/v1/attempts/${id}`, signal);
      show(it, [it]);
      root.hidden = false;
      opened(id);
      show(it, await callOf(it, signal));
    } catch (error) {
      ignore(error);
      if (signal.aborted) return;
      title.textContent = `Attempt ${id}`;
      body.replaceChildren(element("p", { className: "bad" }, error.message));
      root.hidden = false;
      opened(id);
    }
  }

  function show(it, call) {
    title.textContent = plain(asked(it));
    title.dataset.class = it.class;
    const scrolled = root.scrollTop;
    body.replaceChildren(
      element("p", { className: "verdict" }, `Attempt ${attemptOf(it)}: ${outcomeInFull(it)}`),
      lanes(it, call),
      facts(it),
      ...[headerTable("Request", it.request_headers), it.request_trailers && headerTable("Request, after its body", it.request_trailers), headerTable("Response", it.response_headers), it.response_trailers && headerTable("Response, after its body", it.response_trailers)].flat().filter(Boolean),
      it.request_headers ? "" : element("p", { className: "faint" }, "Its headers are not kept any more: those of the latest attempts are."),
      curl(it),
    );
    root.scrollTop = scrolled;
  }

  // The call's attempts and waits, one below the other on one time.
  function lanes(it, call) {
    const first = Math.min(...call.map((one) => one.at_ms - (one.waited_ms ?? 0)));
    const last = Math.max(...call.map((one) => one.at_ms + one.took_ms));
    const span = Math.max(last - first, 0.001);
    const place = (from, length, bar) => {
      bar.style.left = `${((from - first) / span) * 100}%`;
      bar.style.width = `max(3px, ${(length / span) * 100}%)`;
      return bar;
    };
    const row = (one) => {
      const bars = element("span", { className: "lane", "aria-hidden": "true" });
      if (one.waited_ms) bars.append(place(one.at_ms - one.waited_ms, one.waited_ms, element("span", { className: one.waited_for_rule ? "wait ruled" : "wait" })));
      bars.append(place(one.at_ms, one.took_ms, element("span", { className: one.rule ? "took ruled" : "took", data: { class: one.class } })));
      const text = `${one.attempt}: ${outcome(one)}${one.waited_ms ? `, after a wait of ${duration(one.waited_ms)}` : ""}, took ${duration(one.took_ms)}`;
      const link = button(text, () => shows(one.id), { className: "quiet" });
      if (one.id === it.id) link.setAttribute("aria-current", "true");
      return element("li", {}, link, bars);
    };
    const waited = call.reduce((sum, one) => sum + (one.waited_ms ?? 0), 0);
    return element(
      "div",
      { className: "call" },
      element("h3", {}, `Its call: ${count(call.length, "attempt", "attempts")}, ${duration(last - first)}${waited ? `, ${duration(waited)} of it in backoff` : ""}`),
      element("ol", { className: "lanes-of-call" }, ...call.map(row)),
    );
  }

  function facts(it) {
    const linked = { exact: "by what the client sent", inferred: "inferred", alone: "the first of its call" }[it.evidence] ?? it.evidence;
    const shown = [
      ["URL", longText(it.url)],
      ["Method", `${it.method}, ${it.protocol}`],
      ["Began", `${clock(new Date(it.time))}, ${duration(it.at_ms)} after the start`],
      ["Took", duration(it.took_ms)],
      ["Waited before", it.waited_ms ? `${duration(it.waited_ms)}${it.waited_for_rule ? ", because of a rule" : ""}` : "nothing"],
      ["Asked to wait", it.retry_after_ms ? duration(it.retry_after_ms) : null],
      ["Held up", it.held_ms ? duration(it.held_ms) : null],
      ["Upstream said", it.status ? `${it.status}${it.reason ? ` ${it.reason}` : ""}` : null],
      ["Client was told", it.rule ? String(it.abort ?? it.told ?? "") : null],
      ["By", it.rule],
      ["Failed", it.failure],
      ["Linked", linked],
      ["Bodies", `${bytes(it.sent)} sent, ${bytes(it.received)} received`],
      ["Process", `${it.comm} (${it.pid}): ${it.command}`],
      ["Unit", it.unit],
      ["Container", it.container_name ?? it.container],
      ["Cgroup", it.cgroup],
      ["Connection", `${it.connection}, from ${it.client} to ${it.origin}`],
      ["Number", `attempt ${it.id}, call ${it.call}`],
    ];
    return element("dl", { className: "facts" }, ...shown.filter(([, value]) => value).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  }

  function curl(it) {
    const text = element("pre", { className: "code", hidden: true, tabIndex: 0, "aria-label": "As a command" });
    const show = button("As a curl command", async () => {
      try {
        const told = await get(`/v1/attempts/${it.id}/curl`);
        text.textContent = lines(told.command ?? "");
        text.hidden = false;
        const selection = getSelection();
        selection.selectAllChildren(text);
      } catch (error) {
        ignore(error);
        text.textContent = plain(error.message);
        text.hidden = false;
      }
    });
    return element("div", { className: "curl" }, show, text);
  }

  return { root, open, close, at: () => at, focus: () => title.focus({ preventScroll: true }) };
}

// What ended before it and after it of the same call.
async function callOf(it, signal) {
  const call = [it];
  for (const way of ["previous", "next"]) {
    let id = it[way];
    for (let far = 0; id && far < FAR; far += 1) {
      let one;
      try {
        one = await get(`/v1/attempts/${id}`, signal);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        break;
      }
      if (way === "previous") call.unshift(one);
      else call.push(one);
      id = one[way];
    }
  }
  return call;
}

// Hand intercept: what is to be held, what is held, and what becomes of it.
import { call, follow, get, ignore, Refused } from "./api.js";
import { button, count, duration, element, keyed, lines, paced, plain, put, say } from "./dom.js";
import { headerTable } from "./detail.js";
import { completes } from "./filter.js";
import { asked, shortUrl } from "./words.js";

/** Attempts that are told of once they have gone. */
const GONE = 20;
const HOW = {
  resumed: "went on as it was",
  changed: "went on, changed",
  answered: "was answered here",
  dropped: "was broken off",
  left: "its client left",
  late: "went on by itself: its time was over",
  off: "went on: nothing holds it any more",
  ended: "went on: the instance ends",
};

export const holds = {
  name: "intercepts",
  title: "Intercepts",
  make(page) {
    const held = new Map();
    let gone = [];
    let open = null;
    let counted = () => {};

    const input = element("input", { id: "hold", type: "text", className: "code", autocomplete: "off", autocapitalize: "off", spellcheck: false, maxLength: 4096, placeholder: "~op ListBuckets", "aria-describedby": "hold-said" });
    const where = element("select", { id: "hold-at" }, ...[["response", "at the response"], ["request", "at the request"], ["both", "at both"]].map(([value, text]) => element("option", { value }, text)));
    const times = element("input", { id: "hold-count", type: "number", min: "1", max: "1000000", placeholder: "any", inputMode: "numeric" });
    const said = element("pre", { id: "hold-said", className: "said bad", role: "status" });
    const form = element(
      "form",
      { className: "row", on: { submit: (event) => (event.preventDefault(), add()) } },
      element("label", { htmlFor: "hold" }, "Hold"),
      input,
      element("label", { htmlFor: "hold-at", className: "hidden" }, "Where"),
      where,
      element("label", { htmlFor: "hold-count" }, "how many"),
      times,
      element("button", { type: "submit", className: "main" }, "Hold"),
    );
    completes(input);
    const list = element("ul", { className: "rules" });
    const waiting = element("ul", { className: "held" });
    const none = element("p", { className: "faint" });
    const editor = element("section", { className: "card editor", "aria-label": "The held attempt", hidden: true });
    const past = element("ul", { className: "past" });
    const pastHead = element("h2", { hidden: true }, "Let go");
    const state = element("p", { className: "faint", role: "status", hidden: true });
    const root = element(
      "div",
      { className: "holds" },
      element("h1", {}, "Intercepts"),
      element("p", { className: "faint" }, "An attempt that is held waits here until you let it go; its client waits with it. What is held does not count as backoff."),
      form,
      said,
      list,
      element("h2", {}, "Held"),
      none,
      state,
      element("div", { className: "beside-held" }, waiting, editor),
      pastHead,
      past,
    );
    let intercepts = [];
    let visible = false;

    async function ask() {
      try {
        ({ intercepts } = await get("/v1/intercepts"));
        draw();
      } catch (error) {
        ignore(error);
      }
    }
    const askSoon = paced(ask, 500);

    function draw() {
      keyed(list, intercepts, (it) => it.id, intercept, fillIntercept);
      const all = [...held.values()];
      keyed(waiting, all, (it) => it.id, waits, fillWaits);
      none.hidden = all.length > 0;
      say(none, intercepts.length ? "Nothing is held at the moment." : "Nothing is to be held: write a filter above, and the next attempt that it takes waits here.");
      keyed(past, gone, (it) => it.id, () => element("li"), (row, it) => say(row, it.text));
      pastHead.hidden = gone.length === 0;
      counted(all.length);
    }

    function intercept(it) {
      const made = element("li", { className: "card rule" });
      made.text = element("code");
      made.note = element("span", { className: "faint" });
      made.hits = element("span", { className: "hits" });
      const end = button("Hold no more", () => withdraw(it.id), { "aria-label": `Hold no more of ${it.filter}` });
      return put(made, element("div", { className: "what" }, made.text, made.note), made.hits, end);
    }

    function fillIntercept(made, it) {
      say(made.text, it.filter);
      const at = { request: "at the request", response: "at the response", both: "at the request and at the response" }[it.at];
      say(made.note, `${at}, for ${duration(it.max_wait_ms)} at most${it.count ? `, ${count(it.count, "attempt", "attempts")}` : ""}`);
      say(made.hits, `${it.held} held so far`);
    }

    function waits(it) {
      const made = element("li", { className: "card" });
      made.what = button("", () => choose(it.id), { className: "quiet" });
      made.who = element("span", { className: "faint" });
      made.time = element("span", { className: "waits" });
      made.act = element("span", { className: "row" }, button("Resume", () => decide(it.id, { action: "resume" }), { "aria-label": `Resume ${it.id}` }));
      return put(made, made.what, made.who, made.time, made.act);
    }

    function fillWaits(made, it) {
      const number = it.attempts_max ? `${it.attempt} of ${it.attempts_max}` : it.attempt;
      const wait = it.backoff_ms ? ` after a wait of ${duration(it.backoff_ms)}` : "";
      say(made.what, `${asked(it)}: attempt ${number}${wait}, ${it.phase === "response" ? `response ${reply(it)}` : "request"}`);
      made.what.setAttribute("aria-expanded", String(open === it.id));
      made.classList.toggle("open", open === it.id);
      say(made.who, `${it.comm} (${it.pid}) · ${shortUrl(it.url)}`.slice(0, 300));
      const waited = performance.now() - it.seen + it.waited_ms;
      const left = Math.max(0, it.left_ms - (performance.now() - it.seen));
      say(made.time, `its client waits for ${duration(Math.floor(waited / 1000) * 1000)}; goes on by itself in ${duration(Math.ceil(left / 1000) * 1000)}`);
    }

    const reply = (it) => (it.rule ? `${it.status ?? ""} → ${it.abort ?? it.told ?? ""}`.trim() : String(it.status ?? ""));

    async function choose(id) {
      open = id;
      draw();
      let full;
      try {
        full = await get(`/v1/held/${id}`);
      } catch (error) {
        ignore(error);
        page.notice(error.message, true);
        return;
      }
      if (open !== id) return;
      edit(full);
    }

    // What can be changed of what is held.
    function edit({ held: it, request, response, told }) {
      const atRequest = it.phase === "request";
      const message = atRequest ? request : (told ?? response ?? { headers: [], body: {} });
      const fields = element("div", { className: "edit" });
      const field = (id, text, made) => (put(fields, element("label", { htmlFor: id }, text), made), made);
      const status = field(
        "edit-status",
        atRequest ? "Status (for an answer of yours)" : "Status",
        element("input", { id: "edit-status", type: "number", min: "200", max: "599", value: atRequest ? "" : String(message.status ?? ""), inputMode: "numeric" }),
      );
      const reason = field("edit-reason", "Reason", element("input", { id: "edit-reason", type: "text", value: message.reason ?? "", autocomplete: "off" }));
      // Another status has its own reason, unless one is typed.
      let reasoned = false;
      reason.addEventListener("input", () => (reasoned = true));
      function other() {
        const same = Number(status.value) === message.status;
        if (!reasoned) reason.value = same ? (message.reason ?? "") : "";
        reason.placeholder = same ? "" : "the usual one";
      }
      status.addEventListener("input", other);
      const written = message.headers.map(([name, value]) => `${name}: ${value}`).join("\n");
      const headers = field("edit-headers", "Headers", element("textarea", { id: "edit-headers", className: "code", rows: Math.min(14, message.headers.length + 2), spellcheck: false, value: written }));
      const kept = message.body?.text ?? null;
      const body = field("edit-body", "Body", element("textarea", { id: "edit-body", className: "code", rows: 6, spellcheck: false, value: kept ?? "" }));
      if (kept === null) body.placeholder = message.body?.absent ?? (message.body?.base64 ? "It is no text; what is typed here takes its place." : "");
      const wrong = element("p", { className: "bad", role: "alert", hidden: true });

      // Only what differs is sent.
      function changes() {
        const verdict = {};
        if (status.value && Number(status.value) !== (atRequest ? null : message.status)) verdict.status = Number(status.value);
        if (reasoned && reason.value !== (message.reason ?? "")) verdict.reason = reason.value;
        if (headers.value !== written) {
          const list = headers.value.split("\n").filter((text) => text.trim());
          verdict.headers = list.map((text) => {
            const at = text.indexOf(":", 1);
            if (at < 0) throw new Error(`"${text}" is no header field: write NAME: VALUE`);
            return [text.slice(0, at).trim(), text.slice(at + 1).trim()];
          });
          const names = new Set(verdict.headers.map(([name]) => name.toLowerCase()));
          verdict.remove = message.headers.map(([name]) => name).filter((name) => !names.has(name.toLowerCase()));
          // What stays as it was need not be said again.
          const before = new Map();
          for (const [name, value] of message.headers) before.set(name.toLowerCase(), [...(before.get(name.toLowerCase()) ?? []), value]);
          const now = new Map();
          for (const [name, value] of verdict.headers) now.set(name.toLowerCase(), [...(now.get(name.toLowerCase()) ?? []), value]);
          verdict.headers = verdict.headers.filter(([name]) => JSON.stringify(before.get(name.toLowerCase())) !== JSON.stringify(now.get(name.toLowerCase())));
        }
        if (body.value !== (kept ?? "")) verdict.body = body.value;
        return verdict;
      }

      async function act(action) {
        wrong.hidden = true;
        try {
          await decide(it.id, { action, ...(action === "drop" ? {} : changes()) }, true);
        } catch (error) {
          if (error instanceof Refused) ignore(error);
          wrong.textContent = plain(error.message);
          wrong.hidden = false;
        }
      }

      const quick = [429, 503, 500].map((code) => button(String(code), () => ((status.value = String(code)), other()), { "aria-label": `Status ${code}` }));
      const form = element(
        "form",
        { on: { submit: (event) => (event.preventDefault(), act(atRequest && status.value ? "answer" : "resume")) } },
        element("h3", { tabIndex: -1, id: "edit-title" }, `${asked(it)}, attempt ${it.attempt}, held at its ${it.phase}`),
        element("p", { className: "faint" }, `${request.method} ${request.target}`.slice(0, 2000)),
        element("div", { className: "row quick" }, element("span", { className: "faint" }, "Status of"), ...quick),
        fields,
        wrong,
        element(
          "div",
          { className: "row" },
          element("button", { type: "submit", className: "main" }, atRequest ? "Resume (or answer, with a status)" : "Resume"),
          button("Drop", () => act("drop"), { className: "danger" }),
          button("Close", () => shut()),
        ),
        atRequest ? "" : element("details", {}, element("summary", {}, "Its request"), ...(headerTable("Request", request.headers) ?? []), element("pre", {}, lines((request.body?.text ?? request.body?.absent ?? "").slice(0, 8192)))),
        told ? element("p", { className: "faint" }, `A rule has changed it: "${it.rule}".`) : "",
      );
      editor.replaceChildren(form);
      editor.hidden = false;
      status.focus();
      status.select();
    }

    function shut() {
      open = null;
      editor.hidden = true;
      editor.replaceChildren();
      draw();
    }

    async function decide(id, verdict, throws = false) {
      try {
        await call("POST", `/v1/held/${id}`, verdict);
        if (open === id) shut();
      } catch (error) {
        if (throws) throw error;
        ignore(error);
        page.notice(error.message, true);
      }
    }

    async function add() {
      const asks = { filter: input.value, at: where.value };
      if (times.value) asks.count = Number(times.value);
      try {
        await call("POST", "/v1/intercepts", asks);
        said.textContent = "";
        input.value = "";
      } catch (error) {
        ignore(error);
        said.textContent = lines(error.message);
      }
      ask();
    }

    async function withdraw(id) {
      await page.change("DELETE", `/v1/intercepts/${id}`);
      ask();
      input.focus();
    }

    function told(event, data) {
      if (event === "held") {
        held.set(data.id, { ...data, seen: performance.now() });
        if (!visible) page.notice(`Held: ${asked(data)}, attempt ${data.attempt}.`);
        askSoon();
      } else if (event === "released") {
        const it = held.get(data.id);
        held.delete(data.id);
        const what = it ? `${asked(it)}, attempt ${it.attempt}` : `Number ${data.id}`;
        gone = [{ id: data.id, text: `${what} ${HOW[data.how] ?? data.how}, after ${duration(data.waited_ms)}` }, ...gone.filter((one) => one.id !== data.id)].slice(0, GONE);
        if (open === data.id) shut();
        askSoon();
      } else if (event === "over") askSoon();
      else if (event === "skipped") {
        state.hidden = false;
        say(state, `${count(data, "event", "events")} came too fast to be told of; what is held was asked for again.`);
        again();
      } else return;
      draw();
    }

    async function again() {
      try {
        const { held: now } = await get("/v1/held");
        held.clear();
        for (const it of now) held.set(it.id, { ...it, seen: performance.now() });
        draw();
      } catch (error) {
        ignore(error);
      }
    }

    return {
      root,
      /** Watches from the start, whatever view is shown. */
      watch(signal, act) {
        counted = act;
        ask();
        setInterval(() => visible && held.size && draw(), 1000);
        // What is held comes first, each time.
        const path = () => (held.clear(), "/v1/held/follow");
        follow(path, told, signal).catch(ignore);
      },
      show() {
        visible = true;
        ask();
      },
      hide() {
        visible = false;
      },
      key(event) {
        if (event.key === "/") input.focus();
        else if (event.key === "Escape" && open !== null) shut();
        else return false;
        return true;
      },
    };
  },
};

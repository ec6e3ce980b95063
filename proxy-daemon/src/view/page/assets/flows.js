// The attempts, newest first: those that are kept, those that a filter takes,
// and those that come.
import { follow, get, ignore, Refused } from "./api.js";
import { clock, count, duration, element, number, paced, plain, put, say } from "./dom.js";
import { detail } from "./detail.js";
import { filterLine } from "./filter.js";
import { add, extent, look, peek, want } from "./kept.js";
import { rows } from "./rows.js";
import { asked, attemptOf, outcome } from "./words.js";

/** How many found attempts are kept here, and looked for at a time. */
const MOST = 20000;
const PAGE = 200;
const FIRST = 50;
const AHEAD = 400;

const COLUMNS = [
  ["time", "Time"],
  ["who", "Process"],
  ["what", "Asked for"],
  ["attempt", "Attempt"],
  ["outcome", "Outcome"],
  ["took", "Took"],
  ["waited", "Waited"],
];

export const flows = {
  name: "flows",
  title: "Flows",
  make(page) {
    const line = filterLine((text) => page.go("flows", words({ filter: text, id: panel.at() })), "filter");
    const following = element("button", { type: "button", "aria-pressed": "true", title: "f", on: { click: () => turn(!live) } }, "Follow");
    const state = element("p", { className: "faint", role: "status" });
    const head = element("div", { className: "row-of head", role: "row", "aria-rowindex": "1" }, ...COLUMNS.map(([name, text]) => element("span", { className: name, role: "columnheader" }, text)));
    const grid = element(
      "div",
      {
        className: "grid rows",
        role: "grid",
        tabIndex: 0,
        "aria-label": "Attempts, newest first. Up and down choose one, Enter shows it in full.",
      },
      put(element("div", { role: "rowgroup", className: "heads" }), head),
    );
    const box = grid;
    const empty = element("p", { className: "faint empty" });
    const panel = detail({
      opened: () => root.classList.add("with-detail"),
      closed() {
        root.classList.remove("with-detail");
        grid.focus({ preventScroll: true });
        keep();
      },
      shows: (id) => open(id),
    });
    const root = element(
      "div",
      { className: "flows" },
      element("h1", { className: "hidden" }, "Flows"),
      element("div", { className: "tools" }, line.root, following),
      state,
      element("div", { className: "beside" }, element("div", { className: "listed" }, grid, empty), panel.root),
    );

    let filter = "";
    let live = true;
    let chosen = null;
    // Without a filter: the number of the attempt in the first row.
    let top = 0;
    // With one: what came since it was typed (oldest first), and what was
    // found before that (newest first).
    let came = [];
    let found = [];
    let next;
    let looked = 0;
    let unknown = 0;
    let skipped = 0;
    let looking = false;
    let run = null;
    let feed = null;
    let rowHeight = 0;

    const list = rows({
      box,
      height: () => rowHeight || measure(),
      above: () => head.offsetHeight,
      make,
      fill,
      seen(first, last) {
        if (filter) {
          if (last + AHEAD / 2 > size() && next && !looking) more();
        } else want(top - last, top - first)?.then(() => list.redraw());
      },
    });

    function measure() {
      const row = make();
      row.style.visibility = "hidden";
      box.append(row);
      rowHeight = row.getBoundingClientRect().height || 30;
      row.remove();
      return rowHeight;
    }
    new ResizeObserver(() => {
      rowHeight = 0;
      if (box.isConnected) {
        measure();
      }
      list.redraw();
    }).observe(box);

    const size = () => (filter ? came.length + found.length : Math.max(0, top - extent.oldest + 1));
    const at = (index) => (filter ? (index < came.length ? came[came.length - 1 - index] : found[index - came.length]) : peek(top - index));
    function indexOf(id) {
      if (!filter) return top - id;
      const index = came.findLastIndex((it) => it.id === id);
      if (index >= 0) return came.length - 1 - index;
      const older = found.findIndex((it) => it.id === id);
      return older < 0 ? -1 : came.length + older;
    }

    function make() {
      const row = element("div", { className: "row-of", role: "row" });
      row.parts = COLUMNS.map(([name]) => element("span", { className: name, role: "gridcell" }));
      row.addEventListener("click", () => row.shown && open(row.shown.id));
      return put(row, ...row.parts);
    }

    function fill(row, index) {
      const it = at(index);
      const current = it !== undefined && it.id === chosen;
      if (row.shown === it && row.current === current && row.number === index) return;
      if (row.number !== index) {
        row.number = index;
        row.setAttribute("aria-rowindex", String(index + 2));
      }
      if (row.current !== current) {
        row.current = current;
        row.setAttribute("aria-selected", String(current));
      }
      // Not here yet: it will be filled again.
      if (row.shown === it) return;
      row.shown = it;
      row.id = it ? `attempt-${it.id}` : "";
      if (!it) {
        row.parts.forEach((part) => (part.textContent = ""));
        delete row.dataset.class;
        return;
      }
      row.dataset.class = it.class;
      row.dataset.ruled = String(Boolean(it.rule));
      const texts = [
        clock(new Date(it.time)),
        `${it.comm} (${it.pid})`,
        asked(it),
        it.attempt > 1 || it.max ? attemptOf(it) : "1",
        outcome(it),
        duration(it.took_ms),
        it.waited_ms ? duration(it.waited_ms) : "",
      ];
      row.parts.forEach((part, place) => say(part, texts[place]));
      row.parts[1].title = plain(it.command).slice(0, 500);
      row.parts[2].title = plain(`${it.method} ${it.url}`).slice(0, 500);
      row.classList.toggle("retry", it.attempt > 1);
    }

    function draw(added = 0) {
      list.count(size(), added);
      grid.setAttribute("aria-rowcount", String(size() + 1));
      tell();
    }
    const drawSoon = paced(() => {
      const added = news;
      news = 0;
      draw(added);
    }, 100);
    let news = 0;

    function tell() {
      const kept = Math.max(0, extent.newest - extent.oldest + 1);
      const parts = [];
      if (filter) {
        parts.push(`${number(size())}${next ? " or more" : ""} found`);
        if (looking) parts.push(`looking: ${number(looked)} of ${number(kept)} so far`);
        else if (next) parts.push(`${number(looked)} of ${number(kept)} looked at; scroll on for more`);
        if (unknown) parts.push(`of ${number(unknown)} it is not known: their headers or bodies are not kept`);
      } else {
        parts.push(`${number(kept)} kept`);
        if (extent.oldest > 1) parts.push(`${number(extent.oldest - 1)} older ones are not kept any more`);
        if (!live && extent.newest > top) parts.push(`${number(extent.newest - top)} newer`);
      }
      if (skipped) parts.push(`${count(skipped, "attempt", "attempts")} came too fast to be told of${filter ? "; type the filter again to look for them" : ""}`);
      if (extent.dropped) parts.push(`${number(extent.dropped)} came too fast to be kept`);
      say(state, parts.join(" · "));
      const none = size() === 0 && !looking;
      empty.hidden = !none;
      grid.classList.toggle("none", none);
      say(empty, filter ? "No attempt that is kept is taken by this filter." : "No attempt has ended yet. Each is shown here as it does.");
    }

    // Begins anew: with what is kept, then with what comes.
    async function start() {
      run?.abort();
      run = new AbortController();
      const { signal } = run;
      feed = null;
      came = [];
      found = [];
      next = undefined;
      looked = 0;
      unknown = 0;
      skipped = 0;
      list.to(0);
      if (filter) {
        // That it was understood is seen at once.
        looking = true;
        draw();
      }
      try {
        await look(signal);
        top = extent.newest;
        if (filter) await more(signal);
        else draw();
        if (chosen !== null) choose(chosen);
        if (live) stream();
      } catch (error) {
        refused(error);
      }
    }

    function refused(error) {
      if (error.name === "AbortError") return;
      if (error instanceof Refused && error.status === 400) {
        line.say(error.message.replace(/^the parameter `filter` is wrong: /, ""));
        draw();
      } else if (error instanceof Refused && error.status === 409) page.notice(error.message, true);
      else ignore(error);
    }

    // Looks on until there is enough for now.
    async function more(signal = run.signal) {
      looking = true;
      const enough = size() + AHEAD;
      try {
        do {
          // The first to be seen come first.
          const asks = new URLSearchParams({ filter, limit: String(size() ? PAGE : FIRST) });
          if (next) asks.set("before", String(next));
          const told = await get(`/v1/attempts?${asks}`, signal);
          if (signal.aborted) return;
          line.say("");
          found.push(...told.attempts);
          looked += told.scanned;
          unknown += told.unknown;
          next = told.next ?? null;
          if (looked === told.scanned) top = told.newest;
          draw();
        } while (next && size() < enough);
      } catch (error) {
        next = null;
        refused(error);
      } finally {
        if (!signal.aborted) {
          looking = false;
          draw();
        }
      }
    }

    function stream() {
      const { signal: outer } = run;
      feed?.abort();
      feed = new AbortController();
      const { signal } = feed;
      outer.addEventListener("abort", () => feed?.abort(), { once: true });
      let after = filter ? top : extent.newest;
      const path = () => `/v1/follow?${new URLSearchParams(filter ? { filter, after: String(after) } : { after: String(after) })}`;
      follow(
        path,
        (event, data) => {
          if (event === "attempt") {
            after = data.id;
            if (filter) {
              came.push(data);
              news += 1;
              extent.newest = Math.max(extent.newest, data.id);
            } else {
              add(data);
              if (live) {
                news += data.id - top;
                top = data.id;
              }
            }
            bound();
          } else if (event === "skipped") skipped += data.skipped;
          else return;
          drawSoon();
        },
        signal,
      ).catch(refused);
    }

    function bound() {
      if (came.length + found.length <= MOST) return;
      if (found.length > 0) {
        found.length = Math.max(0, found.length - PAGE);
        next = (found.at(-1) ?? came[0]).id;
      } else {
        came.splice(0, PAGE);
        next = came[0].id;
      }
    }

    function turn(on) {
      live = on;
      following.setAttribute("aria-pressed", String(on));
      if (!on) {
        feed?.abort();
        tell();
      } else if (filter) stream();
      else {
        top = Math.max(top, extent.newest);
        list.to(0);
        draw();
        stream();
      }
    }

    function choose(id, reveal = true) {
      chosen = id;
      const index = id === null ? -1 : indexOf(id);
      if (index >= 0) {
        if (reveal) list.reveal(index);
        grid.setAttribute("aria-activedescendant", `attempt-${id}`);
      } else grid.removeAttribute("aria-activedescendant");
      list.redraw();
    }

    function open(id) {
      choose(id);
      panel.open(id);
      keep(id);
    }

    const words = ({ filter, id }) => {
      const made = new URLSearchParams();
      if (filter) made.set("filter", filter);
      if (id) made.set("id", String(id));
      return made.toString();
    };
    // So that the address leads here again.
    function keep(id) {
      const text = words({ filter, id });
      history.replaceState(null, "", `#/flows${text ? `?${text}` : ""}`);
    }

    async function step(by) {
      const from = chosen === null ? (by > 0 ? -1 : size()) : indexOf(chosen);
      const to = Math.min(size() - 1, Math.max(0, from + by));
      if (size() === 0) return;
      if (!at(to) && !filter) {
        list.reveal(to);
        await want(top - to, top - to);
      }
      const it = at(to);
      if (!it) return;
      choose(it.id);
      if (panel.at() !== null) open(it.id);
    }

    return {
      root,
      show(asks) {
        const text = asks.get("filter") ?? "";
        const id = Number(asks.get("id")) || null;
        line.set(text);
        if (!run || text !== filter || run.signal.aborted) {
          filter = text;
          line.say("");
          start();
        }
        if (id && id !== panel.at()) open(id);
      },
      hide() {
        run?.abort();
      },
      key(event) {
        const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: list.inView(), PageUp: -list.inView(), Home: -Infinity, End: Infinity };
        if (event.key === "/") line.input.focus();
        else if (event.key === "f") turn(!live);
        else if (event.key === "Escape" && panel.at() !== null) panel.close();
        else if (event.key === "Enter" && document.activeElement === grid && chosen !== null) {
          open(chosen);
          panel.focus();
        } else if (event.key in steps && (document.activeElement === grid || document.activeElement === document.body || document.activeElement?.id === "main")) step(steps[event.key]);
        else return false;
        return true;
      },
    };
  },
};

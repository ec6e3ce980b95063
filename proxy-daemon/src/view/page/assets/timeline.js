// Calls over time: from afar as counts, from near with each attempt and each
// wait. Above it all of the time that is kept, with the part that is shown.
import { get, ignore, Refused } from "./api.js";
import { CLASSES, button, colours, duration, element, font, number, onTheme, paced, pen, plain, put, say } from "./dom.js";
import { detail } from "./detail.js";
import { filterLine } from "./filter.js";
import { attemptOf, asked, outcome, outcomeInFull } from "./words.js";

/** More attempts than these within the part that is shown are counted, not drawn. */
const FEW = 3000;
/** So many come at a time: a long answer would hold up the page while it is read. */
const PAGE = 500;
const BAND = 300;
/** Sums are asked for so many times at most, where a filter is looked at bit by bit. */
const ASKS = 25;
/** What the zoom counts in: more ms than an instance lives. */
const WHOLE = 1e11;
const NEAREST = 0.5;
/** What is shown at first: at least, at most. */
const LEAST = 10000;
const FIRST = 60000;
const HEAD = 22;
const AXIS = 24;

export const timeline = {
  name: "timeline",
  title: "Timeline",
  make(page) {
    const line = filterLine((text) => page.go("timeline", text ? new URLSearchParams({ filter: text }).toString() : ""), "filter-time");
    const following = element("button", { type: "button", "aria-pressed": "true", title: "f", on: { click: () => turn(!live) } }, "Follow");
    const only = element("input", { type: "checkbox", id: "only-retried", on: { change: () => (arrange(), redraw()) } });
    const state = element("p", { className: "faint", role: "status" });
    const legend = element("ul", { className: "legend" });
    const band = element("canvas", {
      className: "band",
      tabIndex: 0,
      role: "slider",
      "aria-label": "The part that is shown, of all that is kept",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      "aria-valuenow": "100",
    });
    const canvas = element("canvas");
    const spacer = element("div");
    const hover = element("div", { className: "hover", id: "hover", role: "status", hidden: true });
    const box = element(
      "div",
      {
        className: "lanes",
        tabIndex: 0,
        role: "group",
        "aria-label": "Calls over time. Left and right: earlier and later; plus and minus: nearer and farther; 0: all of it; j and k: the attempt after and before; Enter: the attempt in full.",
        "aria-describedby": "hover",
      },
      canvas,
      spacer,
    );
    const chartBox = element("div", { className: "times-box" }, box, hover);
    const panel = detail({
      opened() {
        root.classList.add("with-detail");
      },
      closed() {
        root.classList.remove("with-detail");
        box.focus({ preventScroll: true });
      },
      shows: (id) => panel.open(id),
    });
    const root = element(
      "div",
      { className: "times" },
      element("h1", { className: "hidden" }, "Timeline"),
      element(
        "div",
        { className: "tools" },
        line.root,
        following,
        button("+", () => zoomBy(2), { "aria-label": "Nearer", title: "Nearer (+)" }),
        button("−", () => zoomBy(0.5), { "aria-label": "Farther", title: "Farther (−)" }),
        button("All", () => all(), { "aria-label": "All of it", title: "All of it (0)" }),
        element("label", {}, only, "only calls that were retried"),
      ),
      state,
      band,
      legend,
      element("div", { className: "beside" }, chartBox, panel.root),
    );

    let filter = "";
    let live = true;
    let visible = false;
    let from = 0;
    let to = FIRST;
    // The instance's clock, as last heard.
    let heard = 0;
    let heardAt = 0;
    let sums = null;
    let counts = null;
    let near = null;
    let placed = { rows: [], heads: [], height: 0, order: [] };
    let chosen = null;
    let width = 1;
    let height = 1;
    let theme = colours();
    let stripes = {};
    let queued = false;
    let run = null;
    let timer = 0;
    let begun = false;
    // Somebody has said how much is to be shown.
    let sized = false;

    const { chart } = globalThis;
    const selection = chart.select(canvas);
    const now = () => (heardAt ? heard + performance.now() - heardAt : FIRST);
    const first = () => (sums ? Math.min(sums.from_ms, now()) : 0);
    const x = (ms) => ((ms - from) / (to - from)) * width;
    const zoom = chart
      .zoom()
      .filter((event) => (!event.ctrlKey || event.type === "wheel") && !event.button)
      .on("zoom", ({ transform, sourceEvent }) => {
        if (!sourceEvent) return;
        if (sourceEvent.type === "mousemove") box.scrollTop -= sourceEvent.movementY;
        const unit = WHOLE / width / transform.k;
        [from, to] = [-transform.x * unit, (width - transform.x) * unit];
        hide();
        sized = true;
        if (live && sourceEvent.type === "wheel") {
          // What is followed stays at the right.
          const span = to - from;
          [from, to] = [now() - span, now()];
          place();
        } else if (live) turn(false);
        moved();
      });
    selection.call(zoom).on("dblclick.zoom", null);

    // Tells the zoom where we are.
    function place() {
      const span = to - from;
      const [start, end] = [first(), Math.max(now(), first() + 1)];
      const most = Math.max((end - start) * 1.02, NEAREST * 2, span);
      zoom.extent([[0, 0], [width, height]]).scaleExtent([WHOLE / most, WHOLE / NEAREST]);
      const slack = span * 0.5;
      zoom.translateExtent([[((start - slack) / WHOLE) * width, -Infinity], [((end + slack) / WHOLE) * width, Infinity]]);
      selection.call(zoom.transform, chart.zoomIdentity.translate((-from * width) / span, 0).scale(WHOLE / span));
    }
    function view(start, end) {
      const span = Math.max(NEAREST, end - start);
      [from, to] = [start, start + span];
      place();
      moved();
    }
    // All of it while it is young, later the end.
    function early() {
      return Math.min(Math.max((now() - first()) * 1.05, LEAST), FIRST);
    }
    function zoomBy(factor) {
      sized = true;
      const span = Math.max(NEAREST, Math.min((to - from) / factor, Math.max(now() - first(), FIRST)));
      const middle = live ? now() - span / 2 : (from + to) / 2;
      view(middle - span / 2, middle + span / 2);
    }
    function all() {
      sized = true;
      turn(false);
      view(first() - (now() - first()) * 0.01, now());
    }
    function pan(share) {
      turn(false);
      const by = (to - from) * share;
      view(from + by, to + by);
    }
    function moved() {
      redraw();
      loadSoon();
    }

    function turn(on) {
      if (live === on) return;
      live = on;
      following.setAttribute("aria-pressed", String(on));
      if (on) {
        const span = to - from;
        view(now() - span, now());
        tick();
      }
    }

    // What there is of the whole time.
    async function survey(signal) {
      const told = await summed({ buckets: BAND }, signal, (partial) => ((sums = partial), redraw()));
      sums = told;
    }

    // Sums of a time; a filter is looked at bit by bit.
    async function summed(asks, signal, partly) {
      let all = null;
      const words = new URLSearchParams({ processes: "false", ...asks });
      if (filter) words.set("filter", filter);
      for (let turn = 0; turn < ASKS; turn += 1) {
        const told = await get(`/v1/timeline?${words}`, signal);
        if (asks.to === undefined) {
          [heard, heardAt] = [told.to_ms, performance.now()];
          // The same time in each turn.
          words.set("from", String(told.from_ms));
          words.set("to", String(told.to_ms));
        }
        if (all) {
          all.buckets.forEach((bucket, at) => {
            for (const key of Object.keys(bucket)) bucket[key] += told.buckets[at]?.[key] ?? 0;
          });
          all.scanned += told.scanned;
          all.next = told.next;
        } else all = told;
        if (!told.next) break;
        words.set("before", String(told.next));
        partly?.(all);
      }
      line.say("");
      return all;
    }

    async function tick() {
      clearTimeout(timer);
      if (!visible) return;
      const began = performance.now();
      if (!document.hidden) {
        try {
          if (!run || run.signal.aborted) run = new AbortController();
          if (live || !sums) await survey(run.signal);
          if (!begun) {
            begun = true;
            view(now() - early(), now());
          }
          if (live) {
            const span = sized ? to - from : early();
            [from, to] = [now() - span, now()];
            place();
            await load();
          }
          redraw();
        } catch (error) {
          refused(error);
        }
      }
      const took = performance.now() - began;
      if (visible) timer = setTimeout(tick, Math.max(1000, took * 8));
    }

    function refused(error) {
      if (error instanceof Refused && error.status === 400) line.say(error.message.replace(/^the parameter `filter` is wrong: /, ""));
      else ignore(error);
    }

    const loadSoon = paced(() => load().catch(refused), 120);
    let loading = null;

    // What is to be shown of this part of the time.
    async function load() {
      if (!sums) return;
      loading?.abort();
      loading = new AbortController();
      const { signal } = loading;
      const span = to - from;
      const wanted = { from: Math.max(0, from), to: Math.max(1, to) };
      if (near && near.filter === filter && near.from <= wanted.from && near.to >= Math.min(wanted.to, now() - 1) && !live) {
        tell();
        return redraw();
      }
      const buckets = Math.max(20, Math.min(400, Math.floor(width / 4)));
      const told = await summed({ from: String(wanted.from), to: String(wanted.to), buckets: String(buckets) }, signal, (partial) => ((counts = partial), redraw()));
      if (signal.aborted) return;
      counts = told;
      const inside = told.buckets.reduce((sum, bucket) => sum + bucket.attempts, 0);
      if (inside > FEW) near = null;
      else {
        // A bit more on both sides, so that moving shows something at once;
        // and what began in it and ends after it.
        const margin = inside > FEW / 3 ? span * 0.1 : span * 0.5;
        await approach(Math.max(0, wanted.from - margin), wanted.to + margin, signal);
      }
      if (signal.aborted) return;
      tell();
      redraw();
    }

    // Each attempt of a part of the time.
    async function approach(start, end, signal) {
      const asks = new URLSearchParams({ limit: String(PAGE), from: String(start), to: String(end) });
      if (filter) asks.set("filter", filter);
      const found = [];
      for (let turn = 0; turn < ASKS * 2; turn += 1) {
        const told = await get(`/v1/attempts?${asks}`, signal);
        found.push(...told.attempts);
        if (!told.next || found.length > FEW * 2) break;
        asks.set("before", String(told.next));
      }
      near = { from: start, to: end, filter, attempts: found.sort((a, b) => a.at_ms - b.at_ms) };
      arrange();
    }

    const begin = (it) => it.at_ms - (it.waited_ms ?? 0);
    const over = (it) => it.at_ms + it.took_ms;
    let tallRow = 0;
    const rowHeight = () => (tallRow ||= Math.round(parseFloat(getComputedStyle(document.documentElement).fontSize) * 0.95));

    // A lane for each call that is under way, by process.
    function arrange() {
      placed = { rows: [], heads: [], height: 0, order: [] };
      if (!near) return;
      const tall = rowHeight();
      const processes = new Map();
      for (const it of near.attempts) {
        const id = `${it.pid}:${it.start_ticks}`;
        if (!processes.has(id)) processes.set(id, { calls: new Map(), text: `${plain(it.command).slice(0, 300)} (${it.pid})` });
        const { calls } = processes.get(id);
        if (!calls.has(it.call)) calls.set(it.call, []);
        calls.get(it.call).push(it);
      }
      let top = 0;
      for (const { calls, text } of processes.values()) {
        let list = [...calls.values()];
        if (only.checked) list = list.filter((call) => call.length > 1 || call[0].attempt > 1);
        if (list.length === 0) continue;
        list.sort((a, b) => begin(a[0]) - begin(b[0]));
        placed.heads.push({ top, text });
        top += HEAD;
        const free = [];
        for (const call of list) {
          const until = Math.max(...call.map(over));
          let lane = free.find((one) => one.until <= begin(call[0]));
          if (!lane) free.push((lane = { top: top + free.length * tall, attempts: [], until: 0 }));
          lane.until = until;
          lane.attempts.push(...call);
        }
        placed.rows.push(...free);
        top += free.length * tall + 6;
      }
      placed.height = top;
      placed.order = placed.rows.flatMap((row) => row.attempts.map((it) => ({ it, row }))).sort((a, b) => a.it.at_ms - b.it.at_ms);
      spacer.style.height = `${Math.max(0, placed.height + AXIS - height)}px`;
    }

    // Of what is drawn each: what ended within what is shown.
    function counted() {
      const sum = { attempts: 0, retries: 0, throttled: 0, backoff_ms: 0 };
      for (const it of near.attempts) {
        if (over(it) < from || over(it) >= to) continue;
        sum.attempts += 1;
        sum.retries += it.attempt > 1 ? 1 : 0;
        sum.throttled += it.class === "throttled" ? 1 : 0;
        sum.backoff_ms += Math.max(0, it.at_ms - Math.max(begin(it), from));
      }
      return sum;
    }

    function tell() {
      const parts = [`${duration(to - from)} shown`];
      if (counts) {
        const each = near && counted();
        const total = (key) => (each ? each[key] : counts.buckets.reduce((sum, bucket) => sum + bucket[key], 0));
        parts.push(`${number(total("attempts"))} attempts, ${number(total("retries"))} retries, ${number(total("throttled"))} throttled, ${duration(total("backoff_ms"))} of backoff`);
        if (!near) parts.push("too many to draw each: come nearer");
        if (counts.next) parts.push("more was not looked at");
        if (counts.unknown) parts.push(`of ${number(counts.unknown)} the filter's answer is not known`);
        if (counts.dropped) parts.push(`${number(counts.dropped)} came too fast to be kept`);
      }
      say(state, parts.join(" · "));
    }

    function redraw() {
      if (queued) return;
      queued = true;
      requestAnimationFrame(draw);
    }

    function measure() {
      if (!canvas.isConnected) return;
      width = Math.max(box.clientWidth, 10);
      height = Math.max(box.clientHeight, 10);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      theme = colours();
      stripes = {};
      tallRow = 0;
      place();
      arrange();
      showLegend();
      redraw();
    }

    function striped(draws, name) {
      if (stripes[name]) return stripes[name];
      const tile = element("canvas", { width: 6, height: 6 });
      const pattern = tile.getContext("2d");
      pattern.fillStyle = theme.raised;
      pattern.fillRect(0, 0, 6, 6);
      pattern.strokeStyle = theme[name];
      pattern.lineWidth = 2.6;
      for (const start of [-6, 0, 6]) {
        pattern.beginPath();
        pattern.moveTo(start - 1, 7);
        pattern.lineTo(start + 7, -1);
        pattern.stroke();
      }
      return (stripes[name] = draws.createPattern(tile, "repeat"));
    }

    function bar(draws, name, ruled, left, top, wide, tall) {
      draws.fillStyle = ruled ? striped(draws, name) : theme[name];
      draws.fillRect(left, top, wide, tall);
      if (ruled && wide > 4) {
        draws.strokeStyle = theme[name];
        draws.lineWidth = 1;
        draws.setLineDash([]);
        draws.strokeRect(left + 0.5, top + 0.5, wide - 1, tall - 1);
      }
    }
    function wait(draws, ruled, start, end, at) {
      draws.strokeStyle = theme.wait;
      draws.lineWidth = 2;
      draws.setLineDash(ruled ? [3, 3] : []);
      draws.beginPath();
      draws.moveTo(start, at);
      draws.lineTo(end, at);
      draws.stroke();
      draws.setLineDash([]);
    }

    function showLegend() {
      const entry = (text, paint) => {
        const swatch = element("canvas", { "aria-hidden": "true" });
        swatch.style.width = "18px";
        swatch.style.height = "12px";
        paint(pen(swatch, 18, 12));
        return element("li", {}, swatch, text);
      };
      legend.replaceChildren(
        ...Object.entries(CLASSES).map(([name, text]) => entry(text, (draws) => bar(draws, name, false, 0, 1, 18, 10))),
        entry("by a rule or by hand", (draws) => bar(draws, "server_error", true, 0, 1, 18, 10)),
        entry("backoff", (draws) => wait(draws, false, 0, 18, 6)),
        entry("because of a rule", (draws) => wait(draws, true, 0, 18, 6)),
      );
    }

    // As many digits as the ticks' distance needs.
    function offset(ms, step) {
      const [unit, name] = step >= 60000 && step % 60000 === 0 ? [60000, "min"] : step >= 100 ? [1000, "s"] : step >= 0.1 ? [1, "ms"] : [0.001, "µs"];
      const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(step / unit) - 1e-9)));
      return `${number((ms / unit).toFixed(digits))} ${name}`;
    }

    function draw() {
      queued = false;
      if (!canvas.isConnected) return;
      const draws = pen(canvas, width, height);
      draws.font = font(0.72);
      draws.textBaseline = "middle";
      const ticks = chart.scaleLinear().domain([from, to]).ticks(Math.max(2, Math.floor(width / 120)));
      draws.strokeStyle = theme.line;
      draws.lineWidth = 1;
      for (const tick of ticks) {
        const at = Math.round(x(tick)) + 0.5;
        draws.beginPath();
        draws.moveTo(at, AXIS);
        draws.lineTo(at, height);
        draws.stroke();
      }
      draws.save();
      draws.beginPath();
      draws.rect(0, AXIS, width, height - AXIS);
      draws.clip();
      const drawn = near ? lanes(draws) : columns(draws);
      draws.restore();
      draws.fillStyle = theme.faint;
      draws.font = font(0.72);
      draws.textAlign = "center";
      const step = ticks.length > 1 ? ticks[1] - ticks[0] : to - from;
      for (const tick of ticks) {
        const at = x(tick);
        if (at > 30 && at < width - 34) draws.fillText(offset(tick, step), at, AXIS / 2);
      }
      draws.textAlign = "left";
      overall();
      // For whoever looks at the page from outside.
      chartBox.dataset.drawn = drawn;
      chartBox.dataset.span = to - from;
      chartBox.dataset.from = from;
      chartBox.dataset.mode = near ? "attempts" : "counts";
    }

    function lanes(draws) {
      const tall = rowHeight();
      const thick = tall - 4;
      const shift = AXIS - box.scrollTop;
      let seen = 0;
      for (const row of placed.rows) {
        const top = row.top + shift + 2;
        if (top + tall < 0 || top > height) continue;
        for (const it of row.attempts) {
          const left = x(it.at_ms);
          const wide = Math.max(x(over(it)) - left, 2);
          if (it.waited_ms) {
            const start = x(begin(it));
            if (left > 0 && start < width) wait(draws, it.waited_for_rule, Math.max(start, -9), Math.min(left, width + 9), top + thick / 2);
          }
          if (left > width || left + wide < 0) continue;
          seen += 1;
          const clipped = Math.max(left, -9);
          bar(draws, it.class, Boolean(it.rule), clipped, top, Math.min(left + wide, width + 9) - clipped, thick);
          if (wide > 40 && !it.rule) {
            const inside = Math.max(left, 0) + 4;
            const room = left + wide - inside - 4;
            if (room > 26) {
              draws.fillStyle = theme.ink;
              draws.fillText(plain(outcome(it)), inside, top + thick / 2 + 0.5, room);
            }
          }
          if (chosen && chosen.it.id === it.id) {
            draws.strokeStyle = theme.text;
            draws.lineWidth = 2;
            draws.strokeRect(left - 2, top - 2, wide + 4, thick + 4);
          }
        }
      }
      draws.font = font(0.8, 600);
      draws.fillStyle = theme.text;
      for (const { top, text } of placed.heads) {
        const at = top + shift + HEAD / 2;
        if (at > 0 && at < height + HEAD) draws.fillText(text.slice(0, Math.floor(width / 6)), 8, at);
      }
      return seen;
    }

    // Counts: what became of attempts from the bottom up, retries as a line,
    // backoff in a strip of its own.
    function columns(draws) {
      // Until the sums of this part are here, those of all of it are shown.
      const covers = counts && counts.from_ms <= from + (to - from) * 0.2 && counts.to_ms >= Math.min(to, now()) - (to - from) * 0.2;
      const counted = covers || !sums ? counts : sums;
      if (!counted) return 0;
      return drawColumns(draws, counted);
    }

    function drawColumns(draws, counts) {
      const strip = Math.min(70, height / 5);
      const bottom = height - strip - 12;
      const most = Math.max(1, ...counts.buckets.map((bucket) => bucket.attempts));
      const y = chart.scaleLinear().domain([0, most]).nice(4).range([bottom, AXIS + 10]);
      const left = (at) => x(counts.from_ms + at * counts.bucket_ms);
      const wide = Math.max(1, left(1) - left(0) - (left(1) - left(0) > 5 ? 1 : 0));
      let seen = 0;
      counts.buckets.forEach((bucket, at) => {
        seen += bucket.attempts;
        const other = Math.max(0, bucket.failed - bucket.throttled);
        let sum = 0;
        for (const [name, value] of [["success", bucket.attempts - bucket.failed], ["throttled", bucket.throttled], ["server_error", other]]) {
          if (value <= 0) continue;
          draws.fillStyle = theme[name];
          draws.fillRect(left(at), y(sum + value), wide, y(sum) - y(sum + value));
          sum += value;
        }
      });
      const path = (value, scale, colour) => {
        draws.beginPath();
        counts.buckets.forEach((bucket, at) => draws[at ? "lineTo" : "moveTo"](left(at) + wide / 2, scale(value(bucket))));
        draws.strokeStyle = theme[colour];
        draws.lineWidth = 2;
        draws.stroke();
      };
      path((bucket) => bucket.retries, y, "timeout");
      const waits = (bucket) => bucket.backoff_ms / counts.bucket_ms;
      const w = chart.scaleLinear().domain([0, Math.max(0.001, ...counts.buckets.map(waits))]).range([height - 2, height - strip]);
      path(waits, w, "wait");
      const rate = (value) => (value / counts.bucket_ms) * 1000;
      draws.fillStyle = theme.faint;
      draws.fillText(`${number(Math.round(rate(y.domain()[1]) * 10) / 10)} attempts a second; line: retries`, 6, AXIS + 6);
      draws.fillText(`in backoff: at most ${number(Math.round(w.domain()[1] * 10) / 10)} calls at a time`, 6, height - strip - 4);
      return seen;
    }

    // All of the time, and the part of it.
    function overall() {
      const [wide, high] = [band.clientWidth, band.clientHeight];
      if (!wide) return;
      const draws = pen(band, wide, high);
      draws.fillStyle = theme.raised;
      draws.fillRect(0, 0, wide, high);
      if (!sums) return;
      const [start, end] = [first(), Math.max(sums.to_ms, live ? now() : sums.to_ms)];
      const at = (ms) => ((ms - start) / Math.max(1, end - start)) * wide;
      const most = Math.max(1, ...sums.buckets.map((bucket) => bucket.attempts));
      sums.buckets.forEach((bucket, index) => {
        const left = at(sums.from_ms + index * sums.bucket_ms);
        const size = Math.max(1, at(sums.from_ms + (index + 1) * sums.bucket_ms) - left);
        const tall = (value) => (value / most) * (high - 4);
        draws.fillStyle = theme.success;
        draws.fillRect(left, high - tall(bucket.attempts), size, tall(bucket.attempts));
        draws.fillStyle = theme.throttled;
        draws.fillRect(left, high - tall(bucket.failed), size, tall(bucket.failed));
      });
      const [left, right] = [Math.max(0, at(from)), Math.min(wide, at(to))];
      draws.strokeStyle = theme.accent;
      draws.lineWidth = 2;
      draws.strokeRect(Math.min(left, wide - 4) + 1, 1, Math.max(right - left - 2, 3), high - 2);
      const share = Math.round(Math.min(1, Math.max(0, (from - start) / Math.max(1, end - start))) * 100);
      band.setAttribute("aria-valuenow", String(share));
      band.setAttribute("aria-valuetext", `from ${duration(Math.max(0, from))} to ${duration(to)} after the start`);
    }
    function jump(event) {
      if (!sums) return;
      const { left, width: wide } = band.getBoundingClientRect();
      const middle = first() + ((event.clientX - left) / wide) * (now() - first());
      turn(false);
      const half = (to - from) / 2;
      view(middle - half, middle + half);
    }
    band.addEventListener("pointerdown", (event) => {
      band.setPointerCapture(event.pointerId);
      jump(event);
    });
    band.addEventListener("pointermove", (event) => band.hasPointerCapture(event.pointerId) && jump(event));

    function find(px, py) {
      if (!near || py < AXIS) return null;
      const at = py - AXIS + box.scrollTop;
      const tall = rowHeight();
      const row = placed.rows.find((one) => at >= one.top && at < one.top + tall);
      let best = null;
      for (const it of row?.attempts ?? []) {
        const left = x(it.at_ms);
        const right = Math.max(x(over(it)), left + 2);
        if (px >= left - 2 && px <= right + 2) best = it;
        else if (!best && it.waited_ms && px >= x(begin(it)) && px < left) best = it;
      }
      return best && { it: best, row };
    }
    function point(found, px) {
      if (chosen?.it.id === found?.it.id) return;
      chosen = found;
      if (!found) return hide();
      const { it, row } = found;
      hover.replaceChildren(
        element("strong", {}, asked(it)),
        element("p", {}, `attempt ${attemptOf(it)}: ${outcomeInFull(it)}`),
        element("p", {}, `${it.waited_ms ? `after a wait of ${duration(it.waited_ms)}${it.waited_for_rule ? " because of a rule" : ""}, ` : ""}took ${duration(it.took_ms)}`),
        element("p", { className: "faint" }, `${it.comm} (${it.pid}), ${it.method} ${it.url.slice(0, 300)}`),
      );
      hover.hidden = false;
      const at = Math.min(Math.max(0, (px ?? Math.max(0, x(it.at_ms))) - 20), Math.max(0, width - hover.offsetWidth - 4));
      const below = row.top + AXIS - box.scrollTop + rowHeight() + 6;
      hover.style.left = `${at}px`;
      hover.style.top = `${below + hover.offsetHeight < height ? below : Math.max(0, row.top + AXIS - box.scrollTop - hover.offsetHeight - 6)}px`;
      redraw();
    }
    function hide() {
      chosen = null;
      hover.hidden = true;
      redraw();
    }
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) return;
      const { left, top } = canvas.getBoundingClientRect();
      const px = event.clientX - left;
      point(find(px, event.clientY - top), px);
    });
    canvas.addEventListener("pointerleave", () => hide());
    canvas.addEventListener("click", (event) => {
      const { left, top } = canvas.getBoundingClientRect();
      const found = find(event.clientX - left, event.clientY - top);
      if (found) panel.open(found.it.id);
    });
    box.addEventListener("scroll", () => redraw());

    function step(by) {
      if (!near || placed.order.length === 0) return;
      let at = chosen ? placed.order.findIndex((one) => one.it.id === chosen.it.id) : -1;
      if (at < 0) at = placed.order.findIndex((one) => one.it.at_ms >= from) - (by > 0 ? 1 : 0);
      const next = placed.order[Math.min(placed.order.length - 1, Math.max(0, at + by))];
      if (live) turn(false);
      if (next.it.at_ms < from || over(next.it) > to) {
        const span = to - from;
        view(next.it.at_ms - span / 2, next.it.at_ms + span / 2);
      }
      const tall = rowHeight();
      if (next.row.top < box.scrollTop) box.scrollTop = next.row.top;
      else if (next.row.top + tall + AXIS > box.scrollTop + height) box.scrollTop = next.row.top + tall + AXIS - height;
      point(next);
    }

    new ResizeObserver(measure).observe(box);
    onTheme(measure);

    return {
      root,
      show(asks) {
        const text = asks.get("filter") ?? "";
        line.set(text);
        if (text !== filter) {
          filter = text;
          run?.abort();
          near = null;
          counts = null;
          sums = null;
          line.say("");
          // That it was understood is seen at once.
          say(state, "looking…");
          arrange();
          redraw();
        }
        visible = true;
        tick().then(() => load().catch(refused));
      },
      hide() {
        visible = false;
        clearTimeout(timer);
        run?.abort();
        loading?.abort();
      },
      key(event) {
        const acts = {
          "/": () => line.input.focus(),
          f: () => turn(!live),
          "+": () => zoomBy(2),
          "=": () => zoomBy(2),
          "-": () => zoomBy(0.5),
          0: () => all(),
          ArrowLeft: () => pan(-0.2),
          ArrowRight: () => pan(0.2),
          j: () => step(1),
          k: () => step(-1),
          PageDown: () => (box.scrollTop += height * 0.8),
          PageUp: () => (box.scrollTop -= height * 0.8),
        };
        if (event.key === "Escape") {
          if (panel.at() !== null) panel.close();
          else if (chosen) hide();
          else return false;
        } else if (event.key === "Enter" && chosen) {
          panel.open(chosen.it.id);
          panel.focus();
        } else if (acts[event.key]) acts[event.key]();
        else return false;
        return true;
      },
    };
  },
};

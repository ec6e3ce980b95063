"use strict";
// Shows the data of this page. All of it came from clients and upstreams:
// it becomes text (textContent, fillText), never markup.
(() => {
  const { report, said, whole, timeline } = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");

  // Characters that steer a terminal or turn text around are shown as codes.
  const STEERING = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  const plain = (text) =>
    String(text).replace(STEERING, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);

  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    for (const child of children) made.append(child instanceof Node ? child : plain(child));
    return made;
  }
  const add = (...elements) => page.append(...elements);
  const paragraph = (text, className = "") => element("p", { className }, text);

  const number = (value) => Number(value).toLocaleString("en-US");
  const count = (value, one, many) => `${number(value)} ${value === 1 ? one : many}`;
  const percent = (share) => (share > 0 && share < 0.005 ? "<1 %" : `${Math.round(share * 100)} %`);
  function duration(ms) {
    if (!(ms > 0)) return "0 s";
    if (ms < 0.1) return `${Math.round(ms * 1000)} µs`;
    if (ms < 9.95) return `${ms.toFixed(1)} ms`;
    if (ms < 999.5) return `${ms.toFixed(0)} ms`;
    if (ms < 9995) return `${(ms / 1000).toFixed(2)} s`;
    if (ms < 59950) return `${(ms / 1000).toFixed(1)} s`;
    const seconds = Math.round(ms / 1000);
    const two = (value) => String(value).padStart(2, "0");
    if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${two(seconds % 60)}s`;
    if (seconds < 172800) return `${Math.floor(seconds / 3600)}h ${two(Math.floor((seconds % 3600) / 60))}m`;
    return `${Math.floor(seconds / 86400)}d ${two(Math.floor((seconds % 86400) / 3600))}h`;
  }
  function bytes(value) {
    let unit = 0;
    while (value >= 1023.5 && unit < 4) (value /= 1024), (unit += 1);
    return `${unit === 0 || value >= 10 ? Math.round(value) : value.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
  }

  const CLASSES = {
    success: "success",
    throttled: "throttled",
    server_error: "server error",
    timeout: "time-out",
    connection: "broken connection",
    client_error: "client error",
    cancelled: "cancelled",
  };
  const inClass = (counts, name) => {
    const entry = (counts.classes || {})[name];
    return entry ? entry.genuine + entry.injected : 0;
  };

  heading();
  numbers();
  assertions();
  lanes();
  report.processes.forEach(process);
  closing();

  function heading() {
    add(
      element("h1", {}, "Retry report"),
      element(
        "p",
        { className: "faint" },
        report.command ? `${report.command} · ` : "",
        `${report.started} to ${report.ended} · seed ${report.seed} · retryscope ${report.version}`,
      ),
    );
    document.title = `Retry report${report.command ? `: ${plain(report.command).slice(0, 80)}` : ""}`;
    report.processes.slice(0, 5).forEach((_, at) => add(paragraph(said[at][0], "verdict")));
    if (report.processes.length > 5) {
      add(paragraph(`and ${count(report.processes.length - 5, "more process", "more processes")}, below.`, "faint"));
    }
    whole.forEach((sentence) => add(paragraph(sentence)));
  }

  function numbers() {
    const totals = report.totals;
    const share = totals.observed_ms > 0 ? totals.stalled_ms / totals.observed_ms : 0;
    const errors = ["server_error", "timeout", "connection"].reduce((sum, name) => sum + inClass(totals, name), 0);
    const shown = [
      ["Calls", number(totals.calls), `${number(totals.calls_retried)} retried`],
      ["Attempts", number(totals.attempts), `×${totals.amplification} a call`],
      ["Retries", number(totals.retries), `${number(totals.retries_exact)} exact, ${number(totals.retries_inferred)} inferred`],
      ["Throttled", number(inClass(totals, "throttled")), "attempts"],
      ["Errors", number(errors), "server, time-out, connection"],
      ["Given up", number(totals.give_ups), "calls"],
      ["Backoff", duration(totals.backoff.total_ms), `p50 ${duration(totals.backoff.p50_ms)}, p99 ${duration(totals.backoff.p99_ms)}`],
      ["Stalled", percent(share), `${duration(totals.stalled_ms)} of ${duration(totals.observed_ms)}`],
    ];
    add(
      element(
        "dl",
        { className: "numbers" },
        ...shown.map(([name, value, note]) =>
          element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, note))),
        ),
      ),
    );
  }

  function assertions() {
    if (!report.assertions || report.assertions.length === 0) return;
    add(element("h2", {}, "Assertions"));
    for (const { assertion, holds, explanation } of report.assertions) {
      add(paragraph(`${assertion} ${holds ? "holds" : "FAILED"}: ${explanation}.`, holds ? "" : "failed"));
    }
  }

  function outcomes(row) {
    const parts = Object.entries(row.statuses).map(([status, times]) => `${status} ×${number(times)}`);
    const replaced = Object.entries(row.replaced).map(([status, times]) => `${status} ×${number(times)}`);
    const under = replaced.length ? ` (upstream ${replaced.join(", ")})` : "";
    const rules = Object.entries({ ...row.injected, ...(row.aborted || {}) });
    parts.push(...rules.map(([status, times], at) => `by rule ${status} ×${number(times)}${at === rules.length - 1 ? under : ""}`));
    parts.push(...Object.entries(row.errors).map(([name, times]) => `${name} ×${number(times)}`));
    return parts.join(", ");
  }

  // What stands for a group of processes has no pid.
  function named(name, pid) {
    return pid ? `${name} (${pid})` : name;
  }

  function process(entry, at) {
    add(element("h2", {}, named(entry.comm, entry.pid)));
    said[at].forEach((sentence, line) => add(paragraph(sentence, line === 0 ? "verdict" : "")));
    const where = [entry.command, entry.unit && `unit ${entry.unit}`, entry.container && `container ${entry.container.slice(0, 12)}`, entry.cgroup];
    if (where.some(Boolean)) add(paragraph(where.filter(Boolean).join(" · "), "faint"));
    if (entry.operations.length > 0) {
      const heads = ["operation", "calls", "attempts", "retries", "gave up", "throttled", "backoff", "p50", "p99", "longest", "outcomes"];
      const name = (head, value) => (head === "outcomes" ? { className: "what", ...value } : value);
      const rows = entry.operations.map((row) => {
        const wait = (ms) => (row.backoff.count > 0 ? duration(ms) : "–");
        const cells = [
          row.service ? `${row.service}.${row.operation}` : row.operation,
          number(row.calls),
          number(row.attempts),
          number(row.retries),
          number(row.give_ups),
          number(inClass(row, "throttled")),
          wait(row.backoff.total_ms),
          wait(row.backoff.p50_ms),
          wait(row.backoff.p99_ms),
          wait(row.backoff.max_ms),
          outcomes(row),
        ];
        return element("tr", {}, ...cells.map((cell, at) => element("td", name(heads[at], {}), cell)));
      });
      const head = element("tr", {}, ...heads.map((head) => element("th", name(head, { scope: "col" }), head)));
      const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
      const label = `Operations of ${named(entry.comm, entry.pid)}`;
      add(element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": label }, table));
    }
    for (const wait of entry.rules) {
      add(paragraph(`Rule "${wait.name}" caused ${count(wait.count, "wait", "waits")}, ${duration(wait.total_ms)} in all.`));
    }
    for (const problem of entry.problems) {
      const times = problem.count > 1 ? ` (${number(problem.count)} times)` : "";
      add(paragraph(`Problem: ${problem.kind}${problem.name ? ` for ${problem.name}` : ""}${times}. ${problem.hint}`, "failed"));
    }
  }

  function closing() {
    const sentences = report.rules.map(({ name, hits }) =>
      hits > 0 ? `Rule "${name}" acted ${count(hits, "time", "times")}.` : `Rule "${name}" never acted: no attempt matched it.`,
    );
    sentences.push(...report.notes);
    const { calls_forgotten, processes_folded, operations_folded, problems_dropped, attempts_unheld } = report.bounds;
    const costs = [
      processes_folded && `${count(processes_folded, "process", "processes")} without a row`,
      calls_forgotten && `${count(calls_forgotten, "call", "calls")} forgotten before the end`,
      operations_folded && `${count(operations_folded, "attempt", "attempts")} under no operation's name`,
      problems_dropped && `${count(problems_dropped, "problem", "problems")} not listed`,
      attempts_unheld && `${count(attempts_unheld, "attempt", "attempts")} let go that should have been held`,
    ].filter(Boolean);
    if (costs.length) sentences.push(`Limits were reached (totals hold): ${costs.join(", ")}.`);
    if (report.fidelity.length) {
      add(
        element("h2", {}, "Different from a direct run"),
        element("ul", {}, ...report.fidelity.map(({ text }) => element("li", {}, text))),
      );
    }
    if (sentences.length) add(element("h2", {}, "Notes"), ...sentences.map((sentence) => paragraph(sentence)));
  }

  // The timeline: a lane for each call that is under way, by process.
  function lanes() {
    add(element("h2", { id: "timeline" }, "Timeline"));
    if (!timeline) {
      add(paragraph("There is no timeline here: attempts are kept where `run` or `attach` is given --report html.", "faint"));
      return;
    }
    const attempts = timeline.attempts;
    if (timeline.older > 0) {
      add(paragraph(`The latest ${number(attempts.length)} attempts are shown; ${number(timeline.older)} older ones are left out.`));
    }
    if (timeline.dropped > 0) add(paragraph(`${number(timeline.dropped)} attempts came too fast to be shown.`));
    if (attempts.length === 0) {
      add(paragraph("No attempt was seen.", "faint"));
      return;
    }

    const ROW = 14, BAR = 10, HEAD = 22, AXIS = 24;
    const injected = (it) => it.rule !== undefined;
    const key = (it) => `${it.pid}:${it.start_ticks}`;
    const first = attempts.reduce((least, it) => Math.min(least, it.at - (it.waited || 0)), Infinity);
    const last = attempts.reduce((most, it) => Math.max(most, it.at + it.took), 0);
    const span = Math.max(last - first, 0.001);

    // Processes in the order of the report, calls in that of their beginnings.
    function arrange(only) {
      const processes = new Map(report.processes.map((entry) => [`${entry.pid}:${entry.start_ticks}`, new Map()]));
      for (const it of attempts) {
        if (!processes.has(key(it))) processes.set(key(it), new Map());
        const calls = processes.get(key(it));
        if (!calls.has(it.call)) calls.set(it.call, []);
        calls.get(it.call).push(it);
      }
      const placed = { heads: [], rows: [], height: 0 };
      let top = 0;
      for (const [id, calls] of processes) {
        let list = [...calls.values()];
        if (only) list = list.filter((call) => call.length > 1 || call[0].attempt > 1);
        if (list.length === 0) continue;
        list.forEach((call) => call.sort((a, b) => a.at - b.at));
        list.sort((a, b) => begin(a[0]) - begin(b[0]));
        placed.heads.push({ top, text: `${plain(timeline.commands[id] || "")} (${id.split(":")[0]})` });
        top += HEAD;
        // The first lane that is free, so that lanes stay few.
        const free = [];
        for (const call of list) {
          const end = call.reduce((most, it) => Math.max(most, it.at + it.took), 0);
          let lane = free.findIndex(({ until }) => until <= begin(call[0]));
          if (lane < 0) lane = free.push({ top: top + free.length * ROW, attempts: [] }) - 1;
          free[lane].until = end;
          free[lane].attempts.push(...call);
        }
        placed.rows.push(...free);
        top += free.length * ROW + 6;
      }
      placed.height = top;
      placed.rows.forEach((row) => row.attempts.sort((a, b) => a.at - b.at));
      placed.order = placed.rows.flatMap((row) => row.attempts.map((it) => ({ it, row }))).sort((a, b) => a.it.at - b.it.at);
      return placed;
    }
    function begin(it) { return it.at - (it.waited || 0); }

    const canvas = element("canvas");
    const spacer = element("div");
    const box = element(
      "div",
      {
        className: "lanes",
        tabIndex: 0,
        role: "group",
        "aria-label": "Timeline of attempts. Left and right arrow: the attempt before and after; up and down: other lanes; plus and minus: zoom; 0: all of it; Escape: none.",
        "aria-describedby": "detail",
      },
      canvas,
      spacer,
    );
    const detail = element("div", { className: "detail", id: "detail", role: "status", hidden: true });
    const chartBox = element("div", { className: "chart" }, box, detail);
    const button = (text, label, act) => {
      const made = element("button", { type: "button", "aria-label": label, title: label }, text);
      made.addEventListener("click", act);
      return made;
    };
    const retriedOnly = element("input", { type: "checkbox", id: "retried" });
    add(
      element(
        "div",
        { className: "tools" },
        button("+", "Zoom in", () => zoomBy(2)),
        button("−", "Zoom out", () => zoomBy(0.5)),
        button("All", "Show all of it", () => reset()),
        element("label", {}, retriedOnly, " only calls that were retried"),
        element("span", { className: "faint" }, "Wheel or pinch to zoom, drag to move, hover or use the arrow keys for details."),
      ),
      legend(),
      chartBox,
    );

    let placed = arrange(false);
    let colours = {}, stripes = {}, width = 0, height = 0;
    let shown = null; // what the details are of
    let queued = false;
    const x = chart.scaleLinear().domain([0, span]);
    let now = x;
    const selection = chart.select(canvas);
    const zoom = chart
      .zoom()
      .filter((event) => (!event.ctrlKey || event.type === "wheel") && !event.button)
      .on("zoom", (event) => {
        const source = event.sourceEvent;
        if (source && source.type === "mousemove") box.scrollTop -= source.movementY;
        now = event.transform.rescaleX(x);
        if (source) hide();
        redraw();
      });
    selection.call(zoom);

    function zoomBy(factor) { selection.call(zoom.scaleBy, factor); place(); }
    function reset() { selection.call(zoom.transform, chart.zoomIdentity); place(); }

    function theme() {
      const style = getComputedStyle(document.documentElement);
      const read = (name) => style.getPropertyValue(`--${name}`).trim();
      for (const name of [...Object.keys(CLASSES), "wait", "ink", "text", "faint", "line", "raised", "back", "accent"]) colours[name] = read(name);
      const draw = canvas.getContext("2d");
      for (const name of Object.keys(CLASSES)) stripes[name] = draw.createPattern(stripe(colours[name], colours.raised), "repeat");
    }
    function stripe(colour, back) {
      const tile = element("canvas", { width: 6, height: 6 });
      const draw = tile.getContext("2d");
      draw.fillStyle = back;
      draw.fillRect(0, 0, 6, 6);
      draw.strokeStyle = colour;
      draw.lineWidth = 2.6;
      for (const from of [-6, 0, 6]) {
        draw.beginPath();
        draw.moveTo(from - 1, 7);
        draw.lineTo(from + 7, -1);
        draw.stroke();
      }
      return tile;
    }
    function legend() {
      const present = new Set(attempts.map((it) => it.class));
      const list = element("ul", { className: "legend" });
      const entry = (text, paint) => {
        const swatch = element("canvas", { width: 18, height: 12, "aria-hidden": "true" });
        swatch.paint = () => paint(swatch.getContext("2d"));
        list.append(element("li", {}, swatch, text));
      };
      for (const [name, text] of Object.entries(CLASSES)) {
        if (present.has(name)) entry(text, (draw) => bar(draw, name, false, 0, 1, 18));
      }
      if (attempts.some(injected)) entry("by a rule (striped)", (draw) => bar(draw, "server_error", true, 0, 1, 18));
      if (attempts.some((it) => it.waited)) entry("backoff", (draw) => line(draw, false, 0, 18, 6));
      if (attempts.some((it) => it.waited_for_rule)) entry("backoff because of a rule", (draw) => line(draw, true, 0, 18, 6));
      return list;
    }
    function bar(draw, name, byRule, left, top, wide) {
      draw.fillStyle = byRule ? stripes[name] : colours[name];
      draw.fillRect(left, top, wide, BAR);
      if (byRule && wide > 4) {
        draw.strokeStyle = colours[name];
        draw.lineWidth = 1;
        draw.setLineDash([]);
        draw.strokeRect(left + 0.5, top + 0.5, wide - 1, BAR - 1);
      }
    }
    function line(draw, byRule, from, to, at) {
      draw.strokeStyle = colours.wait;
      draw.lineWidth = 2;
      draw.setLineDash(byRule ? [3, 3] : []);
      draw.beginPath();
      draw.moveTo(from, at);
      draw.lineTo(to, at);
      draw.stroke();
    }

    const left = (it) => now(it.at - first);
    const wide = (it) => Math.max(now(it.at + it.took - first) - left(it), 2);

    function draw() {
      queued = false;
      const pen = canvas.getContext("2d");
      const ratio = window.devicePixelRatio || 1;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, width, height);
      pen.font = "11px system-ui, sans-serif";
      pen.textBaseline = "middle";
      const ticks = now.ticks(Math.max(2, Math.floor(width / 110)));
      pen.strokeStyle = colours.line;
      pen.lineWidth = 1;
      pen.setLineDash([]);
      for (const tick of ticks) {
        const at = Math.round(now(tick)) + 0.5;
        pen.beginPath();
        pen.moveTo(at, AXIS);
        pen.lineTo(at, height);
        pen.stroke();
      }
      pen.save();
      pen.beginPath();
      pen.rect(0, AXIS, width, height - AXIS);
      pen.clip();
      const shift = AXIS - box.scrollTop;
      let seen = 0;
      for (const row of placed.rows) {
        const top = row.top + shift + 2;
        if (top + ROW < 0 || top > height) continue;
        for (const it of row.attempts) {
          const from = left(it), size = wide(it);
          if (it.waited) {
            const start = now(begin(it) - first);
            if (from > 0 && start < width) line(pen, it.waited_for_rule === true, Math.max(start, -9), Math.min(from, width + 9), top + BAR / 2);
          }
          if (from > width || from + size < 0) continue;
          seen += 1;
          const clipped = Math.max(from, -9);
          bar(pen, it.class, injected(it), clipped, top, Math.min(from + size, width + 9) - clipped);
          const label = String(it.told ?? it.abort ?? it.failure ?? "");
          if (size > 34 && !injected(it)) {
            pen.fillStyle = colours.ink;
            const inside = Math.max(from, 0) + 4;
            if (from + size - inside > 26) pen.fillText(plain(label), inside, top + BAR / 2 + 0.5, from + size - inside - 4);
          }
          if (shown && shown.it === it) {
            pen.strokeStyle = colours.text;
            pen.lineWidth = 2;
            pen.setLineDash([]);
            pen.strokeRect(from - 2, top - 2, size + 4, BAR + 4);
          }
        }
      }
      for (const { top, text } of placed.heads) {
        const at = top + shift + HEAD / 2;
        if (at < 0 || at > height + HEAD) continue;
        pen.fillStyle = colours.text;
        pen.font = "600 12px system-ui, sans-serif";
        pen.fillText(fit(pen, text, width - 16), 8, at);
      }
      pen.restore();
      pen.font = "11px system-ui, sans-serif";
      pen.fillStyle = colours.faint;
      pen.textAlign = "center";
      const step = ticks.length > 1 ? ticks[1] - ticks[0] : span;
      ticks.forEach((tick) => {
        const at = now(tick);
        if (at > 24 && at < width - 30) pen.fillText(offset(tick, step), at, AXIS / 2);
      });
      pen.textAlign = "left";
      // For whoever looks at the page from outside.
      chartBox.dataset.drawn = seen;
      chartBox.dataset.span = now.domain()[1] - now.domain()[0];
    }
    function fit(pen, text, room) {
      if (pen.measureText(text).width <= room) return text;
      let [low, high] = [0, text.length];
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (pen.measureText(`${text.slice(0, middle)}…`).width <= room) low = middle;
        else high = middle - 1;
      }
      return `${text.slice(0, low)}…`;
    }
    // As many digits as the ticks' distance needs.
    function offset(ms, step) {
      const [unit, name] = step >= 60000 && step % 60000 === 0 ? [60000, "min"] : step >= 100 ? [1000, "s"] : step >= 0.1 ? [1, "ms"] : [0.001, "µs"];
      const digits = Math.max(0, Math.min(6, Math.ceil(-Math.log10(step / unit) - 1e-9)));
      return `${(ms / unit).toFixed(digits)} ${name}`;
    }
    function redraw() {
      if (queued) return;
      queued = true;
      requestAnimationFrame(draw);
    }
    function measure() {
      width = box.clientWidth;
      height = Math.min(placed.height + AXIS, Math.max(160, window.innerHeight * 0.65));
      const ratio = window.devicePixelRatio || 1;
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      spacer.style.height = `${Math.max(0, placed.height + AXIS - height)}px`;
      x.range([8, Math.max(width - 8, 9)]);
      const most = Math.max(2, span / (Math.max(width, 1) * 0.0005));
      zoom.scaleExtent([1, most]).extent([[0, 0], [width, height]]).translateExtent([[0, -Infinity], [width, Infinity]]);
      now = chart.zoomTransform(canvas).rescaleX(x);
      theme();
      document.querySelectorAll(".legend canvas").forEach((swatch) => swatch.paint());
      redraw();
    }

    function find(px, py) {
      const at = py - AXIS + box.scrollTop;
      if (py < AXIS) return null;
      const row = placed.rows.find((row) => at >= row.top && at < row.top + ROW);
      if (!row) return null;
      let best = null;
      for (const it of row.attempts) {
        const from = left(it), to = from + wide(it);
        if (px >= from - 2 && px <= to + 2) best = it;
        else if (!best && it.waited && px >= now(begin(it) - first) && px < from) best = it;
      }
      return best && { it: best, row };
    }
    function pairs(it) {
      const told = it.told !== undefined ? String(it.told) : it.abort ? `broken off (${it.abort})` : it.failure || "nothing";
      const upstream = it.status !== undefined ? String(it.status) : it.failure ? it.failure : "not asked";
      return [
        ["attempt", `${it.attempt}${it.max ? ` of at most ${it.max}` : ""} of call ${it.call}${it.evidence === "alone" ? "" : ` (${it.evidence})`}`],
        ["outcome", `${told}, ${CLASSES[it.class] || it.class}${it.code ? ` (${it.code})` : ""}`],
        injected(it) && ["by rule", `"${it.rule}"; the upstream: ${upstream}`],
        !injected(it) && it.failure && it.told !== undefined && ["failure", it.failure],
        ["began", new Date(Date.parse(timeline.started) + it.at).toISOString()],
        ["took", duration(it.took) + (it.held ? `, held up by rules for ${duration(it.held)}` : "")],
        it.waited !== undefined && ["waited before", duration(it.waited) + (it.waited_for_rule ? ", because of a rule" : "")],
        it.retry_after !== undefined && ["was asked to wait", duration(it.retry_after)],
        ["bytes", `${bytes(it.sent)} sent, ${bytes(it.received)} received`],
        ["request", `${it.method} ${it.url} (${it.protocol})`],
        ["process", named(timeline.commands[key(it)] || "", it.pid)],
      ].filter(Boolean);
    }
    function show(found) {
      if (shown && found.it === shown.it) return;
      shown = found;
      detail.replaceChildren(
        element("strong", {}, found.it.operation),
        element("dl", {}, ...pairs(found.it).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
      );
      detail.hidden = false;
      redraw();
    }
    // Beside the attempt, within the box.
    function place() {
      if (!shown) return;
      const top = shown.row.top + AXIS - box.scrollTop + ROW + 6;
      const from = Math.max(left(shown.it), 4);
      const room = chartBox.clientWidth - detail.offsetWidth - 4;
      detail.style.left = `${Math.max(4, Math.min(from, room))}px`;
      detail.style.top = `${top}px`;
    }
    function hide() {
      if (!shown) return;
      shown = null;
      detail.hidden = true;
      redraw();
    }
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) return;
      const found = find(event.offsetX, event.offsetY);
      if (!found) return hide();
      show(found);
      place();
    });
    canvas.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
    canvas.addEventListener("click", (event) => {
      const found = find(event.offsetX, event.offsetY);
      if (found) show(found), place();
      else hide();
    });
    box.addEventListener("scroll", () => (redraw(), place()));

    // By keyboard: what is chosen comes into view.
    function choose(found) {
      if (!found) return;
      const top = found.row.top + AXIS;
      if (top - box.scrollTop < AXIS + HEAD) box.scrollTop = Math.max(0, found.row.top - HEAD);
      else if (top + ROW > box.scrollTop + height) box.scrollTop = top + ROW - height + 8;
      if (left(found.it) < 0 || left(found.it) > width - 8) selection.call(zoom.translateTo, x(found.it.at - first), 0);
      show(found);
      place();
    }
    function beside(by) {
      const { order } = placed;
      if (!shown) return order[by > 0 ? 0 : order.length - 1];
      return order[order.findIndex(({ it }) => it === shown.it) + by];
    }
    function above(by) {
      if (!shown) return placed.order[0];
      const row = placed.rows[placed.rows.indexOf(shown.row) + by];
      if (!row) return null;
      const near = row.attempts.reduce((best, it) => (Math.abs(it.at - shown.it.at) < Math.abs(best.at - shown.it.at) ? it : best));
      return { it: near, row };
    }
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const acts = {
        ArrowRight: () => choose(beside(1)),
        ArrowLeft: () => choose(beside(-1)),
        ArrowDown: () => choose(above(1)),
        ArrowUp: () => choose(above(-1)),
        "+": () => zoomBy(2),
        "=": () => zoomBy(2),
        "-": () => zoomBy(0.5),
        0: reset,
        Escape: hide,
      };
      const act = acts[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
    retriedOnly.addEventListener("change", () => {
      hide();
      placed = arrange(retriedOnly.checked);
      measure();
    });
    new ResizeObserver(measure).observe(box);
    window.addEventListener("resize", measure);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", measure);
    measure();
  }
})();

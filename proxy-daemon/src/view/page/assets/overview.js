// The overview: what is said of each process, and its numbers.
import { get, ignore } from "./api.js";
import { button, count, duration, element, keyed, number, percent, put, say } from "./dom.js";
import { charts } from "./live.js";

/** How often the report is asked for, and how many times as long as the last took to come is waited. */
const EVERY = 2000;
const PART = 10;
/** Processes shown at once. */
const FEW = 20;

const inClass = (counts, name) => {
  const entry = (counts.classes || {})[name];
  return entry ? entry.genuine + entry.injected : 0;
};
const failures = (counts) => ["server_error", "timeout", "connection"].reduce((sum, name) => sum + inClass(counts, name), 0);
const named = (name, pid) => (pid ? `${name} (${pid})` : name);

export const overview = {
  name: "overview",
  title: "Overview",
  make(page) {
    const whole = element("div", { className: "whole" });
    const totals = element("dl", { className: "numbers" });
    const live = charts();
    const processes = element("div", { className: "processes" });
    const more = button("", () => ((all = !all), draw()), { hidden: true });
    const notes = element("section", { hidden: true }, element("h2", {}, "Notes"));
    const noted = element("ul");
    notes.append(noted);
    const root = element(
      "div",
      { className: "overview" },
      element("h1", { className: "hidden" }, "Overview"),
      whole,
      totals,
      live.root,
      element("h2", {}, "Processes"),
      processes,
      more,
      notes,
    );
    let timer = 0;
    let visible = false;
    let all = false;
    let told = null;

    async function ask() {
      clearTimeout(timer);
      const began = performance.now();
      if (!document.hidden) {
        try {
          told = await get("/v1/overview");
          draw();
        } catch (error) {
          ignore(error);
        }
      }
      if (visible) timer = setTimeout(ask, Math.max(EVERY, (performance.now() - began) * PART));
    }

    function draw() {
      if (!told) return;
      const { report, said } = told;
      keyed(whole, told.whole, (_, at) => at, () => element("p"), say);
      numbers(totals, figures(report.totals));
      const list = report.processes.map((entry, at) => ({ entry, said: said[at] ?? [] }));
      keyed(processes, all ? list : list.slice(0, FEW), ({ entry }) => `${entry.pid}:${entry.start_ticks}:${entry.comm}`, () => card(page), fill);
      // One process's numbers are those above.
      root.classList.toggle("one", list.length === 1);
      more.hidden = list.length <= FEW;
      say(more, all ? "Show fewer" : `Show ${count(list.length - FEW, "more process", "more processes")}`);
      const sentences = remarks(report);
      notes.hidden = sentences.length === 0;
      keyed(noted, sentences, (_, at) => at, () => element("li"), say);
    }

    return {
      root,
      show() {
        visible = true;
        live.start();
        ask();
      },
      hide() {
        visible = false;
        live.stop();
        clearTimeout(timer);
      },
    };
  },
};

function figures(counts) {
  const share = counts.observed_ms > 0 ? counts.stalled_ms / counts.observed_ms : 0;
  return [
    ["Calls", number(counts.calls), `${number(counts.calls_retried)} retried`],
    ["Attempts", number(counts.attempts), `×${counts.amplification} a call`],
    ["Retries", number(counts.retries), `${number(counts.retries_exact)} exact, ${number(counts.retries_inferred)} inferred`],
    ["Throttled", number(inClass(counts, "throttled")), "attempts"],
    ["Errors", number(failures(counts)), "server, time-out, connection"],
    ["Given up", number(counts.give_ups), "calls"],
    ["Backoff", duration(counts.backoff.total_ms), `p50 ${duration(counts.backoff.p50_ms)}, p99 ${duration(counts.backoff.p99_ms)}`],
    ["Stalled", percent(share), `${duration(counts.stalled_ms)} of ${duration(counts.observed_ms)}`],
  ];
}

function numbers(list, shown) {
  keyed(
    list,
    shown,
    ([name]) => name,
    ([name]) => {
      const box = element("div", {}, element("dt", {}, name));
      box.value = element("dd");
      box.note = element("dd", { className: "note" });
      return put(box, box.value, box.note);
    },
    (box, [, value, note]) => {
      say(box.value, value);
      say(box.note, note);
    },
  );
}

function card(page) {
  const made = element("article", { className: "card process" });
  made.name = element("h3");
  made.said = element("div", { className: "said" });
  made.where = element("p", { className: "faint" });
  made.bar = element("span");
  made.counts = element("dl", { className: "numbers small" });
  made.flows = button("Its attempts", () => page.go("flows", new URLSearchParams({ filter: `~pid ${made.pid}` }).toString()));
  made.body = element("tbody");
  made.region = element(
    "div",
    { className: "scroll", tabIndex: 0, role: "region" },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...HEADS.map((head) => element("th", { scope: "col", className: head === "outcomes" ? "what" : "" }, head)))),
      made.body,
    ),
  );
  made.details = element("details", {}, element("summary", {}, "Operations"), made.region);
  return put(
    made,
    element("div", { className: "title" }, made.name, made.flows),
    made.said,
    element("div", { className: "share", "aria-hidden": "true" }, made.bar),
    made.counts,
    made.where,
    made.details,
  );
}

const HEADS = ["operation", "calls", "attempts", "retries", "gave up", "throttled", "backoff", "p50", "p99", "longest", "outcomes"];

function fill(made, { entry, said }) {
  made.pid = entry.pid;
  made.flows.hidden = !entry.pid;
  say(made.name, named(entry.comm, entry.pid));
  keyed(
    made.said,
    said,
    (_, at) => at,
    (_, at) => element("p", { className: at === 0 ? "verdict" : "" }),
    say,
  );
  const where = [
    entry.command,
    entry.unit && `unit ${entry.unit}`,
    entry.container && `container ${entry.container_name ?? entry.container.slice(0, 12)}`,
    entry.cgroup,
    entry.exited && "has exited",
  ];
  say(made.where, where.filter(Boolean).join(" · "));
  const share = Math.min(entry.stalled_share, 1) * 100;
  const injected = entry.observed_ms > 0 ? Math.min(entry.stalled_injected_ms / entry.observed_ms, 1) * 100 : 0;
  made.bar.style.width = `${share.toFixed(2)}%`;
  made.bar.style.setProperty("--injected", share > 0 ? `${((injected / share) * 100).toFixed(1)}%` : "0%");
  numbers(made.counts, figures(entry));
  made.details.hidden = entry.operations.length === 0;
  made.region.setAttribute("aria-label", `Operations of ${named(entry.comm, entry.pid)}`);
  keyed(made.body, entry.operations, (row) => `${row.service}.${row.operation}`, row, cells);
}

function row() {
  const made = element("tr");
  made.places = HEADS.map((head) => element("td", { className: head === "outcomes" ? "what" : "" }));
  return put(made, ...made.places);
}

function cells(made, operation) {
  const wait = (ms) => (operation.backoff.count > 0 ? duration(ms) : "–");
  const texts = [
    operation.service ? `${operation.service}.${operation.operation}` : operation.operation,
    number(operation.calls),
    number(operation.attempts),
    number(operation.retries),
    number(operation.give_ups),
    number(inClass(operation, "throttled")),
    wait(operation.backoff.total_ms),
    wait(operation.backoff.p50_ms),
    wait(operation.backoff.p99_ms),
    wait(operation.backoff.max_ms),
    outcomes(operation),
  ];
  texts.forEach((text, at) => say(made.places[at], text));
}

function outcomes(row) {
  const listed = (counts) => Object.entries(counts).map(([name, times]) => `${name} ×${number(times)}`);
  const parts = listed(row.statuses);
  const replaced = listed(row.replaced);
  const under = replaced.length ? ` (upstream ${replaced.join(", ")})` : "";
  const rules = listed({ ...row.injected, ...(row.aborted || {}) });
  parts.push(...rules.map((text, at) => `by rule ${text}${at === rules.length - 1 ? under : ""}`));
  parts.push(...listed(row.errors));
  return parts.join(", ");
}

function remarks(report) {
  const { calls_forgotten, processes_folded, operations_folded, problems_dropped } = report.bounds;
  const costs = [
    processes_folded && `${count(processes_folded, "process", "processes")} without a row`,
    calls_forgotten && `${count(calls_forgotten, "call", "calls")} forgotten before the end`,
    operations_folded && `${count(operations_folded, "attempt", "attempts")} under no operation's name`,
    problems_dropped && `${count(problems_dropped, "problem", "problems")} not listed`,
  ].filter(Boolean);
  const problems = report.processes.flatMap((entry) =>
    entry.problems.map(
      (problem) =>
        `${named(entry.comm, entry.pid)}: ${problem.kind}${problem.name ? ` for ${problem.name}` : ""}${problem.count > 1 ? ` (${number(problem.count)} times)` : ""}. ${problem.hint}`,
    ),
  );
  return [
    ...problems.slice(0, 20),
    ...report.fidelity.map(({ text }) => text),
    ...report.notes,
    ...(costs.length ? [`Limits were reached (totals hold): ${costs.join(", ")}.`] : []),
  ];
}

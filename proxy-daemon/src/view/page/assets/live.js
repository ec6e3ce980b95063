// Live charts: attempts, retries, throttled attempts and backoff of the last
// minutes, as they come.
import { get, ignore } from "./api.js";
import { colours, element, font, onTheme, pen, put, rate, say } from "./dom.js";

/** How long a bucket is, how many there are, and how often is asked. */
const BUCKET = 2000;
const COUNT = 150;
const EVERY = 1000;
/** Waits are known once they are over: so much is asked for again. */
const AGAIN = 20;

const seconds = BUCKET / 1000;
const CHARTS = [
  { title: "Attempts", unit: "a second", colour: "client_error", value: (it) => it.attempts / seconds },
  { title: "Retries", unit: "a second", colour: "timeout", value: (it) => it.retries / seconds },
  { title: "Throttled", unit: "a second", colour: "throttled", value: (it) => it.throttled / seconds },
  { title: "In backoff", unit: "calls at a time", colour: "wait", value: (it) => it.backoff_ms / BUCKET },
];

export function charts() {
  const made = CHARTS.map(one);
  const root = element("div", { className: "live", role: "group", "aria-label": "The last five minutes" }, ...made.map((it) => it.root));
  // By the number of the bucket since the instance's start.
  let buckets = new Map();
  let last = null;
  let timer = 0;
  let running = false;
  let asking = null;
  let at = null;

  async function ask() {
    clearTimeout(timer);
    if (!document.hidden) {
      asking = new AbortController();
      try {
        await look(asking.signal);
        draw();
      } catch (error) {
        ignore(error);
      }
    }
    if (running) timer = setTimeout(ask, EVERY);
  }

  async function look(signal) {
    if (last === null) {
      const now = await get("/v1/timeline?from=9e15&buckets=1&processes=false", signal);
      last = Math.max(0, Math.floor(now.to_ms / BUCKET) - COUNT);
    }
    const from = Math.max(0, last - AGAIN);
    const span = COUNT + AGAIN + 1;
    const told = await get(`/v1/timeline?from=${from * BUCKET}&to=${(from + span) * BUCKET}&buckets=${span}&processes=false`, signal);
    told.buckets.forEach((bucket, index) => buckets.set(from + index, bucket));
    const { to_ms: now } = await get("/v1/timeline?from=9e15&buckets=1&processes=false", signal);
    last = Math.floor(now / BUCKET);
    for (const key of buckets.keys()) if (key < last - COUNT || key > last) buckets.delete(key);
  }

  function draw() {
    if (last === null) return;
    // The bucket that is being filled is left out: it would always seem low.
    const list = Array.from({ length: COUNT }, (_, index) => buckets.get(last - COUNT + index) ?? null);
    made.forEach((chart) => chart.draw(list, at));
  }

  function point(index) {
    at = index;
    draw();
  }
  made.forEach((chart) => chart.onPoint(point));
  onTheme(draw);
  new ResizeObserver(draw).observe(root);

  return {
    root,
    start() {
      running = true;
      ask();
    },
    stop() {
      running = false;
      clearTimeout(timer);
      asking?.abort();
    },
  };
}

function one({ title, unit, colour, value }) {
  const now = element("strong");
  const note = element("span", { className: "faint" }, unit);
  const canvas = element("canvas", { role: "img", "aria-label": `${title}: nothing yet` });
  const box = element("div", { className: "plot" }, canvas);
  const root = element("figure", { className: "card chart" }, put(element("figcaption"), element("span", {}, title), now, note), box);
  let tell = () => {};

  canvas.addEventListener("pointermove", (event) => {
    const { left, width } = canvas.getBoundingClientRect();
    tell(Math.min(COUNT - 1, Math.max(0, Math.floor(((event.clientX - left) / width) * COUNT))));
  });
  canvas.addEventListener("pointerleave", () => tell(null));

  function draw(list, at) {
    const values = list.map((bucket) => (bucket ? value(bucket) : 0));
    const most = Math.max(...values);
    const shown = at === null ? values[COUNT - 1] : values[at];
    say(now, rate(shown));
    say(note, at === null ? unit : `${unit}, ${Math.round((COUNT - at) * seconds)} s ago`);
    canvas.setAttribute("aria-label", `${title} ${unit}: now ${rate(values[COUNT - 1])}, at most ${rate(most)} within five minutes`);
    const [width, height] = [box.clientWidth, box.clientHeight];
    if (width === 0) return;
    const draws = pen(canvas, width, height);
    const theme = colours();
    const y = globalThis.chart.scaleLinear().domain([0, most || 1]).nice(3).range([height - 2, 14]);
    const x = (index) => (index / (COUNT - 1)) * width;
    const top = y.domain()[1];
    draws.strokeStyle = theme.line;
    draws.lineWidth = 1;
    for (const level of [0, top / 2, top]) {
      const line = Math.round(y(level)) + 0.5;
      draws.beginPath();
      draws.moveTo(0, line);
      draws.lineTo(width, line);
      draws.stroke();
    }
    draws.beginPath();
    draws.moveTo(0, y(0));
    values.forEach((it, index) => draws.lineTo(x(index), y(it)));
    draws.lineTo(width, y(0));
    draws.globalAlpha = 0.22;
    draws.fillStyle = theme[colour];
    draws.fill();
    draws.globalAlpha = 1;
    draws.beginPath();
    values.forEach((it, index) => (index ? draws.lineTo(x(index), y(it)) : draws.moveTo(0, y(it))));
    draws.strokeStyle = theme[colour];
    draws.lineWidth = 1.75;
    draws.lineJoin = "round";
    draws.stroke();
    draws.font = font(0.7);
    draws.fillStyle = theme.faint;
    draws.textBaseline = "bottom";
    draws.fillText(rate(top), 2, y(top) - 1);
    if (at !== null) {
      draws.strokeStyle = theme.text;
      draws.lineWidth = 1;
      draws.beginPath();
      draws.moveTo(Math.round(x(at)) + 0.5, 0);
      draws.lineTo(Math.round(x(at)) + 0.5, height);
      draws.stroke();
    }
  }

  return { root, draw, onPoint: (act) => (tell = act) };
}

// Elements, and how values read. Whatever came from clients and upstreams
// becomes text, never markup.

// Characters that steer a terminal or turn text around are shown as codes.
const STEERING = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
// The same, but a text's own lines stay.
const STEERING_LINES = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const code = (char) => `\\u{${char.codePointAt(0).toString(16)}}`;

export const plain = (text) => String(text).replace(STEERING, code);
export const lines = (text) => String(text).replace(/\r\n/g, "\n").replace(STEERING_LINES, code);

/** An element with properties (or attributes) and children: elements, or texts that are made plain. */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (key === "data") Object.assign(made.dataset, value);
    else if (key in made && key !== "list" && key !== "role") made[key] = value;
    else made.setAttribute(key, value);
  }
  put(made, ...children);
  return made;
}

/** Adds children: elements, texts, lists of them; what is empty is left out. */
export function put(parent, ...children) {
  for (const child of children.flat()) {
    if (child === undefined || child === null || child === false || child === "") continue;
    parent.append(child instanceof Node ? child : plain(child));
  }
  return parent;
}

/** Text of an element, touched only where it differs. */
export function say(target, text) {
  const made = plain(text);
  if (target.textContent !== made) target.textContent = made;
  return target;
}

export const button = (text, act, properties = {}) =>
  element("button", { type: "button", ...properties, on: { click: act } }, text);

/**
 * Makes a parent's children those of a list: kept by key, made and updated,
 * put in order, and taken out, so that focus stays where it is.
 */
export function keyed(parent, list, key, make, update) {
  const known = parent.known ?? (parent.known = new Map());
  const seen = new Set();
  let at = parent.firstElementChild;
  for (const [index, item] of list.entries()) {
    const id = String(key(item, index));
    seen.add(id);
    let child = known.get(id);
    if (!child) {
      child = make(item, index);
      known.set(id, child);
    }
    update?.(child, item, index);
    if (child !== at) parent.insertBefore(child, at);
    else at = at.nextElementSibling;
  }
  for (const [id, child] of known) {
    if (seen.has(id)) continue;
    child.remove();
    known.delete(id);
  }
}

// Made once: each costs as much as hundreds of numbers.
const digits = new Intl.NumberFormat("en-US");
export const number = (value) => digits.format(Number(value));
export const count = (value, one, many) => `${number(value)} ${value === 1 ? one : many}`;
export const percent = (share) => (share > 0 && share < 0.005 ? "<1 %" : `${Math.round(share * 100)} %`);

export function duration(ms) {
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

export function bytes(value) {
  let unit = 0;
  while (value >= 1023.5 && unit < 4) (value /= 1024), (unit += 1);
  return `${unit === 0 || value >= 10 ? Math.round(value) : value.toFixed(1)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`;
}

/** A rate that is easily read: 3 digits. */
export function rate(value) {
  if (value >= 99.5) return number(Math.round(value));
  if (value >= 9.95) return value.toFixed(1);
  return value === 0 ? "0" : value.toFixed(2);
}

const two = (value, width = 2) => String(value).padStart(width, "0");

/** The time of day, with milliseconds. */
export function clock(date) {
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${two(date.getMilliseconds(), 3)}`;
}

/** What an outcome's class is called, in the order in which it is told. */
export const CLASSES = {
  success: "success",
  throttled: "throttled",
  server_error: "server error",
  timeout: "time-out",
  connection: "broken connection",
  client_error: "client error",
  cancelled: "cancelled",
};

/** Runs at most once in a while, and once more for what came meanwhile. */
export function paced(act, ms) {
  let timer = 0;
  let again = false;
  return () => {
    if (timer) {
      again = true;
      return;
    }
    act();
    timer = setTimeout(function over() {
      timer = 0;
      if (again) {
        again = false;
        act();
        timer = setTimeout(over, ms);
      }
    }, ms);
  };
}

/** Colours of the theme in force, for canvases. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = [...Object.keys(CLASSES), "wait", "ink", "text", "faint", "line", "raised", "back", "accent", "warn", "bad"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Calls when the theme changes. */
export function onTheme(act) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", act);
}

/** A canvas made as sharp as the screen; the pen, whose units are CSS pixels. */
export function pen(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [wide, high] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
  const drawn = canvas.getContext("2d");
  drawn.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawn.clearRect(0, 0, width, height);
  return drawn;
}

/** The font of canvases, at a size in rem. */
export function font(size = 0.75, weight = 400) {
  const root = parseFloat(getComputedStyle(document.documentElement).fontSize) || 16;
  return `${weight} ${Math.round(root * size)}px system-ui, sans-serif`;
}

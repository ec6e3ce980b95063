// The page: which view is shown, the shortcuts, and how it stands with the
// instance.
import { call, get, ignore, onStanding, standing, takeToken } from "./api.js";
import { button, element, put, say } from "./dom.js";
import { flows } from "./flows.js";
import { holds } from "./holds.js";
import { overview } from "./overview.js";
import { rules } from "./rules.js";
import { timeline } from "./timeline.js";

const VIEWS = [overview, flows, timeline, rules, holds];
const main = document.getElementById("main");
const places = new Map();
let shown = null;

/** Says something for a moment. */
export function notice(text, bad = false) {
  const shownFor = bad ? 12000 : 5000;
  const box = element("p", { className: bad ? "notice bad" : "notice" }, text);
  document.getElementById("notices").append(box);
  setTimeout(() => box.remove(), shownFor);
}

/** What a view may ask of the page. */
const page = {
  notice,
  /** Shows a view, with words of its own behind the name. */
  go(name, words = "") {
    location.hash = `#/${name}${words ? `?${words}` : ""}`;
  },
  /** Runs a change, and says what was refused. */
  async change(method, path, body) {
    try {
      return { done: true, answer: await call(method, path, body) };
    } catch (error) {
      notice(error.message, true);
      return { done: false, error };
    }
  },
};

function views() {
  const nav = document.getElementById("views");
  VIEWS.forEach((view, index) => {
    const link = element(
      "a",
      { href: `#/${view.name}`, title: `${view.title} (${index + 1})`, "aria-keyshortcuts": String(index + 1) },
      view.title,
    );
    nav.append(link);
    places.set(view.name, { view, link, made: null });
  });
}

function route() {
  const [, name, words] = /^#\/([a-z]+)(?:\?(.*))?$/.exec(location.hash) ?? [null, VIEWS[0].name, ""];
  const place = places.get(name) ?? places.get(VIEWS[0].name);
  if (shown !== place) {
    shown?.made.hide?.();
    shown?.made.root.remove();
    shown?.link.removeAttribute("aria-current");
    if (!place.made) place.made = place.view.make(page);
    main.append(place.made.root);
    place.link.setAttribute("aria-current", "page");
    document.title = `${place.view.title} · retryscope`;
    shown = place;
  }
  place.made.show?.(new URLSearchParams(words ?? ""));
}

const SHORTCUTS = [
  ["1 … 5", "the views, from the left"],
  ["/", "type a filter"],
  ["f", "follow what comes, or stop to"],
  ["↑ ↓, j k", "the attempt before or after"],
  ["Enter", "show the attempt in full"],
  ["+ − 0", "timeline: nearer, farther, all of it"],
  ["← →", "timeline: earlier, later"],
  ["Esc", "close what is open"],
  ["?", "these shortcuts"],
];

function help() {
  const dialog = element(
    "dialog",
    { className: "help", "aria-labelledby": "shortcuts" },
    element("h2", { id: "shortcuts" }, "Shortcuts"),
    element("dl", {}, ...SHORTCUTS.flatMap(([keys, does]) => [element("dt", {}, element("kbd", {}, keys)), element("dd", {}, does)])),
    button("Close", () => dialog.close()),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

const types = (target) => target.closest?.("input, textarea, select, [contenteditable]");

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (document.querySelector("dialog[open]")) return;
  if (types(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const at = Number(event.key) - 1;
  if (VIEWS[at]) page.go(VIEWS[at].name);
  else if (event.key === "?") help();
  else if (!shown?.made.key?.(event)) return;
  event.preventDefault();
}

const STANDINGS = {
  live: ["up", "Live"],
  trying: ["trying", "Connecting …"],
  ended: ["ended", "The instance has ended; what is shown is what was known last"],
  locked: ["locked", "Not this instance's token"],
};

function stands(state) {
  const box = document.getElementById("standing");
  const [kind, text] = STANDINGS[state];
  box.className = `standing ${kind}`;
  say(box, text);
  document.body.dataset.standing = kind;
  if (state === "locked") locked();
}

function locked() {
  shown?.made.hide?.();
  main.replaceChildren(
    element(
      "section",
      { className: "card locked" },
      element("h1", {}, "This page needs its token"),
      put(
        element("p"),
        "Every start of retryscope has a new one. Type ",
        element("kbd", {}, "sudo retryscope page"),
        " where it runs, and open the address that it prints.",
      ),
    ),
  );
  removeEventListener("hashchange", route);
}

// What is held is told wherever one looks: somebody's client waits.
function watchHolds() {
  const place = places.get(holds.name);
  place.made ??= holds.make(page);
  const badge = element("span", { className: "badge", hidden: true });
  place.link.append(badge);
  place.made.watch(new AbortController().signal, (held) => {
    badge.hidden = held === 0;
    say(badge, String(held));
    badge.setAttribute("aria-label", `${held} held`);
  });
}

async function about() {
  try {
    const told = await get("/v1/instance");
    const what = told.command ?? (told.targets.length ? told.targets.join(", ") : told.target);
    const target = say(document.getElementById("target"), what);
    target.title = `pid ${told.pid}, retryscope ${told.version}`;
  } catch (error) {
    ignore(error);
  }
}

views();
if (takeToken()) {
  onStanding(stands);
  addEventListener("hashchange", route);
  addEventListener("keydown", keys);
  document.getElementById("help").addEventListener("click", help);
  route();
  watchHolds();
  about();
  // So that an end is noticed, also where nothing else is asked.
  setInterval(() => {
    if (standing() !== "locked" && !document.hidden) about();
  }, 2000);
} else {
  stands("locked");
}

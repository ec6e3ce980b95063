// A line for a filter, with what may come next in it.
import { get } from "./api.js";
import { element, plain, put } from "./dom.js";

/** How long a pause in typing is, before what was typed counts. */
const PAUSE = 250;
const SHOWN = 12;
let made = 0;

/**
 * Lets a line offer what may come next. `within(text)` gives the part up to
 * the cursor that is a filter, or null where none is.
 */
export function completes(input, within = (text) => text) {
  const id = `offers-${(made += 1)}`;
  const list = element("ul", { id, className: "offers", role: "listbox", "aria-label": "What may come next", hidden: true });
  const box = element("div", { className: "completed" });
  input.replaceWith(box);
  put(box, input, list);
  for (const [name, value] of [["role", "combobox"], ["aria-autocomplete", "list"], ["aria-expanded", "false"], ["aria-controls", id]]) input.setAttribute(name, value);
  let items = [];
  let replace = 0;
  let chosen = -1;
  let asking = null;

  function close() {
    asking?.abort();
    items = [];
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function choose(at) {
    chosen = at;
    [...list.children].forEach((item, index) => item.setAttribute("aria-selected", String(index === at)));
    const item = list.children[at];
    if (item) {
      input.setAttribute("aria-activedescendant", item.id);
      item.scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function accept(at) {
    const cursor = input.selectionStart;
    // Counted in characters, not in the units of this language.
    const before = [...input.value.slice(0, cursor)];
    const kept = before.slice(0, before.length - replace).join("");
    const added = items[at].text;
    const rest = input.value.slice(cursor);
    input.value = kept + added + rest;
    const to = kept.length + added.length;
    input.setSelectionRange(to, to);
    close();
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  async function offer() {
    asking?.abort();
    const text = within(input.value.slice(0, input.selectionStart));
    if (text === null || document.activeElement !== input) return close();
    asking = new AbortController();
    try {
      const told = await get(`/v1/filters/complete?${new URLSearchParams({ text })}`, asking.signal);
      items = told.items.slice(0, SHOWN);
      replace = told.replace;
    } catch {
      return;
    }
    // What is there already is no help.
    const typed = [...text].slice(-replace || undefined).join("");
    if (items.length === 0 || (items.length === 1 && replace > 0 && items[0].text.trim() === typed)) return close();
    list.replaceChildren(
      ...items.map((item, index) =>
        element(
          "li",
          { role: "option", id: `${id}-${index}`, "aria-selected": "false", on: { pointerdown: (event) => (event.preventDefault(), accept(index)) } },
          element("code", {}, item.text),
          item.help ? element("span", {}, item.help) : null,
        ),
      ),
    );
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    choose(-1);
  }

  let timer = 0;
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(offer, 60);
  });
  input.addEventListener("blur", () => {
    clearTimeout(timer);
    close();
  });
  input.addEventListener("keydown", (event) => {
    const open = !list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) return void offer();
      const step = event.key === "ArrowDown" ? 1 : -1;
      choose(chosen < 0 && step < 0 ? items.length - 1 : (chosen + step + items.length) % items.length);
    } else if (open && (event.key === "Tab" || event.key === "Enter") && (chosen >= 0 || event.key === "Tab")) {
      event.preventDefault();
      event.stopPropagation();
      accept(Math.max(chosen, 0));
    } else if (event.key === "Escape" && open) {
      event.preventDefault();
      event.stopPropagation();
      close();
    } else if (event.key === "Enter") {
      clearTimeout(timer);
      close();
    }
  });
  return { box, close };
}

/** A line for the filter of a view. `changed(text)` gets what was typed, once there is a pause. */
export function filterLine(changed, id = "filter") {
  const input = element("input", {
    id,
    type: "text",
    className: "code",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: false,
    maxLength: 4096,
    placeholder: "~svc s3 & ~retry, ~c 429, ~pid 4242 …",
    "aria-describedby": `${id}-said`,
  });
  const said = element("p", { id: `${id}-said`, className: "bad", role: "status", hidden: true });
  const label = element("label", { htmlFor: id }, "Filter");
  const root = element("div", { className: "row filter" }, label, input);
  completes(input);
  put(root, said);
  let timer = 0;
  let last = "";
  const settle = () => {
    clearTimeout(timer);
    const text = input.value.trim();
    if (text !== last) changed((last = text));
  };
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(settle, PAUSE);
  });
  input.addEventListener("keydown", (event) => event.key === "Enter" && !event.defaultPrevented && settle());
  return {
    root,
    input,
    /** Sets it without telling. */
    set(text) {
      if (document.activeElement === input && input.value.trim() === text) return;
      input.value = text;
      last = text;
    },
    /** Says what is wrong with it; nothing where nothing is. */
    say(text) {
      said.textContent = text ? plain(text) : "";
      said.hidden = !text;
      input.setAttribute("aria-invalid", String(Boolean(text)));
    },
  };
}

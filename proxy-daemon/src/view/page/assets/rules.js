// The rules in force: checked as they are typed, added, switched, removed.
import { call, get, ignore } from "./api.js";
import { completes } from "./filter.js";
import { button, count, element, keyed, number, put, say } from "./dom.js";

const EVERY = 2000;

export const rules = {
  name: "rules",
  title: "Rules",
  make(page) {
    const input = element("input", {
      id: "rule",
      type: "text",
      className: "code",
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: false,
      maxLength: 8192,
      placeholder: "~svc s3 & ~attempt ..2 => 429",
      "aria-describedby": "rule-said",
    });
    const said = element("pre", { id: "rule-said", className: "said", role: "status" });
    const add = element("button", { type: "submit", className: "main" }, "Add");
    const form = element(
      "form",
      { className: "row", on: { submit: (event) => (event.preventDefault(), submit()) } },
      element("label", { htmlFor: "rule" }, "New rule"),
      input,
      add,
    );
    const state = element("p", { className: "faint" });
    const every = button("Switch all off", () => switchAll());
    const list = element("ul", { className: "rules" });
    const none = element("p", { className: "faint" }, "No rule is in force: every answer is told as it came.");
    const root = element(
      "div",
      {},
      element("h1", {}, "Rules"),
      element("p", { className: "faint" }, "What is written before => says which attempts, what comes after it what becomes of them. A change acts from the next attempt on."),
      form,
      said,
      element("div", { className: "tools" }, state, every),
      none,
      list,
    );
    // Before the arrow, a rule is a filter.
    completes(input, (text) => (text.includes("=>") ? null : text));
    let told = null;
    let timer = 0;
    let visible = false;
    let checked = 0;

    async function ask() {
      clearTimeout(timer);
      if (!document.hidden) {
        try {
          told = await get("/v1/rules");
          draw();
        } catch (error) {
          ignore(error);
        }
      }
      if (visible) timer = setTimeout(ask, EVERY);
    }

    function draw() {
      const on = told.rules.filter((rule) => rule.enabled).length;
      const parts = [
        count(told.rules.length, "rule", "rules"),
        `${number(on)} on`,
        `acted on ${count(told.injections, "attempt", "attempts")}`,
        `seed ${told.seed}`,
      ];
      if (told.dry_run) parts.push("dry run: nothing is done, only counted");
      say(state, parts.join(" · "));
      every.hidden = told.rules.length === 0;
      say(every, on > 0 ? "Switch all off" : "Switch all on");
      none.hidden = told.rules.length > 0;
      keyed(list, told.stopped ? [{ name: "stopped", stopped: told.stopped }, ...told.rules] : told.rules, (rule) => `${rule.name}`, row, fill);
    }

    function row(rule) {
      const made = element("li", { className: "card rule" });
      if (rule.stopped) {
        made.className = "card failed";
        return made;
      }
      made.toggle = element("button", { type: "button", role: "switch", className: "switch", on: { click: () => flip(rule.name, made.toggle) } });
      made.name = element("strong");
      made.text = element("code");
      made.source = element("span", { className: "faint" });
      made.hits = element("span", { className: "hits" });
      made.ending = button("Remove", () => remove(rule.name), { "aria-label": `Remove ${rule.name}` });
      return put(made, made.toggle, element("div", { className: "what" }, made.name, made.text, made.source), made.hits, made.ending);
    }

    function fill(made, rule) {
      if (rule.stopped) {
        say(made, `Rules stopped acting: ${rule.stopped}.`);
        return;
      }
      made.toggle.setAttribute("aria-checked", String(rule.enabled));
      made.toggle.setAttribute("aria-label", `${rule.name} is on`);
      made.classList.toggle("off", !rule.enabled);
      made.name.hidden = rule.rule.startsWith(rule.name);
      say(made.name, rule.name);
      say(made.text, rule.rule);
      say(made.source, rule.source);
      say(made.hits, count(rule.hits, "hit", "hits"));
    }

    const path = (name) => `/v1/rules/${encodeURIComponent(name)}`;

    async function flip(name, toggle) {
      await page.change("PUT", `${path(name)}/enabled`, { enabled: toggle.getAttribute("aria-checked") !== "true" });
      ask();
    }

    async function switchAll() {
      await page.change("PUT", "/v1/enabled", { enabled: !told.rules.some((rule) => rule.enabled) });
      ask();
    }

    async function remove(name) {
      await page.change("DELETE", path(name));
      ask();
      input.focus();
    }

    async function submit() {
      if (!input.value.trim()) return;
      checked += 1;
      try {
        const { name } = await call("POST", "/v1/rules", { rule: input.value });
        page.notice(`Added "${name}"; it acts from the next attempt on.`);
        input.value = "";
        tell("", true);
      } catch (error) {
        tell(error.message, false);
      }
      ask();
    }

    function tell(text, good) {
      said.textContent = "";
      put(said, ...text.split("\n").flatMap((line, at) => (at ? [document.createTextNode("\n"), line] : [line])));
      said.classList.toggle("bad", !good);
      input.setAttribute("aria-invalid", String(!good && text !== ""));
    }

    // What is typed is checked once there is a pause in it.
    let pausing = 0;
    input.addEventListener("input", () => {
      clearTimeout(pausing);
      pausing = setTimeout(check, 200);
    });
    async function check() {
      const mine = (checked += 1);
      const text = input.value;
      if (!text.trim()) return tell("", true);
      let says;
      let good = true;
      try {
        const { name, rule } = await call("POST", "/v1/rules/check", { rule: text });
        says = rule.startsWith(name) ? `Can be added: ${rule}` : `Can be added as "${name}": ${rule}`;
      } catch (error) {
        ignore(error);
        says = error.message;
        good = false;
      }
      if (mine === checked) tell(says, good);
    }

    return {
      root,
      show() {
        visible = true;
        ask();
      },
      hide() {
        visible = false;
        clearTimeout(timer);
      },
      key(event) {
        if (event.key !== "/") return false;
        input.focus();
        return true;
      },
    };
  },
};

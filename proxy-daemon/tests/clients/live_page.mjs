// Looks at a running instance's page with a browser, as a person would:
// live_page.mjs FOLDER URL SCENARIO [PICTURES], where FOLDER holds
// node_modules. Where something has to happen outside, it says `>NAME` and
// goes on once it is sent a line. Prints what was seen as JSON at its end.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const [folder, url, scenario, pictures] = process.argv.slice(2);
const { chromium } = await import(join(folder, 'node_modules/playwright-core/index.mjs'));
const axe = readFileSync(join(folder, 'node_modules/axe-core/axe.min.js'), 'utf8');
const profile = mkdtempSync(join(tmpdir(), 'retryscope-browser-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: '/usr/bin/chromium',
  headless: true,
  viewport: { width: 1280, height: 900 },
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run'],
});
context.setDefaultTimeout(20000);
const origin = new URL(url).origin;
const seen = { errors: [], requests: [], dialogs: 0, axe: [], steps: {} };
const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** What does not answer any more, once the instance has ended, is no fault of the page's. */
const UNANSWERED = /ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED_ENCODING|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE/;
let over = false;

/** Lets the test do its part. */
async function outside(name) {
  console.log(`>${name}`);
  return (await input.next()).value;
}

let page;
try {
  page = await context.newPage();
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && !(over && UNANSWERED.test(message.text())) && seen.errors.push(message.text()));
  page.on('pageerror', (error) => seen.errors.push(String(error.stack ?? error)));
  page.on('dialog', (dialog) => (seen.dialogs++, dialog.dismiss()));
  page.on('request', (request) => !request.url().startsWith(`${origin}/`) && seen.requests.push(request.url()));
  await page.goto(url);
  await page.getByRole('status').filter({ hasText: 'Live' }).waitFor();
  seen.address = page.url();
  await { scene, tour, hostile, speed }[scenario]();
  seen.elements = await page.evaluate(() => ({
    images: [...document.images].filter((it) => !it.src.endsWith('/icon.svg')).length,
    scripts: document.scripts.length,
    frames: document.querySelectorAll('iframe, object, embed, script:not([src])').length,
    pwned: window.pwned,
  }));
  seen.storage = await page.evaluate(() => ({ cookies: document.cookie, local: localStorage.length }));
} catch (error) {
  seen.failed = String(error.stack ?? error);
  if (page) seen.text = await page.locator('body').innerText().catch(() => '');
  if (page && pictures) await page.screenshot({ path: join(pictures, `${scenario}-failed.png`) }).catch(() => {});
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
console.log(JSON.stringify(seen));
process.exit(0);

async function view(name) {
  await page.getByRole('navigation').getByRole('link', { name }).click();
}
async function picture(name) {
  if (pictures) await page.screenshot({ path: join(pictures, `${name}.png`) });
}
function frames() {
  return page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
}
/** Texts of the rows that are seen, from the top. */
function listed() {
  return page.locator('.space .row-of').evaluateAll((rows) =>
    rows
      .filter((row) => row.shown && row.style.visibility !== 'hidden')
      .sort((a, b) => a.index - b.index)
      .map((row) => Object.fromEntries(row.parts.map((part) => [part.className, part.textContent]))),
  );
}

/** Whether all can use it, in the view and the theme that are shown. */
async function accessible(name) {
  // The page's own policy would not let a script in: a debugger may.
  if (await page.evaluate(() => !window.axe)) await page.evaluate(axe);
  const found = await page.evaluate(async () => {
    const told = await window.axe.run(document, { resultTypes: ['violations'] });
    return told.violations.map(({ id, impact, nodes }) => ({ id, impact, nodes: nodes.slice(0, 4).map((node) => `${node.html.slice(0, 200)} ${node.failureSummary}`) }));
  });
  for (const violation of found) seen.axe.push({ view: name, ...violation });
}

// The talk's scene: a list that is empty, a program that asks, its attempt
// held with the answer in hand, 429 typed over the 200, and what comes of it.
async function scene() {
  await view('Flows');
  await page.getByText('No attempt has ended yet').waitFor();
  seen.steps.empty = await listed();
  await picture('scene-1-empty');
  await view('Intercepts');
  await page.getByLabel('Hold', { exact: true }).fill('~op ListBuckets');
  await page.keyboard.press('Escape');
  await page.getByRole('button', { name: 'Hold', exact: true }).click();
  await page.getByText('0 held so far').waitFor();
  await page.getByText('Nothing is held at the moment').waitFor();
  await view('Flows');
  await outside('ask');

  // Said in every view.
  await page.getByText('Held: s3.ListBuckets, attempt 1').waitFor();
  await page.getByRole('navigation').getByText('1', { exact: true }).waitFor();
  seen.steps.unended = await listed();
  await view('Intercepts');
  const held = page.locator('.held li');
  await held.filter({ hasText: 'attempt 1 of 5, response 200' }).waitFor();
  await held.getByRole('button', { name: /ListBuckets/ }).click();
  const editor = page.getByRole('region', { name: 'The held attempt' });
  await editor.getByLabel('Status', { exact: true }).waitFor();
  seen.steps.editor = {
    status: await editor.getByLabel('Status', { exact: true }).inputValue(),
    headers: await editor.getByLabel('Headers').inputValue(),
    body: await editor.getByLabel('Body').inputValue(),
  };
  seen.steps.held = await held.innerText();
  await editor.getByLabel('Status', { exact: true }).fill('429');
  await picture('scene-2-typed');
  await editor.getByRole('button', { name: 'Resume' }).click();

  // Attempt 2 comes, with its wait. This time by keyboard alone.
  await held.filter({ hasText: /attempt 2 of 5 after a wait of [\d.]+ m?s, response 200/ }).waitFor();
  seen.steps.second = await held.innerText();
  await picture('scene-3-second');
  await held.getByRole('button', { name: /ListBuckets/ }).focus();
  await page.keyboard.press('Enter');
  await editor.getByLabel('Status', { exact: true }).waitFor();
  await page.waitForFunction(() => document.activeElement?.id === 'edit-status');
  await page.keyboard.type('429');
  await page.keyboard.press('Enter');

  await held.filter({ hasText: 'attempt 3 of 5 after a wait of' }).waitFor();
  await held.getByRole('button', { name: /^Resume/ }).click();
  await outside('let go');
  await page.getByText('attempt 3 went on as it was').waitFor();
  seen.steps.past = await page.locator('.past li').allInnerTexts();
  await view('Flows');
  await page.waitForFunction(() => [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown).length >= 3);
  seen.steps.flows = await listed();
  await picture('scene-4-flows');
  await page.locator('.space .row-of').filter({ hasText: '3 of 5' }).click();
  const detail = page.getByRole('region', { name: 'One attempt' });
  await detail.getByText('Its call: 3 attempts').waitFor();
  seen.steps.detail = await detail.innerText();
  await picture('scene-5-detail');
  await view('Timeline');
  await page.waitForFunction(() => Number(document.querySelector('.times-box')?.dataset.drawn) >= 3);
  await picture('scene-6-timeline');
  await view('Overview');
  await page.getByText('were spent in backoff').or(page.getByText('in backoff,')).or(page.getByText('spent in backoff')).first().waitFor();
  seen.steps.overview = await page.locator('main').innerText();
}

// Everything that the page can do, with a program that keeps asking.
async function tour() {
  await page.getByRole('heading', { name: 'Processes' }).waitFor();
  await page.locator('.process .verdict').first().waitFor();
  seen.steps.verdict = await page.locator('.process .verdict').first().innerText();
  await page.waitForFunction(() => [...document.querySelectorAll('.chart canvas')].every((it) => /now [\d.,]+, at most (?!0 )/.test(it.getAttribute('aria-label')) || it.getAttribute('aria-label').startsWith('Throttled') || it.getAttribute('aria-label').startsWith('In backoff') || it.getAttribute('aria-label').startsWith('Retries')));
  seen.steps.charts = await page.locator('.chart canvas').evaluateAll((all) => all.map((it) => it.getAttribute('aria-label')));

  // By keyboard alone: to the views, the help and back.
  await page.keyboard.press('?');
  await page.getByRole('dialog').waitFor();
  seen.steps.help = await page.getByRole('dialog').innerText();
  await accessible('help');
  await page.keyboard.press('Escape');
  await page.getByRole('dialog').waitFor({ state: 'hidden' });
  await page.locator('.skip').focus();
  seen.steps.tabs = [];
  for (let at = 0; at < 8; at += 1) {
    await page.keyboard.press('Tab');
    seen.steps.tabs.push(
      await page.evaluate(() => {
        const it = document.activeElement;
        const outline = getComputedStyle(it);
        return { name: it.textContent.trim().slice(0, 40) || it.getAttribute('aria-label'), visible: outline.outlineStyle !== 'none' && parseFloat(outline.outlineWidth) >= 2 };
      }),
    );
  }

  // A rule: wrong, mended, added, switched off and on, removed.
  await page.keyboard.press('4');
  await page.getByRole('heading', { name: 'Rules' }).waitFor();
  await page.keyboard.press('/');
  await page.keyboard.type('~u /other & ~dd x => 503');
  await page.locator('#rule-said.bad').filter({ hasText: '^' }).waitFor();
  seen.steps.wrongRule = await page.locator('#rule-said').innerText();
  await picture('tour-rule-wrong');
  await page.locator('#rule').fill('~u /other => 503 name "others"');
  await page.locator('#rule-said').filter({ hasText: 'Can be added' }).waitFor();
  await page.keyboard.press('Enter');
  const rule = page.locator('.rule').filter({ hasText: 'others' });
  await rule.waitFor();
  seen.steps.ruled = await outside('ask /other');
  await rule.filter({ hasText: '1 hit' }).waitFor();
  await rule.getByRole('switch').click();
  await page.locator('.rule.off').filter({ hasText: 'others' }).waitFor();
  seen.steps.unruled = await outside('ask /other');
  await rule.getByRole('switch').click();
  await page.locator('.rule:not(.off)').filter({ hasText: 'others' }).waitFor();
  seen.steps.again = await outside('ask /other');
  await picture('tour-rules');
  await rule.getByRole('button', { name: 'Remove others' }).click();
  await rule.waitFor({ state: 'detached' });
  // A browser tells of each refusal, and what was typed first was wrong.
  seen.errors = seen.errors.filter((text) => !text.includes('status of 422'));
  seen.steps.removed = await outside('ask /other');

  // A filter, with what is offered.
  await view('Flows');
  await page.waitForFunction(() => [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown).length >= 8);
  await page.locator('body').press('/');
  await page.keyboard.type('~ret');
  const offers = page.getByRole('listbox', { name: 'What may come next' });
  await offers.getByRole('option').first().waitFor();
  seen.steps.offers = await offers.getByRole('option').allInnerTexts();
  await picture('tour-offers');
  await accessible('offers');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  seen.steps.completed = await page.locator('#filter').inputValue();
  await page.getByText(/^[1-9]\d* found/).waitFor();
  await page.waitForFunction(() => {
    const rows = [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown);
    return rows.length > 0 && rows.every((row) => !row.parts[3].textContent.startsWith('1'));
  });
  seen.steps.retries = await listed();
  // What comes and is taken is added to it.
  const before = seen.steps.retries.length;
  await outside('retry');
  await page.waitForFunction((before) => [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown).length > before, before);
  await page.locator('#filter').fill('~dd x');
  await page.locator('#filter-said').filter({ hasText: '~d' }).waitFor();
  seen.steps.wrongFilter = await page.locator('#filter-said').innerText();
  await page.locator('#filter').fill('~c 404');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown).length === 1);
  seen.steps.found = await listed();
  seen.steps.linked = page.url();
  seen.errors = seen.errors.filter((text) => !text.includes('status of 400'));
  await page.locator('#filter').fill('');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown).length >= 8);
  // By keyboard: chosen, opened, the one below, closed.
  await page.getByRole('grid').focus();
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('ArrowDown');
  await page.keyboard.press('Enter');
  const detail = page.getByRole('region', { name: 'One attempt' });
  await detail.getByText('Its call').waitFor();
  seen.steps.opened = await detail.locator('.facts').innerText();
  await detail.getByRole('button', { name: 'As a curl command' }).click();
  await detail.locator('.curl pre').filter({ hasText: 'curl' }).waitFor();
  seen.steps.curl = await detail.locator('.curl pre').innerText();
  await picture('tour-detail');
  await page.keyboard.press('Escape');
  await detail.waitFor({ state: 'hidden' });

  // The timeline: zoomed by wheel and keys, moved, hovered, opened.
  await view('Timeline');
  await page.waitForFunction(() => Number(document.querySelector('.times-box')?.dataset.drawn) > 5);
  const span = () => page.locator('.times-box').evaluate((it) => Number(it.dataset.span));
  const changed = (from) => page.waitForFunction((from) => Math.abs(Number(document.querySelector('.times-box').dataset.span) / from - 1) > 0.05, from);
  await page.getByRole('button', { name: 'All of it' }).click();
  await frames();
  const whole = await span();
  const canvas = await page.locator('.lanes canvas').boundingBox();
  await page.mouse.move(canvas.x + canvas.width / 2, canvas.y + 200);
  await page.mouse.wheel(0, -300);
  await changed(whole);
  seen.steps.zoomed = (await span()) / whole;
  const closer = await span();
  await page.locator('.lanes').focus();
  await page.keyboard.press('+');
  await changed(closer);
  seen.steps.keyZoomed = (await span()) / closer;
  await page.keyboard.press('0');
  await frames();
  seen.steps.reset = (await span()) / whole;
  await page.waitForFunction(() => Number(document.querySelector('.times-box').dataset.drawn) > 5);
  const y = canvas.y + 24 + 22 + 7;
  const hover = page.locator('.hover');
  for (let x = 6; x < canvas.width && !seen.steps.hovered; x += 2) {
    await page.mouse.move(canvas.x + x, y);
    if (await hover.isVisible()) {
      seen.steps.hovered = await hover.innerText();
      await picture('tour-hover');
      await page.mouse.click(canvas.x + x, y);
    }
  }
  await page.locator('.times .detail').getByText('Its call').waitFor();
  await page.keyboard.press('Escape');
  await page.locator('.lanes').focus();
  seen.steps.stepped = [];
  for (const key of ['j', 'j', 'k']) {
    await page.keyboard.press(key);
    seen.steps.stepped.push((await hover.isVisible()) ? await hover.innerText() : null);
  }
  await page.keyboard.press('Escape');

  // How it looks and whether all can use it: each view, both themes, three sizes.
  await view('Intercepts');
  await page.getByLabel('Hold', { exact: true }).fill('~u /held');
  await page.keyboard.press('Escape');
  await page.getByRole('button', { name: 'Hold', exact: true }).click();
  await page.getByText('0 held so far').waitFor();
  await outside('hold');
  await page.locator('.held li').waitFor();
  for (const [width, height] of [[1280, 900], [400, 860], [3840, 2160]]) {
    await page.setViewportSize({ width, height });
    for (const scheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme: scheme });
      for (const name of ['Overview', 'Flows', 'Timeline', 'Rules', 'Intercepts']) {
        await view(name);
        if (name === 'Intercepts') {
          await page.locator('.held li').getByRole('button', { name: /held/ }).first().click();
          await page.getByLabel('Status', { exact: true }).waitFor();
        }
        if (name === 'Flows' && width > 1000) {
          await page.locator('.space .row-of').nth(1).click();
          await page.getByText('Its call').first().waitFor();
        }
        await page.waitForTimeout(0);
        await frames();
        const wide = await page.evaluate(() => document.scrollingElement.scrollWidth);
        if (wide > width) seen.errors.push(`${name} is ${wide} px wide on a page of ${width} px`);
        await accessible(`${name}, ${scheme}, ${width}`);
        await picture(`${name.toLowerCase()}-${scheme}-${width}`);
        if (name === 'Flows' && width > 1000) await page.locator('.flows .detail').getByRole('button', { name: 'Close' }).click();
      }
    }
  }
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: 'light', reducedMotion: 'reduce' });
  seen.steps.motion = await page.evaluate(() => document.querySelectorAll('.switch').length >= 0 && getComputedStyle(document.querySelector('button')).transitionDuration);

  // Read again: the tab has kept the token, and the address has none.
  await view('Flows');
  await page.reload();
  await page.getByRole('status').filter({ hasText: 'Live' }).waitFor();
  await page.waitForFunction(() => [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown).length >= 8);
  seen.steps.reloaded = page.url();

  // What the policy is there for: nothing that got in runs, or gets out.
  seen.steps.blocked = await page.evaluate(async () => {
    const script = document.createElement('script');
    let typed = false;
    try {
      script.textContent = 'window.got = "in"';
    } catch {
      typed = true;
    }
    document.body.append(script);
    let markup = false;
    try {
      document.createElement('p').innerHTML = '<b>x</b>';
    } catch {
      markup = true;
    }
    const out = await fetch('https://elsewhere.invalid/').then(() => 'sent', () => 'refused');
    return { ran: window.got !== undefined, typed, markup, out };
  });
  seen.errors = seen.errors.filter((text) => !/violates the following|requires 'TrustedHTML'|requires 'TrustedScript'|elsewhere\.invalid/.test(text));
  seen.requests = seen.requests.filter((asked) => asked !== 'https://elsewhere.invalid/');

  // Its instance ends.
  over = true;
  await outside('end');
  await page.getByRole('status').filter({ hasText: 'The instance has ended' }).waitFor();
  seen.steps.ended = await listed();
  await picture('tour-ended');
}

// An upstream and a client that say what could be markup or steer something.
async function hostile() {
  await view('Intercepts');
  await page.getByLabel('Hold', { exact: true }).fill('~u /held');
  await page.keyboard.press('Escape');
  await page.getByRole('button', { name: 'Hold', exact: true }).click();
  await page.getByText('0 held so far').waitFor();
  await outside('ask');
  await page.locator('.held li').waitFor();
  await page.locator('.held li').getByRole('button').first().click();
  await page.getByLabel('Status', { exact: true }).waitFor();
  seen.steps.editor = await page.getByLabel('Headers').inputValue();
  seen.steps.held = await page.locator('main').innerText();
  await page.getByText('Its request').click();
  await picture('hostile-held');
  await page.locator('.held li').getByRole('button', { name: /^Resume/ }).click();
  await outside('let go');
  await view('Flows');
  await page.waitForFunction((wanted) => [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown).length >= wanted, 4);
  seen.steps.flows = await listed();
  seen.steps.details = [];
  const count = seen.steps.flows.length;
  for (let at = 0; at < count; at += 1) {
    await page.getByRole('grid').focus();
    await page.keyboard.press('ArrowDown');
    if (at === 0) await page.keyboard.press('Enter');
    await page.getByText('Its call').first().waitFor();
    await page.waitForFunction((at) => document.querySelector('.space .row-of[aria-selected="true"]')?.index === at, at);
    await frames();
    const detail = page.locator('.flows .detail');
    await detail.getByRole('button', { name: 'As a curl command' }).click();
    await detail.locator('.curl pre').filter({ hasText: /./ }).waitFor();
    for (const more of await detail.getByRole('button', { name: /^Show all/ }).all()) await more.click();
    seen.steps.details.push((await detail.innerText()).slice(0, 20000));
    const longest = await page.evaluate(() => Math.max(0, ...[...document.querySelectorAll('.fields td')].map((it) => it.textContent.length)));
    seen.steps.longest = Math.max(seen.steps.longest ?? 0, longest);
    await picture(`hostile-detail-${at}`);
    await page.getByRole('grid').focus();
  }
  await page.keyboard.press('Escape');
  for (const name of ['Overview', 'Timeline', 'Rules']) {
    await view(name);
    await frames();
    if (name === 'Timeline') {
      await page.waitForFunction(() => Number(document.querySelector('.times-box')?.dataset.drawn) > 0);
      await page.locator('.lanes').focus();
      await page.keyboard.press('j');
      seen.steps.hover = await page.locator('.hover').innerText();
    }
    if (name === 'Overview') {
      await page.locator('.process .verdict').first().waitFor();
      await page.locator('details summary').first().click();
      await frames();
    }
    seen.steps[name] = (await page.locator('main').innerText()).slice(0, 20000);
    await picture(`hostile-${name.toLowerCase()}`);
  }
  // In the filter line too, and in the address.
  await view('Flows');
  await page.locator('#filter').fill('"<img src=x onerror=window.pwned=1>" & ~u </script>');
  await page.keyboard.press('Enter');
  await frames();
  await page.evaluate(() => (location.hash = '#/flows?filter=<img src=x onerror=window.pwned=1>&id=<b>'));
  await frames();
  await page.evaluate(() => (location.hash = '#/<img src=x onerror=window.pwned=1>'));
  await frames();
}

// How long what one does takes until it is seen, on all that is kept. What a
// person sees first counts: the row at its new place, the detail, the first
// attempts that a filter takes, the timeline at its new scale.
async function speed() {
  const times = (seen.times = {});
  // What each asks of the instance: questions, and the rows of the longest answer.
  const work = (seen.work = {});
  let doing = null;
  page.on('request', (request) => {
    if (doing && request.url().includes('/v1/')) work[doing].now += 1;
  });
  page.on('response', async (response) => {
    const known = doing && work[doing];
    if (!known || !/\/v1\/(attempts|timeline)\?/.test(response.url())) return;
    const answer = await response.json().catch(() => ({}));
    known.rows = Math.max(known.rows, (answer.attempts ?? answer.buckets ?? []).length);
  });
  const count = async () => {
    if (doing === null) return;
    const known = work[doing];
    known.questions = Math.max(known.questions, known.now);
    known.elements = Math.max(known.elements, await page.evaluate(() => document.getElementsByTagName('*').length));
    doing = null;
  };
  await page.evaluate(() => {
    window.longest = 0;
    new PerformanceObserver((list) => list.getEntries().forEach((it) => (window.longest = Math.max(window.longest, it.duration)))).observe({ type: 'longtask', buffered: false });
  });
  /** From the event's arrival in the page until what it does has been drawn. */
  async function timed(name, act, until, argument) {
    await frames();
    await page.waitForTimeout(150);
    await count();
    work[name] ??= { questions: 0, rows: 0, elements: 0 };
    work[name].now = 0;
    doing = name;
    const done = await page.evaluateHandle(`(${until})`);
    await page.evaluate(
      ([done, argument]) => {
        window.over = new Promise((tell) => {
          const events = ['pointerdown', 'keydown', 'wheel', 'mark'];
          const begin = () => {
            events.forEach((event) => removeEventListener(event, begin, true));
            const began = performance.now();
            const look = () => {
              if (done(argument)) requestAnimationFrame(() => setTimeout(() => tell(performance.now() - began), 0));
              else setTimeout(look, 1);
            };
            setTimeout(look, 0);
          };
          events.forEach((event) => addEventListener(event, begin, { capture: true, passive: true }));
        });
      },
      [done, argument],
    );
    await act();
    const took = await Promise.race([page.evaluate(() => window.over), new Promise((_, fail) => setTimeout(() => fail(new Error(`${name} is not seen`)), 30000))]);
    (times[name] ??= []).push(Math.round(took * 10) / 10);
  }
  const key = (name) => () => page.keyboard.press(name);
  const filled = () => {
    const box = document.querySelector('.rows');
    if (!box) return false;
    const { top, bottom } = box.getBoundingClientRect();
    const rows = [...box.querySelectorAll('.space .row-of')].filter((row) => {
      const place = row.getBoundingClientRect();
      return place.bottom > top && place.top < bottom;
    });
    return rows.length > 5 && rows.every((row) => row.shown);
  };
  const first = () => page.evaluate(() => Math.min(...[...document.querySelectorAll('.space .row-of')].map((row) => row.index)));

  await timed('open the list', () => view('Flows'), filled);
  seen.steps.kept = await page.locator('.flows > p').first().innerText();
  const box = await page.locator('.rows').boundingBox();
  await page.mouse.move(box.x + 300, box.y + 200);
  for (let at = 0; at < 10; at += 1) await timed('scroll by the wheel', () => page.mouse.wheel(0, 1200), filled);
  for (const share of [0.1, 0.5, 0.93, 0.27, 1, 0.6]) {
    await timed(
      'scroll by the bar',
      () =>
        page.evaluate((share) => {
          dispatchEvent(new Event('mark'));
          const box = document.querySelector('.rows');
          box.scrollTop = share * (box.scrollHeight - box.clientHeight);
        }, share),
      filled,
    );
  }
  seen.steps.far = await first();
  // Each row is the attempt that belongs there.
  const rightly = () =>
    page.evaluate(() => {
      const rows = [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown);
      const [some] = rows;
      return rows.length > 5 && rows.every((row) => row.shown.id + row.index === some.shown.id + some.index) ? some.shown.id + some.index : null;
    });
  seen.steps.newest = await rightly();
  await page.getByRole('grid').focus();
  for (const name of ['Home', 'End', 'PageUp', 'PageUp', 'ArrowUp', 'Home', 'PageDown', 'ArrowDown']) await timed('choose by key', key(name), filled);
  await page.keyboard.press('Home');
  await page.waitForFunction(filled);

  const shownInFull = (index) => {
    const row = [...document.querySelectorAll('.space .row-of')].find((row) => row.index === index);
    const facts = document.querySelector('.flows .detail .facts');
    return facts !== null && row.shown !== undefined && facts.textContent.includes(`attempt ${row.shown.id},`);
  };
  for (const index of [2, 5, 9]) {
    const row = await page.evaluate((index) => {
      const place = [...document.querySelectorAll('.space .row-of')].find((row) => row.index === index).getBoundingClientRect();
      return { x: place.x + 100, y: place.y + 10 };
    }, index);
    await timed('open an attempt', () => page.mouse.click(row.x, row.y), shownInFull, index);
  }
  await page.keyboard.press('Escape');

  // Typing is never held up, and a filter shows what it has found.
  await page.locator('#filter').focus();
  for (const letter of '~c 429') await timed('type a letter', key(letter), (value) => document.querySelector('#filter').value.endsWith(value), letter);
  const all = (part) => {
    const rows = [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown);
    return rows.length > 10 && rows.every((row) => row.textContent.includes(part));
  };
  await page.keyboard.press('Escape');
  await timed('filter that takes many', key('Enter'), all, '429');
  await page.locator('#filter').fill('~pid 7');
  await page.keyboard.press('Escape');
  const told = () => {
    const rows = [...document.querySelectorAll('.space .row-of')].filter((row) => row.shown);
    return location.hash.includes('pid') && rows.every((row) => row.textContent.includes('(7)')) && (rows.length > 0 || /^0 found · looking/.test(document.querySelector('.flows > p').textContent));
  };
  await timed('filter that takes few', key('Enter'), told);
  const looking = Date.now();
  await page.waitForFunction(() => !document.querySelector('.flows > p').textContent.includes('looking'), null, { timeout: 120000 });
  seen.steps.fewAfter = Date.now() - looking;
  seen.steps.few = await page.locator('.flows > p').first().innerText();
  await page.locator('#filter').fill('');
  await timed('no filter', key('Enter'), filled);
  seen.steps.newestAgain = await rightly();

  // The timeline: all of it, nearer and nearer, moved.
  const drawn = () => document.querySelector('.times-box')?.dataset.mode !== undefined;
  await timed('open the timeline', () => view('Timeline'), drawn);
  // Once it knows how much there is.
  await page.waitForFunction(() => / attempts/.test(document.querySelector('.times > p').textContent));
  const moved = (was) => document.querySelector('.times-box').dataset.span !== was && Number(document.querySelector('.times-box').dataset.drawn) > 0;
  const spanNow = () => page.locator('.times-box').evaluate((it) => it.dataset.span);
  await timed('all of the timeline', () => page.getByRole('button', { name: 'All of it' }).click(), moved, await spanNow());
  await page.waitForTimeout(1500);
  await picture('speed-all');
  seen.steps.all = await page.locator('.times > p').first().innerText();
  const lanes = await page.locator('.lanes canvas').boundingBox();
  // Where the attempts are: some time has passed since the last.
  await page.mouse.move(lanes.x + lanes.width * (await page.evaluate(() => 10000 / Number(document.querySelector('.times-box').dataset.span))), lanes.y + 200);
  for (let at = 0; at < 30; at += 1) {
    await timed('zoom by the wheel', () => page.mouse.wheel(0, -250), moved, await spanNow());
    if ((await page.locator('.times-box').evaluate((it) => it.dataset.mode)) === 'attempts') break;
  }
  await page.waitForFunction(() => document.querySelector('.times-box').dataset.mode === 'attempts' && Number(document.querySelector('.times-box').dataset.drawn) > 0);
  await picture('speed-near');
  await page.waitForTimeout(500);
  seen.steps.near = await page.locator('.times-box').evaluate((it) => ({ ...it.dataset, said: document.querySelector('.times > p').textContent }));
  await page.locator('.lanes').focus();
  const place = () => page.locator('.times-box').evaluate((it) => it.dataset.from);
  for (const name of ['+', '+', '-', '+']) await timed('zoom by key', key(name), moved, await spanNow());
  for (const name of ['ArrowLeft', 'ArrowLeft', 'ArrowRight'])
    await timed('move by key', key(name), (was) => document.querySelector('.times-box').dataset.from !== was, await place());
  const band = await page.locator('.band').boundingBox();
  for (const share of [0.2, 0.8, 0.5])
    await timed('jump in time', () => page.mouse.click(band.x + band.width * share, band.y + 20), (was) => document.querySelector('.times-box').dataset.from !== was, await place());
  await timed('open the overview', () => view('Overview'), () => document.querySelector('.process .verdict') !== null);
  await count();
  seen.longest = await page.evaluate(() => window.longest);
}

// Looks at an HTML report with a browser: page.mjs FOLDER PAGE [PICTURES],
// where FOLDER holds node_modules. Prints what was seen as JSON; PICTURES is
// a folder for screenshots.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, file, pictures] = process.argv.slice(2);
const { chromium } = await import(join(folder, 'node_modules/playwright-core/index.mjs'));
const profile = mkdtempSync(join(tmpdir(), 'retryscope-browser-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: '/usr/bin/chromium',
  headless: true,
  viewport: { width: 1200, height: 900 },
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run'],
});
const seen = { errors: [], requests: [], dialogs: 0 };

try {
  const page = await context.newPage();
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && seen.errors.push(message.text()));
  page.on('pageerror', (error) => seen.errors.push(String(error)));
  page.on('dialog', (dialog) => (seen.dialogs++, dialog.dismiss()));
  page.on('request', (request) => seen.requests.push(request.url()));
  const url = pathToFileURL(file).href;
  await page.goto(url);
  // The page itself is the only thing that may be asked for.
  seen.requests = seen.requests.filter((asked) => asked !== url && !asked.startsWith('data:'));
  seen.text = await page.locator('#page').innerText();
  seen.title = await page.title();
  seen.elements = await page.evaluate(() => ({ images: document.images.length, scripts: document.scripts.length }));
  seen.blocked = await page.evaluate(async () => {
    // What the page's policy is there for: a script that got in does not run.
    const script = document.createElement('script');
    script.textContent = 'window.got = "in"';
    document.body.append(script);
    return window.got === undefined;
  });
  // The line about that is the browser's own, and wanted.
  seen.errors = seen.errors.filter((text) => !/violates the following (directive|Content Security Policy)/.test(text));

  if (await page.locator('.chart').count()) await timeline(page);
  for (const [scheme, width] of [['light', 1200], ['dark', 1200], ['light', 400], ['dark', 400]]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height: 900 });
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    const wide = await page.evaluate(() => document.scrollingElement.scrollWidth);
    if (wide > width) seen.errors.push(`${wide} px wide on a page of ${width} px`);
    if (pictures) await page.screenshot({ path: join(pictures, `${scheme}-${width}.png`), fullPage: true });
  }
} finally {
  await context.close();
  rmSync(profile, { recursive: true, force: true });
}
console.log(JSON.stringify(seen));

async function timeline(page) {
  const chart = page.locator('.chart');
  const box = page.locator('.lanes');
  const detail = page.locator('#detail');
  const span = () => chart.evaluate((it) => Number(it.dataset.span));
  await page.waitForFunction(() => Number(document.querySelector('.chart').dataset.drawn) > 0);
  seen.drawn = await chart.evaluate((it) => Number(it.dataset.drawn));
  await box.scrollIntoViewIfNeeded();
  const canvas = await page.locator('.lanes canvas').boundingBox();
  // The first lane lies below the axis and the first process's name.
  const y = canvas.y + 24 + 22 + 7;
  for (let x = 6; x < canvas.width && !seen.hovered; x += 2) {
    await page.mouse.move(canvas.x + x, y);
    if (await detail.isVisible()) seen.hovered = await detail.innerText();
  }
  if (pictures) await page.screenshot({ path: join(pictures, 'hover.png') });
  await page.mouse.move(canvas.x + canvas.width / 2, canvas.y + 10);

  // Wheel, drag, buttons.
  const whole = await span();
  const changed = (from) => page.waitForFunction((from) => Number(document.querySelector('.chart').dataset.span) !== from, from);
  await page.mouse.wheel(0, -400);
  await changed(whole);
  seen.zoomed = (await span()) / whole;
  const pixel = () => page.locator('.lanes canvas').evaluate((it) => it.__zoom.x);
  const before = await pixel();
  await page.mouse.down();
  await page.mouse.move(canvas.x + canvas.width / 2 + 60, canvas.y + 10, { steps: 4 });
  await page.mouse.up();
  seen.dragged = (await pixel()) - before;
  const near = await span();
  await page.getByRole('button', { name: 'Show all of it' }).click();
  await changed(near);
  seen.reset = (await span()) / whole;

  // The same by keyboard alone.
  await box.focus();
  seen.keys = [];
  for (const key of ['ArrowRight', 'ArrowRight', 'ArrowDown', 'ArrowLeft']) {
    await page.keyboard.press(key);
    seen.keys.push((await detail.isVisible()) ? await detail.innerText() : null);
  }
  const all = await span();
  await page.keyboard.press('+');
  await changed(all);
  seen.keyZoomed = (await span()) / all;
  await page.keyboard.press('0');
  await page.keyboard.press('Escape');
  seen.closed = await detail.isHidden();
  await page.getByLabel('only calls that were retried').check();
  await page.waitForFunction((from) => Number(document.querySelector('.chart').dataset.drawn) !== from, seen.drawn);
  seen.retriedOnly = await chart.evaluate((it) => Number(it.dataset.drawn));
  await page.getByLabel('only calls that were retried').uncheck();
}

// Attempts that the instance keeps, as far as this page has asked for them.
// Without a filter they are numbered without gaps, so that any of them can be
// had at once; what is here is bounded.
import { get, ignore } from "./api.js";

// A screen or two: what is scrolled to is to be there at once.
const BLOCK = 64;
const MAX_BLOCKS = 320;
const blocks = new Map();
const pending = new Map();
const fetched = new Map();
/** A block that was not complete is not asked for again sooner, in ms. */
const AGAIN = 300;
export const extent = { oldest: 1, newest: 0, dropped: 0 };

const blockOf = (id) => Math.floor(id / BLOCK);

function know({ oldest, newest, dropped }) {
  extent.oldest = oldest;
  extent.newest = Math.max(extent.newest, newest);
  extent.dropped = dropped;
}

/** What is kept now. */
export async function look(signal) {
  const page = await get(`/v1/attempts?limit=${BLOCK}`, signal);
  know(page);
  for (const attempt of page.attempts) add(attempt);
  return extent;
}

/** The attempt, if it is here. */
export const peek = (id) => blocks.get(blockOf(id))?.get(id);

/** Takes one that has come by itself. */
export function add(attempt) {
  extent.newest = Math.max(extent.newest, attempt.id);
  const at = blockOf(attempt.id);
  let block = blocks.get(at);
  if (!block) {
    block = new Map();
    blocks.set(at, block);
    if (blocks.size > MAX_BLOCKS) blocks.delete(blocks.keys().next().value);
  }
  block.set(attempt.id, attempt);
}

/** Asks for all from one number to another that are not here; resolves when they are. */
export function want(low, high) {
  const asked = [];
  for (let at = blockOf(Math.max(low, extent.oldest)); at <= blockOf(Math.min(high, extent.newest)); at += 1) {
    const first = Math.max(at * BLOCK, extent.oldest, 1);
    const last = Math.min((at + 1) * BLOCK - 1, extent.newest);
    const block = blocks.get(at);
    if (block && block.size >= last - first + 1) {
      // The one that was used last goes last.
      blocks.delete(at);
      blocks.set(at, block);
      continue;
    }
    if (!pending.has(at) && performance.now() - (fetched.get(at) ?? -AGAIN) < AGAIN) continue;
    if (!pending.has(at)) pending.set(at, fetchBlock(at).finally(() => pending.delete(at)));
    asked.push(pending.get(at));
  }
  return asked.length ? Promise.all(asked) : null;
}

async function fetchBlock(at) {
  if (fetched.size > 4 * MAX_BLOCKS) fetched.clear();
  try {
    const page = await get(`/v1/attempts?limit=${BLOCK}&before=${(at + 1) * BLOCK}&after=${Math.max(at * BLOCK - 1, 0)}`);
    know(page);
    fetched.set(at, performance.now());
    const block = blocks.get(at) ?? new Map();
    for (const attempt of page.attempts) block.set(attempt.id, attempt);
    blocks.delete(at);
    blocks.set(at, block);
    while (blocks.size > MAX_BLOCKS) blocks.delete(blocks.keys().next().value);
  } catch (error) {
    ignore(error);
  }
}

// How an attempt reads.
import { CLASSES } from "./dom.js";

/** What was asked for: the operation, or the request. */
export function asked(it) {
  if (it.service && it.operation) return `${it.service}.${it.operation}`;
  return `${it.method} ${shortUrl(it.url)}`;
}

/** A URL without what every one of them has. */
export const shortUrl = (url) => url.replace(/^https(:\/\/)/, "");

/** What came of it: from the upstream, and what the client was told. */
export function outcome(it) {
  const told = it.abort ?? it.told;
  if (it.rule) {
    if (it.status === null || it.status === undefined) return `→ ${told ?? "?"}`;
    return told === it.status ? String(it.status) : `${it.status} → ${told ?? "?"}`;
  }
  if (it.failure) return it.status ? `${it.status}, ${it.failure}` : it.failure;
  return String(it.status ?? "–");
}

/** The outcome in words, with who it was. */
export function outcomeInFull(it) {
  const parts = [outcome(it), CLASSES[it.class] ?? it.class];
  if (it.code) parts.push(it.code);
  if (it.rule) parts.push(it.rule === "by hand" ? "by hand" : `by rule "${it.rule}"`);
  return parts.join(", ");
}

export const attemptOf = (it) => (it.max ? `${it.attempt} of ${it.max}` : String(it.attempt));

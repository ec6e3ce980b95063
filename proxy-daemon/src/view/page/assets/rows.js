// A list of any length of which only what is seen is in the document.

/** Browsers hold no element that is much higher. */
const HIGHEST = 8e6;
const SPARE = 6;
/** How many rows that are not needed now are kept for later. */
const SPARES = 200;

/**
 * `height()` tells a row's, `make()` makes one, `fill(row, index)` shows what
 * is at that place in it, `seen(first, last)` is told which are looked at.
 * What stays in sight above the rows is `above()` pixels high.
 */
export function rows({ box, height, above = () => 0, make, fill, seen }) {
  const space = document.createElement("div");
  space.className = "space";
  space.setAttribute("role", "rowgroup");
  box.append(space);
  const pool = [];
  // Made before, and not needed now.
  const spare = [];
  let total = 0;
  // The place of the row at the top, as a fraction: the truth, where the
  // scroll bar is too coarse to be it.
  let top = 0;
  let set = -1;
  let queued = false;

  const room = () => Math.max(0, box.clientHeight - above());
  const inView = () => room() / height();
  const highest = () => Math.min(total * height(), HIGHEST);
  const scaled = () => total * height() > HIGHEST;
  const last = () => Math.max(0, total - inView());

  function toBar() {
    const far = highest() - room();
    const to = scaled() ? (last() ? (top / last()) * far : 0) : top * height();
    set = Math.round(Math.max(0, to));
    if (Math.round(box.scrollTop) !== set) box.scrollTop = set;
  }

  box.addEventListener("scroll", () => {
    if (Math.abs(Math.round(box.scrollTop) - set) <= 1) return;
    set = Math.round(box.scrollTop);
    const far = highest() - room();
    top = scaled() ? (far > 0 ? (box.scrollTop / far) * last() : 0) : box.scrollTop / height();
    draw();
  });
  box.addEventListener(
    "wheel",
    (event) => {
      if (!scaled() || event.ctrlKey) return;
      event.preventDefault();
      const unit = event.deltaMode === 1 ? 1 : event.deltaMode === 2 ? inView() : 1 / height();
      to(top + event.deltaY * unit);
    },
    { passive: false },
  );

  function to(place) {
    top = Math.min(Math.max(0, place), last());
    toBar();
    draw();
  }

  function draw() {
    queued = false;
    const tall = height();
    const wanted = `${highest()}px`;
    if (space.style.height !== wanted) space.style.height = wanted;
    const count = Math.min(total, Math.ceil(inView()) + 2 * SPARE);
    const first = Math.max(0, Math.min(Math.floor(top) - SPARE, total - count));
    while (pool.length < count) {
      const row = spare.pop() ?? make();
      pool.push(row);
      space.append(row);
    }
    while (pool.length > count) {
      const row = pool.pop();
      row.remove();
      if (spare.length < SPARES) spare.push(row);
    }
    // A row keeps its place in the document as long as it is seen, so that
    // little changes while scrolling.
    const offset = scaled() ? box.scrollTop - top * tall : 0;
    for (let at = 0; at < count; at += 1) {
      const index = first + at;
      const row = pool[index % count];
      const y = Math.round(offset + index * tall);
      if (row.y !== y) {
        row.style.transform = `translateY(${y}px)`;
        row.y = y;
      }
      row.index = index;
      fill(row, index);
    }
    if (count) seen?.(first, first + count - 1);
  }

  new ResizeObserver(() => redraw()).observe(box);

  function redraw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(draw);
  }

  return {
    redraw,
    /** There are so many now; `added` of them are new at the top, which the view keeps its place before. */
    count(now, added = 0) {
      total = now;
      if (top > 0.5 && added) top += added;
      top = Math.min(top, last());
      toBar();
      redraw();
    },
    to,
    /** Scrolls as little as shows the row. */
    reveal(index) {
      if (index < top) to(index);
      else if (index + 1 > top + inView()) to(index + 1 - inView());
    },
    atTop: () => top <= 0.5,
    /** How many rows are seen at once. */
    inView: () => Math.floor(inView()),
  };
}

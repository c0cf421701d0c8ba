// What is on the screen, as the address behind the #: a path, then options, of which only those are written that
// differ from what a first visit shows. So a copied address opens the same screen, and the back button works.
//
//     #/                                    what the cache holds
//     #/{encoding}                          the same, with the list of another encoding
//     #/{encoding}/{number}                 a sequence as a heat map
//     #/{encoding}/{number}/{i}             and the predictions of its token i
//     #/{encoding}/alignments/{name}        how a student's tokenizer covers the text, and its worst sequences
//     #/{encoding}/alignments/{name}/{number}/{byte}   a sequence as both tokenizers cut it, marked at a byte
//
//     colour, of            what tokens are coloured by, and the teacher or pair
//     top=all               all kept tokens of a position are listed
//     search, query, teacher, after, until     the list at the left
//     looked                how many shards the worst sequences of an alignment were sought in, if not as many as at first
//     place                 how far the page is scrolled: a section, or a token of the sequence

/** The path's parts; those of a broken address are those of the first page. */
export function parts() {
  try {
    return location.hash.slice(2).split("?")[0].split("/").map(decodeURIComponent);
  } catch {
    return [];
  }
}

export const options = () => new URLSearchParams(location.hash.split("?")[1] ?? "");

const joined = (path, query) => `#/${path.map(encodeURIComponent).join("/")}${query.size ? `?${query}` : ""}`;

/** The address of a path, with the present options except the place. */
export function address(...path) {
  const query = options();
  query.delete("place");
  return joined(path, query);
}

export const go = (...path) => { location.hash = address(...path); };

/** Go to a path without a new entry in the browser's history. */
export const replace = (...path) => history.replaceState(null, "", address(...path));

/** Write options into the address: a text, a list of texts, or null for none. */
export function setOptions(changes) {
  const query = options();
  for (const [name, value] of Object.entries(changes)) {
    query.delete(name);
    for (const text of [value ?? []].flat()) query.append(name, text);
  }
  const path = parts();
  if (joined(path, query) !== location.hash) history.replaceState(null, "", joined(path, query));
}

/** Let links within the page keep the options: colours and the list stay as they are. */
export function keepOptionsOnLinks() {
  addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#/']");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const query = options();
    query.delete("place");
    location.hash = joined(link.getAttribute("href").slice(2).split("/").map(decodeURIComponent), query);
  });
}

const SETTLED_MS = 250;
let sought = null; // a place that is not on the page yet
let timer = null;

/** Scroll to the place in the address, now or as soon as `arrive` is called with it on the page. */
export function seekPlace() {
  sought = options().get("place");
}

/** Scroll to the sought place if it is on the page; `last` if nothing more will come. */
export function arrive(root, last = true) {
  if (sought === null) return;
  const node = root.querySelector(`[data-place="${CSS.escape(sought)}"]`);
  node?.scrollIntoView({ block: "start" });
  if (node || last) sought = null;
}

/** Keep the address's place up to date while a reader scrolls. */
export function followPlace(root) {
  addEventListener("scroll", (event) => {
    if (event.target !== root && event.target !== document) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (sought !== null) return;
      const top = Math.max(root.getBoundingClientRect().top, 0) + 2;
      const places = [...root.querySelectorAll("[data-place]")];
      const first = places.find((node) => node.getBoundingClientRect().bottom > top);
      const scrolled = root.scrollTop > 0 || scrollY > 0;
      setOptions({ place: scrolled && first ? first.dataset.place : null });
    }, SETTLED_MS);
  }, true);
}

"use strict";
// The gallery: filters and sorts the pairs, shows a page of them, and one pair large. Pictures are read when they are shown.
(() => {
  const PAGE = 24;
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const { methods, scores, pairs, prompts, styles, values } = facts;
  const byId = (id) => document.getElementById(id);
  const state = { order: "best", page: 0, listed: [], viewed: [], open: -1 };
  const BEST = 6;
  const WORST = 2;

  // Elements hold texts, never markup: prompts may be anything.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("--")) made.style.setProperty(name, value);
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  const value = (pair, method, score) => values[pair][method * scores.length + score];
  const prompt = (pair) => prompts[pairs[pair][0]];
  const style = (pair) => styles[pairs[pair][1]];

  function difference(pair, score, method, other) {
    const [first, second] = [value(pair, method, score), value(pair, other, score)];
    return first === null || second === null ? null : first - second;
  }

  const gain = (pair, score) => difference(pair, score, Number(byId("method").value), Number(byId("other").value));

  function shown(number, score, sign) {
    if (number === null) return "–";
    return (sign && number > 0 ? "+" : "") + number.toFixed(facts.digits[score]).replace("-", "\u2212");
  }

  const pieces = new Map(); // the pieces that were read last
  function picture(pair, method) {
    const piece = Math.floor(pair / facts.pairsInAPiece);
    if (!pieces.has(piece)) {
      if (pieces.size > 30) pieces.delete(pieces.keys().next().value);
      pieces.set(piece, JSON.parse(byId(`piece-${piece}`).textContent));
    }
    const encoded = pieces.get(piece)[(pair % facts.pairsInAPiece) * methods.length + method];
    if (!encoded) return null;
    const kinds = { i: "png", U: "webp", "/": "jpeg", R: "gif" };
    return `data:image/${kinds[encoded[0]]};base64,${encoded}`;
  }

  const nameOf = (pair, method) => `${methods[method]}, “${prompt(pair)}”, seed ${pairs[pair][2]}`;

  function pictureOf(pair, method) {
    const source = picture(pair, method);
    if (!source) return null;
    const image = element("img", { src: source, alt: nameOf(pair, method), decoding: "async" });
    image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 128));
    return image;
  }

  // How far two scores are apart about a pair's gain, each in its own standard deviations.
  function spread(score) {
    const gains = pairs.map((_, pair) => gain(pair, score)).filter((found) => found !== null);
    const mean = gains.reduce((sum, found) => sum + found, 0) / gains.length;
    return Math.sqrt(gains.reduce((sum, found) => sum + (found - mean) ** 2, 0) / gains.length) || 1;
  }

  function keyOfOrder() {
    const score = Number(byId("score").value);
    if (state.order === "listed") return (pair) => -pair;
    if (state.order === "disagreement") {
      const against = Number(byId("against").value);
      const [one, two] = [spread(score), spread(against)];
      return (pair) => {
        const [first, second] = [gain(pair, score), gain(pair, against)];
        return first === null || second === null ? null : Math.abs(first / one - second / two);
      };
    }
    const sign = state.order === "best" ? 1 : -1;
    return (pair) => (gain(pair, score) === null ? null : sign * gain(pair, score));
  }

  function update() {
    const wanted = byId("style").value;
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const key = keyOfOrder();
    const found = [];
    for (let pair = 0; pair < pairs.length; pair++) {
      if (wanted !== "" && pairs[pair][1] !== Number(wanted)) continue;
      const text = prompt(pair).toLowerCase();
      if (words.every((word) => text.includes(word))) found.push([pair, key(pair)]);
    }
    // Pairs that lack a score come last, whatever the order.
    found.sort(([a, x], [b, y]) => (x === null) - (y === null) || (x === null ? a - b : y - x || a - b));
    state.listed = found.map(([pair]) => pair);
    state.page = 0;
    byId("against-label").hidden = state.order !== "disagreement";
    for (const button of document.querySelectorAll("[data-order]")) {
      button.setAttribute("aria-pressed", String(button.dataset.order === state.order));
    }
    showPage();
  }

  function showPage() {
    const pages = Math.max(1, Math.ceil(state.listed.length / PAGE));
    const start = state.page * PAGE;
    const listed = state.listed.slice(start, start + PAGE);
    byId("cards").replaceChildren(...listed.map((pair, index) => card(pair, start + index)));
    byId("count").textContent = `${state.listed.length} of ${pairs.length} pairs`;
    byId("page").textContent = `Page ${state.page + 1} of ${pages}`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page + 1 >= pages;
  }

  function turn(by) {
    state.page += by;
    showPage();
    byId("controls").scrollIntoView();
  }

  function gainOf(found, score, name) {
    const direction = found > facts.least[score] ? "up" : found < -facts.least[score] ? "down" : "";
    return element("span", { class: `gain ${direction}` }, `${name}${shown(found, score, true)}`);
  }

  // Beside the answer: the pairs that the last method changes most against the first, for better and for worse.
  function showTelling() {
    const place = byId("telling");
    if (!place) return;
    const last = methods.length - 1;
    const changed = (pair) => difference(pair, facts.train, last, 0);
    const sorted = pairs.map((_, pair) => pair).filter((pair) => changed(pair) !== null);
    sorted.sort((a, b) => changed(b) - changed(a) || a - b);
    const some = (from, count) => {
      const found = [];
      for (const pair of from) if (found.length < count && picture(pair, 0) && picture(pair, last)) found.push(pair);
      return found;
    };
    const best = some(sorted, BEST);
    const worst = some(sorted.filter((pair) => !best.includes(pair)).reverse(), WORST);
    const chosen = [...best, ...worst];
    const tile = (pair) => {
      const said = `Enlarge: “${prompt(pair)}”, seed ${pairs[pair][2]}`;
      const button = element("button", { type: "button", "aria-label": said });
      for (const method of [0, last]) button.append(pictureOf(pair, method));
      button.addEventListener("click", () => enlarge(chosen.indexOf(pair), chosen, button));
      const text = element("p", { title: prompt(pair) }, gainOf(changed(pair), facts.train, ""), ` ${prompt(pair)}`);
      return element("article", { class: "tile" }, button, text);
    };
    const group = (words, found) => {
      if (found.length) place.append(element("h3", {}, words), element("div", { class: "tiles" }, ...found.map(tile)));
    };
    group("The largest gains", best);
    group(worst.some((pair) => changed(pair) < 0) ? "The largest losses" : "The smallest gains", worst);
  }

  function factsOf(pair, tag) {
    const line = element(tag, { class: "facts caption" });
    const shownScores = [Number(byId("score").value)];
    if (state.order === "disagreement") shownScores.push(Number(byId("against").value));
    for (const score of shownScores) line.append(gainOf(gain(pair, score), score, `${scores[score]} `));
    if (style(pair)) line.append(element("span", {}, style(pair)));
    line.append(element("span", {}, `seed ${pairs[pair][2]}`));
    return line;
  }

  function card(pair, place) {
    const made = element("article", { class: "card", "data-pair": pair });
    made.append(element("h3", {}, prompt(pair) || "(empty prompt)"), factsOf(pair, "p"));
    const row = element("div", { class: "pictures", "--methods": methods.length });
    methods.forEach((_, method) => row.append(figure(pair, method, place)));
    made.append(row);
    return made;
  }

  // A picture with its scores, as a button that enlarges the pair. Without a place in the list it is that large picture.
  function figure(pair, method, place) {
    const key = `${pair}/${method}`;
    let view = pictureOf(pair, method) || element("div", { class: "none" }, facts.status[key] || "no picture");
    if (place !== undefined) {
      const said = `Enlarge: ${nameOf(pair, method)}`;
      const button = element("button", { type: "button", title: "Enlarge", "aria-label": said }, view);
      button.addEventListener("click", () => enlarge(place));
      view = button;
    }
    const caption = element("figcaption", { "--colour": facts.colours[method] }, element("b", {}, methods[method]));
    for (const score of place === undefined ? [] : scoresOfCards()) {
      caption.append(element("span", {}, element("i", {}, scores[score]), shown(value(pair, method, score), score)));
    }
    if (facts.status[key]) caption.append(element("em", {}, facts.status[key]));
    if (facts.marks[key]) caption.append(element("em", {}, facts.marks[key]));
    if (facts.refined[key]) caption.append(element("q", {}, facts.refined[key]));
    return element("figure", {}, view, caption);
  }

  function scoresOfCards() {
    const chosen = new Set([facts.train, ...facts.others.slice(0, 1), Number(byId("score").value)]);
    if (state.order === "disagreement") chosen.add(Number(byId("against").value));
    return chosen;
  }

  // A pair of a list, by its place: of the gallery, or of those beside the answer, to whose picture the focus returns.
  function enlarge(place, list = state.listed, button = null) {
    const pair = list[place];
    Object.assign(state, { open: place, viewed: list, button });
    byId("enlarged-title").textContent = prompt(pair) || "(empty prompt)";
    byId("enlarged-facts").replaceWith(Object.assign(factsOf(pair, "p"), { id: "enlarged-facts" }));
    byId("enlarged-place").textContent = `${place + 1} of ${list.length}`;
    const row = byId("enlarged-pictures");
    row.style.setProperty("--methods", methods.length);
    row.replaceChildren(...methods.map((_, method) => figure(pair, method)));
    byId("enlarged-scores").replaceChildren(scoresOf(pair));
    byId("enlarged-previous").disabled = place === 0;
    byId("enlarged-next").disabled = place + 1 >= list.length;
    if (!byId("enlarged").open) byId("enlarged").showModal();
  }

  function scoresOf(pair) {
    const head = element("tr", {}, element("th", { scope: "col" }, "score"));
    for (const method of methods) head.append(element("th", { scope: "col", class: "figure" }, method));
    const body = element("tbody");
    scores.forEach((name, score) => {
      const found = methods.map((_, method) => value(pair, method, score));
      const best = Math.max(...found.map((number) => (number === null ? -Infinity : number)));
      const row = element("tr", {}, element("th", { scope: "row", title: facts.about[score] }, name));
      for (const number of found) {
        const ahead = (other) => best - (other === null ? -Infinity : other) > facts.least[score];
        const wins = facts.ranked[score] && number !== null && !ahead(number) && found.some(ahead);
        row.append(element("td", { class: wins ? "figure best" : "figure" }, shown(number, score)));
      }
      body.append(row);
    });
    return element("table", {}, element("thead", {}, head), body);
  }

  function move(by) {
    const place = state.open + by;
    if (place >= 0 && place < state.viewed.length) enlarge(place, state.viewed, state.button);
  }

  // Back in the list, the keyboard goes on at the pair that was shown last.
  byId("enlarged").addEventListener("close", () => {
    if (state.button) {
      state.button.focus();
      return;
    }
    const page = Math.floor(state.open / PAGE);
    if (page !== state.page) {
      state.page = page;
      showPage();
    }
    byId("cards").children[state.open % PAGE]?.querySelector("button")?.focus();
  });
  byId("enlarged").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      move(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  byId("enlarged").addEventListener("click", (event) => {
    if (event.target === byId("enlarged")) byId("enlarged").close(); // the backdrop
  });
  byId("enlarged-previous").addEventListener("click", () => move(-1));
  byId("enlarged-next").addEventListener("click", () => move(1));
  byId("enlarged-close").addEventListener("click", () => byId("enlarged").close());
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  for (const button of document.querySelectorAll("[data-order]")) {
    button.addEventListener("click", () => {
      state.order = button.dataset.order;
      update();
    });
  }
  for (const id of ["score", "method", "other", "against", "style"]) byId(id).addEventListener("change", update);
  byId("search").addEventListener("input", update);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  // A viewer may hold this page in a frame that must not navigate, not even to an anchor.
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const target = document.querySelector(link.getAttribute("href"));
      target.setAttribute("tabindex", "-1");
      target.focus({ preventScroll: true });
      target.scrollIntoView();
    });
  }

  function fill(id, names, chosen) {
    byId(id).replaceChildren(...names.map(([text, key]) => element("option", { value: key }, text)));
    if (chosen !== undefined) byId(id).value = String(chosen);
  }
  const numbered = (names) => names.map((name, index) => [name, index]);
  const ranked = numbered(scores).filter(([, score]) => facts.ranked[score]);
  fill("score", ranked, facts.train);
  fill("against", ranked, facts.others.length ? facts.others[0] : facts.train);
  fill("method", numbered(methods), methods.length - 1);
  fill("other", numbered(methods), 0);
  fill("style", [["every style", ""], ...numbered(styles).map(([name, index]) => [name || "(none)", index])]);
  byId("style-label").hidden = styles.length < 2;
  byId("cards").style.setProperty("--card-width", `${Math.max(16, Math.min(60, methods.length * 8))}rem`);
  update();
  showTelling();
})();

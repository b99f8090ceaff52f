// What a reader asks and sees: the controls, the answer to a budget, and the charts that follow them.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("figures").textContent);
  if (!data.shapes.length) return;
  const charts = attnscapeCharts;
  const part = (name) => document.getElementById(name);
  const MIB = 2 ** 20;
  const state = {shape: 0, length: null, hidden: new Set()};

  function made(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, text] of Object.entries(attributes)) element.setAttribute(name, text);
    element.append(...children);
    return element;
  }
  const shape = () => data.shapes[state.shape];
  const at = () => shape().lengths[state.length];
  const families = () => [...new Set(data.shapes.flatMap((one) => one.curves.map((curve) => curve.family)))].sort();
  const readable = (kind) => (kind === "extrapolated" ? "foretold" : kind);

  // ---- the budget

  // A limit as it was written: null where empty, NaN where it is no positive number.
  function limitOf(name) {
    const field = part(name);
    if (field.validity.badInput) return NaN;
    if (field.value.trim() === "") return null;
    const number = Number(field.value);
    return Number.isFinite(number) && number > 0 ? number : NaN;
  }

  function budgetNow() {
    const [ms, size, error] = ["max-ms", "max-mib", "max-error"].map(limitOf);
    for (const [name, limit] of [["max-ms", ms], ["max-mib", size], ["max-error", error]])
      part(name).setAttribute("aria-invalid", String(Number.isNaN(limit)));
    return {time: ms === null ? null : ms / 1000, memory: size === null ? null : size * MIB, error};
  }

  function commandText() {
    const limits = [["max-ms", "--max-ms"], ["max-mib", "--max-mib"], ["max-error", "--max-error"]]
      .filter(([name]) => part(name).value.trim() !== "").map(([name, option]) => ` ${option} ${Number(part(name).value)}`);
    return `attnscape choose --tokens ${at().tokens} ${shape().options}${limits.join("")}`;
  }

  const OUTCOMES = {
    fits: "fits, with the whole of its band", likely: "likely fits: its band reaches beyond a limit", "nothing fits": "Nothing fits this budget.",
    impossible: "Impossible: the machine itself cannot keep this budget, whatever the variant.", unknown: "Not known: no variant has figures here.",
  };

  function reasonText(judgement, cell, budget) {
    const texts = {time: charts.seconds, memory: charts.mib, error: charts.error};
    const place = {time: 1, memory: 2, error: 3}[judgement.limit];
    if (!judgement.known) {
      const gap = judgement.limit === "time" ? "" : data.texts[cell[judgement.limit === "error" ? 7 : 8]];
      return gap ? `${judgement.limit} not known: ${gap}` : `${judgement.limit} not measured`;
    }
    const text = texts[judgement.limit], limit = budget[judgement.limit];
    const found = `${judgement.limit} ${text(cell[place][1])}`;
    if (judgement.kept === "likely") return `${found}, but its band reaches up to ${charts.figureText(cell[place], text)}`;
    return `${found}, ${charts.digits(cell[place][1] / limit)} times the limit` + (judgement.kept === "may" ? "; may fit" : "");
  }

  const LOSES = "no better than the mean of V";

  function candidateRow(one, budget) {
    const [, time, size, error] = one.cell;
    const remarks = [attnscapeRule.loses(one.cell) ? LOSES : "", one.tied ? "tied with the fastest" : "", one.cell[6] ? "noisy" : "", ...one.judgements.map((each) => reasonText(each, one.cell, budget))];
    const texts = [charts.figureText(time, charts.seconds), charts.figureText(size, charts.mib), charts.figureText(error, charts.error)];
    return made("tr", {}, made("th", {scope: "row"}, shape().curves[one.cell[0]].label), ...texts.map((text) => made("td", {}, text)), made("td", {}, remarks.filter(Boolean).join("; ")));
  }

  function table(caption, header, rows) {
    const head = made("thead", {}, made("tr", {}, ...header.map((text) => made("th", {scope: "col"}, text))));
    const whole = made("table", {}, made("caption", {}, caption), head, made("tbody", {}, ...rows));
    return made("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption}, whole);
  }

  function answer() {
    const budget = budgetNow();
    const headline = part("answer-headline"), details = part("answer-details");
    if (Object.values(budget).some(Number.isNaN)) {
      headline.textContent = "A limit must be a positive finite number.";
      headline.dataset.outcome = "invalid";
      details.replaceChildren();
      return;
    }
    const found = attnscapeRule.choose(shape().curves, at(), budget);
    const first = found.ranked[0];
    headline.dataset.outcome = found.outcome;
    headline.dataset.ranked = JSON.stringify(found.ranked.map((one) => shape().curves[one.cell[0]].label));
    headline.replaceChildren();
    if (first) headline.append(made("strong", {}, shape().curves[first.cell[0]].label), ` ${OUTCOMES[found.outcome]}${attnscapeRule.loses(first.cell) ? `, but is ${LOSES}: here it approximates nothing` : ""}.`);
    else headline.append(OUTCOMES[found.outcome]);
    const out = [
      ...found.rejected.map((one) => [one.cell[0], one.judgements.map((each) => reasonText(each, one.cell, budget)).join("; ")]),
      ...at().failed.map(([place, ...reasons]) => [place, reasons.map((reason) => data.texts[reason]).join("; ")]),
    ].map(([place, text]) => made("tr", {}, made("th", {scope: "row"}, shape().curves[place].label), made("td", {}, text)));
    const parts = [];
    const where = `${at().tokens} tokens, ${readable(at().kind)}`;
    if (found.ranked.length) parts.push(table(`What fits at ${where}`, ["variant", "time", "total memory", "error", "remarks"], found.ranked.map((one) => candidateRow(one, budget))));
    if (out.length) parts.push(made("details", {}, made("summary", {}, `Why ${out.length} others are out`), table(`What does not fit at ${where}`, ["variant", "why"], out)));
    parts.push(made("p", {class: "command"}, "The same on the command line: ", made("code", {}, commandText())));
    details.replaceChildren(...parts);
  }

  // ---- what is shown

  function shown() {
    const wanted = part("find").value.trim().toLowerCase(), exact = part("exact-only").checked;
    const found = new Set();
    shape().curves.forEach((curve, index) => {
      if (!state.hidden.has(curve.family) && curve.label.toLowerCase().includes(wanted) && (curve.exact || !exact)) found.add(index);
    });
    return found;
  }

  const CHARTS = [
    ["map-error", "The winner by length and error", (width, found, maps) => charts.winnerChart(width, shape(), "error", maps.error, maps.order)],
    ["map-memory", "The winner by length and total memory", (width, found, maps) => charts.winnerChart(width, shape(), "memory", maps.memory, maps.order)],
    ["time", "Time against length", (width, found) => charts.curvesChart(width, shape(), found, 1, charts.seconds, "time per call")],
    ["memory", "Extra memory against length", (width, found) => charts.curvesChart(width, shape(), found, 4, charts.bytes, "beyond q, k, v and the output")],
    ["energy", "Energy against length", (width, found) => charts.curvesChart(width, shape(), found, 5, charts.joules, "energy per call")],
    ["pareto", "Error against time", (width, found) => charts.paretoChart(width, shape(), at(), found)],
    ["roofline", "Roofline", (width, found) => charts.rooflineChart(width, shape(), found)],
  ];

  function swatch(index, order) {
    const curve = shape().curves[index];
    const mark = made("span", {class: "swatch", "aria-hidden": "true"}, order === null ? "" : String(order.indexOf(index) + 1));
    mark.style.background = order === null ? curve.colour : charts.fill(order, index);
    if (order !== null) mark.classList.add("numbered");
    return mark;
  }

  function symbolOf(curve) {
    return Plot.plot({
      width: 14, height: 14, margin: 0, axis: null, x: {domain: [0, 2]}, y: {domain: [0, 2]}, style: {background: "transparent", overflow: "visible"},
      marks: [Plot.dot([[1, 1]], {symbol: curve.symbol, stroke: curve.colour, fill: curve.exact ? curve.colour : "var(--paper)", r: 4, x: (pair) => pair[0], y: (pair) => pair[1]})],
    });
  }

  function legend(found, maps) {
    const entries = [...found].map((index) => made("li", {}, symbolOf(shape().curves[index]), made("span", {}, shape().curves[index].label)));
    part("legend").replaceChildren(...entries);
    const cells = [...maps.error, ...maps.memory];
    const winners = maps.order.map((index) => made("li", {}, swatch(index, maps.order), made("span", {}, shape().curves[index].label)));
    if (cells.some((cell) => cell.winner === null)) winners.push(made("li", {}, made("span", {class: "swatch empty", "aria-hidden": "true"}), made("span", {}, "nothing fits")));
    part("map-legend").replaceChildren(...winners);
  }

  function choosePlace(chart, by) {
    chart.addEventListener("click", () => {
      const picked = chart.value;
      if (!picked || picked.limit === undefined) return;
      state.length = shape().lengths.findIndex((one) => one.tokens === picked.tokens);
      part("length").value = String(state.length);
      for (const name of ["max-ms", "max-mib", "max-error"]) part(name).value = "";
      if (by === "error") part("max-error").value = String(picked.limit);
      else part("max-mib").value = String(picked.limit / MIB);
      update();
    });
  }

  function draw() {
    const found = shown();
    const maps = {error: [], memory: []};
    for (const by of ["error", "memory"]) if (shape()[`${by}Limits`].length > 1) maps[by] = charts.winners(shape(), by, found);
    maps.order = charts.winnerOrder([...maps.error, ...maps.memory]);
    part("count").textContent = `${found.size} of ${shape().curves.length} variants are shown`;
    for (const [name, title, chart] of CHARTS) {
      const figure = part(`live-${name}`), place = figure.querySelector(".chart");
      const width = Math.max(280, Math.min(620, place.clientWidth || part("charts").clientWidth));
      const cells = {"map-error": maps.error, "map-memory": maps.memory}[name];
      const drawn = cells && !cells.length ? null : chart(width, found, maps);
      figure.classList.toggle("nothing", drawn === null);
      if (drawn) {
        drawn.setAttribute("role", "img");
        drawn.setAttribute("aria-label", `${title}; the tables below hold its figures`);
        if (cells) choosePlace(drawn, name === "map-error" ? "error" : "memory");
      }
      place.replaceChildren(...(drawn ? [drawn] : ["Nothing to draw: no shown variant has such figures here."]));
    }
    part("live-map-error").dataset.winners = JSON.stringify(maps.error.map((cell) => (cell.winner === null ? null : shape().curves[cell.winner].label)));
    part("live-map-memory").dataset.winners = JSON.stringify(maps.memory.map((cell) => (cell.winner === null ? null : shape().curves[cell.winner].label)));
    for (const [name, known] of [["energy", 5], ["roofline", null]])
      part(`live-${name}`).hidden = known === null ? !shape().roofline : !shape().lengths.some((one) => one.cells.some((cell) => cell[known] !== null));
    legend(found, maps);
  }

  function update() {
    answer();
    draw();
  }

  // ---- the controls

  function fillLengths() {
    const options = shape().lengths.map((one, index) => made("option", {value: String(index)}, `${one.tokens} (${readable(one.kind)})`));
    part("length").replaceChildren(...options);
  }

  function takeShape() {
    const tokens = state.length === null ? null : at().tokens;
    state.shape = Number(part("shape").value);
    fillLengths();
    const same = shape().lengths.findIndex((one) => one.tokens === tokens);
    const measured = shape().lengths.map((one, index) => [one.kind, index]).filter(([kind]) => kind === "measured").map(([, index]) => index);
    state.length = same >= 0 ? same : measured[measured.length - 1];
    part("length").value = String(state.length);
  }

  function familyBoxes() {
    return families().map((family) => {
      const box = made("input", {type: "checkbox", checked: ""});
      box.addEventListener("change", () => {
        if (box.checked) state.hidden.delete(family);
        else state.hidden.add(family);
        draw();
      });
      return made("label", {}, box, ` ${family}`);
    });
  }

  function setAll(checked) {
    for (const box of part("families").querySelectorAll("input")) if (box.checked !== checked) box.click();
  }

  function start() {
    part("shape").append(...data.shapes.map((one, index) => made("option", {value: String(index)}, one.title)));
    part("families").append(...familyBoxes());
    part("shape").addEventListener("change", () => { takeShape(); update(); });
    part("length").addEventListener("change", () => { state.length = Number(part("length").value); update(); });
    for (const name of ["max-ms", "max-mib", "max-error"]) part(name).addEventListener("input", answer);
    part("budget").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
    part("budget").addEventListener("reset", () => setTimeout(() => { part("shape").value = String(state.shape); part("length").value = String(state.length); answer(); }));
    part("find").addEventListener("input", draw);
    part("exact-only").addEventListener("change", draw);
    part("all-families").addEventListener("click", () => setAll(true));
    part("no-families").addEventListener("click", () => setAll(false));
    document.documentElement.classList.add("scripted");
    for (const still of document.querySelectorAll("details.still")) still.open = false;
    takeShape();
    update();
    let width = window.innerWidth, waiting = 0;
    window.addEventListener("resize", () => {
      if (window.innerWidth === width) return;
      width = window.innerWidth;
      clearTimeout(waiting);
      waiting = setTimeout(draw, 150);
    });
    window.addEventListener("beforeprint", () => document.querySelectorAll("details.still").forEach((still) => { still.open = true; }));
  }

  start();
})();

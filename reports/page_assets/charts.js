// The pictures of the explorer, drawn by Observable Plot; every text becomes a text node. No state lives here.
"use strict";
const attnscapeCharts = (() => {
  const {value, least, most} = attnscapeRule;
  const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#767676"];
  const ON = {"#0072b2": "#ffffff", "#767676": "#ffffff"};
  const MARKS = {m: "measured", i: "interpolated", e: "foretold", t: "transferred"};
  const MIB = 2 ** 20;

  function digits(number, count = 3) {
    if (number === 0) return "0";
    if (Math.abs(number) >= 10 ** (count - 1)) return number.toFixed(0);
    return number.toPrecision(count).replace(/\.$/, "");
  }
  const scaled = (units) => (number) => {
    const [scale, unit] = units.find(([scale]) => number >= 0.9995 * scale) ?? units[units.length - 1];
    return `${digits(number / scale)} ${unit}`;
  };
  const seconds = scaled([[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]]);
  const joules = scaled([[1e3, "kJ"], [1, "J"], [1e-3, "mJ"], [1e-6, "µJ"]]);
  const flops = scaled([[1e15, "PFLOP/s"], [1e12, "TFLOP/s"], [1e9, "GFLOP/s"], [1e6, "MFLOP/s"]]);
  const bytes = scaled([[2 ** 40, "TiB"], [2 ** 30, "GiB"], [MIB, "MiB"], [2 ** 10, "KiB"]]);
  const mib = (size) => `${digits(size / MIB)} MiB`;
  const error = (number) => (number === 0 || number >= 1e-3 ? digits(number, 2) : number.toExponential(1));

  const short = (text) => (number) => text(number).replace(/\.0e/, "e").replace(/(\.\d*?)0+(?= |$)/, "$1").replace(/\.(?= |$)/, "");

  function figureText(figure, text) {
    if (figure === null) return "not known";
    const band = figure.length > 2 ? `, ${text(least(figure))} to ${most(figure) === Infinity ? "any" : text(most(figure))}` : "";
    return `${text(value(figure))} (${MARKS[figure[0]]}${band})`;
  }

  // D3 leaves most labels of a logarithmic axis out, whatever is asked: ticks and texts are given as marks instead.
  function explicit(options) {
    const {x, y} = options;
    const bare = ({ticks, tickFormat, grid, ...scale}) => ({...scale, axis: null});
    const axes = [];
    if (y.grid) axes.push(Plot.gridY(y.ticks));
    if (x.grid) axes.push(Plot.gridX(x.ticks));
    axes.push(Plot.axisY(y.ticks, {text: y.tickFormat, label: y.label, anchor: "left"}));
    if (x.type !== "log") return {...options, y: bare(y), marks: [...axes, ...options.marks]};
    axes.push(Plot.axisX(x.ticks, {text: x.tickFormat, label: x.label, anchor: "bottom"}));
    return {...options, x: bare(x), y: bare(y), marks: [...axes, ...options.marks]};
  }

  function sheet(width, height, label, options) {
    return Plot.plot({
      width, height, marginLeft: 60, marginRight: 24, marginBottom: 38, marginTop: 24, ariaLabel: label,
      style: {background: "transparent", color: "inherit", fontFamily: "inherit", fontSize: "12px", overflow: "visible"},
      symbol: {legend: false}, ...explicit(options),
    });
  }

  function lengthAxis(tokens, width) {
    const known = [...new Set(tokens)].sort((one, other) => one - other);
    const step = Math.ceil(known.length / Math.max(2, Math.floor(width / 68)));
    const ticks = known.filter((_, index) => (known.length - 1 - index) % step === 0);
    return {type: "log", label: "tokens", ticks, tickFormat: (at) => String(at), grid: false};
  }

  // Nine labels at most, few enough for any height; whole decades where there are several.
  function logAxis(numbers, text, label) {
    const known = numbers.filter((number) => number > 0 && Number.isFinite(number));
    const low = Math.min(...known), high = Math.max(...known);
    const decades = Math.log10(high / low);
    const ticks = [];
    const steps = decades > 2 ? [1] : decades > 0.7 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
    const each = decades > 7 ? 2 : 1;
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += each)
      for (const step of steps) ticks.push(step * 10 ** power);
    return {
      type: "log", label, domain: [low / 1.15, high * 1.15], grid: true, tickFormat: short(text),
      ticks: ticks.filter((tick) => tick >= low / 1.15 && tick <= high * 1.15),
    };
  }

  // Sizes are read in powers of two.
  function sizeAxis(numbers, label) {
    const axis = logAxis(numbers, bytes, label);
    const [low, high] = axis.domain.map(Math.log2);
    const each = Math.max(1, Math.ceil((high - low) / 8));
    const powers = d3.range(Math.ceil(low), Math.floor(high) + 1).filter((power) => power % each === 0);
    return {...axis, ticks: powers.map((power) => 2 ** power)};
  }

  const paint = (curve) => ({stroke: curve.colour, symbol: curve.symbol, fill: curve.exact ? curve.colour : "var(--paper)"});
  const tip = (points, x, y) =>
    Plot.tip(points, Plot.pointer({x, y, title: "title", fill: "var(--panel)", stroke: "var(--rule)", maxRadius: 30, lineWidth: 26}));

  // One quantity against length: whole lines through measured points, dashed ones without marks where it is foretold.
  function curvesChart(width, shape, shown, place, text, label) {
    const measured = [], foretold = [];
    const lengths = shape.lengths.filter((at) => at.kind !== "interpolated");
    const last = Math.max(...shape.lengths.filter((at) => at.kind === "measured").map((at) => at.tokens));
    for (const index of shown) {
      const curve = shape.curves[index];
      let final = null;
      for (const at of lengths) {
        const cell = at.cells.find((one) => one[0] === index);
        const figure = cell ? cell[place] : null;
        const known = figure !== null && value(figure) > 0;
        const title = known ? `${curve.label}\n${at.tokens} tokens: ${figureText(figure, text)}` : "";
        const point = {
          label: curve.label, tokens: at.tokens, y: known ? value(figure) : NaN, title, ...paint(curve),
          low: known ? Math.max(least(figure), value(figure) / 1e3) : NaN, high: known ? Math.min(most(figure), value(figure) * 1e3) : NaN,
        };
        if (at.tokens <= last && (!known || figure[0] === "m")) {
          measured.push(point);
          if (known) final = point;
        } else if (known && at.tokens > last && final) {
          if (!foretold.some((one) => one.label === curve.label)) foretold.push({...final, low: final.y, high: final.y, start: true});
          foretold.push(point);
        }
      }
    }
    const points = measured.filter((point) => point.y > 0);
    const ahead = foretold.filter((point) => !point.start);
    if (!points.length) return null;
    const ticks = lengths.map((at) => at.tokens).filter((tokens) => tokens <= last || tokens % last === 0);
    // A band without bound may not squeeze what is known of the rest.
    const reached = [...points, ...foretold].flatMap((point) => [Math.max(point.low, point.y / 4), Math.min(point.high, point.y * 4)]);
    return sheet(width, 320, label, {
      x: lengthAxis(ticks, width), y: text === bytes ? sizeAxis(reached, label) : logAxis(reached, text, label),
      marks: [
        Plot.areaY(measured, {x: "tokens", y1: "low", y2: "high", z: "label", fill: "stroke", fillOpacity: 0.2, clip: true}),
        Plot.areaY(foretold, {x: "tokens", y1: "low", y2: "high", z: "label", fill: "stroke", fillOpacity: 0.1, clip: true}),
        Plot.lineY(foretold, {x: "tokens", y: "y", z: "label", stroke: "stroke", strokeWidth: 1.2, strokeDasharray: "4 3", className: "foretold"}),
        Plot.lineY(measured, {x: "tokens", y: "y", z: "label", stroke: "stroke", strokeWidth: 1.4, className: "measured"}),
        Plot.dot(points, {x: "tokens", y: "y", stroke: "stroke", fill: "fill", symbol: "symbol", r: 3.2, className: "points"}),
        tip([...points, ...ahead], "tokens", "y"),
      ],
    });
  }

  function paretoChart(width, shape, at, shown) {
    const points = at.cells.filter((cell) => shown.has(cell[0]) && cell[3] !== null && value(cell[3]) > 0).map((cell) => {
      const curve = shape.curves[cell[0]];
      const title = `${curve.label}\ntime ${figureText(cell[1], seconds)}\nerror ${figureText(cell[3], error)}`;
      return {x: value(cell[1]), y: value(cell[3]), low: least(cell[1]), high: most(cell[1]), sure: cell[1][0] === "m", title, ...paint(curve)};
    });
    if (!points.length) return null;
    const front = [];
    for (const point of [...points].sort((one, other) => one.x - other.x || one.y - other.y))
      if (!front.length || point.y < front[front.length - 1].y) front.push(point);
    return sheet(width, 320, `Error against time at ${at.tokens} tokens`, {
      x: {...logAxis(points.flatMap((point) => [point.low, point.high]), seconds, `time per call at ${at.tokens} tokens`), grid: true},
      y: logAxis(points.map((point) => point.y), error, "error against exact attention"),
      marks: [
        Plot.lineY(front, {x: "x", y: "y", curve: "step-after", stroke: "currentColor", strokeOpacity: 0.5}),
        Plot.ruleY(points, {x1: "low", x2: "high", y: "y", stroke: "stroke", strokeOpacity: 0.5}),
        Plot.dot(points, {x: "x", y: "y", stroke: "stroke", fill: "fill", symbol: "symbol", r: 4.5, strokeOpacity: (point) => (point.sure ? 1 : 0.55)}),
        tip(points, "x", "y"),
      ],
    });
  }

  function rooflineChart(width, shape, shown) {
    const roof = shape.roofline;
    if (!roof) return null;
    const points = roof.points.filter((point) => shown.has(point[0])).map(([index, tokens, x, y]) => {
      const curve = shape.curves[index];
      return {x, y, label: curve.label, title: `${curve.label}\n${tokens} tokens: ${flops(y)} at ${digits(x)} FLOP per byte`, ...paint(curve)};
    });
    if (!points.length) return null;
    const ridge = roof.peak / roof.bandwidth;
    const xs = [...points.map((point) => point.x), ridge];
    const ends = [Math.min(...xs) / 1.5, ridge, Math.max(...xs) * 1.5].map((x) => ({x, y: Math.min(roof.peak, x * roof.bandwidth)}));
    return sheet(width, 320, "Roofline", {
      marginLeft: 84,
      x: {...logAxis(ends.map((end) => end.x), (x) => digits(x), "useful FLOP per byte moved"), grid: true},
      y: logAxis([...points, ...ends].map((point) => point.y), flops, "useful FLOP/s"),
      marks: [
        Plot.lineY(ends, {x: "x", y: "y", stroke: "currentColor", strokeWidth: 1.5}),
        Plot.lineY(points, {x: "x", y: "y", z: "label", stroke: "stroke", strokeWidth: 0.6}),
        Plot.dot(points, {x: "x", y: "y", stroke: "stroke", fill: "fill", symbol: "symbol", r: 3.2}),
        tip(points, "x", "y"),
      ],
    });
  }

  // Who comes first at each length under each limit: {tokens, limit, low, high, winner}, the winner being a place or null.
  function winners(shape, by, shown) {
    const limits = by === "error" ? shape.errorLimits : shape.memoryLimits;
    const found = [];
    for (const at of shape.lengths) {
      const cells = at.cells.filter((cell) => shown.has(cell[0]));
      limits.forEach((limit, index) => {
        const budget = {time: null, memory: null, error: null, [by]: limit};
        const first = attnscapeRule.choose(shape.curves, at, budget, cells).ranked[0];
        const below = index ? limits[index - 1] : limit ** 2 / limits[1], above = limits[index + 1] ?? limit ** 2 / limits[index - 1];
        found.push({
          tokens: at.tokens, kind: at.kind, limit, index, winner: first ? first.cell[0] : null,
          likely: Boolean(first && first.judgements.length), low: Math.sqrt(below * limit), high: Math.sqrt(limit * above),
        });
      });
    }
    return found;
  }

  function winnerOrder(cells) {
    const counts = new Map();
    for (const cell of cells) if (cell.winner !== null) counts.set(cell.winner, (counts.get(cell.winner) ?? 0) + 1);
    return [...counts.keys()].sort((one, other) => counts.get(other) - counts.get(one) || one - other);
  }

  const fill = (order, winner) => PALETTE[order.indexOf(winner) % PALETTE.length];

  function winnerChart(width, shape, by, cells, order) {
    const text = by === "error" ? error : bytes;
    const runs = [];
    for (const cell of cells) {
      const last = runs[runs.length - 1];
      if (last && last.tokens === cell.tokens && last.winner === cell.winner) Object.assign(last, {high: cell.high, count: last.count + 1});
      else runs.push({...cell, count: 1});
    }
    const kept = runs.filter((run) => run.winner !== null);
    if (!kept.length) return null;
    const lengths = shape.lengths.map((at) => at.tokens);
    const last = Math.max(...shape.lengths.filter((at) => at.kind === "measured").map((at) => at.tokens));
    const named = shape.lengths.filter((at) => at.kind === "measured" || (at.tokens > last && at.tokens % last === 0)).map((at) => at.tokens);
    const step = Math.ceil(named.length / Math.max(2, Math.floor(width / 68)));
    const limits = cells.map((cell) => cell.limit);
    const titles = cells.map((cell) => ({
      ...cell,
      title: `${cell.tokens} tokens (${cell.kind === "extrapolated" ? "foretold" : cell.kind}), ${by} at most ${text(cell.limit)}:\n` +
        (cell.winner === null ? "nothing fits" : shape.curves[cell.winner].label + (cell.likely ? " (likely)" : "")),
    }));
    const chart = sheet(width, 360, `Winner by length and ${by}`, {
      marginLeft: 66,
      x: {type: "band", domain: lengths, label: "tokens", ticks: named.filter((_, index) => (named.length - 1 - index) % step === 0), tickFormat: String, padding: 0},
      y: {...logAxis(limits, text, by === "error" ? "largest error allowed" : "largest total memory allowed"), grid: false, domain: [cells[0].low, cells[cells.length - 1].high],
        ...(by === "memory" ? {ticks: sizeAxis(limits, "").ticks} : {})},
      marks: [
        Plot.barY(kept, {x: "tokens", y1: "low", y2: "high", fill: (run) => fill(order, run.winner), inset: 0, insetTop: 0.5, insetLeft: 0.5, className: "winners"}),
        Plot.text(kept.filter((run) => run.count > 1), {
          x: "tokens", y: (run) => Math.sqrt(run.low * run.high), text: (run) => String(order.indexOf(run.winner) + 1), fill: (run) => ON[fill(order, run.winner)] ?? "#101010",
        }),
        ...(lengths.some((tokens) => tokens > last) ? [Plot.ruleX([lengths.find((tokens) => tokens > last)], {dx: -(width - 80) / lengths.length / 2, stroke: "currentColor", strokeDasharray: "2 3", strokeWidth: 1.5})] : []),
        Plot.tip(titles, Plot.pointer({x: "tokens", y: "limit", title: "title", fill: "var(--panel)", stroke: "var(--rule)", lineWidth: 26, maxRadius: 60})),
      ],
    });
    return chart;
  }

  return {PALETTE, seconds, joules, mib, bytes, error, digits, figureText, curvesChart, paretoChart, rooflineChart, winners, winnerOrder, winnerChart, fill, MARKS};
})();

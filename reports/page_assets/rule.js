// The rule of reports/verdict.py and reports/choice.py, on the figures that a page holds.
// A cell: [curve, seconds, bytes, error, extra bytes, joules, noisy, error gap, memory gap, error inputs,
// whether it is no better than the mean of V].
// A figure: [mark, value] or [mark, value, least, most], null where it is not known; most is null without bound.
"use strict";
const attnscapeRule = (() => {
  const TIE_WITHIN = 1.1;
  const AHEAD = 1.25, ROOM = 1 / 3;
  const PLACES = {time: 1, memory: 2, error: 3}, LOSES = 10;

  const value = (figure) => figure[1];
  const least = (figure) => (figure.length > 2 ? figure[2] : figure[1]);
  const most = (figure) => (figure.length > 2 ? (figure[3] ?? Infinity) : figure[1]);

  // How each limit stands that is not surely kept: "likely", "may" or "breaks".
  function judgements(cell, budget) {
    const found = [];
    for (const name of ["time", "memory", "error"]) {
      const limit = budget[name];
      if (limit === null || limit === undefined) continue;
      const figure = cell[PLACES[name]];
      if (figure === null) found.push({limit: name, kept: "breaks", known: false});
      else if (most(figure) > limit) {
        const kept = value(figure) <= limit ? "likely" : least(figure) <= limit ? "may" : "breaks";
        found.push({limit: name, kept, known: true, factor: value(figure) / limit});
      }
    }
    return found;
  }

  // Names are compared by code point, as the command does; UTF-16 units would differ beyond the first plane.
  function byCodePoints(one, other) {
    const mine = Array.from(one), theirs = Array.from(other);
    for (let at = 0; at < Math.min(mine.length, theirs.length); at++) {
      const difference = mine[at].codePointAt(0) - theirs[at].codePointAt(0);
      if (difference) return difference;
    }
    return mine.length - theirs.length;
  }

  const bySpeed = (labels) => (one, other) =>
    value(one.cell[1]) - value(other.cell[1]) || byCodePoints(labels[one.cell[0]], labels[other.cell[0]]);

  function tie(fastest, other) {
    const mine = fastest.cell[1], theirs = other.cell[1];
    return least(theirs) <= most(mine) && value(theirs) <= TIE_WITHIN * value(mine);
  }

  function byTime(fitting, exact, speed) {
    if (!fitting.length) return [];
    const [fastest, ...others] = fitting;
    const tied = others.filter((other) => tie(fastest, other));
    if (!tied.length) return fitting;
    const marked = [fastest, ...tied].map((one) => ({...one, tied: true}));
    const first = marked.find((one) => exact[one.cell[0]]) ?? marked[0];
    const rest = [...marked.filter((one) => one !== first), ...others.filter((one) => !tied.includes(one))];
    return [first, ...rest.sort(speed)];
  }

  // The least share of the upper half of a band that is inside its limit, on a logarithmic scale.
  function room(one, budget) {
    const inside = one.judgements.map(({limit: name}) => {
      const figure = one.cell[PLACES[name]], limit = budget[name];
      if (!(value(figure) > 0 && value(figure) < most(figure) && most(figure) < Infinity)) return 0;
      return Math.log(limit / value(figure)) / Math.log(most(figure) / value(figure));
    });
    return Math.min(1, ...inside);
  }

  // Who likely fits goes before those who surely do where it is much faster and nearly sure.
  function ranking(fitting, exact, speed, budget) {
    const sure = byTime(fitting.filter((one) => !one.judgements.length), exact, speed);
    const likely = byTime(fitting.filter((one) => one.judgements.length), exact, speed);
    const ahead = likely.filter(
      (one) => sure.length && room(one, budget) >= ROOM && AHEAD * value(one.cell[1]) < value(sure[0].cell[1]));
    return [...ahead, ...sure, ...likely.filter((one) => !ahead.includes(one))];
  }

  // Without an error limit those that are no better than the mean of V come last.
  function ranked(fitting, exact, speed, budget) {
    if (budget.error !== null && budget.error !== undefined) return ranking(fitting, exact, speed, budget);
    return [0, 1].flatMap((loses) => ranking(fitting.filter((one) => one.cell[LOSES] === loses), exact, speed, budget));
  }

  function impossible(floors, budget) {
    if (floors === null) return false;
    const [size, seconds, memory] = floors;
    const allowed = Math.min(budget.memory ?? memory, memory);
    return size > allowed || (budget.time !== null && budget.time !== undefined && seconds > budget.time);
  }

  // `curves` hold labels and whether each is exact; `at` is one length. Returns outcome, ranked and rejected.
  function choose(curves, at, budget, cells = at.cells) {
    const labels = curves.map((curve) => curve.label), exact = curves.map((curve) => curve.exact);
    const speed = bySpeed(labels);
    const judged = cells.map((cell) => ({cell, judgements: judgements(cell, budget), tied: false})).sort(speed);
    const fitting = judged.filter((one) => one.judgements.every((each) => each.kept === "likely"));
    const rejected = judged.filter((one) => !fitting.includes(one));
    const order = ranked(fitting, exact, speed, budget);
    let outcome = "unknown";
    if (order.length) outcome = order[0].judgements.length ? "likely" : "fits";
    else if (impossible(at.floors, budget)) outcome = "impossible";
    else if (cells.length) outcome = "nothing fits";
    return {outcome, ranked: order, rejected};
  }

  return {choose, value, least, most, loses: (cell) => cell[LOSES] === 1};
})();

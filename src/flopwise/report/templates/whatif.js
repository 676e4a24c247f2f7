"use strict";
(function () {
  // Laws are graphs in data, walked here; nothing that comes with them is ever run as code.
  const LANCZOS = [676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  function gammaln(x) {
    if (x < 0.5) { return Math.log(Math.PI / Math.abs(Math.sin(Math.PI * x))) - gammaln(1 - x); }
    let sum = 0.99999999999980993;
    for (let i = 0; i < 8; i++) { sum += LANCZOS[i] / (x + i); }
    const t = x + 6.5;
    return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(sum);
  }
  const OPS = {
    exp: Math.exp, log: Math.log, log10: Math.log10, log1p: Math.log1p, expm1: Math.expm1, sqrt: Math.sqrt,
    tanh: Math.tanh, abs: Math.abs, min: Math.min, max: Math.max, gammaln: gammaln,
    sigmoid: function (x) { return 1 / (1 + Math.exp(-x)); },
    softplus: function (x) { return x > 30 ? x : Math.log1p(Math.exp(x)); },
    betaln: function (a, b) { return gammaln(a) + gammaln(b) - gammaln(a + b); },
  };
  function value(tree, at) {
    if (typeof tree === "number") { return tree; }
    const op = tree[0];
    if (op === "name") { return at[tree[1]]; }
    if (op === "sum") {
      let total = tree[1];
      for (let i = 2; i < tree.length; i += 2) { total += tree[i + 1] * value(tree[i], at); }
      return total;
    }
    if (op === "product") {
      let total = tree[1];
      for (let i = 2; i < tree.length; i += 2) {
        const v = value(tree[i], at), e = tree[i + 1];
        total *= e === 1 ? v : e === -1 ? 1 / v : Math.pow(v, e);
      }
      return total;
    }
    if (!Object.prototype.hasOwnProperty.call(OPS, op)) { return NaN; }
    return OPS[op](value(tree[1], at), tree.length > 2 ? value(tree[2], at) : undefined);
  }
  // The metric of a point, with the parameters of one draw, or the best ones (draw -1).
  function metric(what, point, draw) {
    const at = Object.assign({}, point);
    let out = NaN;
    what.steps.forEach(function (step, i) {
      Object.assign(at, draw < 0 ? step.params : what.draws[i][draw]);
      out = value(step.tree, at);
      at[step.target] = out;
    });
    return out;
  }
  function point(what, ask, logN, share, k) {
    const N = Math.exp(logN), r = what.ranges;
    const answers = what.answer_cost * N * ask.queries * (what.prompt_tokens + what.answer_tokens * k);
    const left = ask.budget - answers;
    const tokens = left / (what.train_cost * N);
    let D = (1 - share) * tokens;
    if (left <= 0 || D < r.D[0] / 100) { return null; }
    D = Math.min(D, r.D[1] * 100);
    const post = r.post ? Math.min(share * tokens, r.post[1] * 100) : 0;
    return { N: N, D: D, U: D, post: post, k: k, answers: answers,
      trained: what.train_cost * N * D, tuned: what.train_cost * N * post };
  }
  // The best point for a budget: a grid, then smaller and smaller ones around the best.
  function best(what, ask, draw) {
    const sign = what.rises ? 1 : -1, r = what.ranges;
    const has = function (name) { return what.variables.indexOf(name) >= 0; };
    let lo = [Math.log(r.N[0] / 100), has("post") ? -9 : -30, 0];
    let hi = [Math.log(r.N[1] * 100), has("post") ? 9 : -30, has("k") ? Math.log(Math.max(1, ask.samples)) : 0];
    const low = lo, high = hi;
    let found = null, size = draw < 0 ? [41, 15, 13] : [17, 7, 7];
    for (let round = 0; round < (draw < 0 ? 7 : 4); round++) {
      let centre = null;
      const n = size.map(function (m, i) { return hi[i] > lo[i] ? m : 1; });
      for (let a = 0; a < n[0]; a++) {
        for (let b = 0; b < n[1]; b++) {
          for (let c = 0; c < n[2]; c++) {
            const z = [a, b, c].map(function (j, i) { return n[i] > 1 ? lo[i] + (hi[i] - lo[i]) * j / (n[i] - 1) : lo[i]; });
            const share = z[1] <= -9 ? 0 : 1 / (1 + Math.exp(-z[1]));
            const at = point(what, ask, z[0], share, Math.max(1, Math.round(Math.exp(z[2]))));
            if (at === null) { continue; }
            at.value = metric(what, at, draw);
            if (!isFinite(at.value)) { continue; }
            if (found === null || sign * at.value > sign * found.value) { found = at; centre = z; }
          }
        }
      }
      if (found === null) { return null; }
      const next = centre || found.z;
      found.z = next;
      const step = lo.map(function (l, i) { return n[i] > 1 ? (hi[i] - l) / (n[i] - 1) : 0; });
      lo = next.map(function (v, i) { return Math.max(low[i], v - step[i]); });
      hi = next.map(function (v, i) { return Math.min(high[i], v + step[i]); });
      size = [7, 5, 5];
    }
    return found;
  }
  function quantile(sorted, q) { return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]; }
  // Best split, and the 90% intervals over the draws: of the split, and of what the best one would do.
  function plan(what, ask) {
    const top = best(what, ask, -1);
    if (top === null) { return null; }
    const each = { N: [], D: [], k: [], value: [] };
    for (let i = 0; i < what.draws[0].length; i++) {
      const drawn = best(what, ask, i), v = metric(what, top, i);
      if (isFinite(v)) { each.value.push(v); }
      if (drawn !== null) { ["N", "D", "k"].forEach(function (name) { each[name].push(drawn[name]); }); }
    }
    const ends = {};
    Object.keys(each).forEach(function (name) {
      const sorted = each[name].sort(function (a, b) { return a - b; });
      ends[name] = sorted.length ? [quantile(sorted, 0.05), quantile(sorted, 0.95)] : [NaN, NaN];
    });
    return { best: top, ends: ends };
  }
  if (typeof module !== "undefined") { module.exports = { plan: plan, value: value, gammaln: gammaln }; return; }
  const box = document.getElementById("whatif");
  if (!box) { return; }
  const what = JSON.parse(box.dataset.whatif);
  function short(v) {
    if (!isFinite(v)) { return "–"; }
    const units = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];
    for (const u of units) { if (Math.abs(v) >= u[0]) { return (v / u[0]).toPrecision(3) + u[1]; } }
    return v.toPrecision(3);
  }
  function shown(v) { return what.rises ? (100 * v).toFixed(1) + "%" : v.toFixed(3); }
  function put(name, text) {
    const place = box.querySelector("[data-out='" + name + "']");
    if (place) { place.textContent = text; }
  }
  function spanned(name, p, text) { put(name, text(p.best[name]) + " (" + text(p.ends[name][0]) + " to " + text(p.ends[name][1]) + ")"); }
  let waiting = 0;
  function draw() {
    const ask = {};
    box.querySelectorAll("input[type=range]").forEach(function (slider) {
      ask[slider.name] = slider.name === "samples" ? Math.round(Math.pow(2, +slider.value)) : Math.pow(10, +slider.value);
      put("set-" + slider.name, slider.name === "samples" ? String(ask.samples) : short(ask[slider.name]));
    });
    const p = plan(what, ask);
    box.classList.toggle("none", p === null);
    if (p === null) { put("value", "nothing is affordable: the answers take all of the budget"); return; }
    spanned("value", p, shown); spanned("N", p, short); spanned("D", p, short);
    spanned("k", p, function (v) { return String(Math.round(v)); });
    const total = p.best.trained + p.best.tuned + p.best.answers;
    [["trained", "pretraining"], ["tuned", "post-training"], ["answers", "answers"]].forEach(function (part) {
      const share = p.best[part[0]] / total, bar = box.querySelector("[data-bar='" + part[0] + "']");
      if (bar) { bar.style.width = (100 * share).toFixed(1) + "%"; }
      put("share-" + part[0], part[1] + " " + (100 * share).toFixed(0) + "%");
    });
    const r = what.ranges;
    const beyond = Math.max(p.best.N / r.N[1], r.N[0] / p.best.N, p.best.D / r.D[1], r.D[0] / p.best.D, 1);
    put("beyond", beyond > 10 ? "This is " + beyond.toPrecision(2) + " times beyond what was measured: not to be believed without a run in between." : "");
  }
  box.addEventListener("input", function () { clearTimeout(waiting); waiting = setTimeout(draw, 30); });
  draw();
})();

"use strict";
(() => {
  const { plot, points } = JSON.parse(document.getElementById("data").textContent);
  const page = document.documentElement;
  const find = (id) => document.getElementById(id);

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, column) => row.cells[column].dataset.sort;
    function sort(column, order) {
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [value(one, column), value(other, column)];
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (column === 0 ? a.localeCompare(b) : a - b);
      });
      body.append(...rows);
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      heads[column].setAttribute("aria-sort", order);
    }
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.querySelector("span").childNodes);
      head.querySelector("span").replaceWith(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const turned = now === "ascending" ? "descending" : "ascending";
        sort(column, now ? turned : head.dataset.first);
      });
    });
  }

  function copyable(button, text) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  const state = { view: plot && plot.views[plot.default], all: false, active: null };
  const winner = plot ? plot.kinds.indexOf("winner") : -1;
  const shown = () => plot.kinds.map((kind, index) => index).filter((index) => state.all || !plot.aside[index]);
  const height = (index) => state.view.values[index] ?? state.view.lane;
  const radius = (index) => (state.view.values[index] === null ? 4 : plot.radii[index]);
  const color = (name) => getComputedStyle(page).getPropertyValue(`--${name}`).trim();
  const colors = () => Object.fromEntries(
    ["paper", "ink", "quiet", "rule", "winner", "frontier", "other", "off", "beyond", "text", "mono"].map((name) => [name, color(name)]));
  let paint = colors();

  function element(name, text) {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  }

  function show(index) {
    if (state.active === index) return;
    state.active = index;
    const card = find("card");
    const { label, badges, figures } = points[index];
    card.classList.toggle("is-winner", index === winner);
    const title = element("p", "");
    title.className = "card-title";
    title.append(element("code", label));
    const remarks = element("p", [...badges, ...(plot.kinds[index] === "off" ? ["off the grid"] : [])].join(", "));
    remarks.className = "card-badges";
    const list = element("dl", "");
    for (const [name, text, note] of figures) {
      const pair = element("div", "");
      const figure = element("dd", text);
      if (note) figure.append(element("small", note));
      pair.append(element("dt", name), figure);
      list.append(pair);
    }
    card.replaceChildren(title, remarks, list);
  }

  const look = (kind) => ({
    winner: [paint.winner, paint.paper], baseline: [paint.ink, paint.paper], frontier: [`${paint.frontier}d9`, paint.paper],
    other: [`${paint.other}8c`, paint.paper], predicted: ["transparent", paint.other], off: ["transparent", paint.off],
  })[kind];

  function datasets() {
    const order = ["predicted", "other", "off", "frontier", "baseline", "winner"];
    const rows = shown().sort((a, b) => order.indexOf(plot.kinds[a]) - order.indexOf(plot.kinds[b]));
    return [
      {
        data: rows.map((index) => ({ x: plot.bytes[index], y: height(index), index })),
        pointRadius: rows.map(radius), pointHoverRadius: rows.map(radius),
        pointHitRadius: 10, clip: 16,
        pointBackgroundColor: rows.map((index) => look(plot.kinds[index])[0]),
        pointBorderColor: rows.map((index) => look(plot.kinds[index])[1]),
        pointBorderWidth: rows.map((index) => (plot.kinds[index] === "off" ? 2 : 1.2)),
      },
      {
        type: "line", data: state.view.line.map(([x, y]) => ({ x, y })),
        pointRadius: 0, pointHitRadius: 0, borderColor: `${paint.frontier}73`, borderWidth: 1.5,
      },
    ];
  }

  function scales() {
    const across = state.all ? plot.wide : plot.x;
    const up = state.view.axis;
    const ticks = (axis) => ({
      afterBuildTicks: (scale) => { scale.ticks = axis.ticks.map(([value]) => ({ value })); },
      ticks: {
        color: paint.quiet, font: { family: paint.text, size: 12 }, maxRotation: 0, autoSkipPadding: 12,
        callback: (value) => (axis.ticks.find(([tick]) => tick === value) || ["", ""])[1],
      },
    });
    const label = (text) => ({ display: true, text, color: paint.quiet, font: { family: paint.text, size: 12 } });
    return {
      x: { type: "linear", min: across.low, max: across.high, ...ticks(across), title: label("memory needed at the peak"),
        grid: { display: false }, border: { color: paint.quiet } },
      y: { type: up.logarithmic ? "logarithmic" : "linear", reverse: up.low > up.high, min: Math.min(up.low, up.high),
        max: Math.max(up.low, up.high), ...ticks(up), grid: { color: paint.rule, drawTicks: false }, border: { display: false } },
    };
  }

  const layers = {
    id: "layers",
    beforeDatasetsDraw({ ctx, chartArea: area, scales: { x, y } }) {
      const budget = x.getPixelForValue(plot.budget);
      ctx.save();
      ctx.fillStyle = paint.beyond;
      ctx.fillRect(budget, area.top, Math.max(0, area.right - budget), area.bottom - area.top);
      ctx.strokeStyle = paint.ink;
      ctx.setLineDash([5, 4]);
      stroke(ctx, budget, area.top, budget, area.bottom);
      if (shown().some((index) => state.view.values[index] === null)) {
        const floor = y.getPixelForValue(state.view.floor);
        ctx.strokeStyle = paint.rule;
        ctx.setLineDash([2, 4]);
        stroke(ctx, area.left, floor, area.right, floor);
      }
      ctx.restore();
      const side = budget > (area.left + area.right) / 2 ? "right" : "left";
      write(ctx, find("plot").dataset.budget, budget, area.top - 9, side, paint.ink, `600 12px ${paint.text}`);
      write(ctx, `↑ better: ${state.view.title}`, 2, area.top - 29, "left", paint.quiet, `12px ${paint.text}`);
      for (const index of new Set([winner, state.active])) whisker(ctx, area, x, y, index);
    },
    afterDatasetsDraw({ ctx, chartArea: area, scales: { x, y } }) {
      const at = (index) => [x.getPixelForValue(plot.bytes[index]), y.getPixelForValue(height(index))];
      if (state.active !== null && shown().includes(state.active)) {
        ctx.save();
        ctx.strokeStyle = paint.ink;
        ctx.lineWidth = 1.5;
        ctx.beginPath();
        ctx.arc(...at(state.active), radius(state.active) + 4, 0, 2 * Math.PI);
        ctx.stroke();
        ctx.restore();
      }
      if (winner < 0) return;
      const [left, top] = at(winner);
      const side = left > (area.left + area.right) * 0.6 ? "right" : "left";
      const away = (side === "left" ? 1 : -1) * (radius(winner) + 7);
      write(ctx, points[winner].label, left + away, top - radius(winner) - 3, side, paint.winner, `600 12px ${paint.mono}`);
    },
  };

  function stroke(ctx, x, y, toX, toY) {
    ctx.beginPath();
    ctx.moveTo(x, y);
    ctx.lineTo(toX, toY);
    ctx.stroke();
  }

  function write(ctx, text, x, y, align, fill, font) {
    ctx.save();
    Object.assign(ctx, { textAlign: align, fillStyle: fill, strokeStyle: paint.paper, lineWidth: 4, lineJoin: "round", font });
    ctx.strokeText(text, x, y);
    ctx.fillText(text, x, y);
    ctx.restore();
  }

  function whisker(ctx, area, x, y, index) {
    const interval = index >= 0 && index !== null && state.view.intervals[index];
    if (!interval || state.view.values[index] === null || !shown().includes(index)) return;
    const inside = (pixel) => Math.min(area.bottom, Math.max(area.top, pixel));
    const at = x.getPixelForValue(plot.bytes[index]);
    const [low, high] = interval.map((value) => inside(y.getPixelForValue(value)));
    ctx.save();
    ctx.strokeStyle = index === winner ? paint.winner : paint.quiet;
    stroke(ctx, at, low, at, high);
    stroke(ctx, at - 4, low, at + 4, low);
    stroke(ctx, at - 4, high, at + 4, high);
    ctx.restore();
  }

  function draw() {
    const box = find("plot");
    box.tabIndex = 0;
    box.setAttribute("role", "application");
    const chart = new Chart(find("canvas"), {
      type: "scatter",
      data: { datasets: datasets() },
      options: {
        animation: false, maintainAspectRatio: false, layout: { padding: { top: 44, right: 8 } }, scales: scales(),
        plugins: { legend: { display: false }, tooltip: { enabled: false } },
        onHover(event) {
          const near = chart.getElementsAtEventForMode(event, "nearest", { intersect: false }, true)
            .filter(({ datasetIndex, element: { x, y } }) => datasetIndex === 0 && Math.hypot(x - event.x, y - event.y) < 36);
          if (near.length === 0) return;
          show(chart.data.datasets[0].data[near[0].index].index);
          chart.draw();
        },
      },
      plugins: [layers],
    });
    function renew() {
      chart.data.datasets = datasets();
      chart.options.scales = scales();
      chart.update("none");
    }
    function step(key) {
      const order = shown().sort((a, b) => plot.bytes[a] - plot.bytes[b]);
      const now = order.indexOf(state.active);
      const moves = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, Home: order.indexOf(winner) };
      if (!(key in moves)) return false;
      show(order[Math.min(order.length - 1, Math.max(0, moves[key]))]);
      chart.draw();
      return true;
    }
    box.addEventListener("keydown", (event) => { if (step(event.key)) event.preventDefault(); });
    find("controls").hidden = false;
    find("controls").addEventListener("change", ({ target }) => {
      if (target.name === "view") state.view = plot.views[target.value];
      if (target.name === "all") state.all = target.checked;
      document.querySelectorAll(".key-off").forEach((key) => { key.hidden = !state.all; });
      renew();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { paint = colors(); renew(); });
    show(winner >= 0 ? winner : 0);
    chart.draw();
  }

  document.querySelectorAll("table.recipes").forEach(sortable);
  if (find("copy")) copyable(find("copy"), find("command"));
  if (plot) {
    page.classList.add("js");
    draw();
  }
})();

"use strict";
(() => {
  const config = {showSendToCloud: false, displaylogo: false, responsive: true, displayModeBar: "hover"};
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const places = [...document.querySelectorAll(".plot")];
  const figures = new Map();
  const stored = document.getElementById("trial-cards");
  const trials = stored ? JSON.parse(stored.textContent) : {cards: []};
  const cards = new Map(trials.cards.map((card) => [card.trial, card]));

  const figure = (place) => {
    if (!figures.has(place)) {
      figures.set(place, JSON.parse(document.querySelector(`script[data-plot="${place.id}"]`).textContent));
    }
    return figures.get(place);
  };

  // Figures take text, grid and background from the page, so that they follow light, dark and print.
  const themed = (layout, width) => {
    const style = getComputedStyle(root);
    const [ink, grid, line, paper] = ["--ink", "--grid", "--line", "--paper"].map((name) => style.getPropertyValue(name).trim());
    const result = {...structuredClone(layout), width};
    result.font = {...result.font, color: ink};
    result.hoverlabel = {...result.hoverlabel, bgcolor: paper, bordercolor: line, font: {color: ink}};
    result.modebar = {...result.modebar, color: line, activecolor: ink, bgcolor: "rgba(0,0,0,0)"};
    for (const key of Object.keys(result)) {
      if (/^[xy]axis/.test(key)) Object.assign(result[key], {gridcolor: grid, linecolor: line, tickcolor: line, zerolinecolor: line});
    }
    return result;
  };
  // Plotly reads tags and dollars in what it shows; a name must bring neither.
  const literal = (text) => text.replace(/[&<>$]/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const about = (trial) => {
    const card = cards.get(trial);
    const lines = [...card.figures, ...card.knobs].map(([name, text]) => literal(`${name}: ${text}`));
    return [`<b>trial ${trial}</b> ${literal(card.state)}`, ...lines].join("<br>");
  };
  // Plotly takes a second to start: the text is read before. The page's policy knows the script by its hash.
  const start = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  };
  const draw = (place) => {
    start();
    // Paper is narrower than the screen, and a resize would come after the print.
    const paper = root.classList.contains("print");
    const width = paper ? (place.closest(".panels") ? 220 : 680) : undefined;
    const ink = getComputedStyle(root).getPropertyValue("--ink").trim();
    const {data, layout} = figure(place);
    const inked = data.map((trace) => trace.error_y && !trace.error_y.color
      ? {...trace, error_y: {...trace.error_y, color: ink}} : trace);
    if (data.some((trace) => trace.meta && trace.meta.selected)) {
      for (const trace of inked) if (trace.customdata && !trace.hovertext) trace.hovertext = trace.customdata.map(about);
    }
    const first = !place.dataset.drawn;
    place.dataset.drawn = "";
    const drawn = Plotly.react(place, inked, themed(layout, width), config);
    if (first) place.on("plotly_click", (event) => {
      const trial = event.points[0].customdata;
      if (trial !== undefined) select(trial);
    });
    return drawn;
  };
  const redraw = () => Promise.all(places.filter((place) => "drawn" in place.dataset).map(draw));

  // A figure is drawn when it comes near; paper gets all of them.
  const near = new IntersectionObserver((entries) => {
    const come = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    come.forEach((place) => near.unobserve(place));
    Promise.all(come.map(draw)).then(() => { root.dataset.plots = places.length; });
  }, {rootMargin: "400px"});
  places.forEach((place) => near.observe(place));
  const printing = (on) => {
    root.classList.toggle("print", on);
    if (on) places.forEach(draw); else redraw();
  };
  dark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => printing(true));
  window.addEventListener("afterprint", () => printing(false));

  // What was not measured stays last in both directions.
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b), ascending ? 1 : -1));
      table.tBodies[0].append(...rows);
    }));
  }

  // Only textContent below: what is in a card may be hostile.
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const copier = (button, source) => {
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(source);
        button.textContent = "Selected: copy with the keyboard";
      }
    });
  };
  for (const button of document.querySelectorAll("button.copy")) copier(button, button.nextElementSibling);

  if (!stored) return;
  const panel = document.getElementById("compared-trials");
  let selected = trials.selected;

  const side = (title, entries) => {
    const names = [...new Set(entries.flatMap((pairs) => pairs.map(([name]) => name)))];
    const texts = entries.map((pairs) => new Map(pairs));
    return [title, names.map((name) => [name, texts.map((text) => text.has(name) ? text.get(name) : "–")])];
  };
  const show = () => {
    const chosen = selected.map((trial) => cards.get(trial));
    panel.replaceChildren(make("h3", chosen.length === 2 ? "Two trials side by side" : "Select one more trial to compare"));
    const table = make("table", undefined, "words1"), head = table.createTHead().insertRow();
    head.append(make("th", ""), ...chosen.map((card) => make("th", `trial ${card.trial}${card.role ? `, ${card.role}` : ""}`)));
    const body = table.createTBody();
    const parts = [["", [["state", chosen.map((card) => card.state)]]],
      side("", chosen.map((card) => card.figures)), side("", chosen.map((card) => card.knobs))];
    for (const [name, texts] of parts.flatMap(([, rows]) => rows)) {
      const row = body.insertRow();
      if (texts.length === 2 && texts[0] !== texts[1]) row.className = "differs";
      row.append(make("th", name), ...texts.map((text) => make("td", text)));
    }
    const frame = make("div", undefined, "scroll");
    frame.append(table);
    const files = make("div", undefined, "yamls");
    for (const card of chosen) {
      const place = make("div", undefined, "yaml"), button = make("button", `Copy YAML of trial ${card.trial}`, "copy");
      const source = make("pre", `# study ${trials.study}, trial ${card.trial}\n${trials.settings}${card.yaml}`);
      button.type = "button";
      source.tabIndex = 0;
      place.append(button, source);
      copier(button, source);
      files.append(place);
    }
    panel.append(frame, files);
    for (const button of document.querySelectorAll("button.select")) {
      button.setAttribute("aria-pressed", selected.includes(Number(button.dataset.trial)));
    }
    mark();
  };
  const mark = () => {
    for (const place of places.filter((one) => ["plot-pareto", "plot-tail"].includes(one.id))) {
      const ring = figure(place).data.find((trace) => trace.meta && trace.meta.selected);
      const at = selected.map((trial) => cards.get(trial).at).filter((one) => "goodput" in one);
      ring.x = at.map((one) => one.goodput);
      ring.y = at.map((one) => one[ring.meta.selected]);
      if ("drawn" in place.dataset) draw(place);
    }
  };
  // A third takes the place of the one selected first; one that is selected already is let go.
  const select = (trial) => {
    selected = selected.includes(trial) ? selected.filter((other) => other !== trial) : [...selected, trial].slice(-2);
    show();
  };
  for (const button of document.querySelectorAll("button.select")) {
    button.addEventListener("click", () => select(Number(button.dataset.trial)));
  }
  show();
})();

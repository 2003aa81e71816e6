"use strict";
(() => {
  const config = {showSendToCloud: false, displaylogo: false, responsive: true, displayModeBar: "hover"};
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll("script[data-plot]")].map(
    (data) => [document.getElementById(data.dataset.plot), JSON.parse(data.textContent)]);

  // Figures take text, grid and background from the page, so that they follow light, dark and print.
  const themed = (layout, width) => {
    const style = getComputedStyle(document.documentElement);
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
  const draw = () => plots.map(([place, figure]) => {
    // Paper is narrower than the screen, and a resize would come after the print.
    const paper = document.documentElement.classList.contains("print");
    const width = paper ? (place.closest(".panels") ? 220 : 680) : undefined;
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
    const data = figure.data.map((trace) => trace.error_y ? {...trace, error_y: {...trace.error_y, color: ink}} : trace);
    return Plotly.react(place, data, themed(figure.layout, width), config);
  });
  const printing = (on) => {
    document.documentElement.classList.toggle("print", on);
    draw();
  };
  Promise.all(draw()).then(() => { document.documentElement.dataset.plots = plots.length; });
  dark.addEventListener("change", draw);
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
      const key = (row) => row.cells[column].dataset.key;
      const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b), ascending ? 1 : -1));
      table.tBodies[0].append(...rows);
    }));
  }
})();

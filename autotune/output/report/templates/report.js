"use strict";
(() => {
  const plots = [...document.querySelectorAll("[data-figure]")];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const PRINTED = 688; // pixels between the margins of A4, as in the style sheet
  const NARROW = 560; // where labels on a plot would lie over each other
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage"]] };
  let figures = {};

  // Legend below each other above the plot, no labels in it; a finger scrolls the page.
  const narrowed = (data, layout, width) => {
    layout.annotations = (layout.annotations || []).filter((a) => a.xref === "paper");
    layout.dragmode = false;
    layout.margin.r = Math.min(layout.margin.r, 24);
    if (layout.scene) {
      layout.margin.l = layout.margin.r = 0;
      for (const k of "xyz") layout.scene.camera.eye[k] *= 1.7; // far enough to have it all in view
    }
    for (const dimension of data.flatMap((t) => t.dimensions ?? [])) {
      dimension.label = dimension.label.split(/(?: |<br>)\(/)[0]; // the unit is in the table
    }
    for (const [name, axis] of Object.entries(layout)) {
      if (name.startsWith("xaxis") && axis.tickvals?.length > 8) {
        Object.assign(axis, { tickvals: undefined, ticktext: undefined, nticks: 6, tickformat: "d" });
      }
    }
    for (const map of data.filter((t) => t.type === "heatmap")) {
      // the whole width is the cells'; where they are still too small for it, the table has the text
      Object.assign(map.colorbar, { orientation: "h", y: 1, yanchor: "bottom", thickness: 10 });
      map.colorbar.title.side = "top";
      layout.margin.t += 44;
      layout.height += 44;
      if ((width - layout.margin.l - layout.margin.r) / map.x.length < 36) map.texttemplate = "";
    }
    const named = data.filter((t) => t.name && t.showlegend !== false && t.type !== "heatmap");
    if (named.length < 2 && !layout.showlegend) return;
    const more = 21 * named.length;
    layout.legend = { ...layout.legend, orientation: "v", x: 0, y: 1, yanchor: "bottom", xanchor: "left" };
    layout.margin.t += more;
    layout.height += more;
  };

  // A page with hundreds of hatched bars takes Chromium minutes to print; they are paler instead.
  const printed = (data, layout) => {
    layout.width = PRINTED;
    if (layout.legend?.orientation === "h") layout.height *= 0.85;
    for (const { marker } of data) {
      if (marker?.pattern?.shape) Object.assign(marker, { pattern: undefined, opacity: 0.45 });
    }
  };

  const draw = (theme, forPrint) => {
    for (const div of plots) {
      const { data, layout } = structuredClone(figures[div.dataset.figure][theme]);
      if (forPrint) {
        printed(data, layout);
      } else if (div.clientWidth < NARROW) {
        narrowed(data, layout, div.clientWidth);
      }
      div.style.height = `${layout.height}px`;
      Plotly.react(div, data, layout, config);
    }
  };
  const show = () => draw(dark.matches ? "dark" : "light");

  const unpack = async (name) => {
    const packed = atob(document.getElementById(name).textContent);
    const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };

  const start = async () => {
    if (!plots.length) return;
    figures = JSON.parse(await unpack("figures"));
    const script = document.createElement("script");
    script.textContent = await unpack("plotly");
    document.head.append(script);
    show();
    dark.addEventListener("change", show);
    window.addEventListener("beforeprint", () => draw("light", true));
    window.addEventListener("afterprint", show);
  };

  for (const button of document.querySelectorAll(".code button")) {
    if (!navigator.clipboard) break;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch {
        window.getSelection().selectAllChildren(text); // not allowed here: ready for Ctrl-C
      }
    });
  }

  // who prints or looks from outside waits for it
  window.figuresDrawn = start().catch((error) => {
    for (const div of plots) {
      div.style.height = "auto";
      div.textContent = "This browser cannot draw the figure; its numbers are in the table below.";
    }
    throw error;
  });
})();

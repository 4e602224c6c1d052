// Links and sockets of MMDIFF and MMDIFF_SUBJECT in colours of their own, in classic nodes and in Nodes 2.0.
import { app } from "../../scripts/app.js";

const COLOURS = { MMDIFF: "#e0a33e", MMDIFF_SUBJECT: "#d66fa8" };

function paint() {
  Object.assign(app.canvas.default_connection_color_byType, COLOURS);
  Object.assign(LGraphCanvas.link_type_colors, COLOURS);
  for (const [type, colour] of Object.entries(COLOURS)) {
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour);
  }
  app.graph?.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "MM-Diff.LinkColours",
  setup() {
    // a palette, also the first one, takes the colours of all types that it does not name
    app.ui.settings.addEventListener("Comfy.ColorPalette.change", () => setTimeout(paint));
  },
  afterConfigureGraph: paint,
});

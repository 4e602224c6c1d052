// What a node of this pack says when it has run, such as the path of a saved file, in the node itself. The front end
// shows such text in nodes of its own alone.
import { app } from "../../scripts/app.js";

const NAME = "says";

function addText(node) {
  const { widget } = app.widgets.STRING(node, NAME, ["STRING", { multiline: true }], app);
  widget.serialize = false; // neither a part of the workflow nor of the prompt
  widget.options.serialize = false;
  widget.options.read_only = true;
  if (widget.inputEl) widget.inputEl.readOnly = true;
  return widget;
}

function show(node, lines) {
  const widget = node.widgets?.find((one) => one.name === NAME);
  if (!widget && !lines?.length) return;
  if (lines?.length) {
    (widget ?? addText(node)).value = lines.join("\n");
  } else {
    node.widgets.splice(node.widgets.indexOf(widget), 1);
    widget.onRemove?.();
  }
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas(true, true);
}

app.registerExtension({
  name: "MM-Diff.NodeText",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("MMDiff")) return;
    const { onExecuted } = nodeType.prototype;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.call(this, output);
      show(this, output?.text);
    };
  },
});

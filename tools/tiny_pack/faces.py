"""A small stand-in for buffalo_l: real ONNX files that the real InsightFace and onnxruntime run.

The detector has SCRFD's nine outputs. It is not trained but built: a face is a compact patch of skin colour, and its
box and key points follow from the patch's area and centroid. The recogniser has ArcFace's shapes and seeded random
weights.
"""

import functools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DETECTOR_FILE, RECOGNITION_FILE = "det_10g.onnx", "w600k_r50.onnx"
OPSET, IR_VERSION = 17, 8

STRIDES = (8, 16, 32)
WINDOWS = (9, 13)  # sides of the two search windows around each cell, in cells
FILL = (0.12, 0.40)  # the part of its window that a face's skin covers
COMPACTNESS = (0.45, 0.65)  # area over 2 pi variance: no score, full score; a disc has 1
OFF_CENTRE = 0.02  # squared distance from cell to centroid, as a part of the window, where the score ends

# light and medium skin by day: rows of (r, g, b) weights and a bias, each positive on skin, for colours in 0..1
SKIN = np.array(
    [
        [1.00, 0.00, 0.00, -0.55],
        [0.92, -1.00, 0.00, 0.00],
        [-0.65, 1.00, 0.00, 0.00],
        [0.00, 1.00, -1.00, 0.01],
        [0.32, -1.00, 1.00, 0.00],
    ],
    dtype=np.float32,
)
SKIN_SHARPNESS = 30.0

# from the skin's centroid, in square roots of its area: left, top, right, bottom; then eyes, nose, corners of the mouth
BOX = (-0.55, -0.50, 0.55, 0.72)
KEY_POINTS = ((-0.25, -0.155), (0.25, -0.155), (0.0, 0.15), (-0.195, 0.285), (0.195, 0.285))


def write_face_pack(folder: Path, name: str = "buffalo_l", seed: int = 0) -> Path:
    """Writes the detector and the recogniser (under 1 MB together) to folder/models/name and returns that path."""
    pack = folder / "models" / name
    pack.mkdir(parents=True, exist_ok=True)
    onnx.save(build_detector(), pack / DETECTOR_FILE)
    onnx.save(build_recogniser(seed), pack / RECOGNITION_FILE)
    return pack


class Graph:
    """Collects the nodes and constants of an ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, dtype=np.float32))

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes) -> str:
        name = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def clip(self, value: str) -> str:
        return self.op("Clip", value, self.number(0), self.number(1))

    def ramp(self, value: str, low: float, high: float) -> str:
        """0 at `low`, 1 at `high`, straight between them."""
        return self.clip(self.op("Div", self.op("Sub", value, self.number(low)), self.number(high - low)))

    def place(self, origin: str, scale: str, at: float) -> str:
        return self.op("Add", origin, self.op("Mul", scale, self.number(at)))

    def model(self, name: str, inputs: list, outputs: list) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model


def build_detector() -> onnx.ModelProto:
    """(1, 3, height, width) RGB in -1..1 -> scores (n, 1), boxes (n, 4), key points (n, 10), each for three strides."""
    graph = Graph()
    skin = skin_map(graph)
    for stride in STRIDES:
        score, scale, x, y = patches(graph, skin, stride)
        left, right = (graph.place(x, scale, at) for at in BOX[::2])
        top, bottom = (graph.place(y, scale, at) for at in BOX[1::2])
        # SCRFD's boxes are distances from the cell, to the left and top as to the right and bottom
        box = [graph.op("Neg", left), graph.op("Neg", top), right, bottom]
        points = [name for a, b in KEY_POINTS for name in (graph.place(x, scale, a), graph.place(y, scale, b))]
        anchors(graph, [score], f"score_{stride}")
        anchors(graph, box, f"bbox_{stride}")
        anchors(graph, points, f"kps_{stride}")
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "height", "width"])
    outputs = [
        helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, ["n", width])
        for name, width in (("score", 1), ("bbox", 4), ("kps", 10))
        for stride in STRIDES
    ]
    return graph.model("skin_patch_detector", [image], outputs)


def skin_map(graph: Graph) -> str:
    """(1, 1, height, width), 1 where the colour is skin and 0 elsewhere, with soft edges."""
    weight, bias = SKIN_SHARPNESS * SKIN[:, :3], SKIN_SHARPNESS * SKIN[:, 3]
    # the network's input is (colour - 127.5) / 128
    weight, bias = weight * 128 / 255, bias + weight.sum(axis=1) / 2
    rules = graph.clip(graph.op("Conv", "input.1", graph.constant(weight[:, :, None, None]), graph.constant(bias)))
    return graph.op("ReduceMin", rules, axes=[1], keepdims=1)


def patches(graph: Graph, skin: str, stride: int) -> tuple[str, str, str, str]:
    """The skin in the two windows around each cell, as one patch: score, square root of the area, centroid x and y.

    All are (1, 2, rows, columns) and count in cells; the centroid is measured from the cell's corner.
    """
    cells = graph.op("AveragePool", skin, kernel_shape=[stride, stride], strides=[stride, stride])
    pads = [max(WINDOWS) // 2] * 4
    moments = (graph.op("Conv", cells, graph.constant(kernel), pads=pads) for kernel in moment_kernels())
    area, x, y, square = moments
    area = graph.op("Add", area, graph.number(1e-3))
    x, y, square = (graph.op("Div", moment, area) for moment in (x, y, square))
    offset = graph.op("Add", graph.op("Mul", x, x), graph.op("Mul", y, y))
    variance = graph.op("Add", graph.op("Sub", square, offset), graph.number(1e-3))
    window = graph.constant(np.square(WINDOWS, dtype=np.float32)[None, :, None, None])
    fill = graph.op("Div", area, window)
    tests = [
        graph.ramp(graph.op("Div", area, graph.op("Mul", variance, graph.number(2 * np.pi))), *COMPACTNESS),
        graph.ramp(fill, FILL[0] / 2, FILL[0]),
        graph.ramp(fill, FILL[1] * 1.5, FILL[1]),
        graph.ramp(graph.op("Div", offset, window), OFF_CENTRE, 0.0),
    ]
    score = functools.reduce(lambda product, test: graph.op("Mul", product, test), tests)
    half = graph.number(0.5)
    return score, graph.op("Sqrt", area), graph.op("Add", x, half), graph.op("Add", y, half)


def moment_kernels() -> list[np.ndarray]:
    """Four kernels (2, 1, side, side), each over both windows: the sums of 1, x, y and x^2 + y^2."""
    reach = max(WINDOWS) // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    inside = np.stack([np.maximum(abs(x), abs(y)) <= side // 2 for side in WINDOWS])[:, None]
    return [field * inside for field in (np.ones_like(x), x, y, x**2 + y**2)]


def anchors(graph: Graph, channels: list[str], output: str) -> None:
    """Channels, each (1, 2, rows, columns), -> `output` (rows * columns * 2, channels), in SCRFD's order of anchors."""
    last = [graph.op("Unsqueeze", channel, graph.constant(np.array([4]))) for channel in channels]
    stacked = graph.op("Transpose", graph.op("Concat", *last, axis=4), perm=[0, 2, 3, 1, 4])
    graph.op("Reshape", stacked, graph.constant(np.array([-1, len(channels)])), output=output)


def build_recogniser(seed: int) -> onnx.ModelProto:
    """(n, 3, 112, 112) RGB in -1..1 -> (n, 512), seeded random weights; normalised so that unlike crops point apart."""
    random = np.random.default_rng(seed)
    graph = Graph()
    value, width = "input.1", 3
    for channels in (16, 16, 16):
        kernel = random.standard_normal((channels, width, 3, 3)).astype(np.float32) / np.sqrt(9 * width)
        value = graph.op("Conv", value, graph.constant(kernel.astype(np.float32)), strides=[2, 2], pads=[1, 1, 1, 1])
        ones, zeros = np.ones(channels, dtype=np.float32), np.zeros(channels, dtype=np.float32)
        value = graph.op("Tanh", graph.op("InstanceNormalization", value, graph.constant(ones), graph.constant(zeros)))
        width = channels
    value = graph.op("Flatten", graph.op("AveragePool", value, kernel_shape=[3, 3], strides=[3, 3]))
    weight = random.standard_normal((width * 16, 512)).astype(np.float32) / 16
    graph.op("MatMul", value, graph.constant(weight), output="embedding")
    image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, ["n", 3, 112, 112])
    embedding = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 512])
    return graph.model("random_arcface", [image], [embedding])

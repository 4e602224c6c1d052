"""Pictures of prompts x subjects x seeds: the plan, the workflow's parts, and a real server that paints them."""

import json
from pathlib import Path

import pytest
from PIL import Image

import evaluate
from comfy_client import Client, ServerError
from evaluation_models import ASTRONAUT, MIRRORED
from mmdiff_model.evaluation.cases import pictures_in, read_pictures
from painting import Work, Workflow, paint_all, plan
from tiny_prompt import with_tiny_models
from workflow_api import to_api

pytest_plugins = ["live_fixtures"]

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
GONE = Client("http://127.0.0.1:9")
WORDS = {"anna": "woman", "bob": "man"}
HALF = {"upscale_method": "area", "scale_by": 0.5}
PAIR = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "old"}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "old"}},
    "3": {"class_type": "MMDiffEncodeSubject", "inputs": {"images": ["1", 0], "masks": ["1", 1]}},
    "4": {"class_type": "MMDiffEncodeSubject", "inputs": {"images": ["2", 0]}},
    "5": {"class_type": "MMDiffSubjectRegion", "inputs": {"subject": ["4", 0]}},
    "6": {
        "class_type": "MMDiffApply",
        "inputs": {
            "positive": "old",
            "subjects.subject_2": ["5", 0],
            "subjects.subject_1": ["3", 0],
            "subjects.subject_3": None,
        },
    },
    "7": {"class_type": "KSampler", "inputs": {"seed": 5, "model": ["6", 0]}},
    "8": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
    "9": {"class_type": "KSampler", "inputs": {"seed": ["8", 0], "values": []}},
}


ONE = {number: PAIR[number] for number in "136789"}


def work(name: str = "anna/000_01.png", plain: str = "a woman", subjects: tuple[str, ...] = ("anna",)) -> Work:
    return Work(name, plain, plain, subjects, 1)


def test_plan_is_every_prompt_of_every_subject_with_every_seed():
    works = list(
        plan([("anna",), ("bob", "anna")], WORDS, lambda named: ["{} by {{x}} {}"[: 16 if named[1:] else 10]], 2)
    )
    assert [(one.name, one.seed) for one in works] == [
        ("anna/000_01.png", 1),
        ("anna/000_02.png", 2),
        ("bob+anna/000_01.png", 1),
        ("bob+anna/000_02.png", 2),
    ]
    assert (works[0].text, works[0].plain) == ("woman<|subj|> by {{x}", "woman by {{x}")
    assert works[2].text == "man<|subj|> by {{x}} woman<|subj|>"
    with pytest.raises(
        ValueError, match=r"^prompts: 'a \{\}' has 1 places \{\} for a class word, and bob\+anna needs 2"
    ):
        list(plan([("bob", "anna")], WORDS, lambda named: ["a {}"], 1))


def test_a_workflow_is_filled_at_its_parts(tmp_path):
    (tmp_path / "pair.json").write_text(json.dumps(PAIR))
    workflow = Workflow.read(tmp_path / "pair.json", GONE)
    assert (workflow.text, workflow.photos) == ("6", (("1",), ("2",)))
    filled = workflow.fill(Work("x", "a man<|subj|>", "a man", ("bob", "anna"), 9), ["bob.png", "anna.png"])
    assert filled["6"]["inputs"]["positive"] == "a man<|subj|>"
    assert (filled["1"]["inputs"]["image"], filled["2"]["inputs"]["image"]) == ("bob.png", "anna.png")
    assert filled["7"]["inputs"]["seed"] == 9 and filled["8"]["inputs"]["noise_seed"] == 9
    assert workflow.prompt == PAIR


@pytest.mark.parametrize("saved", [5, "a text", [], {"prompt": PAIR}])
def test_a_file_that_is_no_workflow_is_named(tmp_path, saved):
    (tmp_path / "pair.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"^workflow: .*pair.json is no workflow. Save or export one in ComfyUI"):
        Workflow.read(tmp_path / "pair.json", GONE)


def test_a_regions_mask_is_no_photo(tmp_path):
    """Found by trying a mask that is painted in a file: it must stay as it is."""
    region = {"class_type": "MMDiffSubjectRegion", "inputs": {"subject": ["4", 0], "mask": ["10", 1]}}
    mask = {"class_type": "LoadImage", "inputs": {"image": "left half"}}
    (tmp_path / "pair.json").write_text(json.dumps({**PAIR, "5": region, "10": mask}))
    assert Workflow.read(tmp_path / "pair.json", GONE).photos == (("1",), ("2",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"6": {"class_type": "CLIPTextEncode", "inputs": {}}}, "it has 0 of MMDiffApply or MMDiffTextEncode"),
        ({"9": PAIR["6"]}, "it has 2 of MMDiffApply"),
        (
            {"4": {"class_type": "MMDiffLoadSubject", "inputs": {}}},
            "each subject of its text must come from a Load Image",
        ),
        (
            {
                "4": {"class_type": "MMDiffEncodeSubject", "inputs": {"images": ["2", 0], "masks": ["10", 0]}},
                "10": {"class_type": "LoadImageMask", "inputs": {"image": "cut out"}},
            },
            "the masks of node 4 come from a file of their own",
        ),
        ({"6": {**PAIR["6"], "inputs": {**PAIR["6"]["inputs"], "positive": ["1", 0]}}}, "must be written in the node"),
        ({"6": {**PAIR["6"], "inputs": {**PAIR["6"]["inputs"], "positive": None}}}, "must be written in the node"),
        (
            {
                "7": {"class_type": "KSampler", "inputs": {"seed": ["11", 0], "model": ["6", 0]}},
                "11": {"class_type": "PrimitiveInt", "inputs": {"value": 5}},
            },
            r"the seed of node 7 \(KSampler\) must be a whole number in the node itself, not linked to it",
        ),
        (
            {
                "7": {"class_type": "SamplerCustomAdvanced", "inputs": {"noise": ["8", 0], "guider": ["6", 0]}},
                "8": {"class_type": "RandomNoise", "inputs": {"noise_seed": ["11", 0]}},
                "11": {"class_type": "PrimitiveInt", "inputs": {"value": 5}},
            },
            r"the noise_seed of node 8 \(RandomNoise\) must be a whole number",
        ),
        (
            {"7": {"class_type": "SamplerCustom", "inputs": {"model": ["6", 0]}}},
            "nothing that its pictures come from has a seed or noise_seed, so all --seeds would give one picture",
        ),
    ],
)
def test_workflows_that_cannot_be_filled_are_named(tmp_path, change, message):
    (tmp_path / "pair.json").write_text(json.dumps({**PAIR, **change}))
    with pytest.raises(ValueError, match=f"^workflow: .*{message}"):
        Workflow.read(tmp_path / "pair.json", GONE)


def test_what_was_painted_otherwise_is_not_taken_for_this(tmp_path):
    workflow = Workflow(ONE, "6", (("1",),))
    references = {name: [tmp_path / f"{name}.png"] for name in WORDS}
    for [photo] in references.values():
        Image.new("RGB", (8, 8)).save(photo)
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "000_01.png").write_bytes(b"a picture")
    (tmp_path / "anna" / "000_01.txt").write_text("a woman in the snow")
    with pytest.raises(ValueError, match="was painted for 'a woman in the snow', not for 'a woman'"):
        paint_all(tmp_path, [work()], workflow, references, GONE, print)
    with pytest.raises(ValueError, match="was painted with another workflow"):
        paint_all(tmp_path, [], Workflow({}, "6", (("1",),)), references, GONE, print)
    with pytest.raises(ValueError, match=r"^workflow: it has 1 subject\(s\), and anna\+bob needs 2"):
        paint_all(tmp_path, [work(subjects=("anna", "bob"))], workflow, references, GONE, print)


def test_a_plan_that_painted_nothing_binds_nobody(tmp_path):
    """A mistake that the first picture shows, such as a batch of two, is mended in the workflow; the folder stays."""
    paint_all(tmp_path, [], Workflow({"1": {}}, "6", (("1",),)), {}, GONE, print)
    paint_all(tmp_path, [], Workflow(ONE, "6", (("1",),)), {}, GONE, print)
    (tmp_path / "000_01.png").write_bytes(b"a picture")
    with pytest.raises(ValueError, match="was painted with another workflow"):
        paint_all(tmp_path, [], Workflow({"1": {}}, "6", (("1",),)), {}, GONE, print)


def test_another_first_photo_of_a_subject_is_another_plan(tmp_path):
    workflow, photos = Workflow(ONE, "6", (("1",),)), tmp_path / "references"
    photos.mkdir()
    for name, colour in {"anna": "red", "bob": "blue", "0": "green"}.items():
        Image.new("RGB", (8, 8), colour).save(photos / f"{name}.bmp")
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "000_01.png").write_bytes(b"a picture")
    (tmp_path / "anna" / "000_01.txt").write_text("a woman")

    def paint(*names: str) -> None:
        paint_all(tmp_path, [work()], workflow, {"anna": [photos / f"{name}.bmp" for name in names]}, GONE, print)

    paint("anna")
    plan = json.loads((tmp_path / "plan.json").read_text())
    paint_all(tmp_path, [], workflow, {}, GONE, print)
    assert json.loads((tmp_path / "plan.json").read_text()) == plan, "other subjects' photos stay noted"
    paint("anna", "bob")
    with pytest.raises(ValueError, match=r"^pictures: .* was painted with another photo of anna than .*0.bmp. Choose"):
        paint("0", "anna")
    (photos / "anna.bmp").write_bytes((photos / "bob.bmp").read_bytes())
    with pytest.raises(ValueError, match=r"another photo of anna than .*anna.bmp. Choose another"):
        paint("anna")
    del plan["photos"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))  # as an older version left it
    paint("anna")
    with pytest.raises(ValueError, match="another photo of anna"):
        paint("0")


def test_a_subject_whose_name_has_a_plus_is_one_subject(tmp_path):
    photo, workflow, prompts = (tmp_path / name for name in ("photo.png", "one.json", "prompts.txt"))
    Image.new("RGB", (8, 8)).save(photo)
    apply = {"class_type": "MMDiffApply", "inputs": {"positive": "old", "subjects.subject_1": ["3", 0]}}
    workflow.write_text(json.dumps({**{number: PAIR[number] for number in "137"}, "6": apply}))
    prompts.write_text("a {}")
    places = ["--pictures", str(tmp_path / "pictures"), "--references", str(tmp_path)]
    given = [*places, "--server", GONE.url, "--workflow", str(workflow), "--prompts", str(prompts)]
    with pytest.raises(ServerError, match="does not answer"):
        evaluate.paint(evaluate.arguments().parse_args(given), {"c+d": [photo]}, {"c+d": "cat"}, None)
    assert list(json.loads((tmp_path / "pictures" / "plan.json").read_text())["photos"]) == ["c+d"]


def test_a_server_that_is_not_there_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(ServerError, match="^server: http://127.0.0.1:9 does not answer .* run the same command again"):
        paint_all(tmp_path, [work()], Workflow(PAIR, "6", (("1",),)), {"anna": [tmp_path / "photo.png"]}, GONE, print)
    assert not list(tmp_path.rglob("0*"))


@pytest.fixture
def portrait(server, object_info, photos, tmp_path) -> dict:
    """The shipped workflow of one subject with tiny models, one picture a seed."""
    prompt = with_tiny_models(
        to_api(json.loads((WORKFLOWS / "MM-Diff SDXL, one person.json").read_text()), object_info), photos, 64, 1
    )
    for node in prompt.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"]["batch_size"] = 1
    return prompt


def read(prompt: dict, folder: Path, client: Client) -> Workflow:
    path = folder / "workflow.json"
    path.write_text(json.dumps(prompt))
    return Workflow.read(path, client)


@pytest.mark.live
def test_a_server_paints_what_is_missing(server, portrait, tmp_path):
    references = {}
    for name, photo in {"anna": ASTRONAUT, "bob": MIRRORED}.items():
        references[name] = [tmp_path / f"{name}.png"]
        Image.fromarray((photo * 255).byte().numpy()).save(references[name][0])
    client, folder, said = Client(server.url), tmp_path / "pictures", []
    workflow = read(portrait, tmp_path, client)
    works = list(plan([("anna",), ("bob",)], WORDS, lambda named: ["a photo of a {} in the snow"], 2))
    paint_all(folder, works, workflow, references, client, said.append)
    painted = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}
    assert painted.keys() == {one.name for one in works} and len(set(painted.values())) == 4, "subject and seed count"
    assert [file.prompt for file in read_pictures(folder, list(WORDS))] == [one.plain for one in works]
    (folder / "bob" / "000_02.png").unlink()
    paint_all(folder, works, workflow, references, client, said.append)
    assert "3 of 4 pictures were painted before." in said and said[-1].startswith("painted 1 of 1: bob/000_02.png")
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")} == painted
    assert len(pictures_in(folder / "bob")) == 2


@pytest.mark.live
def test_a_mask_that_is_painted_over_is_another_plan(server, tmp_path):
    client, mask = Client(server.url), tmp_path / "left [half].png"
    loader = {"class_type": "LoadImageMask", "inputs": {"image": "plans/left [half].png [input]"}}
    shown = {"class_type": "MaskPreview", "inputs": {"mask": ["10", 0]}}
    unused = {"class_type": "LoadImageMask", "inputs": {"image": "gone.png"}}
    workflow = Workflow({**ONE, "10": loader, "11": shown, "12": unused}, "6", (("1",),))

    def paint(left: int) -> None:
        picture = Image.new("L", (8, 8))
        picture.paste(255, (0, 0, left, 8))
        picture.save(mask)
        client.upload(mask, subfolder="plans", overwrite="true")
        paint_all(tmp_path / "out", [], workflow, {}, client, print)

    paint(4)
    (tmp_path / "out" / "000_01.png").write_bytes(b"a picture")
    paint(4)
    with pytest.raises(
        ValueError, match=r"painted with another plans/left \[half\].png \[input\] in ComfyUI's folder. Choose"
    ):
        paint(5)
    shown["inputs"]["mask"] = ["12", 0]
    with pytest.raises(ValueError, match=r"^workflow: it loads 'gone.png', which is not in ComfyUI's input folder"):
        paint_all(tmp_path / "other", [], workflow, {}, client, print)


@pytest.mark.live
def test_what_the_server_refuses_is_said(server, portrait, tmp_path):
    client = Client(server.url)
    references = {"anna": [tmp_path / "anna.png"]}
    Image.fromarray((ASTRONAUT * 255).byte().numpy()).save(references["anna"][0])
    [latent] = [node for node in portrait.values() if node["class_type"] == "EmptyLatentImage"]
    text = Work("anna/000_01.png", "a woman<|subj|>", "a woman", ("anna",), 1)

    def paint(name: str, work: Work = text) -> None:
        paint_all(tmp_path / name, [work], read(portrait, tmp_path, client), references, client, print)

    with pytest.raises(ServerError, match="^server: .* did not paint: node .*there is no trigger"):
        paint("failed", Work("anna/000_01.png", "a woman", "a woman", ("anna",), 1))
    latent["inputs"]["batch_size"] = 2
    with pytest.raises(ServerError, match="^workflow: it saves 2 pictures for a seed"):
        paint("two")
    latent["inputs"]["batch_size"] = 1
    [photo] = [number for number, node in portrait.items() if node["class_type"] == "LoadImage"]
    [decode] = [number for number, node in portrait.items() if node["class_type"] == "VAEDecode"]
    unseeded = {**portrait, decode: {"class_type": "ImageScaleBy", "inputs": {"image": [photo, 0], **HALF}}}
    two = list(plan([("anna",)], WORDS, lambda named: ["a {} in the snow"], 2))
    with pytest.raises(ValueError, match=r"anna/000_01.png and anna/000_02.png came out alike in every pixel"):
        paint_all(tmp_path / "alike", two, read(unseeded, tmp_path, client), references, client, print)
    latent["inputs"]["batch_size"] = 0
    with pytest.raises(ServerError, match="^server: .* did not paint: node .*EmptyLatentImage.*batch_size"):
        paint("refused")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("000_*.png")] == ["alike/anna/000_01.png"]

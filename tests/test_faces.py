"""Faces: the real InsightFace and onnxruntime on the small ONNX pack, from photo to identity vector and crop."""

import logging
import shutil
import socket
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from insightface.utils.face_align import norm_crop
from skimage import data, transform

from mmdiff_model.faces import (
    DETECTION_SIZES,
    FIRST,
    LARGEST,
    LEFT_TO_RIGHT,
    FaceFinder,
    detect,
    find_faces,
    load_face_analysis,
    to_bgr,
)
from tiny_pack.faces import DETECTOR_FILE, RECOGNITION_FILE, write_face_pack

ASTRONAUT = data.astronaut()
EYES = ((201, 100), (247, 102))
NO_FACE = data.rocket()


def as_photo(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).float() / 255


def two_faces() -> np.ndarray:
    """(512, 700, 3): a large face on the left, a small one, which the detector scores higher, on the right."""
    image = np.full((512, 700, 3), 200, dtype=np.uint8)
    large = ASTRONAUT[40:240, 120:340]
    small = transform.resize(large, (120, 132), preserve_range=True).astype(np.uint8)
    image[100:300, 10:230] = large
    image[300:420, 400:532] = small
    return image


def face_filling_the_photo() -> np.ndarray:
    """(400, 400, 3): an oval of skin so large that at 640 px it is beyond the detector's largest window."""
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    image = np.full((400, 400, 3), (70, 90, 120), dtype=np.uint8)
    image[(x / 0.8) ** 2 + (y / 0.9) ** 2 < 1] = (226, 184, 165)
    return image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("insightface")
    write_face_pack(folder)
    return folder


@pytest.fixture(scope="module")
def analysis(root):
    return load_face_analysis(root, "buffalo_l")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("face code went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()


def test_one_face_is_what_the_released_steps_give(analysis):
    [face] = detect(analysis, [as_photo(ASTRONAUT)])
    bgr = np.ascontiguousarray(ASTRONAUT[..., ::-1])
    expected = analysis.get(bgr)[0]
    crop = norm_crop(bgr, expected.kps, image_size=224)[..., ::-1]
    assert torch.equal(face.embedding, torch.from_numpy(expected.normed_embedding))
    assert face.embedding.shape == (512,) and face.embedding.dtype == torch.float32
    assert face.embedding.norm().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal((face.crop * 255).round().to(torch.uint8), torch.from_numpy(crop.copy()))
    assert face.crop.shape == (224, 224, 3)
    assert face.score == pytest.approx(expected.det_score) and face.score > 0.5


def test_key_points_lie_on_the_eyes(analysis):
    [found] = find_faces(analysis, to_bgr(as_photo(ASTRONAUT)))
    assert np.abs(found.kps[:2] - np.array(EYES)).max() < 6


@pytest.mark.parametrize("error", [-0.4, 0.0, 0.4])
def test_bgr_gives_back_the_8_bit_photo(error):
    photo = (as_photo(ASTRONAUT) + error / 255).clamp(0, 1)
    assert np.array_equal(to_bgr(photo), ASTRONAUT[..., ::-1])


def test_several_photos_keep_their_order(analysis):
    photos = [as_photo(ASTRONAUT), as_photo(ASTRONAUT[:, ::-1]), as_photo(ASTRONAUT[::2, ::2])]
    faces = detect(analysis, photos)
    assert len(faces) == 3
    for photo, face in zip(photos, faces, strict=True):
        assert torch.equal(face.embedding, detect(analysis, [photo])[0].embedding)
    assert cosine(faces[0].embedding, faces[1].embedding) < 0.9


@pytest.mark.parametrize("mirrored", [False, True])
def test_which_face(analysis, mirrored):
    image = two_faces()[:, ::-1] if mirrored else two_faces()
    photo = as_photo(image)
    found = find_faces(analysis, to_bgr(photo))
    assert len(found) == 2
    small, large = sorted(found, key=lambda face: face.bbox[2] - face.bbox[0])
    assert found[0] is small, "the picture no longer tells the first face from the largest"
    left, right = (small, large) if mirrored else (large, small)

    def taken(which: str, index: int = 1) -> torch.Tensor:
        return detect(analysis, [photo], which, index)[0].embedding

    assert torch.equal(taken(LARGEST), torch.from_numpy(large.normed_embedding))
    assert torch.equal(taken(FIRST), torch.from_numpy(small.normed_embedding))
    assert torch.equal(taken(LEFT_TO_RIGHT, 1), torch.from_numpy(left.normed_embedding))
    assert torch.equal(taken(LEFT_TO_RIGHT, 2), torch.from_numpy(right.normed_embedding))
    with pytest.raises(ValueError, match=r"face_index: 3 was asked for, but photo 1 of 1 \(700 x 512 px\) has 2 face"):
        taken(LEFT_TO_RIGHT, 3)


@pytest.mark.parametrize(
    "image",
    [
        NO_FACE,
        np.full((300, 200, 3), 128, dtype=np.uint8),
        np.zeros((1, 1, 3), dtype=np.uint8),
        np.zeros((1, 2000, 3), dtype=np.uint8),
        np.zeros((2000, 1, 3), dtype=np.uint8),
    ],
    ids=["rocket", "grey", "one pixel", "row", "column"],
)
def test_photo_without_a_face_is_named(analysis, image):
    height, width = image.shape[:2]
    message = rf"images: no face found in photo 2 of 3 \({width} x {height} px\).*crop closer"
    with pytest.raises(ValueError, match=message):
        detect(analysis, [as_photo(ASTRONAUT), as_photo(image), as_photo(ASTRONAUT)])


def test_first_try_is_the_released_size(root):
    analysis = load_face_analysis(root, "buffalo_l")
    detect(analysis, [as_photo(ASTRONAUT)])
    assert analysis.det_model.resolution_session_input_sizes == ((640, 640),)


def test_smaller_detection_finds_a_face_that_fills_the_photo(root):
    analysis = load_face_analysis(root, "buffalo_l")
    image = face_filling_the_photo()
    assert analysis.get(np.ascontiguousarray(image[..., ::-1])) == []
    [face] = find_faces(analysis, to_bgr(as_photo(image)))
    center = (face.bbox[:2] + face.bbox[2:]) / 2
    assert np.abs(center - 200).max() < 40
    detector = analysis.det_model
    assert (detector.input_size, detector.input_sizes) == ((640, 640), [(640, 640)])


def test_the_size_another_pack_left_changes_nothing_and_comes_back(root, analysis):
    other = load_face_analysis(root, "buffalo_l")
    other.prepare(ctx_id=0, det_size=(256, 256))
    photo = as_photo(ASTRONAUT)
    assert torch.equal(detect(other, [photo])[0].crop, detect(analysis, [photo])[0].crop)
    assert other.det_model.input_sizes == [(256, 256)]
    with pytest.raises(ValueError, match="no face found"):
        detect(other, [as_photo(NO_FACE)])
    assert other.det_model.input_sizes == [(256, 256)]


def test_detector_of_a_fixed_size_is_left_at_it(tmp_path):
    pack = write_face_pack(tmp_path)
    model = onnx.load(pack / DETECTOR_FILE)
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = 640
    onnx.save(model, pack / DETECTOR_FILE)
    analysis = load_face_analysis(tmp_path, "buffalo_l")
    assert len(detect(analysis, [as_photo(ASTRONAUT)])) == 1
    assert find_faces(analysis, to_bgr(as_photo(face_filling_the_photo()))) == []


def test_any_object_that_gives_insightface_faces_will_do(analysis):
    class Wrapper:
        def get(self, image):
            return analysis.get(image)

    photo = as_photo(ASTRONAUT)
    assert torch.equal(detect(Wrapper(), [photo])[0].embedding, detect(analysis, [photo])[0].embedding)


@pytest.mark.parametrize("wrong", [{"frames": []}, None, torch.zeros(3), "buffalo_l"])
def test_other_objects_on_the_socket_are_refused(wrong):
    with pytest.raises(ValueError, match=f"face_analysis: an InsightFace .* got '{type(wrong).__name__}'") as error:
        detect(wrong, [as_photo(ASTRONAUT)])
    assert "Load Face Analysis (MM-Diff)" in str(error.value)


def test_analysis_without_recognition_is_refused(root):
    from insightface.app import FaceAnalysis

    pack = str(root / "models" / "buffalo_l")
    detection_only = FaceAnalysis(pack, allowed_modules=["detection"], providers=["CPUExecutionProvider"])
    detection_only.prepare(ctx_id=0, det_size=(640, 640))
    with pytest.raises(ValueError, match="face_analysis: its faces have no usable normed_embedding"):
        detect(detection_only, [as_photo(ASTRONAUT)])


def test_a_finder_is_known_by_its_models_files(root, tmp_path, analysis):
    digits = FaceFinder(analysis).fingerprint()
    assert digits == FaceFinder(load_face_analysis(root, "buffalo_l")).fingerprint()
    other = shutil.copytree(root / "models" / "buffalo_l", tmp_path / "models" / "other")
    loaded = FaceFinder(load_face_analysis(tmp_path, "other"))
    assert loaded.fingerprint() == digits
    with (other / RECOGNITION_FILE).open("ab") as file:
        file.write(b" ")
    assert loaded.fingerprint() != digits
    assert FaceFinder(SimpleNamespace(get=analysis.get)).fingerprint() == "unknown"


def test_another_recogniser_is_warned_of(tmp_path, analysis, caplog):
    pack = write_face_pack(tmp_path, "antelopev2")
    (pack / RECOGNITION_FILE).rename(pack / "glintr100.onnx")
    with caplog.at_level(logging.WARNING):
        detect(analysis, [as_photo(ASTRONAUT)])
        assert "glintr100" not in caplog.text
        detect(load_face_analysis(tmp_path, "antelopev2"), [as_photo(ASTRONAUT)])
    assert "glintr100.onnx" in caplog.text and "buffalo_l" in caplog.text


def test_loading_prepares_the_released_detection(root, no_network):
    analysis = load_face_analysis(root, "buffalo_l")
    assert set(analysis.models) == {"detection", "recognition"}
    assert analysis.det_model.input_sizes == [(DETECTION_SIZES[0], DETECTION_SIZES[0])] == [(640, 640)]


def test_a_folder_of_the_same_name_in_the_working_folder_is_not_taken(root, tmp_path, monkeypatch):
    (tmp_path / "buffalo_l").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_face_analysis(root, "buffalo_l").model_dir == str((root / "models" / "buffalo_l").resolve())


def test_missing_pack_is_not_downloaded(tmp_path, no_network):
    with pytest.raises(FileNotFoundError) as error:
        load_face_analysis(tmp_path, "buffalo_l")
    message = str(error.value)
    assert message.startswith("pack: ")
    assert str(tmp_path / "models" / "buffalo_l") in message
    assert "github.com/deepinsight/insightface/releases" in message and "non-commercial" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["models/antelopev2/antelopev2", "antelopev2"], ids=["nested", "beside models"])
def test_pack_in_the_wrong_folder_is_found_and_named(tmp_path, no_network, place):
    source = write_face_pack(tmp_path / "source")
    target = tmp_path / "root" / place
    target.parent.mkdir(parents=True)
    source.rename(target)
    with pytest.raises(FileNotFoundError) as error:
        load_face_analysis(tmp_path / "root", "antelopev2")
    message = str(error.value)
    assert f"must lie in '{tmp_path / 'root' / 'models' / 'antelopev2'}' itself" in message
    assert str(target.relative_to(tmp_path / "root") / DETECTOR_FILE) in message and "move" in message


def test_pack_left_in_its_archive_is_named(tmp_path, no_network):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "buffalo_l.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"buffalo_l\.zip.*unpack"):
        load_face_analysis(tmp_path, "buffalo_l")


@pytest.mark.parametrize(("file", "task"), [(DETECTOR_FILE, "detection"), (RECOGNITION_FILE, "recognition")])
def test_incomplete_pack_names_the_missing_model(tmp_path, no_network, file, task):
    (write_face_pack(tmp_path) / file).unlink()
    with pytest.raises(ValueError, match=f"pack: .*buffalo_l' has no {task} model, only .*onnx"):
        load_face_analysis(tmp_path, "buffalo_l")


def test_truncated_pack_is_refused(tmp_path, no_network):
    file = write_face_pack(tmp_path) / RECOGNITION_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="pack: .*cannot be opened: .*Unpack it again"):
        load_face_analysis(tmp_path, "buffalo_l")


def test_absent_insightface_gives_the_command(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(ImportError) as error:
        load_face_analysis(root, "buffalo_l")
    assert "pip install insightface onnxruntime" in str(error.value)
    assert r"python_embeded\python.exe -m pip install" in str(error.value)


def test_provider_this_onnxruntime_lacks_is_refused(root):
    import onnxruntime

    assert "DmlExecutionProvider" not in onnxruntime.get_available_providers(), "choose another provider for this test"
    with pytest.raises(ValueError, match="provider: this onnxruntime cannot run on DirectML.*Choose CPU"):
        load_face_analysis(root, "buffalo_l", "DirectML")


def test_loader_node_takes_the_pack_from_the_models_folder(models_folder):
    from mm_diff_pack.nodes.face_analysis import MMDiffFaceAnalysisLoader, pack_names

    write_face_pack(models_folder / "insightface")
    write_face_pack(models_folder / "insightface", "antelopev2")
    assert pack_names()[0] == "buffalo_l" and "antelopev2" in pack_names()
    analysis = MMDiffFaceAnalysisLoader.execute("buffalo_l", "CPU").args[0]
    assert analysis.model_dir == str((models_folder / "insightface" / "models" / "buffalo_l").resolve())
    assert len(detect(analysis, [as_photo(ASTRONAUT)])) == 1

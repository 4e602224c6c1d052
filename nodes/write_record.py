"""A record of training data from a picture, masks made in the graph, and a caption."""

import hashlib
from collections.abc import Sequence

from comfy_api.latest import io, ui
from torch import Tensor, nn

from .annotate import DATA, contact_sheet, data_folder, data_name
from .checks import checked, validation
from .folders import writing
from .images import check_mask, photos_from


class MMDiffWriteRecord(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffWriteRecord",
            display_name="Write Training Record (MM-Diff)",
            category="MM-Diff/training",
            description="Adds a picture with a mask for each class word of its caption to the data that Train MM-Diff "
            "reads.",
            search_aliases=["mm-diff data", "dataset", "annotation", "mask", "caption"],
            inputs=[
                io.Image.Input("image", tooltip="The picture, or a batch of them."),
                io.Mask.Input("mask", tooltip="A mask for each word, in their order; for a batch, picture by picture."),
                io.String.Input(
                    "words",
                    default="dog",
                    placeholder="dog, cat",
                    tooltip="The class word, as it stands in the caption. Several, such as: dog, cat, for several "
                    "masks; one word twice where the caption has it twice.",
                ),
                io.String.Input(
                    "caption",
                    default="a photo of a dog",
                    multiline=True,
                    placeholder="a dog and a cat on a sofa",
                    tooltip="What the picture shows. One line for all pictures, or one for each.",
                ),
                io.String.Input(
                    "name", default="my_data", tooltip=f"Folder of the records in input/{DATA}; what is there stays."
                ),
            ],
            outputs=[
                io.String.Output(display_name="data", tooltip="The folder, for the data input of Train MM-Diff."),
                io.Image.Output(display_name="sheet", tooltip="The pictures with their masks, words and captions."),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, image: Tensor, mask: Tensor, words: str, caption: str, name: str) -> io.NodeOutput:
        from ..mmdiff_model.annotation.annotator import record_of
        from ..mmdiff_model.annotation.words import Rejected
        from ..mmdiff_model.annotation.writers import FolderWriter

        photos = photos_from(image, "image")
        words = words_of(words)
        lines = captions_of(caption, len(photos))
        placed = places_of(words, lines)
        masks = check_mask("mask", mask)
        if len(masks) != len(photos) * len(words):
            raise ValueError(
                f"mask: every word of every picture takes a mask, which makes {len(photos) * len(words)}, but the "
                f"number of masks is {len(masks)}. Connect a mask for each."
            )
        folder, records = data_folder(name), []
        for number, (photo, text, phrases) in enumerate(zip(photos, lines, placed, strict=True), start=1):
            own = masks[(number - 1) * len(words) : number * len(words)]
            own = nn.functional.interpolate(own[:, None], photo.shape[:2], mode="bilinear")[:, 0] > 0.5
            if not own.flatten(1).any(dim=1).all():
                raise ValueError(f"mask: a mask of picture {number} is empty. Paint the subject that its word names.")
            pixels = (photo * 255).round().byte().numpy()
            code = hashlib.sha256(pixels.tobytes() + own.numpy().tobytes() + f"{words} {text}".encode()).hexdigest()
            record = record_of(f"record_{code[:16]}", pixels, text, phrases, own.numpy())
            if isinstance(record, Rejected) or len(record.segments) < len(words):
                raise ValueError(f"mask: a mask of picture {number} is hidden by another. Give each word its own part.")
            records.append(record)
        writer = FolderWriter(folder)
        for record in records:
            with writing("name", folder / record.name):
                writer.write(record)
        sheet = contact_sheet([record.picture for record in records], records)
        return io.NodeOutput(data_name(folder), sheet, ui=ui.PreviewImage(sheet, cls=cls))

    @classmethod
    def validate_inputs(cls, words=None, caption=None, name=None) -> bool | str:
        return validation(
            lambda: not isinstance(words, str) or words_of(words),
            lambda: not isinstance(caption, str) or lines_of(caption),
            lambda: (
                not isinstance(words, str)
                or not isinstance(caption, str)
                or places_of(words_of(words), lines_of(caption))
            ),
            lambda: not isinstance(name, str) or data_folder(name),
        )


def words_of(text: str) -> tuple[str, ...]:
    """The class words, in their order. Raises ValueError without any."""
    from ..mmdiff_model.annotation.words import split_words

    if not (words := split_words(text)):
        raise ValueError("words: there are none. Name the class word that the mask covers, such as: dog.")
    return words


def places_of(words: Sequence[str], lines: Sequence[str]) -> list:
    """The words where they stand in each caption. Raises ValueError where one does not."""
    from ..mmdiff_model.annotation.words import place_words

    return [place_words(line, words) for line in lines]


def lines_of(caption: str) -> list[str]:
    """The captions, a line each. Raises ValueError without any."""
    if not (lines := [" ".join(line.split()) for line in caption.splitlines() if line.strip()]):
        raise ValueError("caption: it is empty. Write what the picture shows, with the word of each mask.")
    return lines


def captions_of(caption: str, pictures: int) -> list[str]:
    """A caption for each picture: a line of its own, or the one that serves all. Raises ValueError."""
    lines = lines_of(caption)
    if len(lines) not in (1, pictures):
        raise ValueError(
            f"caption: it has {len(lines)} lines for {pictures} pictures. Write one line for all, or one for each."
        )
    return lines if len(lines) == pictures else lines * pictures

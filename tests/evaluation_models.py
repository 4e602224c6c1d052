"""Tiny models of evaluation with random weights, as folders that transformers writes, and photos of scikit-image."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SIDE = 32
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def photo(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).float() / 255


ASTRONAUT = photo(data.astronaut())
MIRRORED = ASTRONAUT.flip(1)
CAT = photo(data.chelsea())
NO_FACE = photo(data.rocket())
TWO_PEOPLE = torch.full((300, 800, 3), 0.2)
TWO_PEOPLE[60:260, 40:260] = ASTRONAUT[40:240, 120:340]
TWO_PEOPLE[60:260, 540:760] = MIRRORED[40:240, 172:392]


def randomised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough that unlike pictures get unlike vectors."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.6)
    return model


def write_tokenizer(folder: Path) -> int:
    """CLIP's byte-level tokenizer with two merges, as the official folder's files -> size of its vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    merges = ["a n</w>", "a t</w>"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    ends = ("<|startoftext|>", "<|endoftext|>")
    vocabulary = {token: number for number, token in enumerate([*tokens, *ends])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = {"bos_token": ends[0], "eos_token": ends[1], "unk_token": ends[1], "pad_token": ends[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    return len(vocabulary)


def write_clip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder)
    text = {"vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    config = CLIPConfig(
        text_config={**TOWER, **text, "pad_token_id": vocabulary - 1, "max_position_embeddings": 77},
        vision_config={**TOWER, "image_size": SIDE, "patch_size": 8},
        projection_dim=24,
    )
    randomised(CLIPModel(config), 1).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, resample=Image.Resampling.BICUBIC
    ).save_pretrained(folder)
    return folder


def write_dino(folder: Path, kind=ViTModel, config=ViTConfig) -> Path:
    pooler = {"add_pooling_layer": False} if kind is ViTModel else {}
    model = kind(config(**TOWER, image_size=SIDE, patch_size=8), **pooler)
    randomised(model, 2).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_grounding(folder: Path, words: tuple[str, ...] = ("dog", "cat", "stuffed", "animal")) -> Path:
    """A Grounding DINO and a BERT tokenizer that knows these words; special tokens have BERT's own numbers."""
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
    numbers = iter(sorted(set(range(1030)) - set(special.values())))
    vocabulary = {**special, **{word: next(numbers) for word in words}}
    vocabulary |= {f"[unused{number}]": number for number in numbers}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 102), ("[CLS]", 101))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names).save_pretrained(folder)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, out_indices=[2, 3, 4]
        ),
        text_config=BertConfig(vocab_size=1030, max_position_embeddings=64, **TOWER),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=20,
        max_text_len=64,
    )
    torch.manual_seed(3)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 160}).save_pretrained(folder)
    return folder

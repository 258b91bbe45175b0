"""What the studies of users' own models measure with, against PyTorch: CLIP, and the features of FID."""

import json
from functools import partial
from itertools import pairwise

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.aesthetics import aesthetic_scores, read_aesthetic
from benchmarks.frechet import Gaussian, frechet
from benchmarks.inception import inception_features, read_inception
from sdjax.convert.clip_models import clip_model, open_clip, read_params
from sdjax.errors import CheckpointError
from sdjax.files.layout import embedded_models

TOLERANCE = 1e-5
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
VISION = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3}
CLIPS = {
    "OpenAI's activation": ({}, {"image_size": 32, "patch_size": 8}, 24),
    "OpenCLIP's activation": ({"hidden_act": "gelu"}, {"image_size": 28, "patch_size": 14, "hidden_act": "gelu"}, 16),
    "other depths": (
        {"num_hidden_layers": 3, "layer_norm_eps": 1e-3},
        {"num_hidden_layers": 1, "image_size": 20, "patch_size": 6},  # patches do not cover the last two pixels
        40,
    ),
}


def relative_error(ours, theirs: torch.Tensor) -> float:
    expected = theirs.detach().numpy()
    assert ours.shape == expected.shape
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


def random_clip(text: dict, vision: dict, width: int) -> transformers.CLIPModel:
    config = transformers.CLIPConfig(
        text_config={**TEXT, "eos_token_id": 98, **text, "projection_dim": width},
        vision_config={**VISION, **vision, "projection_dim": width},
        projection_dim=width,
    )
    model = transformers.CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "embedding" not in name else 0.5
        parameter.data.normal_(0, scale, generator=generator)
    return model


@pytest.mark.parametrize("name", CLIPS)
def test_clip(name, tmp_path):
    theirs = random_clip(*CLIPS[name])
    theirs.save_pretrained(tmp_path)
    module = clip_model(json.loads((tmp_path / "config.json").read_text()))
    params = read_params(module, tmp_path)
    random = np.random.default_rng(0)
    side = module.vision.image_size
    pictures = random.standard_normal((3, side, side, 3), np.float32)
    ids, ends = random.integers(0, 98, (3, 11)), np.array([4, 10, 7])
    ids[np.arange(3), ends] = 98
    with torch.no_grad():
        out = theirs(torch.from_numpy(ids), torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
    texts, images = jax.jit(module.apply)({"params": params}, ids, ends, pictures)
    unit = [vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) for vectors in (texts, images)]
    assert relative_error(unit[0], out.text_embeds) <= TOLERANCE
    assert relative_error(unit[1], out.image_embeds) <= TOLERANCE


def test_scores(tmp_path):
    """From floats in [0, 1] and texts to the numbers that transformers' own processing gives."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(embedded_models()["shapes"] / "tokenizer")
    tokenizer.save_pretrained(tmp_path)
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    theirs = random_clip(text, {"image_size": 32, "patch_size": 8}, 24)
    theirs.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).random((3, 40, 52, 3), np.float32)
    texts = ["a red heart", "two small circles, on blue", ""]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    images = [Image.fromarray(np.round(picture * 255).astype(np.uint8)) for picture in pixels]
    with torch.no_grad():
        out = theirs(
            pixel_values=processor(images, return_tensors="pt")["pixel_values"],
            **tokenizer(texts, return_tensors="pt", padding="max_length", max_length=77),
        )
    expected = 100 * (out.image_embeds * out.text_embeds).sum(-1).clamp(min=0)
    clip = open_clip(tmp_path)
    np.testing.assert_allclose(clip.scores(images, texts), expected, atol=1e-3)
    seen, said = (out.image_embeds[1:] - out.image_embeds[:2], out.text_embeds[1:] - out.text_embeds[:2])
    directions = clip.directions(images[:2], images[1:], texts[:2], texts[1:])
    np.testing.assert_allclose(directions, F.cosine_similarity(seen, said), atol=1e-4)
    np.testing.assert_array_equal(clip.directions(images[:1], images[:1], texts[:1], texts[1:2]), 0)


def test_aesthetic_scores(tmp_path):
    """A file as LAION's, layers with dropout between them, which is off."""
    widths = (24, 16, 8, 1)
    parts = [torch.nn.Linear(*pair) for pair in pairwise(widths)]
    model = torch.nn.Sequential(parts[0], torch.nn.Dropout(0.2), parts[1], torch.nn.Dropout(0.2), parts[2]).eval()
    state = {f"layers.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "predictor.pth")
    save_file(state, tmp_path / "predictor.safetensors")
    vectors = np.random.default_rng(0).standard_normal((5, 24), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(vectors)).numpy()[:, 0]
    for end in ("pth", "safetensors"):
        layers = read_aesthetic(tmp_path / f"predictor.{end}")
        np.testing.assert_allclose(
            aesthetic_scores(layers, vectors), expected, rtol=1e-5, atol=1e-5 * abs(expected).max()
        )
    with pytest.raises(CheckpointError, match="reads vectors of 24 numbers, this CLIP gives 8"):
        aesthetic_scores(layers, vectors[:, :8])
    save_file(state | {"head": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no aesthetic predictor"):
        read_aesthetic(tmp_path / "other.safetensors")


class Conv(torch.nn.Module):
    """A convolution without bias, batch normalisation and a ReLU."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], stride: int = 1, padding=(0, 0)):
        super().__init__()
        self.conv = torch.nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = torch.nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


POOLS = {
    "mean": partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False),
    "max": partial(F.max_pool2d, kernel_size=3, stride=1, padding=1),
}
ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


class Block(torch.nn.Module):
    """Branches side by side; each a list of (name, outputs, size, stride). A pool stands for a branch too."""

    def __init__(self, inputs: int, branches: list, pool: str | None, pooled: int):
        super().__init__()
        self.branches, self.pool = branches, pool
        for branch in branches:
            width = inputs
            for name, outputs, size, *stride in branch:
                padding = (0, 0) if stride else tuple(side // 2 for side in size)
                setattr(self, name, Conv(width, outputs, size, *stride, padding=padding))
                width = outputs
        if pool:
            self.branch_pool = Conv(inputs, pooled, ONE)

    def forward(self, x):
        outputs = []
        for branch in self.branches:
            y = x
            for name, *_ in branch:
                y = getattr(self, name)(y)
            outputs.append(y)
        outputs.append(self.branch_pool(POOLS[self.pool](x)) if self.pool else F.max_pool2d(x, 3, 2))
        return torch.cat(outputs, 1)


class LastBlock(torch.nn.Module):
    def __init__(self, inputs: int, pool: str):
        super().__init__()
        self.pool = pool
        self.branch1x1 = Conv(inputs, 320, ONE)
        self.branch3x3_1 = Conv(inputs, 384, ONE)
        self.branch3x3dbl_1 = Conv(inputs, 448, ONE)
        self.branch3x3dbl_2 = Conv(448, 384, THREE, padding=1)
        for name in ("branch3x3_2", "branch3x3dbl_3"):
            setattr(self, f"{name}a", Conv(384, 384, (1, 3), padding=(0, 1)))
            setattr(self, f"{name}b", Conv(384, 384, (3, 1), padding=(1, 0)))
        self.branch_pool = Conv(inputs, 192, ONE)

    def forward(self, x):
        three, twice = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        flat = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        flat += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        return torch.cat([self.branch1x1(x), *flat, self.branch_pool(POOLS[self.pool](x))], 1)


def a_block(inputs: int, pooled: int) -> Block:
    double = [("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE)]
    five = [("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)]
    return Block(inputs, [[("branch1x1", 64, ONE)], five, double], "mean", pooled)


def b_block() -> Block:
    double = [("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE, 2)]
    return Block(288, [[("branch3x3", 384, THREE, 2)], double], None, 0)


def c_block(c: int) -> Block:
    seven = [("branch7x7_1", c, ONE), ("branch7x7_2", c, ROW), ("branch7x7_3", 192, COLUMN)]
    sizes = [(c, ONE), (c, COLUMN), (c, ROW), (c, COLUMN), (192, ROW)]
    double = [(f"branch7x7dbl_{i}", *layer) for i, layer in enumerate(sizes, 1)]
    return Block(768, [[("branch1x1", 192, ONE)], seven, double], "mean", 192)


def d_block() -> Block:
    three = [("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE, 2)]
    sizes = [(192, ONE), (192, ROW), (192, COLUMN), (192, THREE, 2)]
    return Block(768, [three, [(f"branch7x7x3_{i}", *layer) for i, layer in enumerate(sizes, 1)]], None, 0)


class Inception(torch.nn.Module):
    """As TensorFlow's release of 2015-12-05 has it, with pytorch-fid's names."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, THREE, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, THREE)
        self.Conv2d_2b_3x3 = Conv(32, 64, THREE, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, ONE)
        self.Conv2d_4a_3x3 = Conv(80, 192, THREE)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = a_block(192, 32), a_block(256, 64), a_block(288, 64)
        self.Mixed_6a = b_block()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(c_block, (128, 160, 160, 192))
        self.Mixed_7a = d_block()
        self.Mixed_7b, self.Mixed_7c = LastBlock(1280, "mean"), LastBlock(2048, "max")
        self.fc = torch.nn.Linear(2048, 1008)

    def forward(self, x):
        """Pictures [batch, 3, height, width] in [0, 1]."""
        x = 2 * F.interpolate(x, (299, 299), mode="bilinear", align_corners=False) - 1
        for name, layer in self.named_children():
            if name == "fc":
                return x.mean((2, 3))
            x = layer(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        raise AssertionError


@pytest.fixture(scope="module")
def inception() -> Inception:
    torch.manual_seed(0)
    model = Inception().eval()
    for module in model.modules():
        if isinstance(module, Conv):
            torch.nn.init.kaiming_normal_(module.conv.weight, nonlinearity="relu")
            norm = module.bn
            ranges = {norm.weight: (0.8, 1.2), norm.bias: (-0.1, 0.1), norm.running_mean: (-0.1, 0.1)}
            for tensor, (low, high) in (ranges | {norm.running_var: (0.7, 1.4)}).items():
                tensor.data.uniform_(low, high)
    return model


@pytest.mark.long
def test_the_features_of_fid(inception, tmp_path):
    """Of pictures smaller and larger than the network's input, from both kinds of files."""
    torch.save(inception.state_dict(), tmp_path / "inception.pth")
    save_file(inception.state_dict(), tmp_path / "inception.safetensors")
    params = [read_inception(tmp_path / f"inception.{kind}") for kind in ("pth", "safetensors")]
    assert all(np.array_equal(*leaves) for leaves in zip(*map(jax.tree.leaves, params)))
    random = np.random.default_rng(0)
    small, large = (random.integers(0, 256, (*size, 3)) / 255 for size in ((64, 48), (320, 512)))
    pictures = [small.astype(np.float32), (large * np.linspace(0, 1, 512)[:, None]).astype(np.float32)]
    pictures = [np.round(picture * 255) / 255 for picture in pictures]
    ours = inception_features(params[0], pictures)
    with torch.no_grad():
        inputs = [torch.from_numpy(picture.transpose(2, 0, 1).copy())[None] for picture in pictures]
        theirs = torch.cat([inception(x) for x in inputs])
    assert relative_error(ours, theirs) <= TOLERANCE
    assert relative_error(ours[:1], theirs[1:]) > 0.1  # they do depend on the picture


@pytest.mark.parametrize("count", [5, 40])
def test_the_distance_of_two_gaussians(count):
    """With fewer points than dimensions and with more, against the square root of a matrix, as pytorch-fid takes it."""
    from scipy.linalg import sqrtm

    random = np.random.default_rng(0)
    some, others = random.standard_normal((count, 12)), 0.5 + random.standard_normal((60, 12)) * np.arange(1, 13)
    covariances = [np.cov(points, rowvar=False) for points in (some, others)]
    shared = sqrtm(covariances[0] @ covariances[1]).real
    means = ((some.mean(0) - others.mean(0)) ** 2).sum()
    expected = means + np.trace(covariances[0] + covariances[1] - 2 * shared)
    assert frechet(some, Gaussian.of(others)) == pytest.approx(expected, rel=1e-5)

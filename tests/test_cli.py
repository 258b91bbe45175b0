"""The command line: what it writes, what it prints where, and how it ends when something is wrong."""

import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from command import SDJAX
from hypothesis import given
from hypothesis import strategies as st
from ldm_checkpoints import ema_of, random_state, small_shapes
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from sdjax.cli import convert_main, main
from sdjax.cli.output import picture_paths
from sdjax.files.checkpoint import read_model
from sdjax.files.layout import embedded_models
from sdjax.files.pictures import read_settings, save_picture
from sdjax.schedulers import SOLVERS, SPACINGS

HEART = "a big red heart at the top left on a yellow background"


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ended with."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"sdjax: .+\n", captured.err), captured.err
    return captured.err


def test_a_fault_of_our_own_is_said_in_one_line_that_names_the_traceback(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("sdjax.cli.info._components_table", lambda *_: 1 / 0)
    assert main(["info", "shapes"]) == 1
    told = complaint(capsys)
    assert "this is a fault of sdjax (ZeroDivisionError: division by zero)" in told
    [report] = tmp_path.glob("sdjax-*.txt")
    assert told.endswith(f"{report}\n") and "sdjax/cli/info.py" in report.read_text()


@pytest.fixture(scope="module")
def heart(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("heart") / "made" / "heart.png"
    subprocess.run([*SDJAX, "generate", HEART, "-o", path, "--sampler", "dpmpp_2m", "--steps", "20"], check=True)
    return path


def test_generate_draws_what_the_prompt_says(heart):
    picture = np.asarray(Image.open(heart), float)
    assert picture.shape == (64, 64, 3)
    # The palette of the embedded model's training scenes: red, yellow; tinted there by up to 14.
    red = np.abs(picture - (214, 48, 44)).max(-1) < 40
    yellow = np.abs(picture - (248, 216, 60)).max(-1) < 40
    rows, columns = np.nonzero(red)
    assert rows.mean() < 32 and columns.mean() < 32  # at the top left
    assert red.sum() > 600  # big: a heart of radius 18 covers about 750 pixels
    assert yellow[48:].mean() > 0.95 and yellow[:, 52:].mean() > 0.95


def test_picture_tells_how_it_was_made_and_can_be_made_again(heart, tmp_path, capsys):
    settings = read_settings(heart)
    assert settings["prompt"] == HEART
    assert settings["steps"] == 20 and settings["seed"] == 0 and settings["sampler"] == "dpmpp_2m"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    wanted = [option for option in options if not option.startswith(("--prompt", "--version"))]
    assert main(["generate", settings["prompt"], "-o", str(tmp_path / "again.png"), *wanted]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'again.png'}\n"
    assert np.array_equal(np.asarray(Image.open(heart)), np.asarray(Image.open(tmp_path / "again.png")))


@pytest.mark.long
def test_generate_fills_a_folder_and_goes_on_counting(small, tmp_path, capsys):
    """Pictures are drawn one by one on a CPU: those of several batches keep their order."""
    arguments = ["generate", "a {red|red} ring", "a blue cross", "-o", str(tmp_path / "new"), f"--model={small}"]
    arguments += ["--num-images=2", "--steps=2", "--dynamic"]
    for first, seeds, expected in ((1, (), (0, 1, 2, 3)), (5, (9, 4, 9, 2**64 - 1), (9, 4, 9, 2**64 - 1))):
        assert main([*arguments, *(f"--seed={seed}" for seed in seeds)]) == 0
        paths = [tmp_path / "new" / f"sdjax-{first + i:04d}.png" for i in range(4)]
        assert capsys.readouterr().out.split() == [str(path) for path in paths]
        settings = [read_settings(path) for path in paths]
        assert [each["prompt"] for each in settings] == ["a red ring"] * 2 + ["a blue cross"] * 2
        assert [each.get("prompt_template") for each in settings] == ["a {red|red} ring"] * 2 + [None] * 2
        assert [each["seed"] for each in settings] == list(expected)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [f"sdjax-{i:04d}.png" for i in range(1, 9)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate"], "PROMPT"),
        (["generate", "x", "--steps", "0"], "--steps"),
        (["generate", "x", "--steps", "many"], "--steps"),
        (["generate", "x", "--num-images", "-1"], "--num-images"),
        (["generate", "x", "--dtype", "int8"], "--dtype"),
        (["generate", "x", "--sampller", "ddim"], "--sampller"),
        (["convert", "somewhere"], "DST"),
        (["paint"], "paint"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments, says, capsys):
    assert main(arguments) == 2
    assert says in complaint(capsys)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "shape"], "shapes"),
        (["--model", "no/where/at/all"], "no/where/at/all"),
        (["--steps", "1001"], "1000"),
        (["--width", "63"], "width"),
    ],
)
def test_what_cannot_work_is_one_line_and_1(arguments, says, tmp_path, capsys):
    assert main(["generate", "a red ring", "-o", str(tmp_path / "new" / "ring.png"), *arguments]) == 1
    assert says in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_model_for_another_task_is_refused(tmp_path, capsys):
    save_picture(Image.new("RGB", (16, 16)), tmp_path / "small.png", {})
    where = ["-o", str(tmp_path / "large.png"), "--model", "shapes"]
    assert main(["upscale", "a red ring", str(tmp_path / "small.png"), *where]) == 1
    assert "shapes is made for another task, text: this command wants a model for upscale" in complaint(capsys)
    assert not (tmp_path / "large.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x", "--sampler", "dimm"], "ddim"),
        (["x", "--spacing", "kars"], "karras"),
        (["x", "--guidance-scale", "nan"], "guidance_scale"),
        (["x", "--seed", "1", "--seed", "2"], "seed"),
        (["x", "--seed", "-1"], "seed"),
        (["\udcff"], "Unicode"),  # how Python hands over an argument that is not UTF-8
    ],
)
def test_what_suits_no_model_is_said_before_one_is_opened(arguments, says, tmp_path, capsys):
    assert main(["generate", *arguments, "-o", str(tmp_path / "new" / "x.png"), "--model", "no such model"]) == 1
    assert says in complaint(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("ring.gif", ".png"),
        ("a file/ring.png", "not a folder"),
        ("a file", "not a folder"),
        ("r" * 252 + ".png", "too long"),
        ("f" * 300, "too long"),
    ],
)
def test_output_that_cannot_be_written_is_said_before_the_model_is_opened(output, says, tmp_path, capsys):
    (tmp_path / "a file").write_text("here first")
    assert main(["generate", "a red ring", "-o", str(tmp_path / output), "--model", "no such model"]) == 1
    assert says in complaint(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_named_output_is_replaced_and_numbered_when_there_are_several(tmp_path):
    (tmp_path / "ring.png").touch()
    assert picture_paths(tmp_path / "ring.png", 1) == [tmp_path / "ring.png"]
    assert picture_paths(tmp_path / "ring.PNG", 2) == [tmp_path / "ring-1.PNG", tmp_path / "ring-2.PNG"]
    (tmp_path / "folder.png").mkdir()
    assert picture_paths(tmp_path / "folder.png", 1) == [tmp_path / "folder.png" / "sdjax-0001.png"]


def test_numbers_go_on_from_the_highest_whatever_else_is_there(tmp_path):
    for name in ("sdjax-0007.png", "sdjax-10000.png", "sdjax-x.png", "sdjax-20000.jpg", "other-30000.png"):
        (tmp_path / name).touch()
    assert [path.name for path in picture_paths(tmp_path, 2)] == ["sdjax-10001.png", "sdjax-10002.png"]


@given(prompt=st.text(st.characters()), seed=st.integers(0, 2**64 - 1))
def test_settings_and_pixels_come_back_from_the_png(tmp_path_factory, prompt, seed):
    path = tmp_path_factory.getbasetemp() / "settings.png"
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 5, 3), np.uint8)
    save_picture(Image.fromarray(pixels), path, {"prompt": prompt, "seed": seed})
    assert read_settings(path) == {"prompt": prompt, "seed": seed}
    assert np.array_equal(np.asarray(Image.open(path)), pixels)


def test_png_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "ring.png"
    save_picture(Image.new("RGB", (8, 8), "red"), path, {})
    before = path.read_bytes()
    with pytest.raises(OSError, match="PNG"):
        save_picture(Image.new("CMYK", (8, 8)), path, {})  # a kind of picture that PNG has no room for
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_names_the_file_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "ring.png"
    save_picture(Image.new("RGB", (8, 8), "red"), path, {})
    before = path.read_bytes()
    code = """
import resource, sys
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file
from sdjax.files.pictures import save_picture
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))  # as good as full: the file cannot grow
try:
    save_picture(Image.effect_noise((64, 64), 50), sys.argv[1], {})
except OSError as error:
    print(error.filename)
"""
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert ended.stdout == f"{path}\n"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.long
def test_a_name_that_is_not_utf_8_is_written_and_printed_as_it_is(small, tmp_path):
    path = os.fsencode(tmp_path / "star-") + b"\xff.png"
    painting = [*SDJAX, "generate", "a star", "--model", small, "--steps", "1", "-o", path]
    ended = subprocess.run(painting, capture_output=True, check=True)
    assert ended.stdout == path + b"\n"
    assert Image.open(path).size == (64, 64)


def test_interrupt_while_denoising_is_one_line_and_130_and_leaves_nothing(small, tmp_path):
    screen, stderr = pty.openpty()  # bars are drawn on terminals only
    process = subprocess.Popen(
        [
            *SDJAX,
            "generate",
            HEART,
            "--model",
            small,
            "-o",
            tmp_path,
            *["--steps", "900", "--num-images", "4", "--sampler", "heun"],
        ],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(stderr)
    try:
        seen = read_until(screen, rb"denoise.* [1-9]\d*/7196", seconds=120)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        assert process.wait(timeout=30) == 130
        assert time.monotonic() - sent < 3
        seen += read_until(screen, rb"interrupted", seconds=5)
    finally:
        process.kill()
        os.close(screen)
    assert process.stdout.read() == b""
    assert b"Traceback" not in seen
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sent", "busy"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 0.7)])
def test_a_signal_lets_a_command_tidy_up_for_as_long_as_it_takes(sent, busy, tmp_path):
    """busy: seconds for which a command that has much to save does not look."""
    code = """
import os, pathlib, sys, time
from sdjax.cli import interrupt

interrupt.PATIENCE = 0.2

def work():
    partial = pathlib.Path(sys.argv[1], "partial")
    partial.touch()
    with interrupt.much_to_save() as has_learned:
        if float(sys.argv[3]):
            has_learned()
        os.kill(os.getpid(), int(sys.argv[2]))
        time.sleep(float(sys.argv[3]))
        tidy(partial)

def tidy(partial):
    try:
        while True:
            interrupt.check()
            time.sleep(0.01)
    finally:
        time.sleep(0.7)
        partial.unlink()

try:
    interrupt.listening(work)
except KeyboardInterrupt as signalled:
    os._exit(signalled.args[0])
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path, str(int(sent)), str(busy)]).returncode == sent
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["replaced", "new_directory"])
def test_what_is_half_written_is_removed_where_a_command_does_not_hear(kind, tmp_path):
    code = """
import os, pathlib, signal, sys, time
from sdjax.cli import interrupt
from sdjax.files import atomic

interrupt.PATIENCE = 0.2

def work():
    with getattr(atomic, sys.argv[2])(pathlib.Path(sys.argv[1], "made")) as partial:
        (partial / "inside" if partial.is_dir() else partial).write_text("half")
        assert os.listdir(sys.argv[1])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

try:
    interrupt.listening(work)
except KeyboardInterrupt as signalled:
    os._exit(signalled.args[0])
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path, kind]).returncode == signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def read_until(screen: int, pattern: bytes, seconds: float) -> bytes:
    """What appears on a terminal up to a pattern."""
    seen, end = b"", time.monotonic() + seconds
    while not re.search(pattern, seen):
        assert time.monotonic() < end, f"{pattern!r} did not appear in {seen!r}"
        seen += os.read(screen, 4096)
    return seen


def test_help_does_not_wait_for_jax():
    code = "import sys, sdjax.cli; sys.exit('jax' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    shown = subprocess.run([*SDJAX, "generate", "--help"], capture_output=True, text=True, check=True)
    assert "--guidance-scale" in shown.stdout and 'sdjax generate "' in shown.stdout


def test_samplers_lists_every_solver_and_spacing(capsys):
    assert main(["samplers"]) == 0
    words = re.findall(r"\w+", capsys.readouterr().out)
    assert set(words) >= {*SOLVERS, *SPACINGS}


def test_info_counts_what_is_in_the_files(capsys):
    assert main(["info", "shapes", "--blocks"]) == 0
    shown = capsys.readouterr().out
    model = read_model(embedded_models()["shapes"])
    for name, component in model.components.items():
        count = sum(leaf.size for leaf in leaves(component.params))
        row = next(line for line in shown.splitlines() if line.startswith(name))
        assert type(component.module).__name__ in row and f"{count:,}" in row and "float16" in row
    assert model.scheduler_config["_class_name"] in shown
    listed = shown[shown.index("unet block") :].splitlines()[1:]
    assert {line.split()[0] for line in listed} == set(model.unet.params)
    unet_total = sum(int(line.split()[-1].replace(",", "")) for line in listed)
    assert unet_total == sum(leaf.size for leaf in leaves(model.unet.params))


def test_info_says_how_a_picture_was_made(tmp_path, capsys):
    path = tmp_path / "ring.png"
    save_picture(Image.new("RGB", (8, 8)), path, {"prompt": "a [red] ring", "steps": 7})
    assert main(["info", str(path)]) == 0
    assert re.findall(r"(\w+) +(.*)", capsys.readouterr().out) == [("prompt", "a [red] ring"), ("steps", "7")]
    Image.new("RGB", (8, 8)).save(path)
    assert main(["info", str(path)]) == 1
    assert "does not say how it was made" in complaint(capsys)
    path.write_bytes(b"no picture")
    assert main(["info", str(path)]) == 1
    assert "ring.png" in complaint(capsys)


@pytest.mark.long
def test_like_paints_a_picture_again(small, tmp_path, capsys):
    vectors = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    save_file({"emb_params": vectors}, tmp_path / "odd.safetensors")
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    options = [
        "--sampler",
        "Euler a",
        "--steps",
        "3",
        "--rng",
        "torch",
        "--clip-skip",
        "1",
        "--seed",
        "9",
        "--model",
        str(small),
    ]
    options += ["--embedding", str(tmp_path / "odd.safetensors"), "--guidance-interval", "0", "0.5"]
    assert main(["generate", "an [odd:red:0.4] (ring:1.2)", "-o", str(first), *options]) == 0
    assert main(["generate", "--like", str(first), "--yes", "-o", str(again)]) == 0
    assert again.read_bytes() == first.read_bytes()
    assert (
        main(["generate", "a star", "--like", str(first), "--yes", "--rng", "jax", "--steps", "2", "-o", str(other)])
        == 0
    )
    changed = {"prompt": "a star", "steps": 2}
    expected = {name: value for name, value in read_settings(first).items() if name != "rng"}
    assert read_settings(other) == expected | changed
    assert main(["info", str(first)]) == 0
    assert "Euler a" in capsys.readouterr().out


def test_like_says_what_it_cannot_follow(small, tmp_path, capsys):
    path = tmp_path / "theirs.png"
    info = PngInfo()
    text = (
        "a red ring\nSteps: 2, Sampler: Euler a, Seed: 3, Size: 64x64, Hires sampler: DDIM, Model: v1-5, Clip skip: 2"
    )
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    assert main(["generate", "--like", str(path), "-o", str(tmp_path / "new.png")]) == 1
    assert "give --model" in complaint(capsys)
    assert main(["generate", "--like", str(path), "--model", str(small), "-o", str(tmp_path / "new.png")]) == 0
    assert "not followed: Hires sampler: DDIM" in capsys.readouterr().err
    settings = read_settings(tmp_path / "new.png")
    assert (settings["sampler"], settings["spacing"], settings["rng"]) == ("Euler a", "uniform", "philox")
    assert (settings["clip_skip"], settings["seed"], settings["steps"]) == (1, 3, 2)
    save_picture(Image.new("RGB", (8, 8)), path, {"prompt": "a", "image": "b.png"})
    assert main(["generate", "--like", str(path)]) == 1
    assert "was made from b.png" in complaint(capsys)
    Image.new("RGB", (8, 8)).save(path)
    assert main(["generate", "--like", str(path)]) == 1
    assert "does not say how it was made" in complaint(capsys)


def leaves(params: dict) -> list[np.ndarray]:
    return [leaf for value in params.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]


@pytest.mark.parametrize("command", [lambda *a: main(["convert", *a]), lambda *a: convert_main(a)])
def test_convert_makes_a_model_that_generates(command, shapes_sd, tmp_path, capsys):
    destination = tmp_path / "model"
    assert command(str(shapes_sd), str(destination), "--dtype", "bfloat16") == 0
    assert capsys.readouterr().out == f"{destination}\n"
    assert main(["info", str(destination)]) == 0
    assert "bfloat16" in capsys.readouterr().out
    assert command(str(shapes_sd), str(destination)) == 1
    assert "exists" in complaint(capsys)


def test_convert_of_the_embedded_model_says_that_there_is_nothing_to_do(tmp_path, capsys):
    assert main(["convert", "shapes", str(tmp_path / "model")]) == 1
    assert "comes with sdjax" in complaint(capsys)


def test_convert_says_that_it_cannot_write_before_it_opens_the_source(tmp_path, capsys):
    (tmp_path / "a file").touch()
    assert main(["convert", "no such model", str(tmp_path / "a file" / "model")]) == 1
    assert "a file/model cannot be written" in complaint(capsys)


@pytest.mark.parametrize("source", ["nowhere", "an empty folder", "a file"])
def test_convert_of_no_checkpoint_is_one_line_and_1(source, tmp_path, capsys):
    (tmp_path / "an empty folder").mkdir()
    (tmp_path / "a file").touch()
    assert main(["convert", str(tmp_path / source), str(tmp_path / "model")]) == 1
    assert source in complaint(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a file", "an empty folder"]


def test_info_says_what_a_file_is_without_loading_it(shared, shapes_sd, tmp_path, capsys):
    state = random_state(small_shapes(shared, "sd-2-v"))
    save_file(state | ema_of(state), tmp_path / "x.safetensors", {"modelspec.prediction_type": "v"})
    assert main(["info", str(tmp_path / "x.safetensors")]) == 0
    shown = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert "Stable Diffusion 2.x" in shown and "v_prediction" in shown
    unet = sum(array.size for name, array in state.items() if name.startswith("model."))
    assert f"{unet:,}" in rows["unet"] and "float32" in rows["unet"]
    assert "unet, averaged (EMA)" in rows
    save_file({"lora_unet_x.lora_up.weight": np.zeros((1, 1), np.float16)}, tmp_path / "lora.safetensors")
    assert main(["info", str(tmp_path / "lora.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "LoRA in kohya's format" in shown and "float16" in shown
    assert main(["info", str(next((shapes_sd / "vae").glob("*.safetensors")))]) == 0
    assert "the VAE of a diffusers directory" in capsys.readouterr().out
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    assert main(["info", str(tmp_path / "broken.safetensors")]) == 1
    assert "cannot be read as safetensors" in complaint(capsys)


def test_convert_there_and_back(tiny, tmp_path, capsys):
    assert main(["convert", str(tiny), str(tmp_path / "model")]) == 0
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "back"), "--to", "diffusers"]) == 0
    assert (tmp_path / "back" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    capsys.readouterr()
    assert main(["convert", str(tiny), str(tmp_path / "x"), "--to", "diffusers", "--no-ema"]) == 1
    assert "convert to sdjax first" in complaint(capsys)


def test_convert_of_a_file_takes_its_choices(shared, tmp_path, capsys):
    save_file(random_state(small_shapes(shared, "sd-1")), tmp_path / "x.safetensors")
    tokenizer = shared / "reference/hub/runwayml/stable-diffusion-v1-5/tokenizer"
    options = ["--tokenizer", str(tokenizer), "--prediction-type", "v_prediction"]
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "model"), *options]) == 0
    capsys.readouterr()
    assert main(["info", str(tmp_path / "model")]) == 0
    assert "prediction_type v_prediction" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "y"), *options, "--ema"]) == 1
    assert "no averaged" in complaint(capsys)

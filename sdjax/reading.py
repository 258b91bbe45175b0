"""What the compiler says of a program that it has made: bytes, kernels, collectives, and how long it estimates."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from sdjax.parallel import Made

# How the compiled program calls what is no operation of XLA's: Pallas kernels on a TPU, cuDNN's attention on a GPU.
KERNELS = ("tpu_custom_call", "__cudnn$fmha")
COLLECTIVES = re.compile(r"= \S+ (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
MATRIX = re.compile(r"\b(?:convolution|dot)\(")


@dataclass(frozen=True)
class Reading:
    """A compiled program, as it is for one device. Sizes are in bytes.

    parameters: of the first argument. arguments: all of them. aliased: arguments that are given back as outputs.
    kernels, collectives: how many the program calls. cycles: of a TPU, as its compiler estimates them with each loop
        run once; it gives kernels none. matrix_cycles: those of convolutions and products, and what is fused to them.
    """

    name: str
    seconds: float
    parameters: int
    arguments: int
    temporary: int
    outputs: int
    aliased: int
    code: int
    kernels: int
    collectives: int
    cycles: int
    matrix_cycles: int

    @classmethod
    def of(cls, made: Made) -> "Reading":
        """Read off an executable."""
        memory: Any = made.executable.memory_analysis()
        text = made.executable.as_text() or ""
        instructions = list(_estimates(text))
        return cls(
            name=made.name,
            seconds=made.seconds,
            parameters=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.arguments[0])),
            arguments=memory.argument_size_in_bytes,
            temporary=memory.temp_size_in_bytes,
            outputs=memory.output_size_in_bytes,
            aliased=memory.alias_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
            kernels=sum(text.count(f'custom_call_target="{kernel}') for kernel in KERNELS),
            collectives=len(COLLECTIVES.findall(text)),
            cycles=sum(cycles for cycles, _ in instructions),
            matrix_cycles=sum(cycles for cycles, is_matrix in instructions if is_matrix),
        )

    @property
    def own(self) -> int:
        """What it holds while it runs besides its arguments."""
        return self.temporary + self.outputs - self.aliased + self.code

    @property
    def peak(self) -> int:
        """What it holds while it runs."""
        return self.arguments + self.own


def _estimates(text: str) -> Iterator[tuple[int, bool]]:
    """The estimated cycles of each instruction of a compiled program, and whether it is matrix work."""
    bodies: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            body = bodies.setdefault(found[1], [])
        elif bodies:
            body.append(line)
    does_matrix_work = {name for name, lines in bodies.items() if any(map(MATRIX.search, lines))}
    for lines in bodies.values():
        for line in lines:
            if cycles := CYCLES.search(line):
                called = re.search(r"calls=%([^,\s]+)", line)
                yield int(cycles[1]), called[1] in does_matrix_work if called else bool(MATRIX.search(line))


# The component that each program reads the parameters of, and that it is called by in tables.
COMPONENT = {"encode_text": "text encoders", "encode": "vae", "denoise": "unet", "decode": "vae"}


def most_held(readings: Sequence[Reading], offload: bool = False) -> tuple[Reading, int]:
    """The program during which most memory is held, and how many bytes of a device that is.

    With the parameters of the components that do not work meanwhile, unless they wait on the host.
    """
    resident = {COMPONENT[reading.name]: reading.parameters for reading in readings}
    waiting = resident if not offload else {name: size for name, size in resident.items() if name == "unet"}

    def held(reading: Reading) -> int:
        others = sum(size for name, size in waiting.items() if name != COMPONENT[reading.name])
        return reading.peak + others

    most = max(readings, key=held)
    return most, held(most)

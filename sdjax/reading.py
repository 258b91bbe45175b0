"""What the compiler says of a program that it has made: bytes, kernels, collectives, and how long it estimates."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdjax.parallel import Made, bytes_of_a_device
from sdjax.targets import Target

# How the compiled program calls what is no operation of XLA's: Pallas kernels on a TPU, cuDNN's attention on a GPU.
KERNELS = ("tpu_custom_call", "__cudnn$fmha")
COLLECTIVES = re.compile(r"= \S+ (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
COMPUTATION = re.compile(r"^(?:ENTRY )?%(\S+) \(.*\{$")
OPERATION = re.compile(r"= (?:\(.*?\)|\S+) ([a-z][a-z0-9-]*)\(")
CALLED = re.compile(r"\b(?:calls|to_apply)=%([^,\s}]+)")
LOOP = re.compile(r" while\(.*condition=%([^,\s]+), body=%([^,\s]+)")
NAME = re.compile(r"%([^,\s{}()]+)")
LIMIT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")  # of a loop's condition
FLOPS = re.compile(r'custom_call_target="tpu_custom_call".*?"cost_estimate":{"flops":"(\d+)"')  # as a kernel says

# What a compiled program spends its time on, by the operations that are fused to one: the first that has any of these.
KINDS = {"matrix": {"convolution", "dot"}, "reductions": {"reduce", "reduce-window"}}
COPIES = {
    *("bitcast", "broadcast", "concatenate", "constant", "convert", "copy", "copy-done", "copy-start", "dynamic-slice"),
    *("dynamic-update-slice", "fusion", "get-tuple-element", "iota", "pad", "parameter", "reshape", "slice"),
    *("slice-done", "slice-start", "transpose", "tuple"),
}


@dataclass(frozen=True)
class Reading:
    """A compiled program, as it is for one device. Sizes are in bytes.

    parameters: of the first argument. arguments: all of them. aliased: arguments that are given back as outputs.
    kernels, collectives: how many the program calls. spent: on a TPU, in one turn of its outermost loop, the cycles
        that its compiler estimates for "matrix" work (convolutions and products, with what is fused to them),
        "reductions", "copies" (no arithmetic) and "elementwise"; and the operations of attention's "kernels", which
        it gives none.
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
    spent: Mapping[str, int]

    @classmethod
    def of(cls, made: Made) -> "Reading":
        """Read off an executable."""
        memory: Any = made.executable.memory_analysis()
        text = made.executable.as_text() or ""
        return cls(
            name=made.name,
            seconds=made.seconds,
            parameters=bytes_of_a_device(made.arguments[0]),
            arguments=memory.argument_size_in_bytes,
            temporary=memory.temp_size_in_bytes,
            outputs=memory.output_size_in_bytes,
            aliased=memory.alias_size_in_bytes,
            code=memory.generated_code_size_in_bytes,
            kernels=sum(text.count(f'custom_call_target="{kernel}') for kernel in KERNELS),
            collectives=len(COLLECTIVES.findall(text)),
            spent=spent_on(text),
        )

    def seconds_on(self, target: Target) -> dict[str, float]:
        """The estimate, by what it is spent on; that of kernels is at the device's peak."""
        speeds = dict.fromkeys(("matrix", "elementwise", "reductions", "copies"), target.clock)
        return {kind: self.spent.get(kind, 0) / speed for kind, speed in (speeds | {"kernels": target.peak}).items()}

    @property
    def own(self) -> int:
        """What it holds while it runs besides its arguments."""
        return self.temporary + self.outputs - self.aliased + self.code

    @property
    def peak(self) -> int:
        """What it holds while it runs."""
        return self.arguments + self.own


def spent_on(text: str) -> Mapping[str, int]:
    """What a compiled program spends its time on: see `Reading.spent`."""
    bodies: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := COMPUTATION.match(line):
            body = bodies.setdefault(found[1], [])
        elif bodies:
            body.append(line)

    def operations(line: str) -> set[str]:
        own = OPERATION.search(line)
        inside = (operations(line) for name in CALLED.findall(line) for line in bodies.get(name, ()))
        return set().union({own[1]} if own else set(), *inside)

    spent: Counter[str] = Counter()
    times = _times(bodies)
    for name, body in bodies.items():
        for line in body:
            if cycles := CYCLES.search(line):
                spent[_kind(operations(line))] += times[name] * int(cycles[1])
            elif flops := FLOPS.search(line):
                spent["kernels"] += times[name] * int(flops[1])
    return spent


def _times(bodies: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How often each computation runs in one turn of the outermost loop around it."""
    callers: dict[str, str] = {}
    turns: dict[str, int] = {}
    for caller, line in ((caller, line) for caller, body in bodies.items() for line in body):
        if loop := LOOP.search(line):
            condition, body = loop.groups()
            callers[body] = caller
            turns[body] = max((int(limit) for limit in LIMIT.findall("\n".join(bodies.get(condition, ())))), default=1)
        elif " conditional(" in line:
            callers |= dict.fromkeys(bodies.keys() & set(NAME.findall(line)), caller)

    def around(name: str | None) -> Iterator[int]:
        while name is not None:
            if name in turns:
                yield turns[name]
            name = callers.get(name)

    return {name: math.prod(list(around(name))[:-1]) for name in bodies}


def _kind(operations: set[str]) -> str:
    first = next((kind for kind, own in KINDS.items() if own & operations), None)
    return first or ("copies" if operations <= COPIES else "elementwise")


# The component that each program reads the parameters of, and that it is called by in tables.
COMPONENT = {
    "encode_text": "text encoders",
    "encode": "vae",
    "denoise": "unet",
    "decode": "vae",
    "scores": "safety checker",
}


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

"""What a pickle would do, found out without doing it: every name that it asks for, and how many numbers its tensors claim to have."""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# What tensors are made of; nothing else is ever looked up.
TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
CALLED = {
    *TENSORS,
    *("torch._utils._rebuild_parameter", "torch.Size", "torch.device", "collections.OrderedDict", "collections.Counter"),
    *("_codecs.encode", "builtins.set"),
}
ITEM_BYTES = {
    **{"torch.DoubleStorage": 8, "torch.FloatStorage": 4, "torch.HalfStorage": 2, "torch.BFloat16Storage": 2},
    **{"torch.LongStorage": 8, "torch.IntStorage": 4, "torch.ShortStorage": 2, "torch.CharStorage": 1},
    **{"torch.ByteStorage": 1, "torch.BoolStorage": 1, "torch.ComplexFloatStorage": 8, "torch.ComplexDoubleStorage": 16},
    "torch.storage.UntypedStorage": 1,
}
_DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]
# Settings and records that others keep beside their weights; each is replaced by a thing that does nothing.
DICTS = {
    "collections.defaultdict",
    *(
        f"{package}.AttributeDict"
        for package in (
            "pytorch_lightning.utilities.parsing",
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
        )
    ),
}
RECORDS = {
    "argparse.Namespace",
    *(
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")  # the second in Python 3.13
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ),
    *(f"datetime.{name}" for name in ("datetime", "date", "timedelta")),
    *(f"{numpy}.multiarray.{name}" for numpy in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    *("numpy.ndarray", "numpy.dtype"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "typing.Any", "torch.torch_version.TorchVersion"),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path")),
    *(f"builtins.{name}" for name in ("dict", "list", "tuple", "int", "float", "str", "bool")),
}
KNOWN = CALLED | set(ITEM_BYTES) | {f"torch.{name}" for name in _DTYPES} | DICTS | RECORDS
MOST_STEPS = 5_000_000  # whole checkpoints of large networks have some 100,000
_MARK = object()


class Malformed(Exception):
    """No pickle of tensors: why, in a few words."""


@dataclass(frozen=True)
class Named:
    """Something that a pickle asks for by its name."""

    name: str


@dataclass(frozen=True)
class Stored:
    """Numbers that lie elsewhere in the file."""

    key: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Scanned:
    """What is in a pickle: the names that it asks for and that are not known, all numbers that tensors lie in, its protocol."""

    strange: set[str]
    stored: list[Stored]
    protocol: int


def scan(data: Any, room: Callable[[str], int]) -> Scanned:
    """What is in one pickle, of which nothing is run.

    data: bytes, or a file that is read up to the pickle's end. room: the bytes that there are for the numbers of a key.

    Raises:
        Malformed: no pickle of tensors, or one that claims more numbers than there are.

    Example:
        >>> import os, pickle
        >>> scan(pickle.dumps([os.system, os.getcwd]), lambda key: 0).strange == {f"{os.name}.system", f"{os.name}.getcwd"}
        True
    """
    machine = _Machine(room)
    try:
        for number, (code, argument, _) in enumerate(pickletools.genops(data)):
            if number > MOST_STEPS:
                raise Malformed(f"it has more than {MOST_STEPS:,} steps")
            machine.step(code, argument)
    except Malformed as why:
        if not machine.strange:  # what holds code is told as that, however it ends
            raise why
    except Exception as error:  # a damaged pickle makes its reader fail in any way
        if not machine.strange:
            raise Malformed("it is damaged") from error
    return Scanned(machine.strange, machine.stored, machine.protocol)


class _Machine:
    """The stack of a pickle with what is on it as far as it matters: names, whole numbers, texts, tuples, stored numbers; else None."""

    def __init__(self, room: Callable[[str], int]) -> None:
        self.room = room
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.strange: set[str] = set()
        self.stored: list[Stored] = []
        self.protocol = 0

    def step(self, code: pickletools.OpcodeInfo, argument: Any) -> None:
        name, stack = code.name, self.stack
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "PROTO":
            self.protocol = max(self.protocol, argument)
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            self._name(*(argument.split(" ", 1) if name == "GLOBAL" else map(_text, self._pop(2))))
        elif name == "INST":
            self._marked()
            self._name(*argument.split(" ", 1))
            self._called(stack.pop(), ())
        elif name == "OBJ":
            what, *arguments = self._marked()
            self._called(what, tuple(arguments))
        elif name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            what, arguments, *_ = self._pop(3 if name == "NEWOBJ_EX" else 2)
            self._called(what, arguments)
        elif name.startswith("EXT"):
            self._name("copyreg", f"number {argument}")
        elif name in ("BINPERSID", "PERSID"):
            self._numbers(self._pop(1)[0] if name == "BINPERSID" else argument)
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(int(name[-1])) if name[-1].isdigit() else ()))
        else:
            for kind in reversed(code.stack_before):
                if kind is pickletools.stackslice:
                    self._marked()  # and the mark below it
                elif kind is not pickletools.markobject:
                    stack.pop()
            stack.extend(argument if isinstance(argument, (int, str, bytes)) else None for _ in code.stack_after)

    def _pop(self, count: int) -> list[Any]:
        taken = self.stack[len(self.stack) - count :]
        if len(taken) < count:
            raise Malformed("it is damaged")
        del self.stack[len(self.stack) - count :]
        return taken

    def _marked(self) -> list[Any]:
        taken: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]

    def _name(self, module: str, name: str) -> None:
        if self.protocol < 3:  # which has the names of Python 2
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        name = f"{module}.{name}"
        if name not in KNOWN:
            self.strange.add(name)
        self.stack.append(Named(name))

    def _called(self, what: Any, arguments: Any) -> None:
        name = what.name if isinstance(what, Named) else None
        self.stack.append(None)
        if name in self.strange or name in RECORDS or name in DICTS:
            return
        if name not in CALLED:
            raise Malformed(f"it calls {name or 'what it has made itself'}")
        if name == "_codecs.encode" and list(map(_text, arguments))[1:] != ["latin1"]:
            raise Malformed("it calls _codecs.encode with another coding than latin1")
        if name in TENSORS:
            _check_tensor(*arguments[:4])

    def _numbers(self, place: Any) -> None:
        """A place of numbers, as torch names it: ("storage", kind, key, device, count)."""
        if not (isinstance(place, tuple) and len(place) >= 5 and _text(place[0]) == "storage" and isinstance(place[1], Named)):
            raise Malformed("it refers to something other than numbers")
        key, count = _text(place[2]), place[4]
        item = ITEM_BYTES.get(place[1].name)
        if item is None:
            raise Malformed(f"it has numbers of an unknown kind ({place[1].name})")
        if not isinstance(count, int) or not 0 <= count * item <= self.room(key):
            raise Malformed(f"it claims {count} numbers of {item} bytes where the file has {max(self.room(key), 0):,} bytes")
        self.stored.append(Stored(key, count, count * item))
        self.stack.append(self.stored[-1])


def _check_tensor(where: Any, offset: Any, size: Any, stride: Any) -> None:
    if not isinstance(where, Stored):
        raise Malformed("it has a tensor without numbers")
    whole = [offset, *size, *stride]
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in whole):
        raise Malformed(f"it has a tensor of shape {size}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # a step of 0 may repeat numbers, but no weight is made of more than its file has
    if 0 not in size and (last >= where.count or _product(size) > max(where.count, 1)):
        raise Malformed(f"it claims a tensor of shape {list(size)} in {where.count:,} numbers")


def _product(size: Any) -> int:
    product = 1
    for n in size:
        product *= n
    return product


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else "?" if value is None else str(value)


def names_in(data: Any) -> Iterator[str]:
    """The unknown names in one pickle as far as it can be read, for telling what a file holds."""
    try:
        yield from sorted(scan(data, lambda key: 0).strange)
    except Malformed:
        return

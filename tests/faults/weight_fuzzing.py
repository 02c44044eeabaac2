"""Files of weights that mean harm, read one after another in this process: `python weight_fuzzing.py FOLDER FILES SEED`.

First gadgets: five kinds of code in every protocol of pickle, bare, in both of torch's forms and in its tar form, and tensors that claim
what is not there; then mutated files of each form. One JSON object comes out: for each gadget what was said, what happened that must
not (an audit hook looks), what was written; for each form how many mutated files gave tensors, how many an error of ours, whatever else
there was; the slowest file in ms; the memory of the process at its peak in MB.
"""

from __future__ import annotations

import codecs
import collections
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from smallview.errors import SmallviewError
from smallview.networks.weight_files import read_weights

FORBIDDEN = {
    "os.system",
    "subprocess.Popen",
    "exec",
    "compile",
    "pickle.find_class",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "import",
}
LIMIT_S = 5
happened: list[str] = []
watching = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not watching:
        return
    if event in FORBIDDEN:
        happened.append(f"{event} {str(arguments)[:80]}")
    if event == "open" and (
        str(arguments[1] or "r")[0] in "wax+" or int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    ):
        happened.append(f"write {arguments[0]}")


class Gadget:
    """Pickles as a call of `what` with these arguments."""

    def __init__(self, what: Any, *arguments: Any) -> None:
        self.call = what, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def gadgets() -> dict[str, tuple[Any, str]]:
    """(what is pickled, a word that must be said) by name."""
    system = Gadget(os.system, "touch owned")
    return {
        "os.system": (system, "system"),
        "exec": (Gadget(exec, "open('owned', 'w')"), "exec"),
        "eval": (Gadget(eval, "open('owned', 'w')"), "eval"),
        "Popen": (Gadget(subprocess.Popen, ["touch", "owned"]), "subprocess.Popen"),
        "torch-like": (Gadget(torch.storage._load_from_bytes, pickle.dumps(system)), "torch.storage._load_from_bytes"),
        "nested": ({"state_dict": collections.OrderedDict(a=1, b=[{"c": (system, 2)}])}, "system"),
        "a numpy that runs": (Gadget(np.load, "x.npy", None, True), "load"),
    }


def by_hand() -> dict[str, tuple[bytes, str]]:
    """Pickles that no pickler writes."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    huge = b"\x8a\x06" + (10**12).to_bytes(6, "little")
    end = b"ccollections\nOrderedDict\n)RtRs."
    return {
        "INST": (b"(S'touch owned'\nios\nsystem\n.", "os.system"),
        "OBJ": (b"(cos\nsystem\nS'touch owned'\no.", "os.system"),
        "names of the memo": (b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x0btouch owned\x85R.", "system"),
        "copyreg's table": (b"\x80\x02\x82\x07.", "copyreg"),
        "a coding": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "_codecs"),
        "numbers of 10^12": (b"\x80\x02}X\x01\x00\x00\x00a" + tensor + huge + b"tQK\x00K\x01\x85K\x01\x85\x89" + end, "claims"),
        "a shape of 10^12": (
            b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"K\x02tQK\x00" + huge + b"\x85K\x01\x85\x89" + end,
            "claims",
        ),
        "steps of nothing": (
            b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"K\x02tQK\x00" + huge + b"\x85K\x00\x85\x89" + end,
            "claims",
        ),
        "one number too many": (b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"K\x03tQK\x00K\x03\x85K\x01\x85\x89" + end, ""),
        "mappings of mappings": (_doubled(), ""),
    }


def _doubled() -> bytes:
    """10,000 names for one mapping of 10,000 names for one mapping ...: a file of some MB with 10^16 entries."""
    out = io.BytesIO(b"")
    inner: Any = {}
    for _ in range(4):
        inner = dict.fromkeys(range(10_000), inner)
    pickle.dump(inner, out, protocol=2)
    return out.getvalue()


def forms(data: bytes) -> dict[str, bytes]:
    """The pickle by itself, as torch's older form, inside its zip form with 8 bytes of numbers, and inside its tar form."""
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for name, content in (("w/data.pkl", data), ("w/byteorder", b"little"), ("w/data/0", bytes(8)), ("w/version", b"3\n")):
            archive.writestr(name, content)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        for name, content in (("pickle", data), ("storages", pickle.dumps(0)), ("tensors", pickle.dumps(0))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return {
        "bare": data,
        "older": head + data + pickle.dumps(["0"], 2) + (2).to_bytes(8, "little") + bytes(8),
        "zip": zipped.getvalue(),
        "tar": tarred.getvalue(),
    }


def read(path: Path) -> tuple[str, str, float]:
    """(tensors, refused or anything else; what was said; seconds) of one file, and all that happened meanwhile."""
    global watching
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    watching = True
    try:
        found = read_weights(path)
        plain = all(type(name) is str and type(value) is torch.Tensor for name, value in found.items())
        outcome, said = ("tensors", "") if plain else ("other", str({type(value) for value in found.values()}))
        sum(value.numel() for value in found.values())
    except SmallviewError as error:
        outcome, said = ("refused", str(error)) if "\n" not in str(error) else ("other", f"two lines: {error}")
    except BaseException as error:
        outcome, said = "other", f"{type(error).__name__}: {error}"
    finally:
        watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
    return outcome, said, time.process_time() - began


def seeds() -> dict[str, bytes]:
    torch.manual_seed(0)
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {f"layer{k}.weight": (5 * torch.randn(3, k + 1)).to(kind) for k, kind in enumerate(kinds)}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    whole = {
        "state_dict": collections.OrderedDict(tensors),
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "best": np.float64(1),
    }
    out = {"safetensors": save(tensors)}
    for name, zipped in (("zip", True), ("older", False)):
        file = io.BytesIO()
        torch.save(whole, file, _use_new_zipfile_serialization=zipped)
        out[name] = file.getvalue()
    return out


def mutated(form: str, data: bytes, random: np.random.Generator) -> bytes:
    """The bytes with flips, a cut, a splice, extreme numbers; of a header or a table, other words and numbers in it."""
    if random.integers(3) == 0:
        data = _header(data, random) if form == "safetensors" else _table(data, random) if form == "zip" else data
    body = bytearray(data)
    for _ in range(int(random.integers(0, 4))):
        kind, at = int(random.integers(5)), int(random.integers(len(body)))
        if kind == 0:
            for _ in range(int(random.integers(1, 12))):
                body[int(random.integers(len(body)))] ^= 1 << int(random.integers(8))
        elif kind == 1:
            del body[max(at, 1) :]
        elif kind == 2:
            body[at:at] = data[int(random.integers(len(data))) :][: int(random.integers(1, 64))]
        elif kind == 3:
            number = (bytes(8), b"\xff" * 8, (10**12).to_bytes(8, "little"), b"\x7f" + b"\xff" * 7)[int(random.integers(4))]
            at = 0 if form == "safetensors" and random.integers(2) else at
            body[at : at + 8] = number[: max(1, min(8, len(body) - at))]
        elif len(body) > 2:
            del body[at : at + int(random.integers(1, 16))]
    return bytes(body) or b"\0"


def _header(data: bytes, random: np.random.Generator) -> bytes:
    """A header of safetensors with one value replaced."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = list(header)[int(random.integers(len(header)))]
    entry = header[name]
    choice = int(random.integers(7))
    if choice == 0:
        entry["shape"] = [10**12] * int(random.integers(1, 4))
    elif choice == 1:
        entry["dtype"] = ("F64", "F8_E4M3", "C64", "X", 7, None)[int(random.integers(6))]
    elif choice == 2:
        entry["data_offsets"] = [int(random.integers(0, 40)), int(random.choice([1, 30, 10**12, -1]))]
    elif choice == 3:
        header["NaN"] = header.pop(name)
    elif choice == 4:
        entry["shape"] = [-1, 2.5, "3", float("nan")][: int(random.integers(1, 5))]
    elif choice == 5:
        other = list(header)[int(random.integers(len(header)))]
        entry["data_offsets"] = header[other]["data_offsets"]
    else:
        header[name] = [entry]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _table(data: bytes, random: np.random.Generator) -> bytes:
    """Torch's zip form with one small number of its pickle replaced by 10^12, or one name by another."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for part in old.infolist():
            content = old.read(part)
            if part.filename.endswith("data.pkl"):
                places = [at for at in range(len(content) - 1) if content[at : at + 1] == b"K"]
                at = places[int(random.integers(len(places)))]
                if random.integers(3):
                    content = content[:at] + b"\x8a\x06" + (10**12).to_bytes(6, "little") + content[at + 2 :]
                else:
                    others = (b"cposix\nsystem\n", b"ctorch\nDoubleStorage\n", b"ctorch\nload\n", b"cbuiltins\nbytearray\n")
                    content = content.replace(b"ctorch\nFloatStorage\n", others[int(random.integers(4))])
            new.writestr(part.filename, content)
    return out.getvalue()


def hostile(folder: Path) -> list[dict[str, Any]]:
    """What came of every gadget in every protocol and form."""
    told: list[tuple[str, str, bytes, str]] = []
    for name, (value, word) in gadgets().items():
        for protocol in range(6):
            data = pickle.dumps(value, protocol)
            told += [(f"{name}, protocol {protocol}", form, whole, word) for form, whole in forms(data).items()]
    for name, (data, word) in by_hand().items():
        told += [(name, form, whole, word if form in ("older", "zip") else "") for form, whole in forms(data).items()]
    rows = []
    for name, form, whole, word in told:
        path = folder / "weights.pth"
        path.write_bytes(whole)
        happened.clear()
        outcome, said, seconds = read(path)
        rows.append(
            {
                "gadget": name,
                "form": form,
                "outcome": outcome,
                "said": said,
                "word": word,
                "happened": list(happened),
                "s": seconds,
            }
        )
    path.unlink()
    return rows


def fuzz(folder: Path, files: int, seed: int) -> dict[str, Any]:
    """What came of so many mutated files."""
    random = np.random.default_rng(seed)
    valid = seeds()
    found: dict[str, Any] = {form: {"tensors": 0, "refused": 0, "other": [], "happened": [], "worst_ms": 0.0} for form in valid}
    path = folder / "weights.bin"
    for n in range(files):
        form = list(valid)[n % len(valid)]
        path.write_bytes(mutated(form, valid[form], random))
        happened.clear()
        outcome, said, seconds = read(path)
        row = found[form]
        if outcome == "other":
            row["other"].append(f"file {n}: {said[:300]}")
        else:
            row[outcome] += 1
        row["happened"] += [f"file {n}: {event}" for event in happened]
        row["worst_ms"] = max(row["worst_ms"], 1000 * seconds)
    path.unlink(missing_ok=True)
    return found


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(folder: Path, files: int, seed: int) -> dict[str, Any]:
    os.chdir(folder)
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(TimeoutError(f"over {LIMIT_S} s")))
    sys.addaudithook(watch)
    for coding in ("raw_unicode_escape", "latin1", "ascii"):
        codecs.lookup(coding)
    for name, data in {**seeds(), **forms(pickle.dumps({"a": 1}, 2))}.items():  # what is imported late is there before
        (folder / name).write_bytes(data)
        read(folder / name)
        (folder / name).unlink()
    before = peak_mb()
    gadgets_found = hostile(folder)
    left = sorted(path.name for path in folder.iterdir())
    return {
        "files": files,
        "hostile": gadgets_found,
        "formats": fuzz(folder, files, seed),
        "left": left,
        "before_mb": before,
        "peak_mb": peak_mb(),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))

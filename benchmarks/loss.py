"""The contrastive loss alone, forward and backward: the dense form against the chunked one, in time and in memory.

    python benchmarks/loss.py                                    # every row, with and without freed blocks kept
    python benchmarks/loss.py --queries 256 --queries 512 --rounds 3 --keep no

Two banks. `batch`: B queries against the 2B embeddings of their own batch, the gradient through the bank too, a query's own two columns
no negatives (a direction of NT-Xent). `queue`: B queries against 65,536 entries without a gradient (MoCo). Prints a JSON line per row
and all rows as a Markdown table. Every row is one process, in which both forms must give the same loss and gradients.

Time: the forms take turns, and who begins changes with each round; the ratio is dense time over chunked time of one round, the median
over the rounds counts. --keep yes: with freed blocks kept, as training does; no: as a loop of one's own has it; both: one after the other.

Memory: each form in a process of its own, of the process what it holds at most (VmHWM) over what it held before the first pass. That
counts what the machine has to have: scratch space of the matrix products and what malloc keeps, which neither tracemalloc nor torch's
profiler see. Linux only. The gradients of the inputs are part of it. On CUDA: torch's allocator, max_memory_allocated.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smallview.objectives import InfoNCE
from smallview.objectives.reductions import BLOCK, CHUNKED_FROM, FEWEST_ROWS, contrast
from smallview.training.precision import keep_big_blocks

TEMPERATURE, DIMENSIONS, QUEUE = 0.2, 128, 65_536
ROWS = [*(("batch", b) for b in (256, 512, 1024, 2048, 4096, 8192)), *(("queue", b) for b in (256, 1024, 4096))]
FORMS = {"dense": False, "chunked": True}
# Matrices [B, M] that the dense form may want at its worst moment: 4 were seen with blocks handed back and 9 with them kept, where
# freed ones lie between others and the next pass does not fit in; and one to spare.
DENSE_COPIES = {"no": 5, "yes": 10}
WORST = 1e-4  # what float32 and another order of summation may do to a loss, or to a gradient beside the largest one
Form = Callable[[], tuple[Tensor, list[Tensor]]]


def unit_rows(rows: int, seed: int, device: str) -> Tensor:
    """Random rows of unit length, made without a second copy that a peak of memory could hide behind."""
    made = torch.randn(rows, DIMENSIONS, device=device, generator=torch.Generator(device).manual_seed(seed))
    return made.div_(torch.linalg.vector_norm(made, dim=1, keepdim=True))


def make_form(name: str, bank: str, b: int, device: str, queue: int = QUEUE) -> Form:
    """One pass of a form: the mean loss and the gradients of all that has one."""
    query, key = unit_rows(b, 0, device).requires_grad_(), unit_rows(b, 1, device)
    head = InfoNCE(TEMPERATURE).head(0.0)
    if bank == "batch":
        key.requires_grad_()
        places = [query, key]
        own = torch.arange(b, device=device)[:, None] + torch.tensor([0, b], device=device)  # [B, 2]
    else:
        places, own, entries = [query], None, unit_rows(queue, 2, device)

    def run() -> tuple[Tensor, list[Tensor]]:
        against = torch.cat([query, key]) if bank == "batch" else entries
        positive = (query * key).sum(1, keepdim=True) / TEMPERATURE  # [B, 1]
        total = contrast(query, positive, against, head, temperature=TEMPERATURE, own=own, chunked=FORMS[name])
        loss = total / b
        return loss.detach(), list(torch.autograd.grad(loss, places))

    return run


def disagreement(dense: Form, chunked: Form) -> dict[str, float]:
    """Greatest absolute differences between two forms, and the greatest gradient, for scale."""
    (loss, gradients), (other, others) = dense(), chunked()
    apart = max(float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True))
    return {
        "loss_difference": abs(float(loss) - float(other)),
        "gradient_difference": apart,
        "largest_gradient": max(float(a.abs().max()) for a in gradients),
    }


def seconds(form: Form, passes: int, device: str) -> float:
    """Time of one pass, the mean of `passes`."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(passes):
            form()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / passes
    began = time.perf_counter()
    for _ in range(passes):
        form()
    return (time.perf_counter() - began) / passes


def time_forms(given: argparse.Namespace, forms: list[str]) -> dict[str, Any]:
    """Seconds of a pass of every form, in turns, and how far they are apart; one form alone is only timed."""
    made = {name: make_form(name, given.bank, given.b, given.device) for name in forms}
    told: dict[str, Any] = disagreement(made["dense"], made["chunked"]) if len(made) > 1 else {}
    passes = {}
    for name, form in made.items():
        form()
        passes[name] = max(1, round(given.seconds / seconds(form, 1, given.device)))
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(given.rounds):
        for name in forms[:: 1 if turn % 2 == 0 else -1]:
            times[name].append(seconds(made[name], passes[name], given.device))
    for name, found in times.items():
        told[f"{name}_ms"] = round(1e3 * statistics.median(found), 3)
    if len(made) > 1:
        ratios = [a / b for a, b in zip(times["dense"], times["chunked"], strict=True)]
        told |= {"ratio_median": round(statistics.median(ratios), 3)}
        told |= {"ratio_min": round(min(ratios), 3), "ratio_max": round(max(ratios), 3)}
    return told


def held(which: str) -> int:
    """Bytes of VmRSS or VmHWM of this process, as Linux tells them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:"))


def peak(given: argparse.Namespace, form: str) -> dict[str, float | None]:
    """MiB that three passes of a form need on top of the inputs; None where the machine does not tell."""
    # Libraries make their threads and tables at the first pass: in miniature, so that they do not count.
    make_form(form, given.bank, 8, given.device, queue=16)()
    run = make_form(form, given.bank, given.b, given.device)
    if given.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        return {"mib": round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)}
    try:
        if platform.libc_ver()[0] == "glibc":  # what imports left free is handed back: the loss would hide in it
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        # Not getrusage: a child's ru_maxrss begins at what its parent held when it started it, and never falls.
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = held("VmRSS")
    except OSError:
        return {"mib": None}
    for _ in range(3):
        run()
    return {"mib": round((held("VmHWM") - before) / 2**20, 1)}


def free_bytes(device: str) -> int:
    """Bytes that are there for the taking; without bound where the machine does not tell."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except OSError:
        return sys.maxsize


def worker(given: argparse.Namespace, task: str, *forms: str) -> dict[str, Any]:
    """What a process of its own finds for a task, `time` or `memory`, with these forms."""
    names = ("device", "threads", "rounds", "seconds", "bank", "b", "keep")
    values = {name: getattr(given, name) for name in names} | {"task": task, "forms": forms}
    done = subprocess.run([sys.executable, __file__, "--worker", json.dumps(values)], capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        sys.exit(f"the {task} of {' and '.join(forms)}, {given.bank} B={given.b}, ended with {done.returncode}: {told}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def work(values: dict[str, Any]) -> dict[str, Any]:
    """Do in this process what `worker` asks for."""
    given = argparse.Namespace(**values)
    torch.set_num_threads(given.threads)
    if given.keep == "yes" and not keep_big_blocks():
        sys.exit("freed blocks cannot be kept: no glibc here, or SMALLVIEW_MALLOC=off; use --keep no")
    return time_forms(given, given.forms) if given.task == "time" else peak(given, *given.forms)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One row: one bank, one number of queries, one way of keeping memory."""
    m = 2 * given.b if given.bank == "batch" else QUEUE
    cells = given.b * m
    row: dict[str, Any] = {"bank": given.bank, "queries": given.b, "entries": m, "keep": given.keep}
    row["by_size"] = "chunked" if cells >= CHUNKED_FROM[given.device] else "dense"
    wanted, there = DENSE_COPIES[given.keep] * 4 * cells, free_bytes(given.device)
    forms = ["dense", "chunked"] if wanted < there else ["chunked"]
    if wanted >= there:
        row["dense_left_out"] = f"wants about {wanted / 2**30:.1f} GiB and {there / 2**30:.1f} GiB are free"
    row |= worker(given, "time", *forms)
    for form in forms:
        row[f"{form}_mib"] = worker(given, "memory", form)["mib"]
    if len(forms) > 1:
        row["agree"] = (
            row["loss_difference"] <= WORST and row["gradient_difference"] <= WORST * row["largest_gradient"]
        )  # a NaN is not below anything
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""

    def cell(row: dict[str, Any], name: str, form: str = "") -> str:
        return "-" if row.get(name) is None else format(row[name], form)

    heads = "bank | queries | entries | blocks kept | dense ms | chunked ms | dense / chunked | dense MiB | chunked MiB"
    heads += " | loss apart | gradient apart | by size"
    lines = [f"| {heads} |", "|" + " --- |" * (heads.count("|") + 1)]
    for row in rows:
        ratio = (
            f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})" if "ratio_median" in row else "-"
        )
        cells = [cell(row, name) for name in ("bank", "queries", "entries", "keep")]
        cells += [cell(row, "dense_ms", ".2f"), cell(row, "chunked_ms", ".2f"), ratio]
        cells += [cell(row, "dense_mib", ".1f"), cell(row, "chunked_mib", ".1f")]
        cells += [cell(row, "loss_difference", ".1e"), cell(row, "gradient_difference", ".1e"), row["by_size"]]
        lines.append("| " + " | ".join(cells) + " |")
    left = [
        f"\n{row['bank']}, {row['queries']} queries: dense left out, {row['dense_left_out']}."
        for row in rows
        if "dense_left_out" in row
    ]
    return "\n".join(lines + left)


def main() -> None:
    """Measure the rows, print each as it comes, and all of them as a table."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(work(json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", choices=["batch", "queue", "both"], default="both")
    parser.add_argument("--queries", action="append", type=int, metavar="B", help="only rows of this size; may be given again")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a form's turn, about; one pass at least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", choices=["no", "yes", "both"], default="both", help="freed blocks kept by malloc; CPU only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    if given.rounds < 1 or given.threads < 1:
        parser.error(f"--rounds is {given.rounds} and --threads {given.threads}; wanted 1 or more")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, and torch finds no CUDA device here; use --device cpu")
    chosen = [(bank, b) for bank, b in ROWS if given.bank in (bank, "both") and b in (given.queries or [b])]
    if not chosen:
        parser.error(f"--bank {given.bank} has no row of {given.queries} queries; rows are {ROWS}")
    keeps = ["no"] if given.device == "cuda" else ["no", "yes"] if given.keep == "both" else [given.keep]
    machine = torch.cuda.get_device_name() if given.device == "cuda" else platform.processor() or platform.machine()
    told = {
        "machine": machine,
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "threads": given.threads,
        "rounds": given.rounds,
    }
    told |= {
        "dimensions": DIMENSIONS,
        "chunked_from": CHUNKED_FROM[given.device],
        "block": BLOCK[given.device],
        "fewest_rows": FEWEST_ROWS,
    }
    print(json.dumps(told), flush=True)
    rows = []
    for given.bank, given.b in chosen:
        for given.keep in keeps:
            rows.append(measure(given))
            print(json.dumps(rows[-1]), flush=True)
    print(f"\n{table(rows)}")
    if not all(row.get("agree", True) for row in rows):
        sys.exit(f"the forms differ by more than {WORST:g}: see loss apart and gradient apart")


if __name__ == "__main__":
    main()

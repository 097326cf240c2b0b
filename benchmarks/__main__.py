"""`python -m benchmarks`: runs suites, prints their reports and writes them into benchmarks/results/."""

import argparse
import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.context import Suite

RESULTS = Path(__file__).with_name("results")

SUITES = (
    "runs",
    "sweeps",
    "attribution",
    "generation",
    "experts",
    "pruning",
    "steering",
)  # each a module here with a SUITE; its results go into <suite>-<platform>.md and .json

EPILOG = """examples:
  python -m benchmarks                              everything; the first time, it makes an environment for the peers
  python -m benchmarks --only run-14 stop           parts, printed but not written
  python -m benchmarks --no-peers --device-only --cores 0 --model FILE.gguf      an accelerator without a network
"""


def arguments() -> argparse.Namespace:
    """What the command line says."""
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog=EPILOG, formatter_class=layout)
    add = parser.add_argument
    add("suites", nargs="*", help="suites to run; all of them by default")
    add("--list", action="store_true", help="show suites and their parts, and end")
    add("--only", nargs="+", default=[], metavar="PART", help="only these parts of the suites")
    add("--rounds", type=int, default=15, help="rounds that count (default 15; half of them where each takes seconds)")
    add("--cores", type=int, default=2, help="cores to use, ours and the peers' alike (default 2; 0: all)")
    add("--model", type=Path, help="the GGUF file of SmolLM2-135M-Instruct (default: that of the registry)")
    add("--peer-python", type=Path, help="an interpreter that has the peers (default: one made in the cache folder, $JAXINTERP_CACHE)")
    add("--no-peers", action="store_true", help="leave the peers out")
    add("--device-only", action="store_true", help="only what runs on the device: no files, imports or compiling")
    add("--cells", type=int, default=40, help="cells of a sweep that a peer is timed on and compared at (default 40)")
    add("--sample-only", action="store_true", help="peers compute no grid whole, only those cells")
    add("--gemma", type=Path, metavar="FILE", help="the GGUF file of Gemma 3 270M, to sweep it too (its terms: ai.google.dev/gemma/terms)")
    add("--wait", type=float, default=300, metavar="SECONDS", help="most that a race waits for a busy machine to become calm (default 300)")
    add("--out", type=Path, help="folder for the results (default: benchmarks/results, and none with --only)")
    return parser.parse_args()


def main() -> int:
    """Runs what was asked for; 0 if every figure is within its bar, 1 if one is not, 2 if something could not be run."""
    options = arguments()
    if options.cores and hasattr(os, "sched_setaffinity"):  # before JAX counts cores for its threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # the peer needs room on the same accelerator

    from benchmarks.environment import NoPeers
    from benchmarks.harness import WrongResult

    suites = {name: importlib.import_module(f"benchmarks.{name}").SUITE for name in SUITES}
    parts = {part for suite in suites.values() for part in suite.measurements}
    unknown = [name for name in options.suites if name not in suites] + [part for part in options.only if part not in parts]
    if options.list or unknown:
        for name, suite in suites.items():
            print(f"{name}: {suite.title}", *(f"  {part:<14}{m.about}" for part, m in suite.measurements.items()), sep="\n")
        if unknown:
            print(f"unknown: {', '.join(unknown)}", file=sys.stderr)
        return 2 if unknown else 0
    try:
        missed = sum(run(name, suites[name], options) for name in options.suites or suites)
    except (NoPeers, WrongResult) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if missed else 0


def run(name: str, suite: "Suite", options: argparse.Namespace) -> int:
    """Runs a suite, prints and writes its report, and says how many figures missed their bar."""
    import jax

    from benchmarks import harness
    from benchmarks.context import Context
    from benchmarks.report import Report

    chosen = {
        part: measurement
        for part, measurement in suite.measurements.items()
        if part in (options.only or suite.measurements) and (measurement.on_device or not options.device_only)
    }
    if not chosen:
        return 0
    harness.PATIENCE = options.wait
    report = Report(name, suite.title, harness.machine())
    with tempfile.TemporaryDirectory(prefix="jaxinterp-bench-") as scratch:
        ctx = Context(options, Path(scratch), report)
        for part, measurement in chosen.items():
            harness.log(f"{name}: {part}")
            measurement.run(ctx)
        ctx.close()
    report.machine["load average at the end"] = harness.load_average()
    print(report.markdown())
    out = options.out or (None if options.only else RESULTS)
    files = report.write(out, f"{name}-{jax.default_backend()}") if out else []
    if out and (picture := suite.picture) is not None:
        image = out / f"{name}-{jax.default_backend()}.png"
        picture(report, image)
        files += [image] if image.exists() else []
    for file in files:
        harness.log(f"wrote {file}")
    return sum(figure.met is False for figure in report.figures)


if __name__ == "__main__":
    sys.exit(main())

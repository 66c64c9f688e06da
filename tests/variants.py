"""Runs the tests as other processors would, variant after variant, and prints a table. `make test-variants`.

    uv run python tests/variants.py [--all] [PYTEST ARGUMENTS, such as tests/unit/models or -m slow]

A result may depend on the order in which a processor sums, that is on its vector length (torch's kernels obey
ATEN_CPU_CAPABILITY, oneDNN's obey DNNL_MAX_CPU_ISA) and on the number of threads. No verdict of a test may.
Without --all, every value is tried at least once; with it, all of them together, which takes hours.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "OMP_NUM_THREADS")
VALUES = (("", "avx2", "default"), ("", "AVX2"), ("1", "2", "4"))  # "": what the processor has
FEW = [
    ("", "", "1"), ("avx2", "AVX2", "1"), ("default", "", "1"), ("", "AVX2", "2"), ("avx2", "", "4"),
    ("default", "AVX2", "2"),
]  # fmt: skip
WHOLE = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-m", "not slow and not gpu"]


def run(values: tuple[str, ...], arguments: list[str]) -> tuple[str, list[str]]:
    """A row of the table, and the tests that failed."""
    given = dict(zip(NAMES, values, strict=True))
    rest = {name: value for name, value in os.environ.items() if name not in NAMES}
    # more threads than cores would spin
    environment = {**rest, "OMP_WAIT_POLICY": "passive", **{n: v for n, v in given.items() if v}}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={file}"]
        subprocess.run([*command, *arguments], cwd=ROOT, env=environment)
        cases = list(ET.parse(file).getroot().iter("testcase")) if file.exists() else []
    wrong = [f"{case.get('classname')}::{case.get('name')}" for case in cases if is_wrong(case)]
    skipped = sum(case.find("skipped") is not None for case in cases)
    minutes = (time.monotonic() - begin) / 60
    cells = [value or "unset" for value in values]
    cells += [str(n) for n in (len(cases) - len(wrong) - skipped, len(wrong), skipped)]
    return "| " + " | ".join([*cells, f"{minutes:.1f}"]) + " |", wrong if cases else ["no test ran"]


def is_wrong(case: ET.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def main(words: list[str]) -> int:
    arguments = [word for word in words if word != "--all"] or WHOLE
    variants = list(itertools.product(*VALUES)) if "--all" in words else FEW
    table = ["| " + " | ".join([*NAMES, "passed", "failed", "skipped", "minutes"]) + " |", "|---" * 7 + "|"]
    failures = []
    for values in variants:
        row, wrong = run(values, arguments)
        table.append(row)
        failures += [f"{' '.join(value or 'unset' for value in values)}: {name}" for name in wrong]
    print("\n".join(["", *table, *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

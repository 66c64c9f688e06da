"""Resolves all dependencies afresh and writes the exact versions to both places that need them.

constraints.txt is for people and pip; [tool.uv] constraint-dependencies is what plain `uv run` obeys.
Neither names a download address (uv.lock does, so it is git-ignored). Run by `make pins`.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = re.compile(r"^constraint-dependencies = \[\n.*?^\]\n", re.MULTILINE | re.DOTALL)

uv = str(ROOT / sys.argv[1]) if "/" in sys.argv[1] else sys.argv[1]
project = (ROOT / "pyproject.toml").read_text()
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "pyproject.toml").write_text(LIST.sub("constraint-dependencies = [\n]\n", project))
    compiled = subprocess.run(
        [uv, "pip", "compile", "pyproject.toml", "--group", "dev", "--all-extras", "--universal", "--quiet",
         "--python-version", "3.11", "--no-annotate", "--no-header"],
        cwd=folder, check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
# A marker stays only where Python versions need different versions of one package: the others repeat
# what the packages themselves say, and make uv resolve for platforms that torch has no wheels for.
lines = [line.strip() for line in compiled.splitlines() if "==" in line]
names = [line.split("==")[0] for line in lines]
pins = []
for line, name in zip(lines, names, strict=True):
    version, _, marker = line.partition(" ; ")
    python = " and ".join(re.findall(r"python_full_version (?:>=|<) '3\.1[0-3]'", marker))
    pins.append(f"{version} ; {python}" if names.count(name) > 1 else version)
(ROOT / "constraints.txt").write_text("# Written by `make pins`.\n" + "".join(f"{pin}\n" for pin in pins))
rows = "".join(f'  "{pin}",\n' for pin in (pin.replace('"', "'") for pin in pins))
(ROOT / "pyproject.toml").write_text(LIST.sub(lambda _: f"constraint-dependencies = [\n{rows}]\n", project))
print(f"{len(pins)} versions pinned")

"""Set-up on Colab, which every notebook's third cell calls: installs the project and what it needs and Colab lacks, and never touches torch or numpy.

Both are built for Colab's machines, and loaded before long: another version over them is what breaks notebooks there.
"""

import importlib
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

LOADED = {m for m in sys.modules if not m.startswith("_")}  # before this script loads anything of others

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ITS_OWN = ("torch", "numpy", "jupyterlab")  # Colab brings the first two, and is the third itself


def plan(wanted, pins, has):
    """Choose what to install, and in which versions.

    Args:    wanted: the project's requirements.  pins: {name: version} that it was tested with.  has: {name: version} that is here.
    Returns: (requirements, lines of a constraints file): what is here in a version that will do stays as it is; what is not comes in the tested version.
    """
    wanted = {canonicalize_name(r.name): r for r in map(Requirement, wanted)}
    lacks = [n for n, r in wanted.items() if n not in ITS_OWN and not (n in has and r.specifier.contains(has[n], prereleases=True))]
    limits = {n: v for n, v in pins.items() if n not in has or n in lacks} | {n: has[n] for n in ITS_OWN if n in has}
    return [str(wanted[n]) for n in lacks], [f"{n}=={v}" for n, v in sorted(limits.items())]


def installed():
    importlib.invalidate_caches()
    return {canonicalize_name(d.metadata["Name"]): d.version for d in reversed(list(metadata.distributions()))}


def set_up(root):
    """Install what lacks and the project in `root`; raise a RuntimeError if what was loaded before has changed, since only a restart loads it anew."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [x.split("==") for x in (root / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in x]
    has = installed()
    lacks, limits = plan(project["dependencies"], {canonicalize_name(n): v for n, v in lines}, has)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    with TemporaryDirectory() as side:
        Path(side, "limits.txt").write_text("\n".join(limits), encoding="utf-8")
        if lacks:
            subprocess.run([*pip, "-c", Path(side, "limits.txt"), *lacks], check=True)
    subprocess.run([*pip, "--no-deps", "-e", root], check=True)
    sys.path.insert(0, str(root))  # for this kernel, which looked for packages before
    now, homes = installed(), metadata.packages_distributions()
    changed = {n for n in has if n in now and has[n] != now[n]} & {canonicalize_name(d) for module in LOADED for d in homes.get(module, ())}
    for text in project["dependencies"]:
        if (r := Requirement(text)).name in ITS_OWN[:2] and r.name in now and not r.specifier.contains(now[r.name], prereleases=True):
            print(f"{r.name} is {now[r.name]} here, and the project asks for {text}: some of it may not work")
    print(f"{len(lacks)} packages were missing, torch {now.get('torch')} and numpy {now.get('numpy')} are as they were")
    if changed:
        raise RuntimeError(f"{', '.join(sorted(changed))} changed and had been loaded: choose Runtime > Restart session, then run all cells again")


if __name__ == "__main__":
    set_up(Path(__file__).resolve().parents[1])

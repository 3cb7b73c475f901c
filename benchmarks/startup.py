"""How long people wait before anything happens: `everymask --help` and `import everymask`, in fresh processes.

    python -m benchmarks startup

Files are in the system's cache after the first process, as on any but the first use of a day. The import is what
`python -c "import everymask"` takes longer than `python -c pass`; the command is its whole time, Python included.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

from .measure import Row, alternate


def command(*arguments: str) -> None:
    """Run a command to its end, without its output."""
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)


def rows(processes: int = 9) -> list[Row]:
    """Medians over fresh processes, which take turns."""
    steps = {
        "help": partial(command, str(Path(sysconfig.get_path("scripts")) / "everymask"), "--help"),
        "import": partial(command, sys.executable, "-c", "import everymask"),
        "nothing": partial(command, sys.executable, "-c", "pass"),
    }
    seconds = alternate(steps, processes)
    return [
        Row("everymask --help", seconds["help"], "s", most=0.5),
        Row("import everymask", seconds["import"] - seconds["nothing"], "s", most=0.2),
    ]

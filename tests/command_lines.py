"""Run many command lines of the scripts, each in a fork of one interpreter that has done the common imports already.

    echo '["main_SFT.py --batch_size 0", "inference.py"]' | python tests/command_lines.py

Prints a JSON list of [exit code, what it wrote to stderr].
"""

import json
import os
import runpy
import shlex
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data.arguments
import data.loading  # noqa: F401


def run(command: str) -> tuple[int, str]:
    script, *flags = shlex.split(command)
    with tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            os.dup2(stderr.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.argv = [script, *flags]
            code = 0
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 1
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        stderr.seek(0)
        return code, stderr.read().decode()


if __name__ == "__main__":
    print(json.dumps([run(command) for command in json.load(sys.stdin)]))

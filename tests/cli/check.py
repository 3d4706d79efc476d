#!/usr/bin/env python3
"""Run the program on bad command lines and graphs, and compare exit codes and messages, word for word.

usage: check.py SCOUT CASES...

A file of cases has blocks divided by blank lines; lines that begin with '#' are comments:

    file NAME           (any number of these) a file of the case's folder, its lines indented below
        text
    $ scout WORD...     the command; words are split as a shell does
    exit N
    out: TEXT           lines of standard output, all of them, in order; "out ..." ends a list that may go on
    err: TEXT           lines of standard error, likewise

Every case runs in an empty folder of its own. "{dir}" in a file, command or expectation is that folder, "{root}" the
project's.
No accelerator is visible; the reason, which depends on the build and the machine, is "..." in an expectation.
"""
import os
import re
import shlex
import subprocess
import sys
import tempfile


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Case:
    def __init__(self):
        self.files, self.command, self.code = {}, None, None
        self.out, self.err, self.out_open, self.err_open = [], [], False, False


def parse(path):
    cases, case, name = [], Case(), None
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f.read().split("\n") + [""], 1):
            if line.startswith("#"):
                continue
            if not line.strip():
                if case.command is not None:
                    cases.append(case)
                    case = Case()
                name = None
            elif line.startswith("    ") and name:
                case.files[name] += line[4:] + "\n"
            elif line.startswith("file "):
                name = line[5:].strip()
                case.files[name] = ""
            elif line.startswith("$ scout"):
                case.command, name = line[7:].strip(), None
            elif line.startswith("exit "):
                case.code = int(line[5:])
            elif line.startswith("out:"):
                case.out.append(line[5:])
            elif line.startswith("err:"):
                case.err.append(line[5:])
            elif line == "out ...":
                case.out_open = True
            elif line == "err ...":
                case.err_open = True
            else:
                sys.exit(f"{path}:{number}: not a line of a case: {line!r}")
    return cases


def matches(got, want, is_open):
    return got[: len(want)] == want if is_open else got == want


def check(scout, case):
    with tempfile.TemporaryDirectory(prefix="scout-cli-") as folder:
        def fill(text):
            return text.replace("{dir}", folder).replace("{root}", ROOT)

        for name, text in case.files.items():
            os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
            with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
                f.write(fill(text))
        done = subprocess.run([scout] + shlex.split(fill(case.command)), cwd=folder, capture_output=True, text=True,
                              timeout=60, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"})
        out = done.stdout.splitlines()
        why = re.compile(r"(device 'cuda[:\d]*': ).*(; use --device cpu)")
        err = [why.sub(r"\1...\2", x) for x in done.stderr.splitlines()]
        wrong = []
        if done.returncode != case.code:
            wrong.append(f"  exit {done.returncode}, expected {case.code}")
        if not matches(out, [fill(x) for x in case.out], case.out_open):
            wrong.append("  stdout:\n" + "\n".join(f"    {x}" for x in out))
        if not matches(err, [fill(x) for x in case.err], case.err_open):
            wrong.append("  stderr:\n" + "\n".join(f"    {x}" for x in err) + "\n  expected:\n" +
                         "\n".join(f"    {fill(x)}" for x in case.err))
        return wrong


def main():
    scout, failed, n = os.path.abspath(sys.argv[1]), 0, 0
    for path in sys.argv[2:]:
        for case in parse(path):
            n += 1
            wrong = check(scout, case)
            if wrong:
                failed += 1
                print(f"FAILED {os.path.basename(path)}: scout {case.command}")
                print("\n".join(wrong))
    print(f"{n - failed} passed, {failed} failed")
    return 1 if failed or not n else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""A stream that nobody reads (a pager, a stalled terminal) neither stops a run nor keeps it from being interrupted.

usage: stalled.py SCOUT ROOT
"""
import fcntl
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

F_SETPIPE_SZ = 1031


def rows(run):
    return sum(p.stat().st_mtime_ns for p in pathlib.Path(run, "store/ledger").rglob("*.h5"))


def main():
    scout, root = sys.argv[1:3]
    folder = tempfile.mkdtemp(prefix="scout-stalled-")
    run = folder + "/run"
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    os.write(writer, b"x" * 4096)  # full from the start
    p = subprocess.Popen([scout, "run", f"{root}/graphs/quickstart.yaml", "--dir", run, "--set", "moves=100000",
                          "--set", "calibration=4", "--set", "probes=4"],
                         stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    try:
        deadline = time.monotonic() + 120
        while rows(run) == 0:
            if p.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the run measured nothing while its output stalled (exit {p.poll()})")
            time.sleep(0.1)
        p.send_signal(signal.SIGINT)
        if not select.select([p.stderr], [], [], 30)[0] or b"stopping" not in os.read(p.stderr.fileno(), 4096):
            sys.exit("the first SIGINT was not answered")
        os.set_blocking(reader, True)
        while os.read(reader, 65536):  # somebody reads again
            pass
        if p.wait(timeout=60) != 130:
            sys.exit(f"exit {p.returncode}, expected 130")
        print("a stalled stream: the run went on, was interrupted, and ended with 130")
    finally:
        p.kill()
        shutil.rmtree(folder, ignore_errors=True)


main()

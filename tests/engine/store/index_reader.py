"""Opens run.h5 with h5py again and again while a writer (test_store_index DIR STORE) appends rows and renews the index.

Usage: index_reader.py WRITER. Exits 77 when h5py is missing, 1 on the first thing that is not as promised.
"""
import os
import shutil
import subprocess
import sys
import tempfile

try:
    import h5py
    import numpy as np
except ImportError:
    system = "/usr/bin/python3"  # where Debian's python3-h5py is, whatever python3 comes first on the path
    if os.path.exists(system) and not os.path.samefile(sys.executable, system) and "--again" not in sys.argv:
        os.execv(system, [system, *sys.argv, "--again"])
    sys.exit(77)

OPENS = 100


def check_static(f):
    assert f["run"].attrs["graph_name"] == "quickstart", dict(f["run"].attrs)
    assert f["graph"][()].decode() == "scout: 1\nname: quickstart\n"
    model = f["nodes/model"]
    assert model.attrs["type"] == "model" and model.attrs["state"] == "done" and model.attrs["seconds"] == 1.25
    assert model.attrs["stat.layer_forwards"] == 120 and model.attrs["unit.layer_forwards"] == "layer"
    result = model["result"]
    assert result.attrs["schema"] == b"sample/1" and result.attrs["mean"] == 0.1 and result.attrs["count"] == -7
    assert result.attrs["key"].decode() == model.attrs["key"]
    large = result["g/large"]
    assert large.shape == (3, 1000) and large.attrs["unit"] == b"nat" and large.attrs["axes"] == b"row, column"
    assert np.array_equal(large[:].ravel(), np.arange(3000, dtype=np.float32) / 4)
    assert result["g/half"][:].tolist() == [1.0, 2.0, -2.0], "bf16 reads as float"
    assert result["names"][:].tolist() == [b"alpha", b"", b"gamma ray"]
    assert result["empty"].shape == (0, 4)
    failed = f["nodes/awaits"].attrs
    assert failed["state"] == "failed" and failed["error"] == 'no "rows": \u00e9' and np.isnan(failed["seconds"])


def check_live(f):
    """Every row that the index speaks of is there, with the values that follow from its number."""
    promised = int(f["nodes/round.2"].attrs["stat.rows"])
    total = 0
    for name in sorted(f["live/round.2"]):
        segment = f["live/round.2"][name]
        assert segment.attrs["numeric"] == b"fp32 cpu" and segment.attrs["row_valid"] == b"seq > 0"
        rows = segment["rows"][:]
        valid = rows[rows["seq"] > 0]
        number = total + np.arange(len(valid))
        assert np.array_equal(valid["window"], number % 5)
        assert np.array_equal(valid["kl_sum"], number * 0.5)
        kl = segment["kl"][: len(valid)]
        assert np.array_equal(kl, (number[:, None] + np.arange(kl.shape[1]) / 8).astype(np.float32))
        digests = {bytes(c["digest"]) for c in segment["candidates"][:] if c["seq"] > 0}
        assert all(bytes(c) in digests for c in valid["candidate"]) or name != "0000"
        total += len(valid)
    assert total >= promised, f"{total} rows are there, {promised} are promised"
    return total


def watch(writer, folder, run, store):
    process = subprocess.Popen([writer, run, store], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n", "the writer failed"
        seen = []
        for _ in range(OPENS):
            with h5py.File(os.path.join(run, "run.h5"), "r") as f:
                check_static(f)
                seen.append(check_live(f))
        assert seen[-1] > seen[0], "the writer did not move"
        assert process.poll() is None
    finally:
        process.stdin.close()
        process.wait(30)
    moved = os.path.join(folder, "moved")
    shutil.copytree(os.path.join(folder, "work"), moved)
    shutil.rmtree(os.path.join(folder, "work"))
    with h5py.File(os.path.join(moved, os.path.relpath(run, os.path.join(folder, "work")), "run.h5"), "r") as f:
        check_static(f)
        check_live(f)
    shutil.rmtree(moved)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for run, store in (("work", "work/store"), ("work/runs/a", "work/shared/store")):
            run, store = os.path.join(folder, run), os.path.join(folder, store)
            os.makedirs(run)
            watch(sys.argv[1], folder, run, store)


main()

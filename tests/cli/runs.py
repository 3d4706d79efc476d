#!/usr/bin/env python3
"""Whole runs of the program on node types that sleep and add: exit codes, reuse, --json, signals, limits, damage.

usage: runs.py SCOUT_FAKE
"""
import glob
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SCOUT = os.path.abspath(sys.argv.pop(1))

GRAPH = """scout: 1
name: g
params: {value: 1, ms: 0}
nodes:
  v: {type: value, with: {value: $(value)}}
  p: {type: parts, in: {in: v.a}, with: {ms: $(ms)}}
  r: {type: reader, in: {in: p}}
  m: {type: rows, in: {in: v.b}, with: {n: 30, ms: $(ms)}}
  total: {type: sum, in: {in: [r, m]}, with: {ms: $(ms)}}
"""
FAILING = """scout: 1
name: f
nodes:
  v: {type: value}
  bad: {type: fail, in: {in: v}, with: {how: %s}}
  below: {type: sum, in: {in: bad}}
  beside: {type: sum, in: {in: v}}
"""


class Runs(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="scout-runs-")
        self.write("g.yaml", GRAPH)

    def tearDown(self):
        shutil.rmtree(self.dir, ignore_errors=True)

    def write(self, name, text):
        with open(os.path.join(self.dir, name), "w", encoding="utf-8") as f:
            f.write(text)

    def scout(self, *words, code=0, **more):
        done = subprocess.run([SCOUT, *words], cwd=self.dir, capture_output=True, text=True, timeout=120, check=False,
                              **more)
        self.assertEqual(done.returncode, code, f"{words}\n{done.stdout}\n{done.stderr}")
        return done

    def events(self, *words, code=0):
        return [json.loads(line) for line in self.scout(*words, "--json", code=code).stdout.splitlines()]

    def objects(self, run="runs/g"):
        out = {}
        for path in glob.glob(os.path.join(self.dir, run, "store", "objects", "*", "*.h5")):
            with open(path, "rb") as f:
                out[os.path.basename(path)] = f.read()
        return out

    def test_second_run_reuses_everything_and_says_so(self):
        first = self.scout("run", "g.yaml").stdout
        self.assertIn("reused 0 of 5 nodes, made 5, in ", first)
        objects = self.objects()
        self.assertEqual(len(objects), 5 + 8)
        second = self.scout("run", "g.yaml").stdout
        self.assertIn("reused 5 of 5 nodes, made 0, in ", second)
        self.assertEqual(self.objects(), objects)

    def test_plan_and_dry_run_change_nothing(self):
        for words in (("plan", "g.yaml"), ("run", "g.yaml", "--dry-run")):
            self.assertIn("5 to run, 0 to reuse, 0 unknown", self.scout(*words).stdout)
            self.assertFalse(os.path.exists(os.path.join(self.dir, "runs")))
        self.scout("run", "g.yaml")
        before = sorted(glob.glob(os.path.join(self.dir, "runs", "**"), recursive=True))
        self.assertIn("0 to run, 5 to reuse, 0 unknown", self.scout("plan", "g.yaml").stdout)
        events = self.events("plan", "g.yaml", "--set", "value=2")
        self.assertEqual({e["state"] for e in events if e["event"] == "plan"}, {"run"})
        self.assertEqual(sorted(glob.glob(os.path.join(self.dir, "runs", "**"), recursive=True)), before)

    def test_ten_thousand_nodes_with_parameters_are_planned(self):
        lines = [f"  v{i}: {{type: value, with: {{value: {i}, scale: 0.5, extra: [{i}, 2], note: n{i}}}}}"
                 for i in range(10000)]
        self.write("many.yaml", "scout: 1\nnodes:\n" + "\n".join(lines) + "\n")
        began = time.monotonic()
        self.assertIn("10000 to run, 0 to reuse", self.scout("plan", "many.yaml").stdout)
        self.assertLess(time.monotonic() - began, 20)  # a second or less; the bound is for sanitizers

    def test_json_is_one_object_per_line(self):
        events = self.events("run", "g.yaml")
        self.assertEqual(events[-1]["event"], "result")
        self.assertEqual({k: events[-1][k] for k in ("needed", "done", "reused", "exit")},
                         {"needed": 5, "done": 5, "reused": 0, "exit": 0})
        done = {e["node"] for e in events if e["event"] == "node" and e["state"] == "done"}
        self.assertEqual(done, {"v", "p", "r", "m", "total"})

    def test_status_shows_the_ended_run(self):
        self.scout("run", "g.yaml")
        self.assertIn("graph g: 5 done; no process is running it", self.scout("status", "runs/g").stdout)
        states = {e["node"]: e["state"] for e in self.events("status", "runs/g") if e["event"] == "node"}
        self.assertEqual(states, dict.fromkeys(["v", "p", "r", "m", "total"], "done"))

    def test_explain_names_the_changed_parameter(self):
        self.scout("run", "g.yaml")
        text = self.scout("explain", "g.yaml", "total", "--set", "value=7").stdout
        self.assertIn("parameter 'value': was 1, is 7", text)
        self.assertIn("it would run: ", text)
        self.assertIn("it would be reused: ", self.scout("explain", "g.yaml", "total").stdout)
        self.assertIn("has not run in this directory before", self.scout("explain", "g.yaml", "v", "--dir", "x").stdout)
        with open(os.path.join(self.dir, "runs/g/run.h5"), "wb") as f:
            f.write(b"no HDF5")
        text = self.scout("explain", "g.yaml", "total").stdout
        self.assertIn("the run's index cannot be read: ", text)
        self.assertIn("it would be reused: ", text)

    def test_failures_have_their_codes_and_spare_the_rest(self):
        for how, code in (("numeric", 1), ("resource", 3)):
            self.write("f.yaml", FAILING % how)
            done = self.scout("run", "f.yaml", code=code)
            self.assertIn("scout: error: node 'bad': ", done.stderr)
            self.assertIn("1 failed, 1 blocked", done.stdout)
        states = {e["node"]: e["state"] for e in self.events("status", "runs/f") if e["event"] == "node"}
        self.assertEqual(states["below"], "blocked")
        self.assertIn(states["beside"], ("done", "reused"))

    def test_interrupted_run_exits_130_and_resumes_to_the_same_bytes(self):
        self.scout("run", "g.yaml", "--dir", "whole")
        whole = self.objects("whole")
        with subprocess.Popen([SCOUT, "run", "g.yaml", "--set", "ms=20"], cwd=self.dir, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as p:
            time.sleep(0.15)
            p.send_signal(signal.SIGINT)
            _, err = p.communicate(timeout=30)
        self.assertEqual(p.returncode, 130, err)
        self.assertIn("interrupted", err)
        self.scout("run", "g.yaml")
        self.assertEqual(self.objects(), whole)

    def test_interrupted_before_the_start_there_is_a_result_line(self):
        self.write("h.yaml", "scout: 1\nname: h\nnodes:\n  v: {type: value, with: {file: hole}}\n")
        self.write("hole", "")
        os.truncate(os.path.join(self.dir, "hole"), 2 << 30)  # takes a second or more to hash
        with subprocess.Popen([SCOUT, "run", "h.yaml", "--json"], cwd=self.dir, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as p:
            time.sleep(0.4)
            p.send_signal(signal.SIGINT)
            out, err = p.communicate(timeout=30)
        self.assertEqual(p.returncode, 130, err)
        self.assertEqual(json.loads(out.splitlines()[-1])["exit"], 130)

    def test_a_stray_signal_leaves_the_run_stoppable(self):
        with subprocess.Popen([SCOUT, "run", "g.yaml", "--set", "ms=200"], cwd=self.dir, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True) as p:
            time.sleep(0.3)
            p.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            self.assertIsNone(p.poll())
            p.send_signal(signal.SIGINT)
            _, err = p.communicate(timeout=30)
        self.assertEqual(p.returncode, 130, err)

    def test_second_signal_ends_at_once(self):
        self.write("slow.yaml", "scout: 1\nname: slow\nnodes:\n  s: {type: needy, with: {ms: 20000}}\n")
        with subprocess.Popen([SCOUT, "run", "slow.yaml"], cwd=self.dir, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as p:
            time.sleep(0.5)
            p.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            began = time.monotonic()
            p.send_signal(signal.SIGTERM)
            p.wait(timeout=10)
        self.assertEqual(p.returncode, 130)
        self.assertLess(time.monotonic() - began, 5)

    def test_status_of_a_live_run_and_a_second_run(self):
        self.write("slow.yaml", "scout: 1\nname: slow\nnodes:\n  s: {type: needy, with: {ms: 3000}}\n")
        with subprocess.Popen([SCOUT, "run", "slow.yaml"], cwd=self.dir, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as p:
            time.sleep(1.6)
            self.assertIn("1 running; a process is running it", self.scout("status", "runs/slow").stdout)
            second = self.scout("run", "slow.yaml", code=3)
            self.assertIn(str(p.pid), second.stderr)
            self.assertEqual(p.wait(timeout=30), 0)

    def test_file_size_limit_is_a_resource_error_and_resumes(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

        self.scout("run", "g.yaml", "--dir", "whole")
        done = self.scout("run", "g.yaml", code=3, preexec_fn=limit)
        self.assertIn("scout: error: ", done.stderr)
        self.scout("run", "g.yaml")
        self.assertEqual(self.objects(), self.objects("whole"))

    def object_of(self, node):
        key = [e["key"] for e in self.events("plan", "g.yaml") if e.get("node") == node][0]
        return key, os.path.join(self.dir, "runs/g/store/objects", key[:2], key + ".h5")

    def overwrite(self, path, at, data, whence=os.SEEK_SET):
        mode = os.stat(path).st_mode
        os.chmod(path, 0o644)
        with open(path, "r+b") as f:
            f.seek(at, whence)
            f.write(data)
        os.chmod(path, mode)

    def test_check_finds_a_damaged_object_and_the_next_run_mends_it(self):
        self.scout("run", "g.yaml")
        whole = self.objects()
        self.assertIn("13 objects, 0 damaged", self.scout("check", "runs/g").stdout)
        key, path = self.object_of("m")
        self.overwrite(path, -3, b"~~~", os.SEEK_END)
        found = self.scout("check", "runs/g", code=1).stdout
        self.assertIn("damaged object " + key, found)
        self.assertIn("13 objects, 1 damaged", found)
        os.unlink(self.object_of("total")[1])
        self.assertIn("made 2, in", self.scout("run", "g.yaml").stdout)
        self.assertTrue(self.objects() == whole)

    def test_check_finds_a_damaged_row_of_a_ledger(self):
        self.scout("run", "g.yaml")
        self.assertIn("30 ledger rows, 0 damaged", self.scout("check", "runs/g").stdout)
        (path,) = glob.glob(os.path.join(self.dir, "runs/g/store/ledger/*/0000.h5"))
        with open(path, "rb") as f:
            data = f.read()
        seven = data.find((8).to_bytes(8, "little"), 4096)  # the row with seq 8
        while data[seven + 40: seven + 44] != (7).to_bytes(4, "little"):
            seven = data.find((8).to_bytes(8, "little"), seven + 1)
        self.overwrite(path, seven + 48, b"~~~~")  # its KL
        found = self.scout("check", "runs/g", code=1).stdout
        self.assertIn("29 ledger rows, 1 damaged", found)
        self.assertIn("damaged ledger " + os.path.relpath(path, os.path.join(self.dir, "runs/g/store")), found)

    def test_check_fails_when_a_folder_cannot_be_listed(self):
        self.scout("run", "g.yaml")
        ledger = os.path.join(self.dir, "runs/g/store/ledger")
        shutil.rmtree(ledger)
        self.assertIn("13 objects, 0 damaged; 0 ledger rows", self.scout("check", "runs/g").stdout)
        open(ledger, "w", encoding="utf-8").close()
        self.assertIn("store/ledger': Not a directory", self.scout("check", "runs/g", code=1).stderr)

    def test_want_of_memory_for_a_graph_is_a_resource_error(self):
        def little():
            resource.setrlimit(resource.RLIMIT_AS, (120 << 20, 120 << 20))

        if subprocess.run([SCOUT, "--version"], preexec_fn=little, capture_output=True, check=False).returncode:
            self.skipTest("the program itself takes more")
        self.write("large.yaml", "scout: 1\nname: [" + "a," * 900000 + "]\n")
        self.assertIn("out of memory", self.scout("graph", "large.yaml", code=3, preexec_fn=little).stderr)

    def test_output_that_cannot_be_written_is_an_error(self):
        def to_full(*words):
            with open("/dev/full", "w", encoding="utf-8") as full:
                return subprocess.run([SCOUT, *words], cwd=self.dir, stdout=full, stderr=subprocess.PIPE, text=True,
                                      timeout=20, check=False)

        for words in (("--help",), ("nodes",), ("plan", "g.yaml"), ("graph", "g.yaml"), ("run", "g.yaml")):
            done = to_full(*words)
            self.assertEqual(done.returncode, 3, words)
            self.assertIn("cannot write to the standard output", done.stderr)
        self.assertEqual(to_full("plan", "missing.yaml", "--json").returncode, 2)
        self.write("slow.yaml", "scout: 1\nname: slow\nnodes:\n  s: {type: needy, with: {ms: 20000}}\n")
        with subprocess.Popen([SCOUT, "run", "slow.yaml"], cwd=self.dir, stdout=subprocess.DEVNULL) as p:
            time.sleep(0.5)
            self.assertEqual(to_full("status", "runs/slow", "--watch").returncode, 3)
            p.kill()

    def test_graph_prints_dot(self):
        dot = self.scout("graph", "g.yaml", "--format", "dot").stdout
        self.assertIn('"p" -> "r"', dot)
        self.assertIn('"v" -> "p" [label="a"]', dot)

    def test_nodes_lists_and_describes_types(self):
        self.assertIn("  sum ", self.scout("nodes").stdout)
        text = self.scout("nodes", "value").stdout
        self.assertIn("with  speed", text)
        self.assertIn("not in the key", text)
        value, = self.events("nodes", "value")
        self.assertEqual([o["name"] for o in value["outputs"]], ["a", "b"])
        params = {p["name"]: p for p in value["params"]}
        self.assertEqual((params["extra"]["type"], params["extra"]["many"]), ("float", True))
        self.assertFalse(params["speed"]["in_key"])
        self.assertTrue(all("types" in p for p in self.events("nodes", "sum")[0]["ports"]))

    def test_graph_and_explain_have_json(self):
        nodes = {e["node"]: e for e in self.events("graph", "g.yaml")}
        self.assertEqual(nodes["p"]["inputs"], [{"port": "in", "node": "v", "output": "a"}])
        self.assertEqual(nodes["total"]["type"], "sum")
        explained, = self.events("explain", "g.yaml", "total")
        self.assertEqual(explained["state"], "run")
        self.assertEqual(len(explained["key"]), 64)
        self.assertIn(explained["key"], explained["text"])

    def test_shared_store_is_reused_by_another_run(self):
        self.scout("run", "g.yaml", "--dir", "a", "--store", "shared")
        self.assertIn("reused 5 of 5", self.scout("run", "g.yaml", "--dir", "b", "--store", "shared").stdout)
        self.assertIn("13 objects, 0 damaged", self.scout("check", "b").stdout)

    def test_run_goes_on_in_the_store_that_the_run_used_last(self):
        self.scout("run", "g.yaml", "--dir", "a", "--store", "shared")
        self.assertIn("0 to run, 5 to reuse", self.scout("plan", "g.yaml", "--dir", "a").stdout)
        self.assertIn("reused 5 of 5", self.scout("run", "g.yaml", "--dir", "a").stdout)
        self.assertFalse(os.path.exists(os.path.join(self.dir, "a/store")))
        os.rename(os.path.join(self.dir, "shared"), os.path.join(self.dir, "moved"))
        for words in (("plan", "g.yaml", "--dir", "a"), ("run", "g.yaml", "--dir", "a"), ("check", "a")):
            self.assertRegex(self.scout(*words, code=2).stderr,
                             "a/store.path' says .*shared', which is not there: .*--store")
        self.assertIn("reused 5 of 5", self.scout("run", "g.yaml", "--dir", "a", "--store", "moved").stdout)
        self.assertIn("0 to run, 5 to reuse", self.scout("plan", "g.yaml", "--dir", "a").stdout)
        self.assertIn("reused 0 of 5", self.scout("run", "g.yaml", "--dir", "a", "--store", "a/store").stdout)
        self.assertFalse(os.path.exists(os.path.join(self.dir, "a/store.path")))

    def test_devices_lists_what_there_is_and_what_this_build_can_use(self):
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        text = self.scout("devices", env=hidden).stdout.splitlines()
        self.assertRegex(text[0], r"^machine: \d+ (core|hardware thread)s?, \d+ NUMA nodes?, ")
        self.assertRegex(text[1], r"^cpu: kernels cpu \w+; this machine can run plain")
        self.assertRegex(text[2], r"^build: (no )?CUDA")
        self.assertRegex(text[3], r"^no accelerator: .")
        self.assertEqual(len(text), 4)
        events = [json.loads(x) for x in self.scout("devices", "--json", env=hidden).stdout.splitlines()]
        kinds = [e["event"] for e in events]
        self.assertEqual([k for k in kinds if k != "kernels"], ["machine", "build", "no_device"])
        self.assertEqual(sum(e.get("chosen", False) for e in events), 1)
        self.assertGreaterEqual(events[0]["units"], 1)
        self.assertEqual(self.scout("--version").stdout.splitlines()[1], text[2][len("build: "):])

    def test_formats_lists_what_each_server_makes_of_them(self):
        events = [json.loads(x) for x in self.scout("formats", "--json").stdout.splitlines()]
        by_name = {e["name"]: {p["name"]: p for p in e["serving"]} for e in events}
        bits = {e["name"]: e["bits"] for e in events}
        self.assertEqual((bits["nvfp4_a16"], bits["mxfp4"], bits["bf16"]), (4.5 + 32 / 4096**2, 4.25, 16))
        self.assertEqual(by_name["nvfp4"]["vllm-hopper"]["instead"], "nvfp4_a16")
        self.assertTrue(by_name["nvfp4"]["vllm-blackwell"]["offered"])
        self.assertEqual(by_name["fp8_block"]["vllm-hopper"]["k_multiple"], 128)
        self.assertFalse(by_name["fp8_block"]["vllm-hopper"]["head"])
        self.assertEqual(by_name["int4_g64"]["any"]["k_multiple"], 64)
        table = self.scout("formats").stdout.splitlines()
        self.assertEqual([row.split()[0] for row in table[1:-1]], [e["name"] for e in events])
        self.assertIn(" use nvfp4_a16 ", [row for row in table if row.startswith("nvfp4 ")][0])
        one = self.scout("formats", "mxfp8").stdout
        self.assertIn("K a multiple of 32, K at least 128, N a multiple of 32, N at least 128\n", one)
        self.assertRegex(one, r"vllm-ampere +not offered: .*; use mxfp8_a16\n")
        self.assertRegex(one, r"stand-ins +fp8 int8 ")
        self.assertEqual(json.loads(self.scout("formats", "int8", "--json").stdout)["name"], "int8")

    def test_auto_goes_on_on_the_cpu_and_run_h5_says_where(self):
        self.write("c.yaml", "scout: 1\nname: c\nnodes:\n  c: {type: compute}\n")
        events = [json.loads(x) for x in self.scout("run", "c.yaml", "--json", "--device", "cpu").stdout.splitlines()]
        done = [e for e in events if e["event"] == "node" and e["state"] == "done"]
        self.assertEqual([e["device"] for e in done], ["cpu"])


if __name__ == "__main__":
    unittest.main()

#!/usr/bin/env python3
"""`scout audit` on small runs of the whole pipeline: of one that ended, one that was killed, and one whose results are
damaged. What it prints is compared with what the run itself said.

usage: audit.py SCOUT ROOT
"""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

SCOUT, ROOT = (os.path.abspath(p) for p in sys.argv[1:3])
del sys.argv[1:]

GRAPH = """scout: 1
name: audited
extends: %s/graphs/quickstart.yaml
params: {calibration: 4, selection: 12, report: 4, window: 64, rounds: 2, proposals: 6, moves: 24}
""" % ROOT


class Audit(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="scout-audit-")
        with open(os.path.join(cls.dir, "g.yaml"), "w", encoding="utf-8") as f:
            f.write(GRAPH)
        cls.log = cls.scout("run", "g.yaml", "--dir", "whole").stdout

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.dir, ignore_errors=True)

    @classmethod
    def scout(cls, *words, code=0):
        done = subprocess.run([SCOUT, *words], cwd=cls.dir, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != code:
            raise AssertionError(f"{words}: exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}")
        return done

    def events(self, *words, code=0):
        return [json.loads(line) for line in self.scout("audit", *words, "--json", code=code).stdout.splitlines()]

    def of(self, events, event, node):
        return [e for e in events if e["event"] == event and e["node"] == node]

    def test_every_candidate_is_told_with_its_origin(self):
        events = self.events("whole")
        for node in ("propose.1", "measure.1", "propose.2", "measure.2", "select", "polish", "confirm"):
            rows = self.of(events, "candidate", node)
            self.assertEqual([r["id"] for r in rows], list(range(len(rows))), node)
            self.assertTrue(all(r["origin"] and r["bytes"] > 0 and 4 < r["bpp"] <= 16 for r in rows), node)
            self.assertEqual(all("kl_mean" in r and r["numeric"] for r in rows), not node.startswith("propose"), node)
        origins = {r["origin"] for r in self.of(events, "candidate", "measure.1")}
        self.assertTrue({"uniform", "archive"} <= origins <= {"uniform", "archive", "flip", "swap"}, origins)
        proposed = [(r["origin"], r["bytes"]) for r in self.of(events, "candidate", "propose.2")]
        self.assertEqual([(r["origin"], r["bytes"]) for r in self.of(events, "candidate", "measure.2")], proposed)

    def test_dominance_moves_and_comparisons_are_told(self):
        events = self.events("whole")
        rows = self.of(events, "candidate", "select")
        for r in rows:
            winner = rows[r["dominated_by"]] if r["dominated_by"] >= 0 else None
            self.assertTrue(not winner or (winner["bytes"] <= r["bytes"] and winner["kl_mean"] <= r["kl_mean"]))
        moves, tried = self.of(events, "move", "polish"), self.of(events, "candidate", "polish")
        (said,) = re.findall(r"(\d+) of (\d+) moves accepted, (\d+) given up early", self.log)
        self.assertEqual([sum(m["accepted"] for m in moves), len(moves), sum(m["look"] >= 0 for m in moves)],
                         [int(x) for x in said])
        self.assertEqual([m["candidate"] for m in moves], [c["id"] for c in tried[1:]])
        for m in moves:
            row = tried[m["candidate"]]
            self.assertEqual(m["look"] >= 0, row["dropped_at"] >= 0)
            self.assertEqual(m["kl_after"], row["kl_mean"])  # null where it was given up
            self.assertRegex(m["unit"], r"^model\.layers\.\d\.")
            self.assertIn(m["to"], ("nvfp4", "nvfp4_a16", "fp8", "bf16"))
            self.assertEqual(m["unit2"] is None, m["units2"] == 0)
        compared = self.of(events, "comparison", "confirm")
        self.assertEqual(compared[-1]["name"], "L1 knapsack")
        choice, = self.of(events, "choice", "confirm")
        self.assertEqual(choice["chosen"] == 0, "the choice stands" in self.log)
        self.assertEqual(events[-1]["event"], "result")
        self.assertEqual(events[-1]["rows"], len(events) - 1)
        self.assertEqual(events[-1]["unreadable"], 0)

    def test_the_text_is_a_table_a_reader_can_follow(self):
        text = self.scout("audit", "whole").stdout
        for line in ("measure.1 (measure); numeric: fp32 cpu\n", "select (select); numeric: fp32 cpu; chosen_by: knee",
                     "  comparisons at equal bytes: "):
            self.assertIn(line, text)
        self.assertRegex(text, r"\n    id +origin +bytes +bpp +KL ")
        self.assertRegex(text, r"\n    (flip|swap|block) .* accepted\n" if self.accepted() else r"\n    (flip|swap)")
        self.assertRegex(text, r"graph audited: (\d+) of \1 nodes have a result\n$")
        self.assertFalse([line for line in text.splitlines() if line != line.rstrip()])
        only = self.scout("audit", "whole", "--node", "confirm").stdout
        self.assertTrue(only.startswith("confirm (confirm)") and "polish (" not in only)

    def accepted(self):
        return not re.search(r"\b0 of \d+ moves accepted", self.log)

    def test_an_unknown_node_is_refused_with_the_nearest(self):
        err = self.scout("audit", "whole", "--node", "polsh", code=2).stderr
        self.assertIn("the run has no node 'polsh'; did you mean 'polish'?", err)

    def test_a_run_is_told_while_it_goes_and_after_it_was_killed(self):
        with subprocess.Popen([SCOUT, "run", "g.yaml", "--dir", "cut", "--threads", "1"], cwd=self.dir,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as p:
            deadline, live = time.monotonic() + 200, []
            while not self.of(live, "candidate", "sweep") and time.monotonic() < deadline:
                time.sleep(0.05)
                if os.path.exists(os.path.join(self.dir, "cut", "run.h5")):
                    live = self.events("cut")
            p.kill()
        self.assertTrue(self.of(live, "candidate", "sweep"))
        files = sorted(glob.glob(os.path.join(self.dir, "cut", "**"), recursive=True))
        after = self.events("cut")
        self.assertEqual(sorted(glob.glob(os.path.join(self.dir, "cut", "**"), recursive=True)), files)
        whole = self.events("whole")
        self.assertEqual(self.of(after, "candidate", "sweep"), self.of(whole, "candidate", "sweep"))
        self.assertLess(after[-1]["with_result"], whole[-1]["with_result"])
        self.scout("run", "g.yaml", "--dir", "cut")
        self.assertEqual(self.events("cut"), whole)

    def test_a_damaged_result_is_named_and_the_others_are_told(self):
        shutil.copytree(os.path.join(self.dir, "whole"), os.path.join(self.dir, "damaged"))
        key = [e["key"] for e in map(json.loads, self.scout("status", "damaged", "--json").stdout.splitlines())
               if e.get("node") == "select"][0]
        path = os.path.join(self.dir, "damaged", "store", "objects", key[:2], key + ".h5")
        os.chmod(path, 0o644)
        with open(path, "r+b") as f:
            f.seek(-3, os.SEEK_END)
            f.write(b"~~~")
        done = self.scout("audit", "damaged", code=1)
        self.assertIn("node 'select': its result is damaged or gone from the store", done.stderr)
        self.assertIn("polish (polish)", done.stdout)
        self.assertNotIn("select (select)", done.stdout)
        self.assertTrue(os.path.exists(path))  # it only reads


if __name__ == "__main__":
    unittest.main()

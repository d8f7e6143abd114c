#!/usr/bin/env python3
"""Commands that look at attention or prepare it: calibrate, replay, compare, inspect, tournament, doctor."""
import json
import pathlib
import re
import resource
import signal

from harness import CliTest, TINY, lacuna, main, stopped


class LooksTest(CliTest):
    def test_methods_and_trace_are_json(self):
        listed = json.loads(lacuna("methods", "--json").stdout)
        self.assertIn("xattention", [m["name"] for m in listed["methods"]])
        self.assertIn("haste", [p["name"] for p in listed["presets"]])
        trace = self.dir / "trace.json"
        result = lacuna("generate", *TINY, "-a", "xattention:top_p=0.5", "--dense-steps", 1, "--no-decode", "--latents",
                        self.dir / "l.safetensors", "--trace", trace)
        self.assertEqual(result.returncode, 0, result.stderr)
        entries = json.loads(trace.read_text())["calls"]
        self.assertEqual(len(entries), 3 * 2 * 4)  # steps x branches x layers
        self.assertEqual({e["method"] for e in entries}, {"dense", "xattention"})
        self.assertIn("dense-steps", {e["reason"] for e in entries})

    def test_presets(self):
        self.assertRegex(lacuna("methods").stdout, "svg-wan +--attention svg:density=0.3 --dense-steps 20%")
        self.fails(1, "generate", *TINY, "-a", "hast", "-o", self.dir / "a.mp4", says="methods dense.*presets haste")
        trace = self.dir / "trace.json"
        for extra, dense_layers in ((), {0, 1, 2, 3}), (("--dense-layers", "0%"), set()):
            result = lacuna("generate", *TINY, "-a", "blasst", "--dense-steps", 1, *extra, "--no-decode", "--latents",
                            self.dir / "l.safetensors", "--trace", trace)
            self.assertEqual(result.returncode, 0, result.stderr)
            entries = json.loads(trace.read_text())["calls"]
            self.assertEqual({e["layer"] for e in entries if e["reason"] == "dense-layers"}, dense_layers)
            self.assertEqual({e["step"] for e in entries if e["reason"] == "dense-steps"}, {0})

    def calibrate(self, method, *extra, name="c", **kwargs):
        prompts = self.dir / "prompts.txt"
        prompts.write_text("# two of them\na red ball\n\n  a blue box on a table  \n")
        return ["calibrate", "--method", method, "--synthetic", "tiny", "-W", 96, "-H", 96, "--frames", 9, "--steps", 4,
                "--no-prompt-cache", "--prompts", prompts, *extra, "-o", self.dir / f"{name}.profile.json"]

    def test_calibrate_and_generate(self):
        host = "xattention:block=16,stride=4,top_p=0.7"
        size = ["--synthetic", "tiny", "-W", 96, "-H", 96, "--frames", 9, "--no-prompt-cache", "-p", "x"]
        for method, extra, runs in (
                ("haste", ["--host", host, "--candidates", "0.3,0.5,1", "--intervals", 2, "--dense-steps", "25%"], "xattention"),
                ("recall", ["--host", "dense", "--recall", 0.9], "dense"),
                ("calibatt", ["--block", 16, "--energy", "0.3,0.6,4", "--similarity", 0.5], "calibatt")):
            made = lacuna(*self.calibrate(method, *extra, name=method))
            self.assertEqual(made.returncode, 0, made.stderr)
            profile = self.dir / f"{method}.profile.json"
            measured = json.loads((self.dir / f"{method}.measurements.json").read_text())
            self.assertEqual((measured["method"], measured["prompts"]), (method, 2))
            self.assertFalse(pathlib.Path(f"{profile}.progress.safetensors").exists())
            trace = self.dir / "trace.json"
            result = lacuna("generate", *size, "--steps", 4, "--profile", profile, "--no-decode", "--latents",
                            self.dir / "l.safetensors", "--trace", trace)
            self.assertEqual(result.returncode, 0, result.stderr)
            entries = json.loads(trace.read_text())["calls"]
            self.assertEqual({e["method"] for e in entries} - {"dense"}, {runs} - {"dense"})
            if method != "recall":
                self.assertLess(min(e["qk_density"] for e in entries), 1.0)
            again = lacuna("generate", *size, "--steps", 3, "--profile", profile, "-o", self.dir / "a.y4m")
            self.assertEqual(again.returncode, 1)
            self.assertRegex(again.stderr, "profile: made for steps: 4, this run has 3")
        haste = json.loads((self.dir / "haste.measurements.json").read_text())
        self.assertLessEqual(haste["density"], haste["budget"] + 1e-8)
        self.assertLessEqual(haste["error"], haste["shared"]["error"])

    def test_interrupted_calibration_goes_on(self):
        extra = ["--host", "xattention:block=16,stride=4", "--candidates", "0.3,0.6,1", "--intervals", 4]
        self.assertEqual(lacuna(*self.calibrate("haste", *extra, name="whole")).returncode, 0)
        args = self.calibrate("haste", *extra, name="part")
        progress = self.dir / "part.profile.json.progress.safetensors"
        for draws in (1, 30, 60):  # before anything was measured, and twice while it is
            made = stopped(args, draws, signal.SIGINT)
            self.assertEqual((made.returncode, made.stdout), (130, ""), made.stderr)
            self.assertIn(f"goes on from {progress}", made.stderr.splitlines()[-1])
            refused = lacuna(*self.calibrate("haste", *extra, "--seed", 5, name="part"))
            self.assertEqual(refused.returncode, 1)
            self.assertRegex(refused.stderr, "other settings")
        made = lacuna(*args)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertIn(f"going on from {progress}", made.stderr)
        self.assertFalse(progress.exists())
        for kind in ("profile", "measurements"):
            self.assertEqual((self.dir / f"part.{kind}.json").read_bytes(), (self.dir / f"whole.{kind}.json").read_bytes())

    def test_a_calibration_knows_its_lora_by_content(self):
        style = self.lora("style.safetensors")
        def args(file):
            return self.calibrate("haste", "--host", "xattention:block=16,stride=4", "--candidates", "0.3,0.6,1", "--lora", file)
        self.assertEqual(stopped(args(style), 30, signal.SIGINT).returncode, 130)
        moved = style.rename(self.dir / "moved.safetensors")
        self.lora("style.safetensors", scale=0.1)
        for file in (style, f"{moved}:0.5"):
            self.assertRegex(lacuna(*args(file)).stderr, "other settings")
        made = lacuna(*args(moved))
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertIn("going on from", made.stderr)

    def test_every_prompt_of_a_calibration_has_its_own_seed(self):
        """Seed + 1 for the second prompt, also where a sampler draws again after every step."""
        def heads(name, prompts, seed):
            listed = self.dir / f"{name}.txt"
            listed.write_text("\n".join(prompts))
            made = lacuna(*self.calibrate("haste", "--host", "xattention:block=16,stride=4,top_p=0.7", "--candidates", 0.3,
                                          "--intervals", 4, "--sampler", "renoise", "--seed", seed, "--prompts", listed, name=name))
            self.assertEqual(made.returncode, 0, made.stderr)
            return json.loads((self.dir / f"{name}.measurements.json").read_text())["heads"]
        both = heads("both", ["a red ball", "a blue box"], 7)
        alone = heads("first", ["a red ball"], 7), heads("second", ["a blue box"], 8)
        self.assertEqual({head["prompt"] for head in both}, {0, 1})
        for i, head in enumerate(both):
            self.assertEqual(head["steps"], [0, 1, 2, 3])
            self.assertGreater(max(head["error"]), 0)
            self.assertEqual(head["error"], alone[head["prompt"]][i]["error"], head)

    def test_bad_calibrations(self):
        left = ["prompts.txt"]
        self.fails(2, *self.calibrate("magic"), leaves=left)
        self.fails(2, "calibrate", "--method", "haste", leaves=left)
        for method, extra, says in (
                ("calibatt", ["--host", "sparge"], "--host: beside --method calibatt, expected haste or recall"),
                ("calibatt", ["--intervals", 2], "--intervals: .*haste or recall"),
                ("recall", ["--candidates", "0.5"], "--candidates: beside --method recall, expected haste"),
                ("recall", ["--budget", "0.2"], "--budget"), ("recall", ["--vote-share", "0.1"], "--vote-share: .*calibatt"),
                ("haste", ["--quantile", "0.9"], "--quantile: .*recall"), ("haste", ["--energy", "0.3,0.6,4"], "--energy")):
            self.fails(2, *self.calibrate(method, *extra), leaves=left, says=says)
        for method, extra, says in (
                ("haste", ["--host", "nothing"], "xattention"), ("haste", ["--candidates", "2"], "top_p"),
                ("haste", ["--parameter", "stride"], "stride"), ("haste", ["--host", "fixed"], "host fixed"),
                ("haste", ["--steps", "0"], "steps"), ("haste", ["-W", "100"], "multiples"),
                ("recall", ["--quantile", "2"], "quantile"), ("recall", ["--recall", "7"], "r"),
                ("calibatt", ["--vote-share", "0"], "share"), ("calibatt", ["--dense-steps", "77"], "77")):
            self.fails(1, *self.calibrate(method, *extra), leaves=left, says=says)
        (self.dir / "empty.txt").write_text("# nothing\n")
        self.fails(1, *self.calibrate("haste", "--prompts", self.dir / "empty.txt"), says="holds none",
                   leaves=["empty.txt", *left])
        self.fails(1, *self.calibrate("haste", "--prompts", self.dir / "none.txt"), says="none.txt", leaves=["empty.txt", *left])

    def test_record_and_replay(self):
        record = self.dir / "qkv.safetensors"
        made = lacuna("generate", *TINY, "--record", record, "--record-sites", "steps=1;layers=0,2", "--no-decode",
                      "--latents", self.dir / "l.safetensors")
        self.assertEqual(made.returncode, 0, made.stderr)
        cases = ["-a", "xattention:block=16,stride=4,top_p=0.5", "-a", "adaspa:block=8", "--skip", "recall:r=0.5"]
        result = lacuna("replay", record, *cases, "--repeats", 1, "--density", 0.5, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(report["calls"], 2)
        rows = {row["attention"]: row for row in report["tables"][0]["rows"]}
        self.assertEqual(len(rows), 4)
        self.assertLess(rows[cases[1]]["recall"], 1.0)
        self.assertGreater(rows[cases[1]]["recall"], rows[cases[1]]["qk_density"] * 0.9)
        self.assertLess(rows["dense"]["rel_l1"], 0.02)
        self.assertIn("speed-up", lacuna("replay", record, *cases, "--repeats", 1).stdout)
        left = ["l.safetensors", "qkv.safetensors"]
        self.fails(1, "replay", self.dir / "l.safetensors", leaves=left, says="not a recording")
        self.fails(1, "replay", record, "-a", "magic", leaves=left, says="xattention")
        self.fails(1, "replay", "-a", "magic", record, "--json", leaves=left, says="xattention")
        self.fails(1, "decode", "--model", self.dir / "none", self.dir / "l.safetensors", "-o", self.dir / "a.y4m", leaves=left,
                   says="none: no such file")
        self.fails(1, "generate", *TINY, "--record", self.dir / "none" / "q.safetensors", leaves=left)
        self.fails(1, "generate", *TINY, "--record", record, "--record-sites", "step=1", leaves=left, says="steps=LIST")
        self.fails(1, "generate", *TINY, "--record", self.dir / "x", "--record-sites", "layers=99", "--no-decode", "--latents",
                   self.dir / "l.safetensors", leaves=left, says="layer 99")
        for sites in ([], ["--record-sites", "steps=1"]):  # of a run that is done
            self.fails(1, "generate", "--synthetic", "tiny", "--resume", self.dir / "l.safetensors", "--record", self.dir / "x",
                       *sites, "-o", self.dir / "a.y4m", leaves=left, says="goes on at step 3 of 3, behind .* choose")

    def test_compare(self):
        small = ["compare", *TINY, "-W", 64, "-H", 64, "--frames", 5, "--steps", 2, "--guidance", 1]
        sparse, window = "xattention:block=8,stride=4,top_p=0.3", "window --dense-steps 1"
        video, page = self.dir / "side.mp4", self.dir / "report.html"
        made = lacuna(*small, "--seeds", 2, "-a", sparse, "--candidate", window, "-o", video, "--report", page, "--json")
        self.assertEqual(made.returncode, 0, made.stderr)
        report = json.loads(made.stdout)
        rows = {row["name"]: row for row in report["sections"][0]["rows"]}
        self.assertEqual(list(rows)[:2], [sparse, window])
        self.assertTrue(all(row.get("floor") for row in list(rows.values())[2:]))
        self.assertGreater(rows[sparse]["latents_error"], 0.0)
        self.assertIn("bit for bit", json.dumps(report))
        self.assertRegex(report["command"], "^lacuna compare .*--seeds 2")
        embedded = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page.read_text(), re.S)
        drawn = json.loads(embedded[1])
        for section in drawn["sections"]:
            for clip in section.get("clips", []):
                self.assertTrue(clip.pop("image").startswith("data:image/png;base64,iVBOR"))
        self.assertEqual(drawn, report)
        self.assertEqual(video.read_bytes()[4:8], b"ftyp")
        told = lacuna("info", video, "--json")
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assertEqual(json.loads(told.stdout), {"command": report["command"]})
        text = lacuna(*small, "-a", sparse, "--no-floor").stdout
        self.assertRegex(text, "Quality against dense")
        self.assertNotIn("noise floor", text)

    def test_a_run_that_is_all_dense_says_why(self):
        for extra, note in ((["-a", "blasst"], "note: every call ran dense: dense-layers, dense-steps; see --explain\n"),
                            (["-a", "window", "--min-tokens", 999], "note: every call ran dense: min-tokens; see --explain\n"),
                            (["-a", "dense"], ""), (["-a", "window"], ""), (["-a", "cef"], "")):
            made = lacuna("generate", *TINY, *extra, "-o", self.dir / "a.y4m")
            self.assertEqual(made.returncode, 0, made.stderr)
            self.assertEqual("every call ran dense" in made.stderr, bool(note), made.stderr)
            self.assertIn(note, made.stderr)

    def test_bad_comparisons(self):
        self.fails(2, "compare", *TINY, says="no candidate")
        self.fails(2, "compare", "--synthetic", "tiny", "-a", "window", says="no prompt")
        for extra, says in ((["--seeds", "0"], "seeds"), (["-a", "window"], "given twice"),
                            (["--candidate", "radial --frames 9"], "--frames"), (["--candidate", " "], "empty")):
            self.fails(2, "compare", *TINY, "-a", "window", *extra, says=says)
        for extra, says in ((["-a", "magic"], "xattention"), (["-a", "dense"], "'dense'"), (["-W", "100"], "multiples"),
                            (["--fps", 0], "fps: 0, expected 1"), (["--candidate", "window --profile none.json"], "none.json"),
                            (["-o", self.dir / "none" / "a.mp4"], "folder"), (["-o", self.dir / "a.avi"], r"\.mp4"),
                            (["--report", self.dir / "none" / "a.html"], "none"), (["--prompt-file", "none.txt"], "none.txt")):
            self.fails(1, "compare", *TINY, "-a", "window", *extra, says=says)

    def test_files_of_one_name_are_refused(self):
        a = self.dir / "a.mp4"
        for report in (a, f"{self.dir}/./a.mp4"):
            self.fails(2, "compare", *TINY, "-a", "window", "-o", a, "--report", report, says="--output and --report: both are ")
            self.fails(2, "doctor", *TINY, "-o", a, "--report", report, says="--output and --report: both are ")
        self.fails(2, *self.calibrate("calibatt"), "-o", self.dir / "c.safetensors", leaves=["prompts.txt"],
                   says="--output and its masks: both are ")

    def test_an_input_is_not_an_output(self):
        text, other = self.dir / "c.measurements.json", self.dir / "prompts.txt"
        text.write_text("a red ball\n")
        calibrate = [*self.calibrate("haste"), "--prompts", text]
        compare = ["compare", *TINY, "-a", "window"]
        for words, says in (
                ([*calibrate, "-o", text], "--output and --prompts: both are .*c.measurements.json"),
                (calibrate, "its measurements and --prompts: both are "),
                ([*compare, "--prompt-file", text, "--report", text], "--report and --prompts: both are "),
                ([*compare, "--candidate", f"--profile {other}", "--report", other], "--report and --profile: both are "),
                (["inspect", text, other, "--report", f"{self.dir}/./prompts.txt"], "--report and files: both are .*prompts.txt"),
                (["tournament", text, "--report", text], "--report and recording: both are "),
                (["doctor", text, other, "-o", other], "--output and recording: both are "),
                (["doctor", *TINY[:-2], "--prompts", text, "--report", text], "--report and --prompts: both are ")):
            self.fails(2, *words, leaves=["c.measurements.json", "prompts.txt"], says=says)
        self.assertEqual(text.read_text(), "a red ball\n")

    def test_masks_are_saved_and_replayed(self):
        masks, latents = self.dir / "m.safetensors", self.dir / "l.safetensors"
        def made(name, *extra):
            trace, manifest = self.dir / f"{name}.json", self.dir / f"{name}.manifest.json"
            result = lacuna("generate", *TINY, *extra, "-o", self.dir / f"{name}.y4m", "--trace", trace, "--manifest", manifest)
            self.assertEqual(result.returncode, 0, result.stderr)
            frames = (self.dir / f"{name}.y4m").read_bytes()
            return frames, json.loads(trace.read_text()), json.loads(manifest.read_text())
        sparse = ["-a", "svg2:top_p=0.5,q_clusters=4,k_clusters=8,refresh=drift,delta=0.2"]
        first, trace, manifest = made("a", *sparse, "--save-masks", masks)
        again, replayed, manifest2 = made("b", "--replay-masks", masks)
        self.assertEqual(first, again)
        self.assertEqual({c["method"] for c in replayed["calls"]}, {"replay"})
        self.assertEqual(sum(c["heads_refreshed"] for c in replayed["calls"]), 0)
        self.assertEqual(manifest["masks"], manifest2["masks"])
        self.assertEqual(manifest["output"], {"file": "a.y4m", "bytes": (self.dir / "a.y4m").stat().st_size})
        self.assertEqual(manifest["rules"], trace["rules"])
        self.assertEqual((manifest["calls"], manifest["tokens"]), (len(trace["calls"]), 72))
        _, _, other = made("c", "--replay-masks", masks, "--backend", "ref")
        self.assertEqual(manifest["masks"], other["masks"])
        self.assertEqual(other["machine"]["backend"], "ref")
        left = sorted(p.name for p in self.dir.iterdir())
        for extra, says in ((["--steps", 2], "masks: made for steps: 3, this run has 2"), (["-W", 128], "masks: made for grid"),
                            (["-a", "radial"], "leave out --attention"), (["--replay-masks", latents], "l.safetensors"),
                            (["--replay-masks", self.dir / "a.json"], "a.json")):
            self.fails(1, "generate", *TINY, "--replay-masks", masks, *extra, "-o", self.dir / "d.y4m", leaves=left, says=says)
        self.fails(1, "generate", "--synthetic", "wan2.1-1.3b", "-W", 96, "-H", 64, "--frames", 9, "--steps", 3, "-p", "x",
                   "--replay-masks", masks, "-o", self.dir / "d.y4m", leaves=left, says="masks: made for model")
        self.fails(1, "generate", *TINY, "-a", "dense", "--skip", "recall:r=0.9", "--save-masks", self.dir / "n.safetensors",
                   "--no-decode", "--latents", self.dir / "a.y4m", leaves=left, says="under a skip rule")

    def test_a_run_goes_on_with_the_masks_it_began_with(self):
        masks, latents, out = self.dir / "m.safetensors", self.dir / "l.safetensors", self.dir / "a.y4m"
        def saved(top_p):
            made = lacuna("generate", *TINY, "-a", f"svg2:top_p={top_p},q_clusters=4,k_clusters=8", "--save-masks", masks,
                          "--no-decode", "--latents", self.dir / "x.safetensors")
            self.assertEqual(made.returncode, 0, made.stderr)
            return masks.read_bytes()
        first = saved(0.5)
        began = lacuna("generate", *TINY, "--replay-masks", masks, "--no-decode", "--latents", latents)
        self.assertEqual(began.returncode, 0, began.stderr)
        content = json.loads(lacuna("info", latents, "--json").stdout)["request"]["policy_content"]
        self.assertRegex(content, "^[0-9a-f]{16}$")
        self.assertNotEqual(saved(0.9), first)
        left = ["l.safetensors", "m.safetensors", "x.safetensors"]
        whole = [*TINY, "--replay-masks", masks]
        for words in (["--synthetic", "tiny"], whole):
            self.fails(1, "generate", *words, "--resume", latents, "-o", out, leaves=left,
                       says=f"m.safetensors: has content .*began with {content}")
        masks.write_bytes(first)
        for words in (["--synthetic", "tiny"], whole):
            resumed = lacuna("generate", *words, "--resume", latents, "-o", out)
            self.assertEqual(resumed.returncode, 0, resumed.stderr)

    def test_strict_and_explain(self):
        args = ["generate", *TINY, "-a", "xattention:top_p=0.5,block=16,stride=4", "--dense-steps", 1, "--dense-layers", "0"]
        result = lacuna(*args, "--strict", "--explain", "--json", "-o", self.dir / "a.y4m")
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = json.loads(result.stdout)["explain"]
        self.assertEqual([r["why"] for r in rows], ["dense-steps", "dense-layers", ""])
        self.assertEqual((rows[2]["steps"], rows[2]["layers"], rows[2]["branch"]), ([1, 2], [1, 3], "both"))
        self.assertEqual(rows[2]["what"], "xattention:top_p=0.5,stride=4,block=16")
        self.assertEqual((rows[2]["calls"], rows[2]["heads_reused"]), (12, 0))
        (self.dir / "a.y4m").unlink()
        text = lacuna(*args, "--dry-run", "-o", self.dir / "a.y4m").stdout
        self.assertRegex(text, r"1-2 +1-3 +both +12 +- +- +- +-  xattention")
        planned = json.loads(lacuna(*args, "--dry-run", "--json", "-o", self.dir / "a.y4m").stdout)
        self.assertEqual((planned["qk_density"], planned["sample_seconds"]), (None, None))
        self.assertEqual(list(self.dir.iterdir()), [])
        made = lacuna(*self.calibrate("haste", "--host", "xattention:block=16,stride=4", "--candidates", "0.3,1", "--intervals", 2))
        self.assertEqual(made.returncode, 0, made.stderr)
        profile = self.dir / "c.profile.json"
        cut = json.loads(profile.read_text())
        for rule in cut["rules"]:
            rule["match"]["layers"] = [0]
        profile.write_text(json.dumps(cut))
        left = sorted(p.name for p in self.dir.iterdir())
        size = ["--synthetic", "tiny", "-W", 96, "-H", 96, "--frames", 9, "--steps", 4, "--no-prompt-cache", "-p", "x"]
        self.fails(1, "generate", *size, "--profile", profile, "--strict", "-o", self.dir / "a.y4m", leaves=left,
                   says="strict: no rule matches step 0 layer 1")

    def test_inspect(self):
        trace, masks, qkv = self.dir / "t.json", self.dir / "m.safetensors", self.dir / "q.safetensors"
        made = lacuna("generate", *TINY, "-a", "svg:block=16", "--trace", trace, "--save-masks", masks, "--record", qkv,
                      "--record-sites", "steps=0,2;layers=1", "-o", self.dir / "a.y4m")
        self.assertEqual(made.returncode, 0, made.stderr)
        for files, shows in (([trace], "What ran where"), ([masks], "Density per head"), ([trace, masks], "Heads"),
                             ([qkv], "Density that recall needs")):
            self.assertIn(shows, lacuna("inspect", *files).stdout)
            report = json.loads(lacuna("inspect", *files, "--json").stdout)
            self.assertEqual(report["lacuna_report"], 1)
        # radial looks at no data: the masks of another seed are the same.
        files = {}
        for name, extra in (("a", ["--seed", 1]), ("b", ["--seed", 2]), ("c", ["--seed", 2])):
            files[name] = [self.dir / f"{name}.json", self.dir / f"{name}.st"]
            made = lacuna("generate", *TINY, "-a", "radial", *extra, "--trace", files[name][0], "--save-masks", files[name][1],
                          "-o", self.dir / "a.y4m")
            self.assertEqual(made.returncode, 0, made.stderr)
        (a, _), (b, b_masks), (c, c_masks) = files.values()
        self.fails(1, "inspect", a, b_masks, leaves=sorted(p.name for p in self.dir.iterdir()),
                   says="run [0-9a-f]{16}, the masks of run .*seed.*they are of two runs")
        for both in ((b, b_masks), (b, c_masks)):
            self.assertEqual(lacuna("inspect", *both).returncode, 0)
        replay = self.dir / "d.json"
        made = lacuna("generate", *TINY, "--replay-masks", b_masks, "--trace", replay, "-o", self.dir / "a.y4m")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(lacuna("inspect", replay, b_masks).returncode, 0)
        page = self.dir / "r.html"
        self.assertEqual(lacuna("inspect", masks, trace, "--report", page).returncode, 0)
        self.assertIn("report-data", page.read_text())
        left = sorted(p.name for p in self.dir.iterdir())
        self.fails(1, "inspect", self.dir / "a.y4m", leaves=left)
        self.fails(1, "inspect", self.dir / "none", leaves=left, says="none")
        self.fails(1, "inspect", trace, trace, leaves=left, says="second trace")
        self.fails(2, "inspect", leaves=left)
        data = masks.read_bytes()
        for n in (0, 7, 100, len(data) // 2, len(data) - 1):
            masks.write_bytes(data[:n])
            self.fails(1, "inspect", masks, leaves=left)
        masks.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        self.fails(1, "inspect", masks, leaves=left, says="has hash")
        trace.write_text(trace.read_text().replace('"lacuna_trace": 1', '"lacuna_trace": 9'))
        self.fails(1, "inspect", trace, leaves=left, says="trace version 9, expected 1")

    def record(self, *extra):
        record = self.dir / "qkv.safetensors"
        made = lacuna("generate", *TINY, "--record", record, "--record-sites", "steps=1-2;layers=0,2", "--no-decode", "--latents",
                      self.dir / "l.safetensors", *extra)
        self.assertEqual(made.returncode, 0, made.stderr)
        return record

    def relabel(self, record, **fields):
        """What the recording says of each of its calls."""
        data = record.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        calls = json.loads(header["__metadata__"]["lacuna_recording"])
        header["__metadata__"]["lacuna_recording"] = json.dumps([{**call, **fields} for call in calls])
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        record.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])

    def report_of(self, page, stdout):
        """The page carries exactly what --json printed."""
        found = re.search(r'id="report-data">(.*?)</script>', page.read_text(), re.S)
        self.assertEqual(json.loads(found.group(1)), json.loads(stdout))
        report = json.loads(stdout)
        self.assertEqual(report["lacuna_report"], 1)
        return report

    def test_tournament(self):
        record, page = self.record(), self.dir / "t.html"
        cases = ["-a", "xattention:block=16,stride=4", "-a", "adaspa:block=8", "--skip", "running_max", "--repeats", 1]
        result = lacuna("tournament", record, *cases, "--densities", "0.4,0.6", "--json", "--report", page)
        self.assertEqual(result.returncode, 0, result.stderr)
        report = self.report_of(page, result.stdout)
        self.assertEqual([s["kind"] for s in report["sections"]], ["text", "table", "table", "table", "front", "front"])
        self.assertEqual(report["settings"]["calls"], 4)
        self.assertIn(str(record), report["command"])
        rows = report["sections"][2]["rows"]
        self.assertEqual([r.get("floor") for r in rows[-2:]], [True, True])
        self.assertTrue(any(p["front"] for p in report["sections"][4]["points"]))
        text = lacuna("tournament", *TINY, "-a", "xattention:block=16,stride=4", "--densities", 0.5, "--repeats", 1).stdout
        self.assertRegex(text, "(?s)Counting selection time.*At equal density.*At equal time")
        left = ["l.safetensors", "qkv.safetensors", "t.html"]
        self.fails(2, "tournament", record, "-p", "x", leaves=left, says="no prompt")
        self.fails(2, "tournament", record, "--vae", record, leaves=left, says="no model")
        for command in ("tournament", "doctor"):
            for option in (["--steps", 3], ["-W", 96], ["--seed", 1], ["--guidance", 2], ["--negative-prompt", "x"],
                           ["--timesteps-shifted"], ["--dtype", "f32"]):
                name = "--width" if option[0] == "-W" else option[0]
                self.fails(2, command, record, *option, leaves=left, says=f"recordings: take no {name} beside them")
        self.fails(2, "tournament", record, "--densities", "0", leaves=left)
        self.fails(1, "tournament", record, "-a", "magic", leaves=left, says="xattention")
        self.fails(1, "tournament", record, "--sites", "layers=77", leaves=left, says="layers=77")
        self.fails(1, "tournament", record, "--report", self.dir / "none" / "t.html", leaves=left)
        self.fails(1, "tournament", self.dir / "l.safetensors", leaves=left, says="not a recording")
        record.write_bytes(record.read_bytes()[:-5])
        for command in ("tournament", "doctor"):
            self.fails(1, command, record, leaves=left, says="qkv.safetensors")

    def test_doctor(self):
        method = ["--method", "xattention:block=16,stride=4", "--target", 0.3]
        profile, page = self.dir / "d.profile.json", self.dir / "d.html"
        result = lacuna("doctor", *TINY, *method, "-o", profile, "--check", "--json", "--report", page)
        self.assertEqual(result.returncode, 0, result.stderr)
        report = self.report_of(page, result.stdout)
        self.assertRegex(report["summary"], "pays? here")
        kinds = [s["kind"] for s in report["sections"]]
        self.assertEqual(kinds[:6], ["text", "table", "table", "heatmap", "heatmap", "bars"])
        self.assertEqual(len(report["sections"][1]["rows"]), 4)
        run = lacuna("generate", *TINY, "--profile", profile, "--strict", "--no-decode", "--latents", self.dir / "l.safetensors")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn(f"attention as in {profile} at density", run.stdout)
        profile.unlink()
        # No density of so coarse blocks is that close to dense.
        dense = lacuna("doctor", *TINY, "--method", "xattention:block=64,stride=4", "--target", "1e-6", "--check",
                       "--seconds", 0.5)
        self.assertEqual(dense.returncode, 0, dense.stderr)
        self.assertIn("does not pay here", dense.stdout)
        self.assertIn("check: nothing to run, dense attention is the choice\n", dense.stderr)
        record = self.record()
        text = lacuna("doctor", record, *method)
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertRegex(text.stdout, "(?s)pays? here.*Layers.*What attention costs")
        known = lacuna("doctor", record, *TINY[:-3], *method, "-o", profile)
        self.assertEqual(known.returncode, 0, known.stderr)
        self.assertTrue(profile.exists())
        left = ["d.html", "d.profile.json", "l.safetensors", "qkv.safetensors"]
        self.fails(2, "doctor", record, "-o", profile, leaves=left, says="model of the recording")
        self.fails(2, "doctor", record, *TINY, leaves=left, says="no prompt")
        self.fails(2, "doctor", record, *TINY[:-3], "--dtype", "f32", leaves=left, says="recordings: take no --dtype beside them")
        self.fails(1, "doctor", record, *TINY[:-3], "--steps", 4, leaves=left, says="recording has steps: 3")
        self.fails(1, "doctor", record, "--synthetic", "wan2.1-1.3b", leaves=left, says="recording has layers: 4")
        self.relabel(record, expert=1)
        self.fails(1, "doctor", record, *TINY[:-3], leaves=left,
                   says="recording has expert 1 at step 1, the model and its request 0")
        self.relabel(record, expert=0)
        self.fails(2, "doctor", *TINY[:-1], "", leaves=left, says="no prompt")
        self.fails(1, "doctor", record, "--method", "window", leaves=left, says="moves its density")
        self.fails(1, "doctor", record, "--method", "dense", leaves=left, says="doctor: dense, expected a method")
        self.fails(1, "doctor", record, "--method", "xattention:refresh=drift", leaves=left, says="every_step")
        self.fails(1, "doctor", *TINY, "--dense-steps", "77", leaves=left, says="77")
        (self.dir / "none.txt").write_text("# nothing\n")
        self.fails(1, "doctor", *TINY[:-2], "--prompts", self.dir / "none.txt", leaves=[*left, "none.txt"], says="holds none")

    def test_a_full_disk_does_not_eat_the_result(self):
        def limited():  # no room for a page
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for command, shows in (("compare", "Quality against dense"), ("tournament", "At equal density")):
            made = lacuna(command, *TINY, "-a", "xattention:block=16,stride=4", "--report", self.dir / "a.html",
                          preexec_fn=limited)
            self.assertEqual(made.returncode, 1, made.stderr)
            self.assertIn(shows, made.stdout)
            self.assertEqual(list(self.dir.iterdir()), [])

    def test_interrupted_looks_leave_nothing(self):
        for command in (["compare", "-a", "window", "-o", self.dir / "a.mp4"], ["tournament"],
                        ["doctor", "-o", self.dir / "a.profile.json"]):
            made = stopped([*command, *TINY, "--steps", 1000, "--report", self.dir / "a.html"], 1, signal.SIGINT)
            self.assertEqual((made.returncode, made.stdout), (130, ""), made.stderr)
            self.assertEqual(made.stderr.splitlines()[-1], "stopped; nothing was written")
            self.assertEqual(list(self.dir.iterdir()), [])

    def test_a_layer_that_is_not_there_is_an_error(self):
        for sites, says in (("layers=0,99", "layer 99, expected less than 4"), ("steps=3", "step 3, expected less than 3")):
            for command in ("doctor", "tournament"):
                self.fails(1, command, *TINY, "--sites", sites, says=says)
            self.fails(1, "generate", *TINY, "--record", self.dir / "q.st", "--record-sites", sites, "-o", self.dir / "a.y4m",
                       says=says)


if __name__ == "__main__":
    main()

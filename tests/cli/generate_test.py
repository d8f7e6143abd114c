#!/usr/bin/env python3
"""The command line as a user meets it: runs, what they leave, and one clear line on error."""
import argparse
import json
import os
import pathlib
import re
import resource
import runpy
import shlex
import shutil
import signal
import struct
import subprocess

from harness import CliTest, LACUNA, TINY, lacuna, main, stopped, write_png


class GenerateTest(CliTest):
    def test_output_that_cannot_be_printed_is_an_error(self):
        with open("/dev/full", "w") as full:
            made = subprocess.run([LACUNA, "info", "--synthetic", "tiny", "--json"], stdout=full, stderr=subprocess.PIPE,
                                  text=True)
        self.assertEqual((made.returncode, made.stderr.count("\n")), (1, 1), made.stderr)

    def test_failed_golden_is_json(self):
        case = {"name": 'a "b"', "module": "sampler", "inputs": {"x": {"hash": "x:s", "shape": [4]}},
                "config": {"kind": "unipc", "convention": "diffusers", "num_steps": 4, "shift": 5},
                "expect": {"shape": [5], "tag": "s", "rms": 1.0}}
        goldens = self.dir / "g.json"
        goldens.write_text(json.dumps({"schema": "lacuna-goldens", "version": 1, "cases": [case]}))
        made = lacuna("verify", "--goldens", goldens, "--json")
        self.assertEqual(made.returncode, 1, made.stderr)
        row = json.loads(made.stdout)
        self.assertEqual((row["passed"], row["error_over_tolerance"]), (False, None))

    def test_hostile_checkpoints(self):
        self.fails(1, "info", self.dir / "missing", says="missing")
        empty = self.dir / "empty"
        empty.mkdir()
        self.fails(1, "info", empty, leaves=["empty"])
        bad = self.dir / "bad.safetensors"
        header = json.dumps({"blocks.0.self_attn.norm_q.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
        whole = struct.pack("<Q", len(header)) + header + bytes(16)
        for data in (b"", b"x" * 7, struct.pack("<Q", 1 << 62), whole[:-1], whole[:20], whole):
            bad.write_bytes(data)
            self.fails(1, "info", bad, leaves=["bad.safetensors", "empty"])
        gguf = self.dir / "bad.gguf"
        for data in (b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60), b"GGUF" + struct.pack("<IQQ", 9, 0, 0)):
            gguf.write_bytes(data)
            self.fails(1, "info", gguf, leaves=["bad.gguf", "bad.safetensors", "empty"])

    def test_unsupported_checkpoints_are_named(self):
        def tensors(*names):
            header, at = {}, 0
            for name in names:
                header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]}
                at += 4
            text = json.dumps(header).encode()
            (self.dir / "m.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
        base = ["blocks.0.self_attn.norm_q.weight", "head.modulation", "patch_embedding.weight"]
        tensors(*base, "blocks.0.to_gate_compress.weight")
        self.fails(1, "info", self.dir / "m.safetensors", says="to_gate_compress", leaves=["m.safetensors"])
        tensors(*base, "blocks.0.self_attn.proj_l.weight")
        self.fails(1, "info", self.dir / "m.safetensors", says="proj_l", leaves=["m.safetensors"])

    def test_formats_and_summary(self):
        for name in ("a.mp4", "a.webm", "a.y4m", "a.png"):
            result = lacuna("generate", *TINY, "-o", self.dir / name, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            summary = json.loads(result.stdout)
            self.assertEqual(summary["tokens"], 72)
            self.assertEqual(summary["qk_density"], 1.0)
        self.assertEqual(len(list(self.dir.glob("*.latents.safetensors"))), 0)
        self.assertEqual(len(list(self.dir.glob("a-*.png"))), 9)

    def test_interrupt_and_resume(self):
        args = ["generate", *TINY, "--steps", 40, "--seed", 9]
        whole, part = self.dir / "whole.y4m", self.dir / "part.y4m"
        made = lacuna(*args, "-o", whole)
        self.assertEqual(made.returncode, 0, made.stderr)
        made = stopped([*args, "-o", part], 2, signal.SIGINT)
        self.assertEqual((made.returncode, made.stdout), (130, ""), made.stderr)
        latents = self.dir / "part.y4m.latents.safetensors"
        self.assertIn(f"--resume {latents}", made.stderr.splitlines()[-1])
        self.assertFalse(part.exists())
        steps = json.loads(lacuna("info", latents, "--json").stdout)["next_step"]
        self.assertIn(steps, range(2, 40))
        planned = lacuna(*args, "--dry-run", "-o", part)
        self.assertIn(f"holds {steps} steps of an earlier run and will be replaced", planned.stderr)
        preview = lacuna("decode", latents, "--synthetic", "tiny", "-o", self.dir / "preview.y4m")
        self.assertEqual(preview.returncode, 0, preview.stderr)
        self.assertIn(f"stopped at step {steps} of 40; this is a preview", preview.stderr)
        trace = self.dir / "t.json"
        again = ["generate", "--synthetic", "tiny", "--resume", latents, "-o", part]
        files = [*again, "--trace", trace, "--record", self.dir / "q.st", "--record-sites"]
        for words, names in ((again, None), ([*files, "steps=39"], "--trace"), ([*files, "steps=0,39"], "--record, --trace")):
            planned = lacuna(*words, "--dry-run")
            self.assertEqual(planned.returncode, 0, planned.stderr)
            told = f"goes on at step {steps} of 40; the steps before it are left out of {names}\n"
            self.assertEqual((told in planned.stderr, "left out" in planned.stderr), (bool(names), bool(names)), planned.stderr)
        resumed = lacuna(*files, "steps=0,39")
        self.assertEqual(resumed.returncode, 0, resumed.stderr)
        self.assertEqual(part.read_bytes(), whole.read_bytes())
        self.assertEqual(min(call["step"] for call in json.loads(trace.read_text())["calls"]), steps)

    def test_a_request_to_end_keeps_what_is_done(self):
        latents = self.dir / "l.safetensors"
        made = stopped(["generate", *TINY, "--steps", 1000, "--no-decode", "--latents", latents], 2, signal.SIGTERM)
        self.assertEqual(made.returncode, 130, made.stderr)
        self.assertIn(f"--resume {latents}", made.stderr.splitlines()[-1])
        self.assertIn(json.loads(lacuna("info", latents, "--json").stdout)["next_step"], range(2, 1000))

    def test_a_closed_terminal_keeps_what_is_done(self):
        latents = self.dir / "l.safetensors"
        args = ["generate", *TINY, "--no-decode", "--latents", latents, "--steps"]
        heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
        made = stopped([*args, 1000], 2, signal.SIGHUP, preexec_fn=heard)
        self.assertEqual(made.returncode, 130, made.stderr)
        self.assertIn(f"--resume {latents}", made.stderr.splitlines()[-1])
        self.assertIn(json.loads(lacuna("info", latents, "--json").stdout)["next_step"], range(2, 1000))
        ignored = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        made = stopped([*args, 40], 2, signal.SIGHUP, preexec_fn=ignored)
        self.assertEqual(made.returncode, 0, made.stderr)

    def test_a_terminal_that_goes_away_ends_nothing(self):
        video = self.dir / "a.y4m"
        made = stopped(["generate", *TINY, "--steps", 40, "-o", video], 2, None)
        self.assertEqual(made.returncode, 0)
        self.assertTrue(video.exists())

    def test_resume_refuses_another_model(self):
        latents = self.dir / "a.safetensors"
        made = lacuna("generate", *TINY, "--no-decode", "--latents", latents)
        self.assertEqual((made.returncode, made.stdout.split(" tokens")[0]), (0, f"{latents}: 72"), made.stderr)
        self.fails(1, "generate", "--synthetic", "wan2.1-1.3b", "--resume", latents, "-o", self.dir / "b.y4m",
                   says="was made with", leaves=["a.safetensors"])

    def test_resume_keeps_a_file_that_was_named(self):
        latents = self.dir / "a.safetensors"
        self.assertEqual(lacuna("generate", *TINY, "--no-decode", "--latents", latents).returncode, 0)
        self.fails(2, "generate", *TINY, "--seed", 5, "--resume", latents, "-o", self.dir / "b.y4m",
                   says="made with seed 0, this command says 5", leaves=["a.safetensors"])
        for extra, key in ((["--dtype", "f32"], "dtype"), (["--fps", 9], "fps"), (["--replay-masks", latents], "replay_masks"),
                           (["-p", "a blue box"], "prompt"), (["--guidance", 2], "guidance"), (["-a", "radial"], "attention")):
            for words, says in ((TINY, f"made with {key} "), (["--synthetic", "tiny"], "made with ")):
                self.fails(2, "generate", *words, *extra, "--resume", latents, "-o", self.dir / "b.y4m", says=says,
                           leaves=["a.safetensors"])
        for words in (["--synthetic", "tiny"], TINY, TINY[:-2]):  # the last without its prompt
            made = lacuna("generate", *words, "--resume", latents, "-o", self.dir / "b.y4m")
            self.assertEqual(made.returncode, 0, made.stderr)
            self.assertTrue(latents.exists())

    def test_resume_compares_only_what_is_given(self):
        def resumes(latents, *words):
            made = lacuna("generate", "--synthetic", "tiny", "--resume", latents, "--dry-run", *words, "-o", self.dir / "b.y4m")
            self.assertEqual(made.returncode, 0, made.stderr)
        def refuses(latents, key, *words):
            self.fails(2, "generate", "--synthetic", "tiny", "--resume", latents, "--dry-run", *words, "-o", self.dir / "b.y4m",
                       says=f"made with {key}, this command says ", leaves=left)
        unipc, listed, left = self.dir / "u.st", self.dir / "o.st", ["o.st", "u.st"]
        for latents, words in ((unipc, TINY), (listed, [*TINY[:8], "-p", "x", "--sampler", "ode", "--timesteps", "1000,500"])):
            made = lacuna("generate", *words, "--guidance", 3, "--no-decode", "--latents", latents)
            self.assertEqual(made.returncode, 0, made.stderr)
        for words in (["-a", "dense"], ["-W", 96], ["-H", 64], ["--size", "96x64"], ["--steps", 3], ["--guidance", 3],
                      ["--seed", 0], ["--sampler", "unipc"], ["--guidance-low", 3], ["--high-noise-cfg-scale", 3],
                      ["--sample_guide_scale", "3,3"]):
            resumes(unipc, *words)
        for words in (["--sampler", "ode"], ["--steps", 2], ["--timesteps", "1000,500"]):
            resumes(listed, *words)
        # As an earlier version could make it: of no effect, and no option of this command.
        data = unipc.read_bytes()
        self.assertEqual(data.count(b'guidance_low\\":3.0'), 1)
        unipc.write_bytes(data.replace(b'guidance_low\\":3.0', b'guidance_low\\":4.0'))
        resumes(unipc)
        unipc.write_bytes(data)
        refuses(unipc, "width 96", "-W", 112)
        refuses(unipc, "height 64", "--size", "96x80")
        refuses(unipc, "guidance 3.0", "--guidance", 4)
        refuses(unipc, "guidance 3.0", "--sample_guide_scale", 4)
        refuses(listed, "sampler \"ode\"", "--sampler", "unipc")
        refuses(listed, r"timesteps \[1000.0,500.0\]", "--timesteps", "1000,250")
        refuses(listed, "warp_timesteps true", "--timesteps-shifted")

    def test_decode(self):
        latents = self.dir / "a.safetensors"
        made = lacuna("generate", *TINY, "--latents", latents, "-o", self.dir / "a.y4m")
        self.assertEqual(made.returncode, 0, made.stderr)
        decoded = lacuna("decode", latents, "--synthetic", "tiny", "-o", self.dir / "b.y4m")
        self.assertEqual(decoded.returncode, 0, decoded.stderr)
        self.assertRegex(decoded.stderr, r"(?m)^memory: decoder \d+\.\d+ [MG]iB; peak \d+\.\d+ [MG]iB of ")
        self.assertEqual((self.dir / "a.y4m").read_bytes(), (self.dir / "b.y4m").read_bytes())
        self.assertNotIn("preview", decoded.stderr)
        left = ["a.safetensors", "a.y4m", "b.y4m"]
        for extra, says in ((["--vae-tile", "exact", "--vae-tile-size", 0], "tile 0 x 0"),
                            (["--vae-tile", "blend", "--vae-tile-size", 64, "--vae-tile-stride", 80], "tile 64 stride 80"),
                            (["--vae-tiling", "--vae-tile-size", 64, "--vae-tile-stride", 80], "tile 64 stride 80")):
            self.fails(1, "decode", latents, "--synthetic", "tiny", *extra, "-o", self.dir / "c.y4m", says=says, leaves=left)
        made = lacuna("decode", latents, "--synthetic", "tiny", "--fps", 7, "-o", self.dir / "c.y4m")
        self.assertEqual(made.returncode, 0, made.stderr)
        (head, frames), (other, same) = ((self.dir / name).read_bytes().split(b"\n", 1) for name in ("c.y4m", "a.y4m"))
        self.assertIn(b" F7:1 ", head)
        self.assertIn(b" F16:1 ", other)
        self.assertEqual(frames, same)

    def test_tiles_reach_the_decoder(self):
        latents, video = self.dir / "l.safetensors", self.dir / "a.y4m"
        made = lacuna("generate", *TINY, "--steps", 1, "--no-decode", "--latents", latents)
        self.assertEqual(made.returncode, 0, made.stderr)
        def frames(*words):
            made = lacuna(*words, "--synthetic", "tiny", "-o", video)
            self.assertEqual(made.returncode, 0, made.stderr)
            return video.read_bytes().split(b"\n", 1)[1]
        blend = ["--vae-tile", "blend", "--vae-tile-size", 48, "--vae-tile-stride", 32]
        whole = frames("decode", latents)
        exact = frames("decode", latents, "--vae-tile", "exact", "--vae-tile-size", 48)
        blended = frames("decode", latents, *blend)
        self.assertLessEqual(max(abs(a - b) for a, b in zip(whole, exact, strict=True)), 1)
        self.assertNotEqual(blended, whole)
        self.assertEqual(blended, frames("generate", "--resume", latents, *blend))

    def test_full_disk_while_decoding_keeps_the_latents(self):
        def limited():  # room for the latents, 200 KB, and not for the frames, 440 KB
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        left = "a.y4m.latents.safetensors"
        video = self.dir / "a.y4m"
        self.fails(1, "generate", *TINY, "-W", 128, "-H", 128, "-o", video, preexec_fn=limited, leaves=[left],
                   says=rf"write .*a\.y4m: .*3 of 3 steps are kept; go on with: lacuna decode {self.dir / left} -o {video}, ")
        decoded = lacuna("decode", self.dir / left, "--synthetic", "tiny", "-o", video)
        self.assertEqual(decoded.returncode, 0, decoded.stderr)

    def test_full_disk_names_the_video(self):
        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        latents = self.dir / "l.st"
        self.assertEqual(lacuna("generate", *TINY, "--no-decode", "--latents", latents).returncode, 0)
        for name in ("a.mp4", "a.webm"):
            self.fails(1, "decode", latents, "--synthetic", "tiny", "-o", self.dir / name, preexec_fn=limited, leaves=["l.st"],
                       says=f"output: could not .* {self.dir / name}: ")

    def test_full_disk_leaves_nothing(self):
        def limited():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self.fails(1, "generate", *TINY, "-W", 256, "-H", 256, "-o", self.dir / "a.y4m", preexec_fn=limited)

    def test_out_of_memory_is_one_line(self):
        def limited():
            resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
        self.fails(1, "generate", "--synthetic", "wan2.1-1.3b", "--frames", 5, "-W", 64, "-H", 64, "--steps", 1, "-p", "x",
                   "-o", self.dir / "a.mp4", preexec_fn=limited, says="memory")

    def test_default_model(self):
        self.assertIn("Lacuna Shapes", lacuna("info").stdout)
        env = dict(os.environ, XDG_CACHE_HOME=str(self.dir / "cache"))
        prompts = self.dir / "cache" / "lacuna" / "prompts"
        def made(*extra):
            result = lacuna("generate", "-p", "a Red circle", "--steps", 1, "--frames", 4, *extra, "-o", self.dir / "a.y4m",
                            env=env)
            self.assertEqual(result.returncode, 0, result.stderr)
            kept = {p.name: p.stat().st_mtime_ns for p in prompts.iterdir()} if prompts.exists() else {}
            return (self.dir / "a.y4m").read_bytes(), kept
        frames, kept = made("--no-prompt-cache")
        self.assertEqual(kept, {})
        first, second = made(), made()
        self.assertEqual((first[0] == frames, second[0] == frames), (True, True))
        self.assertTrue(first[1])
        self.assertEqual(first[1], second[1])  # read, not written again

    def test_attention_suite(self):
        fixed = ["bench", "attend", "--suite", "cpu"]
        result = lacuna(*fixed, "--seq-len", 256, "--seconds", 0, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        machine, *rows = map(json.loads, result.stdout.splitlines())
        self.assertGreater(machine["machine"]["fma_ymm_gflops"], 1)
        fields = ("name isa dtype seq_len num_heads head_dim block pattern density ms gflops share_of_peak efficiency "
                  "baseline ratio rel_l2 must reach verdict").split()
        found = {(r["name"], r["isa"]) for r in rows}
        for name in ("dense d128 f32", "dense d64 f32", "extreme logits f32"):
            self.assertTrue({(name, "avx2"), (name, "avx512")} - {("extreme logits f32", "avx512")} <= found, name)
        self.assertTrue({("dense d128 bf16", "amx"), ("dense d64 bf16", "amx"), ("64-blocks bf16", "amx")} <= found)
        rules = [f"{rule} at {share} %" for rule in ("running_max", "running_lse", "recall") for share in (0, 80)]
        both = ["vs oneDNN", "4x tokens", "2 threads", "block mass", *rules, *(f"sparse {d}" for d in (0.5, 0.25, 0.1, 0.05))]
        names = {name for name, _ in found}
        self.assertLessEqual({f"{n} {t}" for n in both for t in ("f32", "bf16")} | {"xattention select bf16"}, names)
        for row in rows:
            self.assertLessEqual(set(fields), set(row))
            if row["verdict"] == "skipped":
                self.assertRegex(row["skipped"], "needs|no bf16|widened")
                self.assertIsNone(row["ms"])
                continue
            self.assertGreater(row["ms"], 0, row)
            if row["name"] != "xattention select bf16":
                self.assertLess(row["rel_l2"], 4e-3 if row["dtype"] == "bf16" else 2e-5, row)
                self.assertLess(row["lse_error"], 1e-3, row)
            if row["name"].endswith("at 80 % f32"):
                self.assertEqual(row["pv_density"], 0.5, row)  # the first of two pieces
        self.fails(2, *fixed, "--heads", 2, says="excludes")
        self.fails(2, "bench", "attend", "--suite", "gpu", says="gpu")
        self.fails(1, *fixed, "--seq-len", 100, says="multiple of 256")

    def test_attend_bench_has_a_parameter_for_every_rule(self):
        one = ["bench", "attend", "--seq-len", 256, "--reps", 1, "--density", 1]
        for rule in ("none", "running_max", "running_lse", "recall"):
            made = lacuna(*one, "--skip", rule, "--json")
            self.assertEqual(made.returncode, 0, made.stderr)
            self.assertEqual(json.loads(made.stdout.splitlines()[-1])["skip"], rule)
        for extra, status, says in ((["--skip-param", 5], 2, "--skip"), (["--skip", "none", "--skip-param", 5], 2, "not none"),
                                    (["--skip", "recall", "--skip-param", 5], 1, "r"), (["--skip", "best"], 1, "running_max")):
            made = lacuna(*one, *extra)
            self.assertEqual((made.returncode, made.stdout), (status, ""), made.stderr)
            self.assertRegex(made.stderr, f"^lacuna: .*{says}")

    def test_bench_generate_needs_no_options(self):
        made = lacuna("bench", "generate", "--json")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(json.loads(made.stdout)["tokens"], 2304)

    def test_bench_generate_compares_with_its_first_row(self):
        made = lacuna("bench", "generate", *TINY[:8], "--steps", 2, "--json", "-a", "dense",
                      "xattention:block=8,stride=4,top_p=0.3", "dense")
        self.assertEqual(made.returncode, 0, made.stderr)
        dense, sparse, again = map(json.loads, made.stdout.splitlines())
        for row in (dense, sparse, again):
            self.assertAlmostEqual(row["speedup"], dense["forward_seconds"] / row["forward_seconds"])
        self.assertEqual((dense["latents_rel_l2"], again["latents_rel_l2"]), (0, 0))
        self.assertGreater(sparse["latents_rel_l2"], 0)

    def test_bench_generate_checks_every_policy_first(self):
        for extra, says in ((["foo"], "foo"), (["radial:decay=-7"], "decay"), (["radial", "--dense-steps", 9], "9")):
            made = lacuna("bench", "generate", *TINY[:10], "-a", "dense", *extra)
            self.assertEqual((made.returncode, made.stdout), (1, ""), made.stderr)
            self.assertRegex(made.stderr, f"^lacuna: .*{says}.*\n$")

    def test_gpu_check_is_not_ok_before_its_end(self):
        script = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "scripts" / "gpu-check"), run_name="gpu_check")
        out = self.dir / "result.json"
        check = script["Check"](argparse.Namespace(out=str(out)), {"stages": {}, "rows": []})
        check.save()
        self.assertFalse(json.loads(out.read_text())["ok"])
        check.stages["compile"] = {"ok": True}
        check.save()
        self.assertFalse(json.loads(out.read_text())["ok"])
        check.stages["racecheck"] = {"ok": False, "informs": True}
        check.save(finished=True)
        self.assertTrue(json.loads(out.read_text())["ok"])
        check.stages["tests"] = {"ok": False}
        check.save(finished=True)
        self.assertFalse(json.loads(out.read_text())["ok"])

    def test_a_clip_says_how_it_was_made(self):
        for name in ("a.mp4", "a.y4m", "a.png"):
            made = lacuna("generate", *TINY[:-2], "--negative-prompt", "", "-s", 3, "--guidance", 2.5, "-a", "xattention:top_p=0.5",
                          "--dense-steps", 1, "-p", "it's a \"red\" $ball", "--latents", self.dir / "l.st", "-o", self.dir / name)
            self.assertEqual(made.returncode, 0, made.stderr)
        left = json.loads(lacuna("info", self.dir / "l.st", "--json").stdout)
        for name in ("a.mp4", "a-0001.png"):
            told = json.loads(lacuna("info", self.dir / name, "--json").stdout)
            self.assertEqual((told["request"], told["command"]), (left["request"], left["command"]))
        again = [*shlex.split(told["command"]), "--synthetic", "tiny", "-o", self.dir / "b.mp4"]
        self.assertEqual(lacuna(*again[1:]).returncode, 0)
        self.assertEqual((self.dir / "b.mp4").read_bytes(), (self.dir / "a.mp4").read_bytes())
        self.assertIn(told["command"], lacuna("info", self.dir / "a.mp4").stdout)
        masks = self.dir / "m.st"
        for extra in (["--save-masks", masks], ["--replay-masks", masks]):
            made = lacuna("generate", *TINY, *extra, "-o", self.dir / "m.mp4")
            self.assertEqual(made.returncode, 0, made.stderr)
            told = json.loads(lacuna("info", self.dir / "m.mp4", "--json").stdout)["command"]
            self.assertEqual((" -a dense" in told, f"--replay-masks {masks}" in told), (extra[0] == "--save-masks",
                                                                                     extra[0] == "--replay-masks"))
        (self.dir / "c.mp4").write_bytes(b"no video")
        told = lacuna("info", self.dir / "c.mp4")
        self.assertEqual((told.returncode, told.stdout), (1, ""))
        self.assertRegex(told.stderr, r"^lacuna: .*c\.mp4.*\n$")

    def test_a_comment_that_lacuna_did_not_write_is_an_error(self):
        clip = self.dir / "a.png"
        for comment, says in (("", "says nothing about how"), ("a film to compare with others", "says nothing about how"),
                              ("lacuna compare -p x -a window", "says nothing about how"), ('["x"]', "says nothing about how"),
                              ("{", r"a\.png: not JSON"), ('{"command": "lacuna compare', r"a\.png: not JSON"),
                              ('{"command": 5}', r"a\.png command: 5, expected a string"), ('{"command": ""}', "command: empty"),
                              ('{"command": "x", "seed": 1}', 'unknown key "seed"'),
                              ('{"command": "x", "command": "y"}', 'key "command" twice'), ('{"a":' * 99, "nested deeper"),
                              ("{}", r"a\.png request: .*model")):
            write_png(clip, comment)
            self.fails(1, "info", clip, leaves=["a.png"], says=says)
        write_png(clip, json.dumps({"command": "lacuna compare -p 'a\nb \u00e9'"}))
        told = lacuna("info", clip, "--json")
        self.assertEqual(json.loads(told.stdout), {"command": "lacuna compare -p 'a\nb \u00e9'"}, told.stderr)

    def says_safely(self, text, *shown):
        """Nothing in it that a terminal obeys; escapes in its place."""
        self.assertNotRegex(text, "[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
        for part in shown:
            self.assertIn(part, text)

    def test_strangers_do_not_reach_the_terminal(self):
        evil, shown = "a \x1b[2J\x07\u202eball\r\x9b31m\x7f", r"a \x1b[2J\x07\u202eball\r\u009b31m\x7f"
        clip, latents, model = self.dir / "a.png", self.dir / "l.st", self.dir / "model"
        write_png(clip, json.dumps({"command": f"lacuna {evil}"}, ensure_ascii=False))
        told = lacuna("info", clip)
        self.assertEqual(told.returncode, 0, told.stderr)
        self.says_safely(told.stdout, f"made by:\nlacuna {shown}\n")
        self.assertEqual(json.loads(lacuna("info", clip, "--json").stdout), {"command": f"lacuna {evil}"})
        made = lacuna("generate", *TINY[:-1], evil, "--no-decode", "--latents", latents)
        self.assertEqual(made.returncode, 0, made.stderr)
        self.says_safely(lacuna("info", latents).stdout, f"-p '{shown}'")
        self.assertEqual(json.loads(lacuna("info", latents, "--json").stdout)["request"]["prompt"], evil)
        shutil.copytree(pathlib.Path(__file__).parents[2] / "assets" / "lacuna-shapes", model)
        index = json.loads((model / "model_index.json").read_text())
        index["lacuna_defaults"]["name"] = index["lacuna_defaults"]["license"] = f"{evil}\n  forged"
        (model / "model_index.json").write_text(json.dumps(index))
        self.says_safely(lacuna("info", model).stdout, f"{shown}\\n  forged\n", f"licence      {shown}\\n  forged\n")
        planned = lacuna("generate", "--model", model, "-p", "x", "--dry-run", "-o", self.dir / "a.y4m")
        self.assertEqual(planned.returncode, 0, planned.stderr)
        self.says_safely(planned.stderr, f"{shown}\\n  forged on ")

    def test_errors_stay_one_line(self):
        """Whatever stands in a name; a second line of an error would start with lacuna: here."""
        name = "\x1b[2J\r\nlacuna: all is well\n"
        shown = re.escape(r"\x1b[2J\r\nlacuna: all is well\n")
        self.fails(1, "info", self.dir / name, says=f"{shown}.*: no such file")
        self.fails(2, "generate", "--synthetic", "tiny", name, says=shown)
        names = ["blocks.0.self_attn.norm_q.weight", "head.modulation", f"{name}.to_gate_compress.weight"]
        header = {key: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, key in enumerate(names)}
        file = self.dir / "m.safetensors"
        def write(**fields):
            text = json.dumps({**header, **fields}).encode()
            file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * len(names)))
        write()
        self.fails(1, "info", file, leaves=[file.name], says=f"holds {shown}.to_gate_compress")
        write(**{name: {"dtype": name, "shape": [1], "data_offsets": [0, 4]}})
        self.fails(1, "info", file, leaves=[file.name], says=f"{shown} has dtype {shown}, which is not supported")
        (self.dir / "t.json").write_text(json.dumps({"schema": name}))
        self.fails(1, "inspect", self.dir / "t.json", leaves=[file.name, "t.json"], says=f"schema '{shown}'")

    def test_info(self):
        text = lacuna("info", "--synthetic", "wan2.1-1.3b").stdout
        self.assertRegex(text, "1419 M parameters")
        self.assertRegex(text, "Apache-2.0")
        self.assertRegex(text, r"\n  832x480, 81 frames +21x30x52 +32760 ")
        sizes = json.loads(lacuna("info", "--synthetic", "wan2.1-1.3b", "--json").stdout)["sizes"]
        self.assertIn(32760, [s["tokens"] for s in sizes])

    def test_lora_changes_the_video_and_is_told(self):
        style = self.lora("it's a style.safetensors")
        def made(name, *words):
            result = lacuna("generate", *TINY, *words, "-o", self.dir / name)
            self.assertEqual(result.returncode, 0, result.stderr)
            return (self.dir / name).read_bytes(), result
        plain, _ = made("plain.mp4")
        once, result = made("once.mp4", "--lora", style)
        self.assertIn(f"with LoRA {style}:1 on", result.stderr)
        half, _ = made("half.mp4", "--lora", f"{style}:0.5", "--manifest", self.dir / "half.json", "-t", 1)
        self.assertEqual(len({plain, once, half}), 3)
        request = json.loads((self.dir / "half.json").read_text())["request"]
        self.assertEqual(request["lora"], [f"{style}:0.5"])
        told = json.loads(lacuna("info", self.dir / "half.mp4", "--json").stdout)
        self.assertEqual(told["request"], request)
        again = [*shlex.split(told["command"])[1:], "--synthetic", "tiny", "-o", self.dir / "again.mp4"]
        self.assertEqual(lacuna(*again).returncode, 0)
        self.assertEqual((self.dir / "again.mp4").read_bytes(), half)
        self.assertNotIn("lora", json.loads(lacuna("info", self.dir / "plain.mp4", "--json").stdout)["request"])

    def test_resume_takes_the_same_lora(self):
        style, other = self.lora("s.safetensors"), self.lora("o.safetensors", scale=0.1)
        latents, left = self.dir / "l.st", ["l.st", "o.safetensors", "s.safetensors"]
        made = lacuna("generate", *TINY, "--lora", style, "--no-decode", "--latents", latents)
        self.assertEqual(made.returncode, 0, made.stderr)
        resume = ["generate", "--synthetic", "tiny", "--resume", latents, "-o", self.dir / "b.y4m"]
        for words, has in (([], "no --lora"), (["--lora", other], f"--lora {other}:1"), (["--lora", f"{style}:0.5"], f"--lora {style}:0.5")):
            self.fails(2, *resume, *words, says=rf"was made with --lora {style}:1, this command has {has}; say the same", leaves=left)
        made = lacuna(*resume, "--lora", style)
        self.assertEqual(made.returncode, 0, made.stderr)
        made = lacuna("decode", latents, "--synthetic", "tiny", "-o", self.dir / "c.y4m")  # needs none
        self.assertEqual((made.returncode, "made with" in made.stderr), (0, False), made.stderr)

    def test_stopped_with_lora_says_how_to_go_on(self):
        latents, words = self.dir / "l.st", ["generate", *TINY, "--steps", 400, "--no-decode", "--latents", self.dir / "l.st"]
        for lora, said in (([], ""), (["--lora", self.lora("s.safetensors")], ", the same LoRA")):
            result = stopped([*words, *lora], 3, signal.SIGINT)
            self.assertIn(f"--resume {latents}, the same --model{said} and the same --output", result.stderr)

    def test_lora_that_does_not_fit_is_refused(self):
        style = self.lora("s.safetensors")
        wide, image = self.lora("w.safetensors", width=512), self.lora("i.safetensors", extra={"diffusion_model.img_emb.proj.1.diff_b": (4,)})
        left = ["i.safetensors", "s.safetensors", "w.safetensors"]
        def refused(status, says, *words):
            self.fails(status, "generate", *TINY, "--dry-run", "-o", self.dir / "a.y4m", *words, says=says, leaves=left)
        refused(1, r"q\.lora_up\.weight changes a \[512, 512\], expected the network's \[256, 256\]", "--lora", wide)
        refused(1, r"holds diffusion_model\.img_emb\.proj\.1\.diff_b, which a network of 4 layers does not have", "--lora", image)
        refused(1, "missing", "--lora", self.dir / "missing")
        refused(1, "1000000000 times, expected a number from -100 to 100", "--lora", f"{style}:1e9")
        refused(2, "--lora-low: synthetic tiny has one network, expected --lora", "--lora-low", style)
        refused(2, "--lora", "--lora", "")
        refused(2, "--latents and a file of the model: both are", "--lora", style, "--latents", style)
        self.fails(1, "generate", "--model", style, "-p", "x", "-o", self.dir / "a.y4m", leaves=left, says="holds LoRA; give it with --lora")

    def test_info_of_lora(self):
        told = lacuna("info", self.lora("s.safetensors", width=1536))
        self.assertRegex(told.stdout, r"(?s)s\.safetensors\n  LoRA +1 matrices of rank 4, 0 differences\n.*  layers +1 of them: attn1.to_q\n"
                         r"  width +1536\n  fits +wan2\.1-1\.3b\n")
        json_of = lambda *words: json.loads(lacuna("info", *words, "--json").stdout)
        told = json_of(self.lora("t.safetensors", extra={"diffusion_model.blocks.3.norm3.diff": (256,)}))
        self.assertEqual((told["rank"], told["matrices"], told["differences"], told["layers"], told["width"], told["fits"]),
                         ([4, 4], 1, 1, 2, 256, []))
        odd = os.fsdecode(b"odd\xff.safetensors")  # no UTF-8
        self.assertTrue(json_of(self.lora(odd))["lora"].endswith("odd\ufffd.safetensors"))
        self.assertIn("odd\ufffd.safetensors:1", json_of("--synthetic", "tiny", "--lora", self.dir / odd)["name"])
        name = json_of("--synthetic", "wan2.1-1.3b", "--lora", f"{self.dir / 's.safetensors'}:2")["name"]
        self.assertEqual(name, f"synthetic wan2.1-1.3b with LoRA {self.dir / 's.safetensors'}:2")

    def test_info_takes_nothing_beside_lora(self):
        style, other = self.lora("s.safetensors"), self.lora("o.safetensors")
        left = ["o.safetensors", "s.safetensors"]
        self.fails(1, "info", style, "--lora", other, leaves=left, says="holds LoRA; give it with --lora")
        self.fails(2, "info", style, "--synthetic", "tiny", leaves=left, says="--synthetic: takes no checkpoint files")

    def test_info_points_to_inspect(self):
        names = ["l.st", "m.st", "q.st", "t.json"]
        latents, masks, recording, trace = (self.dir / name for name in names)
        made = lacuna("generate", *TINY, "--no-decode", "--latents", latents, "--save-masks", masks, "--record", recording,
                      "--record-sites", "steps=1;layers=0", "--trace", trace)
        self.assertEqual(made.returncode, 0, made.stderr)
        for path in (masks, recording, trace):
            self.fails(1, "info", path, leaves=names, says=f"info: {path}, .* for lacuna inspect")
        # The index of a model's shards is a model.
        shard, index = self.dir / "m-00001-of-00001.safetensors", self.dir / "m.safetensors.index.json"
        shutil.copy(pathlib.Path(__file__).parents[2] / "assets" / "lacuna-shapes" / "transformer" / "diffusion_pytorch_model.safetensors", shard)
        data = shard.read_bytes()
        tensors = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
        index.write_text(json.dumps({"weight_map": {name: shard.name for name in tensors if name != "__metadata__"}}))
        self.fails(1, "info", index, leaves=[*names, shard.name, index.name], says=r"m-00001-of-00001\.safetensors: width 192")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Options of the command line: exit codes, what is refused, and the spellings of other programs."""
import json
import os
import pathlib
import re
import shutil
import subprocess

from harness import CliTest, LACUNA, TINY, lacuna, main


class OptionsTest(CliTest):
    def test_help_everywhere(self):
        for command in ([], ["generate"], ["decode"], ["info"], ["methods"], ["bench"], ["bench", "generate"], ["calibrate"],
                        ["replay"], ["tournament"], ["doctor"], ["compare"], ["inspect"], ["bench", "attend"],
                        ["bench", "select"], ["verify"]):
            result = lacuna(*command, "--help")
            self.assertEqual(result.returncode, 0, command)
            self.assertGreater(len(result.stdout), 100, command)
            lines = result.stdout.splitlines() + [""]
            for line, next_line in zip(lines, lines[1:]):
                if re.match(r" +--?\w", line):
                    told = re.match(r"(.{33}|.{35}) \S", line) or re.match(r" {34,36}\S", next_line)
                    self.assertTrue(told, f"{command}: nothing says what this is: {line}")
        self.assertRegex(lacuna("--version").stdout, r"^lacuna \d+\.\d+\.\d+$")

    def test_a_file_of_prompts_has_two_names_everywhere(self):
        for command in ("calibrate", "compare", "doctor", "tournament"):
            self.assertIn("--prompts,--prompt-file TEXT", lacuna(command, "--help").stdout, command)

    def test_bad_usage_is_2(self):
        self.fails(2, says=r"A subcommand is required \(see lacuna --help\)")
        for words, says in ((["generat"], "generat: no such command (see lacuna --help)"),
                            (["generat", "--steps", 3], "generat: no such command (see lacuna --help)"),
                            (["--no-such"], "--no-such: no such option (see lacuna --help)"),
                            (["bench", "atend"], "atend: no such command (see lacuna bench --help)"),
                            (["generate", "--promt", "x"], "not expected: --promt x (see lacuna generate --help)"),
                            (["bench", "attend", "--no"], "not expected: --no (see lacuna bench attend --help)"),
                            (["generate", "-W"], "--width: 1 required INT missing (see lacuna generate --help)"),
                            (["decode"], "latents is required (see lacuna decode --help)")):
            self.fails(2, *words, says="^lacuna: " + re.escape(says) + "$")
        self.fails(2, "generate", "--synthetic", "tiny", says="no prompt")
        self.fails(2, "generate", *TINY, "--size", "12by7", says="WIDTHxHEIGHT")
        self.fails(2, "generate", *TINY, "--threads", "0")
        self.fails(2, "generate", *TINY, "--dtype", "int4")
        for extra, says in ((["--size", "4294967392x64"], "WIDTHxHEIGHT"), (["--seed", "-1"], "seed"),
                            (["--seed", "18446744073709551616"], "seed"), (["--sigma-convention", "wam"], "wan"),
                            (["--timesteps", "1000,500"], "sampler ode"), (["--sampler", "ode"], "list of timesteps has 4"),
                            (["--prompt-file", "x.txt"], "no --prompt beside"), (["--record-sites", "steps=1"], "--record"),
                            *((["--max-memory", gb], rf"--max-memory: {gb}, expected a number of GB from 1e-09 to 1e\+09 ")
                              for gb in ("nan", "inf", "0", "-1", "1e-12", "1e300", "x"))):
            self.fails(2, "generate", *TINY, *extra, says=says)

    def test_every_real_number_is_finite(self):
        seen = 0
        for command in (["generate"], ["decode"], ["info"], ["calibrate"], ["replay"], ["tournament"], ["doctor"], ["compare"],
                        ["inspect"], ["methods"], ["verify"], ["bench", "generate"], ["bench", "attend"], ["bench", "select"]):
            options = re.findall(r"^ +(?:-\w,)?(--[\w-]+)\S* .*FLOAT", lacuna(*command, "--help").stdout, re.M)
            seen += len(options)
            for option in options:
                for word in ("nan", "-inf", "1e999", "x"):
                    self.fails(2, *command, f"{option}={word}", says=f"{option}: {word}, expected a (finite )?number")
        self.assertGreater(seen, 40)
        for text in ("nan", "3,inf"):
            self.fails(2, "generate", *TINY, "--sample_guide_scale", text, says="--sample_guide_scale: .*expected")
        self.fails(2, "generate", *TINY, "--timesteps", "1000,nan", says="--timesteps: nan, expected a finite number")

    def test_an_empty_name_of_a_file_is_not_no_file(self):
        for option in ("--output", "--latents", "--profile", "--trace", "--record", "--save-masks", "--replay-masks", "--manifest",
                       "--resume", "--prompt-file", "--model", "--vae", "--t5xxl", "--high-noise-diffusion-model"):
            self.fails(2, "generate", *TINY, option, "", says=f"lacuna: {option}: empty, expected the name of a file")
        self.fails(2, "generate", *TINY, "--no-decode", "-o", "", says="--output: empty")
        for words in (["decode", "", "-o", "a.mp4"], ["decode", "l", "-o", ""], ["inspect", "t", "--report", ""], ["inspect", ""],
                      ["compare", "--report", ""], ["compare", "-o", ""], ["replay", ""], ["doctor", "--report", ""], ["info", ""],
                      ["doctor", "-o", ""], ["tournament", "--prompts", ""], ["verify", "--goldens", ""],
                      ["calibrate", "--method", "haste", "--prompts", "p", "-o", ""]):
            self.fails(2, *words, says="empty, expected the name of a file")

    def test_options_without_effect_are_refused(self):
        out = ["-o", self.dir / "a.y4m"]
        for extra, says in (
                (["--guidance-low", 3], "--guidance-low: guidance .* and 3, this model has one expert"),
                (["--high-noise-cfg-scale", 3], "--high-noise-cfg-scale: .*one expert"),
                (["--sample_guide_scale", "3,4"], "--sample_guide_scale: .*one expert"),
                (["--guidance", 3, "--guidance-low", 3, "--high-noise-cfg-scale", 3], "--guidance: both experts have their own"),
                (["--sample_guide_scale", ""], "--sample_guide_scale: , expected one number"),
                (["--timesteps-shifted"], "--timesteps-shifted: needs --sampler ode or renoise"),
                (["--size", "96x96"], "--size: 96x96 beside --width and --height"),
                (["--vae-tiling", "--vae-tile", "exact"], "excludes"),
                (["--vae-tile-size", 64], "--vae-tile-size: needs --vae-tile"),
                (["--vae-tile", "exact", "--vae-tile-stride", 32], "--vae-tile-stride: needs --vae-tile blend")):
            self.fails(2, "generate", *TINY, *extra, *out, says=says)
        for sampler in ("ode", "renoise"):
            few = ["generate", *TINY[:8], "-p", "x", "--sampler", sampler]
            # Commands that info prints name what was not used.
            unused = lacuna(*few, "--sigma-convention", "wan", "--timesteps-shifted", "--shift", 3, "--boundary", 0.5, "--dry-run", *out)
            self.assertEqual(unused.returncode, 0, unused.stderr)
        self.fails(1, "generate", *TINY, "--boundary", "-5", *out, says="boundary: -5, expected 0 to 1")
        for command in ("decode", "compare"):
            words = [command, "none"] if command == "decode" else [command, *TINY, "-a", "window"]
            self.fails(2, *words, "--vae-tile-size", 64, says="--vae-tile-size: needs --vae-tile")
        # What the run has anyway may be named, as in the commands that info prints.
        named = lacuna("generate", *TINY, "--size", "96x64", "--guidance", 4, "--guidance-low", 4, "--dry-run", *out)
        self.assertEqual(named.returncode, 0, named.stderr)

    def test_bad_requests_are_1(self):
        out = ["-o", self.dir / "a.mp4"]
        for extra, says in (
                (["-W", "100"], "multiples of 16"), (["-W", "-16"], "size"), (["--frames", "8"], "frames"),
                (["--frames", "999999999"], ""), (["-W", "99999999"], "size"), (["--steps", "0"], "steps"),
                (["--steps", "99999"], "steps"), (["--shift", "-3"], "shift"), (["-a", "nothing"], "xattention"),
                (["-a", "xattention:top_p=2"], "top_p"), (["-a", "xattention:stride"], ""),
                (["--skip", "recall:r=7"], "r"), (["--dense-steps", "77"], ""),
                (["-a", "xattention:refresh=at_steps,at=99"], "at: 99, expected steps below 3"), (["--dense-layers", "x"], ""),
                (["--sampler", "ddim"], "unipc"), (["--backend", "tpu"], "cpu"), (["--profile", "none.json"], "none.json"),
                (["--max-memory", "0.001"], "may be used"),
                (["--profile", "none.json", "--dense-steps", "1"], "leave out .*--dense-steps"),
                (["--latents", self.dir / "none" / "l.st"], "none")):
            self.fails(1, "generate", *TINY, *extra, *out, says=says)
        self.fails(1, "generate", "-p", "x", "--frames", "3", *out, says="frames: 3 make 3 latent frames, expected a multiple of 2")
        self.fails(1, "generate", *TINY, "-o", self.dir / "none" / "a.mp4", says="folder")
        self.fails(1, "generate", *TINY, "-o", self.dir / "none" / "a.mp4", "--no-decode", says="none")
        self.fails(1, "generate", *TINY, "-o", self.dir / "a.avi", says=r"\.mp4")
        self.fails(1, "generate", "--synthetic", "wan9", "-p", "x", *out, says="tiny")
        self.fails(1, "generate", *TINY, *out, env=dict(os.environ, LACUNA_ISA="sse2"), says="LACUNA_ISA")
        self.fails(1, "generate", *TINY, *out, env=dict(os.environ, LACUNA_THREADS="many"), says="LACUNA_THREADS")

    def test_without_a_gpu(self):
        """A build with CUDA kernels starts anywhere; what cannot run there says why, in one line, before any work."""
        needed = subprocess.run(["readelf", "-d", LACUNA], capture_output=True, text=True).stdout
        self.assertNotRegex(needed, r"libcu(da|blas|dnn)")
        if lacuna("bench", "generate", *TINY[:8], "--steps", 1, "--backend", "cuda").returncode == 0:
            self.skipTest("there is a GPU")
        recording = self.dir / "a.st"
        made = lacuna("generate", *TINY, "--no-decode", "--latents", self.dir / "l.st", "--record", recording, "--record-sites",
                      "steps=1;layers=0")
        self.assertEqual(made.returncode, 0, made.stderr)
        left = ["a.st", "l.st"]
        for command in (["generate", *TINY, "-o", self.dir / "a.mp4"], ["compare", *TINY, "-a", "xattention"],
                        ["doctor", *TINY], ["replay", recording], ["bench", "generate", *TINY[:8]], ["verify"]):
            self.fails(1, *command, "--backend", "cuda", leaves=left, says="^lacuna: cuda: .*expected")
        self.fails(1, "generate", *TINY, "-o", self.dir / "a.mp4", leaves=left, says="^lacuna: cuda: .*expected",
                   env=dict(os.environ, LACUNA_BACKEND="cuda"))

    def test_a_list_of_timesteps_is_the_schedule(self):
        made = lacuna("generate", "--synthetic", "tiny", "-W", 96, "-H", 64, "--frames", 9, "-p", "x", "--sampler", "ode",
                      "-a", "xattention", "--dense-steps", "50%", "--dry-run", "--json", "-q", "-o", self.dir / "a.y4m")
        self.assertEqual(made.returncode, 0, made.stderr)
        plan = json.loads(made.stdout)
        self.assertEqual((plan["steps"], [row["steps"] for row in plan["explain"]]), (4, [[0, 1], [2, 3]]))

    def test_seeds_are_decimal(self):
        for given, wanted in (("010", 10), ("18446744073709551615", 2**64 - 1), ("9223372036854775808", 2**63)):
            made = lacuna("generate", *TINY, "--seed", given, "--dry-run", "--json", "-o", self.dir / "a.y4m")
            self.assertEqual(json.loads(made.stdout)["request"]["seed"], wanted)

    def test_options_reach_the_request(self):
        def planned(*extra, prompt=("-p", "x")):
            made = lacuna("generate", *TINY[:8], *prompt, *extra, "--dry-run", "--json", "-q", "-o", self.dir / "a.y4m")
            self.assertEqual(made.returncode, 0, made.stderr)
            return json.loads(made.stdout)
        def holds(plan, **wanted):
            self.assertEqual({key: plan["request"][key] for key in wanted}, wanted)
        holds(planned("--negative-prompt", "blurry", "--guidance", 4, "--shift", 6,
                      "--fps", 12, "--dtype", "f32", "--steps", 5, "-a", "window", "--skip", "recall:r=0.9", "--dense-steps", 2,
                      "--dense-layers", "0,-1", "--min-tokens", 50),
              negative_prompt="blurry", guidance=4, guidance_low=4, shift=6, fps=12, dtype="f32", steps=5,
              attention="window", skip="recall:r=0.9", dense_steps="2", dense_layers="0,-1", min_tokens=50, width=96,
              height=64, frames=9, sampler="unipc", sigma_convention="diffusers")
        holds(planned("--guidance", 2), guidance=2, guidance_low=2)
        holds(planned("--sampler", "euler"), sampler="euler", sigma_convention="flow_matching")
        holds(planned("--sampler", "euler", "--sigma-convention", "wan"), sigma_convention="wan")
        holds(planned("--sampler", "euler", "--sigma-convention", "diffusers"), sigma_convention="diffusers")
        holds(planned("--sigma-convention", "flow_matching"), sampler="unipc", sigma_convention="flow_matching")
        holds(planned("--sampler", "renoise", "--timesteps", "1000,500", "--timesteps-shifted"), sampler="renoise",
              timesteps=[1000, 500], warp_timesteps=False, steps=2)
        holds(planned("--sampler", "ode"), warp_timesteps=True, steps=4)
        text = self.dir / "prompt.txt"
        text.write_text("a cat")
        holds(planned(prompt=("--prompt-file", text)), prompt="a cat")
        for guidance, branch in ((1, "cond"), (2, "both")):
            self.assertEqual({row["branch"] for row in planned("--guidance", guidance)["explain"]}, {branch})

    def test_both_spellings_make_the_same_video(self):
        a, b = self.dir / "a.y4m", self.dir / "b.y4m"
        first = lacuna("generate", "--synthetic", "tiny", "-W", 96, "-H", 64, "--video-frames", 9, "--steps", 2, "--cfg-scale",
                       3, "--flow-shift", 4, "--seed", 5, "-p", "x", "--no-prompt-cache", "-o", a)
        second = lacuna("generate", "--synthetic", "tiny", "--size", "96*64", "--frame_num", 9, "--sample_steps", 2,
                        "--sample_guide_scale", 3, "--sample_shift", 4, "--base_seed", 5, "--prompt", "x",
                        "--no-prompt-cache", "--save_file", b)
        self.assertEqual((first.returncode, second.returncode), (0, 0), first.stderr + second.stderr)
        self.assertEqual(a.read_bytes(), b.read_bytes())

    def test_command_lines_of_other_programs(self):
        def planned(*extra, model=("--synthetic", "tiny"), says=""):
            made = lacuna("generate", *model, *extra, "-p", "x", "--dry-run", "--json", "-o", self.dir / "a.y4m")
            self.assertEqual(made.returncode, 0, made.stderr)
            self.assertEqual([l for l in made.stderr.splitlines() if "no effect" in l], [says] if says else [])
            return json.loads(made.stdout)["request"]
        stable = ["-M", "vid_gen", "--cfg-scale", 6, "--sampling-method", "euler", "-W", 96, "-H", 64, "--diffusion-fa",
                  "--offload-to-cpu", "--video-frames", 9, "--flow-shift", 3, "-v"]
        request = planned(*stable, "--steps", 4,
                          says="note: --diffusion-fa, --offload-to-cpu, --verbose: no effect here, see --help")
        self.assertEqual((request["sampler"], request["guidance"], request["shift"]), ("euler", 6, 3))
        wan = ["--size", "96*64", "--frame_num", 9, "--sample_steps", 4, "--offload_model", "True", "--t5_cpu",
               "--convert_model_dtype"]
        hints = "note: --offload_model, --t5_cpu, --convert_model_dtype: no effect here, see --help"
        for task in ("t2v-1.3B", "t2v-14B", "t2v-A14B", "ti2v-5B", "i2v-14B", "i2v-A14B", "flf2v-14B"):
            request = planned("--task", task, *wan, "--sample_guide_scale", 4, says=hints)
            self.assertEqual((request["guidance"], request["guidance_low"]), (4, 4))
        self.assertEqual(lacuna("generate", *TINY, *wan[4:], "--dry-run", "-q", "-o", self.dir / "a.y4m").stderr, "")
        for extra, says in ((["-M", "img_gen"], "vid_gen"), (["--task", "s2v-14B"], "t2v-1.3B"),
                            (["--sample_guide_scale", "3,4,5"], "LOW,HIGH"), (["--sample_guide_scale", "a"], "LOW,HIGH"),
                            (["--sample_guide_scale", "3,"], "LOW,HIGH"), (["--high-noise-steps", 2], "high-noise expert"),
                            (["--sample_guide_scale", 3, "--guidance", 3], "excludes"),
                            (["--high-noise-sampling-method", "euler"], "expected unipc as --sampler")):
            self.fails(2, "generate", *TINY, *extra, "-o", self.dir / "a.y4m", says=says)

    def test_two_experts_in_the_words_of_other_programs(self):
        model, trace = self.dir / "model", self.dir / "t.json"
        shutil.copytree(pathlib.Path(__file__).parents[2] / "assets" / "lacuna-shapes", model)
        shutil.copytree(model / "transformer", model / "transformer_2")
        index = json.loads((model / "model_index.json").read_text())
        index |= {"transformer_2": index["transformer"], "boundary_ratio": 0.875}
        (model / "model_index.json").write_text(json.dumps(index))
        def made(*extra):
            run = lacuna("generate", "-m", model, "-p", "x", "-W", 32, "-H", 32, "--frames", 4, *extra, "--json", "--trace", trace,
                         "--no-prompt-cache", "-o", self.dir / "a.y4m")
            self.assertEqual(run.returncode, 0, run.stderr)
            experts = dict(sorted((call["step"], call["expert"]) for call in json.loads(trace.read_text())["calls"]))
            return json.loads(run.stdout)["request"], list(experts.values())
        request, experts = made("--steps", 2, "--high-noise-steps", 3, "--cfg-scale", 6, "--high-noise-cfg-scale", 3.5,
                                "--sampling-method", "euler", "--high-noise-sampling-method", "euler")
        self.assertEqual((request["steps"], request["guidance"], request["guidance_low"]), (5, 3.5, 6))
        self.assertEqual(experts, [0, 0, 0, 1, 1])
        request, _ = made("--task", "t2v-A14B", "--sample_steps", 2, "--sample_guide_scale", "3,4")
        self.assertEqual((request["guidance"], request["guidance_low"], request["boundary"]), (4, 3, 0.875))

    def test_files_of_one_name_are_refused(self):
        a, b = self.dir / "a.mp4", self.dir / "b.st"
        for extra, says in ((["-o", a, "--trace", a], "--output and --trace"), (["-o", a, "--latents", a], "--output and --latents"),
                            (["--no-decode", "--latents", b, "--record", b], "--latents and --record"),
                            (["-o", a, "--trace", b, "--manifest", f"{self.dir}/./b.st"], "--trace and --manifest"),
                            (["-o", self.dir / "a.png", "--trace", f"{self.dir}/./a-0001.png"], "--output and --trace: both .*a-0001"),
                            (["-o", self.dir / "%d.png", "--manifest", self.dir / "7.png"], "--output and --manifest: both are .*7.png")):
            self.fails(2, "generate", *TINY, *extra, says=says)
        (self.dir / "link").symlink_to(self.dir)
        for other in (os.path.relpath(b), f"{self.dir}/none/../b.st", f"{self.dir}/link/b.st", f"{self.dir}//b.st"):
            self.fails(2, "generate", *TINY, "-o", a, "--trace", b, "--save-masks", other, leaves=["link"],
                       says="--trace and --save-masks: both are .*b.st")

    def test_an_input_is_not_an_output(self):
        prompt, latents, profile, model = (self.dir / name for name in ("p.txt", "l.mp4", "f.json", "model"))
        prompt.write_text("a red ball")
        profile.write_text('{"masks_file": "m.st"}')
        shutil.copytree(pathlib.Path(__file__).parents[2] / "assets" / "lacuna-shapes", model)
        made = lacuna("generate", *TINY, "--no-decode", "--latents", latents)
        self.assertEqual(made.returncode, 0, made.stderr)
        left, kept = ["f.json", "l.mp4", "model", "p.txt"], latents.read_bytes()
        own = ["generate", "--model", model, "-p", "x", "--no-decode", "--latents", self.dir / "n.st"]
        resume = ["generate", "--synthetic", "tiny", "--resume", latents]
        for words, says in (
                (["generate", *TINY[:-2], "--prompt-file", prompt, "--trace", prompt], "--trace and --prompt-file: both are .*p.txt"),
                (["generate", *TINY, "--profile", profile, "--save-masks", profile], "--save-masks and --profile: both are "),
                (["generate", *TINY, "--profile", profile, "--record", self.dir / "m.st"], "--record and the profile's masks: both"),
                (["generate", *TINY, "--replay-masks", latents, "--manifest", latents], "--manifest and --replay-masks: both are "),
                ([*resume, "--record", f"{self.dir}//l.mp4"], "--record and --resume: both are "),
                ([*resume, "--latents", self.dir / "n.st", "-o", latents], "--output and --resume: both are "),
                (["decode", latents, "--synthetic", "tiny", "-o", latents], "--output and latents: both are .*l.mp4"),
                ([*own, "--latents", model / "vae" / "diffusion_pytorch_model.safetensors"], "--latents and a file of the model: "),
                ([*own, "--trace", model / "transformer" / "config.json"], "--trace and a file of the model: both are ")):
            self.fails(2, *words, leaves=left, says=says)
        self.assertEqual(latents.read_bytes(), kept)
        for again in ([], ["--latents", latents], ["--latents", f"{self.dir}/./l.mp4"]):  # goes on in its file
            made = lacuna(*resume, *again, "-o", self.dir / "a.y4m")
            self.assertEqual(made.returncode, 0, made.stderr)
            self.assertTrue(latents.exists())



if __name__ == "__main__":
    main()

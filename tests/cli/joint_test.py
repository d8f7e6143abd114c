#!/usr/bin/env python3
"""Mochi and HunyuanVideo on the command line, with made-up weights."""
import json
import shlex

from harness import CliTest, lacuna, main

MOCHI = ["--synthetic", "mochi-tiny", "-W", "32", "-H", "32", "--frames", "7", "--steps", "2", "--no-prompt-cache", "-p", "a red ball"]
HUNYUAN = ["--synthetic", "hunyuanvideo-tiny", "-W", "32", "-H", "32", "--frames", "5", "--steps", "2", "--no-prompt-cache",
           "-p", "a red ball"]


class JointTest(CliTest):
    def refuses(self, words, status, text):
        out = self.dir / "refused.y4m"
        made = lacuna("generate", *words, "-o", out)
        self.assertEqual(made.returncode, status, made.stderr)
        self.assertIn(text, made.stderr)
        self.assertEqual(list(self.dir.glob("refused*")), [])

    def test_embedded_guidance(self):
        for value in ("0", "2.5"):
            clip, again, other = (self.dir / name for name in ("clip.mp4", "again.mp4", "other.mp4"))
            self.assertEqual(lacuna("generate", *HUNYUAN, "--embedded-guidance", value, "-o", clip).returncode, 0)
            command = shlex.split(lacuna("info", clip).stdout.splitlines()[-1])
            self.assertEqual(float(command[command.index("--embedded-guidance") + 1]), float(value))
            remade = lacuna(*command[1:], "--synthetic", "hunyuanvideo-tiny", "-o", again)
            self.assertEqual(remade.returncode, 0, remade.stderr)
            self.assertEqual(again.read_bytes(), clip.read_bytes())
            lacuna("generate", *HUNYUAN, "-o", other)
            self.assertNotEqual(other.read_bytes(), clip.read_bytes())
        for value in ("-1", "1001"):
            self.refuses([*HUNYUAN, "--embedded-guidance", value, "--dry-run"], 1, f"embedded guidance: {value}, expected 0 to 1000")
        for words in (MOCHI, ["--synthetic", "tiny", "-p", "a red ball"]):
            for value in ("0", "3"):
                self.refuses([*words, "--embedded-guidance", value], 2, "takes no guidance scale as an input")
        self.assertIn("embedded guidance 6", lacuna("info", "--synthetic", "hunyuanvideo-tiny").stdout)
        self.assertNotIn("embedded", lacuna("info", "--synthetic", "mochi-tiny").stdout)

    def test_frames_that_fit_are_named(self):
        self.refuses([*MOCHI, "--frames", "8"], 1, "8 frames, expected 1 + a multiple of 6, such as 7 or 13")
        self.refuses([*HUNYUAN, "--frames", "7"], 1, "7 frames, expected 1 + a multiple of 4, such as 5 or 9")

    def test_tiles_that_the_decoder_takes_are_advised(self):
        for words in (MOCHI, HUNYUAN):
            words = [*words, "-W", "512", "-H", "512"]
            self.refuses([*words, "--max-memory", "0.1"], 1, "try --vae-tile blend, ")
            self.refuses([*words, "--vae-tile", "exact"], 1, "expected off or blend")

    def test_a_negative_prompt_that_nothing_reads_is_said(self):
        words = [*HUNYUAN, "-n", "dull", "--no-decode", "--latents", self.dir / "l.safetensors"]
        self.assertIn("nothing reads the negative prompt", lacuna("generate", *words).stderr)
        self.assertNotIn("nothing reads", lacuna("generate", *words, "--guidance", "2").stderr)

    def test_info_lists_the_sizes_of_the_family(self):
        expected = {"mochi-1": ["163x480x848", "31x480x848", "85x480x848"],
                    "hunyuanvideo": ["129x720x1280", "33x320x544", "129x544x960", "129x720x720", "129x960x960"],
                    "wan2.1-1.3b": ["81x480x832", "17x480x832", "33x480x832", "81x720x1280", "121x704x1280"]}
        for preset, sizes in expected.items():
            listed = json.loads(lacuna("info", "--synthetic", preset, "--json").stdout)["sizes"]
            self.assertEqual([row["size"] for row in listed], sizes)

    def test_help_names_every_preset(self):
        text = " ".join(lacuna("generate", "--help").stdout.split())
        for preset in ("wan2.2-a14b", "mochi-1", "mochi-tiny", "hunyuanvideo", "hunyuanvideo-tiny"):
            self.assertIn(f" {preset}", text)

    def test_compare(self):
        for words in (MOCHI, HUNYUAN):
            made = lacuna("compare", *words, "-a", "xattention:top_p=0.5,block=4,stride=4", "--json")
            self.assertEqual(made.returncode, 0, made.stderr)
            self.assertIn("keys in another order", made.stdout)
            json.loads(made.stdout)

    def test_masks_need_one_text_length(self):
        masks = self.dir / "m.safetensors"
        self.refuses([*MOCHI, "-a", "radial", "--save-masks", masks], 1, "text tokens with and without the prompt")
        self.assertFalse(masks.exists())
        clips = [self.dir / "a.y4m", self.dir / "b.y4m"]
        sparse = ["-a", "xattention:top_p=0.5,block=4,stride=4", "--save-masks", masks]
        for words, clip in ((sparse, clips[0]), (["--replay-masks", masks], clips[1])):
            made = lacuna("generate", *MOCHI, "--guidance", "1", *words, "-o", clip)
            self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(clips[0].read_bytes(), clips[1].read_bytes())
        self.refuses([*MOCHI, "--guidance", "1", "--replay-masks", masks, "-p", "a much longer prompt than that"], 1, "text tokens")

    def test_calibrated_masks_are_of_one_text_length(self):
        prompts, profile = self.dir / "prompts.txt", self.dir / "p.profile.json"
        calibrate = ["calibrate", "--method", "calibatt", "--prompts", prompts, "-o", profile, "--no-prompt-cache"]
        prompts.write_text("a red ball\na cat walks over wet grass\n")
        self.fails(1, *calibrate, *MOCHI[:-3], leaves=["prompts.txt"], says="prompts of .* text tokens, expected as many in all")
        prompts.write_text("a red ball\na big fox\n")
        made = lacuna(*calibrate, *MOCHI[:-3])
        self.assertEqual(made.returncode, 0, made.stderr)
        made = lacuna("generate", *MOCHI, "--guidance", "1", "--profile", profile, "-o", self.dir / "clip.mp4")
        self.assertEqual(made.returncode, 0, made.stderr)
        made = lacuna("generate", *MOCHI, "-n", "a blue box", "--profile", profile, "-o", self.dir / "clip.mp4")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.refuses([*MOCHI, "--profile", profile], 1, "text tokens with and without the prompt")
        self.refuses([*MOCHI, "--guidance", "1", "--profile", profile, "-p", "a"], 1, "text tokens")


if __name__ == "__main__":
    main()

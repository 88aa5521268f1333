"""Those that are compared. Each measures a test in new processes and says what came of it, by configuration."""

import json
import os
from dataclasses import dataclass
from statistics import median

from children import ChildError, run


@dataclass(frozen=True)
class Test:
    """Something to measure. `kind` is prefill, decode, first token or memory; `tokens` those of the prompt, or in the cache."""

    kind: str
    tokens: int

    @property
    def unit(self):
        return {"prefill": "tokens/s", "decode": "tokens/s", "first token": "s", "memory": "MB"}[self.kind]

    @property
    def more_is_better(self):
        return self.unit == "tokens/s"

    def __str__(self):
        return {
            "prefill": f"prompt of {self.tokens}",
            "decode": f"decoding behind {self.tokens}",
            "first token": f"start to first token, prompt of {self.tokens}",
            "memory": f"peak memory, prompt of {self.tokens}",
        }[self.kind]

    def of(self, finished):
        """The result of a whole process."""
        return finished.seconds if self.kind == "first token" else finished.peak_bytes / 1e6


@dataclass(frozen=True)
class Plan:
    """What holds for everyone."""

    model: str
    text: str
    profile: str
    threads: int
    decode_tokens: int
    repetitions: int


class LlamaCpp:
    """llama-bench, with and without flash attention, with caches of 16, 8 and 4 bits (the latter need flash attention for values), with
    weights as they are in the file and rearranged for the CPU."""

    name = "llama.cpp"
    CONFIGURATIONS = [
        {"fa": fa, "keys": cache, "values": cache, "repack": repack}
        for fa, cache in [(0, "f16"), (1, "f16"), (1, "q8_0"), (1, "q4_0")]
        for repack in (1, 0)
    ]

    def __init__(self, binary, plan, keep):
        self.binary, self.plan, self.keep = binary, plan, keep
        # Of each test, those that take part in the rounds after the first.
        self.kept = {}

    def takes(self, _test, _round):
        return True

    def measure(self, test, _round):
        whole = test.kind in ("first token", "memory")
        configurations = self.kept.get(test, self.CONFIGURATIONS)
        measured = [(c, self.whole(test, c) if whole else self.speed(test, c)) for c in configurations]
        best = sorted(measured, key=lambda of: median(of[1]), reverse=test.more_is_better)
        self.kept.setdefault(test, [c for c, _ in best[: self.keep]])
        return {self.label(c): values for c, values in measured}

    @classmethod
    def label(cls, configuration):
        keys, values = configuration["keys"], configuration["values"]
        cache = keys if keys == values else f"{keys} and {values}"
        return f"{cls.name}, fa {configuration['fa']}, {cache}" + ("" if configuration["repack"] else ", no repack")

    def command(self, configuration, *more):
        switches = ["-fa", configuration["fa"], "-ctk", configuration["keys"], "-ctv", configuration["values"]]
        switches += ["--repack", configuration["repack"]]
        return [self.binary, "-m", self.plan.model, "-t", self.plan.threads, *switches, "-o", "json", *more]

    def whole(self, test, configuration):
        return [test.of(run(self.command(configuration, "-p", test.tokens, "-n", 0, "-r", 1, "--no-warmup")))]

    def speed(self, test, configuration):
        if test.kind == "prefill":
            lengths = ["-p", test.tokens, "-n", 0]
        else:
            lengths = ["-p", 0, "-n", self.plan.decode_tokens, "-d", test.tokens]
        command = self.command(configuration, *lengths, "-r", self.plan.repetitions)
        rows = parsed(run(command).stdout, command)
        return [speed for row in rows for speed in row["samples_ts"]]


class IkLlamaCpp(LlamaCpp):
    """Our ik_bench.cpp around ik_llama.cpp, which has flash attention for the CPU and 8-bit keys of its own."""

    name = "ik_llama.cpp"
    CONFIGURATIONS = [
        {"fa": 1, "keys": keys, "values": values, "repack": repack}
        for keys, values in [("f16", "f16"), ("q8_0", "q8_0"), ("q8_KV", "f16"), ("q8_KV", "q8_0")]
        for repack in (1, 0)
    ]


class BenchModel:
    """The program bench-model with some of its kernels."""

    def __init__(self, name, binary, kernels, plan):
        self.name, self.binary, self.kernels, self.plan = name, binary, kernels, plan
        threads = str(plan.threads)
        # Set here, or the program would start itself again to set them.
        self.env = {**os.environ, "RAYON_NUM_THREADS": threads, "CANDLE_NUM_THREADS": threads}
        self.about = {}

    def takes(self, _test, _round):
        return True

    def measure(self, test, round_):
        if test.kind in ("first token", "memory"):
            return {kernel: self.whole(test, kernel) for kernel in self.kernels}
        return self.speeds(test, round_)

    def command(self, kernels, *more):
        text = ["--text", self.plan.text] if self.plan.text else []
        text += ["--profile", self.plan.profile] if self.plan.profile else []
        shared = ["--model", self.plan.model, "--threads", self.plan.threads, "--kernels", ",".join(kernels)]
        return [self.binary, *shared, *text, *more]

    def whole(self, test, kernel):
        return [test.of(run(self.command([kernel], "--first-token", test.tokens), self.env))]

    def speeds(self, test, round_):
        lengths = "--prompts" if test.kind == "prefill" else "--depths"
        # Nobody is always first.
        turn = round_ % len(self.kernels)
        kernels = self.kernels[turn:] + self.kernels[:turn]
        more = ["--decode-tokens", self.plan.decode_tokens] if test.kind == "decode" else []
        more += ["--repetitions", self.plan.repetitions, "--json"]
        command = self.command(kernels, "--phases", test.kind, lengths, test.tokens, *more)
        report = parsed(run(command, self.env).stdout.strip().rpartition("\n")[2], command)
        self.about = {key: report[key] for key in ("model", "cpu", "date", "level", "threads")}
        tokens = test.tokens if test.kind == "prefill" else self.plan.decode_tokens
        return {row["engine"]: [tokens / ms * 1e3 for ms in row["round_ms"]] for row in report["rows"]}


class Candle(BenchModel):
    """candle's model is slow: it takes part in a few rounds, and reads no long prompts for their speed."""

    def __init__(self, binary, plan, rounds, longest):
        super().__init__("candle", binary, ["candle"], plan)
        self.rounds, self.longest = rounds, longest

    def takes(self, test, round_):
        return round_ < self.rounds and (test.unit != "tokens/s" or test.tokens <= self.longest)


def parsed(text, command):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ChildError(f"{command[0]}: expected JSON, got {text[:80]!r}") from error

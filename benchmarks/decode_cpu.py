"""Seconds a generated token takes after a short and after a long prompt, for mixers with a cache and with a state.

    python benchmarks/decode_cpu.py --output benchmarks/results/decode_cpu.json

A decoder of 4 layers, width 256; the state is made for the prompt and the new tokens. Best of several scans of 16
tokens, the two prompts in turns, by the clock and in seconds of the processor. The ratio is of the long to the short
prompt, by the processor, which other jobs disturb less: 1 where a token costs the same at any length. Bytes are those
of the decode state of one row.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

SHORT, LONG, ROUNDS = 64, 2048, 8


def measure(mixer) -> dict:
    import jax
    import numpy as np

    from llmlab import axes
    from llmlab.ffn import Gated
    from llmlab.generate import Generator, Sampling
    from llmlab.mesh import Mesh
    from llmlab.models import Block, Decoder
    from llmlab.nn import repeat
    from llmlab.nn.module import Rngs, split

    model = Decoder(vocab=256, width=256, stack=repeat(Block(mixer=mixer, ffn=Gated(hidden=512)), 4))
    generator = Generator(*split(model.build(Rngs(params=0))), Mesh().build(jax.devices()[:1]), axes.data(), "float32")
    key, greedy, carries, seconds, size = jax.random.key(0), Sampling(temperature=0.0), {}, {}, {}
    for length in (SHORT, LONG):
        rows = generator.rows([np.arange(length) % 256], 16 * (ROUNDS + 1))
        slots = length + 16 * (ROUNDS + 1)
        tokens_B, carry = generator.prefill(generator.params, generator.stats, rows, key, slots, greedy)
        size[length] = sum(a.nbytes for a in jax.tree.leaves(carry[1]))
        carries[length] = (tokens_B, np.zeros(1, bool), *carry)
        seconds[length] = []
    for number in range(ROUNDS + 1):
        for length in (SHORT, LONG):
            wall, cpu = time.perf_counter(), time.process_time()
            out, carries[length] = generator.extend(
                generator.params, generator.stats, carries[length], key, 1 + 16 * number, greedy, ()
            )
            np.asarray(out)
            if number:  # the first scan compiles
                seconds[length].append(((time.perf_counter() - wall) / 16, (time.process_time() - cpu) / 16))
    walls, cpus = ({length: min(time[i] for time in times) for length, times in seconds.items()} for i in (0, 1))
    return {
        "milliseconds_a_token": {length: round(1e3 * value, 3) for length, value in walls.items()},
        "cpu_milliseconds_a_token": {length: round(1e3 * value, 3) for length, value in cpus.items()},
        "ratio": round(cpus[LONG] / cpus[SHORT], 2),
        "state_bytes": size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    from llmlab import mixers

    kinds = {
        "attention": mixers.Attention(heads=4),
        "attention, window 256": mixers.Attention(heads=4, view=mixers.Causal(window=256)),
        "mamba": mixers.Mamba(),
        "mamba2": mixers.Mamba2(),
        "delta net": mixers.DeltaNet(heads=4),
        "gru": mixers.GRU(),
        "lstm": mixers.LSTM(),
    }
    found = {}
    for name, mixer in kinds.items():
        found[name] = measure(mixer)
        print(json.dumps({name: found[name]}), flush=True)
    if options.output:
        options.output.write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "mixers": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

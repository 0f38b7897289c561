"""Does LLaMA-2 7B train on 256 chips of TPU v5e, and how fast?

    llmlab plan experiments/plan_llama2_7b.py --topology v5e:16x16

The batch is 4 rows of 2,048 tokens a chip, parameters are shared over all chips (FSDP), and what attention reads is
saved for the backward pass. Nothing here is trained: the plan needs no chip and no data.
Cost: 1 to 2 minutes of one CPU core. Expected: it fits, see docs/planning.md.
"""

import dataclasses

from llmlab import presets
from llmlab.data import Data, SentencePiece
from llmlab.mesh import Mesh
from llmlab.optim import AdamW, Cosine
from llmlab.train import Experiment, Train


def config() -> Experiment:
    model = presets.llama2_7b()
    return Experiment(
        model=dataclasses.replace(model, stack=dataclasses.replace(model.stack, remat="projections")),
        data=Data(tokenizer=SentencePiece(vocab=model.vocab), batch=4 * 256, length=2048),
        optim=AdamW(peak=3e-4, schedule=Cosine(warmup=2000, floor=0.1)),
        train=Train(steps=250_000),
        mesh=Mesh(data=1, fsdp=-1),
    )

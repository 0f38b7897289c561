"""What do larger models ask of pods: LLaMA-3 8B, Mixtral 8x7B, Llama 3.1 405B?

    llmlab plan experiments/plan_pods.py --topology v5p:2x4x4
    llmlab plan experiments/plan_pods.py:mixtral_8x7b --topology v5p:2x4x4 --mesh.expert 8
    llmlab plan experiments/plan_pods.py:llama31_405b --topology v5p:16x16x16 --mesh.tensor 8

To be planned and not run: no data of these vocabularies is named. Parameters are shared over all chips (FSDP).
Cost: 1 to 2 minutes of one CPU core each. Expected: the table in docs/planning.md.
"""

import dataclasses

from llmlab import presets
from llmlab.data import Data, SentencePiece
from llmlab.ffn import Dropless, Gated, MoE
from llmlab.mesh import Mesh
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import Rotary, repeat
from llmlab.optim import AdamW, Cosine
from llmlab.tasks import CausalLM
from llmlab.train import Experiment, Train


def planned(model: Decoder, batch: int, length: int, task: CausalLM = CausalLM()) -> Experiment:
    stack = dataclasses.replace(model.stack, remat="full")
    return Experiment(
        model=dataclasses.replace(model, stack=stack),
        task=task,
        data=Data(tokenizer=SentencePiece(vocab=model.vocab), batch=batch, length=length),
        optim=AdamW(peak=3e-4, schedule=Cosine(warmup=2000, floor=0.1)),
        train=Train(steps=100_000),
        mesh=Mesh(data=1, fsdp=-1),
    )


def config() -> Experiment:
    """LLaMA-3 8B, 4 rows of 8,192 tokens on each of 32 chips."""
    return planned(presets.llama3_8b(), 4 * 32, 8192)


def mixtral_8x7b() -> Experiment:
    """8 experts, 2 a token, none dropped; 4 rows of 4,096 tokens on each of 32 chips."""
    experts = MoE(experts=8, top_k=2, expert=Gated(hidden=14_336), form=Dropless(rounds=8, room=1.0))
    block = Block(mixer=Attention(heads=32, kv_heads=8, position=Rotary(theta=1e6)), ffn=experts)
    model = Decoder(vocab=32_000, width=4096, stack=repeat(block, 32))
    return planned(model, 4 * 32, 4096, CausalLM(auxiliary=(("load_balance", 0.01),)))


def llama31_405b() -> Experiment:
    """One row of 8,192 tokens for each 8 of 4,096 chips, which share heads and hidden units (--mesh.tensor 8)."""
    return planned(presets.llama31_405b(), 512, 8192)

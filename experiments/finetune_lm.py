"""How much better does a published language model know a text of yours, after some steps on it?

    llmlab train experiments/finetune_lm.py --start.path DIR --data.source.path TEXT

DIR is a checkpoint of a decoder (config.json, safetensors, tokenizer) or a run; TEXT a file, a folder or a glob.
Cost: that of 200 steps of 8 x 512 tokens; parameters, gradients and AdamW are four numbers a parameter in memory.
Expected: a validation loss below that of the same command with `--train.steps 1 --optim.peak 1e-12`, which is the
published model's.
"""

from llmlab.config import REQUIRED
from llmlab.data import Data, TextFiles
from llmlab.interop.tokenizers import Published
from llmlab.optim import AdamW, Cosine
from llmlab.train import Experiment, Loaded, Pretrained, Train


def config() -> Experiment:
    return Experiment(
        start=Pretrained(path=REQUIRED),
        model=Loaded(),
        data=Data(source=TextFiles(path=REQUIRED), tokenizer=Published(), batch=8, length=512),
        optim=AdamW(peak=2e-5, schedule=Cosine(warmup=20, floor=0.1), b2=0.99),
        train=Train(steps=200, eval_every=50, eval_batches=16, save_every=100),
    )

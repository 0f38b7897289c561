"""How well does a published model tell your classes apart, with a new head and some steps on labelled texts?

    llmlab train experiments/finetune_classify.py --start.path DIR --data.path TEXTS --data.labels negative positive

DIR is a checkpoint of an encoder or a decoder, or a run; TEXTS are lines of {"text": ..., "label": ...}.
Cost: that of 300 steps of 16 x 128 tokens with the model. Expected: accuracy above that of the largest class.
`first` reads BERT's [CLS] through a dense layer, `last` the last token of a decoder; `config` the mean of all.
"""

import dataclasses

from llmlab.config import REQUIRED
from llmlab.data import Labelled
from llmlab.interop.tokenizers import Published
from llmlab.models import First, Last, Pooled, Transform
from llmlab.optim import AdamW, Linear
from llmlab.tasks import Classification
from llmlab.train import Experiment, Loaded, Pretrained, Train


def config() -> Experiment:
    return Experiment(
        start=Pretrained(path=REQUIRED),
        model=Pooled(trunk=Loaded(), classes=2, dropout=0.1),
        task=Classification(),
        data=Labelled(path=REQUIRED, labels=("negative", "positive"), tokenizer=Published(), batch=16, length=128),
        optim=AdamW(peak=3e-5, schedule=Linear(warmup=30)),
        train=Train(steps=300, eval_every=50, save_every=100),
    )


def with_head(**changes) -> Experiment:
    base = config()
    return dataclasses.replace(base, model=dataclasses.replace(base.model, **changes))


def first() -> Experiment:
    return with_head(pooling=First(), transform=Transform())


def last() -> Experiment:
    return with_head(pooling=Last())

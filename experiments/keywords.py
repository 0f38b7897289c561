"""Does a convolutional key-word spotter that trains many branches hear words in noise?

    llmlab train experiments/keywords.py

After training, `llmlab.models.repcnn.fold` adds the branches up into one convolution a layer, which gives the same
answers and runs frame by frame. The patterns are synthetic: llmlab/data/synthetic/keywords.py.
Cost: about 1 minute on 2 CPU cores. Expected: accuracy above 0.9; a guess has 0.125.
"""

from llmlab.data import Synthetic
from llmlab.data.synthetic import Keywords
from llmlab.models import Max, Pooled, RepCNN
from llmlab.models.repcnn import RepBlock
from llmlab.nn import repeat
from llmlab.optim import AdamW, Cosine
from llmlab.tasks import Classification
from llmlab.train import Experiment, Train


def config() -> Experiment:
    problem = Keywords(noise=3.0)
    trunk = RepCNN(features=problem.features, width=32, stack=repeat(RepBlock(size=9), 4))
    return Experiment(
        model=Pooled(trunk=trunk, pooling=Max(), classes=problem.words),
        task=Classification(),
        data=Synthetic(problem=problem, batch=32),
        optim=AdamW(peak=3e-3, schedule=Cosine(warmup=20)),
        train=Train(steps=200, log_every=20, eval_every=100, save_every=100),
    )

"""Does llmlab train as well as nanoGPT's CPU recipe on the characters of tiny Shakespeare?

    llmlab train experiments/nanogpt_char_cpu.py --data.source.path input.txt

input.txt is char-rnn's tiny Shakespeare (1,115,394 characters). Cost: about 2 minutes on 2 CPU cores.
Expected: validation loss 1.905 +- 0.025 nats over the whole validation split; a PyTorch twin reaches 1.910 and 1.899.
"""

from llmlab.config import REQUIRED
from llmlab.data import Characters, Data, RandomWindows, TextFiles
from llmlab.ffn import Mlp
from llmlab.mixers import Attention
from llmlab.models import Block, Decoder
from llmlab.nn import Embedding, LayerNorm, Learned, Normal, PerDepth, TiedHead, repeat
from llmlab.optim import AdamW, Cosine
from llmlab.train import Experiment, Train

ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SMALL, RESIDUAL = Normal(std=0.02), PerDepth(init=Normal(std=0.02))


def config() -> Experiment:
    norm = LayerNorm(bias=None)
    block = Block(
        mixer=Attention(heads=4, position=None, init=SMALL, out_init=RESIDUAL),
        ffn=Mlp(hidden=512, activation="gelu", init=SMALL, out_init=RESIDUAL),
        norm=norm,
    )
    return Experiment(
        model=Decoder(
            vocab=len(ALPHABET),
            width=128,
            embed=Embedding(position=Learned(length=64, init=SMALL), init=SMALL, multiple=8),
            stack=repeat(block, 4),
            norm=norm,
            head=TiedHead(),
        ),
        data=Data(
            source=TextFiles(path=REQUIRED, validation=0.1),
            tokenizer=Characters(alphabet=ALPHABET),
            packing=RandomWindows(),
            batch=12,
            length=64,
        ),
        optim=AdamW(peak=1e-3, schedule=Cosine(warmup=100, floor=0.1), b2=0.99, decay=0.1),
        train=Train(steps=2000, eval_every=500, save_every=500, prompt="ROMEO:"),
    )

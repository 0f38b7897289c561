"""The training split of a source as a corpus of its own, so that what is tuned has not seen the validation split."""

from __future__ import annotations

from llmlab.config import config, digest
from llmlab.data.sources import Source, check_share, held_out


@config
class Carved(Source):
    """`share` of the source's training documents validate, chosen by a hash of their names; of a single document the
    last part. The source's own validation split is never read."""

    source: Source
    share: float = 0.1

    def check(self):
        check_share(self.share, "Carved.share")

    def read(self, split):
        documents = list(self.source.read("train"))
        if len(documents) == 1:
            name, text = documents[0][0], documents[0][1].decode()
            cut = int(len(text) * (1 - self.share))
            yield name, (text[:cut] if split == "train" else text[cut:]).encode()
            return
        names = [f"{number} {name}" for number, (name, _) in enumerate(documents)]
        held = held_out(names, self.share)
        for numbered, (name, text) in zip(names, documents):
            if (numbered in held) == (split == "validation"):
                yield name, text

    def fingerprint(self):
        return digest("carved", self.share, self.source.fingerprint())

"""An engine without a model: what it draws depends on seed, key, index and position alone."""

import numpy as np

from flopwise.infer.engine import SampleBatch, Usage, streams, uniforms


class ToySampler:
    cfg = None

    def sample(self, prompts, n=1, max_tokens=8, stop=(), temperature=1.0, top_k=None, top_p=None, seed=0,
               prefix_tokens=None, on_progress=None, keys=None, first=0):  # fmt: skip
        P = len(prompts)
        index = np.tile(np.arange(first, first + n), P)
        row = streams(seed, np.repeat(np.asarray(keys), n), index)
        ids = np.stack([(uniforms(row, i) * 10).astype(np.int32) for i in range(max_tokens)], 1)
        usage = Usage(0, ids.size, float(ids.size), 0.001)
        return SampleBatch(
            ids, np.full(P * n, max_tokens), -ids.astype(np.float32), np.repeat(np.arange(P), n), index,
            np.ones(P * n, bool), usage,
        )  # fmt: skip

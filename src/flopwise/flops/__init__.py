"""What compute is: parameters, FLOPs and bytes per module; the machine; what a run spent. No torch."""

from flopwise.flops.count import (
    FlopCount,
    ParamCount,
    Trained,
    count_params,
    decode_flops,
    forward_flops,
    generate_flops,
    head_flops,
    kv_cache_bytes,
    prefill_flops,
    score_flops,
    six_nd,
    train_flops,
)
from flopwise.flops.ledger import Ledger
from flopwise.flops.spend import Spend

__all__ = [
    "FlopCount", "Ledger", "ParamCount", "Spend", "Trained", "count_params", "decode_flops", "forward_flops",
    "generate_flops", "head_flops", "kv_cache_bytes", "prefill_flops", "score_flops", "six_nd", "train_flops",
]  # fmt: skip

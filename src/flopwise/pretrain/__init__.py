"""Law 1: ladders of models over parameters and tokens, and the law fitted to them."""

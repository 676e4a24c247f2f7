"""Corpora, tokenizer, packed shards, the verifiable task, and what keeps them honest: splits and checks."""

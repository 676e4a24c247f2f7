"""Law 2: every way to spend compute after pretraining, one file per method over the one loop."""

"""The one training loop: pretraining and every post-training method are data plus an objective."""

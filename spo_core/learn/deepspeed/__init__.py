"""DeepSpeed ranks behind the trainer's protocol. Not here: the loss, and what an optimizer step sums."""

"""The policy: weights, tokenizer, device, attention masks. Not here: how it is sampled, and how it is updated."""

"""The workshop: what makes, measures and judges models. The product, which is everything beside it, never imports it."""

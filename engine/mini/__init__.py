"""The bundled model pair: corpus generator, tokenizer, dense network, training and model card."""

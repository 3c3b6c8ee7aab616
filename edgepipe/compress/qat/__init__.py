"""Quantization-aware training of tf_keras models: lowering, fake-quant placement, ranges, storage, agreement."""

"""Masks of the tf_keras twin: where Keras 3 uses one, ends one, hands one on and forgets one."""

import json
from typing import Any

import keras
import numpy as np

from edgepipe.models.bridge_layers import MaskAttachment, MaskReader, OperatorLayer
from edgepipe.models.keras_operators import encode_argument, is_tensor
from edgepipe.models.keras_types import KerasLayer, KerasTensor, TensorTree
from edgepipe.models.layer_names import LayerNames


class TwinMasks:
    """The implicit masks of the twin's symbolic tensors, which follow Keras 3's rules instead of those of tf_keras."""

    def __init__(self, layer_names: LayerNames) -> None:
        self.layer_names = layer_names
        self.attended_tensor_by_id: dict[int, KerasTensor] = {}  # what attention layers have read so far

    def has_mask(self, tensor: Any) -> bool:
        """Whether Keras 3 has a mask for the tensor: attention takes it away from what it reads."""
        return getattr(tensor, "_keras_mask", None) is not None and id(tensor) not in self.attended_tensor_by_id

    def read_after_attention(self, leaf: Any) -> Any:
        """An argument as a layer reads it, without a mask that attention has taken away."""
        return self.without_masks([leaf])[0] if id(leaf) in self.attended_tensor_by_id else leaf

    def without_masks(self, tensors: list[KerasTensor]) -> list[KerasTensor]:
        """`tensors`, read through a layer that ends masks where they have one: Keras 3's operators hand none on."""
        return [
            self._apply_operator("Copy", tensor, "unmasked")
            if getattr(tensor, "_keras_mask", None) is not None
            else tensor
            for tensor in tensors
        ]

    def merge_operands(self, merge_layer: KerasLayer, operands: list[KerasTensor]) -> list[KerasTensor]:
        """The operands of a merging layer; without masks if one has none: Keras 3 then ends them, tf_keras does not."""
        has_own_rule = isinstance(merge_layer, (keras.layers.Concatenate, keras.layers.Dot))
        return operands if has_own_rule or all(map(self.has_mask, operands)) else self.without_masks(operands)

    def prepare_attention(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of attention as tf_keras needs them; its tensors have no mask from then on, as in Keras 3."""
        attended_tensors = [*args[:3], kwargs.get("query"), kwargs.get("value"), kwargs.get("key")]
        self.attended_tensor_by_id |= {id(tensor): tensor for tensor in attended_tensors if tensor is not None}
        mask = kwargs.get("attention_mask")
        if mask is not None and not is_tensor(mask):  # tf_keras stores an array among its arguments as a list
            constant = encode_argument(np.asarray(mask).astype(bool), [])
            query = args[0] if args else kwargs["query"]
            return {**kwargs, "attention_mask": self._apply_operator("Constant", query, "attention_mask", constant)}
        if mask is None or mask.dtype.is_bool:
            return kwargs
        # Keras 3 casts the mask to bool, tf_keras computes with its value
        return {**kwargs, "attention_mask": self._apply_operator("NotEqual", mask, "attention_mask", 0)}

    def read(self, tensors: TensorTree) -> TensorTree:
        """The implicit masks of tensors, as tensors of the graph; None for those without."""
        return keras.tree.map_structure(lambda tensor: self._read(tensor) if self.has_mask(tensor) else None, tensors)

    def read_or_ones(self, tensor: KerasTensor) -> KerasTensor:
        """The implicit mask of a tensor, (batch, steps); True everywhere if attention has taken it away."""
        if self.has_mask(tensor):
            return self._read(tensor)
        ones = self._apply_operator("OnesLike", tensor, "ones", dtype="bool")
        axes = encode_argument(tuple(range(2, len(tensor.shape))), [])
        return self._apply_operator("All", ones, "mask", axis=axes) if len(tensor.shape) > 2 else ones

    def _read(self, tensor: KerasTensor) -> KerasTensor:
        return MaskReader(name=self.layer_names.make_unique("mask"))(tensor)

    def attach(self, tensor: KerasTensor, mask: KerasTensor, name: str) -> KerasTensor:
        """`tensor`, the output of the layer `name`, with a mask."""
        return MaskAttachment(name=self.layer_names.make_unique(f"{name}_masked"))([tensor, mask])

    def _apply_operator(
        self, operator: str, tensor: KerasTensor, name: str, *constants: Any, **options: Any
    ) -> KerasTensor:
        arguments_json = json.dumps({"args": [{"tensor": 0}, *constants], "kwargs": options})
        return OperatorLayer(operator, arguments_json, name=self.layer_names.make_unique(name))(tensor)

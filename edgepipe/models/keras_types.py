"""Names for the objects of Keras 3, tf_keras and TensorFlow in signatures.

None of the three ships types, and mypy skips their imports, so each alias is `Any`: it documents what is meant. This
module imports none of them and is free to import. `Keras...` is Keras 3, `TfKeras...` is tf_keras (Keras 2), and
`AnyKeras...` may be either.
"""

from typing import Any, TypeAlias

KerasModel: TypeAlias = Any  # keras.Model
KerasLayer: TypeAlias = Any  # keras.Layer
KerasOperation: TypeAlias = Any  # a node's operation: a keras.Layer, or the Operation of a keras.ops function
KerasFunction: TypeAlias = Any  # keras.Function: a traced graph without a model around it

TfKerasModel: TypeAlias = Any  # tf_keras.Model
TfKerasLayer: TypeAlias = Any  # tf_keras.layers.Layer

AnyKerasModel: TypeAlias = Any
AnyKerasLayer: TypeAlias = Any
AnyKerasVariable: TypeAlias = Any  # keras.Variable or tf.Variable: a weight
KerasNode: TypeAlias = Any  # one call of a layer or operator in a functional graph of either Keras
KerasTensor: TypeAlias = Any  # a symbolic tensor of either Keras
KerasActivation: TypeAlias = Any  # an activation: a function, or a layer used as one

Tensor: TypeAlias = Any  # a tensor with values (tf.Tensor, NumPy array), or symbolic: whatever a layer is called on
TensorTree: TypeAlias = Any  # a tensor, or lists, tuples and dictionaries of tensors
TensorSpec: TypeAlias = Any  # tf.TensorSpec
TfFunction: TypeAlias = Any  # a concrete TensorFlow function

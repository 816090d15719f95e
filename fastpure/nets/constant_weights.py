"""Any network with its weights as constants: what derivatives with respect to the image do not need is left out.

``frozen`` has the functions that keep little; the built-in networks call them by name, a network of somebody else
calls torch's. Inside ``ConstantWeights`` those calls are replaced that plain autograd serves badly:

* a convolution keeps its weight, not its input, and its second derivative leaves out the weight's;
* SiLU of a GroupNorm keeps nothing: its input is made again from GroupNorm's, which that one keeps. A scale and a
  shift per channel may stand between them, as time embeddings do, and SiLU may be written x * sigmoid(x);
* batch normalisation in evaluation mode keeps a scale per channel, and is differentiated as the linear map it is;
* 2x2 mean pooling keeps nothing.

The rest is well served: linear layers with frozen weights, interpolation, additions and concatenations keep no image,
GroupNorm and layer normalisation their input, fused attention q, k, v and its output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, final
from weakref import ref

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from . import frozen
from .frozen import Geometry, Recipe
from .products import FUNCTIONS, product

Versions: TypeAlias = tuple[int | None, ...]


@final
class ConstantWeights(TorchFunctionMode):
    """Context in which a network's frozen weights are constants. What the network computes keeps its bits, except that
    16-bit products of processors without are rounded once (`products`), with weights that require gradients too.

    A call is torch's own where a weight requires a gradient or the input does not, for subclasses of ``Tensor``, and
    where something else decides what is computed or kept: autocast, ``torch.compile``, ``torch.func``, forward-mode
    differentiation, ``torch.utils.checkpoint``.
    """

    def __init__(self) -> None:
        super().__init__()
        # By id, which another tensor may have later: what is known of a tensor begins with a reference to it.
        self._recipes: dict[int, tuple[ref[Tensor], Recipe, Versions]] = {}
        self._sigmoids: dict[int, tuple[ref[Tensor], ref[Tensor], int]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        replacement = note = None
        if torch.is_grad_enabled():
            replacement, note = _REPLACEMENTS.get(func), _NOTES.get(func)
        multiplies = func in FUNCTIONS
        if not (replacement or note or multiplies) or _others_decide(types, kwargs):
            return func(*args, **kwargs)
        out = None if replacement is None else replacement(self, *args, **kwargs)
        if out is None:
            out = product(func, *args, **kwargs) if multiplies else func(*args, **kwargs)
            if note is not None:
                note(self, func, out, *args, **kwargs)
        return out

    def remember(self, z: Tensor, make: Callable[..., Tensor], *parts: Tensor | None) -> None:
        """From now on ``z`` is known as ``make(*parts)``, unless one of them is changed in place."""
        self._recipes[id(z)] = (ref(z), Recipe(make, parts), _versions(z, *parts))

    def recipe(self, z: Tensor) -> Recipe | None:
        """How to make ``z``, if that is known."""
        known = self._recipes.get(id(z))
        if known is None:
            return None
        of, recipe, versions = known
        return recipe if of() is z and versions == _versions(z, *recipe.parts) else None

    def remember_sigmoid(self, s: Tensor, z: Tensor) -> None:
        """From now on ``s`` is known as sigmoid(z), unless it is changed in place."""
        self._sigmoids[id(s)] = (ref(s), ref(z), s._version)

    def is_sigmoid(self, s: Tensor, z: Tensor) -> bool:
        """Whether ``s`` is known as sigmoid(z)."""
        known = self._sigmoids.get(id(s))
        if known is None:
            return False
        of, argument, version = known
        return of() is s and argument() is z and version == s._version


def _versions(*tensors: Tensor | None) -> Versions:
    return tuple(None if tensor is None else tensor._version for tensor in tensors)


def _others_decide(types: Any, kwargs: dict[str, Any]) -> bool:
    """Whether something else has a say in what a call computes or keeps."""
    if any(kind is not Tensor for kind in types) or "out" in kwargs or torch._C._is_any_autocast_enabled():
        return True
    # Ways to differentiate that autograd functions know nothing of.
    if forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    # A checkpoint repeats the pass outside this context, and has to meet the same tensors there.
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"


def _constant(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether ``x`` requires a gradient and no weight does."""
    return x.is_floating_point() and frozen.saves_nothing_for(x, *weights)


# ---------------------------------------------------------------------- replacements: the result, or None to decline
def _convolution(
    mode: ConstantWeights,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    if isinstance(padding, str) or input.dim() != weight.dim() or not _constant(input, weight, bias):
        return None
    n = input.dim() - 2
    geometry = Geometry(_each(stride, n), _each(padding, n), _each(dilation, n), False, [0] * n, groups)
    return frozen.convolution(input, weight, bias, geometry)


def _transposed_convolution(
    mode: ConstantWeights,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor | None:
    if input.dim() != weight.dim() or not _constant(input, weight, bias):
        return None
    n = input.dim() - 2
    sizes = _each(stride, n), _each(padding, n), _each(dilation, n)
    return frozen.convolution(input, weight, bias, Geometry(*sizes, True, _each(output_padding, n), groups))


def _each(value: Any, dimensions: int) -> list[int]:
    """One number per dimension, from one for all or one for each."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dimensions if len(values) == 1 else values


def _batch_norm(
    mode: ConstantWeights,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None or input.dim() != 4:
        return None
    if not _constant(input, weight, bias):
        return None
    return frozen.batch_norm(input, running_mean, running_var, weight, bias, eps)


def _mean_pooling(
    mode: ConstantWeights,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor | None:
    sizes = [_each(size, 2) for size in (kernel_size, stride or kernel_size, padding)]
    even = input.dim() == 4 and input.shape[2] % 2 == 0 and input.shape[3] % 2 == 0
    if sizes != [[2, 2], [2, 2], [0, 0]] or not even or divisor_override is not None or not _constant(input):
        return None
    return frozen.mean_down(input)


def _silu(mode: ConstantWeights, input: Tensor, inplace: bool = False) -> Tensor | None:
    recipe = None if inplace else mode.recipe(input)
    return None if recipe is None else frozen.silu(input, recipe)


def _sigmoid(mode: ConstantWeights, input: Tensor) -> Tensor | None:
    recipe = mode.recipe(input)
    if recipe is None:
        return None
    s = frozen.sigmoid(input, recipe)
    mode.remember_sigmoid(s, input)
    return s


def _product(mode: ConstantWeights, *args: Any, **kwargs: Any) -> Tensor | None:
    """SiLU, if it is x * sigmoid(x)."""
    if len(args) != 2 or kwargs:
        return None
    for z, s in (args, args[::-1]):
        recipe = mode.recipe(z)
        if recipe is not None and mode.is_sigmoid(s, z):
            return frozen.swish(z, s, recipe)
    return None


# ------------------------------------------------------------------- notes: what is known about the result of a call
def _note_group_norm(
    mode: ConstantWeights,
    func: Callable[..., Tensor],
    out: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> None:
    if _constant(input, weight, bias):
        mode.remember(out, lambda x, w, b: func(x, num_groups, w, b, eps), input, weight, bias)


def _note_affine(
    mode: ConstantWeights, func: Callable[..., Tensor], out: Tensor, *args: Any, **kwargs: Any
) -> None:
    """A sum or product with something that does not depend on the image, and is small enough to be kept for it."""
    if len(args) != 2 or kwargs:
        return
    z, other = args if mode.recipe(args[0]) is not None else args[::-1]
    recipe = mode.recipe(z)
    if recipe is None:
        return
    make = recipe.make
    if not isinstance(other, Tensor):
        mode.remember(out, lambda *parts: func(make(*parts), other), *recipe.parts)
    elif 4 * other.numel() <= out.numel() and not (other.requires_grad or other.is_inference()):
        mode.remember(out, lambda *parts: func(make(*parts[:-1]), parts[-1]), *recipe.parts, other)


def _note_conversion(
    mode: ConstantWeights, func: Callable[..., Any], out: Any, input: Tensor, *args: Any, **kwargs: Any
) -> None:
    """Of dtype, device or layout."""
    recipe = mode.recipe(input)
    if recipe is None or not isinstance(out, Tensor) or out is input or not out.requires_grad:
        return
    make = recipe.make
    if not any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
        mode.remember(out, lambda *parts: func(make(*parts), *args, **kwargs), *recipe.parts)


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    torch.conv_transpose1d: _transposed_convolution,
    torch.conv_transpose2d: _transposed_convolution,
    torch.conv_transpose3d: _transposed_convolution,
    F.batch_norm: _batch_norm,
    F.avg_pool2d: _mean_pooling,
    F.silu: _silu,
    torch.sigmoid: _sigmoid,
    Tensor.sigmoid: _sigmoid,
    F.sigmoid: _sigmoid,
    torch.mul: _product,
    Tensor.mul: _product,
}

_NOTES: dict[Callable[..., Any], Callable[..., None]] = {
    F.group_norm: _note_group_norm,
    **dict.fromkeys((torch.mul, Tensor.mul, torch.add, Tensor.add), _note_affine),
    **dict.fromkeys((Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16), _note_conversion),
}

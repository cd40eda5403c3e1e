"""The attacked model: every network that a function hides, held still; and its answers, checked."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vidcsl.errors import UserError

Model = Callable[[Tensor], Tensor]
"""Clips [N, ...] in [0, 1] -> logits [N, K] or features [N, D]."""


class Judged(NamedTuple):
    """What a surrogate puts out where the prediction itself shows no way: a vote, say.

    Attributes:
        logits: [N, K] or features [N, D], what a goal is a function of.
        decision: [N, K], whose argmax is the prediction: what decides whether a goal is reached.
    """

    logits: Tensor
    decision: Tensor


def surrogates_of(model: Model) -> list[Model]:
    """What is attacked in a model's place: its `surrogates`, in turn, or the model itself.

    A model whose logits are constant, or jump, names modules that put out `Judged`.
    """
    return list(getattr(model, "surrogates", ())) or [model]


DEPTH = 6  # of a function that holds a list that holds an object that holds a network


def networks_of(model: Model) -> list[nn.Module]:
    """The networks that a model is made of: itself, or all that a function of clips can reach.

    A hub's model is often wrapped (`lambda clips: model(clips)`, `model.forward`, a partial, an
    object with a network): its networks stand in closures, defaults, globals and attributes.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    waiting: list[tuple[Any, int]] = [(model, 0)]
    while waiting:
        value, depth = waiting.pop()
        if id(value) in seen or depth > DEPTH:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found.append(value)
            modules = list(value.modules())
            seen |= {id(module) for module in modules}
            # Attributes that torch does not register: a list of networks, a replaced `forward`.
            reached = [
                value
                for module in modules
                for name, value in vars(module).items()
                if not name.startswith("_") and isinstance(value, CARRIERS)
            ]
        else:
            reached = _reached_from(value)
        waiting += [(each, depth + 1) for each in reached]
    return found


def _reached_from(value: Any) -> list[Any]:
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, list | tuple | set):
        return list(value)[:100]  # of models, not of data
    if isinstance(value, dict):
        return list(value.values())[:100]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        reached = [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        # Any function of torch would lead through all of torch.
        if not value.__module__.startswith("torch"):
            names = _names_in(value.__code__)
            reached += [value.__globals__[name] for name in names if name in value.__globals__]
        return reached
    if isinstance(value, type | Tensor) or not hasattr(value, "__dict__"):
        return []
    # Other objects: only those that can be called, or that hold a network themselves.
    attributes = [each for each in vars(value).values() if isinstance(each, CARRIERS)]
    return attributes if callable(value) or attributes else []


CARRIERS = (nn.Module, FunctionType, MethodType, partial, list, tuple, dict)


def _is_filled(cell: Any) -> bool:
    try:  # a variable that the outer function sets later, or has deleted
        return cell.cell_contents is not None
    except ValueError:
        return False


def _names_in(code: CodeType) -> set[str]:
    """The names that a function looks up, those of functions inside it included."""
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return {*code.co_names}.union(*(_names_in(each) for each in inner))


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """The model in eval mode and without parameter gradients; afterwards exactly as it was.

    So is every network that a function of clips can reach. Buffers that move all the same (running
    statistics of a function that switches to train mode itself) are put back, with a warning.
    """
    roots = networks_of(model)
    modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
    modes = [(module, module.training) for module in modules]
    trainable = [each for root in roots for each in root.parameters() if each.requires_grad]
    # By value: batch_norm's kernels write to running statistics without telling autograd.
    buffers = [
        (module, name, value, value.clone())
        for module in modules
        for name, value in module._buffers.items()
        if value is not None
    ]
    try:
        for root in roots:
            root.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
        moved = set()
        for module, name, value, before in buffers:
            # The buffer may also have been replaced by another tensor.
            if module._buffers.get(name) is not value or not torch.equal(value, before):
                with torch.no_grad():
                    value.copy_(before)
                module._buffers[name] = value
                moved.add(name)
        if moved:
            names = ", ".join(sorted(moved))
            warnings.warn(
                f"the model changed its own state ({names}) while it was asked, "
                "so that answers depend on those before them; it is put back. Does it switch to "
                "train mode itself?",
                stacklevel=4,
            )


def answer(model: Model, clips: Tensor) -> Judged:
    """The model's outputs `[N, K]` at clips `[N, ...]`, in float32 or float64.

    The model gets a copy: many normalise in place what they are given.

    Raises:
        UserError: it cannot take the clips, or does not return one finite row of numbers a clip.
    """
    try:
        outputs = model(clips.clone())
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(_refusal(model, clips, error)) from error
    if isinstance(outputs, Judged):
        return Judged(*(_checked(each, len(clips)) for each in outputs))
    checked = _checked(outputs, len(clips))
    return Judged(checked, checked)


def _checked(outputs: Any, count: int) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != count:
        raise UserError(f"the attacked model must return logits [{count}, K], {_shape_of(outputs)}")
    if not outputs.isfinite().all():
        raise UserError("the model's logits are not finite: check its weights and its dtype")
    # Losses of half-precision logits (a model under autocast) would be too coarse to compare.
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _shape_of(outputs: Any) -> str:
    """What came instead of logits, and how to make logits of it."""
    if isinstance(outputs, Tensor):
        remedy = ""
        if outputs.ndim == 1:
            remedy = ": of one logit make two, `lambda clips: F.pad(model(clips)[:, None], (1, 0))`"
        return f"not {list(outputs.shape)}{remedy}"
    kind = type(outputs).__name__
    if isinstance(outputs, dict):
        key = "logits" if "logits" in outputs else next(iter(outputs), "logits")
        return f"not {kind}: attack `lambda clips: model(clips)[{key!r}]`"
    if isinstance(outputs, list | tuple):
        return f"not {kind}: attack `lambda clips: model(clips)[0]`, or whichever holds the logits"
    if hasattr(outputs, "logits"):
        return f"not {kind}: attack `lambda clips: model(clips).logits`"
    return f"not {kind}"


def _refusal(model: Model, clips: Tensor, error: Exception) -> str:
    """Why a model could not take the clips, in one line with the remedy."""
    weights = [each for root in networks_of(model) for each in root.parameters()]
    given = f"{list(clips.shape)} {str(clips.dtype).removeprefix('torch.')}"
    other = [each for each in weights if each.is_floating_point() and each.dtype != clips.dtype]
    if other and len(other) == len(weights) and not torch.is_autocast_enabled(clips.device.type):
        kind = str(other[0].dtype).removeprefix("torch.")
        if other[0].dtype == torch.float32:
            remedy = "attack `clips.float()`"
        elif other[0].dtype == torch.float64:
            remedy = "attack `clips.double()`"
        else:  # whose steps are coarser than small budgets
            remedy = "attack `model.float()`, or a function that casts clips and logits itself"
        return f"the model's weights are {kind}, the clips {given}: {remedy}"
    if weights and weights[0].device.type != clips.device.type:
        where = weights[0].device
        return f"the model is on {where}, the clips on {clips.device}: attack `clips.to({where})`"
    reason = str(error).strip().splitlines()
    return f"the model cannot take clips {given}: {reason[0] if reason else type(error).__name__}"
